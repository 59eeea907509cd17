"""Rank, world and gather: what one process of several does, and what all of them found."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor
from torch.distributed.nn.functional import all_gather
from tqdm.auto import tqdm


def process_state() -> PartialState:
    """Rank, number and device of the processes that torchrun or accelerate started; without an accelerator on CPUs."""
    return PartialState(cpu=not torch.accelerator.is_available())


@dataclass(frozen=True)
class Share:
    """Which blocks of the work are this process's: every `count`-th from `index` on. By default all of them."""

    index: int = 0
    count: int = 1

    @classmethod
    def of_this_process(cls) -> "Share":
        state = process_state()
        return cls(state.process_index, state.num_processes)

    def of(self, blocks: Sequence) -> Sequence:
        return blocks[self.index :: self.count]

    def gather(self, own: dict[int, object]) -> dict[int, object]:
        """What all processes found, in the order of the keys."""
        return dict(sorted(gather_object(list(own.items())))) if self.count > 1 else own


def progress(blocks: Sequence, description: str) -> Iterable:
    """A progress bar of the first process, which stays away from logs and from work that is over in a moment."""
    hidden = None if process_state().is_main_process else True
    return tqdm(blocks, desc=description, leave=False, delay=2, disable=hidden)


def gather_with_gradient(tensor: Tensor) -> Tensor:
    """Concatenates a tensor of all processes along its first dimension, in rank order; gradients flow back to each.

    Its backward sums what all ranks ask of a slice, and data parallelism averages over ranks: with the same loss on
    every rank the encoders get exactly the gradient of one process that holds the whole batch.
    """
    return torch.cat(all_gather(tensor.contiguous()))
