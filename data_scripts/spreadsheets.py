"""CSV files that people open in a spreadsheet, which computes cells that begin like formulas."""

import csv
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_scripts.files import written_whole

# As OWASP lists them ("CSV Injection"), full-width ones included: `=HYPERLINK(…)` sends what stands beside it away.
FORMULA = re.compile(r"[\t\r\n]|\s*[=+\-@＝＋－＠]")
QUOTED = re.compile(rf"'+(?:{FORMULA.pattern})")
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def as_cell(value: Any) -> Any:
    """The value, with an apostrophe before a text that a spreadsheet would compute. Numbers stay as they are."""
    if not isinstance(value, str) or NUMBER.fullmatch(value):
        return value
    return f"'{value}" if FORMULA.match(value) or QUOTED.match(value) else value


def from_cell(text: Any) -> Any:
    """What `as_cell` was given."""
    return text[1:] if isinstance(text, str) and QUOTED.match(text) else text


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes these columns of rows, whole or not at all, in cells that no spreadsheet computes.

    Raises:
        OSError: the file cannot be written; with its name.
    """
    with written_whole(path) as unfinished, unfinished.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([as_cell(column) for column in columns])
        writer.writerows([as_cell(row.get(column, "")) for column in columns] for row in rows)
