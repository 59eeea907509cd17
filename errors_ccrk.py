"""How the scripts end when their input is wrong."""

import contextlib
import sys
from collections.abc import Iterator

from huggingface_hub.errors import StrictDataclassError


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """While a run is set up, a mistake in its input ends it with one line that names the cure, without a traceback."""
    try:
        yield
    except StrictDataclassError as error:
        sys.exit(f"error: {error.__cause__ or error}")  # it wraps the mistake in words about itself
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"error: {error}")
