"""An epoch of 1-to-K beside sentence-transformers': what is written, and that both do what is said of them."""

import json

import pytest
from conftest import ROOT

SMALL = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16, "num_hidden_layers": 1}


@pytest.fixture
def one_to_k(monkeypatch):
    pytest.importorskip("sentence_transformers")
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import dual_encoders
    import one_to_k

    monkeypatch.setattr(dual_encoders, "NARROW", SMALL)
    monkeypatch.setattr(one_to_k, "QUICK", (one_to_k.Plan(8, 4, 1, 5), one_to_k.Plan(8, 4, 1, 5)))
    for name, size in dual_encoders.SIZES.items():
        monkeypatch.setitem(dual_encoders.SIZES, name, size | SMALL | {"image_size": 32})
    return one_to_k


@pytest.mark.slow
def test_it_writes_what_it_measured(one_to_k, tmp_path):
    one_to_k.main(["--output", str(tmp_path / "result.json"), "--quick"])
    result = json.loads((tmp_path / "result.json").read_text())
    first = result["by_encoder"]["384 x 6 at 224 px"]
    assert result["ratio"] == first["seconds"]["theirs"] / first["seconds"]["ours"] > 0
    assert result["loss_difference"] < 1e-5
    assert [run["steps"] for run in first["runs"].values()][:2] == [2, 20], "eight images, ten captions each"
    assert set(result["recall"]) == set(result["mrv"]) == {"ours", "theirs", "ours, as long as theirs"}


@pytest.mark.slow
def test_both_start_alike_and_learn(one_to_k, monkeypatch):
    monkeypatch.setattr(one_to_k, "LEARNING_RATE", 3e-3)
    rows = one_to_k.make_rows("train", 16, 32, one_to_k.LANGUAGES)
    encoder = one_to_k.make_encoder("192 x 6 at 64 px", one_to_k.captions_of(rows))
    start = {name: tensor.clone() for name, tensor in encoder.model.state_dict().items()}
    before = one_to_k.measure(encoder, rows)
    for train, epochs in ((one_to_k.ours, 30), (one_to_k.theirs, 4)):
        encoder.model.load_state_dict(start)
        assert one_to_k.measure(encoder, rows) == before
        train(encoder, rows, one_to_k.Plan(16, 8, epochs, 0), epochs)
        assert one_to_k.measure(encoder, rows)["recall"] > 1.3 * before["recall"], train.__name__
