"""Reads an epoch of synthetic rows in shuffled order and watches the memory of every process.

    python benchmarks/streaming_memory.py --output streaming_memory.json                 3,000,000 rows, about 1.4 GB
    python benchmarks/streaming_memory.py --output streaming_memory.json --format parquet      not of shards: any table
    python benchmarks/streaming_memory.py --output streaming_memory.json --rows 200000   a quick look

Exits with 1 where a row was not seen exactly once, or where the resident memory of a process grew by 150 MiB or more
from row 100,000 to the end.
"""

import argparse
import base64
import io
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch.utils.data import DataLoader
from tqdm import tqdm

import data_scripts
from data_scripts.streams import EndlessRows

LANGUAGES = ["en", "de", "fr", "zh"]
ROWS_PER_SHARD = 100_000
FIRST_MEASURE = 100_000
LIMIT_MIB = 150
BATCH = 500


def picture() -> bytes:
    file = io.BytesIO()
    Image.effect_noise((8, 8), 80).save(file, "PNG")
    return file.getvalue()


def write_parquet(folder: Path, rows: int) -> None:
    """As `write_shards`, ten files in row groups of 1,000."""
    image = {"bytes": picture(), "path": None}
    for file in tqdm(range(10), desc="writing", unit=" files"):
        numbers = range(file * rows // 10, (file + 1) * rows // 10)
        captions = [
            {
                language: [f"{number} {language}"] * (place <= number % len(LANGUAGES))
                for place, language in enumerate(LANGUAGES)
            }
            for number in numbers
        ]
        table = pa.table(
            {"image": [image] * len(numbers), "image_id": [str(n) for n in numbers], "captions": captions}
        )
        pq.write_table(table, folder / f"train-{file:05d}-of-00010.parquet", row_group_size=1000)


def write_shards(folder: Path, rows: int) -> None:
    """Rows with one to four captions and an 8 × 8 PNG inline; the row's number is in its captions."""
    encoded = base64.b64encode(picture()).decode()
    for start in tqdm(range(0, rows, ROWS_PER_SHARD), desc="writing", unit=" shards"):
        with open(folder / f"part_{start:08d}.data", "w", encoding="utf-8") as shard:
            for number in range(start, min(start + ROWS_PER_SHARD, rows)):
                captions = {language: f"{number} {language}" for language in LANGUAGES[: 1 + number % len(LANGUAGES)]}
                shard.write(json.dumps({"caption": captions, "image": encoded}) + "\n")


def resident_mib() -> float:
    """Resident memory of this process, with what it shares."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def collate(rows: list[dict]) -> tuple[np.ndarray, str, float]:
    of_first_pass = [row for row in rows if not row.get("pass")]
    numbers = np.array([int(row["captions"]["en"][0].split()[0]) for row in of_first_pass], dtype=int)
    return numbers, f"process {os.getpid()}", resident_mib()


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=3_000_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--format", choices=["shards", "parquet"], default="shards")
    arguments = parser.parse_args(argv)
    if arguments.rows <= FIRST_MEASURE:
        parser.error(
            f"--rows is {arguments.rows:,}; use more than {FIRST_MEASURE:,}, where the first measure is taken"
        )
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        if arguments.format == "parquet":
            write_parquet(Path(folder), arguments.rows)
            rows = data_scripts.load(folder, split="train", streaming=True)
            rows = EndlessRows(rows.cast_column("image", datasets.Image(decode=False)), BATCH)
            loader = DataLoader(rows, BATCH, num_workers=arguments.workers, collate_fn=collate)
        else:
            write_shards(Path(folder), arguments.rows)
            rows = data_scripts.load(
                "pretraining",
                split="train",
                data_dir=folder,
                cache_dir=f"{folder}/cache",
                languages=LANGUAGES,
                streaming=True,
            )
            loader = DataLoader(rows, BATCH, shuffle=True, num_workers=arguments.workers, collate_fn=collate)
        result = measure(loader, arguments.rows)
    arguments.output.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))
    sys.exit(not (result["every_row_once"] and max(result["growth_mib"].values()) < LIMIT_MIB))


def measure(loader: DataLoader, rows: int) -> dict:
    """One epoch: growth of resident memory per process, in MiB, and whether every row came exactly once."""
    seen = np.zeros(rows, dtype=np.int8)
    first, last = {}, {}
    read = later_batches = 0
    started = time.perf_counter()
    with tqdm(total=rows, desc="reading", unit=" rows") as progress:
        for numbers, reader, memory in loader:
            later_batches = 0 if len(numbers) else later_batches + 1
            if seen.all() or later_batches == 100:  # a stream has no end, and its readers no equal shares
                break
            np.add.at(seen, numbers, 1)
            read += len(numbers)
            progress.update(len(numbers))
            if read >= FIRST_MEASURE:
                for process, value in ((reader, memory), ("main process", resident_mib())):
                    first.setdefault(process, value)
                    last[process] = value
    return {
        "rows": read,
        "every_row_once": bool((seen == 1).all()),
        "resident_mib": {process: round(value, 1) for process, value in last.items()},
        "growth_mib": {process: round(last[process] - first[process], 1) for process in last},
        "rows_per_second": round(read / (time.perf_counter() - started)),
    }


if __name__ == "__main__":
    main()
