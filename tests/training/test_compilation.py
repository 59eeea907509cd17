"""Compiled encoders give the same losses, from whole graphs that serve captions of any length."""

import pytest
import torch
from tiny import make_trainer, tiny_config
from torch._dynamo.utils import counters

import ccrk.training.trainer
from ccrk import CCRKForPreTraining
from ccrk.training.compilation import compile_encoders


def batches(trainer, rows):
    """Three, whose captions are of other lengths in each; one caption of each is missing."""
    for start in range(3):
        batch = trainer.data_collator([rows[index] for index in range(start, start + 8)])
        length = 6 + 2 * start
        batch["attention_mask"][..., length:] = 0
        batch["caption_lengths"] = batch["attention_mask"].sum(dim=-1).tolist()
        batch["caption_mask"][start, 1] = False
        yield batch


@pytest.mark.slow
def test_graphs_are_whole_and_few(processor, shapes, tmp_path):
    vision = {"image_size": 64, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4}
    torch.manual_seed(0)
    model = CCRKForPreTraining(tiny_config(len(processor.tokenizer), vision_config=vision | {"drop_path_rate": 0.0}))
    trainer = make_trainer(model, processor, shapes, tmp_path)
    model.train()
    found = []
    for compiled in (False, True):
        if compiled:
            torch._dynamo.reset()
            counters.clear()
            compile_encoders(model, "aot_eager", None)
        with torch.no_grad():  # graphs are traced for the forward alone, in half the time
            found.append(torch.stack([trainer.compute_loss(model, batch) for batch in batches(trainer, shapes)]))
    assert dict(counters["graph_break"]) == {}
    assert 3 <= counters["stats"]["unique_graphs"] <= 8  # image encoder, text layer, fusion layers
    torch.testing.assert_close(*found)
    assert not any("_orig_mod" in name for name in model.state_dict())


@pytest.mark.slow
def test_training_compiles_the_encoders_and_not_the_step(tiny_model, processor, shapes, tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr(ccrk.training.trainer, "compile_encoders", lambda *arguments: compiled.append(arguments))
    options = {"torch_compile": True, "torch_compile_backend": "aot_eager", "max_steps": 1}
    trainer = make_trainer(tiny_model, processor, shapes, tmp_path, **options)
    trainer.train()
    assert compiled == [(tiny_model, "aot_eager", None)]
    assert trainer.model_wrapped is tiny_model
