"""The one place where an image file becomes an RGB picture, or a `BadImage` that says why not."""

import base64
import binascii
import io
import os
import stat
import unicodedata
from collections.abc import Sequence
from pathlib import PureWindowsPath

from PIL import Image

from processing_ccrk import DECODING_ERRORS, make_upright, to_rgb

# What is read: the formats of photographs on the web. Others of Pillow's stay closed: EPS, for one, runs Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM")
# Pixels a side. Less is a placeholder or a tracking pixel.
MIN_SIDE = 8

MISSING = "image file missing"
UNREADABLE = "image file cannot be opened"
OUTSIDE = "image path leaves its folder"
TOO_LONG = "image path is too long"
NOT_A_FILE = "image is no file"
EMPTY = "image of zero bytes"
NOT_BASE64 = "image is no base64"
NOT_AN_IMAGE = "not an image"
DAMAGED = "image truncated or damaged"
BOMB = "image is a decompression bomb"
TOO_SMALL = f"image smaller than {MIN_SIDE} pixels"

# The first bytes of the formats above: a file that has them and is not understood is damaged, others are no images.
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"P5", b"P6")


class BadImage(ValueError):
    """An image that cannot be used; `reason` is one of this module's constants."""

    def __init__(self, reason: str, where: str):
        super().__init__(f"{reason}: {where}")
        self.reason = reason
        self.where = where

    def __reduce__(self):  # it crosses from workers to the main process
        return BadImage, (self.reason, self.where)


def read_image(
    source: str | os.PathLike | bytes | dict | Image.Image, target_size: int | None = None, where: str | None = None
) -> Image.Image:
    """Opens an image as RGB, as `processing_ccrk.to_rgb` makes it.

    EXIF orientation is applied; an animation gives its first frame.

    Args:
        source: a path, the encoded bytes, either as `datasets.Image(decode=False)` gives them, or a decoded picture.
        target_size: side in pixels of the square that the picture will be resized to. A JPEG file is then decoded at
            1/2, 1/4 or 1/8 of its size as long as both sides keep as many pixels.
        where: names the image in errors; the path by default.

    Raises:
        BadImage: for each reason among this module's constants but `OUTSIDE` and `NOT_BASE64`.
    """
    if isinstance(source, Image.Image):
        return to_rgb(source)
    if isinstance(source, dict):
        source = source["bytes"] if source["bytes"] is not None else source["path"]
    if isinstance(source, bytes):
        contents, where = source, where or "bytes"
    else:
        where = where or os.fspath(source)
        try:
            with open(source, "rb") as file:
                contents = file.read()
        except FileNotFoundError as error:
            raise BadImage(MISSING, where) from error
        except (OSError, ValueError) as error:  # ValueError: a null character in the path
            raise BadImage(UNREADABLE, where) from error
    if not contents:
        raise BadImage(EMPTY, where)
    try:
        with Image.open(io.BytesIO(contents), formats=FORMATS) as image:
            if min(image.size) < MIN_SIDE:
                raise BadImage(TOO_SMALL, where)
            if target_size is not None:
                image.draft(None, (target_size, target_size))
            image.load()
            make_upright(image)
            return to_rgb(image)
    except BadImage:
        raise
    except Image.DecompressionBombError as error:
        raise BadImage(BOMB, where) from error
    except Image.UnidentifiedImageError as error:
        known = contents.startswith(_MAGIC) or contents[4:12] == b"ftypavif"
        raise BadImage(DAMAGED if known else NOT_AN_IMAGE, where) from error
    except DECODING_ERRORS as error:
        raise BadImage(DAMAGED, where) from error


def decode_base64(text: str | bytes, where: str) -> bytes:
    """The bytes of an image that is stored as base64; BadImage where they are not."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:  # ValueError: letters beyond ASCII
        raise BadImage(NOT_BASE64, where) from error


# A path with more bytes names no file on any common system, and its many tails would take for ever to look up.
MAX_NAME_BYTES = 4096


def picture_name(name: str) -> str:
    """A picture's name as annotations have it, in the one form that equal pictures share.

    A relative path: `/` between folders, neither `.` nor doubled separators, accents composed. It is taken as written
    otherwise: case, folders and ending are part of it.

    Raises:
        BadImage: it would lead out of its folder: absolute, with a drive letter, or by `..`.
    """
    path = PureWindowsPath(name)  # knows drives and both separators
    if not path.name or path.anchor or ".." in path.parts or "\0" in name:
        raise BadImage(OUTSIDE, repr(name))
    if len(name.encode()) > MAX_NAME_BYTES:
        raise BadImage(TOO_LONG, repr(name[:100]))
    return unicodedata.normalize("NFC", path.as_posix())


def is_tail(name: str, other: str) -> bool:
    """Whether one of two names is the end of the other: `val2014/a.jpg` of `coco/val2014/a.jpg`."""
    return f"/{other}".endswith(f"/{name}") or f"/{name}".endswith(f"/{other}")


def find_file(folder: str | os.PathLike, name: str) -> str | None:
    """The path of a file in a folder, following the owner's links; None where there is none.

    Args:
        name: of `picture_name`.

    Raises:
        BadImage: what is there cannot be read, or is no file.
    """
    # macOS writes accents apart from their letters.
    for form in dict.fromkeys((name, unicodedata.normalize("NFD", name))):
        path = os.path.join(os.path.abspath(folder), form)
        try:
            mode = os.stat(path).st_mode
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise BadImage(UNREADABLE, f"{path} ({error.strerror})") from error
        if not stat.S_ISREG(mode):  # opening a pipe would wait for its writer
            raise BadImage(NOT_A_FILE, path)
        return path
    return None


class ImageFolder:
    """Pictures below a folder, whichever of the folders in their names that folder itself is.

    `coco/val2014/a.jpg` is looked for as that, as `val2014/a.jpg` and as `a.jpg`.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = os.path.abspath(folder)
        self.dropped: dict[str, str] = {}  # beginnings of names that led to no folder, each with the first such name

    def locate(self, name: str) -> tuple[str, str]:
        """A picture's path, and its name relative to the folder.

        Raises:
            BadImage: there is none, or `find_file` or `picture_name` says why not.
        """
        whole = picture_name(name)
        for start in [0, *(place + 1 for place, letter in enumerate(whole) if letter == "/")]:
            if (path := find_file(self.folder, whole[start:])) is not None:
                if start:
                    self.dropped.setdefault(whole[: start - 1], name)
                return path, whole[start:]
        raise BadImage(MISSING, f"{name} in {self.folder}")

    def identity(self, name: str) -> str:
        """What a picture is called, the same for each of its names, whether it is there or not."""
        try:
            return self.locate(name)[1]
        except BadImage as error:
            if error.reason in (OUTSIDE, TOO_LONG):
                return name
        whole = picture_name(name)
        beginnings = [beginning for beginning in self.dropped if whole.startswith(f"{beginning}/")]
        parts = whole.split("/")[:-1]
        beginnings += ["/".join(parts[:end]) for end in range(1, len(parts) + 1) if self._is_here(parts[:end])]
        return whole.removeprefix(max(beginnings, key=len) + "/") if beginnings else whole

    def _is_here(self, folders: Sequence[str]) -> bool:
        return f"{self.folder}/".endswith(f"/{'/'.join(folders)}/")

    def contradiction(self) -> tuple[str, str] | None:
        """Two names of which one says that this is its folder, and the other was found as if it were its own."""
        own = [name for beginning, name in self.dropped.items() if self._is_here(beginning.split("/")[-1:])]
        others = [name for beginning, name in self.dropped.items() if name not in own]
        return (own[0], others[0]) if own and others else None
