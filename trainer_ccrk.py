"""Training CCRK: arguments, collator, and a Trainer whose `compute_loss` is 1-to-K contrastive learning."""

import contextlib
import copy
import hashlib
import json
import logging
import math
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import MISSING, dataclass, field
from functools import partial
from itertools import zip_longest
from pathlib import Path

import datasets
import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, parse_flag_from_env
from PIL import Image
from safetensors import SafetensorError
from timm.data.auto_augment import RandAugment, rand_augment_ops
from torch import Tensor, nn
from torch.distributed.nn.functional import all_gather
from torchvision import transforms
from transformers import Trainer, TrainerCallback, TrainerState, TrainingArguments
from transformers.integrations import is_deepspeed_zero3_enabled, is_tensorboard_available
from transformers.trainer_optimizer import is_optimizer_factory
from transformers.trainer_utils import TrainOutput, rotate_checkpoints

from checkpoints_ccrk import (
    ADAPTER,
    MANIFEST,
    SETTINGS,
    CheckpointError,
    check_same_model,
    choose_checkpoint,
    compare_settings,
    steps_of,
    write_manifest,
)
from data_scripts.captions import is_usable
from data_scripts.images import BadImage, read_image
from data_scripts.problems import Problems
from errors_ccrk import InputError, one_line
from model_card_ccrk import model_card
from modeling_ccrk import CCRKLossOutput
from objectives_ccrk import contrastive_loss, sampling_keys
from processing_ccrk import CCRKProcessor
from retrieval_ccrk import CCRKRetriever, Share, evaluate_retrieval, weights_fingerprint

logger = logging.getLogger(__name__)

# Parameters that no encoder brings along; the paper trains them at twice the rate of the others.
NEW_PARAMETERS = ("temperature", "vision_projection.", "text_projection.", "matching_head.", ".cross_attention.")

# The published code knows by their names which weights not to decay, and the matching head's norm has a number.
DECAYED_NORM = "matching_head.1.weight"

# Arguments of transformers that nothing here reads, or that would do something else than they say.
_EVALUATION = "evaluation is retrieval, in batches of per_device_eval_batch_size"
_LOSSES = "the losses are the paper's, each a mean over all processes"
_ROWS = "rows are drawn at random, or with train_sampling_strategy sequential in their order"
_SCRIPT = "these scripts train, and evaluate as eval_strategy says; eval_mrv.py evaluates a checkpoint"
WITHOUT_EFFECT = {
    "auto_find_batch_size": "a smaller batch has another contrastive loss; contrastive_chunk_size saves memory",
    "average_tokens_across_devices": _LOSSES,
    "batch_eval_metrics": _EVALUATION,
    "bf16_full_eval": "evaluation is in the precision of training; eval_mrv.py --bf16 evaluates a checkpoint",
    "do_predict": _SCRIPT,
    "do_train": _SCRIPT,
    "eval_accumulation_steps": _EVALUATION,
    "eval_do_concat_batches": _EVALUATION,
    "eval_use_gather_object": _EVALUATION,
    "fp16_full_eval": "evaluation is in the precision of training; eval_mrv.py --bf16 evaluates a checkpoint",
    "fsdp_config": "FSDP is not supported",
    "include_for_metrics": _EVALUATION,
    "label_names": _LOSSES,
    "label_smoothing_factor": _LOSSES,
    "length_column_name": _ROWS,
    "liger_kernel_config": "there are no Liger kernels for this model",
    "neftune_noise_alpha": "captions are packed, and the noise would depend on how many of them are",
    "optim_target_modules": "optimizers that group parameters themselves are refused",
    "parallelism_config": "the model is not split over devices; DeepSpeed spreads its parameters",
    "prediction_loss_only": _EVALUATION,
    "remove_unused_columns": "the collator reads rows, of which none of the columns may be removed",
    "use_cache": "the model generates nothing",
    "use_liger_kernel": "there are no Liger kernels for this model",
}

# The least of each, and of some the most; None is unset.
AT_LEAST_1 = (1, None)
NOT_NEGATIVE = (0, None)
ABOVE_0 = (math.nextafter(0, 1), None)
UP_TO_1 = (0, 1)
BELOW_1 = (0, math.nextafter(1, 0))
SEED = (0, 2**32 - 1)
RANGES = {
    "adam_beta1": BELOW_1,
    "adam_beta2": BELOW_1,
    "adam_epsilon": NOT_NEGATIVE,
    "contrastive_chunk_size": AT_LEAST_1,
    "data_seed": SEED,
    "dataloader_num_workers": NOT_NEGATIVE,
    "dataloader_prefetch_factor": AT_LEAST_1,
    "ddp_bucket_cap_mb": AT_LEAST_1,
    "ddp_timeout": AT_LEAST_1,
    "eval_delay": NOT_NEGATIVE,
    "eval_k_test": NOT_NEGATIVE,
    "eval_steps": ABOVE_0,
    "gradient_accumulation_steps": AT_LEAST_1,
    "learning_rate": NOT_NEGATIVE,
    "logging_steps": ABOVE_0,
    "max_grad_norm": NOT_NEGATIVE,
    "max_skipped_steps": NOT_NEGATIVE,
    "new_parameter_lr_scale": NOT_NEGATIVE,
    "num_train_epochs": ABOVE_0,
    "per_device_eval_batch_size": AT_LEAST_1,
    "per_device_train_batch_size": AT_LEAST_1,
    "save_steps": ABOVE_0,
    "save_total_limit": AT_LEAST_1,
    "seed": SEED,
    "torch_empty_cache_steps": AT_LEAST_1,
    "warmup_steps": NOT_NEGATIVE,
    "weight_decay": NOT_NEGATIVE,
}


def check_ranges(arguments: object, ranges: dict[str, tuple[float, float | None]]) -> None:
    """Raises ValueError, with its name, for an attribute that is out of its range, or not finite."""
    for name, (least, most) in ranges.items():
        value = getattr(arguments, name)
        if value is None or (math.isfinite(value) and least <= value and (most is None or value <= most)):
            continue
        bounds = {
            ABOVE_0: "above 0",
            BELOW_1: "at least 0 and below 1",
        }.get((least, most), f"at least {least}" if most is None else f"from {least} to {most}")
        raise ValueError(f"{name} is {value}; it must be {bounds}")


# Ends of the names of what is better when lower; recall is better when higher.
LOWER_IS_BETTER = ("loss", "mrv", "std", "variance", "runtime")


@dataclass
class CCRKTrainingArguments(TrainingArguments):
    """
    [`transformers.TrainingArguments`] with the paper's optimizer as defaults (section 4.1): AdamW with betas
    (0.9, 0.98), weight decay 0.01, linear decay, gradient clip 1.0. Batches are never cut short, and no column is
    removed, since the collator reads rows and not tensors. Logs go to TensorBoard where it is installed.
    """

    _argument_group_name = "training"

    learning_rate: float = field(default=1e-4, metadata={"help": "Peak learning rate of the pre-trained parameters."})
    adam_beta2: float = field(default=0.98, metadata={"help": "AdamW's second beta."})
    weight_decay: float = field(
        default=0.01, metadata={"help": "Not applied to biases and norms, but the matching head's, as published."}
    )
    logging_steps: float = field(default=50, metadata={"help": "Log every N steps (or that share of all steps)."})
    dataloader_drop_last: bool = field(
        default=True, metadata={"help": "Leave out the last batch of an epoch where it is not full."}
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "Must stay off: the collator reads rows."})
    new_parameter_lr_scale: float = field(
        default=2.0,
        metadata={
            "help": "Learning rate of the parameters that start from scratch (cross-attention, projections, matching "
            "head, temperature), as a multiple of learning_rate."
        },
    )
    report_to: str | list[str] = field(
        default_factory=lambda: "tensorboard" if is_tensorboard_available() else "none",
        metadata={"help": "Where logs go beside the screen: tensorboard (where it is installed), wandb, …, or none."},
    )
    contrastive_chunk_size: int | None = field(
        default=None,
        metadata={
            "help": "Hold the activations of this many images at a time. The contrastive loss stays that of the whole "
            "batch; matching draws its negatives within a chunk."
        },
    )
    max_skipped_steps: int = field(
        default=20,
        metadata={"help": "Steps in a row that may be skipped, their gradient not finite; one more ends the run."},
    )
    eval_k_test: int = field(
        default=0,
        metadata={"help": "Candidates re-scored per query in evaluations during training; 0 ranks by cosine alone."},
    )

    do_train: bool = field(default=True, metadata={"help": "Must stay on: these scripts train."})
    enable_jit_checkpoint: bool = field(
        default=True, metadata={"help": "On SIGTERM, save a checkpoint after the step under way, and end the run."}
    )
    resume_from_checkpoint: str | None = field(
        default=None,
        metadata={
            "help": "'auto': go on from the newest whole checkpoint of output_dir, or start where there is none. Or a "
            "checkpoint's folder."
        },
    )

    def __post_init__(self):
        check_ranges(self, RANGES)
        if self.max_steps < 1 and self.max_steps != -1:
            raise ValueError(f"max_steps is {self.max_steps}; it must be at least 1, or -1 for num_train_epochs")
        if self.output_dir == "":
            raise ValueError("output_dir is empty; name a folder")
        for name, why in WITHOUT_EFFECT.items():
            declared = self.__dataclass_fields__[name]
            default = declared.default if declared.default_factory is MISSING else declared.default_factory()
            if getattr(self, name) != default:
                raise ValueError(f"{name} cannot be {getattr(self, name)!r}: {why}; leave it out")
        if self.train_sampling_strategy not in ("random", "sequential"):
            raise ValueError(f"train_sampling_strategy cannot be {self.train_sampling_strategy!r}: {_ROWS}")
        if self.include_num_input_tokens_seen in (True, "all"):
            raise ValueError("include_num_input_tokens_seen would count pixels; choose non_padding")
        if self.torch_empty_cache_steps is not None and self.contrastive_chunk_size is not None:
            raise ValueError("torch_empty_cache_steps has no effect on steps in chunks; leave it out")
        optim = getattr(self.optim, "value", self.optim)
        if self.optim_args and optim in ("adamw_torch", "adamw_torch_fused", "adafactor"):
            raise ValueError(f"optim_args has no effect on optim {optim}; set adam_beta1, adam_beta2 and adam_epsilon")
        self._check_best_metric()
        # FSDP has a layer's parameters whole in its forward alone, but keys and values of images are made before that;
        # and word embeddings and LM head share theirs.
        if self.fsdp or parse_flag_from_env("ACCELERATE_USE_FSDP"):
            raise ValueError("FSDP is not supported; --deepspeed configs/deepspeed/zero3.json spreads parameters too")
        super().__post_init__()
        if self.save_only_model and self.resume_from_checkpoint:
            raise ValueError(
                "save_only_model leaves nothing to resume from; leave out save_only_model or resume_from_checkpoint"
            )

    def _check_best_metric(self) -> None:
        """Which way the metric for the best model gets better is known by its name."""
        if self.eval_strategy == "no":
            asking = {
                "load_best_model_at_end": self.load_best_model_at_end,
                "save_strategy best": self.save_strategy == "best",
                "do_eval": self.do_eval,
                "eval_on_start": self.eval_on_start,
            }
            if wanting := [name for name, is_set in asking.items() if is_set]:
                raise ValueError(f"{wanting[0]} needs evaluations; set eval_strategy to steps or epoch")
        schedule = str(getattr(self.lr_scheduler_type, "value", self.lr_scheduler_type))
        follows_metric = schedule in ("reduce_lr_on_plateau", "greedy")
        if self.metric_for_best_model is None:
            if not (self.load_best_model_at_end or self.save_strategy == "best" or follows_metric):
                return
            self.metric_for_best_model = "loss"  # as transformers has it; the trainer names those that there are
        is_lower_better = self.metric_for_best_model.endswith(LOWER_IS_BETTER)
        if self.greater_is_better is None:
            self.greater_is_better = not is_lower_better
        elif self.greater_is_better == is_lower_better:
            raise ValueError(
                f"greater_is_better is {self.greater_is_better}, but {self.metric_for_best_model} is better when "
                f"{'lower' if is_lower_better else 'higher'}; leave greater_is_better out"
            )
        if follows_metric and not isinstance(self.lr_scheduler_kwargs, str):
            mode = {"mode": "max" if self.greater_is_better else "min"}  # by itself always min
            self.lr_scheduler_kwargs = mode | (self.lr_scheduler_kwargs or {})


# Pictures to crop from are decoded at no less than this many times the model's input a side: a crop of a quarter of a
# square picture then still has all of the pixels that the input shows.
CROP_MARGIN = 2


def published_augmentation(image_size: int, min_scale: float) -> Callable[[Image.Image], Image.Image]:
    """The published training augmentation: random crop, flip, and two random operations of magnitude 7.

    Args:
        image_size: side of the crop after resizing, in pixels.
        min_scale: least share of the picture that a crop keeps: 0.2 in pre-training, 0.5 in fine-tuning.
    """
    operations = rand_augment_ops(
        magnitude=7,
        transforms=[
            "AutoContrast",
            "Equalize",
            "Brightness",
            "Sharpness",
            "ShearX",
            "ShearY",
            "TranslateX",
            "TranslateY",
            "Rotate",
        ],
        prob=0.5,
        hparams={"translate_const": 10},  # pixels at magnitude 10
    )
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(
                image_size, scale=(min_scale, 1.0), interpolation=transforms.InterpolationMode.BICUBIC
            ),
            transforms.RandomHorizontalFlip(),
            RandAugment([*operations, nn.Identity()], num_layers=2),
        ]
    )


@dataclass
class CCRKCollator:
    """
    Turns rows into a batch: `pixel_values` (B, 3, H, W); `input_ids`, `attention_mask` (B, K, L); `caption_mask`
    (B, K); `image_ids` (B,).

    A row's caption of a language is drawn from those it has, or where a row is aligned (`data_scripts.rows`), all its
    captions together. A language that the draw lacks leaves its slot masked, so K is the same for all rows and the
    k-th caption is always of the k-th language.

    Args:
        processor: makes the tensors.
        languages: K of them; 1-to-K training.
        one_language: draw one caption per image, of any of the languages: K is 1, as in the published fine-tuning.
        augmentation: applied to each picture before the processor.
        seed: with the epoch and the image's id it decides what is drawn for a row: not the order of the rows, nor the
            process, nor how far ahead of its step the batch is made.

    An image that cannot be read is counted in the batch's `problems` (`data_scripts.problems`; there only if there are
    any), and a readable row of the batch takes its row's place: all processes go on with equally many rows, and those
    with equal image ids are never each other's negatives.
    """

    processor: CCRKProcessor
    languages: Sequence[str]
    one_language: bool = False
    augmentation: Callable[[Image.Image], Image.Image] | None = None
    seed: int = 0
    # The trainer moves it to shared memory where there are data loader workers, which thus see it move on.
    epoch: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.int64), init=False)

    def __call__(self, rows: list[dict]) -> dict[str, Tensor | Problems]:
        problems = Problems("training images", max_bad_fraction=1.0, quiet=True)
        rows, pictures = zip(*self._readable(rows, problems), strict=True)
        images, captions = [], []
        for row, picture in zip(rows, pictures, strict=True):
            # Rows of one image, each with a caption of its own, are cropped each by itself.
            name = [str(self.seed), str(int(self.epoch)), row["image_id"], *filter(None, [row.get("caption")])]
            with seeded(" ".join(name)):
                images.append(picture if self.augmentation is None else self.augmentation(picture))
                drawn = [self._draw(texts) for texts in self._to_draw_from(row)]
                captions.append([self._draw(drawn)] if self.one_language else drawn)
        batch = {
            **self.processor(images=images, text=captions),
            "image_ids": torch.tensor([stable_id(row["image_id"]) for row in rows]),
        }
        return batch | {"problems": problems} if problems.first else batch

    def _readable(self, rows: list[dict], problems: Problems) -> list[tuple[dict, Image.Image]]:
        size = self.processor.image_processor.size["height"] * (1 if self.augmentation is None else CROP_MARGIN)
        readable = []
        for row in rows:
            try:
                image = read_image(row["image"], size)
            except BadImage as error:
                problems.add_image(error, f"image_id {row['image_id']}")
            else:
                readable.append((row, image))
        if not readable:
            raise InputError(f"no image of a batch of {len(rows)} can be read\n{problems.table()}")
        return [readable[index % len(readable)] for index in range(len(rows))]

    def _to_draw_from(self, row: dict) -> list[Sequence[str | None]]:
        """The captions of each language; of an aligned row, those of one draw: translations of one another."""
        captions = [row["captions"][language] for language in self.languages]
        if not row.get("aligned"):
            return captions
        translations = [texts for texts in zip_longest(*captions) if any(map(is_usable, texts))]
        return list(zip(random.choice(translations))) if translations else captions

    def _draw(self, captions: Sequence[str | None]) -> str | None:
        usable = [caption for caption in captions if is_usable(caption)]
        return random.choice(usable) if usable else None


def stable_id(name: str) -> int:
    """A 63-bit number that is the same for the same name in every process."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") >> 1


@contextlib.contextmanager
def seeded(name: str) -> Iterator[None]:
    """Inside, all random numbers on the CPU follow from `name`; outside they go on as if nothing had been drawn."""
    python, array, key = random.getstate(), np.random.get_state(), stable_id(name)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(key)
            random.seed(key)
            np.random.seed(key % 2**32)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(array)


class EpochCallback(TrainerCallback):
    """Tells the collator the epoch, which its draws depend on."""

    def __init__(self, collator: CCRKCollator):
        self.collator = collator

    def on_train_begin(self, args, state, control, **kwargs):
        # A resumed run would log, evaluate and save as often as its checkpoint was told to.
        state.compute_steps(args, state.max_steps)

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.collator.epoch.fill_(int(state.epoch))


class SaveOnSIGTERM(TrainerCallback):
    """
    After the step in which one of the processes is told to end, all of them save a checkpoint and end training.

    transformers' own callback saves between gradient and step, when dropout has been drawn already, and each process
    by itself, which may be at different steps.
    """

    def __init__(self, trainer: "CCRKTrainer"):
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
        is_told = self.is_told
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


def saved_bytes(model: nn.Module, inputs: dict[str, Tensor]) -> int:
    """Bytes that a forward of the inputs holds for its backward, beside parameters and the inputs themselves."""
    held = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *inputs.values()]}
    saved: dict[int, Tensor] = {}

    def hold(tensor: Tensor) -> Tensor:
        if (storage := tensor.untyped_storage()).data_ptr() not in held:
            saved[storage.data_ptr()] = tensor
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(hold, lambda tensor: tensor):
        _loss = model(**inputs).loss  # while it lives, so does what it saved
        return sum(tensor.untyped_storage().nbytes() for tensor in saved.values())


def memory_advice(model: nn.Module, inputs: dict[str, Tensor]) -> str:
    """What a step of these inputs needs about, from a forward of two of its images, and how to need less."""
    inputs = {name: value for name, value in inputs.items() if isinstance(value, Tensor)}
    batch_size, num_captions = inputs["caption_mask"].shape
    device = inputs["pixel_values"].device
    if device.type != "cpu":
        torch.accelerator.empty_cache()
    few = min(2, batch_size)
    per_image = saved_bytes(model, {name: value[:few] for name, value in inputs.items()}) / few
    trained = sum(parameter.nbytes for parameter in model.parameters() if parameter.requires_grad)
    state = sum(parameter.nbytes for parameter in model.parameters()) + 3 * trained
    gib = 1 << 30
    has = ""
    if device.type == "cuda":
        has = f", of the {torch.cuda.get_device_properties(device).total_memory / gib:.1f} that {device} has"
    return (
        f"out of memory: a step of {batch_size} images × {num_captions} captions needs about "
        f"{(state + per_image * batch_size) / gib:.2f} GiB{has}: {state / gib:.2f} for parameters, gradients and "
        f"AdamW, and {per_image / gib:.3f} for each image; try --contrastive_chunk_size {max(1, batch_size // 4)}, "
        "--bf16 true, --activation_checkpointing true, or a smaller --per_device_train_batch_size"
    )


def gather_with_gradient(tensor: Tensor) -> Tensor:
    """Concatenates a tensor of all processes along its first dimension, in rank order; gradients flow back to each.

    Its backward sums what all ranks ask of a slice, and data parallelism averages over ranks: with the same loss on
    every rank the encoders get exactly the gradient of one process that holds the whole batch.
    """
    return torch.cat(all_gather(tensor.contiguous()))


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


def agree_on_checkpoint(output_dir: str, wanted: str | bool | None) -> str | None:
    """`choose_checkpoint` on the first process, and its choice or error on all."""
    found = [None, None]
    if PartialState().is_main_process:
        try:
            found[0] = choose_checkpoint(output_dir, wanted)
        except CheckpointError as error:
            found[1] = str(error)
    checkpoint, problem = broadcast_object_list(found)
    if problem is not None:
        raise CheckpointError(problem)
    return checkpoint


@contextlib.contextmanager
def disk_errors(folder: Path, cure: str) -> Iterator[None]:
    """Whatever a library raises when it cannot write becomes an OSError of one line that names the folder."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:  # what torch and safetensors raise on a full disk
        reason = one_line(str(error).partition("\n")[0])
        raise OSError(f"{folder} could not be written ({reason}); make room, and {cure}") from error


class CCRKTrainer(Trainer):
    """
    Trains [`CCRKForPreTraining`] or [`CCRKForImageTextRetrieval`].

    `processing_class` is a [`CCRKProcessor`], `data_collator` a [`CCRKCollator`]. `eval_dataset` holds rows;
    evaluation is retrieval: recall per language and MRV, logged as `eval_*`.
    """

    args: CCRKTrainingArguments
    loss_is_scaled_for_ga = False  # a mean over one batch, which `training_step` divides by the accumulation steps

    def __init__(self, model=None, args: CCRKTrainingArguments | None = None, *others, **kwargs):
        saves_on_sigterm, args.enable_jit_checkpoint = args.enable_jit_checkpoint, False  # see `SaveOnSIGTERM`
        try:
            super().__init__(model, args, *others, **kwargs)
        finally:
            args.enable_jit_checkpoint = saves_on_sigterm
        for name in ("compute_loss_func", "compute_metrics", "preprocess_logits_for_metrics"):
            if getattr(self, name) is not None:
                raise ValueError(f"{name} has no effect: override compute_loss or evaluate of {type(self).__name__}")
        if self.args.n_gpu > 1:
            raise ValueError(
                f"one process sees {self.args.n_gpu} GPUs; start one for each with accelerate launch --multi_gpu, or "
                "set CUDA_VISIBLE_DEVICES to one of them"
            )
        if self.args.contrastive_chunk_size is not None and self.is_deepspeed_enabled:
            raise ValueError("contrastive_chunk_size works in one process and with DDP, not with DeepSpeed")
        self.problems = Problems("training images")  # its max_bad_fraction may be set before training
        if isinstance(self.data_collator, CCRKCollator):
            self.add_callback(EpochCallback(self.data_collator))
        self._sigterm = SaveOnSIGTERM(self)
        if args.enable_jit_checkpoint:
            self.add_callback(self._sigterm)
        self.checkpoint: str | None = None  # that a recipe's run goes on from
        self.recipe: dict = {}  # what a recipe says of data and model, for `settings`
        self.skipped_steps = self._skipped_in_a_row = 0
        self._image_ids: list[Tensor] = []  # of the batches since the last optimizer step
        self._parts: dict[str, Tensor] = {}
        self._steps_since_log = 0
        self._images_since_log = 0
        self._captions_since_log: Tensor | int = 0  # of this process
        self._logged_at = time.perf_counter()

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs):
        """
        As [`Trainer.train`]. `resume_from_checkpoint`: a folder, which must be whole; or `"auto"` (or `True`), the
        newest whole checkpoint of `output_dir`, and the start where there is none.

        Of a checkpoint that has had all steps already, only the weights are loaded: the best, if they are asked for.

        Raises:
            CheckpointError: it is not whole, or another model's.
            ValueError: no evaluation gives the metric for the best model.
        """
        checkpoint = agree_on_checkpoint(self.args.output_dir, resume_from_checkpoint)
        self.check_metric()
        self._settings = self.settings()
        if checkpoint is not None and self._has_all_steps(Path(checkpoint)):
            self.state = TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json"))
            best = self.state.best_model_checkpoint
            self._load_from_checkpoint(best if self.args.load_best_model_at_end and best else checkpoint)
            return TrainOutput(self.state.global_step, 0.0, {})
        if self.args.should_save:  # it says that the output folder holds the end of a run
            (Path(self.args.output_dir) / "trainer_state.json").unlink(missing_ok=True)
        try:
            return super().train(resume_from_checkpoint=checkpoint, **kwargs)
        finally:
            self._sigterm.stop()

    def _has_all_steps(self, checkpoint: Path) -> bool:
        """Whether nothing is left to train; says what of the checkpoint's run goes on, if not all of it."""
        check_same_model(checkpoint, self.accelerator.unwrap_model(self.model), self.processing_class)
        done, (steps_per_epoch, total) = steps_of(checkpoint), self.steps()
        told = compare_settings(checkpoint, self._settings, f"step {done} is at {done / steps_per_epoch:.2f} epochs")
        if self.is_world_process_zero():
            if told is not None:
                logger.warning(told)
            if done >= total:
                logger.warning("%s has had all of %d steps: nothing is left to train", checkpoint, total)
        return done >= total

    def steps(self) -> tuple[int, int]:
        """Optimizer steps of an epoch, and of the whole run."""
        values = self.set_initial_training_values(self.args, self.get_train_dataloader())
        return values[1], values[-1]

    def settings(self) -> dict:
        """What shapes the run, by name: saved with each checkpoint, and compared when a run goes on from it."""
        names = (
            "learning_rate new_parameter_lr_scale weight_decay adam_beta1 adam_beta2 adam_epsilon optim optim_args "
            "lr_scheduler_type lr_scheduler_kwargs warmup_steps max_steps num_train_epochs max_grad_norm bf16 fp16 "
            "per_device_train_batch_size gradient_accumulation_steps contrastive_chunk_size dataloader_drop_last "
            "train_sampling_strategy seed data_seed metric_for_best_model"
        ).split()
        arguments = self.args.to_dict()
        rows, collator = self.train_dataset, self.data_collator
        settings = {name: arguments[name] for name in names} | {"processes": self.args.world_size}
        settings["num_rows"] = len(rows) if hasattr(rows, "__len__") else None
        settings["data"] = getattr(rows, "_fingerprint", None)
        if isinstance(collator, CCRKCollator):
            settings |= {"languages": " ".join(collator.languages), "one_language": collator.one_language}
        if hasattr(self.model, "peft_config"):  # adapters are nothing without the weights that they were trained on
            frozen = {name: p for name, p in self.model.named_parameters() if not p.requires_grad}
            settings["frozen_weights"] = weights_fingerprint(frozen)
        return settings | self.recipe

    @property
    def was_terminated(self) -> bool:
        """Whether SIGTERM has ended the run before its last step."""
        return self._sigterm.has_ended

    def get_train_dataloader(self):
        """
        As [`Trainer.get_train_dataloader`].

        Raises:
            OSError: there are workers, and /dev/shm cannot hold their batches.
        """
        loader = super().get_train_dataloader()
        if loader.num_workers and isinstance(self.data_collator, CCRKCollator):
            num_batches = min(loader.num_workers * loader.prefetch_factor, len(loader))
            in_processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # of this machine
            size = self.processing_class.image_processor.size["height"]
            check_shared_memory(num_batches * in_processes, self.args.train_batch_size * 3 * size * size * 4)
            self.data_collator.epoch.share_memory_()
            is_training = self._sigterm.is_training.share_memory_()
            loader.base_dataloader.worker_init_fn = partial(start_worker, loader.worker_init_fn, is_training)
        return loader

    def _finalize_training(self, *args, **kwargs):
        if not self.was_terminated:
            return super()._finalize_training(*args, **kwargs)
        # Nothing is loaded in place of the last weights, and no checkpoint deleted: the run goes on from it.
        load_best, self.args.load_best_model_at_end = self.args.load_best_model_at_end, False
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            return super()._finalize_training(*args, **kwargs)
        finally:
            self.args.load_best_model_at_end, self.args.save_total_limit = load_best, limit

    def _save_checkpoint(self, model, trial) -> None:
        """
        A checkpoint counts once its manifest is there, which is written last; only then do older ones make room.

        Raises:
            OSError: it could not be written; the checkpoints before it are as they were.
        """
        folder = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
        if self.args.should_save:
            (folder / MANIFEST).unlink(missing_ok=True)
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            with disk_errors(folder, "go on from the checkpoint before it with --resume_from_checkpoint auto"):
                super()._save_checkpoint(model, trial)
                self.accelerator.wait_for_everyone()
                if self.args.should_save:
                    (folder / SETTINGS).write_text(json.dumps(self._settings, indent=1, default=str))
                    write_manifest(folder)
        finally:
            self.args.save_total_limit = limit
        if self.args.should_save:
            rotate_checkpoints(folder.parent, limit, self.state.best_model_checkpoint, use_mtime=True)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Of a model with adapters: merged into it, which opens like any other, and by themselves in `adapter`."""
        if not hasattr(self.model, "peft_config") or state_dict is not None:  # as DeepSpeed has gathered it
            return super()._save(output_dir, state_dict)
        adapted = self.model
        if self.args.should_save:
            adapted.save_pretrained(Path(output_dir or self.args.output_dir) / ADAPTER)
            self.model = copy.deepcopy(adapted).merge_and_unload()  # unmerging would round the weights
        try:
            super()._save(output_dir)
        finally:
            self.model = adapted

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        folder = Path(resume_from_checkpoint)
        super()._load_from_checkpoint(str(folder / ADAPTER if hasattr(self.model, "peft_config") else folder), model)

    def _issue_warnings_after_load(self, load_result) -> None:
        """transformers only warns of weights that a checkpoint lacks, and trains on from random ones."""
        missing = set(load_result.missing_keys) - set(self.model.all_tied_weights_keys)
        if wrong := sorted(missing | set(load_result.unexpected_keys)):
            raise CheckpointError(f"the checkpoint's weights are not those of the model: {', '.join(wrong[:4])}")

    def _load_best_model(self) -> None:
        if hasattr(self.model, "peft_config"):
            self._load_from_checkpoint(self.state.best_model_checkpoint)
        else:
            super()._load_best_model()

    def _get_grad_norm(self, model, grad_norm=None):
        """
        The norm of the step's gradient. Where it is not finite the step is skipped: nothing is left to apply.

        A loss that is not finite on one process reaches all of them through the gradient, so all skip together.
        DeepSpeed applies its gradients itself, and skips those that overflow in fp16.

        Raises:
            FloatingPointError: the step is one too many in a row.
        """
        norm = super()._get_grad_norm(model, grad_norm)
        if torch.isfinite(torch.as_tensor(norm)):
            self._skipped_in_a_row = 0
        else:
            self.optimizer.zero_grad(set_to_none=True)
            self.skipped_steps += 1
            self._skipped_in_a_row += 1
            message = (
                f"step {self.state.global_step + 1} skipped, its gradient is not finite ({self._skipped_in_a_row} in "
                f"a row, {self.skipped_steps} in all); images: {', '.join(self._image_names())}"
            )
            if self._skipped_in_a_row > self.args.max_skipped_steps:
                raise FloatingPointError(f"{message}; look at these images, lower learning_rate, or train in fp32")
            if self.is_world_process_zero():
                logger.warning(message)
        self._image_ids.clear()
        return norm

    def _image_names(self) -> list[str]:
        """The names of the images of this step on all processes; their numbers where rows have no names."""
        ids = self.accelerator.gather(torch.cat(self._image_ids)).tolist()
        if "image_id" not in (getattr(self.train_dataset, "column_names", None) or ()):
            return [str(number) for number in ids]
        names = {stable_id(name): name for name in self.train_dataset["image_id"]}
        return [names[number] for number in ids]

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """
        Four groups: with and without weight decay, pre-trained and new parameters. AdamW has its epsilon where the
        published code has it, see `published_epsilon`.

        Raises:
            ValueError: the optimizer makes groups of its own.
        """
        if self.optimizer is None:
            model = self.model if model is None else model
            decayed = set(self.get_decay_parameter_names(model))
            groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    has_decay = name in decayed or name.endswith(DECAYED_NORM)
                    key = (has_decay, any(new in name for new in NEW_PARAMETERS))
                    groups.setdefault(key, []).append(parameter)
            optimizer_class, options = self.optimizer_cls_and_kwargs or self.get_optimizer_cls_and_kwargs(
                self.args, model
            )
            # What transformers fills in for optimizers that group parameters (GaLore, LOMO), or wrap others.
            if {"params", "model", "optimizer_dict"} & options.keys() or is_optimizer_factory(optimizer_class):
                raise ValueError(
                    f"{getattr(optimizer_class, '__name__', optimizer_class)} groups the parameters itself, and would "
                    "train the new ones at the rate of the others; choose another --optim, such as adamw_torch"
                )
            learning_rate = options.get("lr", self.args.learning_rate)
            self.optimizer = optimizer_class(
                [
                    {
                        "params": parameters,
                        "weight_decay": self.args.weight_decay if has_decay else 0.0,
                        "lr": learning_rate * (self.args.new_parameter_lr_scale if is_new else 1.0),
                    }
                    for (has_decay, is_new), parameters in groups.items()
                ],
                **options,
            )
            if isinstance(self.optimizer, torch.optim.AdamW):
                self.optimizer.register_step_pre_hook(published_epsilon)
        return self.optimizer

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """
        1-to-K contrastive loss over the embeddings of all processes, plus matching and masked LM of the local batch.

        One forward through the wrapped model gives everything that the three need.
        """
        self._count_images(inputs)
        self._image_ids.append(inputs["image_ids"])
        outputs: CCRKLossOutput = model(**inputs, sampling_keys=self.sampling_keys(inputs))
        parts = self.loss_parts(outputs, inputs)
        self._record({**parts, "temperature": outputs.temperature.squeeze()}, inputs)
        loss = torch.stack(list(parts.values())).sum()
        return (loss, outputs) if return_outputs else loss

    def sampling_keys(self, inputs: dict[str, Tensor]) -> Tensor:
        """(B,): what is drawn for an image depends on the seed, the step and the image, and not on its place."""
        return sampling_keys(inputs["image_ids"], self.args.seed, self.state.global_step)

    def loss_parts(self, outputs: CCRKLossOutput, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """This process's share of each loss: the mean of the shares, which data parallelism takes, is the loss."""
        return {"contrastive_loss": self.contrastive_loss(outputs, inputs), **self.share_of_losses(outputs)}

    def share_of_losses(self, outputs: CCRKLossOutput) -> dict[str, Tensor]:
        """This process's share of the losses that it computes of its own batch."""
        parts = {"matching_loss": self.share_of_mean(outputs.matching_loss, outputs.num_matching_pairs)}
        if outputs.mlm_loss is not None:
            parts["mlm_loss"] = self.share_of_mean(outputs.mlm_loss, outputs.num_masked_tokens)
        return parts

    def share_of_mean(self, local_mean: Tensor, count: Tensor) -> Tensor:
        """Weights a mean over `count` own items so that the mean over processes is the mean over all items."""
        mean_count = self.accelerator.reduce(count.float(), reduction="mean")
        return local_mean * count / mean_count.clamp(min=1 / self.accelerator.num_processes)

    def contrastive_loss(self, outputs: CCRKLossOutput, inputs: dict[str, Tensor]) -> Tensor:
        """The contrastive loss over the whole batch, the same on every process; see `gather_with_gradient`."""
        if self.accelerator.num_processes == 1:
            return outputs.contrastive_loss
        return self.contrastive_loss_of_all(outputs.image_embeds, outputs.text_embeds, outputs.temperature, inputs)

    def contrastive_loss_of_all(
        self, image_embeds: Tensor, text_embeds: Tensor, temperature: Tensor, inputs: dict[str, Tensor]
    ) -> Tensor:
        """The contrastive loss of the embeddings of all processes, of which these are this one's."""
        several = self.accelerator.num_processes > 1
        return contrastive_loss(
            gather_with_gradient(image_embeds) if several else image_embeds,
            gather_with_gradient(text_embeds) if several else text_embeds,
            temperature,
            caption_mask=self.accelerator.gather(inputs["caption_mask"]),
            image_ids=self.accelerator.gather(inputs["image_ids"]),
            reduction=self.model.config.contrastive_reduction,
        )

    def _count_images(self, inputs: dict[str, Tensor | Problems]) -> None:
        """Takes a batch's bad images out of it; ValueError where there have been too many of them."""
        self.problems.rows += len(inputs["pixel_values"])
        if (problems := inputs.pop("problems", None)) is not None:
            self.problems.update(problems)

    def training_step(self, model, inputs, num_items_in_batch=None) -> Tensor:
        """
        Forward and backward; with `contrastive_chunk_size` by `chunked_step`.

        Raises:
            torch.OutOfMemoryError: with what the step needs, and what to try.
        """
        step = super().training_step if self.args.contrastive_chunk_size is None else self.chunked_step
        try:
            return step(model, inputs, num_items_in_batch)
        except torch.OutOfMemoryError as error:
            message = str(error)
        # Here, and not above, where the error still holds on to the step's activations.
        model.zero_grad(set_to_none=True)
        if not self.is_deepspeed_enabled:  # whose parameters are not all here to try it
            advice = memory_advice(self.accelerator.unwrap_model(model), self._prepare_inputs(inputs))
            message = f"{advice} ({message})"
        raise torch.OutOfMemoryError(message)

    def chunked_step(self, model, inputs, num_items_in_batch=None) -> Tensor:
        """
        Forward and backward through a cache of gradients (Gao et al., 2021).

        The embeddings of the whole batch are made chunk by chunk without a graph, and give the contrastive loss and
        its gradient with respect to each. Then every chunk is encoded again, this time with its graph, and takes its
        part of that gradient through the encoders, with the matching and masked-LM losses of the chunk. Gradients are
        summed over processes once, in the last chunk.
        """
        size = self.args.contrastive_chunk_size
        model.train()
        inputs = self._prepare_inputs(inputs)
        self._count_images(inputs)
        self._image_ids.append(inputs["image_ids"])
        inputs["sampling_keys"] = self.sampling_keys(inputs)
        chunks = [
            dict(zip(inputs, values, strict=True))
            for values in zip(*(value.split(size) for value in inputs.values()), strict=True)
        ]
        # Both passes over a chunk start from the same seed: the second must meet the dropout of the first.
        seeds = torch.randint(1 << 62, (len(chunks),)).tolist()

        base = self.accelerator.unwrap_model(model).ccrk
        image_embeds, text_embeds = [], []
        for chunk, seed in zip(chunks, seeds, strict=True):
            torch.manual_seed(seed)
            # accelerate casts in the wrapped model's forward alone, and this is not it.
            with torch.no_grad(), self.accelerator.autocast():
                outputs = base(chunk["input_ids"], chunk["pixel_values"], chunk["attention_mask"])
            image_embeds.append(outputs.image_embeds)
            text_embeds.append(outputs.text_embeds)
        cached = [torch.cat(image_embeds), torch.cat(text_embeds), base.temperature.detach().clone()]
        contrastive = self.contrastive_loss_of_all(*(tensor.requires_grad_() for tensor in cached), inputs)
        gradients = torch.autograd.grad(contrastive, cached)
        per_chunk = zip(chunks, seeds, gradients[0].split(size), gradients[1].split(size), strict=True)

        parts: dict[str, Tensor] = {}
        for index, (chunk, seed, image_gradient, text_gradient) in enumerate(per_chunk):
            is_last = index == len(chunks) - 1
            with contextlib.nullcontext() if is_last else self.accelerator.no_sync(model):
                torch.manual_seed(seed)
                with self.compute_loss_context_manager():
                    outputs = model(**chunk)
                others = self.share_of_losses(outputs)
                through_encoders = (outputs.image_embeds * image_gradient).sum()
                through_encoders += (outputs.text_embeds * text_gradient).sum()
                through_encoders += (outputs.temperature * gradients[2]).sum() / len(chunks)
                loss = through_encoders + torch.stack(list(others.values())).sum() / len(chunks)
                self.accelerator.backward(loss / self.current_gradient_accumulation_steps)
            for name, part in others.items():
                parts[name] = parts.get(name, 0) + part.detach() / len(chunks)
        parts = {"contrastive_loss": contrastive.detach(), **parts}
        self._record({**parts, "temperature": cached[2].squeeze()}, inputs)
        return torch.stack(list(parts.values())).sum() / self.current_gradient_accumulation_steps

    def _record(self, values: dict[str, Tensor], inputs: dict[str, Tensor]) -> None:
        """Sums what the next log averages, on the device: nothing waits for it here."""
        if self.state.global_step == 0 and not self._parts:
            self._logged_at = time.perf_counter()
        for name, value in values.items():
            # A step that is not finite is skipped, and would hide all others of the same log.
            self._parts[name] = self._parts.get(name, 0) + value.detach().nan_to_num(0.0, 0.0, 0.0)
        self._steps_since_log += 1
        self._images_since_log += len(inputs["pixel_values"]) * self.accelerator.num_processes
        self._captions_since_log = self._captions_since_log + inputs["caption_mask"].sum()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """
        Adds to each training log the mean of every loss part and of the temperature, images and captions per second,
        and how many images could not be read so far, if any.
        """
        if "loss" in logs and self._steps_since_log:
            now = time.perf_counter()
            for name, total in self._parts.items():
                mean = self.accelerator.reduce(total / self._steps_since_log, reduction="mean")
                logs[name] = round(mean.item(), 4)
            if self.skipped_steps:
                logs["skipped_steps"] = self.skipped_steps
            logs["images_per_second"] = round(self._images_since_log / (now - self._logged_at), 1)
            captions = self.accelerator.reduce(self._captions_since_log, reduction="sum")
            logs["captions_per_second"] = round(captions.item() / (now - self._logged_at), 1)
            if bad := self.bad_images():
                logs["bad_images"] = bad
            self._parts, self._steps_since_log, self._logged_at = {}, 0, now
            self._images_since_log = self._captions_since_log = 0
        super().log(logs, start_time)

    def bad_images(self) -> int:
        """How many images of all processes could not be read so far."""
        return int(self.accelerator.reduce(torch.tensor(self.problems.total(), device=self.args.device), "sum"))

    def summary(self) -> dict[str, float | str]:
        """What a run came to: its last log, what was skipped, and the best checkpoint where one was looked for."""
        last = next((log for log in reversed(self.state.log_history) if "contrastive_loss" in log), {})
        unwanted = {"loss", "grad_norm", "learning_rate", "epoch", "step", "bad_images", "skipped_steps"}
        values = {f"train_{name}": value for name, value in last.items() if name not in unwanted}
        values |= {
            "train_steps": self.state.global_step,
            "train_skipped_steps": self.skipped_steps,
            "train_bad_images": self.bad_images(),
        }
        if self.state.best_model_checkpoint is not None:
            values["best_checkpoint"] = self.state.best_model_checkpoint
            values[f"best_{self.args.metric_for_best_model.removeprefix('eval_')}"] = self.state.best_metric
        return values

    def languages_to_evaluate(self, dataset: datasets.Dataset) -> list[str]:
        """The languages of training that `dataset` has captions in; of its own where it knows none of those.

        Raises:
            ValueError: there is no usable caption.
        """
        in_dataset = list(dataset.features["captions"])
        # A few-shot run in German is validated in English.
        languages = [language for language in self.data_collator.languages if language in in_dataset] or in_dataset
        rows = dataset["captions"][:]
        found = [
            language for language in languages if any(is_usable(caption) for row in rows for caption in row[language])
        ]
        if not found:
            raise ValueError(
                f"the rows to evaluate on have no usable caption in {', '.join(languages)}; set eval_strategy to no "
                "or choose other languages"
            )
        return found

    def metric_names(self) -> list[str]:
        """What evaluations during training give, by the names that `metric_for_best_model` takes."""
        several = isinstance(self.eval_dataset, dict)
        names = []
        for name, rows in (self.eval_dataset if several else {"": self.eval_dataset}).items():
            languages = self.languages_to_evaluate(rows)
            metrics = [*(f"recall_{language}" for language in languages), "mean_recall"]
            captioned = {language: set() for language in languages}
            for image_id, captions in zip(rows["image_id"][:], rows["captions"][:], strict=True):
                for language, images in captioned.items():
                    if any(is_usable(caption) for caption in captions[language]):
                        images.add(image_id)
            if len(languages) > 1 and set.intersection(*captioned.values()):
                metrics.append("mrv")
            names += [f"{name}_{metric}" if several else metric for metric in [*metrics, "runtime"]]
        return names

    def check_metric(self) -> None:
        """Raises ValueError where no evaluation gives `metric_for_best_model`, before hours are spent on the first."""
        wanted = self.args.metric_for_best_model
        if wanted is None or self.args.eval_strategy == "no" or self.eval_dataset is None:
            return
        names = self.metric_names()
        if wanted.removeprefix("eval_") not in names:
            raise ValueError(
                f"metric_for_best_model is {wanted}, which no evaluation here gives; choose one of {', '.join(names)}"
            )

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """
        Retrieval on `eval_dataset`: `{prefix}_recall_LANGUAGE` (mean of IR and TR at 1, 5 and 10, percent),
        `{prefix}_mean_recall` over languages, and `{prefix}_mrv` (standard deviation, in ranks). Of a dict of
        data sets each in turn, with `{prefix}_NAME` as prefix.
        """
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(dataset, dict):
            metrics = {}
            for name, rows in dataset.items():
                metrics |= self.evaluate(rows, ignore_keys, f"{metric_key_prefix}_{name}")
            return metrics
        started = time.perf_counter()
        model = self.accelerator.unwrap_model(self.model).eval()  # the Trainer switches back before the next step
        # Parameters that are spread over processes are gathered forward by forward: all must do the same work then.
        spread = is_deepspeed_zero3_enabled()
        result = evaluate_retrieval(
            CCRKRetriever(model, self.processing_class, self.args.eval_k_test),
            dataset,
            self.languages_to_evaluate(dataset),
            batch_size=self.args.per_device_eval_batch_size,
            share=Share() if spread else Share.of_this_process(),
        )
        recall = {language: row["mean"] for language, row in result.recall().items()}
        metrics = {f"{metric_key_prefix}_recall_{language}": round(value, 2) for language, value in recall.items()}
        metrics[f"{metric_key_prefix}_mean_recall"] = round(sum(recall.values()) / len(recall), 2)
        if (mrv := result.mrv()) is not None:
            metrics[f"{metric_key_prefix}_mrv"] = round(mrv["mean"]["std"], 3)
        metrics[f"{metric_key_prefix}_runtime"] = round(time.perf_counter() - started, 1)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self._logged_at += time.perf_counter() - started
        return metrics

    def create_model_card(self, model_name: str | None = None, **metadata) -> None:
        """Writes `README.md` in `output_dir`; see `model_card_ccrk.model_card`. `push_to_hub` calls it."""
        if self.is_world_process_zero():
            hub_id = self.hub_model_id or model_name or Path(self.args.output_dir).name
            model_card(self, hub_id, **metadata).save(Path(self.args.output_dir) / "README.md")
