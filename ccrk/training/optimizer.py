"""The published optimizer: which parameters are decayed and which learn faster, and where epsilon is added."""

import math
from collections.abc import Iterable

import torch

from modeling_ccrk import CCRKPairModel

# Parameters that no encoder brings along; the paper trains them at twice the rate of the others.
NEW_PARAMETERS = (
    "temperature",
    "vision_projection.",
    "text_projection.",
    "matching_head.",
    ".cross_attention.",
    ".linear.",  # the projections of two towers, which are sentence-transformers' Dense
)

# The published code knows by their names which weights not to decay, and the matching head's norm has a number.
DECAYED_NORM = "matching_head.1.weight"


def parameter_groups(
    model: torch.nn.Module, decayed: Iterable[str]
) -> dict[tuple[bool, bool], list[torch.nn.Parameter]]:
    """
    What is trained of a model: (is decayed, is new) → parameters. CCRK is decayed as published. Of other models
    nothing is that has one dimension or none, as in open_clip: temperature, bias, class embeddings.

    Args:
        decayed: names of the parameters that are neither biases nor of norms.
    """
    bare = model.get_base_model() if hasattr(model, "peft_config") else model
    is_published, decayed = isinstance(bare, CCRKPairModel), set(decayed)
    groups: dict[tuple[bool, bool], list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            has_decay = name in decayed or name.endswith(DECAYED_NORM)
            key = (has_decay and (is_published or parameter.dim() > 1), any(new in name for new in NEW_PARAMETERS))
            groups.setdefault(key, []).append(parameter)
    return groups


def published_epsilon(optimizer: torch.optim.Optimizer, *_) -> None:
    """
    Before a step of PyTorch's AdamW: its epsilon is added to the root of the bias-corrected second moment, the
    published code's to the root as it is. In the first steps, where gradients are small, that is up to 7 times more.
    """
    for group in optimizer.param_groups:
        if all(parameter.grad is None for parameter in group["params"]):
            continue  # a skipped step does not count
        base = group.setdefault("published_eps", group["eps"])  # groups are saved with the checkpoint
        group["published_steps"] = steps = group.get("published_steps", 0) + 1
        group["eps"] = base / math.sqrt(1 - group["betas"][1] ** steps)
