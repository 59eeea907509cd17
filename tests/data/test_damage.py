"""Files with one byte changed, or cut off: noticed, or of equal rows; what no format can notice is a letter of a text.

PYTHONPATH=tests python tests/data/test_damage.py 170      prints the outcomes of 170 faults of each format
"""

import gzip
import io
import json
import random
import sys
import tarfile
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from builders import jpeg, write

import data_scripts
import data_scripts.problems
from ccrk.retrieval.arrays import ArrayFile
from data_scripts.text import read_text

NUMBER = 6  # rows
IMAGES = [jpeg(30 * number) for number in range(NUMBER)]
TEXTS = [{"en": f"a dog, number {number}", "de": f'ein Hund "{number}"'} for number in range(NUMBER)]


def tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for number, (image, texts) in enumerate(zip(IMAGES, TEXTS, strict=True)):
            for ending, contents in (("jpg", image), ("json", json.dumps(texts).encode())):
                member = tarfile.TarInfo(f"{number}.{ending}")
                member.size = len(contents)
                archive.addfile(member, io.BytesIO(contents))
    return buffer.getvalue()


def parquet() -> bytes:
    rows = [
        {"image": {"bytes": image, "path": f"{number}.jpg"}, **texts}
        for number, (image, texts) in enumerate(zip(IMAGES, TEXTS, strict=True))
    ]
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer, write_page_checksum=True, row_group_size=2)
    return buffer.getvalue()


def json_lines() -> bytes:
    lines = [json.dumps({"file_name": f"{number}.jpg", **texts}) for number, texts in enumerate(TEXTS)]
    return "".join(f"{line}\n" for line in lines).encode()


def comma_separated() -> bytes:
    lines = ["file_name,en,de"]
    for number, texts in enumerate(TEXTS):
        quoted = ('"{}"'.format(text.replace('"', '""')) for text in texts.values())
        lines.append(f"{number}.jpg,{','.join(quoted)}")
    return "".join(f"{line}\n" for line in lines).encode()


def arrays() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, images=np.random.default_rng(0).normal(size=(NUMBER, 4)))
    return buffer.getvalue()


def read_rows(path: Path) -> tuple[list, int]:
    """The rows as they are trained on, and how much was counted as wrong."""
    options = {"languages": ["en", "de"], "max_bad_fraction": 1.0, "cache_dir": str(path.parent / "cache")}
    builder = data_scripts.make_builder(str(path), split="train", **options)
    annotations, in_files = builder.read_annotations()
    in_images = data_scripts.problems.Problems("images", 1.0, quiet=True)
    found = [
        (annotation.image_id, annotation.captions, builder.encoded(image) if annotation.place else None)
        for annotation, image in builder.check_images(annotations, in_images)
        if image is not None
    ]
    return sorted(found, key=str), in_files.total() + in_files.tags.total() + in_images.total()


def read_arrays(path: Path) -> tuple[list, int]:
    with ArrayFile(path) as file:
        return file.read("images", (NUMBER, 4)).tolist(), 0


FORMATS: dict[str, tuple[Callable[[], bytes], Callable[[Path], tuple[list, int]]]] = {
    "train.tar": (tar, read_rows),
    "train.parquet": (parquet, read_rows),
    "train.jsonl": (json_lines, read_rows),
    "train.csv": (comma_separated, read_rows),
    "a.npz": (arrays, read_arrays),
    "captions.gz": (
        lambda: gzip.compress(json_lines(), mtime=0),
        lambda path: (read_text(path, "download it again").splitlines(), 0),
    ),
}


def outcome(name: str, contents: bytes, expected: list) -> str:
    with tempfile.TemporaryDirectory() as folder:
        for number, image in enumerate(IMAGES):
            write(Path(folder, f"{number}.jpg"), image)
        path = write(Path(folder, name), contents)
        try:
            rows, counted = FORMATS[name][1](path)
        except (ValueError, OSError):
            return "error"
    if counted:
        return "counted"
    return "equal" if rows == expected else "changed" if len(rows) == len(expected) else "lost"


def outcomes(name: str, number: int) -> Counter[str]:
    """Of so many faults: half of them one byte changed, half a cut."""
    contents, drawn = FORMATS[name][0](), random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        for place, image in enumerate(IMAGES):
            write(Path(folder, f"{place}.jpg"), image)
        expected, _ = FORMATS[name][1](write(Path(folder, name), contents))
    found = Counter()
    for fault in range(number):
        place = drawn.randrange(len(contents))
        damaged = bytearray(contents)
        damaged[place] ^= drawn.randrange(1, 256)
        found[outcome(name, bytes(damaged) if fault % 2 else contents[:place], expected)] += 1
    return found


@pytest.mark.parametrize("name", FORMATS)
def test_no_row_is_lost_in_silence(name):
    """But where a text is cut after what may be a whole row, which nothing tells from a shorter table."""
    contents, found = FORMATS[name][0](), outcomes(name, 40)
    drawn, ends = random.Random(0), 0
    for fault in range(40):
        place = drawn.randrange(len(contents))
        drawn.randrange(1, 256)
        ends += fault % 2 == 0 and contents[:place].rstrip(b"\n").endswith((b"}", b'"', b","))
    is_text = name.endswith(("jsonl", "csv"))
    assert found["lost"] <= (ends if is_text else 0), found
    assert found["error"] + found["counted"] >= 15, found
    if not is_text and name != "train.tar":  # checksums
        assert not found["changed"]


if __name__ == "__main__":
    datasets.disable_progress_bars()
    for name in FORMATS:
        print(name, dict(outcomes(name, int(sys.argv[1]))))
