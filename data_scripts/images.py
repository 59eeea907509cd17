"""The one place where an image file becomes an RGB picture, or a `BadImage` that says why not."""

import base64
import binascii
import io
import os
from pathlib import PurePosixPath, PureWindowsPath

from PIL import Image

from processing_ccrk import DECODING_ERRORS, make_upright, to_rgb

# What is read: the formats of photographs on the web. Others of Pillow's stay closed: EPS, for one, runs Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM")
# Pixels a side. Less is a placeholder or a tracking pixel.
MIN_SIDE = 8

MISSING = "image file missing"
UNREADABLE = "image file cannot be opened"
OUTSIDE = "image path leaves its folder"
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


def inside(folder: str | os.PathLike, name: str) -> str:
    """The absolute path of `name` in `folder`, whether it exists or not.

    Raises:
        BadImage: it would lead out of the folder: absolute, with a drive letter, by `..` or by a symbolic link.
    """
    path = PureWindowsPath(name)  # knows drives and both separators
    if not path.name or path.anchor or ".." in path.parts or "\0" in name:
        raise BadImage(OUTSIDE, repr(name))
    root = os.path.realpath(folder)
    resolved = os.path.realpath(os.path.join(root, name))
    if os.path.commonpath((root, resolved)) != root:
        raise BadImage(OUTSIDE, repr(name))
    return os.path.join(os.path.abspath(folder), name)


def locate(folder: str | os.PathLike, name: str) -> str:
    """Finds an image below a folder, whichever of the folders in its name that folder itself is.

    `coco/val2014/a.jpg` is looked for as that, as `val2014/a.jpg` and as `a.jpg`.

    Raises:
        BadImage: `OUTSIDE` as `inside` does, or `MISSING`.
    """
    parts = PurePosixPath(name).parts
    for start in range(max(1, len(parts))):
        path = inside(folder, os.path.join(*parts[start:]) if start else name)
        if os.path.exists(path):
            return path
    raise BadImage(MISSING, f"{name} in {os.path.abspath(folder)}")
