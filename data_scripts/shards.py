"""Reading pre-training shards where they lie: what a line may hold, an index of the usable ones, and their rows.

A line is one image in JSON:

    {"caption": {"en": "…", "de": "…"}, "image_path": "….jpg"}
    {"caption": [{"en": "…"}, {"en": "…"}], "image": "base64 of the file"}   or "binary"

A path goes before what is inline, and null or an empty text is as good as nothing.

This is apart from the builder because `datasets` gives a builder's module an `open` of its own, for remote files.
"""

import hashlib
import json
import logging
import os
import re
import tempfile
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import datasets
import numpy as np
import torch
from tqdm import tqdm

from data_scripts.captions import caption_problem, report_tags, what_is
from data_scripts.images import (
    EMPTY_PATH,
    MISSING,
    NO_IMAGE,
    BadImage,
    decode_base64,
    find_file,
    picture_name,
    read_image,
    relative_name,
)
from data_scripts.problems import Problems
from data_scripts.rows import is_text, row_features
from data_scripts.text import NOT_UTF8, check_encoding, files_below, is_blank_line, numbered_lines

logger = logging.getLogger(__name__)

NOT_JSON = "line is no JSON"
NO_LANGUAGE = "no caption in the languages asked for"

SHARD_CONTENTS = "one JSON object on each line"
# How gzip, bzip2, xz, Zstandard and zip begin.
_PACKED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"(\xb5/\xfd", b"PK\x03\x04")

# Where the lines of the usable rows lie: number of the shard, length and offset in bytes.
INDEX_TYPE = np.dtype([("shard", "<i4"), ("length", "<i4"), ("offset", "<i8")])


class BadRow(ValueError):
    """A line that cannot be used; `reason` is the kind, in words that are the same for all of it."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


def find_shards(folder: str | os.PathLike, sets: Sequence[str] | None = None) -> list[Path]:
    """All `part_*.data` below a folder, or below its subfolders named `sets`, in the order of their names.

    Raises:
        FileNotFoundError: there is none.
        ValueError: one holds no lines of text, but a JSON array or packed bytes.
    """
    shards = []
    for part in [Path(folder) / name for name in sets] if sets else [Path(folder)]:
        found = files_below(part, "part_*.data")
        if not found:
            names = (path.name for path in part.rglob("*") if re.search(r"^part|\.data|\.jsonl?\b", path.name))
            likely = sorted(islice(names, 5))
            raise FileNotFoundError(
                f"there is no part_*.data in {part}"
                + (f", but {', '.join(likely)}" if likely else "")
                + f"; data_dir should hold pre-training shards: files of that name, unpacked, with {SHARD_CONTENTS}"
            )
        shards += found
    for shard in shards:
        check_shard(shard)
    return shards


def check_shard(path: Path) -> None:
    """Raises ValueError where a file begins as no shard does."""
    with open(path, "rb") as file:
        beginning = file.read(64)
    if beginning.startswith(_PACKED):
        raise ValueError(f"{path} is packed; unpack it, a shard is {SHARD_CONTENTS}")
    cure = f"write it again with {SHARD_CONTENTS}"
    check_encoding(path, beginning, cure)
    if beginning.decode("utf-8-sig", errors="ignore").lstrip().startswith("["):
        raise ValueError(f"{path} is a JSON array; {cure}")


def parse_row(line: bytes) -> dict:
    """The JSON object of a line. Raises BadRow where it is none, or has no captions."""
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise BadRow(NOT_UTF8) from error
    except (ValueError, RecursionError) as error:  # a thousand brackets exceed what the parser nests
        raise BadRow(NOT_JSON) from error
    if not isinstance(row, dict):
        raise BadRow(f"line is {what_is(row)}, not a JSON object")
    if "caption" not in row:
        raise BadRow("caption is missing")
    if row["caption"] == []:
        raise BadRow("caption is an empty list")
    for caption in caption_objects(row):
        if not isinstance(caption, dict):
            holds = "holds" if isinstance(row["caption"], list) else "is"
            raise BadRow(f"caption {holds} {what_is(caption)}, not an object of language and text")
    return row


def caption_objects(row: dict) -> list[dict[str, str]]:
    """A parsed row's captions, each with its translations."""
    return row["caption"] if isinstance(row["caption"], list) else [row["caption"]]


def read_captions(row: dict, languages: Sequence[str]) -> tuple[dict[str, list[str | None]], set[str]]:
    """The usable captions of a parsed row in each language, and the reasons why others are not.

    Captions of equal position are of one object, and so translations of one another; None stands for one that is
    missing where another follows.

    Raises:
        BadRow: there is no usable one.
    """
    usable, problems = [], set()
    for caption in caption_objects(row):
        reasons = {language: caption_problem(caption[language]) for language in languages if language in caption}
        problems.update(filter(None, reasons.values()))
        if found := {language: caption[language] for language, reason in reasons.items() if reason is None}:
            usable.append(found)
    if not usable:
        raise BadRow(min(problems, default=NO_LANGUAGE))
    captions = {language: [found.get(language) for found in usable] for language in languages}
    for texts in captions.values():
        while texts and texts[-1] is None:
            texts.pop()
    return captions, problems


def image_source(row: dict) -> tuple[str | None, str | None]:
    """A parsed row's image path, as `relative_name` has it, or else its base64.

    Raises:
        BadRow: there is neither.
        BadImage: the path leads out of its folder.
    """
    name, inline = row.get("image_path"), row.get("image") or row.get("binary")
    if name is not None and not is_text(name):
        raise BadRow(f"image_path is {what_is(name)}, not text")
    if name and not name.isspace():
        return relative_name(name), None
    if inline and not isinstance(inline, str):
        raise BadRow(f"image is {what_is(inline)}, not base64")
    if inline:
        return None, inline
    raise BadRow(NO_IMAGE if name is None else EMPTY_PATH)


@dataclass(eq=False)
class ShardRows(torch.utils.data.Dataset):
    """
    Rows read from the shards where they lie, in the format of `data_scripts.rows`; nothing is kept in memory.

    Map-style, so that the samplers of torch, accelerate and the Trainer share the rows out among processes and
    workers, shuffle them anew in every epoch, and resume by skipping numbers instead of images.

    Args:
        shards: their paths.
        index: (rows,) of `INDEX_TYPE`, memory-mapped.
        languages: of the captions.
        image_dir: what image paths are relative to.
        decode: give pictures; otherwise what `datasets.Image(decode=False)` gives, a path or the bytes of the file.
    """

    shards: Sequence[str]
    index: np.ndarray
    languages: Sequence[str]
    image_dir: str
    decode: bool = True

    @property
    def features(self) -> datasets.Features:
        return row_features(self.languages, aligned=True)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, number: int) -> dict:
        """A row. Raises IndexError beyond the end, BadImage where the picture is to be decoded and cannot be."""
        number = range(len(self))[number]
        row = self._parse(number)
        name, inline = image_source(row)
        contents = None if inline is None else decode_base64(inline, self._where(number))
        image = {"bytes": contents, "path": None if name is None else self._path(name)}
        captions, _ = read_captions(row, self.languages)
        return {
            "image": read_image(image, where=self._where(number)) if self.decode else image,
            # Equal images share their id: by path, or else by content.
            "image_id": picture_name(name) if inline is None else hashlib.sha256(contents).hexdigest(),
            "captions": captions,
            "aligned": True,
        }

    @classmethod
    def open(
        cls,
        index_file: str | os.PathLike,
        shards: Sequence[str],
        languages: Sequence[str],
        image_dir: str,
        max_bad_fraction: float,
    ) -> "ShardRows":
        """Rows by an index that is on disk, or else written there first; says in either case what it leaves out.

        Args:
            index_file: in a folder of its own, which also holds an Arrow cache made of these rows.
        """
        index_file = Path(index_file)
        report_file = index_file.with_suffix(".txt")
        if not index_file.is_file():
            index_file.parent.mkdir(parents=True, exist_ok=True)
            index, report = index_shards(shards, languages, image_dir, max_bad_fraction)
            report_file.write_text(report, encoding="utf-8")
            with tempfile.NamedTemporaryFile(dir=index_file.parent, delete=False) as unfinished:
                np.save(unfinished, index)
            os.replace(unfinished.name, index_file)  # last: where it is, it is whole
        if report := report_file.read_text(encoding="utf-8"):
            logger.warning("%s\nThis was counted once; delete %s to look again", report, index_file.parent)
        return cls(shards, np.load(index_file, mmap_mode="r"), languages, image_dir)

    def captions(self) -> Iterator[dict[str, list[str | None]]]:
        """The captions of all rows in their order, without the pictures."""
        return (read_captions(self._parse(number), self.languages)[0] for number in range(len(self)))

    def select(self, numbers: Sequence[int]) -> "ShardRows":
        """These rows only."""
        return replace(self, index=self.index[np.asarray(numbers)])

    def _path(self, name: str) -> str:
        try:
            found = find_file(self.image_dir, name)
        except BadImage:  # whoever reads it will say so
            found = None
        return found or os.path.join(self.image_dir, name)

    def _where(self, number: int) -> str:
        shard, _, offset = self.index[number]
        return f"{self.shards[shard]} byte {offset}"

    def _parse(self, number: int) -> dict:
        shard, length, offset = self.index[number].tolist()
        # Opened anew for each row: workers that share a file would share its position, too.
        with open(self.shards[shard], "rb") as lines:
            lines.seek(offset)
            return parse_row(lines.read(length))


def index_shards(
    shards: Sequence[str], languages: Sequence[str], image_dir: str, max_bad_fraction: float
) -> tuple[np.ndarray, str]:
    """Reads every line once: where the usable rows lie, (rows,) of `INDEX_TYPE`, and a table of what is left out.

    Images must be there; whether they are whole is seen when they are decoded.

    Raises:
        ValueError: more than `max_bad_fraction` is bad, no row has a caption in one of the languages, or a line is
            too long (`data_scripts.text`).
        FileNotFoundError: none of the images is there.
    """
    problems = Problems("pretraining", max_bad_fraction, languages=languages)
    columns = array("i"), array("i"), array("q")
    found = set()
    progress = tqdm(total=sum(map(os.path.getsize, shards)), unit="B", unit_scale=True, desc="indexing")
    with progress:
        for shard, path in enumerate(shards):
            with open(path, "rb") as lines:
                offset = 0
                for number, line in numbered_lines(lines, path):
                    if not is_blank_line(line):
                        problems.rows += 1
                        if present := check_line(line, languages, image_dir, problems, f"{path} line {number}"):
                            found |= present
                            for column, value in zip(columns, (shard, len(line), offset), strict=True):
                                column.append(value)
                    offset += len(line)
                    progress.update(len(line))
    problems.check()
    if not columns[0] and (problems.counts or set(problems.absences) != {NO_LANGUAGE}):
        raise FileNotFoundError(f"pretraining: no usable row; is image_dir {image_dir} right?\n{problems.table()}")
    if unseen := [language for language in languages if language not in found]:
        raise ValueError(
            f"pretraining: no caption in {', '.join(unseen)} in these shards; choose among the rows' languages, or "
            f"add some with data_scripts.translate ({report_tags(problems.tags, languages)})"
        )
    index = np.empty(len(columns[0]), INDEX_TYPE)
    for name, column in zip(INDEX_TYPE.names, columns, strict=True):
        index[name] = column
    return index, problems.table()


def check_line(line: bytes, languages: Sequence[str], image_dir: str, problems: Problems, where: str) -> set[str]:
    """The languages of a usable row, none of one that is not; counts what is wrong."""
    try:
        row = parse_row(line)
        for tag in (tag for caption in caption_objects(row) for tag in caption if tag not in languages):
            problems.other_language(tag)
        captions, reasons = read_captions(row, languages)
        name, inline = image_source(row)
        if inline is not None:
            decode_base64(inline, where)
        elif find_file(image_dir, name) is None:
            raise BadImage(MISSING, f"{name} in {image_dir}")
    except (BadRow, BadImage) as error:
        # A choice of languages leaves rows out, as images that were not downloaded do: that is not bad.
        is_absent = error.reason in (NO_LANGUAGE, MISSING)
        place = f"{where}, {error.where}" if isinstance(error, BadImage) else where
        (problems.absent if is_absent else problems.bad)(error.reason, place)
        return set()
    for reason in sorted(reasons):
        problems.bad(reason, where)
    return {language for language, texts in captions.items() if texts}
