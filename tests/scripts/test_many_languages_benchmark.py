"""One evaluation in many languages beside MTEB's: equal recall, each picture encoded once."""

import json

import pytest
from conftest import ROOT

SMALL = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16, "num_hidden_layers": 1}


@pytest.fixture
def many_languages(monkeypatch):
    pytest.importorskip("mteb")
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import dual_encoders
    import many_languages

    monkeypatch.setattr(dual_encoders, "NARROW", SMALL)
    monkeypatch.setattr(many_languages, "LANGUAGES", ("en", "ko", "sw"))
    monkeypatch.setattr(many_languages, "QUICK", ((4, 7), 1))
    for name, size in dual_encoders.SIZES.items():
        monkeypatch.setitem(dual_encoders.SIZES, name, size | SMALL | {"image_size": 32})
    return many_languages


@pytest.mark.slow
def test_it_writes_what_it_measured(many_languages, tmp_path):
    many_languages.main(["--output", str(tmp_path / "result.json"), "--quick"])
    result = json.loads((tmp_path / "result.json").read_text())
    assert list(result["by_encoder"]) == ["384 x 6 at 224 px", "192 x 6 at 64 px"]
    assert result["ratio"] == result["by_encoder"]["384 x 6 at 224 px"]["ratio"] > 0 < result["ratio_with_cache"]
    assert result["recall_difference"] < many_languages.TOLERANCE and result["languages"] == 3
    assert [len(times) for times in result["by_encoder"]["192 x 6 at 64 px"]["seconds"].values()] == [1, 1, 1]


@pytest.mark.slow
def test_each_way_encodes_as_often_as_is_said(many_languages, monkeypatch):
    encoded = {}

    class Counting(many_languages.DualEncoder):
        def encode_images(self, images):
            encoded["images"] += len(images)
            return super().encode_images(images)

        def encode_captions(self, captions):
            encoded["captions"] += len(captions)
            return super().encode_captions(captions)

    rows = many_languages.make_rows("test", 5, 32, many_languages.LANGUAGES)
    encoder = many_languages.make_encoder("192 x 6 at 64 px", many_languages.captions_of(rows))
    encoder.__class__ = Counting
    counts = {}
    for name, way in many_languages.WAYS.items():
        encoded |= {"images": 0, "captions": 0}
        recall = way(encoder, rows, many_languages.make_tasks(rows))
        counts[name] = tuple(encoded.values())
    assert counts == {
        "MTEB's loop": (5 * 3 * 2, 15 * 2),
        "MTEB's loop with its cache": (5 * 2, 15 * 2),
        "ours": (5, 15),
    }
    assert len(recall) == 3 * 6 and 0 < recall["sw", "IR@5"] <= 100


@pytest.mark.slow
def test_other_recall_ends_it(many_languages, monkeypatch):
    theirs = many_languages.theirs
    monkeypatch.setattr(
        many_languages, "theirs", lambda *given: {key: value + 1 for key, value in theirs(*given).items()}
    )
    with pytest.raises(AssertionError, match="recall differs from that of MTEB's loop by 1"):
        many_languages.compare("192 x 6 at 64 px", 4, 1)
