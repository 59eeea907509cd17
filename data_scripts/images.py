"""Where a data set's images are. What becomes of them is in `pictures_ccrk`, which travels with checkpoints."""

import hashlib
import os
import stat
import unicodedata
from collections.abc import Sequence
from pathlib import PureWindowsPath
from typing import NamedTuple

from pictures_ccrk import (
    BOMB,
    DAMAGED,
    EMPTY,
    EMPTY_PATH,
    MISSING,
    NO_IMAGE,
    NOT_A_SOURCE,
    NOT_AN_IMAGE,
    NOT_BASE64,
    TOO_SMALL,
    UNREADABLE,
    WRONG_RANGE,
    WRONG_SHAPE,
    BadImage,
    decode_base64,
    read_image,
)

OUTSIDE = "image path leaves its folder"
TOO_LONG = "image path is too long or too deep"
NOT_A_FILE = "image is no file"


# A path with more bytes names no file on any common system; and nobody's folders are as deep, while each takes a look.
MAX_NAME_BYTES = 4096
MAX_FOLDERS = 64
# Pictures whose places an `ImageFolder` remembers: some 30 MB.
MAX_REMEMBERED = 100_000


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
    if path.drive:
        raise BadImage(OUTSIDE, f"{name[:100]!r}, an absolute path of Windows; write it relative to image_dir")
    if path.anchor:
        raise BadImage(OUTSIDE, f"{name[:100]!r}, an absolute path; set image_dir to a folder above it")
    if not path.name or ".." in path.parts or "\0" in name:
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


def contents_digest(image: str | bytes | dict | None) -> bytes:
    """
    16 bytes that equal files share, whatever their names: a digest of a file's contents, not of its pixels.

    Args:
        image: a path, the bytes of a file, or either as `datasets.Image(decode=False)` gives them.

    Raises:
        BadImage: there is none.
        OSError: the file cannot be read.
    """
    if isinstance(image, dict):
        image = image["path"] if image["bytes"] is None else image["bytes"]
    if image is None:
        raise BadImage(NO_IMAGE, "")
    if isinstance(image, bytes):
        return hashlib.blake2b(image, digest_size=16).digest()
    with open(image, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).digest()


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
            if len(self._looked_for) >= MAX_REMEMBERED:  # of a stream
                self._looked_for.clear()
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


__all__ = [
    "BOMB",
    "DAMAGED",
    "EMPTY",
    "EMPTY_PATH",
    "MISSING",
    "NOT_AN_IMAGE",
    "NOT_A_FILE",
    "NOT_A_SOURCE",
    "NOT_BASE64",
    "NO_IMAGE",
    "OUTSIDE",
    "TOO_LONG",
    "TOO_SMALL",
    "UNREADABLE",
    "WRONG_RANGE",
    "WRONG_SHAPE",
    "BadImage",
    "Found",
    "ImageFolder",
    "contents_digest",
    "decode_base64",
    "find_file",
    "is_same_name",
    "picture_name",
    "read_image",
    "relative_name",
    "with_folder",
]
