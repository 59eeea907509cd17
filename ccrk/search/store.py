"""What an index keeps on disk: two Lance tables, one of pictures and one of those that cannot be used.

Each change is one commit of Lance: a process that is killed leaves what was there before or after it.
"""

import contextlib
import datetime
import hashlib
import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import lancedb
import numpy as np
import pyarrow as pa
import torch
from filelock import FileLock, Timeout
from lancedb.index import BTree, IvfRq
from torch import Tensor

FORMAT = "1"
# Up to so many pictures every vector is compared: 1 GB of them at a width of 256. Beyond, Lance's index is.
EXACT_UP_TO = 1_000_000
# Of an approximate search: of the index's partitions, which are looked at; and how many candidates for each result
# are compared by their whole vectors.
PROBED_SHARE = 0.1
REFINED = 15
_ROWS_AT_A_TIME = 10_000
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


def _is_id(name: str) -> bool:
    return len(name) == 32 and set(name) <= set("0123456789abcdef")


class Store:
    """The tables of an index.

    Args:
        location: a folder, or the URL of an object store that Lance knows, such as `s3://bucket/index`.

    Raises:
        ValueError: there is no index, or it is of another version of this project.
    """

    def __init__(self, location: str):
        self.location = location
        if "://" not in location and not os.path.isdir(location):
            raise ValueError(
                f"there is no index {location}; make it with python -m ccrk.search index SOURCE {location}"
            )
        self.database = lancedb.connect(location)
        if not {"pictures", "damaged"} <= set(self.database.list_tables().tables):
            raise ValueError(f"{location} is no index of pictures; make one with python -m ccrk.search index")
        self.pictures = self.database.open_table("pictures")
        self.damaged = self.database.open_table("damaged")
        self.settings = {
            name.decode(): value.decode() for name, value in (self.pictures.schema.metadata or {}).items()
        }
        if (found := self.settings.get("format")) != FORMAT:
            raise ValueError(f"{location} is no index of this version (format {found}, not {FORMAT}); make another")
        self.refresh()

    @classmethod
    def exists(cls, location: str) -> bool:
        """Whether anything is there that an index could be."""
        if "://" not in location and not os.path.isdir(location):
            return False
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
        fields = [*FILE, ("vector", pa.list_(pa.float32(), width)), ("jpeg", pa.binary())]
        if states:
            fields.append((STATES, pa.binary(2 * states[0] * states[1])))
            settings = settings | {STATES: "{} {}".format(*states)}
        # The table of pictures last: it is what `exists` looks for.
        database.create_table("damaged", schema=DAMAGED, exist_ok=True)
        database.create_table("pictures", schema=pa.schema(fields, metadata=settings | {"format": FORMAT}))
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
        self.pictures.checkout_latest()
        self.damaged.checkout_latest()
        self.is_approximate = any(index.name == "vector_idx" for index in self.pictures.list_indices())
        return self.pictures.version != before

    def files(self, table: lancedb.table.Table) -> dict[str, FileState]:
        """Path → state of its file, of one of the two tables."""
        columns = ["path", "size", "mtime_ns", "digest"]
        files = {}
        for batch in table.search().select(columns).to_batches(batch_size=_ROWS_AT_A_TIME):
            values = (batch[name].to_pylist() for name in columns)
            files |= {path: FileState(*state) for path, *state in zip(*values, strict=True)}
        return files

    def reasons(self) -> dict[str, str]:
        """Digest → why pictures of that content cannot be used."""
        rows = self.damaged.search().select(["digest", "reason"]).to_arrow().to_pylist()
        return {row["digest"]: row["reason"] for row in rows if row["digest"]}

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
        found = self.pictures.search().where(f"id IN ({ids})").select(["digest", *self.encoded]).to_arrow()
        return {row.pop("digest"): row for row in found.to_pylist()}

    def jpegs(self, ids: Sequence[str]) -> dict[str, bytes]:
        """Id → the stored JPEG, of those ids that are there."""
        return self._column("jpeg", ids)

    def states_of(self, ids: Sequence[str]) -> dict[str, Tensor]:
        """Id → the image states that are kept, (T, D) in half precision, of those ids that are there."""
        found = self._column(STATES, ids)
        return {
            name: torch.frombuffer(bytearray(kept), dtype=torch.float16).view(self.states_shape)
            for name, kept in found.items()
        }

    def _column(self, name: str, ids: Sequence[str]) -> dict[str, bytes]:
        where = ", ".join(f"'{name}'" for name in ids if _is_id(name))
        if not where:
            return {}
        found = self.pictures.search().where(f"id IN ({where})").select(["id", name]).to_arrow()
        return dict(zip(found["id"].to_pylist(), found[name].to_pylist(), strict=True))

    def write_thresholds(self, rows: Sequence[dict]) -> None:
        """Replaces the thresholds of all languages."""
        self.database.create_table("thresholds", pa.Table.from_pylist(rows, schema=THRESHOLDS), mode="overwrite")

    def thresholds(self) -> dict[str, float]:
        """Language → score from which a result is likely; empty without a calibration."""
        if "thresholds" not in self.database.list_tables().tables:
            return {}
        rows = self.database.open_table("thresholds").to_arrow().to_pylist()
        return {row["language"]: row["threshold"] for row in rows}

    def vector(self, name: str) -> Tensor | None:
        """Of the picture of an id, (P,); None where it is not there."""
        if not _is_id(name):
            return None
        found = self.pictures.search().where(f"id = '{name}'").select(["vector"]).to_arrow()
        return torch.tensor(found["vector"][0].as_py()) if found.num_rows else None

    def vectors(self) -> tuple[pa.Table, Tensor]:
        """`id`, `path` and `mtime_ns` of all pictures, and their vectors (N, P) in fp32; 4 P bytes each."""
        vectors = torch.empty(self.pictures.count_rows(), self.width)
        columns, start = [], 0
        query = self.pictures.search().select(["id", "path", "mtime_ns", "vector"])
        for batch in query.to_batches(batch_size=_ROWS_AT_A_TIME):
            values = batch["vector"].flatten().to_numpy().reshape(-1, self.width)
            vectors[start : start + len(values)] = torch.from_numpy(values.copy())
            start += len(values)
            columns.append(batch.select(["id", "path", "mtime_ns"]))
        schema = pa.schema([FILE[0], FILE[1], FILE[3]])
        return pa.Table.from_batches([part.cast(schema) for part in columns], schema), vectors

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
        found = query.select(["id", "path", "_distance"]).to_arrow().to_pylist()
        return [{"id": row["id"], "path": row["path"], "score": 1 - row["_distance"]} for row in found]

    def recall(self, k: int = 10, queries: int = 100) -> float:
        """Of the exact `k` best of stored vectors, the share that Lance's index finds."""
        rows = torch.linspace(0, self.pictures.count_rows() - 1, queries).long().tolist()
        sample = self.pictures.take_offsets(rows).select(["vector"]).to_arrow()["vector"].combine_chunks()
        vectors = torch.from_numpy(sample.flatten().to_numpy().reshape(-1, self.width).copy())
        best, ids = torch.full((queries, k), -torch.inf), np.full((queries, k), "", dtype=object)
        for batch in self.pictures.search().select(["id", "vector"]).to_batches(batch_size=_ROWS_AT_A_TIME):
            block = torch.from_numpy(batch["vector"].flatten().to_numpy().reshape(-1, self.width).copy())
            both = torch.cat([best, vectors @ block.T], dim=1)
            best, chosen = both.topk(k)
            names = np.concatenate(
                [ids, np.tile(np.array(batch["id"].to_pylist(), dtype=object), (queries, 1))], axis=1
            )
            ids = np.take_along_axis(names, chosen.numpy(), axis=1)
        found = [{row["id"] for row in self.nearest(vector, k)} for vector in vectors.numpy()]
        return float(np.mean([len(set(exact) & near) / k for exact, near in zip(ids, found, strict=True)]))
