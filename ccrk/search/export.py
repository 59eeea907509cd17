"""An index for other search engines: FAISS, Qdrant, or whatever reads Parquet."""

import importlib.util
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ccrk.search.store import Store
from data_scripts.files import written_whole

COLLECTION = "pictures"
PACKAGES = {
    "faiss": ("faiss", "faiss-cpu"),
    "qdrant": ("qdrant_client", "qdrant-client"),
    "parquet": ("pyarrow", "pyarrow"),
}


def export(store: Store, kind: str, output: Path) -> int:
    """Writes vectors and paths, without the stored pictures, to a folder or file that is not there yet.

    - `faiss`: a folder of `index.faiss`, inner products of L2-normalised vectors, and `paths.json` in its order.
    - `qdrant`: a folder for Qdrant's embedded mode, collection `pictures`, `path` in the payload.
    - `parquet`: a file of `path`, `size`, `mtime_ns`, `digest` and `vector`.

    Returns: how many.

    Raises:
        ValueError: there is something already, or a package is missing.
    """
    module, package = PACKAGES[kind]
    if importlib.util.find_spec(module) is None:
        raise ValueError(f"--to {kind} needs the package {package}; install it with pip install {package}")
    if output.exists():
        raise ValueError(f"{output} is there already; name another")
    output.absolute().parent.mkdir(parents=True, exist_ok=True)
    with written_whole(output) as unfinished:
        {"faiss": _to_faiss, "qdrant": _to_qdrant, "parquet": _to_parquet}[kind](store, unfinished)
    return store.pictures.count_rows()


def _to_faiss(store: Store, folder: Path) -> None:
    import faiss

    pictures, vectors = store.vectors()
    index = faiss.IndexFlatIP(store.width)
    index.add(vectors.numpy())
    folder.mkdir()
    faiss.write_index(index, str(folder / "index.faiss"))
    (folder / "paths.json").write_text(json.dumps(pictures["path"].to_pylist(), ensure_ascii=False), encoding="utf-8")


def _to_qdrant(store: Store, folder: Path) -> None:
    from qdrant_client import QdrantClient, models

    client = QdrantClient(path=str(folder))
    try:
        settings = models.VectorParams(size=store.width, distance=models.Distance.COSINE)
        client.create_collection(COLLECTION, vectors_config=settings)
        for batch in store.batches(["id", "path", "vector"]):
            store.check_ids(batch)
            store.checked(batch)
            rows = batch.to_pylist()
            client.upsert(
                COLLECTION,
                models.Batch(
                    ids=[row["id"] for row in rows],  # 128 bits: to Qdrant a UUID
                    vectors=[row["vector"] for row in rows],
                    payloads=[{"path": row["path"]} for row in rows],
                ),
            )
    finally:
        client.close()


def _to_parquet(store: Store, path: Path) -> None:
    columns = ["path", "size", "mtime_ns", "digest", "vector"]
    schema = pa.schema([store.pictures.schema.field(name).remove_metadata() for name in columns], store.settings)
    with pq.ParquetWriter(path, schema) as writer:
        for batch in store.batches(["id", *columns]):
            store.check_ids(batch)
            store.checked(batch)
            writer.write_batch(batch.select(columns).cast(schema))
