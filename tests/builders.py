"""Small files in the formats of the data sets' publishers, for the tests of the builders."""

import contextlib
import io
import json
import logging
import resource
from pathlib import Path

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
