"""Compiled encoders give the same losses, from whole graphs that serve captions of any length."""

import pytest
import torch
from tiny import make_trainer, tiny_config
from torch._dynamo.utils import counters

from ccrk import CCRKForPreTraining


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
    found = {}
    for compiled in (False, True):
        torch.manual_seed(0)
        options = {"torch_compile": True, "torch_compile_backend": "aot_eager"} if compiled else {}
        trainer = make_trainer(model, processor, shapes, tmp_path, **options)
        torch._dynamo.reset()
        counters.clear()
        trainer.model.train()
        with torch.no_grad():  # graphs are traced for the forward alone, in half the time
            found[compiled] = [trainer.compute_loss(trainer.model, batch) for batch in batches(trainer, shapes)]
    assert dict(counters["graph_break"]) == {}
    assert 3 <= counters["stats"]["unique_graphs"] <= 8  # image encoder, text layer, fusion layers
    torch.testing.assert_close(torch.stack(found[True]), torch.stack(found[False]))
    assert not any("_orig_mod" in name for name in model.state_dict())
