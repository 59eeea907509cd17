"""The published optimizer: which parameters are decayed and which learn faster, and where epsilon is added."""

import math

import torch

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
