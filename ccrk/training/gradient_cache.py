"""A step in chunks: the loss and gradient of the whole batch, in the memory of a part of it (Gao et al., 2021)."""

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn

from ccrk.encoding import Embeddings
from ccrk.training.losses import OneToKLoss
from ccrk.training.sharding import accumulating, gathered_scalars

if TYPE_CHECKING:
    from ccrk.encoders import Encoder


def chunked_backward(
    model: nn.Module,
    encoder: "Encoder",
    loss: OneToKLoss,
    inputs: dict[str, Tensor],
    chunk_size: int,
    accelerator: Accelerator,
    in_precision: Callable[[], contextlib.AbstractContextManager],
    scale: float = 1.0,
) -> tuple[dict[str, Tensor], Tensor]:
    """
    Forward and backward of a batch, `chunk_size` images at a time.

    The embeddings of the whole batch are made chunk by chunk without a graph, and give the losses of the embeddings
    and the gradient with respect to each. Then every chunk is encoded again, this time with its graph, and takes its
    part of that gradient through the encoders, with the losses of its own of the chunk. Gradients are summed over
    processes once, in the last chunk.

    Args:
        model: as it is wrapped for training; `encoder.model` is the bare one.
        in_precision: context of a forward in the precision of training.
        scale: of the gradient: 1 / accumulation steps.

    Returns: this process's share of each loss, and the temperature.
    """
    starts = range(0, len(inputs["image_ids"]), chunk_size)
    chunks = [{name: value[start : start + chunk_size] for name, value in inputs.items()} for start in starts]
    # Both passes over a chunk start from the same seed: the second must meet the dropout of the first.
    seeds = torch.randint(1 << 62, (len(chunks),)).tolist()

    embeddings = []
    for chunk, seed in zip(chunks, seeds, strict=True):
        torch.manual_seed(seed)
        # accelerate casts in the wrapped model's forward alone, and this is not it.
        with torch.no_grad(), accelerator.autocast():
            embeddings.append(encoder.embed_alone(chunk))
    scalars = [scalar for scalar in (embeddings[0].temperature, embeddings[0].bias) if scalar is not None]
    cached = [torch.cat([found.image for found in embeddings]), torch.cat([found.text for found in embeddings])]
    with gathered_scalars(encoder.model):
        cached += [scalar.detach().clone() for scalar in scalars]
    whole = loss.of_embeddings(Embeddings(*(tensor.requires_grad_() for tensor in cached)), inputs)
    gradients = torch.autograd.grad(torch.stack(list(whole.values())).sum(), cached)
    per_chunk = zip(chunks, seeds, gradients[0].split(chunk_size), gradients[1].split(chunk_size), strict=True)

    # DeepSpeed would divide by the accumulation steps once more.
    options = {"scale_wrt_gas": False} if accelerator.distributed_type == DistributedType.DEEPSPEED else {}
    parts: dict[str, Tensor] = {}
    for index, (chunk, seed, image_gradient, text_gradient) in enumerate(per_chunk):
        is_last = index == len(chunks) - 1
        with contextlib.nullcontext() if is_last else accumulating(accelerator, model):
            torch.manual_seed(seed)
            with in_precision():
                found = encoder.embed(model, loss.for_encoder(chunk))
            shares = loss.shares(found)
            total = (found.image * image_gradient).sum() + (found.text * text_gradient).sum()
            for scalar, gradient in zip((found.temperature, found.bias), gradients[2:], strict=False):
                total += (scalar * gradient).sum() / len(chunks)
            total += sum(shares.values()) / len(chunks)
            accelerator.backward(total * scale, **options)
        for name, share in shares.items():
            parts[name] = parts.get(name, 0) + share.detach() / len(chunks)
    return {**{name: value.detach() for name, value in whole.items()}, **parts}, cached[2]
