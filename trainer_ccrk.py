"""Training CCRK: arguments, collator, and a Trainer whose `compute_loss` is 1-to-K contrastive learning."""

import contextlib
import hashlib
import json
import logging
import random
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path

import datasets
import numpy as np
import torch
from accelerate.utils import broadcast_object_list, parse_flag_from_env
from PIL import Image
from safetensors import SafetensorError
from timm.data.auto_augment import RandAugment, rand_augment_ops
from torch import Tensor, nn
from torch.distributed.nn.functional import all_gather
from torchvision import transforms
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.integrations import is_deepspeed_zero3_enabled, is_tensorboard_available
from transformers.trainer_optimizer import is_optimizer_factory
from transformers.trainer_utils import rotate_checkpoints, sort_checkpoints

from data_scripts.captions import is_usable
from data_scripts.images import BadImage, read_image
from data_scripts.problems import Problems
from files_ccrk import deepspeed_problem
from model_card_ccrk import model_card
from modeling_ccrk import CCRKLossOutput
from objectives_ccrk import contrastive_loss, sampling_keys
from processing_ccrk import CCRKProcessor
from retrieval_ccrk import CCRKRetriever, Share, evaluate_retrieval

logger = logging.getLogger(__name__)

# Written into a checkpoint when all else is there: size and CRC-32 of each of its files.
MANIFEST = "manifest.json"

# Parameters that no encoder brings along; the paper trains them at twice the rate of the others.
NEW_PARAMETERS = ("temperature", "vision_projection.", "text_projection.", "matching_head.", ".cross_attention.")


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
    weight_decay: float = field(default=0.01, metadata={"help": "Not applied to biases and norms."})
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

    def __post_init__(self):
        # FSDP has a layer's parameters whole in its forward alone, but keys and values of images are made before that;
        # and word embeddings and LM head share theirs.
        if self.fsdp or parse_flag_from_env("ACCELERATE_USE_FSDP"):
            raise ValueError("FSDP is not supported; --deepspeed configs/deepspeed/zero3.json spreads parameters too")
        super().__post_init__()
        if self.contrastive_chunk_size is not None and self.contrastive_chunk_size < 1:
            raise ValueError(f"contrastive_chunk_size is {self.contrastive_chunk_size}; it must be at least 1")
        if self.save_only_model and self.resume_from_checkpoint:
            raise ValueError(
                "save_only_model leaves nothing to resume from; leave out save_only_model or resume_from_checkpoint"
            )


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
    # In shared memory, so that the data loader's workers see it move on.
    epoch: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.int64).share_memory_(), init=False)

    def __call__(self, rows: list[dict]) -> dict[str, Tensor | Problems]:
        problems = Problems("training images", max_bad_fraction=1.0, quiet=True)
        rows, pictures = zip(*self._readable(rows, problems), strict=True)
        images, captions = [], []
        for row, picture in zip(rows, pictures, strict=True):
            with seeded(f"{self.seed} {int(self.epoch)} {row['image_id']}"):
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
            raise ValueError(f"no image of a batch of {len(rows)} can be read\n{problems.table()}")
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

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.collator.epoch.fill_(int(state.epoch))


def what_is_wrong(checkpoint: Path) -> str | None:
    """Why nothing can be resumed from a checkpoint folder; None where it is whole."""
    try:
        files = json.loads((checkpoint / MANIFEST).read_text())
    except (OSError, ValueError):
        return "it was not written to the end"
    for name, expected in files.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != expected["bytes"] or _crc32(path) != expected["crc32"]:
            return f"{name} is not as it was written"
    if not any(name.startswith("rng_state") for name in files):
        return "it was saved with save_only_model and holds no optimizer"
    return deepspeed_problem(checkpoint)


def _crc32(path: Path) -> int:
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            checksum = zlib.crc32(block, checksum)
    return checksum


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


class CCRKTrainer(Trainer):
    """
    Trains [`CCRKForPreTraining`] or [`CCRKForImageTextRetrieval`].

    `processing_class` is a [`CCRKProcessor`], `data_collator` a [`CCRKCollator`]. `eval_dataset` holds rows;
    evaluation is retrieval: recall per language and MRV, logged as `eval_*`.
    """

    args: CCRKTrainingArguments

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
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
        """
        chosen = [None, None]
        if resume_from_checkpoint and self.is_world_process_zero():
            chosen = self._choose_checkpoint(resume_from_checkpoint)
        checkpoint, error = broadcast_object_list(chosen)
        if error:
            raise ValueError(error)
        return super().train(resume_from_checkpoint=checkpoint, **kwargs)

    def _choose_checkpoint(self, wanted: str | bool) -> list[str | None]:
        """[folder, error], of which one at least is None."""
        if wanted not in (True, "auto"):
            problem = what_is_wrong(Path(wanted))
            return [None, f"{wanted}: {problem}; resume from another, or 'auto'"] if problem else [wanted, None]
        for checkpoint in reversed(sort_checkpoints(self.args.output_dir)):
            if problem := what_is_wrong(Path(checkpoint)):
                logger.warning("%s passed over: %s", checkpoint, problem)
            else:
                logger.warning("resuming from %s", checkpoint)
                return [checkpoint, None]
        logger.warning("no checkpoint in %s: training starts at step 0", self.args.output_dir)
        return [None, None]

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
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                files = sorted(path for path in folder.rglob("*") if path.is_file())
                entries = {
                    str(path.relative_to(folder)): {"bytes": path.stat().st_size, "crc32": _crc32(path)}
                    for path in files
                }
                unfinished = folder / f"{MANIFEST}.unfinished"
                unfinished.write_text(json.dumps(entries, indent=1))
                unfinished.replace(folder / MANIFEST)
        except (OSError, RuntimeError, SafetensorError) as error:  # what torch and safetensors raise on a full disk
            raise OSError(
                f"{folder} could not be written ({str(error).splitlines()[0]}); make room, and go on from the "
                "checkpoint before it with --resume_from_checkpoint auto"
            ) from error
        finally:
            self.args.save_total_limit = limit
        if self.args.should_save:
            rotate_checkpoints(folder.parent, limit, self.state.best_model_checkpoint, use_mtime=True)

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
        Four groups: with and without weight decay, pre-trained and new parameters.

        Raises:
            ValueError: the optimizer makes groups of its own.
        """
        if self.optimizer is None:
            model = self.model if model is None else model
            decayed = set(self.get_decay_parameter_names(model))
            groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    key = (name in decayed and "temperature" not in name, any(new in name for new in NEW_PARAMETERS))
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
