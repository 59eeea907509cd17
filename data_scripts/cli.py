"""What the scripts print: one line for a mistake in their input, and no control characters from files and names."""

import contextlib
import difflib
import logging
import re
import sys
import warnings
from collections.abc import Iterable, Iterator

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers.utils import logging as transformers_logging

# That there is no GPU, at each start on a CPU.
warnings.filterwarnings("ignore", "'pin_memory' argument is set as true but no accelerator is found")
logging.getLogger("DeepSpeed").addFilter(lambda record: "Setting accelerator to CPU" not in record.getMessage())


class InputError(ValueError):
    """What was given is to blame, and not the code that finds it out: the message says all there is to say."""

    def __init__(self, message: str):
        # A data loader's worker hands it over with a traceback before it.
        super().__init__(message.rpartition(f"{type(self).__name__}: ")[2])


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
        sys.exit(f"error: {one_line(mistake(error))}")
    except Exception as error:
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            sys.exit(f"error: out of memory; take smaller batches, or free some of it ({one_line(error)})")
        # Two kinds of RuntimeError that no input is to blame for.
        if isinstance(error, NotImplementedError | RecursionError) or not isinstance(error, kinds):
            raise
        sys.exit(f"error: {one_line(error)}")


def set_up_logging() -> None:
    """Our own messages, and those of transformers, at level INFO on the main process."""
    log_to_screen()
    logging.getLogger("httpx").setLevel(logging.WARNING)
    transformers.utils.logging.set_verbosity_warning()
