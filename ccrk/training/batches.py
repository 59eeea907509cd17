"""How many rows a step takes, over all processes, and what becomes of the last batch of an epoch."""

import logging

from ccrk.training.arguments import CCRKTrainingArguments

logger = logging.getLogger(__name__)


def check_last_batch(arguments: CCRKTrainingArguments, num_rows: int) -> None:
    """
    Raises ValueError where no batch can be filled, or where the last one would be filled with copies of rows: several
    processes take as many rows each, and accelerate repeats the first rows of an epoch for those that are missing.
    """
    processes, batch = arguments.world_size, arguments.per_device_train_batch_size * arguments.world_size
    if arguments.dataloader_drop_last and num_rows < batch:
        cure = " or set dataloader_drop_last to false" if processes == 1 else ""
        raise ValueError(f"{num_rows} rows do not fill one batch of {batch}; lower per_device_train_batch_size{cure}")
    if not arguments.dataloader_drop_last and processes > 1 and (left := num_rows % batch):
        raise ValueError(
            f"dataloader_drop_last is false, but {left} rows do not fill the last batch of {processes} processes, in "
            f"which {batch - left} copies of rows would be trained on; remove dataloader_drop_last or use one process"
        )


def describe_batches(arguments: CCRKTrainingArguments, steps_per_epoch: int | None, steps: int) -> str:
    """
    `batch 16 × 4 processes × 1 = 64, 453 steps an epoch, 4,530 in all`: rows of a process, processes, and batches
    whose gradients are accumulated. A stream has no epochs.
    """
    processes = f"{arguments.world_size} process{'es' if arguments.world_size > 1 else ''}"
    batch = arguments.per_device_train_batch_size * arguments.world_size * arguments.gradient_accumulation_steps
    factors = f"{arguments.per_device_train_batch_size} × {processes} × {arguments.gradient_accumulation_steps}"
    epoch = "" if steps_per_epoch is None else f"{steps_per_epoch:,} steps an epoch, "
    return f"batch {factors} = {batch:,}, {epoch}{steps:,} in all"


def warn_of_another_batch(arguments: CCRKTrainingArguments) -> None:
    """
    Warns where a step contrasts another number of images than the recipe was published with. Batches whose gradients
    are accumulated are not contrasted with each other, so they do not replace a larger one.
    """
    published, contrasted = (
        arguments.published_batch_size,
        arguments.per_device_train_batch_size * arguments.world_size,
    )
    if published is None or (contrasted == published and arguments.gradient_accumulation_steps == 1):
        return
    accumulated = ""
    if arguments.gradient_accumulation_steps > 1:
        accumulated = f", and accumulates {arguments.gradient_accumulation_steps} of them"
    logger.warning(
        "the recipe was published with batches of %d images; this run contrasts %d%s: set per_device_train_batch_size "
        "to %d and gradient_accumulation_steps to 1, with contrastive_chunk_size where memory is short",
        published,
        contrasted,
        accumulated,
        max(1, published // arguments.world_size),
    )
