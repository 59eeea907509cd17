"""Streams of any table: the rows that loading gives, once over processes and workers, resumed where they were left."""

from collections import Counter
from itertools import islice

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from builders import jpeg, reports, write, write_json_lines
from torch.utils.data import DataLoader

import data_scripts.export
from data_scripts import formats
from data_scripts.cli import InputError
from data_scripts.streams import EndlessRows

ROWS = 150


def parquet(folder, rows=ROWS, group=10):
    entries = [
        {"image": {"bytes": jpeg(number, (8, 8)), "path": None}, "image_id": str(number), "en": f"a {number}"}
        for number in range(rows)
    ]
    folder.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(entries), folder / "train-0.parquet", row_group_size=group)
    return folder


def stream(source, split="train", **options):
    rows = data_scripts.load(str(source), split=split, streaming=True, **options)
    return rows.cast_column("image", datasets.Image(decode=False))


def names(rows):
    return [(row["pass"], int(row["image_id"])) for row in rows]


def test_a_stream_gives_the_rows_that_loading_gives(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf-cache")
    entries = []
    for number in range(30):
        write(tmp_path / f"folder/{number}.jpg", jpeg(number))
        entries.append({"file_name": f"{number}.jpg", "en": f"a {number}", "de": [f"ein {number}", "x"]})
    write_json_lines(tmp_path / "folder/metadata.jsonl", entries)
    data_scripts.export.main([str(tmp_path / "folder"), str(tmp_path / "tar"), "--format", "tar"])
    data_scripts.export.main([str(tmp_path / "folder"), str(tmp_path / "parquet")])
    for split in ("train", "validation"):
        options = {"split": split, "validation_fraction": 0.3}
        expected = list(data_scripts.load(str(tmp_path / "folder"), cache_dir=tmp_path / "cache", **options))
        for name in ("folder", "tar", "parquet"):
            assert list(data_scripts.load(str(tmp_path / name), streaming=True, **options)) == expected, name


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("rows_of_a_part", [10, 1000], ids=["many parts", "one part"])
def test_every_row_once_and_resumed(processes, workers, rows_of_a_part, tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "ROWS_OF_A_PART", rows_of_a_part)
    rows = stream(parquet(tmp_path / "data"))
    assert rows.num_shards == max(1, ROWS // rows_of_a_part)
    seen = Counter()
    for process in range(processes):
        share = EndlessRows(rows, 4, process, processes, seed=3)
        batches = list(islice(DataLoader(share, 4, collate_fn=names, num_workers=workers), 45))
        seen.update(name for batch in batches for number, name in batch if not number)
        share.start = 5  # an odd number: the next batch is the second worker's
        resumed = iter(DataLoader(share, 4, collate_fn=names, num_workers=workers))
        assert [next(resumed) for _ in range(3)] == batches[5:8]
    assert seen == Counter(range(ROWS))


def test_later_passes_in_another_order(tmp_path):
    loader = DataLoader(EndlessRows(stream(parquet(tmp_path / "data", 20)), 5), 5, collate_fn=names)
    batches = list(islice(loader, 12))
    passes = [[name for batch in batches[start : start + 4] for _, name in batch] for start in (0, 4, 8)]
    assert [sorted(names) for names in passes] == [list(range(20))] * 3 and passes[0] != passes[1] != passes[2]
    share = EndlessRows(loader.dataset.rows, 5, start=9)
    assert next(iter(DataLoader(share, 5, collate_fn=names))) == batches[9], "two passes are passed over by counting"


def test_the_state_of_datasets(tmp_path):
    rows = stream(parquet(tmp_path / "data"))
    first = iter(rows)
    for _ in range(37):
        next(first)
    again = stream(tmp_path / "data")
    again.load_state_dict(rows.state_dict())
    assert [row["image_id"] for row in again] == [str(number) for number in range(37, ROWS)]


def test_what_is_left_out_is_counted(tmp_path, caplog):
    for number in range(3):
        write(tmp_path / f"data/{number}.jpg", jpeg(number))
    lines = [{"file_name": f"{number}.jpg", "en": f"a {number}"} for number in range(4)]
    lines += [{"file_name": "0.jpg", "en": " "}, {"file_name": "../0.jpg", "en": "a"}, {"en": "a"}, "{"]
    write_json_lines(tmp_path / "data/metadata.jsonl", lines)
    assert [row["image_id"] for row in stream(tmp_path / "data")] == ["0.jpg", "1.jpg", "2.jpg"]
    for reason in (
        "1  image file missing",
        "1  empty caption in en",
        "1  row without a caption",
        "1  image path leaves its folder",
        "1  row without a picture",
        "1  broken JSON line",
    ):
        assert reason in reports(caplog)


def test_what_cannot_be_streamed(tmp_path):
    long_form = [{"file_name": "a.jpg", "language": "en", "caption": "a"}]
    write_json_lines(tmp_path / "long.jsonl", long_form)
    with pytest.raises(ValueError, match="in several rows, and a stream takes them one by one; remove streaming"):
        stream(tmp_path / "long.jsonl")
    with pytest.raises(ValueError, match="has no split 'validation', only train"):
        stream(parquet(tmp_path / "data", 5), "validation")
    with pytest.raises(InputError, match="a reader of the stream has no row"):
        list(EndlessRows(stream(tmp_path / "data"), 4, process=6, processes=7))
