"""What shapes a run, by name."""

from typing import Any

import torch

from ccrk.encoders import weights_fingerprint
from ccrk.training.arguments import CCRKTrainingArguments
from ccrk.training.collator import CCRKCollator
from data_scripts.streams import EndlessRows

OF_ARGUMENTS = (
    "learning_rate new_parameter_lr_scale weight_decay adam_beta1 adam_beta2 adam_epsilon optim optim_args "
    "lr_scheduler_type lr_scheduler_kwargs warmup_steps max_steps num_train_epochs max_grad_norm bf16 fp16 "
    "per_device_train_batch_size gradient_accumulation_steps contrastive_loss agreement_weight "
    "agreement_start agreement_trust negatives_queue contrastive_chunk_size dataloader_drop_last "
    "train_sampling_strategy seed data_seed metric_for_best_model"
).split()


def run_settings(args: CCRKTrainingArguments, rows: Any, collator: Any, model: torch.nn.Module) -> dict:
    """Of arguments, training data, collator and adapted model: what a run that goes on is compared by."""
    arguments = args.to_dict()
    settings = {name: arguments[name] for name in OF_ARGUMENTS} | {"processes": args.world_size}
    settings["num_rows"] = len(rows) if hasattr(rows, "__len__") else None
    settings["data"] = getattr(rows, "_fingerprint", None)
    if isinstance(rows, EndlessRows):  # each worker reads a share of its own
        settings["dataloader_num_workers"] = args.dataloader_num_workers
    if isinstance(collator, CCRKCollator):
        settings |= {"languages": " ".join(collator.languages), "one_language": collator.one_language}
        settings["agreement_only"] = collator.agreement_only or None
        settings["text_rows"] = getattr(collator.text_rows, "_fingerprint", None)
    if hasattr(model, "peft_config"):  # adapters are nothing without the weights that they were trained on
        frozen = {name: p for name, p in model.named_parameters() if not p.requires_grad}
        settings["frozen_weights"] = weights_fingerprint(frozen)
    return settings
