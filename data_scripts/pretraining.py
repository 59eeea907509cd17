"""Pre-training shards: web images, each with a caption machine-translated into several languages.

    data_dir/**/part_*.data    JSON lines, one image each:
                               {"caption": {"en": "…", "de": "…"}, "image_path": "….jpg"}
                               {"caption": [{"en": "…"}, {"en": "…"}], "image": "base64 of the file"}   or "binary"

Sets are told apart by folder: `cc3m-mm-data-all`, `sbu-mm-data-all`, `vg-mm-data-all` and `coco-mm-data-all`. A first
pass over the lines writes an index of the usable ones, and every load says what was left out and why.
"""

import hashlib
import json
import logging
import os
import tempfile
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import datasets
import numpy as np
import torch
from tqdm import tqdm

from data_scripts.images import MISSING, BadImage, decode_base64, inside, read_image
from data_scripts.problems import Problems
from data_scripts.rows import row_features
from processing_ccrk import normalize_caption

logger = logging.getLogger(__name__)

SPLITS = ("train",)
SIX_LANGUAGES = ("zh", "ja", "en", "de", "fr", "cs")
LANGUAGES = (*SIX_LANGUAGES, "id", "es", "ru", "tr")
# The paper's "2M" and "3M" (section 4.1).
PRESETS = {
    "2m": ("cc3m-mm-data-all",),
    "3m": ("cc3m-mm-data-all", "sbu-mm-data-all", "vg-mm-data-all", "coco-mm-data-all"),
}

NOT_UTF8 = "line is not UTF-8"
NOT_JSON = "line is no JSON"
NOT_A_ROW = "line is no JSON object"
NO_CAPTIONS = "caption is neither an object nor a list of them"
NOT_TEXT = "caption is no text"
EMPTY_CAPTION = "caption is empty"
OTHER_CASE = "language tag in another case"
NO_LANGUAGE = "no caption in the languages asked for"
NO_IMAGE = "row without an image"

# Where the lines of the usable rows lie: number of the shard, length and offset in bytes.
INDEX_TYPE = np.dtype([("shard", "<i4"), ("length", "<i4"), ("offset", "<i8")])


class BadRow(ValueError):
    """A line that cannot be used; `reason` is one of this module's constants."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


def find_shards(folder: str | os.PathLike, sets: Sequence[str] | None = None) -> list[Path]:
    """All `part_*.data` below a folder, or below its subfolders named `sets`, in the order of their names.

    Raises:
        FileNotFoundError: there is none.
    """
    shards = []
    for part in [Path(folder) / name for name in sets] if sets else [Path(folder)]:
        found = sorted(part.rglob("part_*.data"))
        if not found:
            raise FileNotFoundError(f"there is no part_*.data in {part}; data_dir should hold pre-training shards")
        shards += found
    return shards


def parse_row(line: bytes) -> dict:
    """The JSON object of a line. Raises BadRow where it is none, or has no captions."""
    try:
        row = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise BadRow(NOT_UTF8) from error
    except (ValueError, RecursionError) as error:  # a thousand brackets exceed what the parser nests
        raise BadRow(NOT_JSON) from error
    if not isinstance(row, dict):
        raise BadRow(NOT_A_ROW)
    captions = row.get("caption")
    captions = captions if isinstance(captions, list) else [captions]
    if not captions or not all(isinstance(caption, dict) for caption in captions):
        raise BadRow(NO_CAPTIONS)
    return row


def caption_problem(text: object) -> str | None:
    """Why this is no caption, or None where it is one."""
    if not isinstance(text, str):
        return NOT_TEXT
    try:
        text.encode()  # half a surrogate pair is valid JSON and no valid text
        normalize_caption(text, max_words=1)
    except UnicodeEncodeError:
        return NOT_TEXT
    except ValueError:
        return EMPTY_CAPTION
    return None


def read_captions(row: dict, languages: Sequence[str]) -> tuple[dict[str, list[str]], set[str]]:
    """The usable captions of a parsed row in each language, and the reasons why others are not.

    Raises:
        BadRow: there is no usable one.
    """
    captions: dict[str, list[str]] = {language: [] for language in languages}
    problems = set()
    for caption in row["caption"] if isinstance(row["caption"], list) else [row["caption"]]:
        for tag, text in caption.items():
            if tag in captions:
                if problem := caption_problem(text):
                    problems.add(problem)
                else:
                    captions[tag].append(text)
            elif tag.lower() in captions:
                problems.add(OTHER_CASE)
    if not any(captions.values()):
        raise BadRow(min(problems, default=NO_LANGUAGE))
    return captions, problems


def image_source(row: dict, image_dir: str) -> tuple[str | None, str | None]:
    """A parsed row's absolute image path, or else its base64.

    Raises:
        BadRow: there is neither.
        BadImage: the path leaves `image_dir`.
    """
    if (name := row.get("image_path")) is not None:
        if caption_problem(name) == NOT_TEXT:
            raise BadRow(NO_IMAGE)
        return inside(image_dir, name), None
    inline = row.get("image", row.get("binary"))
    if not isinstance(inline, str) or not inline:
        raise BadRow(NO_IMAGE)
    return None, inline


@dataclass(eq=False)
class ShardRows(torch.utils.data.Dataset):
    """
    Rows read from the shards where they lie, in the format of `data_scripts.rows`; nothing is kept in memory.

    Map-style, so that the samplers of torch, accelerate and the Trainer share the rows out among processes and
    workers, shuffle them anew in every epoch, and resume by skipping numbers instead of images.

    Where an image turns out to be damaged, the next good row is given in its place, with the damaged one's
    (reason, where) in a list `problems`. So batches are always full, and a position in the epoch is the same row
    whatever is damaged before it.

    Args:
        shards: their paths.
        index: (rows,) of `INDEX_TYPE`, memory-mapped.
        languages: of the captions.
        image_dir: what image paths are relative to.
        max_bad_fraction: for whoever counts the problems.
        image_size: pixels a side that the pictures are resized to; large JPEG files are then decoded faster.
    """

    shards: Sequence[str]
    index: np.ndarray
    languages: Sequence[str]
    image_dir: str
    max_bad_fraction: float
    image_size: int | None = None

    @property
    def features(self) -> datasets.Features:
        return row_features(self.languages)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, position: int) -> dict:
        """A row with its picture decoded. Raises IndexError beyond the end, ValueError where no image can be read."""
        position = range(len(self))[position]
        problems = []
        for number in chain(range(position, len(self)), range(position)):
            try:
                row = self.encoded(number)
                image = row["image"]
                row["image"] = read_image(image["bytes"] or image["path"], self.image_size, self.where(number))
            except (BadRow, BadImage) as error:
                problems.append((error.reason, self.where(number)))
            else:
                return row | {"problems": problems} if problems else row
        raise ValueError(f"none of {len(self):,} images can be read, such as {self.where(position)}")

    def encoded(self, number: int) -> dict:
        """A row with its picture as `datasets.Image` stores it: a path, or the bytes of the file."""
        row = self._row(number)
        path, inline = image_source(row, self.image_dir)
        contents = None if inline is None else decode_base64(inline, self.where(number))
        # Equal images share their id: by path, or else by content.
        image_id = row["image_path"] if inline is None else hashlib.blake2b(contents, digest_size=16).hexdigest()
        captions, _ = read_captions(row, self.languages)
        return {"image": {"path": path, "bytes": contents}, "image_id": image_id, "captions": captions}

    def captions(self) -> Iterator[dict[str, list[str]]]:
        """The captions of all rows in their order, without the pictures."""
        return (read_captions(self._row(number), self.languages)[0] for number in range(len(self)))

    def select(self, numbers: Sequence[int]) -> "ShardRows":
        """These rows only."""
        return replace(self, index=self.index[np.asarray(numbers)])

    def where(self, number: int) -> str:
        """Names a row in messages."""
        shard, _, offset = self.index[number]
        return f"{self.shards[shard]} byte {offset}"

    def _row(self, number: int) -> dict:
        shard, length, offset = self.index[number].tolist()
        # Opened anew for each row: workers that share a file would share its position, too.
        with open(self.shards[shard], "rb") as lines:
            lines.seek(offset)
            return parse_row(lines.read(length))


@dataclass
class PretrainingConfig(datasets.BuilderConfig):
    """What to read.

    Args:
        data_dir: a folder with `part_*.data` at any depth.
        image_dir: the folder that image paths are relative to; `data_dir` by default.
        preset: "2m" (CC3M) or "3m" (CC3M, SBU, VG and COCO), by the published folder names in `data_dir`; all shards
            by default.
        languages: of the captions; a row needs one of them. The published ten by default, see also `SIX_LANGUAGES`.
        max_bad_fraction: the share of rows that may be bad, captions included.
        image_size: for streams, see `ShardRows`.
    """

    data_dir: str | None = None
    image_dir: str | None = None
    preset: str | None = None
    languages: Sequence[str] = LANGUAGES
    max_bad_fraction: float = 0.05
    image_size: int | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.data_dir is None:
            raise ValueError("pretraining needs data_dir: the folder of the part_*.data files")
        if self.preset is not None and self.preset not in PRESETS:
            raise ValueError(f"pretraining has no preset {self.preset!r}; choose one of {', '.join(PRESETS)}")
        self.data_dir = os.path.abspath(os.path.expanduser(self.data_dir))
        self.image_dir = os.path.abspath(os.path.expanduser(self.image_dir or self.data_dir))
        if not os.path.isdir(self.image_dir):
            raise FileNotFoundError(f"pretraining: image_dir {self.image_dir} is no folder")
        self.shards = [str(path) for path in find_shards(self.data_dir, PRESETS.get(self.preset))]

    def create_config_id(self, config_kwargs: dict, custom_features: datasets.Features | None = None) -> str:
        """Names index and cache by what is on disk, so that a changed shard is read again."""
        stats = [os.stat(shard) for shard in self.shards]
        files = [(shard, stat.st_size, stat.st_mtime_ns) for shard, stat in zip(self.shards, stats, strict=True)]
        contents = {
            "image_dir": self.image_dir,
            "languages": tuple(self.languages),
            "max_bad_fraction": self.max_bad_fraction,
            "files": hashlib.sha256(json.dumps(files).encode()).hexdigest(),
        }
        return super().create_config_id(contents, custom_features)


class Pretraining(datasets.GeneratorBasedBuilder):
    """Builds pre-training shards; `data_scripts.load("pretraining", …)` is the short way.

    A stream is `ShardRows`. The Arrow cache, for sets that fit twice on the disk, holds the rows whose image decodes.
    """

    VERSION = datasets.Version("1.0.0")  # the code is not in the cache's name: count up when the rows change
    BUILDER_CONFIG_CLASS = PretrainingConfig

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(features=row_features(self.config.languages))

    def _split_generators(self, dl_manager) -> list[datasets.SplitGenerator]:
        return [datasets.SplitGenerator(name="train")]

    def _generate_examples(self) -> Iterator[tuple[int, dict]]:
        rows = self.rows()
        problems = Problems("pretraining images", self.config.max_bad_fraction, rows=len(rows))
        for number in range(len(rows)):
            try:
                row = rows.encoded(number)
                read_image(row["image"]["bytes"] or row["image"]["path"], target_size=32)  # reads all of the file
            except BadImage as error:
                problems.bad(error.reason, rows.where(number))
            else:
                yield number, row
        problems.check()
        # The description is kept beside the rows in the cache: a later load repeats what was left out.
        self.info.description = problems.table()

    def as_dataset(self, *args, **kwargs) -> datasets.Dataset:
        dataset = super().as_dataset(*args, **kwargs)
        self.rows()  # says what the index left out
        if self.info.description:
            logger.warning(self.info.description)
        return dataset

    def as_streaming_dataset(self, split: str | None = None, base_path: str | None = None) -> ShardRows:
        return self.rows()

    def rows(self) -> ShardRows:
        """The usable rows, from the index that lies beside the Arrow cache, or else after the pass that writes it."""
        config = self.config
        index_file, report_file = (Path(f"{self.cache_dir}-{name}") for name in ("index.npy", "left-out.txt"))
        if not index_file.is_file():
            index_file.parent.mkdir(parents=True, exist_ok=True)
            index, report = index_shards(config)
            report_file.write_text(report, encoding="utf-8")
            with tempfile.NamedTemporaryFile(dir=index_file.parent, delete=False) as unfinished:
                np.save(unfinished, index)
            os.replace(unfinished.name, index_file)  # last: where it is, it is whole
        if report := report_file.read_text(encoding="utf-8"):
            logger.warning("%s\nThis was counted once; delete %s to look again", report, index_file)
        return ShardRows(
            config.shards,
            np.load(index_file, mmap_mode="r"),
            config.languages,
            config.image_dir,
            config.max_bad_fraction,
            config.image_size,
        )


def index_shards(config: PretrainingConfig) -> tuple[np.ndarray, str]:
    """Reads every line once: where the usable rows lie, (rows,) of `INDEX_TYPE`, and a table of what is left out.

    Images must be there; whether they are whole is seen when they are read.

    Raises:
        ValueError: more than `max_bad_fraction` is bad, or no row has a caption in one of the languages.
        FileNotFoundError: none of the images is there.
    """
    problems = Problems("pretraining", config.max_bad_fraction)
    columns = array("i"), array("i"), array("q")
    found = set()
    progress = tqdm(total=sum(map(os.path.getsize, config.shards)), unit="B", unit_scale=True, desc="indexing")
    with progress:
        for shard, path in enumerate(config.shards):
            with open(path, "rb") as lines:
                offset = 0
                for number, line in enumerate(lines, start=1):
                    problems.rows += 1
                    if languages := _check_line(line, config, problems, f"{path} line {number}"):
                        found |= languages
                        for column, value in zip(columns, (shard, len(line), offset), strict=True):
                            column.append(value)
                    offset += len(line)
                    progress.update(len(line))
    problems.check()
    if not columns[0]:
        raise FileNotFoundError(
            f"pretraining: no usable row; is image_dir {config.image_dir} right?\n{problems.table()}"
        )
    if unseen := [language for language in config.languages if language not in found]:
        raise ValueError(
            f"pretraining: no caption in {', '.join(unseen)} in {config.data_dir}; choose among the rows' languages, "
            "or add some with data_scripts.translate"
        )
    index = np.empty(len(columns[0]), INDEX_TYPE)
    for name, column in zip(INDEX_TYPE.names, columns, strict=True):
        index[name] = column
    return index, problems.table()


def _check_line(line: bytes, config: PretrainingConfig, problems: Problems, where: str) -> set[str]:
    """The languages of a usable row, none of one that is not; counts what is wrong."""
    try:
        row = parse_row(line)
        captions, reasons = read_captions(row, config.languages)
        path, _ = image_source(row, config.image_dir)
    except (BadRow, BadImage) as error:
        problems.bad(error.reason, where)
        return set()
    if path is not None and not os.path.isfile(path):
        problems.absent(MISSING, f"{where}, {path}")
        return set()
    for reason in sorted(reasons):
        problems.bad(reason, where)
    return {language for language, texts in captions.items() if texts}
