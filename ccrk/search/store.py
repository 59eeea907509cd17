"""What an index keeps on disk: two Lance tables, one of pictures and one of those that cannot be used.

Each change is one commit of Lance: a process that is killed leaves what was there before or after it.
"""

import contextlib
import datetime
import hashlib
import math
import os
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple, NoReturn

import lancedb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from filelock import FileLock, Timeout
from lancedb.index import BTree, IvfRq
from torch import Tensor

from data_scripts.cli import did_you_mean, one_line

FORMAT = "1"
# Up to so many pictures every vector is compared: 1 GB of them at a width of 256. Beyond, Lance's index is.
EXACT_UP_TO = 1_000_000
# Of an approximate search: of the index's partitions, which are looked at; and how many candidates for each result
# are compared by their whole vectors.
PROBED_SHARE = 0.1
REFINED = 15
_ROWS_AT_A_TIME = 10_000
_LENGTH_ERROR = 0.02  # of a vector, which is of length 1: what bf16 leaves of it, several times
_KEPT_VERSIONS = datetime.timedelta(days=1)  # whoever searches may still read the last ones


class FileState(NamedTuple):
    """What a row of either table says of its file."""

    size: int | None
    mtime_ns: int | None
    digest: str | None


FILE = [("id", pa.string()), ("path", pa.string()), ("size", pa.int64()), ("mtime_ns", pa.int64())]
FILE += [("digest", pa.string())]
DAMAGED = pa.schema([*FILE, ("reason", pa.string())])
STATES = "states"

THRESHOLDS = pa.schema(
    [("language", pa.string()), ("threshold", pa.float64()), ("error", pa.float64()), ("queries", pa.int64())]
)


def picture_id(path: str) -> str:
    """A name for a path that is safe in URLs and queries: 32 hexadecimal digits."""
    return hashlib.blake2b(path.encode(), digest_size=16).hexdigest()


def _partitions(rows: int) -> int:
    """Of Lance's index: four times as many as vectors in each."""
    return max(1, round(2 * rows**0.5))


def _pictures_schema(width: int, states: tuple[int, int] | None) -> pa.Schema:
    fields = [*FILE, ("vector", pa.list_(pa.float32(), width)), ("jpeg", pa.binary())]
    return pa.schema(fields + ([(STATES, pa.binary(2 * states[0] * states[1]))] if states else []))


@contextlib.contextmanager
def _reading(location: str) -> Iterator[None]:
    """Raises what Lance raises of an index that cannot be read as ValueError in one line."""
    try:
        yield
    except (ValueError, OSError, RuntimeError, pa.ArrowException) as error:
        reason = re.sub(r", /\S+\.rs:\d+.*", "", one_line(error))  # where in Lance's code
        raise ValueError(f"{location} cannot be read ({reason}); restore it from a copy, or make another") from error


def is_index(folder: str) -> bool:
    """Whether a folder looks like an index; nothing in it is opened."""
    return os.path.isdir(os.path.join(folder, "pictures.lance"))


def no_index(location: str, cure: str) -> str:
    """The message that an index does not exist, with the nearest name of an index in its folder."""
    folder, name = os.path.split(os.path.abspath(location))
    others = os.listdir(folder) if os.path.isdir(folder) else ()
    near = did_you_mean(name, (other for other in others if is_index(os.path.join(folder, other))))
    return f"there is no index {location}" + (f"{near} Otherwise, {cure}" if near else f"; {cure}")


def _is_id(name: str) -> bool:
    return len(name) == 32 and set(name) <= set("0123456789abcdef")


class Store:
    """The tables of an index.

    Args:
        location: a folder, or the URL of an object store that Lance knows, such as `s3://bucket/index`.

    An index may come from anybody. Tables and settings are checked here, ids, paths and vectors where they are read:
    all of them for an exact search, those that are found for an approximate one.

    Raises:
        ValueError: there is no index, or it is of another version of this project, or it is damaged.
    """

    def __init__(self, location: str):
        self.location = location
        if "://" not in location and not os.path.isdir(location):
            cure = f"make it with python -m ccrk.search index SOURCE {location} --model MODEL"
            raise ValueError(no_index(location, cure))
        with _reading(location):
            self.database = lancedb.connect(location)
            tables = set(self.database.list_tables().tables)
        if not {"pictures", "damaged"} <= tables:
            raise ValueError(f"{location} is not an index of images; make one with python -m ccrk.search index")
        with _reading(location):
            self.pictures = self.database.open_table("pictures")
            self.damaged = self.database.open_table("damaged")
            self.settings = {
                name.decode(): value.decode() for name, value in (self.pictures.schema.metadata or {}).items()
            }
        if (found := self.settings.get("format")) != FORMAT:
            raise ValueError(
                f"{location} is not an index of this version (format {found}, not {FORMAT}); make another"
            )
        self._check_settings()
        width = getattr(self.pictures.schema.field("vector").type, "list_size", 0) if "vector" in self._names else 0
        self._check_columns("pictures", self.pictures, _pictures_schema(max(1, width), self.states_shape))
        self._check_columns("damaged", self.damaged, DAMAGED)
        self.refresh()

    @property
    def _names(self) -> list[str]:
        return self.pictures.schema.names

    def _check_settings(self) -> None:
        wrong = [name for name in ("model", "fingerprint") if not self.settings.get(name)]
        wrong += [] if self.settings.get("dtype") in ("fp32", "bf16") else ["dtype"]
        if (states := self.settings.get(STATES)) is not None:
            numbers = states.split()
            is_shape = len(numbers) == 2 and all(re.fullmatch("[1-9][0-9]{0,6}", number) for number in numbers)
            wrong += [] if is_shape else [STATES]
        if wrong:
            self._is_damaged(f"its setting {wrong[0]} is {self.settings.get(wrong[0])!r}")

    def _check_columns(self, name: str, table: lancedb.table.Table, expected: pa.Schema) -> None:
        schema = table.schema
        for field in expected:
            found = schema.field(field.name).type if schema.names.count(field.name) == 1 else None
            if found != field.type:
                self._is_damaged(f"column {field.name} of its table {name} is {found or 'missing'}, not {field.type}")

    def _is_damaged(self, what: str) -> NoReturn:
        raise ValueError(
            f"{self.location} is damaged: {one_line(what)}; restore it from a copy, or make another index"
        )

    @classmethod
    def exists(cls, location: str) -> bool:
        """Whether anything is there that an index could be."""
        if "://" not in location and not os.path.isdir(location):
            return False
        with _reading(location):
            database = lancedb.connect(location)
            if "pictures" not in database.list_tables().tables:
                return False
            try:
                database.open_table("pictures")
            except ValueError as error:
                if "was not found" in str(error):  # killed while it was made: a folder, and nothing in it
                    return False
                raise
        return True

    @classmethod
    def create(
        cls, location: str, settings: dict[str, str], width: int, states: tuple[int, int] | None = None
    ) -> "Store":
        """An index without pictures.

        Args:
            settings: kept with it; what decides which vectors are compared.
            width: numbers in a vector.
            states: (T, D) of the image states that are kept in half precision, 2 T D bytes for a picture; None for
                none.
        """
        database = lancedb.connect(location)
        if states:
            settings = settings | {STATES: "{} {}".format(*states)}
        # The table of pictures last: it is what `exists` looks for.
        database.create_table("damaged", schema=DAMAGED, exist_ok=True)
        schema = _pictures_schema(width, states).with_metadata(settings | {"format": FORMAT})
        database.create_table("pictures", schema=schema)
        return cls(location)

    @staticmethod
    @contextlib.contextmanager
    def locked(location: str) -> Iterator[None]:
        """Inside, nobody else writes to the index. The lock goes with its process, however that ends.

        Raises:
            ValueError: somebody does. Of an object store nobody can tell.
        """
        if "://" in location:
            yield
            return
        os.makedirs(location, exist_ok=True)
        lock = FileLock(os.path.join(location, "index.lock"), timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise ValueError(f"another process is writing to {location}; wait for it, or end it") from None
        try:
            yield
        finally:
            lock.release()

    @property
    def width(self) -> int:
        return self.pictures.schema.field("vector").type.list_size

    @property
    def states_shape(self) -> tuple[int, int] | None:
        """(T, D) of the image states that the index keeps; None where it keeps none."""
        if STATES not in self.settings:
            return None
        tokens, width = self.settings[STATES].split()
        return int(tokens), int(width)

    @property
    def encoded(self) -> list[str]:
        """The columns that follow from a picture's contents."""
        return ["vector", "jpeg", *([STATES] if self.states_shape else [])]

    def refresh(self) -> bool:
        """Takes notice of what others have written; whether there was anything."""
        before = self.pictures.version
        with _reading(self.location):
            self.pictures.checkout_latest()
            self.damaged.checkout_latest()
            self.is_approximate = any(index.name == "vector_idx" for index in self.pictures.list_indices())
        return self.pictures.version != before

    def files(self, table: lancedb.table.Table) -> dict[str, FileState]:
        """Path → state of its file, of one of the two tables."""
        columns = ["path", "size", "mtime_ns", "digest"]
        files, rows = {}, 0
        for batch in self.batches(["id", *columns], table):
            self.check_ids(batch)
            values = (batch[name].to_pylist() for name in columns)
            files |= {path: FileState(*state) for path, *state in zip(*values, strict=True)}
            rows += batch.num_rows
        if len(files) < rows:
            self._is_damaged("it has two rows of one path")
        return files

    def batches(self, columns: list[str], table: lancedb.table.Table | None = None) -> Iterator[pa.RecordBatch]:
        """All rows of the pictures, or of another table, in pieces."""
        with _reading(self.location):
            batches = (table or self.pictures).search().select(columns).to_batches(batch_size=_ROWS_AT_A_TIME)
        while True:
            with _reading(self.location):
                batch = next(batches, None)
            if batch is None:
                return
            yield batch

    def _rows(self, table: lancedb.table.Table, columns: list[str], where: str | None = None) -> pa.Table:
        """Of rows that fulfil a condition, or all."""
        with _reading(self.location):
            query = table.search().select(columns)
            return (query.where(where) if where else query).to_arrow()

    def check_ids(self, rows: pa.Table | pa.RecordBatch) -> None:
        """Raises ValueError where an id is not that of its path."""
        for name, path in zip(rows["id"].to_pylist(), rows["path"].to_pylist(), strict=True):
            if path is None or name != picture_id(path):
                self._is_damaged(f"the id of its path {path!r} is {name!r}")

    def checked(self, rows: pa.Table | pa.RecordBatch) -> Tensor:
        """The vectors (N, P) of rows, each finite and of length 1; ValueError where one is not."""
        column = rows["vector"].combine_chunks() if isinstance(rows, pa.Table) else rows["vector"]
        values = column.flatten()
        if column.null_count or values.null_count:
            self._is_damaged("a vector is missing")
        vectors = torch.from_numpy(values.to_numpy().reshape(-1, self.width).copy())
        # Not-a-number and infinity are not close to 1 either.
        if not (wrong := (vectors.norm(dim=1) - 1).abs() < _LENGTH_ERROR).all():
            row = int(wrong.int().argmin())
            self._is_damaged(f"the vector of {rows['path'][row].as_py()!r} is not of length 1")
        return vectors

    def reasons(self) -> dict[str, str]:
        """Digest → why pictures of that content cannot be used."""
        rows = self._rows(self.damaged, ["digest", "reason"]).to_pylist()
        return {row["digest"]: str(row["reason"]) for row in rows if row["digest"]}

    def write(self, rows: Sequence[dict], damaged: bool = False) -> None:
        """Adds rows, or replaces those of the same path."""
        table = self.damaged if damaged else self.pictures
        if rows:
            rows = [{"id": picture_id(row["path"]), **row} for row in rows]
            contents = pa.Table.from_pylist(rows, schema=table.schema.remove_metadata())
            table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all().execute(contents)

    @property
    def source(self) -> str | None:
        """What the index was last brought up to date with."""
        return (self.pictures.schema.field("path").metadata or {}).get(b"source", b"").decode() or None

    @source.setter
    def source(self, source: str) -> None:
        if source != self.source:
            self.pictures.update_field_metadata({"path": "path", "metadata": {"source": source}})

    def delete(self, paths: Sequence[str], table: lancedb.table.Table) -> None:
        for start in range(0, len(paths), _ROWS_AT_A_TIME):
            ids = ", ".join(f"'{picture_id(path)}'" for path in paths[start : start + _ROWS_AT_A_TIME])
            table.delete(f"id IN ({ids})")

    def copies(self, paths: Sequence[str]) -> dict[str, dict]:
        """Digest → what is `encoded`, of the pictures at some paths."""
        ids = ", ".join(f"'{picture_id(path)}'" for path in paths)
        found = self._rows(self.pictures, ["digest", *self.encoded], f"id IN ({ids})")
        return {row.pop("digest"): row for row in found.to_pylist()}

    def jpegs(self, ids: Sequence[str]) -> dict[str, bytes]:
        """Id → the stored JPEG, of those ids that are there. Nobody has looked into it: it may be anything."""
        return {name: jpeg or b"" for name, jpeg in self._column("jpeg", ids).items()}

    def states_of(self, ids: Sequence[str]) -> dict[str, Tensor]:
        """Id → the image states that are kept, (T, D) in half precision, of those ids that are there."""
        found = self._column(STATES, ids)
        if lacking := [name for name, kept in found.items() if not kept]:
            self._is_damaged(f"the image {lacking[0]} has no states")
        return {
            name: torch.frombuffer(bytearray(kept), dtype=torch.float16).view(self.states_shape)
            for name, kept in found.items()
        }

    def _column(self, name: str, ids: Sequence[str]) -> dict[str, bytes | None]:
        where = ", ".join(f"'{name}'" for name in ids if _is_id(name))
        if not where:
            return {}
        found = self._rows(self.pictures, ["id", name], f"id IN ({where})")
        return dict(zip(found["id"].to_pylist(), found[name].to_pylist(), strict=True))

    def write_thresholds(self, rows: Sequence[dict]) -> None:
        """Replaces the thresholds of all languages."""
        self.database.create_table("thresholds", pa.Table.from_pylist(rows, schema=THRESHOLDS), mode="overwrite")

    def thresholds(self) -> dict[str, float]:
        """Language → score from which a result is likely; empty without a calibration."""
        if "thresholds" not in self.database.list_tables().tables:
            return {}
        with _reading(self.location):
            table = self.database.open_table("thresholds")
        self._check_columns("thresholds", table, THRESHOLDS)
        rows = self._rows(table, ["language", "threshold"]).to_pylist()
        for row in rows:
            if not row["language"] or row["threshold"] is None or not math.isfinite(row["threshold"]):
                self._is_damaged(f"the threshold of {row['language']!r} is {row['threshold']}")
        return {row["language"]: row["threshold"] for row in rows}

    def vector(self, name: str) -> Tensor | None:
        """Of the picture of an id, (P,); None where it is not there."""
        if not _is_id(name):
            return None
        found = self._rows(self.pictures, ["path", "vector"], f"id = '{name}'")
        return self.checked(found)[0] if found.num_rows else None

    def folders(self) -> set[str]:
        """All folders that hold images, at any depth."""
        found = set()
        for batch in self.batches(["id", "path"]):
            for folder in {path.rpartition("/")[0] for path in batch["path"].to_pylist() if path}:
                parts = folder.split("/")
                found |= {"/".join(parts[:depth]) for depth in range(1, len(parts) + 1)}
        return found - {""}

    def vectors(self) -> tuple[pa.Table, Tensor]:
        """`id`, `path` and `mtime_ns` of all pictures, and their vectors (N, P) in fp32; 4 P bytes each."""
        vectors = torch.empty(self.pictures.count_rows(), self.width)
        columns, start = [], 0
        for batch in self.batches(["id", "path", "mtime_ns", "vector"]):
            self.check_ids(batch)
            vectors[start : start + len(batch)] = self.checked(batch)
            start += len(batch)
            columns.append(batch.select(["id", "path", "mtime_ns"]))
        schema = pa.schema([FILE[0], FILE[1], FILE[3]])
        pictures = pa.Table.from_batches([part.cast(schema) for part in columns], schema)
        if pc.count_distinct(pictures["id"]).as_py() < len(pictures):
            self._is_damaged("it has two rows of one path")
        return pictures, vectors

    def tidy(self, exact_up_to: int = EXACT_UP_TO) -> None:
        """After writing: many small files become few, and the indices know the new rows."""
        rows = self.pictures.count_rows()
        if rows and not list(self.pictures.list_indices()):
            self.pictures.create_index("id", config=BTree())
        if rows > exact_up_to and not self.is_approximate:
            # One bit for each number (RaBitQ): built in a fortieth of the time of product quantisation, as good after
            # refinement.
            self.pictures.create_index("vector", config=IvfRq("dot", num_partitions=_partitions(rows)))
        for table in (self.pictures, self.damaged):
            table.optimize(cleanup_older_than=_KEPT_VERSIONS)
        self.refresh()

    def nearest(self, vector: np.ndarray, k: int, where: str | None = None) -> list[dict]:
        """The `k` best by Lance's index: `id`, `path` and `score`, best first."""
        probed = round(PROBED_SHARE * _partitions(self.pictures.count_rows()))
        query = self.pictures.search(vector).distance_type("dot").limit(k)
        query = query.nprobes(max(20, probed)).refine_factor(REFINED)
        if where is not None:
            query = query.where(where, prefilter=True)
        with _reading(self.location):
            found = query.select(["id", "path", "vector", "_distance"]).to_arrow()
        self.check_ids(found)
        self.checked(found)
        columns = (found[name].to_pylist() for name in ("id", "path", "_distance"))
        return [{"id": name, "path": path, "score": 1 - far} for name, path, far in zip(*columns, strict=True)]

    def recall(self, k: int = 10, queries: int = 100) -> float:
        """Of the exact `k` best of stored vectors, the share that Lance's index finds."""
        rows = torch.linspace(0, self.pictures.count_rows() - 1, queries).long().tolist()
        vectors = self.checked(self.pictures.take_offsets(rows).select(["path", "vector"]).to_arrow())
        best, ids = torch.full((queries, k), -torch.inf), np.full((queries, k), "", dtype=object)
        for batch in self.batches(["id", "path", "vector"]):
            both = torch.cat([best, vectors @ self.checked(batch).T], dim=1)
            best, chosen = both.topk(k)
            names = np.concatenate(
                [ids, np.tile(np.array(batch["id"].to_pylist(), dtype=object), (queries, 1))], axis=1
            )
            ids = np.take_along_axis(names, chosen.numpy(), axis=1)
        found = [{row["id"] for row in self.nearest(vector, k)} for vector in vectors.numpy()]
        return float(np.mean([len(set(exact) & near) / k for exact, near in zip(ids, found, strict=True)]))
