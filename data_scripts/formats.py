"""Tables of images and captions where they lie: their records one after another.

A record is a dictionary of a row's values. It comes with the `Place` at which it can be read again, so that a pass
over a table holds no pictures. The `datasets` library reads these formats too, but names neither file nor row of what
it cannot read, and stops at the first of it.
"""

import csv
import io
import json
import mmap
import os
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import chain
from typing import Any, BinaryIO, NamedTuple

import fsspec
import pyarrow
import pyarrow.parquet

from data_scripts.annotations import BROKEN_JSON
from data_scripts.captions import what_is
from data_scripts.problems import Problems
from data_scripts.text import NOT_UTF8, check_encoding, is_blank_line, numbered_lines

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".avif", ".gif", ".bmp", ".tif", ".tiff", ".ppm")
# Of images whose format is not read; they are counted under it.
UNREAD = (".heic", ".heif", ".jp2", ".j2k", ".jxl")
ROWS_OF_A_PART = 10_000  # of a Parquet file at the least, unless it has fewer
_RECORDS_AT_A_TIME = 256  # of a Parquet file; pictures of 100 kB make 25 MB
_COMPRESSIONS = {".gz": "gzip", ".tgz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
_UNPACKED_AT_A_TIME = 16  # files by each process; a reader of a stream has ten open


def is_url(path: str) -> bool:
    return "://" in path


def stem_and_ending(path: str | os.PathLike) -> tuple[str, str]:
    """The name of a file without its ending, and the ending in lower case without a compression's: `de`, `.jsonl`."""
    name = os.path.basename(os.fspath(path))
    stem, ending = os.path.splitext(name)
    if ending.lower() == ".tgz":
        return stem, ".tar"
    if ending.lower() in _COMPRESSIONS:
        stem, ending = os.path.splitext(stem)
    return stem, ending.lower()


def _compression(path: str) -> str | None:
    return _COMPRESSIONS.get(os.path.splitext(path)[1].lower())


def open_file(path: str) -> BinaryIO:
    """A file on disk or at a URL that fsspec knows, such as s3://bucket/rows.parquet; without its compression.

    Raises:
        ValueError: it is compressed, and damaged.
    """
    if _compression(path) is None:
        return _open(path)
    return io.BufferedReader(
        pyarrow.BufferReader(_unpacked(path, None if is_url(path) else os.stat(path).st_mtime_ns))
    )


def _open(path: str) -> BinaryIO:
    return fsspec.open(path, "rb").open() if is_url(path) else open(path, "rb")


def open_text(path: str) -> BinaryIO:
    """As `open_file`, of a text. Raises ValueError where it begins as UTF-16 or UTF-32 does."""
    file = open_file(path)
    try:
        check_encoding(path, file.read(64), "write it again")
    except ValueError:
        file.close()
        raise
    file.seek(0)
    return file


@lru_cache(maxsize=_UNPACKED_AT_A_TIME)
def _unpacked(path: str, state: int | None) -> pyarrow.Buffer:
    """What a compressed file holds, in a temporary file without a name: records are read at any place of it."""
    with _open(path) as packed, tempfile.TemporaryFile() as file:
        try:
            shutil.copyfileobj(pyarrow.CompressedInputStream(packed, _compression(path)), file)
            file.flush()
        except (OSError, pyarrow.ArrowException) as error:
            raise ValueError(f"{path} is not a whole compressed file ({error}); download or write it again") from error
        return pyarrow.py_buffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if file.tell() else b"")


class Place(NamedTuple):
    """Where a record is: its table, and what that table finds it by."""

    table: "Table"
    position: Any

    def read(self) -> dict:
        return self.table.read(self.position)


class Table(ABC):
    """One file of records, or one split of a data set.

    Args:
        path: of the file; names it in messages.
        split: the split that its name or folder tells, one of "train", "validation" and "test", or None.
        language: of its captions, where its name tells it.
    """

    def __init__(self, path: str | os.PathLike, split: str | None = None, language: str | None = None):
        self.path = os.fspath(path)
        self.split = split
        self.language = language

    @property
    def folder(self) -> str:
        """What the paths of pictures in it are relative to, where it is on disk."""
        return os.getcwd() if self.is_remote else os.path.dirname(os.path.abspath(self.path))

    @property
    def is_remote(self) -> bool:
        """Whether no pictures can lie beside it."""
        return is_url(self.path)

    @abstractmethod
    def records(self, problems: Problems) -> Iterator[tuple[dict, Any, str]]:
        """Each record with its position and, in words, its place; counts those that cannot be read."""

    @abstractmethod
    def read(self, position: Any) -> dict:
        """The record at a position."""

    def parts(self) -> list["Table"]:
        """Pieces of it that can be read each by itself, which hold every record once."""
        return [self]

    def state(self) -> str:
        """What changes when the file does."""
        if is_url(self.path):
            filesystem, path = fsspec.url_to_fs(self.path)
            return f"{self.path}\n{filesystem.ukey(path)}\n"
        status = os.stat(self.path)
        return f"{self.path}\n{status.st_size}\n{status.st_mtime_ns}\n"


class JSONLines(Table):
    """One JSON object per line."""

    def records(self, problems: Problems) -> Iterator[tuple[dict, tuple[int, int], str]]:
        offset = 0
        with open_text(self.path) as file:
            for number, line in numbered_lines(file, self.path):
                position, offset = (offset, len(line)), offset + len(line)
                if is_blank_line(line):
                    continue
                where = f"{self.path} line {number}"
                problems.rows += 1
                try:
                    record = json.loads(line.decode("utf-8-sig"))
                except UnicodeDecodeError:
                    problems.bad(NOT_UTF8, where)
                    continue
                except (ValueError, RecursionError):
                    problems.bad(BROKEN_JSON, where)
                    continue
                if isinstance(record, dict):
                    yield record, position, where
                else:
                    problems.bad(f"line is {what_is(record)}, not an object", where)

    def read(self, position: tuple[int, int]) -> dict:
        offset, length = position
        with open_file(self.path) as file:
            file.seek(offset)
            return json.loads(file.read(length).decode("utf-8-sig"))


class SeparatedValues(Table):
    """Values with a header, separated by that of `,`, `;`, tab and `|` which the header has most of.

    Where `| ` separates, as in Kaggle's Flickr30k, a quotation mark is a part of its caption.
    """

    @staticmethod
    def _reader(lines: Iterable[str], separator: str) -> Iterator[list[str]]:
        csv.field_size_limit(1 << 27)  # a picture in base64 fits
        if separator == "| ":
            return csv.reader(lines, delimiter="|", skipinitialspace=True, quoting=csv.QUOTE_NONE)
        return csv.reader(lines, delimiter=separator, strict=True)

    def _separator(self, header: str) -> str:
        if stem_and_ending(self.path)[1] == ".tsv":
            return "\t"
        separator = max(",;\t|", key=header.count)  # the first of equals
        return "| " if separator == "|" and header.count("| ") == header.count("|") else separator

    def records(self, problems: Problems) -> Iterator[tuple[dict, tuple[list[str], str, int, int], str]]:
        number, taken = 0, 0  # lines, bytes

        def lines() -> Iterator[str]:
            nonlocal number, taken
            for number, line in numbered_lines(file, self.path):
                taken += len(line)
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")

        with open_text(self.path) as file:
            try:
                decoded = lines()
                first = next(decoded, "")
                separator = self._separator(first)
                reader = self._reader(chain([first], decoded), separator)
                header = [name.strip() for name in next(reader, [])]  # `file_name, en, de`
                if len(set(header)) < len(header):
                    raise ValueError(f"{self.path}: a column is named twice in {', '.join(header)}; rename one")
                while True:
                    start, where = taken, f"{self.path} line {reader.line_num + 1}"
                    if (values := next(reader, None)) is None:
                        return
                    if not values:
                        continue
                    problems.rows += 1
                    if len(values) != len(header):
                        problems.bad(f"{len(values)} values under a header of {len(header)}", where)
                        continue
                    yield self._record(header, values), (header, separator, start, taken - start), where
            except (csv.Error, UnicodeDecodeError) as error:
                raise ValueError(
                    f"{self.path} line {number}: {error}; write it again as UTF-8 with fields in quotes"
                ) from error

    def read(self, position: tuple[list[str], str, int, int]) -> dict:
        header, separator, start, length = position
        with open_file(self.path) as file:
            file.seek(start)
            text = file.read(length).decode()
        return self._record(header, next(self._reader(io.StringIO(text, newline=""), separator)))

    @staticmethod
    def _record(header: list[str], values: list[str]) -> dict[str, str | None]:
        return {name: value or None for name, value in zip(header, values, strict=True)}  # nothing is nothing


class Parquet(Table):
    """A Parquet file; pictures are bytes, paths, or the struct that `datasets.Image` writes.

    Args:
        groups: of its row groups; all by default.
    """

    def __init__(self, *arguments, groups: range | None = None):
        super().__init__(*arguments)
        self.groups = groups

    def _open(self) -> pyarrow.parquet.ParquetFile:
        try:
            is_file = not is_url(self.path) and _compression(self.path) is None
            file = self.path if is_file else open_file(self.path)
            return pyarrow.parquet.ParquetFile(file, page_checksum_verification=True)
        except (pyarrow.ArrowException, OSError) as error:
            raise ValueError(f"{self.path} is not a whole Parquet file ({error}); write it again") from error

    def parts(self) -> list["Parquet"]:
        with self._open() as file:
            sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        parts, start, rows = [], 0, 0
        for group, size in enumerate(sizes):
            rows += size
            if rows >= ROWS_OF_A_PART or group + 1 == len(sizes):
                parts.append(Parquet(self.path, self.split, self.language, groups=range(start, group + 1)))
                start, rows = group + 1, 0
        return parts

    def records(self, problems: Problems) -> Iterator[tuple[dict, tuple[int, int], str]]:
        with self._open() as file:
            groups = range(file.num_row_groups) if self.groups is None else self.groups
            row = sum(file.metadata.row_group(group).num_rows for group in range(groups.start))
            for group in groups:
                in_group = 0
                for batch in file.iter_batches(_RECORDS_AT_A_TIME, row_groups=[group]):
                    for record in batch.to_pylist():
                        row += 1
                        problems.rows += 1
                        yield record, (group, in_group), f"{self.path} row {row}"
                        in_group += 1

    def read(self, position: tuple[int, int]) -> dict:
        group, row = position
        return _row_group(self, group).slice(row, 1).to_pylist()[0]


@lru_cache(maxsize=4)  # rows are read in their order, by a few threads
def _row_group(table: Parquet, group: int) -> pyarrow.Table:
    with table._open() as file:
        return file.read_row_group(group)
