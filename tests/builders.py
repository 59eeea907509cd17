"""Small files in the formats of the data sets' publishers, for the tests of the builders."""

import contextlib
import io
import json
import logging
import random
import resource
from pathlib import Path

from conftest import ROOT
from PIL import Image


def jpeg(shade: int = 0, size: tuple[int, int] = (48, 32)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (shade, 255 - shade, 128)).save(buffer, "JPEG")
    return buffer.getvalue()


def write(path: Path, contents: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(contents.encode() if isinstance(contents, str) else contents)
    return path


def write_json(path: Path, contents) -> Path:
    return write(path, json.dumps(contents, ensure_ascii=False))


def write_json_lines(path: Path, entries: list) -> Path:
    """One line per entry; a string is written as it is."""
    lines = [entry if isinstance(entry, str) else json.dumps(entry, ensure_ascii=False) for entry in entries]
    return write(path, "".join(f"{line}\n" for line in lines))


def reports(caplog) -> str:
    return "\n".join(record.getMessage() for record in caplog.records if record.levelno == logging.WARNING)


@contextlib.contextmanager
def full_disk(room: int = 0):
    """Inside, no file can grow beyond `room` bytes: writing fails as on a full disk, with another number."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def isolated(script: str) -> str:
    """`-I` ignores the environment's paths, but an editable install still puts this project on sys.path."""
    return (
        "import sys\n"
        "sys.meta_path = [finder for finder in sys.meta_path if 'editable' not in str(finder).lower()]\n"
        f"sys.path = [path for path in sys.path if path != {str(ROOT)!r}]\n" + script
    )


def damaged(contents: bytes, seed: int) -> bytes:
    """A file with a few bytes turned, zeroed, doubled or cut out, or without its end."""
    generator = random.Random(seed)
    place, length = generator.randrange(len(contents)), generator.choice([1, 4, 64, 4096])
    part = contents[place : place + length]
    new = [bytes(byte ^ 1 << seed % 8 for byte in part), bytes(len(part)), part + part, b""]
    return contents[:place] if seed % 5 == 4 else contents[:place] + new[seed % 5] + contents[place + length :]
