"""Tars of samples, as WebDataset and img2dataset write them."""

import json
import os
import tarfile
from collections.abc import Iterator
from typing import Any, BinaryIO

from data_scripts.annotations import BROKEN_JSON
from data_scripts.formats import PICTURES, UNREAD, Table, open_file
from data_scripts.problems import Problems

SECOND_IMAGE = "further image of a sample of a tar; only the first is read"
DOTTED_IMAGE = "image whose name has a dot before its ending; rename it, since a sample's name ends at its first dot"
SECOND_FILE = "further file of one name in a sample of a tar; only the first is read"
NOT_CONTENTS = "entry of a tar without contents of its own: a link to no earlier file, a device or a sparse file"


class WebDataset(Table):
    """A tar of samples: files that share all of their name up to its first dot, one after another.

    A record has its image as `image`, whatever its ending, text by its ending, and the fields of a `.json` as columns
    of their own. `__key__` is the shared name. Further images of a sample and further files of one name are counted,
    and links to what does not stand before them.
    """

    def records(self, problems: Problems) -> Iterator[tuple[dict, list[tuple[str, int, int]], str]]:
        key, files = None, []
        places: dict[str, tuple[int, int]] = {}  # of the contents of each file so far, for links to it
        with open_file(self.path) as file:
            for member in self._members(file):
                place = member.offset_data, member.size
                folder, name = os.path.split(member.name)
                if name.startswith(".") or member.isdir():  # macOS puts notes on files beside them
                    continue
                if member.islnk() or member.issym():
                    target = member.linkname if member.islnk() else os.path.join(folder, member.linkname)
                    place = places.get(os.path.normpath(target))
                if place is None or member.issparse() or not (member.isfile() or member.islnk() or member.issym()):
                    problems.absent(NOT_CONTENTS, f"{self.path}, {member.name}")
                    continue
                places[os.path.normpath(member.name)] = place
                own_key, _, ending = name.partition(".")
                own_key = os.path.join(folder, own_key)
                if own_key != key and files:
                    yield from self._sample(key, files, problems)
                    files = []
                key = own_key
                files.append((ending.lower(), *place, member.name))
        if files:
            yield from self._sample(key, files, problems)

    def _members(self, file: BinaryIO) -> Iterator[tarfile.TarInfo]:
        """
        All members, of all tars that were joined to this one: `tarfile` takes the zeros between two of them, and a
        damaged header, for the end.

        Raises:
            ValueError: after them there is something else, or no end.
        """
        start = 0
        while start is not None:
            file.seek(start)
            try:
                with tarfile.open(fileobj=file, mode="r:") as archive:
                    yield from archive
                    stop = archive.offset
            except tarfile.TarError as error:
                raise self._damaged(str(error)) from error
            if (after := _first_after_zeros(file, stop)) == stop:
                raise self._damaged(f"damaged or cut off at byte {stop:,}")
            start = after

    def _damaged(self, reason: str) -> ValueError:
        return ValueError(f"{self.path} is not a whole, uncompressed tar ({reason}); download or write it again")

    def _sample(self, key: str, files: list, problems: Problems) -> Iterator[tuple[dict, Any, str]]:
        where = f"{self.path}, {key}"
        problems.rows += 1
        used: dict[str, tuple[str, int, int]] = {}
        for ending, start, size, name in files:
            is_image = f".{ending.rpartition('.')[2]}" in (*PICTURES, *UNREAD)
            if is_image and "." in ending:
                problems.absent(DOTTED_IMAGE, f"{self.path}, {name}")
            elif (column := "image" if is_image else ending) in used:
                problems.absent(SECOND_IMAGE if is_image else SECOND_FILE, f"{self.path}, {name}")
            else:
                used[column] = (ending, start, size)
        position = [("__key__", key, 0), *used.values()]
        try:
            yield self.read(position), position, where
        except UnicodeDecodeError:
            problems.bad("text is not UTF-8", where)
        except (ValueError, RecursionError):
            problems.bad(BROKEN_JSON, where)

    def read(self, position: list[tuple[str, Any, int]]) -> dict:
        record: dict[str, Any] = {}
        picture = None
        with open_file(self.path) as archive:
            for ending, start, size in position:
                if ending == "__key__":
                    record[ending] = start
                    continue
                archive.seek(start)
                contents = archive.read(size)
                if f".{ending}" in (*PICTURES, *UNREAD):
                    picture = {"bytes": contents, "path": f"{record['__key__']}.{ending}"}
                elif ending == "json":
                    fields = json.loads(contents.decode("utf-8-sig"))
                    if not isinstance(fields, dict):
                        raise ValueError("no object")
                    record |= fields
                elif ending.split(".")[-1] in ("txt", "text", "caption"):
                    record[ending] = contents.decode("utf-8-sig").strip()
        return record if picture is None else record | {"image": picture}


def _first_after_zeros(file: BinaryIO, start: int) -> int | None:
    """Where the first block after zeros begins; None where zeros end the file, `start` where there are none."""
    file.seek(start)
    position = start
    while block := file.read(tarfile.BLOCKSIZE):
        if block.strip(b"\0"):
            return position
        position += len(block)
    return start if position == start else None
