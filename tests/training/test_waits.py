"""A step of training waits for the device once in forward and backward, and once for the gradient's norm."""

import pytest
import torch
from tiny import make_trainer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

import modeling_ccrk
from ccrk import CCRKForImageTextRetrieval

aten = torch.ops.aten
# What tells the host something of a tensor, or has a shape that its values decide.
WAITING = {
    aten._local_scalar_dense,
    aten.equal,
    aten.is_nonzero,
    aten.item,
    aten.masked_select,
    aten.multinomial,
    aten.nonzero,
    aten.repeat_interleave,
    aten.unique_consecutive,
    aten._unique2,
}
INDEXING = {aten.index, aten.index_put, aten.index_put_}


class OnDevice(TorchDispatchMode):
    """
    Takes some tensors, and all that is computed of them, to be on a device; raises where the host would wait for one.
    `to_host` makes a copy that is not.
    """

    def __init__(self, tensors):
        super().__init__()
        self.there = {tensor.untyped_storage()._cdata for tensor in tensors}
        self.held = list(tensors)  # a storage that is freed would give its number to another
        self.waits = 0

    def is_there(self, value) -> bool:
        return isinstance(value, torch.Tensor) and value.untyped_storage()._cdata in self.there

    def to_host(self, tensor):
        self.waits += 1
        with torch.utils._python_dispatch._disable_current_modes():
            return tensor.detach().clone()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = [value for value in tree_flatten((args, kwargs))[0] if self.is_there(value)]
        if given:
            packet = function.overloadpacket
            masks = args[1] if packet in INDEXING else []
            if packet in WAITING or any(mask is not None and mask.dtype == torch.bool for mask in masks):
                raise AssertionError(f"{function} waits for the device")
        found = function(*args, **kwargs)
        if given:
            tensors = [value for value in tree_flatten(found)[0] if isinstance(value, torch.Tensor)]
            self.held += tensors
            self.there |= {tensor.untyped_storage()._cdata for tensor in tensors}
        return found


@pytest.mark.parametrize("pretraining", [True, False], ids=["pre-training", "retrieval"])
def test_a_step_waits_once(tiny_model, processor, shapes, tmp_path, monkeypatch, pretraining):
    model = tiny_model if pretraining else CCRKForImageTextRetrieval(tiny_model.config)
    trainer = make_trainer(model, processor, shapes, tmp_path)
    trainer.current_gradient_accumulation_steps = 1
    batch = trainer.data_collator([shapes[index] for index in range(8)])
    tensors = [value for value in batch.values() if isinstance(value, torch.Tensor)]
    device = OnDevice([*model.parameters(), *tensors])
    monkeypatch.setattr(modeling_ccrk, "to_host", device.to_host)
    with device:
        loss = trainer.training_step(model, dict(batch))
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        assert device.is_there(loss) and device.is_there(norm)
        with pytest.raises(AssertionError, match="waits"):
            loss.item()
    assert device.waits == 1

    del batch["caption_lengths"]
    device = OnDevice([*model.parameters(), *tensors])
    with device, pytest.raises(AssertionError, match="waits"):
        trainer.training_step(model, batch)
