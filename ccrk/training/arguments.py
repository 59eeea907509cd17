"""Arguments of training: the paper's optimizer as defaults, and what is refused with the reason."""

import math
from dataclasses import MISSING, dataclass, field

from transformers import TrainingArguments
from transformers.integrations import is_tensorboard_available

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
    "include_for_metrics": _EVALUATION,
    "label_names": _LOSSES,
    "label_smoothing_factor": _LOSSES,
    "length_column_name": _ROWS,
    "liger_kernel_config": "there are no Liger kernels for this model",
    "logging_nan_inf_filter": "a loss that is not finite counts as 0, without a wait for the device in each step",
    "neftune_noise_alpha": "captions are packed, and the noise would depend on how many of them are",
    "optim_target_modules": "optimizers that group parameters themselves are refused",
    "parallelism_config": "the model is not split over devices; FSDP and DeepSpeed spread its parameters",
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
    "agreement_start": BELOW_1,
    "agreement_trust": ABOVE_0,
    "agreement_weight": NOT_NEGATIVE,
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
    "negatives_queue": NOT_NEGATIVE,
    "new_parameter_lr_scale": NOT_NEGATIVE,
    "num_train_epochs": ABOVE_0,
    "per_device_eval_batch_size": AT_LEAST_1,
    "per_device_train_batch_size": AT_LEAST_1,
    "published_batch_size": AT_LEAST_1,
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
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Must stay off: losses that are not finite count as 0, without it."}
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "Must stay off: the collator reads rows."})
    published_batch_size: int | None = field(
        default=None,
        metadata={
            "help": "Images of a step, over all processes, that the recipe was published with; a warning says where a "
            "run takes another number."
        },
    )
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
    contrastive_loss: str | None = field(
        default=None,
        metadata={
            "help": "softmax or sigmoid: by default that which the model was trained by.",
            "choices": ["softmax", "sigmoid"],
        },
    )
    agreement_weight: float = field(
        default=0.0,
        metadata={
            "help": "Weight of a loss beside the contrastive one, by which the captions of an image learn to rank the "
            "batch's images alike in all languages; 0, as published: none."
        },
    )
    agreement_start: float | None = field(
        default=None,
        metadata={
            "help": "Share of the steps after which it comes in, since captions must find pictures first: 0.6 unless "
            "given, with agreement_languages 0."
        },
    )
    agreement_trust: float = field(
        default=1.0,
        metadata={
            "help": "Power by which captions that do not find their image count less in it; 2 where translations are "
            "often wrong."
        },
    )
    negatives_queue: int = field(
        default=0,
        metadata={
            "help": "Images of earlier batches whose embeddings, in fp16 and without a gradient, are negatives beside "
            "the batch; 0, as published: none. A resumed run begins with an empty queue."
        },
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

    license: str | None = field(
        default=None, metadata={"help": "Licence of the weights for the model card, such as apache-2.0."}
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
                raise ValueError(f"{name} cannot be {getattr(self, name)!r}: {why}; remove it")
        if self.train_sampling_strategy not in ("random", "sequential"):
            raise ValueError(f"train_sampling_strategy cannot be {self.train_sampling_strategy!r}: {_ROWS}")
        if self.include_num_input_tokens_seen in (True, "all"):
            raise ValueError("include_num_input_tokens_seen would count pixels; choose non_padding")
        if self.torch_empty_cache_steps is not None and self.contrastive_chunk_size is not None:
            raise ValueError("torch_empty_cache_steps has no effect on steps in chunks; remove it")
        optim = getattr(self.optim, "value", self.optim)
        if self.optim_args and optim in ("adamw_torch", "adamw_torch_fused", "adafactor"):
            raise ValueError(f"optim_args has no effect on optim {optim}; set adam_beta1, adam_beta2 and adam_epsilon")
        self._check_best_metric()
        if self.fsdp_config and not self.fsdp:
            raise ValueError("fsdp_config has no effect without fsdp; set it, or leave fsdp_config out")
        super().__post_init__()
        if self.save_only_model and self.resume_from_checkpoint:
            raise ValueError(
                "save_only_model leaves nothing to resume from; remove save_only_model or resume_from_checkpoint"
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
