"""Text files as people have them: with a byte-order mark, Windows line ends or none of it, and within a bound."""

import argparse
import fnmatch
import gzip
import json
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from data_scripts.captions import what_is
from data_scripts.rows import is_text

# Bytes of a whole annotation file, unpacked: the largest known, of WIT and COCO, have a third of it. It is held in
# memory.
MAX_FILE_BYTES = 2 << 30
# Bytes of one line of a shard or a table, which may hold a picture.
MAX_LINE_BYTES = 256 << 20
NOT_UTF8 = "line is not UTF-8"
BYTE_ORDER_MARK = "\ufeff"
_BLOCK = 1 << 20


class BadField(ValueError):
    """A field that is missing or of a wrong type; the message says which, and is the same for all of its kind."""


def read_text(path: Path, cure: str) -> str:
    """A UTF-8 file, gzipped or not, without its byte-order mark.

    Raises:
        ValueError: it is damaged, of another encoding, or larger than `MAX_FILE_BYTES`; with the cure.
    """
    blocks, size = [], 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            while block := file.read(_BLOCK):
                size += len(block)
                if size > MAX_FILE_BYTES:
                    raise ValueError(
                        f"{path} holds more than {MAX_FILE_BYTES:,} bytes of text, more than is read; {cure}"
                    )
                blocks.append(block)
        if path.suffix == ".gz" and not path.stat().st_size:
            raise EOFError("it is empty")
        contents = b"".join(blocks)
        check_encoding(path, contents, cure)
        return contents.decode("utf-8-sig")
    except (EOFError, gzip.BadGzipFile, zlib.error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged ({error}); {cure}") from error


def check_encoding(path: str | Path, beginning: bytes, cure: str) -> None:
    """Raises ValueError where a file begins as UTF-16 or UTF-32 does, with a byte-order mark or without."""
    encoding = json.detect_encoding(beginning)
    if not encoding.startswith("utf-8"):
        raise ValueError(f"{path} is damaged or {encoding.upper()}, not UTF-8; save it as UTF-8, or {cure}")


def read_lines(path: Path, cure: str) -> list[str]:
    """All lines of a file, the blank ones too: files that go together line by line stay aligned."""
    text = read_text(path, cure)
    # Not splitlines(): it also breaks at rare characters inside a caption, and files would no longer align.
    lines = text.removesuffix("\n").split("\n") if text else []
    # Files that were joined to one have a mark in their midst.
    return [line.removeprefix(BYTE_ORDER_MARK).removesuffix("\r") for line in lines]


def files_below(
    folder: str | os.PathLike, pattern: str, on_error: Callable[[OSError], None] | None = None
) -> list[Path]:
    """The files of some name at any depth of a folder, in the order of their paths.

    Links are followed, to folders too, into each folder once: data lies where there is room for it.

    Args:
        on_error: is told of each folder that cannot be listed; its `filename`. By default it is left out.
    """
    found, seen = [], set()
    for path, folders, names in os.walk(folder, onerror=on_error, followlinks=True):
        if (real := os.path.realpath(path)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        found += [Path(path, name) for name in fnmatch.filter(names, pattern)]
    return sorted(path for path in found if path.is_file())


def is_blank_line(line: bytes) -> bool:
    return not line.removeprefix(BYTE_ORDER_MARK.encode()).strip()


def numbered_lines(file: BinaryIO, path: Path | str) -> Iterator[tuple[int, bytes]]:
    """Every line with its number from 1; ValueError at one that is longer than `MAX_LINE_BYTES`."""
    number = 0
    while line := file.readline(MAX_LINE_BYTES):
        number += 1
        if len(line) == MAX_LINE_BYTES and not line.endswith(b"\n"):
            raise ValueError(
                f"{path} line {number} is longer than {MAX_LINE_BYTES:,} bytes; is it a file of lines, and whole?"
            )
        yield number, line


def json_object(text: str) -> dict:
    """A command line's value that is a JSON object; for argparse, whose error says what is expected."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no JSON ({error}); write it as '{{\"name\": 1}}'") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is {what_is(value)}; write a JSON object as '{{\"name\": 1}}'")
    return value


def text_field(entry: Any, name: str) -> str:
    """A field that is text. Raises BadField."""
    value = _field(entry, name)
    if not is_text(value):
        raise BadField(f"{name} is {what_is(value)}, not text")
    return value


def texts_field(entry: Any, name: str, expected: str = "a list of texts") -> list[str]:
    """A field that is a list of texts. Raises BadField."""
    return _list_of(typed_field(entry, name, list, expected), name, is_text, "texts")


def objects_field(entry: Any, name: str) -> list[dict]:
    """A field that is a list of objects. Raises BadField."""
    values = typed_field(entry, name, list, "a list of objects")
    return _list_of(values, name, lambda value: isinstance(value, dict), "objects")


def _list_of(values: list, name: str, is_right: Callable[[Any], bool], expected: str) -> list:
    for value in values:
        if not is_right(value):
            raise BadField(f"{name} holds {what_is(value)}, not {expected} alone")
    return values


def typed_field(entry: Any, name: str, kind: type, expected: str) -> Any:
    """A field of a type, which `expected` has in words. Raises BadField."""
    value = _field(entry, name)
    if not isinstance(value, kind):
        raise BadField(f"{name} is {what_is(value)}, not {expected}")
    return value


def _field(entry: Any, name: str) -> Any:
    if not isinstance(entry, dict):
        raise BadField(f"entry is {what_is(entry)}, not an object")
    if name not in entry:
        raise BadField(f"{name} is missing")
    return entry[name]
