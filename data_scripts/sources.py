"""Tables of pictures and captions where they lie: which files a name means, and their records one after another.

A record is a dictionary of a row's values. It comes with the `Place` at which it can be read again, so that a pass
over a table holds no pictures. The `datasets` library reads these formats too, but names neither file nor row of what
it cannot read, and stops at the first of it.
"""

import csv
import io
import json
import os
import re
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, BinaryIO, NamedTuple

import datasets
import fsspec
import pyarrow
import pyarrow.parquet

from data_scripts.annotations import BROKEN_JSON
from data_scripts.captions import what_is
from data_scripts.columns import LANGUAGES
from data_scripts.problems import Problems
from data_scripts.rows import SPLIT_NAMES
from data_scripts.text import files_below, is_blank_line, numbered_lines

METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".avif", ".gif", ".bmp", ".tif", ".tiff", ".ppm")
ROWS_OF_A_PART = 10_000  # of a Parquet file at the least, unless it has fewer
SECOND_IMAGE = "further image of a sample of a tar; only the first is read"
DOTTED_IMAGE = "image whose name has a dot before its ending; rename it, since a sample's name ends at its first dot"
SECOND_FILE = "further file of one name in a sample of a tar; only the first is read"
_ROWS_OF_A_STREAM_AT_A_TIME = 16
_RECORDS_AT_A_TIME = 256  # of a Parquet file; pictures of 100 kB make 25 MB


def is_url(path: str) -> bool:
    return "://" in path


def open_file(path: str) -> BinaryIO:
    """A file on disk or at a URL that fsspec knows, such as s3://bucket/rows.parquet."""
    return fsspec.open(path, "rb").open() if is_url(path) else open(path, "rb")


class Place(NamedTuple):
    """Where a record is: its table, and what that table finds it by."""

    table: "Table"
    position: Any

    def read(self) -> dict:
        return self.table.read(self.position)


class Table(ABC):
    """One file of records, or one split of a data set.

    Args:
        path: of the file; names it in messages.
        split: the split that its name or folder tells, one of "train", "validation" and "test", or None.
        language: of its captions, where its name tells it.
    """

    def __init__(self, path: str | os.PathLike, split: str | None = None, language: str | None = None):
        self.path = os.fspath(path)
        self.split = split
        self.language = language

    @property
    def folder(self) -> str:
        """What the paths of pictures in it are relative to, where it is on disk."""
        return os.getcwd() if self.is_remote else os.path.dirname(os.path.abspath(self.path))

    @property
    def is_remote(self) -> bool:
        """Whether no pictures can lie beside it."""
        return is_url(self.path)

    @abstractmethod
    def records(self, problems: Problems) -> Iterator[tuple[dict, Any, str]]:
        """Each record with its position and, in words, its place; counts those that cannot be read."""

    @abstractmethod
    def read(self, position: Any) -> dict:
        """The record at a position."""

    def parts(self) -> list["Table"]:
        """Pieces of it that can be read each by itself, which hold every record once."""
        return [self]

    def state(self) -> str:
        """What changes when the file does."""
        if is_url(self.path):
            filesystem, path = fsspec.url_to_fs(self.path)
            return f"{self.path}\n{filesystem.ukey(path)}\n"
        status = os.stat(self.path)
        return f"{self.path}\n{status.st_size}\n{status.st_mtime_ns}\n"


class JSONLines(Table):
    """One JSON object per line."""

    def records(self, problems: Problems) -> Iterator[tuple[dict, tuple[int, int], str]]:
        offset = 0
        with open_file(self.path) as file:
            for number, line in numbered_lines(file, self.path):
                position, offset = (offset, len(line)), offset + len(line)
                if is_blank_line(line):
                    continue
                where = f"{self.path} line {number}"
                problems.rows += 1
                try:
                    record = json.loads(line.decode("utf-8-sig"))
                except (ValueError, RecursionError):
                    problems.bad(BROKEN_JSON, where)
                    continue
                if isinstance(record, dict):
                    yield record, position, where
                else:
                    problems.bad(f"line is {what_is(record)}, not an object", where)

    def read(self, position: tuple[int, int]) -> dict:
        offset, length = position
        with open_file(self.path) as file:
            file.seek(offset)
            return json.loads(file.read(length).decode("utf-8-sig"))


class SeparatedValues(Table):
    """Comma- or, in `.tsv`, tab-separated values with a header."""

    def _reader(self, lines: Iterable[str]) -> Iterator[list[str]]:
        csv.field_size_limit(1 << 27)  # a picture in base64 fits
        return csv.reader(lines, delimiter="\t" if self.path.endswith(".tsv") else ",", strict=True)

    def records(self, problems: Problems) -> Iterator[tuple[dict, tuple[list[str], int, int], str]]:
        taken = 0  # bytes

        def lines() -> Iterator[str]:
            nonlocal taken
            for _, line in numbered_lines(file, self.path):
                taken += len(line)
                yield line.decode("utf-8-sig" if taken == len(line) else "utf-8")

        with open_file(self.path) as file:
            reader = self._reader(lines())
            try:
                header = next(reader, [])
                if len(set(header)) < len(header):
                    raise ValueError(f"{self.path}: a column is named twice in {', '.join(header)}; rename one")
                while True:
                    start, where = taken, f"{self.path} line {reader.line_num + 1}"
                    if (values := next(reader, None)) is None:
                        return
                    if not values:
                        continue
                    problems.rows += 1
                    if len(values) != len(header):
                        problems.bad(f"{len(values)} values under a header of {len(header)}", where)
                        continue
                    yield self._record(header, values), (header, start, taken - start), where
            except (csv.Error, UnicodeDecodeError) as error:
                raise ValueError(
                    f"{self.path} line {reader.line_num}: {error}; write it again as UTF-8 with fields in quotes"
                ) from error

    def read(self, position: tuple[list[str], int, int]) -> dict:
        header, start, length = position
        with open_file(self.path) as file:
            file.seek(start)
            text = file.read(length).decode()
        return self._record(header, next(self._reader(io.StringIO(text, newline=""))))

    @staticmethod
    def _record(header: list[str], values: list[str]) -> dict[str, str | None]:
        return {name: value or None for name, value in zip(header, values, strict=True)}  # nothing is nothing


class Parquet(Table):
    """A Parquet file; pictures are bytes, paths, or the struct that `datasets.Image` writes.

    Args:
        groups: of its row groups; all by default.
    """

    def __init__(self, *arguments, groups: range | None = None):
        super().__init__(*arguments)
        self.groups = groups

    def _open(self) -> pyarrow.parquet.ParquetFile:
        try:
            return pyarrow.parquet.ParquetFile(open_file(self.path) if is_url(self.path) else self.path)
        except (pyarrow.ArrowException, OSError) as error:
            raise ValueError(f"{self.path} is no whole Parquet file ({error}); write it again") from error

    def parts(self) -> list["Parquet"]:
        with self._open() as file:
            sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        parts, start, rows = [], 0, 0
        for group, size in enumerate(sizes):
            rows += size
            if rows >= ROWS_OF_A_PART or group + 1 == len(sizes):
                parts.append(Parquet(self.path, self.split, self.language, groups=range(start, group + 1)))
                start, rows = group + 1, 0
        return parts

    def records(self, problems: Problems) -> Iterator[tuple[dict, tuple[int, int], str]]:
        with self._open() as file:
            groups = range(file.num_row_groups) if self.groups is None else self.groups
            row = sum(file.metadata.row_group(group).num_rows for group in range(groups.start))
            for group in groups:
                in_group = 0
                for batch in file.iter_batches(_RECORDS_AT_A_TIME, row_groups=[group]):
                    for record in batch.to_pylist():
                        row += 1
                        problems.rows += 1
                        yield record, (group, in_group), f"{self.path} row {row}"
                        in_group += 1

    def read(self, position: tuple[int, int]) -> dict:
        group, row = position
        return _row_group(self, group).slice(row, 1).to_pylist()[0]


@lru_cache(maxsize=4)  # rows are read in their order, by a few threads
def _row_group(table: Parquet, group: int) -> pyarrow.Table:
    with table._open() as file:
        return file.read_row_group(group)


class WebDataset(Table):
    """A tar of samples: files that share all of their name up to its first dot, one after another.

    A record has its image as `image`, whatever its ending, text by its ending, and the fields of a `.json` as columns
    of their own. `__key__` is the shared name. Further images of a sample and further files of one name are counted.
    """

    def records(self, problems: Problems) -> Iterator[tuple[dict, list[tuple[str, int, int]], str]]:
        key, files = None, []
        try:
            with open_file(self.path) as file, tarfile.open(fileobj=file, mode="r:") as archive:
                for member in archive:
                    folder, name = os.path.split(member.name)
                    if not member.isfile() or name.startswith("."):  # macOS puts notes on files beside them
                        continue
                    own_key, _, ending = name.partition(".")
                    own_key = os.path.join(folder, own_key)
                    if own_key != key and files:
                        yield from self._sample(key, files, problems)
                        files = []
                    key = own_key
                    files.append((ending.lower(), member.offset_data, member.size, member.name))
        except tarfile.TarError as error:
            raise ValueError(
                f"{self.path} is no whole, uncompressed tar ({error}); write or unpack it again"
            ) from error
        if files:
            yield from self._sample(key, files, problems)

    def _sample(self, key: str, files: list, problems: Problems) -> Iterator[tuple[dict, Any, str]]:
        where = f"{self.path}, {key}"
        problems.rows += 1
        used: dict[str, tuple[str, int, int]] = {}
        for ending, start, size, name in files:
            is_image = f".{ending.rpartition('.')[2]}" in PICTURES
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
                if f".{ending}" in PICTURES:
                    picture = {"bytes": contents, "path": f"{record['__key__']}.{ending}"}
                elif ending == "json":
                    fields = json.loads(contents.decode("utf-8-sig"))
                    if not isinstance(fields, dict):
                        raise ValueError("no object")
                    record |= fields
                elif ending.split(".")[-1] in ("txt", "text", "caption"):
                    record[ending] = contents.decode("utf-8-sig").strip()
        return record if picture is None else record | {"image": picture}


class RetrievalTask(Table):
    """A split in MTEB's retrieval layout: pictures and captions in two tables, and in a third which belong together.

    A record is a picture, with `image`, `image_id` and `captions`, a mapping of languages.

    Args:
        parts: language → tables of the corpus, of the queries, and of the pairs (qrels).
    """

    def __init__(self, path: str | os.PathLike, split: str | None, parts: dict[str, dict[str, list[Table]]]):
        super().__init__(path, split)
        self.parts_by_language = parts

    @property
    def folder(self) -> str:
        return os.getcwd() if self.is_remote else os.path.abspath(self.path)

    def state(self) -> str:
        tables = [
            table for of_language in self.parts_by_language.values() for part in of_language.values() for table in part
        ]
        return "".join(table.state() for table in tables)

    def records(self, problems: Problems) -> Iterator[tuple[dict, Place, str]]:
        for language, part in self.parts_by_language.items():
            sides = {}
            for name in ("corpus", "queries"):
                sides[name] = {}
                for table in part[name]:
                    for record, position, where in table.records(Problems(self.path, 1.0, quiet=True)):
                        key = str(record.get("id", record.get("_id")))
                        sides[name][key] = (record.get("text"), Place(table, position), where, "image" in record)
            pictures, texts = sides["corpus"], sides["queries"]
            ids = ("corpus-id", "query-id")
            if not any(has_picture for *_, has_picture in pictures.values()):
                pictures, texts, ids = texts, pictures, ids[::-1]
            captions: dict[str, list[str]] = {}
            for table in part["qrels"]:
                for pair, _, where in table.records(problems):
                    picture, text = (str(pair.get(name)) for name in ids)
                    if picture not in pictures or text not in texts:
                        problems.bad("pair of what is not there", where)
                    elif pair.get("score", 1):
                        captions.setdefault(picture, []).append(texts[text][0])
            for key, found in captions.items():
                _, place, where, _ = pictures[key]
                record = {"image": self.read(place)["image"], "image_id": key, "captions": {language: found}}
                yield record, place, where

    def read(self, position: Place) -> dict:
        return {"image": position.read().get("image")}


class HubSplit(Table):
    """A split of a data set that `datasets` has loaded, pictures undecoded."""

    def __init__(self, path: str, split: str | None, language: str | None, rows: datasets.Dataset):
        super().__init__(path, split, language)
        for name, feature in rows.features.items():
            if isinstance(feature, datasets.Image):
                rows = rows.cast_column(name, datasets.Image(decode=False))
        self.rows = rows

    is_remote = True

    def records(self, problems: Problems) -> Iterator[tuple[dict, int, str]]:
        for number, record in enumerate(self.rows):
            problems.rows += 1
            yield record, number, f"{self.path} row {number + 1}"

    def read(self, position: int) -> dict:
        return self.rows[position]

    def state(self) -> str:
        return self.rows._fingerprint


class HubStream(Table):
    """A split of a data set on the Hub, or one shard of it, read as it is asked for; pictures undecoded."""

    def __init__(self, path: str, split: str | None, language: str | None, rows: datasets.IterableDataset):
        super().__init__(path, split, language)
        for name, feature in (rows.features or {}).items():
            if isinstance(feature, datasets.Image):
                rows = rows.cast_column(name, datasets.Image(decode=False))
        self.rows = rows

    is_remote = True

    def parts(self) -> list["HubStream"]:
        count = self.rows.num_shards
        shards = [self.rows.shard(count, number) for number in range(count)]
        return [HubStream(self.path, self.split, self.language, shard) for shard in shards]

    def records(self, problems: Problems) -> Iterator[tuple[dict, int, str]]:
        for number, record in enumerate(stream_rows(self.rows)):
            problems.rows += 1
            yield record, number, f"{self.path} row {number + 1}"

    def read(self, position: int) -> dict:
        raise NotImplementedError("a stream is read once, from its beginning")

    def state(self) -> str:
        return self.path


def stream_rows(rows: datasets.IterableDataset) -> Iterator[dict]:
    """The rows of a stream, in a data loader's worker too: iterating over it there would take a part of them."""
    for batch in rows.iter(_ROWS_OF_A_STREAM_AT_A_TIME):
        yield from (dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True))


FORMATS: dict[str, type[Table]] = {
    ".jsonl": JSONLines,
    ".ndjson": JSONLines,
    ".csv": SeparatedValues,
    ".tsv": SeparatedValues,
    ".parquet": Parquet,
    ".tar": WebDataset,
}


def split_of(path: str | os.PathLike) -> str | None:
    """The split that a file's or folder's name tells, as on the Hub: `train-00000-of-00002.parquet`, `val.jsonl`."""
    words = re.split(r"[^a-z]+", Path(path).name.lower().split(".")[0])
    return next((SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES), None)


def open_tables(source: str, streaming: bool = False) -> list[Table]:
    """The tables that a name means: a file, a pattern such as `shards/*.tar`, a folder, a URL of one of these, or a
    data set on the Hub.

    Args:
        streaming: of the Hub, do not download the data set, but read it as records are asked for.

    In a folder these are the `metadata.*` files beside its pictures, at any depth; or else all files of one format.

    Raises:
        FileNotFoundError: there is none.
        ValueError: a folder without tables, or with tables of several formats.
    """
    source = source.removeprefix("file://")
    if is_url(source):
        return _tables_at(source)
    path = Path(os.path.expanduser(source))
    if path.is_dir():
        return _tables_in(path, files_below(path, "*"))
    if path.is_file():
        return [_table(path, path.parent)]
    if any(letter in source for letter in "*?["):
        found = sorted(path.parent.glob(path.name) if "**" not in source else Path().glob(source))
        if not found:
            raise FileNotFoundError(f"no file is called {source}")
        return [_table(file, file.parent) for file in found]
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", source) or source.startswith("."):
        raise FileNotFoundError(f"there is no file or folder {source!r}")
    return _from_hub(source, streaming)


def _table(path: PurePath, root: PurePath) -> Table:
    if path.suffix not in FORMATS:
        raise ValueError(f"{path} is none of {', '.join(FORMATS)}; give a table of one of these formats")
    folders = (split_of(folder) for folder in path.relative_to(root).parts[:-1])
    split = next(filter(None, folders), None) or (None if path.name in METADATA else split_of(path))
    words = path.name.split(".")[:-1]
    language = next((word for word in re.split(r"[._-]", ".".join(words)) if word in LANGUAGES), None)
    return FORMATS[path.suffix](path, split, language)


def _retrieval_tasks(folder: PurePath, files: list[PurePath]) -> list[Table]:
    """The splits of MTEB's layout, where a folder has it."""
    parts: dict[str | None, dict[str | None, dict[str, list[Table]]]] = {}
    roles = {"corpus": "corpus", "queries": "queries", "query": "queries", "qrels": "qrels", "default": "qrels"}
    for path in files:
        for name in (path.name.split(".")[0], path.parent.name):
            language, _, role = name.rpartition("-")
            if role in roles and (not language or language.split("-")[0] in LANGUAGES):
                table = FORMATS[path.suffix](path, split_of(path))
                of_language = parts.setdefault(table.split, {}).setdefault(language or None, {})
                of_language.setdefault(roles[role], []).append(table)
                break
    tasks = []
    for split, languages in parts.items():
        shared = languages.pop(None, {}) | {}
        if not languages and shared.keys() >= {"corpus", "queries", "qrels"}:
            raise ValueError(
                f"{folder} has {' '.join(shared)} in a language that it does not tell; call them, such as en-queries"
            )
        of_languages = {language: shared | own for language, own in languages.items()}
        whole = {language: part for language, part in of_languages.items() if len(part) == 3}
        if whole:
            tasks.append(RetrievalTask(folder, split, whole))
    return tasks


def _tables_at(url: str) -> list[Table]:
    """The tables of a file, a folder or a pattern at a URL.

    Raises:
        FileNotFoundError: there is nothing.
        ValueError: the URL cannot be read, or holds no table.
    """
    try:
        filesystem, root = fsspec.url_to_fs(url)
        folder = PurePosixPath(root)
        if any(letter in root for letter in "*?["):
            found, folder = filesystem.glob(root), folder.parent
        elif filesystem.isfile(root):
            found, folder = [root], folder.parent
        else:
            found = filesystem.find(root)
    except Exception as error:  # there is no end to what the libraries behind fsspec raise
        raise ValueError(f"{url} cannot be read ({type(error).__name__}: {' '.join(str(error).split())})") from error
    if not found:
        raise FileNotFoundError(f"no file is called {url}")
    tables = _tables_in(folder, [PurePosixPath(path) for path in sorted(found)])
    for table in tables:
        parts = table.parts_by_language if isinstance(table, RetrievalTask) else {}
        for one in [table, *(one for part in parts.values() for tables in part.values() for one in tables)]:
            one.path = filesystem.unstrip_protocol(one.path)
    return tables


def _tables_in(folder: PurePath, found: list[PurePath]) -> list[Table]:
    """The tables among the files of a folder."""
    files = [path for path in found if path.suffix in FORMATS]
    if tasks := _retrieval_tasks(folder, files):
        return tasks
    if metadata := [path for path in files if path.name in METADATA]:
        files = metadata
        if twice := [path for path in files if sum(path.parent == other.parent for other in files) > 1]:
            raise ValueError(f"{twice[0].parent} has {' and '.join(path.name for path in twice)}; keep one of them")
    formats = sorted({FORMATS[path.suffix].__name__ for path in files})
    if not files:
        pictures = sum(path.suffix.lower() in PICTURES for path in found)
        raise ValueError(
            f"{folder} holds no captions ({pictures:,} pictures, no table); add a metadata.jsonl with a line such as "
            '{"file_name": "a.jpg", "en": "a dog", "de": "ein Hund"} for each picture'
        )
    if len(formats) > 1:
        raise ValueError(f"{folder} holds tables of several formats ({', '.join(formats)}); give one, or a pattern")
    return [_table(path, folder) for path in files]


def _from_hub(name: str, streaming: bool) -> list[Table]:
    try:
        splits = datasets.load_dataset(name, streaming=streaming)
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"there is no folder {name}, and it cannot be loaded from the Hub: {' '.join(str(error).split())}"
        ) from error
    kind = HubStream if streaming else HubSplit
    return [
        kind(f"{name} {split}", split_of(split), split if split in LANGUAGES else None, rows)
        for split, rows in splits.items()
    ]
