"""Formats that people have, each with its rows: packed files, braces, JSON documents, other separators, folders."""

import bz2
import csv
import gzip
import io
import json
import tarfile

import fsspec
import pandas as pd
import pyarrow as pa
import pytest
from builders import jpeg, reports, write, write_json, write_json_lines

import data_scripts
from data_scripts.sources import open_tables

ENGLISH = {"caption_columns": {"en": ["captions"]}}


@pytest.fixture
def folder(tmp_path):
    """With six images."""
    for number in range(6):
        write(tmp_path / f"images/{number}.jpg", jpeg(40 * number))
    return tmp_path


def rows_of(source, folder, split="train", **options):
    """Image id → captions in the only language."""
    options = {"image_dir": folder / "images", "cache_dir": folder / "cache"} | options
    rows = data_scripts.load(str(source), split=split, **options)
    return {row["image_id"]: row["captions"]["en"] for row in rows.remove_columns("image")}


LINES = [{"file_name": f"{number}.jpg", "en": f"a {number}"} for number in range(6)]
EXPECTED = {f"{number}.jpg": [f"a {number}"] for number in range(6)}
PACKED = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "zst": lambda contents: pa.Codec("zstd").compress(contents).to_pybytes(),
}


def tar_of(numbers) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for number in numbers:
            for ending, contents in (("jpg", jpeg(40 * number)), ("json", json.dumps(LINES[number]).encode())):
                member = tarfile.TarInfo(f"{number}.{ending}")
                member.size = len(contents)
                tar.addfile(member, io.BytesIO(contents))
    return file.getvalue()


def table_of(ending: str) -> bytes:
    if ending == "json":
        return json.dumps(LINES).encode()
    if ending == "jsonl":
        return "".join(f"{json.dumps(line)}\n" for line in LINES).encode()
    return pd.DataFrame(LINES).to_csv(index=False).encode() if ending == "csv" else tar_of(range(6))


@pytest.mark.parametrize("packing", PACKED)
@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "tar"])
@pytest.mark.parametrize("streaming", [False, True])
def test_packed_tables(ending, packing, streaming, folder):
    path = write(folder / f"data/rows.{ending}.{packing}", PACKED[packing](table_of(ending)))
    for source in (path, path.parent, path.parent / "*.*", f"file://{path}"):
        rows = rows_of(source, folder, streaming=streaming)
        assert len(rows) == 6
        assert list(rows.values()) == list(EXPECTED.values())


def test_tgz_and_names_of_packed_tables(folder):
    write(folder / "data/train/0.tgz", gzip.compress(tar_of(range(4))))
    write(folder / "data/val/0.tgz", gzip.compress(tar_of(range(4, 6))))
    assert len(rows_of(folder / "data", folder)) == 4
    assert len(rows_of(folder / "data", folder, "validation")) == 2
    write(folder / "captions.de.test.jsonl.gz", gzip.compress(table_of("jsonl")))
    (table,) = open_tables(str(folder / "captions.de.test.jsonl.gz"))
    assert (table.split, table.language) == ("test", "de")


def test_a_packed_retrieval_task(folder):
    """And one that is no task, though it is called as a part of one."""
    image = {"id": "0", "image": {"bytes": jpeg(9), "path": None}}
    (folder / "task").mkdir()
    pd.DataFrame([image]).to_parquet(folder / "task/en-corpus.parquet")
    write(folder / "task/en-queries.jsonl.gz", gzip.compress(b'{"id": "a", "text": "a dog"}\n'))
    write(folder / "task/en-qrels.csv.bz2", bz2.compress(b"query-id,corpus-id\na,0\n"))
    assert rows_of(folder / "task", folder) == {"0": ["a dog"]}
    write(folder / "one/corpus.txt", "file_name|en\n0.jpg|a dog\n")
    assert rows_of(folder / "one", folder) == {"0.jpg": ["a dog"]}


@pytest.mark.parametrize("damage", [lambda b: b[:-5], lambda b: b[:40] + bytes([b[40] ^ 1]) + b[41:]])
@pytest.mark.parametrize("ending", ["jsonl", "csv", "tar"])
def test_a_damaged_packed_table_is_an_error(ending, damage, folder):
    path = write(folder / f"rows.{ending}.gz", damage(gzip.compress(table_of(ending))))
    with pytest.raises(ValueError, match=r"rows\.\w+\.gz is not a whole compressed file .*write it again"):
        rows_of(path, folder)


def test_braces(folder):
    for number in range(12):
        write_json_lines(folder / f"data/{number:04d}.jsonl", [LINES[number % 6] | {"image_id": str(number)}])
    assert len(rows_of(folder / "data/{0000..0009}.jsonl", folder)) == 10 - 4  # six images, by their paths
    assert len(open_tables(str(folder / "data/{0000..0009}.jsonl"))) == 10
    assert len(open_tables(f"file://{folder}/data/{{0000..0009}}.jsonl")) == 10
    assert len(open_tables(str(folder / "data/000{0,2,7}.jsonl"))) == 3
    assert len(open_tables(str(folder / "data/00{08..11}.jsonl"))) == 4
    assert len(open_tables(str(folder / "data/000{0..9}.jsonl"))) == 10
    assert len(open_tables(str(folder / "data/{000,001}{0..1}.jsonl"))) == 4
    with pytest.raises(FileNotFoundError, match=r"no file is called .*0012\.jsonl, one of .*\{0010\.\.0013\}"):
        open_tables(str(folder / "data/{0010..0013}.jsonl"))
    with pytest.raises(FileNotFoundError, match=r"no file is called .*00010\.jsonl, one of "):
        open_tables(str(folder / "data/000{0..999999999999}.jsonl"))
    write_json_lines(folder / "train/rows.jsonl", LINES[:4])
    write_json_lines(folder / "val/rows.jsonl", LINES[4:])
    assert len(rows_of(folder / "{train,val}/rows.jsonl", folder, "validation")) == 2


def test_braces_at_a_url(folder):
    memory = fsspec.filesystem("memory")
    for number in range(3):
        memory.pipe(f"/braces/{number}.jsonl.gz", gzip.compress(table_of("jsonl")))
    assert len(rows_of("memory://braces/{0..1}.jsonl.gz", folder)) == 6
    assert len(open_tables("memory://braces/{0..2}.jsonl.gz")) == 3
    with pytest.raises(FileNotFoundError, match=r"no file is called .*3\.jsonl\.gz"):
        open_tables("memory://braces/{0..3}.jsonl.gz")


def test_json_lines_called_json(folder):
    assert rows_of(write(folder / "rows.json", table_of("jsonl")), folder) == EXPECTED
    assert rows_of(write(folder / "one.json", json.dumps(LINES[0])), folder) == {"0.jpg": ["a 0"]}


def test_a_json_array_with_bad_entries(folder, caplog):
    path = write_json(folder / "rows.json", [*LINES, 7, {"file_name": "0.jpg", "en": 5}])
    assert rows_of(path, folder, max_bad_fraction=1.0) == EXPECTED
    assert "not an object" in reports(caplog) and "rows.json entry 7" in reports(caplog)


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ('{"a": [1]}', "expected are a list of objects, or COCO's or Karpathy's layout"),
        ("[1,", "is not JSON"),
        ("7", "expected are a list of objects"),
        (
            '{"images": [], "annotations": [{"bbox": [1]}]}',
            r"annotations without captions; give COCO's captions_\*\.json",
        ),
    ],
)
def test_a_json_document_of_another_layout(contents, message, folder):
    with pytest.raises(ValueError, match=message):
        rows_of(write(folder / "rows.json", contents), folder)


def coco(numbers):
    images = [{"id": 100 + n, "file_name": f"{n}.jpg", "coco_url": f"http://x/{n}.jpg", "license": 1} for n in numbers]
    captions = [{"id": k, "image_id": 100 + n, "caption": f"a {n} {k}"} for n in numbers for k in range(2)]
    return {"info": {}, "licenses": [], "images": images, "annotations": captions}


def test_coco_captions(folder, caplog):
    document = coco([4, 5])
    document["annotations"].append({"id": 9, "image_id": 7, "caption": "of nothing"})
    document["images"].append({"id": 7000, "file_name": "0.jpg"})
    write_json(folder / "annotations/captions_train2017.json", coco(range(4)))
    path = write_json(folder / "annotations/captions_val2017.json", document)
    expected = {"104": ["a 4 0", "a 4 1"], "105": ["a 5 0", "a 5 1"]}
    assert rows_of(path, folder, "validation", max_bad_fraction=1.0, **ENGLISH) == expected
    assert "1  caption of an image that the file does not list" in reports(caplog)
    assert "1  row without a caption" in reports(caplog)
    pattern = folder / "annotations/captions_*.json"
    assert len(rows_of(pattern, folder, "train", max_bad_fraction=1.0, **ENGLISH)) == 4
    assert rows_of(pattern, folder, "validation", max_bad_fraction=1.0, **ENGLISH) == expected
    with pytest.raises(ValueError, match="--caption_columns, such as --caption_columns en=captions"):
        rows_of(path, folder, "validation")
    japanese = write_json(folder / "stair/ja.json", coco(range(2)))
    assert data_scripts.load(str(japanese), split="train", image_dir=folder / "images")[0]["captions"].keys() == {"ja"}


@pytest.mark.parametrize("filepath", [None, "val2014"])
def test_karpathy(filepath, folder):
    splits = ["train", "restval", "train", "val", "test", "test"]
    images = [
        {
            "filename": f"{n}.jpg",
            "imgid": n,
            "split": split,
            "sentids": [n],
            "sentences": [{"raw": f"a {n}", "tokens": ["a"]}],
        }
        | ({"filepath": filepath} if filepath else {})
        for n, split in enumerate(splits)
    ]
    path = write_json(folder / "dataset_flickr30k.json", {"images": images, "dataset": "flickr30k"})
    if filepath:
        (folder / "images").rename(folder / "val2014")
        (folder / "images").mkdir()
        (folder / "val2014").rename(folder / "images/val2014")
    numbers = {"train": (0, 1, 2), "validation": (3,), "test": (4, 5)}
    for split, members in numbers.items():
        prefix = f"{filepath}/" if filepath else ""
        assert rows_of(path, folder, split, **ENGLISH) == {f"{prefix}{n}.jpg": [f"a {n}"] for n in members}


def test_kaggle(folder, caplog):
    lines = ["image_name| comment_number| comment"]
    lines += [f'{n}.jpg| {k}| " A dog, {n} " and {k} .' for n in range(6) for k in range(2)]
    path = write(folder / "results.csv", "\n".join([*lines, "2.jpg| 4   A dog runs across the grass ."]) + "\n")
    rows = rows_of(path, folder, caption_columns={"en": ["comment"]}, max_bad_fraction=1.0)
    assert len(rows) == 6 and rows["2.jpg"] == ['" A dog, 2 " and 0 .', '" A dog, 2 " and 1 .']
    assert "1  2 values under a header of 3" in reports(caplog)
    flickr8k = 'image,caption\n0.jpg,A child .\n0.jpg,"A girl, ""two"" ."\n1.jpg,A dog .\n'
    rows = rows_of(write(folder / "captions.txt", flickr8k), folder, caption_columns={"en": ["caption"]})
    assert rows == {"0.jpg": ["A child .", 'A girl, "two" .'], "1.jpg": ["A dog ."]}


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_separators(separator, mark, folder):
    caption = 'a, b; c\td|e "f"'
    file = io.StringIO()
    writer = csv.writer(file, delimiter=separator)
    writer.writerows([["file_name", "en", "de"], ["0.jpg", caption, "ein"], ["1.jpg", "two\nlines", "zwei"]])
    rows = rows_of(write(folder / "rows.csv", mark + file.getvalue()), folder)
    assert rows == {"0.jpg": [caption], "1.jpg": ["two\nlines"]}


def test_hive_folders(folder):
    for language in ("en", "de"):
        entries = [{"file_name": f"{n}.jpg", "caption": f"{language} {n}"} for n in range(6)]
        for split, part in (("train", entries[:4]), ("test", entries[4:])):
            path = folder / f"data/language={language}/split={split}/part-0.parquet"
            path.parent.mkdir(parents=True)
            pd.DataFrame(part).to_parquet(path)
    for source in (folder / "data", folder / "data/*/*/*.parquet"):
        rows = data_scripts.load(str(source), split="test", languages=["en", "de"], image_dir=folder / "images")
        assert [row["captions"] for row in rows] == [{"en": [f"en {n}"], "de": [f"de {n}"]} for n in (4, 5)]


def test_img2dataset_output(folder):
    for shard, numbers in (("00000", (0, 1, 2)), ("00001", (3, 4, 5))):
        write(folder / f"data/{shard}.tar", tar_of(numbers))
        write_json(folder / f"data/{shard}_stats.json", {"count": 3, "successes": 3, "status_dict": {"success": 3}})
        pd.DataFrame({"url": ["http://x"] * 3, "key": ["0"] * 3, "status": ["success"] * 3}).to_parquet(
            folder / f"data/{shard}.parquet"
        )
    for source in (folder / "data", f"file://{folder}/data"):
        assert list(rows_of(source, folder).values()) == list(EXPECTED.values())


@pytest.mark.parametrize("column", ["images", "image"])
@pytest.mark.parametrize("make", [list, str, lambda names: [{"bytes": jpeg(), "path": name} for name in names]])
def test_lists_of_images_are_refused(column, make, folder):
    path = folder / "rows.parquet"
    pd.DataFrame([{column: make(["0.jpg", "1.jpg"]), "en": "a"}]).to_parquet(path)
    with pytest.raises(ValueError, match=f"column {column} holds lists of images; write a row for each image"):
        rows_of(path, folder)


def test_a_list_of_images_in_some_cells_is_counted(folder, caplog):
    rows = [*LINES, {"file_name": ["0.jpg", "1.jpg"], "en": "two"}]
    assert rows_of(write_json_lines(folder / "rows.jsonl", rows), folder, max_bad_fraction=1.0) == EXPECTED
    assert "1  list of images in one cell; write a row for each image" in reports(caplog)
