"""What a step needs of memory, and what to change where there is less."""

import os
import sys
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from ccrk.encoders import Encoder


def check_shared_memory(num_batches: int, batch_bytes: int) -> None:
    """
    Data loader workers hand batches over in /dev/shm, which containers limit to 64 MB or do without. Where it is too
    small, workers die of it amid training, or wait for ever.

    Raises:
        OSError: so many batches do not fit.
    """
    if sys.platform != "linux":
        return
    advice = "set --dataloader_num_workers 0"
    if not os.access("/dev/shm", os.W_OK):
        raise OSError(f"data loader workers need /dev/shm, which cannot be written to; {advice}")
    status = os.statvfs("/dev/shm")
    free, needed = status.f_bavail * status.f_frsize, num_batches * batch_bytes
    if free < needed:
        raise OSError(
            f"data loader workers hold {num_batches} batches of {batch_bytes / 1e6:.1f} MB in /dev/shm, which has "
            f"{free / 1e6:.1f} MB left; {advice}, or give a container docker run --shm-size {needed // 10**6 + 1}m"
        )


def saved_bytes(encoder: "Encoder", model: nn.Module, inputs: dict[str, Tensor]) -> int:
    """Bytes that a forward of the inputs holds for its backward, beside parameters and the inputs themselves."""
    given = [value for value in inputs.values() if isinstance(value, Tensor)]
    held = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *given]}
    saved: dict[int, Tensor] = {}

    def hold(tensor: Tensor) -> Tensor:
        if (storage := tensor.untyped_storage()).data_ptr() not in held:
            saved[storage.data_ptr()] = tensor
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(hold, lambda tensor: tensor):
        _found = encoder.embed(model, inputs)  # while it lives, so does what it saved
        return sum(tensor.untyped_storage().nbytes() for tensor in saved.values())


def memory_advice(encoder: "Encoder", model: nn.Module, inputs: dict[str, Tensor]) -> str:
    """What a step of these inputs needs about, from a forward of two of its images, and how to need less."""
    inputs = {name: value for name, value in inputs.items() if isinstance(value, Tensor)}
    batch_size, (rows, num_captions) = len(inputs["image_ids"]), inputs["caption_mask"].shape
    smaller = f"--contrastive_chunk_size {max(1, batch_size // 4)}"
    if rows > batch_size:  # which chunks do not go with
        smaller = "to remove --text_only_rows"
    device = inputs["caption_mask"].device
    if device.type != "cpu":
        torch.accelerator.empty_cache()
    few = min(2, batch_size)
    per_image = saved_bytes(encoder, model, {name: value[:few] for name, value in inputs.items()}) / few
    trained = sum(parameter.nbytes for parameter in model.parameters() if parameter.requires_grad)
    state = sum(parameter.nbytes for parameter in model.parameters()) + 3 * trained
    gib = 1 << 30
    has = ""
    if device.type == "cuda":
        has = f", of the {torch.cuda.get_device_properties(device).total_memory / gib:.1f} that {device} has"
    return (
        f"out of memory: a step of {batch_size} images × {num_captions} captions needs about "
        f"{(state + per_image * batch_size) / gib:.2f} GiB{has}: {state / gib:.2f} for parameters, gradients and "
        f"AdamW, and {per_image / gib:.3f} for each image; try {smaller}, "
        "--bf16 true, --activation_checkpointing true, or a smaller --per_device_train_batch_size"
    )
