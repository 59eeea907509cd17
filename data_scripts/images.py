"""The one place where an image file becomes an RGB picture, or a `BadImage` that says why not."""

import base64
import binascii
import io
import os
import stat
import unicodedata
from collections.abc import Sequence
from pathlib import PureWindowsPath
from typing import NamedTuple

from PIL import Image

from processing_ccrk import DECODING_ERRORS, make_upright, to_rgb

# What is read: the formats of photographs on the web. Others of Pillow's stay closed: EPS, for one, runs Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM")
# Pixels a side. Less is a placeholder or a tracking pixel.
MIN_SIDE = 8

MISSING = "image file missing"
UNREADABLE = "image file cannot be opened"
OUTSIDE = "image path leaves its folder"
TOO_LONG = "image path is too long or too deep"
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
            if os.path.exists(source) and not os.path.isfile(source):  # a pipe would wait for someone to write to it
                raise BadImage(UNREADABLE, where)
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


# A path with more bytes names no file on any common system; and nobody's folders are as deep, while each takes a look.
MAX_NAME_BYTES = 4096
MAX_FOLDERS = 64


def picture_name(name: str) -> str:
    """A picture's name as annotations have it, in the one form that equal pictures share.

    A relative path: `/` between folders, neither `.` nor doubled separators, accents composed (NFC). It is taken as
    written otherwise: case, folders and ending are part of it.

    Raises:
        BadImage: it would lead out of its folder: absolute, with a drive letter, or by `..`; or it is too long.
    """
    return unicodedata.normalize("NFC", relative_name(name))


def relative_name(name: str) -> str:
    """A picture's name as it is to be looked for; as `picture_name`, but with accents as they are written."""
    if len(name) > MAX_NAME_BYTES or len(name.encode()) > MAX_NAME_BYTES:
        raise BadImage(TOO_LONG, repr(name[:100]))
    path = PureWindowsPath(name)  # knows drives and both separators
    if not path.name or path.anchor or ".." in path.parts or "\0" in name:
        raise BadImage(OUTSIDE, repr(name))
    if len(path.parts) > MAX_FOLDERS + 1:
        raise BadImage(TOO_LONG, repr(name[:100]))
    return path.as_posix()


def is_same_name(name: str, other: str) -> bool:
    """Whether two names may be one picture's: `val2014/a.jpg` and `./coco/val2014/a.jpg`, or are none at all."""
    try:
        one, two = f"/{picture_name(name)}", f"/{picture_name(other)}"
    except BadImage:  # which is counted where it is looked for
        return True
    return one.endswith(two) or two.endswith(one)


def with_folder(folder: str, name: str) -> str:
    """A name that begins with the folder it is in: `a.jpg`, `./a.jpg`, `val2014/a.jpg` in `coco/val2014`."""
    try:
        name = relative_name(name)
    except BadImage:
        return name  # it will be said where the picture is looked for
    parts = folder.split("/")
    for start in range(len(parts)):
        if name.startswith(beginning := "/".join([*parts[start:], ""])):
            return f"{folder}/{name.removeprefix(beginning)}"
    return f"{folder}/{name}"


def find_file(folder: str | os.PathLike, name: str) -> str | None:
    """The path of a file in a folder, following the owner's links; None where there is none.

    Args:
        name: relative to the folder, as `picture_name` has it or as written.

    Raises:
        BadImage: what is there cannot be read, or is no file.
    """
    # macOS writes accents apart from their letters.
    forms = (name, *(unicodedata.normalize(form, name) for form in ("NFC", "NFD")))
    for path in (os.path.join(os.path.abspath(folder), form) for form in dict.fromkeys(forms)):
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


class Found(NamedTuple):
    """A picture in an `ImageFolder`."""

    path: str
    name: str  # relative to the folder, of `picture_name`
    guess: str  # the folders that its name begins with and that were left out at a guess


class ImageFolder:
    """Pictures in a folder that may be one of those which their names begin with.

    `coco/val2014/a.jpg` is looked for as that, as `val2014/a.jpg` and as `a.jpg`. What is left out of a name is this
    folder's own path, or of the folders in which the data set is published; anything else is a guess, which whoever
    asks must check: `dogs/a.jpg` in a folder of cats.

    Args:
        published: folders in which the data set's pictures are published, such as `coco/val2014`.
    """

    def __init__(self, folder: str | os.PathLike, published: Sequence[str] = ()):
        self.folder = os.path.abspath(folder)
        self.published = published
        self._looked_for: dict[str, Found | BadImage] = {}  # a picture has many captions

    def find(self, name: str) -> Found:
        """Where a picture is.

        Raises:
            BadImage: it is not there, or `picture_name` or `find_file` says why not.
        """
        if name not in self._looked_for:
            try:
                self._looked_for[name] = self._find(relative_name(name))
            except BadImage as error:
                self._looked_for[name] = error
        found = self._looked_for[name]
        if isinstance(found, BadImage):
            raise BadImage(found.reason, found.where)
        return found

    def _find(self, name: str) -> Found:
        for start in [0, *(place + 1 for place, letter in enumerate(name) if letter == "/")]:
            if (path := find_file(self.folder, name[start:])) is not None:
                left_out = name[: max(0, start - 1)]
                guess = "" if self.is_own(left_out) or self._is_published(left_out) else left_out
                return Found(path, picture_name(name[start:]), guess)
        raise BadImage(MISSING, f"{name} in {self.folder}")

    def is_own(self, folders: str) -> bool:
        """Whether this folder's path ends with others."""
        return f"{self.folder}/".endswith(f"/{folders}/")

    def _is_published(self, folders: str) -> bool:
        return any(f"/{folders}/" in f"/{published}/" for published in self.published)

    def elsewhere(self, found: Found) -> str | None:
        """The folder beside or above this one in which a guessed picture's whole name is, where there is one."""
        above = self.folder
        for _ in found.guess.split("/"):
            above = os.path.dirname(above)
        return above if os.path.exists(os.path.join(above, found.guess, found.name)) else None
