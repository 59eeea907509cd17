"""What the scripts print: one line for a mistake in their input, and no control characters from files and names."""

import contextlib
import difflib
import json
import logging
import os
import re
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers.utils import logging as transformers_logging

from data_scripts.rows import SPLIT_NAMES

# That there is no GPU, at each start on a CPU.
warnings.filterwarnings("ignore", "'pin_memory' argument is set as true but no accelerator is found")
logging.getLogger("DeepSpeed").addFilter(lambda record: "Setting accelerator to CPU" not in record.getMessage())


class InputError(ValueError):
    """What was given is to blame, and not the code that finds it out: the message says all there is to say."""

    def __init__(self, message: str):
        # A data loader's worker hands it over with a traceback before it.
        super().__init__(message.rpartition(f"{type(self).__name__}: ")[2])


def how_to_install(extra: str) -> str:
    """The command for an extra of `setup.cfg`; the package index has no `ccrk` of ours."""
    return f"run pip install -e '.[{extra}]' in the checkout of this project"


def printable(text: object) -> str:
    r"""
    A text whose control and format characters are shown (`\x1b`, `\u202e`) and not obeyed, lines kept: a terminal
    takes commands from what is printed, and names in data files are anybody's.
    """
    return "".join(
        character if character.isprintable() or character == "\n" else character.encode("unicode_escape").decode()
        for character in str(text)
    )


def one_line(text: object) -> str:
    """A text on one line, printable."""
    return printable(re.sub(r"\s*\n\s*", " ", str(text).strip()))


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: "; did you mean 'x'?", or nothing where no known name is near."""
    by_folded = {other.casefold(): other for other in known}
    near = difflib.get_close_matches(name.casefold(), by_folded, n=1)
    return f"; did you mean {by_folded[near[0]]!r}?" if near else ""


def no_split(dataset: str, split: object, splits: Sequence[str]) -> str:
    """The error where a data set has no such split: those that it has, and the one that was probably meant."""
    meant = SPLIT_NAMES.get(str(split).lower(), str(split))
    return f"{dataset} has no split {split!r}; choose one of {', '.join(splits)}{did_you_mean(meant, splits)}"


def did_you_mean_path(path: str | os.PathLike) -> str:
    """`did_you_mean` for a path: each part of it that does not exist is compared with the names in its folder."""
    found = Path()
    for part in Path(path).parts:
        if not (found / part).exists():
            names = [inner.name for inner in found.iterdir()] if found.is_dir() and os.access(found, os.R_OK) else []
            part = next(iter(difflib.get_close_matches(part, names, n=1)), part)
        found /= part
        if not found.exists():
            return ""
    return "" if found == Path(path) else did_you_mean(str(path), [str(found)])


class PrintableFormatter(logging.Formatter):
    """What another formatter makes of a message, printable."""

    def __init__(self, formatter: logging.Formatter):
        self.formatter = formatter

    def format(self, record: logging.LogRecord) -> str:
        return printable(self.formatter.format(record))


def log_to_screen(level: int = logging.INFO) -> None:
    """Sends messages from `level` on to stderr, printable, those of transformers included."""
    handler = logging.StreamHandler()
    handler.setFormatter(PrintableFormatter(logging.Formatter("%(message)s")))
    logging.basicConfig(level=level, handlers=[handler])
    transformers_logging.get_logger()  # makes the handler that transformers has for itself
    transformers_logging.disable_propagation()  # which it has not in CI: each line would come twice
    for handler in logging.getLogger("transformers").handlers:
        if not isinstance(handler.formatter, PrintableFormatter):
            handler.setFormatter(PrintableFormatter(handler.formatter or logging.Formatter()))


def mistake(error: Exception) -> BaseException:
    """The error itself, without the words about itself that `@strict` wraps it in."""
    return error.__cause__ or error if isinstance(error, StrictDataclassError) else error


def end_with_error(message: object) -> NoReturn:
    """
    Ends the process with status 1 and one line, `error: …`.

    torchrun repeats at its end what each process has left in a file of its own. There only the first process prints
    the line as well.
    """
    line = f"error: {one_line(message)}"
    is_repeated = bool(report := os.environ.get("TORCHELASTIC_ERROR_FILE"))
    if report:
        try:
            what = {"message": line, "extraInfo": {"py_callstack": line, "timestamp": str(int(time.time()))}}
            Path(report).write_text(json.dumps({"message": what}))
        except OSError:  # a full disk may be what the line is about
            is_repeated = False
    sys.exit(1 if is_repeated and os.environ.get("RANK", "0") != "0" else line)


@contextlib.contextmanager
def one_line_errors(kinds: tuple[type[Exception], ...] = (ValueError, OSError, RuntimeError)) -> Iterator[None]:
    """
    Ends the process with one line, without a traceback, where its input, its disk or its memory are to blame; any
    other exception is a fault of ours and keeps its traceback.

    Args:
        kinds: of exceptions that input is to blame for, beside lack of memory.
    """
    try:
        yield
    except StrictDataclassError as error:
        end_with_error(mistake(error))
    except Exception as error:
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            end_with_error(f"out of memory; take smaller batches, or free some of it ({error})")
        # Two kinds of RuntimeError that no input is to blame for.
        if isinstance(error, NotImplementedError | RecursionError) or not isinstance(error, kinds):
            raise
        end_with_error(error)


def set_up_logging() -> None:
    """Our own messages, and those of transformers, at level INFO on the main process."""
    log_to_screen()
    logging.getLogger("httpx").setLevel(logging.WARNING)
    transformers.utils.logging.set_verbosity_warning()
