"""Training: a Trainer whose `compute_loss` is 1-to-K contrastive learning."""

import contextlib
import copy
import json
import logging
import os
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import datasets
import torch
from accelerate.utils import DynamoBackend
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.utils.data import Sampler
from transformers import PreTrainedModel, PrinterCallback, ProgressCallback, Trainer, TrainerState
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_optimizer import is_optimizer_factory
from transformers.trainer_utils import TrainOutput, rotate_checkpoints, seed_worker

from ccrk.encoders import CCRKEncoder, input_size, make_encoder
from ccrk.processes import Share, check_processes
from ccrk.retrieval.evaluate import evaluate_retrieval
from ccrk.trained_on import Run, read_runs, write_runs
from ccrk.training.arguments import CCRKTrainingArguments
from ccrk.training.batches import check_last_batch
from ccrk.training.checkpoints import (
    ADAPTER,
    MANIFEST,
    SETTINGS,
    CheckpointError,
    agree_on_checkpoint,
    check_same_model,
    compare_settings,
    disk_errors,
    steps_of,
    write_manifest,
)
from ccrk.training.collator import CCRKCollator, EpochCallback, stable_id
from ccrk.training.compilation import compile_encoders
from ccrk.training.console import LogLines
from ccrk.training.evaluation import languages_to_evaluate, metric_names
from ccrk.training.gradient_cache import chunked_backward
from ccrk.training.losses import OneToKLoss
from ccrk.training.memory import check_shared_memory, memory_advice
from ccrk.training.model_card import model_card
from ccrk.training.optimizer import parameter_groups, published_epsilon
from ccrk.training.settings import run_settings
from ccrk.training.sharding import all_parameters, check_fsdp, clamp_master, embeddings_in_root, without_shards
from ccrk.training.signals import SaveOnSIGTERM, start_worker
from data_scripts.problems import Problems
from data_scripts.streams import EndlessRows
from modeling_ccrk import CCRKPairModel
from objectives_ccrk import sampling_keys

logger = logging.getLogger(__name__)


class CCRKTrainer(Trainer):
    """
    Trains a CCRK model with a head, any dual encoder of transformers, or a SentenceTransformer that takes pictures and
    text (in a [`ccrk.towers.SentenceTransformerPair`]), by 1-to-K contrastive learning.

    `processing_class` is the model's own processor (of a SentenceTransformer None), `data_collator` a
    [`CCRKCollator`]. `eval_dataset` holds rows; evaluation is retrieval: recall per language and MRV, logged as
    `eval_*`. `loss` is the class of the loss, [`OneToKLoss`] or a subclass, which is made with all options of `args`.
    """

    args: CCRKTrainingArguments
    loss_is_scaled_for_ga = False  # a mean over one batch, which `training_step` divides by the accumulation steps

    def __init__(self, model=None, args: CCRKTrainingArguments | None = None, *others, loss=OneToKLoss, **kwargs):
        saves_on_sigterm, args.enable_jit_checkpoint = args.enable_jit_checkpoint, False  # see `SaveOnSIGTERM`
        try:
            super().__init__(model, args, *others, **kwargs)
        finally:
            args.enable_jit_checkpoint = saves_on_sigterm
        for name in ("compute_loss_func", "compute_metrics", "preprocess_logits_for_metrics"):
            if getattr(self, name) is not None:
                raise ValueError(f"{name} has no effect: override compute_loss or evaluate of {type(self).__name__}")
        check_processes(self.args)
        if self.args.contrastive_chunk_size is not None and self.is_fsdp_enabled:
            raise ValueError("contrastive_chunk_size works in one process, with DDP and DeepSpeed, not with FSDP")
        bare = self.accelerator.unwrap_model(self.model)
        if self.is_fsdp_enabled:
            check_fsdp(self.accelerator.state.fsdp_plugin, bare)
            if self.args.eval_on_start:
                raise ValueError("eval_on_start needs what FSDP spreads in the first step; remove it")
        bare = bare.get_base_model() if hasattr(bare, "peft_config") else bare
        self.encoder = make_encoder(bare, self.processing_class, self.args.eval_k_test)
        self.agreement_only = getattr(self.data_collator, "agreement_only", 0)
        if self.args.agreement_start is None:  # a model is fine-tuned that finds pictures already
            self.args.agreement_start = 0.0 if self.agreement_only else 0.6
        self._loss = loss.from_arguments(self.accelerator, self.args, bare, self.agreement_only)
        self.problems = Problems("training images")  # its max_bad_fraction may be set before training
        if self.pop_callback(ProgressCallback) or self.pop_callback(PrinterCallback):
            self.add_callback(LogLines)
        if isinstance(self.data_collator, CCRKCollator):
            self.add_callback(EpochCallback(self.data_collator))
        self._sigterm = SaveOnSIGTERM(self)
        if args.enable_jit_checkpoint:
            self.add_callback(self._sigterm)
        self.checkpoint: str | None = None  # that a recipe's run goes on from
        self.rows_with_images: datasets.Dataset | None = None  # where the rows of `train_dataset` have none
        self.train_sampler: Sampler[int] | None = None  # the order of rows, where it is not that of transformers
        # Until training begins nothing was trained on, and no image is read.
        self._runs_before, self._run = read_runs(bare.name_or_path), Run.of(None)
        self.recipe: dict = {}  # what a recipe says of data and model, for `settings`
        self.skipped_steps = self._skipped_in_a_row = 0
        self._image_ids: list[Tensor] = []  # of the batches since the last optimizer step
        self._parts: dict[str, list[Tensor]] = {}
        self._logged_group = 0  # of the optimizer's, whose learning rate is logged
        self._images_since_log = 0
        self._captions_since_log: Tensor | int = 0  # of this process
        self._logged_at = time.perf_counter()

    @property
    def loss(self) -> OneToKLoss:
        return self._loss

    @loss.setter
    def loss(self, loss: OneToKLoss) -> None:
        self._loss.check_replacement(loss)
        self._loss = loss

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
        self._runs_before += read_runs(checkpoint or "")
        self.check_metric()
        self._run = Run.of(self.train_dataset if self.rows_with_images is None else self.rows_with_images)
        self._run.warn_of(self.eval_dataset)
        self._settings = self.settings()
        if checkpoint is not None and self._has_all_steps(Path(checkpoint)):
            self.state = TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json"))
            best = self.state.best_model_checkpoint
            self._load_from_checkpoint(best if self.args.load_best_model_at_end and best else checkpoint)
            return TrainOutput(self.state.global_step, 0.0, {})
        if isinstance(self.train_dataset, EndlessRows):  # transformers would decode all pictures of the steps done
            done = 0 if checkpoint is None else steps_of(Path(checkpoint))
            self.train_dataset.start = done * self.args.gradient_accumulation_steps
            self.args.ignore_data_skip = True
        # Hidden until `_prepare_for_training`: transformers would write its tokens' ids into the configuration, by
        # which text encoders pool and count positions, and save another model than the one trained.
        self._processor, self.processing_class = self.processing_class, None
        if self.args.should_save:  # it says that the output folder holds the end of a run
            (Path(self.args.output_dir) / "trainer_state.json").unlink(missing_ok=True)
        try:
            return super().train(resume_from_checkpoint=checkpoint, **kwargs)
        finally:
            self.processing_class = self._processor
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
        return run_settings(self.args, self.train_dataset, self.data_collator, self.model) | self.recipe

    @property
    def was_terminated(self) -> bool:
        """Whether SIGTERM, or the end of the launcher, has ended the run before its last step."""
        return self._sigterm.has_ended

    def _get_train_sampler(self, train_dataset=None) -> Sampler[int] | None:
        return self.train_sampler or super()._get_train_sampler(train_dataset)

    def get_train_dataloader(self):
        """
        As [`Trainer.get_train_dataloader`].

        Raises:
            OSError: there are workers, and /dev/shm cannot hold their batches.
            ValueError: the rows do not fill the batches, see `check_last_batch`.
        """
        is_stream = isinstance(self.train_dataset, EndlessRows)
        if hasattr(self.train_dataset, "__len__"):
            check_last_batch(self.args, len(self.train_dataset))
        loader = self._stream_loader() if is_stream else super().get_train_dataloader()
        if loader.num_workers and isinstance(self.data_collator, CCRKCollator):
            num_batches = loader.num_workers * loader.prefetch_factor
            num_batches = num_batches if is_stream else min(num_batches, len(loader))
            in_processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # of this machine
            size = input_size(self.encoder.inputs.image_processor)
            check_shared_memory(num_batches * in_processes, self.args.train_batch_size * 3 * size * size * 4)
            self.data_collator.epoch.share_memory_()
            is_training = self._sigterm.is_training.share_memory_()
            loader_itself = loader if is_stream else loader.base_dataloader
            loader_itself.worker_init_fn = partial(start_worker, loader.worker_init_fn, is_training)
        return loader

    def _stream_loader(self) -> torch.utils.data.DataLoader:
        """Not prepared by accelerate: `EndlessRows` knows its process, and has no end that it would have to share."""
        return torch.utils.data.DataLoader(
            self.train_dataset,
            self.args.train_batch_size,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            prefetch_factor=self.args.dataloader_prefetch_factor,
            generator=torch.Generator(),  # or a run that goes on would draw from the one that dropout draws from
            worker_init_fn=partial(
                seed_worker, num_workers=self.args.dataloader_num_workers, rank=self.args.process_index
            ),
        )

    def _prepare_for_training(self, *args, **kwargs):
        self.processing_class = self._processor
        if self.args.torch_compile and isinstance(self.encoder.model, CCRKPairModel):
            self.accelerator.state.dynamo_plugin.backend = DynamoBackend.NO  # accelerate would compile all of a step
            compile_encoders(self.encoder.model, self.args.torch_compile_backend, self.args.torch_compile_mode)
        with embeddings_in_root(self.model) if self.is_fsdp_enabled else contextlib.nullcontext():
            return super()._prepare_for_training(*args, **kwargs)

    @contextlib.contextmanager
    def whole_model(self) -> Iterator[None]:
        """Inside, the bare model and its parts may be called, where FSDP has spread them over processes as well."""
        if not isinstance(self.model, FSDPModule):
            yield
        else:
            with all_parameters(self.model, self.accelerator.state.fsdp_plugin.reshard_after_forward):
                yield

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
        trained = self.model
        if state_dict is not None:  # as DeepSpeed or FSDP has gathered it, with a tensor for each name of tied weights
            tied = getattr(self.encoder.model, "all_tied_weights_keys", ())
            state_dict = {name: tensor for name, tensor in state_dict.items() if name not in tied}
            self.model = without_shards(trained)
        elif hasattr(trained, "peft_config") and self.args.should_save:
            trained.save_pretrained(Path(output_dir or self.args.output_dir) / ADAPTER)
            self.model = copy.deepcopy(trained).merge_and_unload()  # unmerging would round the weights
        try:
            self._save_model(output_dir, state_dict)
            if self.args.should_save:  # transformers calls this in every process
                write_runs(
                    Path(output_dir or self.args.output_dir), [*self._runs_before, self._run.named(self.recipe)]
                )
        finally:
            self.model = trained

    def _save_model(self, output_dir: str | None, state_dict: dict | None = None) -> None:
        if isinstance(self.encoder.model, PreTrainedModel):
            return super()._save(output_dir, state_dict)
        folder = Path(output_dir or self.args.output_dir)
        self.model.save(folder)
        torch.save(self.args, folder / TRAINING_ARGS_NAME)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        folder, has_adapters = Path(resume_from_checkpoint), hasattr(self.model, "peft_config")
        if self._loads_itself and not (has_adapters or self.is_deepspeed_enabled):
            return self.encoder.load(folder)
        super()._load_from_checkpoint(str(folder / ADAPTER if has_adapters else folder), model)
        if has_adapters and self._loads_itself:
            self.encoder.load_scale(folder)

    @property
    def _loads_itself(self) -> bool:
        """Whether a checkpoint is in a format of which transformers' trainer knows nothing."""
        return not isinstance(self.encoder, CCRKEncoder)

    def _issue_warnings_after_load(self, load_result) -> None:
        """transformers only warns of weights that a checkpoint lacks, and trains on from random ones."""
        missing = set(load_result.missing_keys) - set(self.model.all_tied_weights_keys)
        if wrong := sorted(missing | set(load_result.unexpected_keys)):
            raise CheckpointError(f"the checkpoint's weights are not those of the model: {', '.join(wrong[:4])}")

    def _load_best_model(self) -> None:
        if hasattr(self.model, "peft_config") or self._loads_itself:
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
            groups = parameter_groups(model, self.get_decay_parameter_names(model))
            self._logged_group = next((index for index, (_, is_new) in enumerate(groups) if not is_new), 0)
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

    def _get_learning_rate(self) -> float:
        """That of the pre-trained parameters, as `learning_rate` is; of the new ones where only they are trained."""
        return float(self.optimizer.param_groups[self._logged_group]["lr"])

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """
        1-to-K contrastive loss over the embeddings of all processes, plus the losses that the encoder brings.

        One forward through the wrapped model gives everything that they need.
        """
        self._count_images(inputs)
        seen = self.loss.for_encoder(inputs | {"sampling_keys": self.sampling_keys(inputs)})
        found = self.encoder.embed(model, seen)
        parts = self.loss(found, inputs)
        self._record({**parts, "temperature": found.temperature.squeeze()}, inputs)
        loss = torch.stack(list(parts.values())).sum()
        return (loss, found) if return_outputs else loss

    def sampling_keys(self, inputs: dict[str, Tensor]) -> Tensor:
        """(B,): what is drawn for an image depends on the seed, the step and the image, and not on its place."""
        return sampling_keys(inputs["image_ids"], self.args.seed, self.state.global_step)

    def _count_images(self, inputs: dict[str, Tensor | Problems]) -> None:
        """Takes a batch's bad images out of it; ValueError where there have been too many of them."""
        self._image_ids.append(inputs["image_ids"])
        self.problems.rows += len(inputs["image_ids"])
        if (problems := inputs.pop("problems", None)) is not None:
            self.problems.update(problems)

    def training_step(self, model, inputs, num_items_in_batch=None) -> Tensor:
        """
        Forward and backward; with `contrastive_chunk_size` by `chunked_step`.

        Raises:
            torch.OutOfMemoryError: with what the step needs, and what to try.
        """
        self.loss.agreement_only = self.agreement_only
        self.loss.asks_agreement = self.state.global_step >= self.args.agreement_start * self.state.max_steps
        if not self.loss.asks_agreement and len(inputs["caption_mask"]) > (rows := len(inputs["image_ids"])):
            of_captions = self.encoder.inputs.text_names | {"caption_mask"}  # rows without a picture wait for it
            inputs = {name: value[:rows] if name in of_captions else value for name, value in inputs.items()}
        clamp_master(self.encoder.model)
        step = super().training_step if self.args.contrastive_chunk_size is None else self.chunked_step
        try:
            # Of a step that is skipped: else transformers would have to look, and wait for the device.
            return step(model, inputs, num_items_in_batch).nan_to_num(0.0, 0.0, 0.0)
        except torch.OutOfMemoryError as error:
            message = str(error)
        # Here, and not above, where the error still holds on to the step's activations.
        model.zero_grad(set_to_none=True)
        if not self.is_deepspeed_enabled:  # whose parameters are not all here to try it
            advice = memory_advice(self.encoder, self.accelerator.unwrap_model(model), self._prepare_inputs(inputs))
            message = f"{advice} ({message})"
        raise torch.OutOfMemoryError(message)

    def chunked_step(self, model, inputs, num_items_in_batch=None) -> Tensor:
        """Forward and backward by `gradient_cache.chunked_backward`."""
        model.train()
        inputs = self._prepare_inputs(inputs)
        self._count_images(inputs)
        parts, temperature = chunked_backward(
            model,
            self.encoder,
            self.loss,
            inputs | {"sampling_keys": self.sampling_keys(inputs)},
            self.args.contrastive_chunk_size,
            self.accelerator,
            self.compute_loss_context_manager,
            1 / self.current_gradient_accumulation_steps,
        )
        self._record({**parts, "temperature": temperature.squeeze()}, inputs)
        return torch.stack(list(parts.values())).sum() / self.current_gradient_accumulation_steps

    def _record(self, values: dict[str, Tensor], inputs: dict[str, Tensor]) -> None:
        """Keeps what the next log averages, on the device: nothing waits for it here."""
        if self.state.global_step == 0 and not self._parts:
            self._logged_at = time.perf_counter()
        for name, value in values.items():
            # A step that is not finite is skipped, and would hide all others of the same log.
            self._parts.setdefault(name, []).append(value.detach().nan_to_num(0.0, 0.0, 0.0))
        self._images_since_log += len(inputs["image_ids"]) * self.accelerator.num_processes
        self._captions_since_log = self._captions_since_log + inputs["caption_mask"].sum()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """
        Adds to each training log the mean of every loss part and of the temperature, images and captions per second,
        and how many images could not be read so far, if any.
        """
        if "loss" in logs and self._parts:
            now = time.perf_counter()
            for name, values in self._parts.items():  # agreement may have come in since the last log
                mean = self.accelerator.reduce(torch.stack(values).mean(), reduction="mean")
                logs[name] = round(mean.item(), 4)
            if self.skipped_steps:
                logs["skipped_steps"] = self.skipped_steps
            logs["images_per_second"] = round(self._images_since_log / (now - self._logged_at), 1)
            captions = self.accelerator.reduce(self._captions_since_log, reduction="sum")
            logs["captions_per_second"] = round(captions.item() / (now - self._logged_at), 1)
            if bad := self.bad_images():
                logs["bad_images"] = bad
            self._parts, self._logged_at = {}, now
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
        """See [`ccrk.training.evaluation.languages_to_evaluate`]."""
        return languages_to_evaluate(dataset, self.data_collator.languages)

    def metric_names(self) -> list[str]:
        """See [`ccrk.training.evaluation.metric_names`]."""
        return metric_names(self.eval_dataset, self.data_collator.languages)

    def check_metric(self) -> None:
        """Raises ValueError where no evaluation gives `metric_for_best_model`, before hours are spent on the first."""
        wanted = self.args.metric_for_best_model
        if wanted is None or self.args.eval_strategy == "no" or self.eval_dataset is None:
            return
        if wanted.removeprefix("eval_") not in (names := self.metric_names()):
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
        self.accelerator.unwrap_model(self.model).eval()  # the Trainer switches back before the next step
        # Parameters that are spread over processes are gathered forward by forward: all must do the same work then.
        share = Share() if is_deepspeed_zero3_enabled() else Share.of_this_process()
        with self.whole_model():
            result = evaluate_retrieval(
                self.encoder,
                dataset,
                self.languages_to_evaluate(dataset),
                batch_size=self.args.per_device_eval_batch_size,
                share=share,
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
        """Writes `README.md` in `output_dir`; see `ccrk.training.model_card`. `push_to_hub` calls it."""
        if self.is_world_process_zero():
            hub_id = self.hub_model_id or model_name or Path(self.args.output_dir).name
            model_card(self, hub_id, **metadata).save(Path(self.args.output_dir) / "README.md")
