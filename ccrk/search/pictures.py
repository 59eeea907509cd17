"""The pictures of a source: which there are, and what becomes of each before a model sees it."""

import datetime
import hashlib
import io
import math
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import datasets
import fsspec
from fsspec.asyn import AsyncFileSystem
from PIL import Image

from data_scripts.cli import one_line
from data_scripts.formats import PICTURES, is_url, stem_and_ending
from data_scripts.images import MISSING, UNREADABLE, BadImage, picture_name, read_image
from data_scripts.sources import FORMATS, PATTERN_LETTERS
from data_scripts.text import files_below
from pictures_ccrk import MAX_BYTES

NO_UNICODE = "file name is no Unicode"
NO_LIST = "folder cannot be listed; its pictures stay as they were"
TWO_FILES = "two files of one name, but for accents"
# Not of the file: it may be read another time, though nothing in it has changed.
PASSING = (MISSING, UNREADABLE)

STORED_SIDE = 256  # pixels of the shorter side of a stored picture, at least
STORED_QUALITY = 85  # of its JPEG


# A column of the index holds 64 bits: the years 1677 to 2262.
EARLIEST_NS, LATEST_NS = -(2**63) + 1, 2**63 - 2


def within_range(nanoseconds: int) -> int:
    """The nearest time that an index can hold."""
    return min(max(nanoseconds, EARLIEST_NS), LATEST_NS)


class Item(NamedTuple):
    """A picture of a source, not yet read."""

    path: str  # below the source, of `picture_name`; in a data set the `image_id`
    size: int | None  # bytes; None where only the contents tell whether it has changed
    mtime_ns: int | None  # of `within_range`
    read: Callable[[], bytes]


@dataclass
class Source:
    """What is to be indexed."""

    items: list[Item]
    bad: dict[str, str]  # path → why it cannot be an item
    others: Counter[str]  # endings of files that are no pictures known here
    folder: str | None = None  # where they are files
    unlisted: tuple[str, ...] = ()  # beginnings of paths that may be there and could not be looked for

    def check(self) -> None:
        """Raises ValueError where the folder is there no longer: then nobody knows what has been deleted."""
        if self.folder is not None and not os.path.isdir(self.folder):
            raise ValueError(
                f"{self.folder} is gone; is its disk mounted? What was read is kept; run the same command to continue"
            )


@dataclass
class Prepared:
    """A picture after it was read: one of equal contents is in the index, or it is damaged, or it is to be encoded."""

    item: Item
    digest: str | None = None  # of the contents
    picture: Image.Image | None = None
    jpeg: bytes | None = None
    reason: str | None = None


def open_source(source: str, load: Callable[[], datasets.Dataset]) -> Source:
    """The pictures in a folder, at any depth, on a disk or an object store; of anything else those of a data set.

    Args:
        load: gives the rows of a data set, where SOURCE is not a folder, or is one that holds a table and no images.

    Raises:
        ValueError, FileNotFoundError: there is neither, or the object store does not answer.
    """
    is_pattern = any(letter in source for letter in PATTERN_LETTERS)
    is_table = stem_and_ending(source)[1] in FORMATS
    if os.path.isdir(source) or (is_url(source) and not is_pattern and not is_table):
        found = pictures_at(source) if is_url(source) else pictures_in(source)
        holds_tables = found.others.keys() & FORMATS.keys()
        if found.items or found.bad or (not holds_tables and (found.others or not is_url(source))):
            return found
    elif os.path.isabs(source) and not os.path.exists(source) and not is_pattern:
        raise FileNotFoundError(f"there is no folder {source}; is its disk mounted?")
    return pictures_of(load())


def pictures_in(folder: str) -> Source:
    """Every file below a folder that is called as pictures are. Links are followed."""
    root = os.path.join(os.path.abspath(folder), "")
    found = _Files()
    unlisted: list[str] = []
    for file in files_below(root, "*", lambda error: unlisted.append(os.path.join(error.filename, "")[len(root) :])):
        if (path := found.path_of(name := str(file)[len(root) :])) is None:
            continue
        try:
            status = file.stat()
        except OSError:  # gone since
            continue
        found.add(Item(path, status.st_size, within_range(status.st_mtime_ns), _reader(file)), name)
    found.bad |= {name or root: NO_LIST for name in unlisted}
    beginnings = tuple(unicodedata.normalize("NFC", name).replace(os.sep, "/") for name in unlisted)
    return Source(list(found.items.values()), found.bad, found.others, root, beginnings)


def pictures_at(url: str) -> Source:
    """Every object below a URL that fsspec knows, such as `s3://bucket/photos`, that is called as pictures are.

    Raises:
        ValueError: it cannot be listed: the package for such URLs is lacking, or the store refuses or is away.
    """
    try:
        filesystem, root = fsspec.url_to_fs(url)
        filesystem.invalidate_cache()  # of listings, in a process that has listed it before
        objects = _objects(filesystem, root)
    except Exception as error:  # each store has errors of its own
        raise ValueError(f"{url} cannot be listed: {one_line(str(error))}") from error
    root, found = root.rstrip("/") + "/", _Files()
    for key, about in objects.items():
        name = key.removeprefix(root)
        if name != key and (path := found.path_of(name)) is not None:
            size = about.get("size")
            found.add(Item(path, size, _modified(about), _object_reader(filesystem, key, size)), name)
    return Source(list(found.items.values()), found.bad, found.others)


def _objects(filesystem: fsspec.AbstractFileSystem, root: str) -> dict[str, dict]:
    """
    Key → what its store says, of every object below a folder. By a way of the store's own where there is one: fsspec's
    goes through folder by folder, and leaves out those that it cannot list, whose pictures would be taken for deleted.
    """
    is_async = isinstance(filesystem, AsyncFileSystem)
    base, name = (AsyncFileSystem, "_find") if is_async else (fsspec.AbstractFileSystem, "find")
    if getattr(type(filesystem), name) is not getattr(base, name):
        return filesystem.find(root, detail=True)
    found, folders, seen = {}, [root.rstrip("/")], set()
    while folders:
        seen.add(folder := folders.pop())
        for about in filesystem.ls(folder, detail=True):
            key = about["name"]
            if about["type"] != "directory":
                found[key] = about
            elif key.startswith(f"{folder}/") and (key := key.rstrip("/")) not in seen:
                folders.append(key)
    return found


class _Files:
    """What comes together while files are listed: the parts of a `Source`."""

    def __init__(self):
        self.items: dict[str, Item] = {}
        self.bad: dict[str, str] = {}
        self.others: Counter[str] = Counter()

    def path_of(self, name: str) -> str | None:
        """The path of the picture of a name below the source; None, and counted, where it is none."""
        ending = os.path.splitext(name)[1].lower()
        if ending not in PICTURES:
            of_table = stem_and_ending(name)[1]
            self.others[of_table if of_table in FORMATS else ending] += 1
            return None
        try:
            return picture_name(name)
        except UnicodeEncodeError:
            self.bad[name.encode(errors="backslashreplace").decode()] = NO_UNICODE
        except BadImage as error:
            self.bad[name] = error.reason
        return None

    def add(self, item: Item, name: str) -> None:
        if item.path in self.items:
            self.bad[name] = TWO_FILES
        else:
            self.items[item.path] = item


def _modified(about: dict) -> int | None:
    """When an object was written, in nanoseconds since 1970; None where its store does not say."""
    names = ("LastModified", "last_modified", "updated", "mtime", "created")  # S3, Azure, Google, SFTP, memory
    moment = next((about[name] for name in names if about.get(name)), None)
    if isinstance(moment, str):
        try:
            moment = datetime.datetime.fromisoformat(moment)
        except ValueError:
            return None
    if isinstance(moment, datetime.datetime):
        try:
            moment = moment.timestamp()
        except (ValueError, OverflowError, OSError):  # without a zone, in the year 1 or 9999
            return None
    if not isinstance(moment, int | float) or not math.isfinite(moment):
        return None
    return within_range(round(moment * 1e9))


def _object_reader(filesystem: fsspec.AbstractFileSystem, key: str, size: int | None) -> Callable[[], bytes]:
    def read() -> bytes:
        try:
            return filesystem.cat_file(key, end=MAX_BYTES + 1 if size is None or size > MAX_BYTES else None)
        except FileNotFoundError as error:
            raise BadImage(MISSING, key) from error
        except Exception as error:  # each store has errors of its own
            raise BadImage(UNREADABLE, key) from error

    return read


def _reader(file: Path) -> Callable[[], bytes]:
    def read() -> bytes:
        try:
            with open(file, "rb") as opened:
                return opened.read(MAX_BYTES + 1)  # one byte too many is refused
        except FileNotFoundError as error:
            raise BadImage(MISSING, str(file)) from error
        except OSError as error:
            raise BadImage(UNREADABLE, str(file)) from error

    return read


def pictures_of(dataset: datasets.Dataset) -> Source:
    """Every picture of a data set's rows; rows with one `image_id` are one picture."""
    images = dataset.select_columns(["image"]).cast_column("image", datasets.Image(decode=False))

    def reader(row: int) -> Callable[[], bytes]:
        def read() -> bytes:
            image = images[row]["image"]
            if image["bytes"] is not None:
                return image["bytes"]
            return _reader(Path(image["path"]))()

        return read

    rows = {image_id: row for row, image_id in reversed(list(enumerate(dataset["image_id"])))}
    return Source([Item(path, None, None, reader(row)) for path, row in reversed(rows.items())], {}, Counter())


def digest_of(contents: bytes) -> str:
    """By which equal files are known."""
    return hashlib.blake2b(contents, digest_size=16).hexdigest()


def prepare(item: Item, known: Collection[str], side: int) -> Prepared:
    """Reads a picture, decodes it at a reduced scale, and makes the small JPEG that the index stores.

    Args:
        known: digests of contents that the index has already; these are not decoded.
        side: pixels that both sides keep, if they have as many.
    """
    digest = None
    try:
        contents = item.read()
        digest = digest_of(contents)
        if digest in known:
            return Prepared(item, digest)
        picture = _reduced(read_image(contents, target_size=side, where=item.path), side)
    except BadImage as error:
        return Prepared(item, digest, reason=error.reason)
    return Prepared(item, digest, picture, _small_jpeg(picture, side))


def _reduced(picture: Image.Image, side: int) -> Image.Image:
    """At a whole fraction of its size, both sides not below `side`: what waits for the model takes little memory."""
    factor = min(picture.size) // side
    return picture.reduce(factor) if factor > 1 else picture


def _small_jpeg(picture: Image.Image, side: int) -> bytes:
    """Its shorter side is `side` at most, its longer one four times that."""
    scale = min(1, side / min(picture.size), 4 * side / max(picture.size))
    if scale < 1:
        picture = picture.resize([max(1, round(scale * length)) for length in picture.size])
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=STORED_QUALITY, comment=b"")  # which alone Pillow would take over
    return buffer.getvalue()


def endings(others: Counter[str]) -> str:
    """The most frequent endings of files, with their numbers, for messages."""
    return one_line(", ".join(f"{ending or 'no ending'} {count:,}" for ending, count in others.most_common(9)))


def names(paths: Sequence[str], limit: int = 3) -> str:
    """The first of some paths, for messages."""
    return ", ".join(paths[:limit]) + (", …" if len(paths) > limit else "")
