"""SIGTERM, to this process or its launcher: a checkpoint after the step under way, and the end of the run."""

import os
import signal
import threading

import torch
from torch import Tensor
from transformers import Trainer, TrainerCallback

# What accelerate launch (with one process or several) and torchrun set for the processes that they start.
OF_A_LAUNCHER = ("ACCELERATE_DYNAMO_MODE", "TORCHELASTIC_RUN_ID")

_parent = os.getppid()


def launcher_is_gone() -> bool:
    """
    Whether a launcher started this process and has ended since: accelerate launch with one process does not pass
    SIGTERM on. The end of a shell does not count, since processes under nohup outlive it.
    """
    return os.getppid() != _parent and any(name in os.environ for name in OF_A_LAUNCHER)


class SaveOnSIGTERM(TrainerCallback):
    """
    After the step in which SIGTERM reaches one of the processes, or the launcher ends, all processes save a checkpoint
    and end training.

    transformers' own callback saves between gradient and step, when dropout has been drawn already, and each process
    by itself, which may be at different steps.
    """

    def __init__(self, trainer: Trainer):
        self.trainer = trainer
        self.is_told = self.has_ended = False
        self.is_training = torch.zeros((), dtype=torch.bool)  # data loader workers see it too, see `start_worker`
        self._handler_before = None

    def on_train_begin(self, args, state, control, **kwargs):
        self.is_told = self.has_ended = False
        self.is_training.fill_(True)
        if threading.current_thread() is threading.main_thread():
            self._handler_before = signal.signal(signal.SIGTERM, self._handle)

    def _handle(self, number, frame):
        self.is_told = True

    def on_step_end(self, args, state, control, **kwargs):
        is_told = self.is_told or launcher_is_gone()
        if args.world_size > 1:
            is_told = self.trainer.accelerator.reduce(torch.tensor(float(is_told), device=args.device), "sum") > 0
        if not is_told:
            return
        self.has_ended = control.should_training_stop = True
        self.trainer._save_checkpoint(self.trainer.model, trial=None)
        control.should_save = control.should_evaluate  # once more, with what the evaluation found

    def on_epoch_end(self, args, state, control, **kwargs):
        if self.has_ended and not float(state.epoch).is_integer():
            control.should_evaluate = control.should_save = False

    def stop(self) -> None:
        """Leaves SIGTERM to whoever had it before training, and to workers what it does by itself."""
        self.is_training.fill_(False)
        if self._handler_before is not None:
            signal.signal(signal.SIGTERM, self._handler_before)
            self._handler_before = None


def start_worker(start, is_training: Tensor, number: int) -> None:
    """
    A data loader worker leaves SIGTERM, which may go to all processes of a job, to the one that trains. When that one
    does so no more, whatever ended it, it waits for its workers to end on SIGTERM.
    """

    def handle(number, frame):
        if not is_training:
            os._exit(0)

    signal.signal(signal.SIGTERM, handle)
    start(number)
