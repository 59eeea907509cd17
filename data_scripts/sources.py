"""Which tables a name means: a file, a folder, a pattern, a URL, or a data set on the Hub."""

import glob
import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePath, PurePosixPath

import datasets
import fsspec

from data_scripts.columns import LANGUAGE_COLUMNS, LANGUAGES, language_of_name
from data_scripts.documents import JSONDocument
from data_scripts.formats import PICTURES, JSONLines, Parquet, SeparatedValues, Table, is_url, stem_and_ending
from data_scripts.problems import Problems
from data_scripts.retrieval_task import RetrievalTask
from data_scripts.rows import split_of, split_of_folders
from data_scripts.tars import WebDataset
from data_scripts.text import files_below

METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
PATTERN_LETTERS = "*?[{"
_ROWS_OF_A_STREAM_AT_A_TIME = 16


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
    ".json": JSONDocument,
    ".csv": SeparatedValues,
    ".tsv": SeparatedValues,
    ".parquet": Parquet,
    ".tar": WebDataset,
}
# By the file that is named, not among others in a folder.
_FORMATS_OF_FILES = FORMATS | {".txt": SeparatedValues}


def open_tables(source: str, streaming: bool = False) -> list[Table]:
    """The tables that a name means: a file, a pattern such as `shards/*.tar` or `shards/{0000..0009}.tar`, a folder, a
    URL of one of these, or a data set on the Hub.

    Args:
        streaming: of the Hub, do not download the data set, but read it as records are asked for.

    In a folder these are the `metadata.*` files beside its pictures, at any depth; or else all files of one format.
    Beside tars, img2dataset's statistics are passed over: a table of a tar's name, and all `.json` files.

    Raises:
        FileNotFoundError: there is none, or one of those that braces name is missing.
        ValueError: a folder without tables, or with tables of several formats.
    """
    source = re.sub("^(file|local)://(localhost(?=/))?", "", source)
    if is_url(source):
        return _tables_at(source)
    path = Path(os.path.expanduser(source))
    if path.is_dir():
        return _tables_in(path, files_below(path, "*"))
    if path.is_file():
        return [_table(path, path.parent)]
    if any(letter in source for letter in PATTERN_LETTERS):
        found = [Path(file) for file in _matches(str(path), _files_called)]
        root = _fixed_part(path)
        return [_table(file, root) for file in _tables_among(found) or found]
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", source) or source.startswith("."):
        raise FileNotFoundError(f"there is no file or folder {source!r}")
    return _from_hub(source, streaming)


def _files_called(pattern: str) -> list[str]:
    return [file for file in glob.glob(pattern, recursive=True) if os.path.isfile(file)]


def _matches(pattern: str, find: Callable[[str], Iterable[str]]) -> list[str]:
    """The files that a pattern means, each once. Raises FileNotFoundError where braces name one that is not there."""
    found: dict[str, None] = {}
    for one in _expanded(pattern):
        files = sorted(find(one))
        if not files:
            of_braces = f", one of {pattern}" if one != pattern else ""
            raise FileNotFoundError(f"no file is called {one}{of_braces}")
        found |= dict.fromkeys(files)
    return list(found)


def _expanded(pattern: str) -> Iterator[str]:
    """Yield the patterns that braces stand for: `{0000..0009}`, `{train,val}`, as shells and WebDataset read them.

    They come one at a time, so that a range that is far too long ends at its first missing file.
    """
    for braces in re.finditer(r"\{([^{}]*)\}", pattern):
        if numbers := re.fullmatch(r"([0-9]+)\.\.([0-9]+)", braces[1]):
            first, last = numbers.groups()
            width = max(len(first), len(last)) if first != "0" and "0" in (first[0], last[0]) else 0
            members = (f"{number:0{width}d}" for number in range(int(first), int(last) + 1))
        elif "," in braces[1]:
            members = braces[1].split(",")
        else:
            continue
        start, end = pattern[: braces.start()], pattern[braces.end() :]
        for member in members:
            yield from _expanded(f"{start}{member}{end}")
        return
    yield pattern


def _fixed_part(pattern: PurePath) -> PurePath:
    """The folder that a pattern begins with."""
    parts = itertools.takewhile(lambda part: not any(letter in part for letter in PATTERN_LETTERS), pattern.parts)
    return type(pattern)(*parts)


def _tables_among(files: list[PurePath]) -> list[PurePath]:
    """The files that are tables, without those that hold the statistics of others."""
    named = {path: stem_and_ending(path) for path in files}
    tables = [path for path, (_, ending) in named.items() if ending in FORMATS]
    tables = [path for path in tables if named[path][1] != ".json"] or tables
    tars = {path.with_name(named[path][0]) for path in tables if named[path][1] == ".tar"}
    return [path for path in tables if named[path][1] == ".tar" or path.with_name(named[path][0]) not in tars]


def _table(path: PurePath, root: PurePath) -> Table:
    stem, ending = stem_and_ending(path)
    if ending not in _FORMATS_OF_FILES:
        raise ValueError(f"{path} is none of {', '.join(FORMATS)}; give a table of one of these formats")
    split = split_of_folders(path.relative_to(root)) or split_of(stem)
    return _FORMATS_OF_FILES[ending](path, split, language_of_name(stem) or _language_of_folders(path))


def _language_of_folders(path: PurePath) -> str | None:
    """The language of a folder as Hive calls them: `language=de/rows.parquet`."""
    named = (part.split("=", 1) for part in path.parts[:-1] if "=" in part)
    return next((value for name, value in named if name.lower() in LANGUAGE_COLUMNS and value), None)


def _retrieval_tasks(folder: PurePath, files: list[PurePath]) -> list[Table]:
    """The splits of MTEB's layout, where a folder has it."""
    parts: dict[str | None, dict[str | None, dict[str, list[Table]]]] = {}
    roles = {"corpus": "corpus", "queries": "queries", "query": "queries", "qrels": "qrels", "default": "qrels"}
    for path in files:
        stem, ending = stem_and_ending(path)
        for name in (stem.split(".")[0], path.parent.name):
            language, _, role = name.rpartition("-")
            if role in roles and (not language or language.split("-")[0] in LANGUAGES):
                table = _FORMATS_OF_FILES[ending](path, split_of(stem))
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
        if any(letter in root for letter in PATTERN_LETTERS):
            found, folder = _matches(root, filesystem.glob), _fixed_part(folder)
        elif filesystem.isfile(root):
            found, folder = [root], folder.parent
        else:
            found = filesystem.find(root)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{url} is not there ({error})") from error
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
    files = [found[0]] if len(found) == 1 and found[0].suffix == ".txt" else _tables_among(found)
    if tasks := _retrieval_tasks(folder, files):
        return tasks
    if metadata := [path for path in files if "".join(stem_and_ending(path)) in METADATA]:
        files = metadata
        if twice := [path for path in files if sum(path.parent == other.parent for other in files) > 1]:
            raise ValueError(f"{twice[0].parent} has {' and '.join(path.name for path in twice)}; keep one of them")
    formats = sorted({_FORMATS_OF_FILES[stem_and_ending(path)[1]].__name__ for path in files})
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
