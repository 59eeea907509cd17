"""Any table of images and captions as a data set: `--dataset X`, where X is not the name of a known data set.

X is a folder of images with `metadata.jsonl`, `.csv` or `.parquet`; a table in one of these formats, or a pattern or
folder of them; WebDataset tars; or a data set on the Hub. `data_scripts.sources` says which files are read, and
`data_scripts.columns` which of their columns.

Splits are read from a `split` column, from the names of tables and their folders (`train-00000-of-00002.parquet`,
`val/`), or from the folders of the images' paths. Without any, all rows are for training, and all can be evaluated.
"""

import functools
import hashlib
import itertools
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets

from data_scripts.annotations import AnnotatedImages, Annotation, AnnotationConfig, without_empty
from data_scripts.captions import folded_tag, what_is, without_entities
from data_scripts.cli import did_you_mean
from data_scripts.columns import PLAIN_CAPTIONS, Columns, find_columns
from data_scripts.formats import Place, Table
from data_scripts.images import MISSING, BadImage, Found, ImageFolder, decode_base64, picture_name
from data_scripts.problems import Problems
from data_scripts.retrieval_task import RetrievalTask
from data_scripts.rows import id_text, is_missing, is_text, split_of_folders, split_of_value
from data_scripts.sources import open_tables

logger = logging.getLogger(__name__)

NO_CAPTION = "row without a caption in the languages asked for"
NO_PICTURE = "row without a picture"
SEVERAL_PICTURES = "list of images in one cell; write a row for each image"
ANOTHER_PICTURE = "image_id of another picture"
ANOTHER_ID = "image under a further image_id; the first is kept"
_BEGINNINGS = {"train": "train", "val": "validation", "dev": "validation", "test": "test"}
_SAMPLES = 100  # records that tell what a table's columns hold
_BASE64_FROM = 260  # characters; the path of a file without an ending is shorter
_ENDING = re.compile(r"\.\w{2,5}\s*$")  # of a file's name; base64 has no dot


@dataclass
class TableRow(Annotation):
    """One picture of a table with its captions; `image` is its path, or of a picture inside the table its name.

    Args:
        split: that the row, its table or its picture's folder tells.
        place: the record that holds the picture's bytes in `column`; None where there is a path.
        digest: of those bytes.
    """

    split: str | None = None
    place: Place | None = None
    column: str = ""
    digest: str = ""

    @property
    def own_name(self) -> str:
        """Its id, or else what tells its image from others."""
        return self.image_id or self.digest or _name(self.image)


@dataclass
class TableConfig(AnnotationConfig):
    """What to read, see `AnnotationConfig`.

    Args:
        data_dir: X, see above.
        split: None for the rows of all.
        image_dir: what paths are relative to; by default the folder of the table that they stand in.
        caption_columns: language → names of columns; by default found, see `data_scripts.columns.find_columns`.
        image_column, image_id_column: by default found as well.
        streaming: rows come as they are read, one for each record, and none is looked at before.
        validation_fraction: the share of the training images that are the split "validation" instead. Which ones
            follows from the contents of their files, so that copies are in one part.
    """

    split: str | None = "train"
    caption_columns: Mapping[str, Sequence[str]] | None = None
    image_column: str | None = None
    image_id_column: str | None = None
    validation_fraction: float | None = None
    streaming: bool = False

    guess = None  # of the pictures' folder, see `data_scripts.images.Found`
    photographs = "the pictures that the paths in the table are relative to"

    def __post_init__(self):
        self.dataset, self.splits = self.data_dir, (self.split,)  # which splits there are, the rows will tell
        if self.validation_fraction is not None and not 0 < self.validation_fraction < 1:
            raise ValueError(f"validation_fraction is a share between 0 and 1, not {self.validation_fraction}")
        if self.text_only and self.streaming:
            raise ValueError("text_only rows are not streamed; remove one of the two")
        self.tables = open_tables(self.data_dir, self.streaming)
        self.root = os.path.commonpath([table.folder for table in self.tables])  # the folder of all tables
        self.pictures = ImageFolder(os.path.expanduser(self.image_dir or self.root))
        self.spellings = {folded_tag(language): language for language in self.languages or ()}
        self.columns: dict[str | None, Columns] = {}
        self.column_names: dict[str, None] = {}
        self.in_tables = Problems(self.source, self.max_bad_fraction, quiet=not self.streaming)
        if self.streaming:
            self._open_stream()
        else:
            rows = (row for table in self.tables for row, _ in self._rows_of(table, self.in_tables))
            self.rows = self._of_split(list(self._merged(rows)))
        used = {name for columns in self.columns.values() for name in columns.used()}
        self.unused_columns = [name for name in self.column_names if name not in used]
        if self.unused_columns:
            _tell_once(f"{self.dataset}: columns not used: {', '.join(self.unused_columns)}")
        super().__post_init__()

    def _columns_of(self, table: Table) -> Columns:
        """What its columns hold. Of a stream there may be thousands of tables, which are all as the first."""
        key = table.language if self.streaming else table.path
        if key not in self.columns:
            unheard = Problems(table.path, max_bad_fraction=1.0, quiet=True)
            samples = [record for record, _, _ in itertools.islice(table.records(unheard), _SAMPLES)]
            if not samples:
                raise ValueError(f"{table.path} has no row that can be read\n{unheard.table()}".rstrip())
            given = (self.caption_columns, self.image_column, self.image_id_column, table.language)
            try:
                columns = find_columns(table.path, samples, *given)
            except ValueError as error:  # what was not read may be why
                raise ValueError(f"{error}\n{unheard.table()}".rstrip()) from error
            if table.language is not None and columns.captions.get(table.language, [""])[0] in PLAIN_CAPTIONS:
                _tell_once(f"{table.path}: captions are in {table.language}, by its name")
            if columns.warning:
                _tell_once(f"{self.dataset}: {columns.warning}", logging.WARNING)
            self.columns[key] = columns
            self.column_names |= dict.fromkeys(name for sample in samples for name in sample)
        return self.columns[key]

    def _language(self, tag: str) -> str:
        """A tag as it is asked for, or else as it is written first: `zh_TW` and `zh-tw` are one."""
        language = self.spellings.setdefault(folded_tag(tag), tag)
        if language != tag:
            _tell_once(f"{self.dataset}: language {tag!r} is taken for {language!r}")
        return language

    def _rows_of(self, table: Table, problems: Problems) -> Iterator[tuple[TableRow, dict]]:
        """A row for each record that has a picture; others are counted, and what is wrong in those that have."""
        columns = self._columns_of(table)
        for record, position, where in table.records(problems):
            try:
                row = self._picture(table, columns, record, position, where)
            except BadImage as error:
                problems.bad(error.reason, where)
                continue
            if row is None:
                problems.absent(NO_PICTURE, where)
                continue
            if isinstance(table, RetrievalTask):
                row.gallery = frozenset(record["gallery"])
            told = record.get(columns.split) if columns.split else None
            if not is_missing(told):
                row.split = split_of_value(told)
            for tag, captions in columns.read(record):
                if not is_text(tag):
                    problems.bad(f"language is {what_is(tag)}, not text", where)
                    continue
                language = self._language(tag)
                texts = [without_entities(caption) for caption in captions if is_text(caption)]
                if texts != [caption for caption in captions if is_text(caption)]:
                    _tell_once(f"{self.dataset}: HTML entities in captions, such as &amp;, are read as characters")
                for caption in captions:
                    if not is_text(caption):
                        problems.bad(f"caption is {what_is(caption)}, not text", where)
                row.captions.setdefault(language, []).extend(texts)
            yield row, record

    def _open_stream(self) -> None:
        """Languages and splits by the first rows of the tables, and the tables that may hold some of this split.

        Raises:
            ValueError: the rows of a picture do not stand together, or none is of this split.
        """
        told = dict.fromkeys(table.split for table in self.tables if table.split)
        of_interest = {None, self.split} | ({"train"} if self.validation_fraction is not None else set())
        self.rows: list[TableRow] = []  # the first ones
        self.tables = [table for table in self.tables if table.split in of_interest] or self.tables
        of_language = {table.language: table for table in reversed(self.tables)}
        unheard = Problems(self.source, max_bad_fraction=1.0, quiet=True)
        for table in of_language.values():
            if self._columns_of(table).language or isinstance(table, RetrievalTask) or len(of_language) > 1:
                raise ValueError(
                    f"{table.path} has the captions of a picture in several rows, and a stream takes them one by one; "
                    "remove streaming, or write it again with data_scripts.export"
                )
            sampled = itertools.islice(self._rows_of(table, unheard), _SAMPLES)
            self.rows += [row for row, _ in sampled]
        if not self.rows:
            raise ValueError(f"{self.dataset} has no row that can be read\n{unheard.table()}")
        told |= dict.fromkeys(row.split for row in self.rows if row.split)
        self.found_splits = list(told)
        self.first_languages = set(self.known_languages())
        by_column = any(columns.split for columns in self.columns.values())
        of_train = self.validation_fraction is not None and self.split in ("train", "validation")
        if not (of_train and "validation" not in told) and not (by_column and not of_train):
            self._of_split(self.rows)  # which says what is wrong; otherwise rows of the split may come later

    def stream(self, table: Table) -> Iterator[dict]:
        """The rows of a table, or of a part of one, that are of this split; what is left out is counted and told."""
        problems, before = self.in_tables, self.in_tables.total()
        for row, record in self._rows_of(table, problems):
            if self._part(row, self.found_splits) != self.split:
                continue
            for tag in row.captions.keys() - self.first_languages:
                problems.other_language(tag)
            captions = {
                language: without_empty(row.captions.get(language, []), language, row.where, problems)
                for language in self.languages
            }
            if not any(captions.values()):
                problems.absent(NO_CAPTION, row.where)
                continue
            try:
                if row.place is not None:
                    contents, name = _contents(record[row.column], row.where)
                else:
                    contents, name = None, self._found(row).path
            except BadImage as error:
                problems.add_image(error, row.where)
                continue
            yield {"image": {"bytes": contents, "path": name}, "image_id": row.own_name, "captions": captions}
        if problems.total() > before:
            logger.warning("%s", problems.table())

    def _found(self, row: TableRow) -> Found:
        """Where a picture of a stream is: as its first ones are. Raises BadImage."""
        found = self.pictures.find(row.image)
        if self.guess is None:
            self.guess = found.guess
            self.check_places([row])
        if found.guess not in ("", self.guess):
            raise BadImage(MISSING, f"{row.image} in {self.image_dir}")
        return found

    def _picture(self, table: Table, columns: Columns, record: Mapping, position: Any, where: str) -> TableRow | None:
        """The row of a record, still without captions; None where it has no picture. Raises BadImage."""
        value = record.get(columns.image)
        own_id = id_text(record.get(columns.image_id)) if columns.image_id else None
        if isinstance(value, list):
            raise BadImage(SEVERAL_PICTURES, where)
        if isinstance(value, Mapping) and not value.get("bytes"):
            value = value.get("path")
        if is_text(value) and value and not _is_base64(value):
            if table.is_remote and self.image_dir is None:
                raise ValueError(
                    f"{where}: {value} is the path of a picture, and none are read from beside a table that is not on "
                    "disk; give --image_dir, or put them into the table with data_scripts.export"
                )
            path = self._relative(table, value)
            return TableRow(path, own_id or "", {}, where, split=table.split or split_of_folders(path))
        contents, name = _contents(value, where)
        if contents is None:
            is_kept = self.text_only or (self.gallery and isinstance(table, RetrievalTask))
            return TableRow("", own_id or where, {}, where, split=table.split) if is_kept else None
        digest = hashlib.sha256(contents).hexdigest()
        place = Place(table, position)
        return TableRow(
            name or digest,
            own_id or "",
            {},
            where,
            split=table.split,
            place=place,
            column=columns.image,
            digest=digest,
        )

    def _relative(self, table: Table, path: str) -> str:
        """A path of a table relative to `image_dir`; of its own folder, to the folder of all tables."""
        if self.image_dir is not None:
            return os.path.relpath(path, self.image_dir) if os.path.isabs(path) else path
        if os.path.isabs(path):
            relative = os.path.relpath(path, self.root)
            return path if relative.startswith("..") else relative  # and is named as it is written
        return (
            os.path.normpath(os.path.join(os.path.relpath(table.folder, self.root), path))
            if ".." not in Path(path).parts
            else path
        )

    def _merged(self, rows: Iterable[TableRow]) -> Iterator[TableRow]:
        """One row for each image of a split, with the captions of all its records: one path is one image."""
        merged: list[TableRow] = []
        by_id: dict[tuple, TableRow] = {}
        by_image: dict[tuple, TableRow] = {}
        digests: dict[str, set[str]] = {}  # of the pictures inside the tables, by name
        for row in rows:
            if row.place is not None:
                digests.setdefault(row.image, set()).add(row.digest)
            # One inside a table that has an id and no name is known by its id alone.
            has_name = row.image and (row.image != row.digest or not row.image_id)
            image = (row.split, _name(row.image), row.digest) if has_name else None
            own_id = (row.split, row.image_id) if row.image_id else None
            first = by_image.get(image) or by_id.get(own_id)
            if first is None:
                merged.append(row)
                first = row
            elif not first.image:  # of text alone: the picture may come in a later record
                first.image, first.place = row.image, row.place
                first.column, first.digest = row.column, row.digest
            elif row.image and (
                row.digest != first.digest or (row.place is None and _name(row.image) != _name(first.image))
            ):
                self.in_tables.bad(ANOTHER_PICTURE, f"{row.where}: {row.image_id}, which {first.where} has as well")
                continue
            elif own_id is not None and own_id not in by_id and first.image_id:
                self.in_tables.absent(ANOTHER_ID, f"{row.where}: {row.image_id}, in {first.where} {first.image_id}")
            if image is not None:
                by_image[image] = first
            if own_id is not None:
                by_id.setdefault(own_id, first)
                first.image_id = first.image_id or row.image_id
            if first is row:
                continue
            for language, captions in row.captions.items():
                first.captions.setdefault(language, []).extend(captions)
            if first.gallery is not None and row.gallery is not None:
                first.gallery |= row.gallery
        for row in merged:
            # Names inside of tables are mostly the last part of a path: two pictures may share one.
            unique = _name(row.image) if len(digests.get(row.image, ())) < 2 else row.digest
            yield replace(row, image_id=row.image_id or unique)

    def _of_split(self, rows: Sequence[TableRow]) -> list[TableRow]:
        """The rows of the split that is asked for.

        Raises:
            ValueError: there is none.
        """
        if not rows:
            raise ValueError(f"{self.dataset} has no row that can be read\n{self.in_tables.table()}".rstrip())
        found = list(dict.fromkeys(row.split for row in rows if row.split is not None))
        stray = next((row for row in rows if row.split is None), None)
        if found and stray is not None:
            raise ValueError(f"{stray.where} is of no split, where other rows are of {', '.join(found)}; say of which")
        fraction = self.validation_fraction
        if fraction is not None and "validation" in found:
            raise ValueError(f"{self.dataset} has a validation split; remove validation_fraction")
        self.found_splits = list(dict.fromkeys([*["train", "validation"] * (fraction is not None), *found]))
        if self.split is None:
            chosen = list(rows)
        else:
            with ThreadPoolExecutor() as pool:  # with a fraction, files are read
                parts = list(pool.map(lambda row: self._part(row, found), rows))
            chosen = [row for row, part in zip(rows, parts, strict=True) if part == self.split]
        if not found and chosen:
            self._tell_that_all_are_taken(rows)
        elif self.split == "train":
            self._tell_of_other_splits(chosen, [row for row in rows if row.split not in (None, "train")])
        if not chosen:
            has = f"only {', '.join(found)}" if found else "no splits"
            meant = split_of_value(self.split)
            cure = "; --validation_fraction 0.1 takes one from the training images" * (meant == "validation")
            cure = did_you_mean(meant, found) or cure
            raise ValueError(f"{self.dataset} has no split {self.split!r}, {has}{cure}")
        return chosen

    def _tell_that_all_are_taken(self, rows: Sequence[TableRow]) -> None:
        """Of rows that tell no split; a warning where names look as if they told some."""
        names: dict[str, str] = {}  # split → the first name that looks like it
        for row in rows:
            for part in row.image.split("/"):
                word = re.split(r"[^a-z]", part.lower())[0]
                meant = next((split for start, split in _BEGINNINGS.items() if word.startswith(start)), None)
                if meant is not None:
                    names.setdefault(meant, row.image)
        if len(names) > 1:
            cure = "move each split to a folder of its name, or add a column 'split'"
            alike = f"though names look like splits ({', '.join(names.values())}); {cure}"
            _tell_once(f"{self.dataset} has no splits: all of its rows are taken, {alike}", logging.WARNING)
        elif self.split == "test":
            logger.warning("%s has no splits: all of its rows are taken", self.dataset)

    def _tell_of_other_splits(self, rows: Sequence[TableRow], others: Sequence[TableRow]) -> None:
        """A warning where rows to train on are in another split, by id or image, as far as the tables show it."""
        known = {key: other for other in others for key in _keys(other)}
        both = [(row, known[key]) for row in rows if (key := next(filter(known.get, _keys(row)), None))]
        if both:
            row, other = both[0]
            _tell_once(
                f"{self.dataset}: {len(both):,} images to train on are in another split as well, such as {row.where} "
                f"and {other.where}; remove them from one",
                logging.WARNING,
            )

    def _part(self, row: TableRow, found: Sequence[str]) -> str | None:
        """The split of a row, where `found` are those that the rows tell; without any, all can be evaluated."""
        if self.validation_fraction is not None and row.split in (None, "train"):
            return "validation" if _share(self._contents_of(row)) < self.validation_fraction else "train"
        return "test" if not found and self.split == "test" else row.split or "train"

    def _contents_of(self, row: TableRow) -> str:
        """A digest of an image's file; of one that is not there, which will be no row, its name."""
        if row.digest:
            return row.digest
        try:
            with open(self.pictures.find(row.image).path, "rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except (BadImage, OSError):
            return row.own_name

    def has_galleries(self) -> bool:
        languages = frozenset(self.languages)
        return self.gallery and any(
            not row.image or (row.gallery is not None and not row.gallery >= languages) for row in self.rows
        )

    def row(self, annotation: Annotation, image: Any | None) -> dict[str, Any]:
        row = super().row(annotation, image)
        return row | {"gallery": []} if "gallery" in row and image is None else row

    def known_languages(self) -> Sequence[str]:
        return list(dict.fromkeys(language for row in self.rows for language in row.captions))

    def find_files(self) -> dict[Any, Any]:
        return {}  # `image_states` tells when a table changes

    def read(self, problems: Problems) -> Iterator[Annotation]:
        problems.update(self.in_tables)
        for row in self.rows:
            for tag in row.captions.keys() - set(self.languages):
                problems.other_language(tag)
            if not self.gallery and row.captions and not any(map(row.captions.get, self.languages)):
                problems.absent(NO_CAPTION, row.where)
            captions = {
                language: without_empty(row.captions.get(language, []), language, row.where, problems)
                for language in self.languages
            }
            yield replace(row, captions=captions)

    def image_states(self) -> Iterator[str]:
        yield from (table.state() for table in self.tables)
        for row in self.rows:
            if row.place is None and not self.streaming:
                try:
                    status = os.stat(self.pictures.find(row.image).path)
                except (BadImage, OSError):
                    continue
                yield f"{row.image}\n{status.st_size}\n{status.st_mtime_ns}\n"

    def check_places(self, annotations: Iterable[Annotation]) -> str:
        return super().check_places(row for row in annotations if row.place is None)

    def _folder(self, argument: str, path: str | None, contents: str) -> str:
        if argument == "data_dir":
            return path
        return super()._folder(argument, self.root if path is None else path, contents)


@functools.cache
def _tell_once(message: str, level: int = logging.INFO) -> None:
    """For what is the same of every split."""
    logger.log(level, "%s", message)


def _share(name: str) -> float:
    """A number from 0 to 1 that follows from a name."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") / 2**64


def _keys(row: TableRow) -> list[tuple[str, str]]:
    """What a row is known by: its own id, and its image."""
    keys = [("id", row.image_id)] * bool(row.image_id)
    return keys + [("image", row.digest or _name(row.image))] * bool(row.image)


def _name(path: str) -> str:
    """A path in one form, also where it leads out of its folder, which is counted when it is looked for."""
    try:
        return picture_name(path)
    except BadImage:
        return path


def _is_base64(text: str) -> bool:
    if text[:5].lower() == "data:":
        return True
    return len(text) > _BASE64_FROM and "://" not in text and not _ENDING.search(text)


def _contents(value: Any, where: str) -> tuple[bytes | None, str | None]:
    """The bytes of a picture inside a table, with their name where they have one; JSON has them as base64 or numbers.

    Raises:
        BadImage: it is neither.
    """
    name = None
    if isinstance(value, Mapping):
        value, name = value.get("bytes"), value.get("path")
        name = name if is_text(name) else None
    if is_missing(value) or value in (b"", "", []):
        return None, name
    if is_text(value):
        return decode_base64(value, where), name
    if isinstance(value, list):
        try:
            return bytes(value), name
        except (TypeError, ValueError) as error:  # other members, or numbers beyond 255
            raise BadImage("image is a list of other than bytes", where) from error
    if not isinstance(value, bytes):
        raise BadImage(f"image is {what_is(value)}, neither a path nor bytes", where)
    return value, name


def _stream(tables: list[Table], config: TableConfig) -> Iterator[dict]:
    for table in tables:  # `datasets` calls it for some of them at a time
        yield from config.stream(table)


class AnyTable(AnnotatedImages):
    """Builds one split of a table; `data_scripts.load(X, …)` is the short way."""

    VERSION = datasets.Version("1.2.0")  # the code is not in the cache's name: count up when the rows change
    BUILDER_CONFIG_CLASS = TableConfig

    def as_streaming_dataset(self, split: str | None = None, base_path: str | None = None) -> datasets.IterableDataset:
        """Rows as they are read. Its shards are the parts of the tables: files, and row groups of Parquet."""
        parts = [part for table in self.config.tables for part in table.parts()]
        return datasets.IterableDataset.from_generator(
            _stream,
            features=self.info.features,
            gen_kwargs={"tables": parts, "config": self.config},
            split=datasets.NamedSplit(self.config.split),
        )

    def locate(self, annotation: TableRow) -> str | tuple[Place, str]:
        if annotation.place is not None:
            return annotation.place, annotation.column
        if not annotation.image:
            if self.config.gallery:
                return None
            raise BadImage(MISSING, annotation.where)
        return super().locate(annotation)

    def encoded(self, image: str | tuple[Place, str]) -> str | bytes:
        if isinstance(image, str):
            return image
        place, column = image
        contents, _ = _contents(place.read()[column], place.table.path)
        return contents
