"""The step that is trained against the published procedure, which pads, loops and computes what nothing reads."""

import json

import pytest
import torch
from conftest import ROOT
from torch.testing import assert_close

from ccrk import CCRKConfig, CCRKForPreTraining
from objectives_ccrk import sampling_keys


@pytest.fixture
def train_step(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import train_step

    vision = {"image_size": 64, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4}
    text = {"vocab_size": 400, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
    monkeypatch.setattr(train_step, "VISION", vision | {"drop_path_rate": 0.0})
    monkeypatch.setattr(train_step, "TEXT", text | {"num_hidden_layers": 2} | train_step.NO_DROPOUT)
    return train_step


@pytest.mark.slow
def test_benchmark_writes_what_it_measured(train_step, tmp_path):
    train_step.main(["--output", str(tmp_path / "result.json"), "--quick"])
    result = json.loads((tmp_path / "result.json").read_text())
    assert set(result["by_captions"]) == {"10", "4"}
    assert result["ratio"] == result["by_captions"]["10"]["ratio"] > 0
    assert result["loss_difference"] < 1e-5
    assert result["flop_ratio"] > 1.5  # a count, the same on every machine
    assert [len(seconds) for seconds in result["by_captions"]["4"]["seconds"].values()] == [3, 3]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_gradients_are_those_of_the_published_procedure(train_step, attention):
    torch.manual_seed(0)
    model = CCRKForPreTraining(CCRKConfig(vision_config=train_step.VISION, text_config=train_step.TEXT)).train()
    batch = train_step.make_batch(model.config, num_captions=3)
    keys = sampling_keys(batch["image_ids"], seed=1, step=0)
    gradients = []
    for step, implementation in ((train_step.published, "eager"), (train_step.ours, attention)):
        model.set_attn_implementation(implementation)
        train_step.run(step, model, batch, keys)
        gradients.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
    assert_close(gradients[1], gradients[0], rtol=1e-3, atol=1e-6)
