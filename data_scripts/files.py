"""Files that others wrote, opened whole or not at all, and files of ours, written whole or not at all."""

import contextlib
import os
import pickle
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from data_scripts.cli import did_you_mean_path, mistake, one_line

# Tensors that files of encoders hold, or lack, and that nothing here uses: pooling of an encoder that is pooled
# otherwise, and buffers of older versions.
NOT_USED = ("pooler", "position_ids")


def open_pretrained(kind: type, source: str | os.PathLike, **options) -> Any:
    """
    `kind.from_pretrained(source)`. Code that lies beside it is never run, nor asked about.

    Args:
        kind: a class of configurations, processors or tokenizers, Auto classes included; for models see `open_model`.
        source: folder or Hub id.
        options: for `from_pretrained`.

    Raises:
        ValueError: there is no such folder, it needs code of its own, or a file in it is damaged.
    """
    try:
        if (
            issubclass(kind, PreTrainedConfig)
            and Path(source).is_dir()
            and not (Path(source) / "config.json").exists()
        ):
            raise FileNotFoundError(source)  # transformers would take the class's defaults
        opened = kind.from_pretrained(source, trust_remote_code=False, **options)
        check_vocabulary(getattr(opened, "tokenizer", opened))
        return opened
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # there is no end to what damaged files raise in the libraries that read them
        raise ValueError(_why_not_opened(kind, source, error)) from error


def open_model(
    kind: type,
    source: str | os.PathLike,
    may_lack: Sequence[str] = (),
    dtype: torch.dtype | str = torch.float32,
    **options,
) -> tuple[PreTrainedModel, list[str]]:
    """
    As `open_pretrained`, a model with every weight from the file.

    Args:
        may_lack: parts of the model, such as `matching_head`, that may start from scratch as a whole. The pooling of
            one encoder (`pooler`) may be missing unless it is named here; that of a model with two encoders may not.
        dtype: of the weights; "auto" keeps that of the file. AdamW needs fp32: most of its steps are too small for 16
            bits.

    Returns: the model, and which of `may_lack` the file lacks.

    Raises:
        ValueError: as `open_pretrained`; or the file holds other weights than its configuration says.
    """
    with without_warnings():  # what does not fit is an error here, and no table of warnings
        options |= {"dtype": dtype, "output_loading_info": True, "ignore_mismatched_sizes": True}
        model, found = open_pretrained(kind, source, **options)
    weights = [name for name in model.state_dict() if name not in model.all_tied_weights_keys]
    in_file = {_part(name) for name in set(weights) - set(found["missing_keys"])}
    lacking = [part for part in may_lack if part in map(_part, weights) and part not in in_file]
    is_pooled = "pooler" in may_lack or hasattr(model, "get_text_features")
    _check_weights(source, model, found, lacking, NOT_USED[1:] if is_pooled else NOT_USED)
    return model, lacking


@contextlib.contextmanager
def without_warnings() -> Iterator[None]:
    """Inside, transformers reports errors alone."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)


def _why_not_opened(kind: type, source: str | os.PathLike, error: Exception) -> str:
    """One line for what `from_pretrained` raised."""
    folder = Path(source)
    cause = mistake(error)
    reason = one_line(str(cause).strip().partition("\n")[0])
    if not folder.is_dir():
        if folder.exists():
            return f"{source} is a file; name a folder"
        if nearest := did_you_mean_path(source):
            return f"there is no folder {source}{nearest}"
        try:
            validate_repo_id(str(source))
        except HFValidationError:
            return f"there is no folder {source}"
        return f"there is no folder {source}, and no such model of the Hub within reach ({reason})"
    if (folder / "adapter_config.json").exists() and not (folder / "config.json").exists():
        return f"{source} holds an adapter alone; name the folder of the model that it is merged into"
    if not (folder / "config.json").exists():
        return f"{source} holds no config.json; name the folder of a checkpoint"
    if known := why_not_whole(source, error):
        return known
    if type(cause) is ValueError:  # a sentence, ours or of transformers
        return f"{source} cannot be opened as {kind.__name__}: {reason}"
    return f"{source} cannot be opened as {kind.__name__}; is it whole? ({type(cause).__name__}: {reason})"


def check_vocabulary(tokenizer: Any) -> None:
    """Raises ValueError where transformers made a tokenizer up, of no file: to it all words are one, the unknown."""
    if isinstance(tokenizer, PreTrainedTokenizerBase) and len(tokenizer) <= len({*tokenizer.all_special_tokens}):
        raise ValueError("its tokenizer has no vocabulary; restore the files of its tokenizer, such as tokenizer.json")


def why_not_whole(source: str | os.PathLike, error: Exception) -> str | None:
    """
    One line in place of what libraries raise on a model that lacks a part, or that would run code, where their own
    words lead astray; None for all other errors.
    """
    text = str(error)
    if "trust_remote_code" in text:
        return (
            f"{source} asks to run Python code of its own, which is never done here; name a folder of CCRK, or of a "
            "model whose classes are those of its library"
        )
    if isinstance(error, pickle.UnpicklingError):
        return (
            f"{source} holds a pickle of more than tensors, or a damaged one; nothing of it was run; get safetensors"
        )
    if "backend tokenizer" in text or "model_proto" in text:  # of sentencepiece
        return f"{source} holds no tokenizer that can be opened; save the model's own beside it"
    if "load image processor" in text:
        return f"{source} holds no preprocessor_config.json; save the model's processor beside it"
    if "size mismatch for" in text or "ignore_mismatched_sizes" in text:
        return (
            f"{source}: weights are of another shape than its configuration says; restore the files that belong "
            "together"
        )
    return None


def _part(name: str) -> str:
    """The part of a model that a weight belongs to: the first word of its name."""
    return name.split(".")[0]


def _check_weights(
    source: str | os.PathLike, model: PreTrainedModel, found: dict, may_lack: Sequence[str], not_used: Sequence[str]
) -> None:
    """ValueError where a weight of the model is not that of the file, or one of the file belongs into the model."""
    if wrong := sorted(found["mismatched_keys"]):
        name, in_file, in_model = wrong[0]
        raise ValueError(
            f"{source}: {len(wrong)} weights are of another shape than its config.json says, such as {name}: "
            f"{tuple(in_file)} instead of {tuple(in_model)}; restore the files that belong together"
        )
    parts = {name for name, _ in model.named_children()}
    lacking = [name for name in found["missing_keys"] if _part(name) not in may_lack]
    above = f"{model.base_model_prefix}."  # in a file with a head, of which this model is the base
    left_over = [name for name in found["unexpected_keys"] if {_part(name), _part(name.removeprefix(above))} & parts]
    for names, what, known in (
        (lacking, "are missing", not_used),
        (left_over, "are beyond what its config.json says", NOT_USED),
    ):
        names = sorted(name for name in names if not any(part in name.split(".") for part in known))
        if names:
            shown = ", ".join(map(one_line, names[:3])) + (", …" if len(names) > 3 else "")
            raise ValueError(
                f"{source}: {len(names)} weights of a {type(model).__name__} {what}: {shown}; restore the files that "
                "belong together"
            )
    if found.get("error_msgs"):
        raise ValueError(f"{source}: {one_line(found['error_msgs'][0])}")


def check_output_folder(folder: Path) -> None:
    """Makes a folder, and OSError where nothing can be written to it: before the work, and not after it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(f"nothing can be written to {folder} ({error.strerror}); name another folder") from error


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """
    Where to write what is to be the file or folder `path`: it gets that name once all of it is there, and on any
    failure nothing is left of it.

    Raises:
        OSError: it cannot be written; with its name.
    """
    unfinished = path.with_name(f"{path.name}.unfinished")
    _remove(unfinished)  # of a run that was killed
    try:
        yield unfinished
        unfinished.replace(path)
    except (OSError, RuntimeError, SafetensorError) as error:  # what torch and safetensors raise on a full disk
        reason = one_line(str(error).partition("\n")[0])
        raise OSError(f"{path} could not be written ({reason}); make room, or name another folder") from error
    finally:
        _remove(unfinished)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
