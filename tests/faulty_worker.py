"""Runs a script of training; in the third step a gradient of one of two processes is not finite.

DeepSpeed compiles nothing here.
"""

import os
import runpy
import sys
from importlib.util import find_spec

import torch

from ccrk.training.losses import OneToKLoss

contrastive, steps = OneToKLoss.contrastive, []


def faulty_contrastive(self, found, inputs) -> torch.Tensor:
    steps.append(found)
    is_at_fault = len(steps) == 3 and os.environ["RANK"] == "1"
    return contrastive(self, found, inputs) * (torch.nan if is_at_fault else 1.0)


if __name__ == "__main__":
    OneToKLoss.contrastive = faulty_contrastive
    if find_spec("deepspeed"):  # torch's collectives serve as well as those that it would compile for half a minute
        import deepspeed.ops

        deepspeed.ops.__compatible_ops__ = dict.fromkeys(deepspeed.ops.__compatible_ops__, False)
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
