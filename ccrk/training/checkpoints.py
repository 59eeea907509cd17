"""Checkpoints of a training run: which of them are whole, and which run they go on with."""

import contextlib
import json
import logging
import os
import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError
from transformers import PreTrainedModel, ProcessorMixin
from transformers.integrations import is_deepspeed_available
from transformers.trainer_utils import sort_checkpoints

from data_scripts.cli import InputError, one_line
from data_scripts.files import open_pretrained

logger = logging.getLogger(__name__)


def deepspeed_problem(checkpoint: Path) -> str | None:
    """
    Why DeepSpeed must not open its part of a training checkpoint; None where it may, or where there is none.

    It unpickles whatever the files hold. Here they are opened first, by torch's restricted unpickler, which makes
    nothing but tensors, plain containers and the classes that DeepSpeed itself writes.
    """
    if not is_deepspeed_available() or not any(checkpoint.glob("global_step*")):
        return None  # nobody opens them
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    for pointer in checkpoint.glob("latest*"):  # names the folder that DeepSpeed opens
        name = pointer.read_text(encoding="utf-8", errors="replace").strip()
        if name not in (path.name for path in checkpoint.iterdir() if path.is_dir()):
            return f"its {pointer.name} names {name!r}, which is no folder in it"
    written = [LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address]
    for folder, _, names in os.walk(checkpoint, followlinks=True):
        for path in (Path(folder) / name for name in sorted(names) if name.endswith(".pt")):
            try:
                with torch.serialization.safe_globals(written):
                    torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
            except Exception as error:  # there is no end to what unpickling raises
                found = re.search(r"GLOBAL (\S+)", str(error))
                return f"{path.relative_to(checkpoint)} holds {found[1] if found else 'no tensors'} and was not opened"
    return None


# Written into a checkpoint when all else is there: size and CRC-32 of each of its files.
MANIFEST = "manifest.json"

# What the run was set to; see `compare_settings`.
SETTINGS = "run_settings.json"

# Lies in a checkpoint while transformers' CheckpointManager writes it, and is deleted after the manifest is written.
SENTINEL = "checkpoint-is-incomplete.txt"

# Of a model with LoRA adapters these alone; the checkpoint itself holds the model with the adapters merged in.
ADAPTER = "adapter"

# The optimizer's and the schedule's own state, and where the weights and captions' tokens come from: a resumed run
# takes them from the checkpoint, whatever its arguments say.
FROM_CHECKPOINT = {
    "learning_rate",
    "new_parameter_lr_scale",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "optim_args",
    "model_name_or_path",
    "vision_model",
    "text_model",
    "max_words",
    "max_length",
}

# What makes the checkpoint's weights and optimizer those of another model.
INCOMPATIBLE = {"optim", "use_peft", "lora_r", "vocab_size", "frozen_weights"}

# What decides which rows a step sees.
ORDER_OF_ROWS = {
    "seed",
    "data_seed",
    "data",
    "num_rows",
    "rows",
    "processes",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "dataloader_drop_last",
    "dataloader_num_workers",
    "train_sampling_strategy",
}


class CheckpointError(InputError):
    """A run cannot go on from this checkpoint."""


def what_is_wrong(checkpoint: Path) -> str | None:
    """Why nothing can be resumed from a checkpoint folder; None where it is whole."""
    if not checkpoint.is_dir():
        return "the folder does not exist"
    manifest = checkpoint / MANIFEST
    if not manifest.is_file():
        return "it was not written to the end"
    try:
        files = json.loads(manifest.read_bytes())
        if not all(isinstance(expected, dict) for expected in files.values()):
            raise ValueError("an entry is no mapping")
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        return f"its {MANIFEST} is damaged ({error})"
    there = {str(path.relative_to(checkpoint)): path for path in _files(checkpoint)}
    for name, expected in files.items():
        if name not in there:
            return f"{name if name.isprintable() and len(name) < 100 else ascii(name[:100])} is missing"
        found = {"bytes": there[name].stat().st_size, "crc32": _crc32(there[name])}
        if expected != found:
            return f"{name} is not as it was written"
    if not any(name.startswith("rng_state") for name in files):
        return "it was saved with save_only_model and holds no optimizer"
    if any(name.startswith("global_step") for name in files):
        return deepspeed_problem(checkpoint)
    optimizer = "optimizer.bin" if any(name.startswith("pytorch_model_fsdp") for name in files) else "optimizer.pt"
    for needed in ("trainer_state.json", optimizer, ".safetensors"):
        if not any(name.endswith(needed) for name in files):
            return f"its {MANIFEST} is damaged (it names no {needed})"
    return deepspeed_problem(checkpoint)


def write_manifest(checkpoint: Path) -> None:
    """Declares a checkpoint whole, in one step."""
    entries = {
        str(path.relative_to(checkpoint)): {"bytes": path.stat().st_size, "crc32": _crc32(path)}
        for path in _files(checkpoint)
        if path.name not in (MANIFEST, SENTINEL)
    }
    unfinished = checkpoint / f"{MANIFEST}.unfinished"
    unfinished.write_text(json.dumps(entries, indent=1))
    unfinished.replace(checkpoint / MANIFEST)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _crc32(path: Path) -> int:
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            checksum = zlib.crc32(block, checksum)
    return checksum


def choose_checkpoint(output_dir: str, wanted: str | bool | None) -> str | None:
    """
    The checkpoint to resume from: of `"auto"` (or True) the newest whole one in `output_dir`, None where there is
    none; of a folder this one; of nothing None.

    Raises:
        CheckpointError: the folder is no whole checkpoint.
    """
    if not wanted:
        return None
    if wanted not in (True, "auto"):
        if problem := what_is_wrong(Path(wanted)):
            raise CheckpointError(f"{wanted}: {problem}; resume from another, or 'auto'")
        return str(wanted)
    for checkpoint in reversed(sort_checkpoints(output_dir)):
        if problem := what_is_wrong(Path(checkpoint)):
            logger.warning("%s passed over: %s", checkpoint, problem)
        else:
            logger.warning("resuming from %s", checkpoint)
            return checkpoint
    logger.warning("no checkpoint in %s: training starts at step 0", output_dir)
    return None


def steps_of(folder: Path) -> int:
    """After how many steps the run's state in a checkpoint or an output folder was saved; 0 where there is none."""
    try:
        return int(json.loads((folder / "trainer_state.json").read_bytes())["global_step"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return 0


def check_same_model(checkpoint: Path, model, processor: ProcessorMixin | None) -> None:
    """
    Raises CheckpointError where a checkpoint's weights are not those of this model, and says why: another head,
    another configuration, with or without adapters, another tokenizer.
    """
    cure = "train on from its weights with --model_name_or_path, in another output_dir, or resume with what it had"
    is_adapted = hasattr(model, "peft_config")
    if is_adapted != (checkpoint / ADAPTER).is_dir():
        having = "no LoRA adapters" if is_adapted else "LoRA adapters, and none are trained here"
        raise CheckpointError(f"{checkpoint} has {having}; {cure}")
    model = model.get_base_model() if is_adapted else model
    if not isinstance(model, PreTrainedModel):  # a SentenceTransformer, which is compared when it is loaded
        return
    saved = open_pretrained(type(model.config), checkpoint)
    if type(model).__name__ not in (heads := saved.architectures or []):
        raise CheckpointError(f"{checkpoint} is of a {', '.join(heads)}, not a {type(model).__name__}; {cure}")
    ours, theirs = _flat(model.config.to_dict()), _flat(saved.to_dict())
    if different := [name for name in ours if ours[name] != theirs.get(name)]:
        values = ", ".join(f"{name} is {ours[name]!r} (there {theirs.get(name)!r})" for name in different[:4])
        raise CheckpointError(f"{checkpoint} is of another model: {values}; {cure}")
    if processor is not None:
        theirs = open_pretrained(type(processor), checkpoint)
        if processor.tokenizer.get_vocab() != theirs.tokenizer.get_vocab():
            raise CheckpointError(
                f"{checkpoint} was trained with another tokenizer; resume with that of the checkpoint"
            )


def _flat(config: dict, prefix: str = "") -> dict:
    """A configuration's fields that shape the model, `part.field` for those of its parts."""
    incidental = ("transformers_version", "architectures", "dtype", "_name_or_path", "auto_map", "use_cache")
    flat = {}
    for name, value in config.items():
        if isinstance(value, dict) and name.endswith("_config"):
            flat |= _flat(value, f"{prefix}{name}.")
        elif name not in incidental and not name.endswith("_token_id"):  # these follow from the tokenizer
            flat[prefix + name] = json.loads(json.dumps(value, default=str))
    return flat


def compare_settings(checkpoint: Path, settings: dict, place: str) -> str | None:
    """
    One sentence on what this run is set to otherwise than the checkpoint's, and what of it counts; None if nothing.

    Args:
        settings: of this run, as they are saved with each checkpoint.
        place: where in the data the run goes on.

    Raises:
        CheckpointError: the checkpoint's weights or optimizer cannot go on with these settings.
    """
    if not (checkpoint / SETTINGS).is_file():
        return None  # of a Trainer that saved none
    saved = json.loads((checkpoint / SETTINGS).read_text())
    settings = json.loads(json.dumps(settings, default=str))
    different = [name for name in settings if settings[name] != saved.get(name)]
    told = {name: f"{name} {_text(settings[name])} (was {_text(saved.get(name))})" for name in different}
    if wrong := [told[name] for name in different if name in INCOMPATIBLE]:
        raise CheckpointError(
            f"{checkpoint} cannot go on with {', '.join(wrong)}; resume with what it had, or choose another output_dir"
        )
    ignored = [told[name] for name in different if name in FROM_CHECKPOINT]
    counted = [told[name] for name in different if name not in FROM_CHECKPOINT]
    sentences = [f"{checkpoint} goes on with other settings than it was trained with"] if different else []
    if counted:
        sentences.append(f"these count from here on: {', '.join(counted)}")
    if ignored:
        sentences.append(f"these are ignored, the checkpoint's go on: {', '.join(ignored)}")
    if ORDER_OF_ROWS & set(different):
        sentences.append(f"{place}, in another order of rows: some of this epoch come twice or not at all")
    return "; ".join(sentences) or None


def _text(value) -> str:
    return "unset" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


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
