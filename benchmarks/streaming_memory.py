"""Reads an epoch of synthetic pre-training shards in shuffled order and watches the memory of every process.

    python benchmarks/streaming_memory.py --output streaming_memory.json                 3,000,000 rows, about 1.4 GB
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
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from tqdm import tqdm

import data_scripts

LANGUAGES = ["en", "de", "fr", "zh"]
ROWS_PER_SHARD = 100_000
FIRST_MEASURE = 100_000
LIMIT_MIB = 150


def write_shards(folder: Path, rows: int) -> None:
    """Rows with one to four captions and an 8 × 8 PNG inline; the row's number is in its captions."""
    file = io.BytesIO()
    Image.effect_noise((8, 8), 80).save(file, "PNG")
    picture = base64.b64encode(file.getvalue()).decode()
    for start in tqdm(range(0, rows, ROWS_PER_SHARD), desc="writing", unit=" shards"):
        with open(folder / f"part_{start:08d}.data", "w", encoding="utf-8") as shard:
            for number in range(start, min(start + ROWS_PER_SHARD, rows)):
                captions = {language: f"{number} {language}" for language in LANGUAGES[: 1 + number % len(LANGUAGES)]}
                shard.write(json.dumps({"caption": captions, "image": picture}) + "\n")


def resident_mib() -> float:
    """Resident memory of this process, with what it shares."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def collate(rows: list[dict]) -> tuple[np.ndarray, str, float]:
    numbers = np.array([int(row["captions"]["en"][0].split()[0]) for row in rows])
    return numbers, f"process {os.getpid()}", resident_mib()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=3_000_000)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        write_shards(Path(folder), arguments.rows)
        rows = data_scripts.load(
            "pretraining",
            split="train",
            data_dir=folder,
            cache_dir=f"{folder}/cache",
            languages=LANGUAGES,
            streaming=True,
        )
        result = measure(rows, arguments.workers)
    arguments.output.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))
    sys.exit(not (result["every_row_once"] and max(result["growth_mib"].values()) < LIMIT_MIB))


def measure(rows: torch.utils.data.Dataset, workers: int) -> dict:
    """One epoch: growth of resident memory per process, in MiB, and whether every row came exactly once."""
    loader = DataLoader(rows, batch_size=500, shuffle=True, num_workers=workers, collate_fn=collate)
    seen = np.zeros(len(rows), dtype=np.int8)
    first, last = {}, {}
    read = 0
    started = time.perf_counter()
    with tqdm(total=len(rows), desc="reading", unit=" rows") as progress:
        for numbers, reader, memory in loader:
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
