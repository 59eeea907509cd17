"""Rank, world and gather: what one process of several does, and what all of them found."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor
from torch.distributed.nn.functional import all_gather
from tqdm.auto import tqdm
from transformers import TrainingArguments

# Where launchers say how many processes they have started: torchrun, accelerate and DeepSpeed; Open MPI; MPICH and
# Intel MPI; MVAPICH2; srun. SLURM_NTASKS is not among them: an allocation has it before anything is started.
STARTED = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")


def process_state() -> PartialState:
    """Rank, number and device of the processes that torchrun or accelerate started; without an accelerator on CPUs."""
    return PartialState(cpu=not torch.accelerator.is_available())


def check_processes(arguments: TrainingArguments) -> None:
    """
    Checks that the processes that were started train one model together, each on one GPU or on CPUs.

    Raises:
        ValueError: a launcher started several, of which each would train the same model by itself; or one process
            sees several GPUs.
    """
    if arguments.n_gpu > 1:
        raise ValueError(
            f"one process sees {arguments.n_gpu} GPUs; start one for each with accelerate launch --multi_gpu, or set "
            "CUDA_VISIBLE_DEVICES to one of them"
        )
    if arguments.world_size > 1:
        return
    for name in STARTED:
        if (value := os.environ.get(name, "")).isdigit() and int(value) > 1:
            reason = f"{value} processes were started ({name}), and each would train the same model by itself"
            if "LOCAL_RANK" in os.environ:
                raise ValueError(
                    f"{reason}, since no GPU is visible; make the GPUs visible, set use_cpu to true to train on CPUs, "
                    "or start one process"
                )
            raise ValueError(f"{reason}; start them with torchrun or accelerate launch, or start one and unset {name}")


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
