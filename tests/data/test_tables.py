"""Any table becomes rows: the same from every format; splits and columns found; what is wrong counted or named."""

import base64
import csv
import io
import json
import tarfile
import tempfile
from collections.abc import Iterable
from pathlib import Path

import datasets
import fsspec
import numpy as np
import pandas as pd
import pytest
from builders import jpeg, reports, write, write_json_lines
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import encode
from PIL import Image
from tiny import make_spread_model

import data_scripts
from ccrk.encoders import CCRKEncoder
from ccrk.retrieval.arrays import evaluate_arrays
from ccrk.retrieval.evaluate import evaluate_retrieval
from ccrk.retrieval.instances import usable_captions
from data_scripts import check, export, tars

NAMES = ["a.jpg", "b/c.jpg", "b/d.jpg"]
CAPTIONS = {
    "en": [["a dog"], ["a cat", "a black cat"], ["a tree"]],
    "de": [["ein Hund"], ["eine Katze", "eine schwarze Katze"], ["ein Baum"]],
    "zh": [["一只狗"], [], ["一棵树"]],
}


def picture(number: int) -> bytes:
    return jpeg(60 * number)


def noise(number: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(number).integers(0, 255, (64, 64, 3), dtype=np.uint8))


def row(number: int) -> dict:
    return {language: captions[number] for language, captions in CAPTIONS.items()}


def load(source, split="test", **options):
    cache = Path(source).parent / "cache" if Path(source).is_dir() else Path(source).parent.parent / "cache"
    return data_scripts.load(str(source), split=split, cache_dir=str(cache), **options)


def write_pictures(folder: Path) -> None:
    for number, name in enumerate(NAMES):
        write(folder / name, picture(number))


def write_csv(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, contents in members:
            info = tarfile.TarInfo(name)
            info.size = len(contents)
            archive.addfile(info, io.BytesIO(contents))
    return path


def image_folder(root: Path) -> Path:
    write_pictures(root / "data")
    write_json_lines(root / "data/metadata.jsonl", [{"file_name": n, **row(i)} for i, n in enumerate(NAMES)])
    return root / "data"


def csv_folder(root: Path) -> Path:
    write_pictures(root / "data")
    rows = [
        {"file_name": name} | {f"caption_{tag}": json.dumps(texts) for tag, texts in row(number).items()}
        for number, name in enumerate(NAMES)
    ]
    write_csv(root / "data/metadata.csv", rows)
    return root / "data"


def metadata_at_two_levels(root: Path) -> Path:
    write_pictures(root / "data")
    write_json_lines(root / "data/metadata.jsonl", [{"file_name": "a.jpg", **row(0)}])
    write_json_lines(root / "data/b/metadata.jsonl", [{"file_name": Path(NAMES[i]).name, **row(i)} for i in (1, 2)])
    return root / "data"


def parquet_of_bytes(root: Path) -> Path:
    rows = [
        {"image": {"bytes": picture(i), "path": Path(name).name}, "image_id": name, "captions": row(i)}
        for i, name in enumerate(NAMES)
    ]
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "image_id": datasets.Value("string"),
            "captions": {tag: datasets.List(datasets.Value("string")) for tag in CAPTIONS},
        }
    )
    (root / "data").mkdir(parents=True)
    datasets.Dataset.from_list(rows, features=features).to_parquet(root / "data/test-00000-of-00001.parquet")
    return root / "data"


def json_lines_of_base64(root: Path) -> Path:
    rows = [
        {"image": base64.b64encode(picture(i)).decode(), "image_id": name, "captions": row(i)}
        for i, name in enumerate(NAMES)
    ]
    return write_json_lines(root / "data/test.jsonl", rows)


def tar(root: Path) -> Path:
    members = []
    for number, name in enumerate(NAMES):
        members.append((name, picture(number)))
        members.append((f"{name[:-4]}.json", json.dumps({"image_id": name, "captions": row(number)}).encode()))
    return write_tar(root / "data/test.tar", members)


def long_form(root: Path) -> Path:
    write_pictures(root / "data")
    rows = [
        {"path": name, "language": tag, "caption": caption}
        for tag in CAPTIONS
        for number, name in enumerate(NAMES)
        for caption in CAPTIONS[tag][number]
    ]
    return write_csv(root / "data/captions.tsv", rows)


def retrieval_task(root: Path) -> Path:
    """MTEB's layout, text to image: one corpus, queries and pairs of each language."""
    corpus = [{"id": name, "image": base64.b64encode(picture(i)).decode()} for i, name in enumerate(NAMES)]
    write_json_lines(root / "data/corpus/test.jsonl", corpus)
    for tag, captions in CAPTIONS.items():
        named = [
            (f"{name} {k}", name, text)
            for name, own in zip(NAMES, captions, strict=True)
            for k, text in enumerate(own)
        ]
        write_json_lines(
            root / f"data/{tag}-queries/test.jsonl", [{"id": key, "text": text} for key, _, text in named]
        )
        pairs = [{"query-id": key, "corpus-id": name, "score": 1} for key, name, _ in named]
        write_json_lines(root / f"data/{tag}-qrels/test.jsonl", pairs)
    return root / "data"


FORMATS = [
    *(image_folder, csv_folder, metadata_at_two_levels, parquet_of_bytes, json_lines_of_base64, tar, long_form),
    retrieval_task,
]


@pytest.mark.parametrize("make", FORMATS)
def test_every_format_gives_the_same_rows(make, tmp_path):
    rows = sorted(load(make(tmp_path)), key=lambda row: row["image_id"])
    assert [row["image_id"] for row in rows] == NAMES
    assert [row["captions"] for row in rows] == [row(number) for number in range(3)]
    for number, found in enumerate(rows):
        expected = Image.open(io.BytesIO(picture(number))).convert("RGB")
        assert np.array_equal(np.asarray(found["image"]), np.asarray(expected))


@pytest.mark.slow
def test_every_format_ranks_alike(processor, tmp_path, monkeypatch):
    """The same for what is written as Parquet and as tar."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf-cache")
    monkeypatch.setitem(globals(), "picture", lambda number: encode(noise(number), "PNG"))
    encoder = CCRKEncoder(make_spread_model(len(processor.tokenizer)), processor, 2)

    def ranks(source: Path) -> pd.DataFrame:
        table = evaluate_retrieval(encoder, load(source, languages=list(CAPTIONS)), list(CAPTIONS)).rank_table()
        return table.sort_values(list(table.columns), ignore_index=True)

    expected = ranks(image_folder(tmp_path / "first"))
    assert expected["rank"].nunique() == 3 and len(expected) == 3 * 3 - 1 + 4 + 4 + 2
    for make in FORMATS:
        pd.testing.assert_frame_equal(ranks(make(tmp_path / make.__name__)), expected)
    for file_format in ("parquet", "tar"):
        out = tmp_path / file_format / "out"
        export.main([str(tmp_path / "first/data"), str(out), "--format", file_format])
        pd.testing.assert_frame_equal(ranks(out), expected)


TEXT = st.sampled_from(["a dog", 'ein Hund, "groß"', " ", "two\nlines", "狗", "=1+1", "a\tb", "\u200b", "x" * 300])


@st.composite
def some_rows(draw) -> tuple[list[str], dict[str, list[list[str]]]]:
    """Names of images in any order, and captions of each, of which one in each language is usable."""
    known = ["a.jpg", "b/a.jpg", "b/c d.jpg", "é.jpg", "x/y/z.jpg"]
    names = draw(st.lists(st.sampled_from(known), min_size=2, unique=True))
    captions = {tag: [draw(st.lists(TEXT, max_size=3)) for _ in names] for tag in ("en", "de")}
    for of_language in captions.values():
        of_language[draw(st.integers(0, len(names) - 1))].append("usable")
    return names, captions


def ranks_by_names(rows: datasets.Dataset, path: Path) -> pd.DataFrame:
    """Ranks by embeddings that follow from ids and texts alone."""

    def embed(texts: Iterable[str]) -> np.ndarray:
        return np.array([np.random.default_rng(list(text.encode())).normal(size=8) for text in texts])

    languages = list(rows.features["captions"])
    np.savez(
        path,
        images=embed(rows["image_id"]),
        **{f"captions_{tag}": embed(usable_captions(rows, tag).texts) for tag in languages},
    )
    table = evaluate_arrays(path, rows, languages).rank_table()
    return table.sort_values(list(table.columns), ignore_index=True)


@pytest.mark.slow
@settings(max_examples=8, deadline=None, derandomize=True)
@given(some_rows())
def test_any_rows_are_the_same_in_every_format(drawn):
    names, captions = drawn
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setitem(globals(), "NAMES", names)
        patch.setitem(globals(), "CAPTIONS", captions)
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", Path(folder, "hf-cache"))
        makers = [make for make in FORMATS if make is not metadata_at_two_levels]  # of the names above alone
        sources = {make.__name__: make(Path(folder, make.__name__)) for make in makers}
        for file_format in ("parquet", "tar"):
            sources[file_format] = Path(folder, f"exported {file_format}")
            arguments = [str(sources["image_folder"]), str(sources[file_format]), "--format", file_format]
            export.main([*arguments, "--dataset_config", '{"max_bad_fraction": 1.0}'])
        expected = None
        for name, source in sources.items():
            options = {"languages": ["en", "de"], "max_bad_fraction": 1.0}
            rows = data_scripts.load(str(source), split="test", **options)
            _, problems = data_scripts.make_builder(str(source), split="test", **options).read_annotations()
            found = [(row["image_id"], row["captions"]) for row in rows], ranks_by_names(rows, Path(folder, "a.npz"))
            counts = problems.counts if name not in ("parquet", "tar") else None  # exports hold what is usable
            expected = expected or (sorted(found[0], key=str), found[1], counts)
            assert sorted(found[0], key=str) == expected[0], name
            pd.testing.assert_frame_equal(found[1], expected[1])
            assert counts in (None, expected[2]), name


@pytest.mark.parametrize("file_format", ["parquet", "tar"])
@pytest.mark.parametrize("make", [image_folder, tar])
def test_an_export_reads_back(make, file_format, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf-cache")
    source = make(tmp_path)
    export.main([str(source), str(tmp_path / "out"), "--format", file_format])
    assert list(load(tmp_path / "out")) == list(load(source)), "also where no split is told, as in the folder"
    part = {"split": "validation", "validation_fraction": 0.5}
    if make is image_folder:
        assert load(tmp_path / "out", **part)["image_id"][:] == load(source, **part)["image_id"][:]


@pytest.mark.parametrize("make", FORMATS)
def test_a_fraction_is_taken_of_the_pictures(make, tmp_path):
    options = {"languages": ["en", "de"], "validation_fraction": 0.5}
    if make in (parquet_of_bytes, json_lines_of_base64, tar, retrieval_task):  # of the split test, by their names
        source = make(tmp_path)
        for path in sorted(tmp_path.rglob("test*"), reverse=True):
            path.rename(path.with_name(path.name.replace("test", "train", 1)))
        source = source if source.exists() else source.with_name(source.name.replace("test", "train", 1))
    else:
        source = make(tmp_path)
    parts = [load(source, split, **options)["image_id"][:] for split in ("train", "validation")]
    assert [sorted(part) for part in parts] == [["a.jpg"], ["b/c.jpg", "b/d.jpg"]], "by contents, in any format"


def test_columns_that_are_not_used_are_named_once(tmp_path, monkeypatch, caplog, capsys):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf-cache")
    caplog.set_level("INFO")
    for split in ("train", "test"):
        entries = [{"file_name": f"{split}.jpg", "en": "a", "licence": "CC0", "width": 48, "only_in": split}]
        write(tmp_path / f"data/{split}/{split}.jpg", picture(1))
        write_json_lines(tmp_path / f"data/{split}/metadata.jsonl", entries)
        data_scripts.load(str(tmp_path / "data"), split=split)
    named = "columns not used: licence, width, only_in"
    assert [record.getMessage() for record in caplog.records if "not used" in record.getMessage()] == [
        f"{tmp_path / 'data'}: {named}"
    ]
    assert check.main([str(tmp_path / "data")]) == 0
    assert capsys.readouterr().out.count(named) == 1


@pytest.mark.parametrize("make", [parquet_of_bytes, json_lines_of_base64, tar, retrieval_task])
def test_the_same_at_a_url(make, tmp_path):
    source = make(tmp_path)
    expected = load(source)
    files = fsspec.filesystem("memory")
    files.put(str(source), f"/{make.__name__}/{source.name}", recursive=source.is_dir())
    urls = [f"memory://{make.__name__}/{source.name}", f"file://{source}"]
    for url in urls + ["memory://tar/*.tar"] * (make is tar):
        assert list(data_scripts.load(url, split="test", cache_dir=tmp_path / "cache")) == list(expected)
    if make is tar:
        assert list(data_scripts.load(urls[0], split="test", streaming=True))[1]["captions"] == row(1)


def test_what_a_url_cannot_be(tmp_path):
    files = fsspec.filesystem("memory")
    files.pipe("/beside/metadata.jsonl", b'{"file_name": "a.jpg", "en": "a"}')
    with pytest.raises(ValueError, match=r"memory:/+beside/metadata.jsonl line 1: a.jpg .* give --image_dir, or put"):
        data_scripts.load("memory://beside", split="test")
    with pytest.raises(FileNotFoundError, match="no file is called memory://nothing/here"):
        data_scripts.load("memory://nothing/here", split="test")
    with pytest.raises(ValueError, match=r"gone://x cannot be read .*Protocol not known"):
        data_scripts.load("gone://x", split="test")
    with pytest.raises(
        ValueError, match="image_dir memory://pictures is a URL; copy Flickr30k's photographs to a fol"
    ):
        data_scripts.load("multi30k", split="test", data_dir=tmp_path, image_dir="memory://pictures")


def test_image_to_text_and_pairs_of_nothing(tmp_path, caplog):
    pictures = [{"_id": i, "image": base64.b64encode(picture(i)).decode()} for i in range(2)]
    write_json_lines(tmp_path / "data/de-queries.jsonl", pictures)
    write_json_lines(tmp_path / "data/de-corpus.jsonl", [{"_id": f"t{i}", "text": f"Bild {i}"} for i in range(3)])
    pairs = [(0, "t0", 1), (0, "t2", 1), (1, "t1", 1), (1, "t0", 0), (7, "t1", 1)]
    pairs = [{"query-id": query, "corpus-id": document, "score": score} for query, document, score in pairs]
    write_json_lines(tmp_path / "data/de-qrels.jsonl", pairs)
    rows = load(tmp_path / "data", max_bad_fraction=1.0)
    assert rows["captions"][:] == [{"de": ["Bild 0", "Bild 2"]}, {"de": ["Bild 1"]}]
    assert "1  pair of an id that no table has" in reports(caplog)
    for name in ("queries", "corpus", "qrels"):
        (tmp_path / f"data/de-{name}.jsonl").rename(tmp_path / f"data/{name}.jsonl")
    with pytest.raises(ValueError, match="in a language that it does not tell"):
        load(tmp_path / "data")


def test_captions_beside_the_pictures_of_a_tar(tmp_path):
    members = [("x/1.jpg", picture(1)), ("x/1.de.txt", b"ein Hund\n"), ("x/1.en.txt", b"a dog")]
    members += [("x/2.png.txt", b"stray"), ("y/1.jpg", picture(2)), ("y/1.en.txt", b"a cat")]
    rows = load(write_tar(tmp_path / "data/0.tar", members), max_bad_fraction=1.0)
    assert rows["image_id"][:] == ["x/1.jpg", "y/1.jpg"]
    assert rows["captions"][:] == [{"de": ["ein Hund"], "en": ["a dog"]}, {"de": [], "en": ["a cat"]}]


@pytest.mark.parametrize("streaming", [False, True])
def test_images_of_a_tar_that_are_not_read_are_counted(streaming, tmp_path, caplog):
    members = [("x/1.jpg", picture(1)), ("x/1.v2.jpg", picture(2)), ("x/1.en.txt", b"a dog"), ("x/1.en.txt", b"a cat")]
    members += [("2.JPG", picture(2)), ("2.png", picture(3)), ("2.jpg", picture(4)), ("2.en.TXT", b"a cat")]
    members += [("._3.jpg", b"note"), ("3.2024.05.jpg", picture(3)), ("3.2024.05.txt", b"a tree")]
    source = write_tar(tmp_path / "data/train.tar", members)
    rows = list(load(source, "train", streaming=streaming))
    assert [row["captions"] for row in rows] == [{"en": ["a dog"]}, {"en": ["a cat"]}]
    for number, row in enumerate(rows, 1):
        expected = Image.open(io.BytesIO(picture(number))).convert("RGB")
        assert np.array_equal(np.asarray(row["image"].convert("RGB")), np.asarray(expected))
    text = reports(caplog)
    assert f"2  {tars.SECOND_IMAGE}, first: {source}, 2.png" in text
    assert f"2  {tars.DOTTED_IMAGE}, first: {source}, x/1.v2.jpg" in text
    assert f"1  {tars.SECOND_FILE}, first: {source}, x/1.en.txt" in text
    assert f"1  row without a picture, first: {source}, 3" in text


def test_a_tar_whose_names_have_dots(tmp_path):
    members = [(f"IMG.{number}{ending}", b"x") for number in range(3) for ending in (".jpg", ".en.txt")]
    with pytest.raises(
        ValueError, match=r"no column holds pictures.*\n.*\n +3  image whose name has a dot .*; rename it"
    ):
        load(write_tar(tmp_path / "data/0.tar", members))


class TestSplits:
    def test_by_column_folder_and_file(self, tmp_path):
        write_pictures(tmp_path / "column")
        entries = [
            {"file_name": name, "en": "a", "split": split}
            for name, split in zip(NAMES, ("train", "val", "test"), strict=True)
        ]
        write_json_lines(tmp_path / "column/metadata.jsonl", entries)
        for split, name in (("train", "a.jpg"), ("validation", "b/c.jpg"), ("test", "b/d.jpg")):
            assert load(tmp_path / "column", split)["image_id"][:] == [name]
        for split in ("train", "dev"):
            write(tmp_path / "folders" / split / f"{split}.jpg", picture(1))
            write_json_lines(
                tmp_path / "folders" / split / "metadata.jsonl", [{"file_name": f"{split}.jpg", "en": split}]
            )
        assert load(tmp_path / "folders", "validation")["captions"][:] == [{"en": ["dev"]}]
        with pytest.raises(ValueError, match="folders has no split 'test', only validation, train"):
            load(tmp_path / "folders", "test")

    def test_without_asking_for_one_all_are_written(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf-cache")
        splits = ["train", "validation", "test_2016"]
        rows = [{"file_name": f"{split}.png", "en": "a", "split": split} for split in splits]
        for entry in rows:
            write(tmp_path / "data" / entry["file_name"], encode(Image.new("RGB", (9, 9)), "PNG"))
        write_json_lines(tmp_path / "data/metadata.jsonl", rows)
        export.main([str(tmp_path / "data"), str(tmp_path / "out"), "--format", "tar"])
        assert [Path(line).name.split("-")[0] for line in capsys.readouterr().out.split()] == splits
        assert data_scripts.splits_of(str(tmp_path / "data")) == splits
        with tarfile.open(tmp_path / "out/train-00000-of-00001.tar") as archive:
            assert archive.getnames() == ["00000000.png", "00000000.json"]

    def test_a_fraction_is_the_same_every_time(self, tmp_path):
        names = [f"{number}.jpg" for number in range(200)]
        for number, name in enumerate(names):
            write(tmp_path / "data" / name, jpeg(number, (number + 8, 8)))
        write_json_lines(tmp_path / "data/metadata.jsonl", [{"file_name": name, "en": "a"} for name in names])
        parts = [
            load(tmp_path / "data", split, validation_fraction=0.2)["image_id"][:] for split in ("train", "validation")
        ]
        assert sorted(parts[0] + parts[1]) == sorted(names) and 20 < len(parts[1]) < 60
        write_json_lines(
            tmp_path / "data/metadata.jsonl", [{"file_name": name, "en": "a"} for name in reversed(names[:150])]
        )
        again = load(tmp_path / "data", "validation", validation_fraction=0.2)["image_id"][:]
        assert set(again) == set(parts[1]) & set(names[:150]), "a picture never moves to the other part"
        with pytest.raises(ValueError, match=r"no split 'validation', no splits; --validation_fraction 0\.1"):
            load(tmp_path / "data", "validation")


class TestBadInput:
    def test_what_is_wrong_is_counted(self, tmp_path, caplog):
        write_pictures(tmp_path / "data")
        lines = [{"file_name": name, "en": "a dog"} for name in NAMES]
        lines += [
            "{broken",
            {"file_name": None, "en": "x"},
            {"en": "x"},
            {"file_name": "a.jpg", "en": 3},
            "",
            '"text"',
        ]
        lines += [{"file_name": "../secret.jpg", "en": "x"}, {"file_name": "gone.jpg", "en": "x"}]
        write_json_lines(tmp_path / "data/metadata.jsonl", lines)
        write(tmp_path / "secret.jpg", picture(1))
        rows = load(tmp_path / "data", max_bad_fraction=1.0)
        assert rows["image_id"][:] == NAMES
        text = reports(caplog)
        for reason in (
            "1  broken JSON line",
            "2  row without a picture",
            "1  caption is a number, not text",
            "1  line is text, not an object",
            "1  image path leaves its folder",
            "1  image file missing",
        ):
            assert reason in text, text
        assert "metadata.jsonl line 4" in text

    def test_one_id_of_two_pictures(self, tmp_path, caplog):
        write_pictures(tmp_path / "data")
        entries = [{"file_name": name, "image_id": "one", "en": name} for name in NAMES]
        write_json_lines(tmp_path / "data/metadata.jsonl", entries)
        (only,) = load(tmp_path / "data", max_bad_fraction=1.0)
        assert only["captions"] == {"en": ["a.jpg"]} and "2  image_id of another picture" in reports(caplog)

    def test_pictures_of_one_name_inside_a_table(self, tmp_path):
        rows = [{"image": {"bytes": picture(i), "path": "1.jpg"}, "en": f"picture {i}"} for i in range(3)]
        (tmp_path / "data").mkdir()
        datasets.Dataset.from_list(rows).to_parquet(tmp_path / "data/x.parquet")
        found = load(tmp_path / "data")
        assert len(set(found["image_id"])) == 3 and [row["captions"]["en"] for row in found] == [
            [f"picture {i}"] for i in range(3)
        ]

    @pytest.mark.parametrize(
        ("files", "message"),
        [
            ({"a.jpg": picture(1)}, r"holds no captions \(1 pictures, no table\); add a metadata.jsonl"),
            ({"a.csv": b"path,en\n", "b.jsonl": b"{}"}, "tables of several formats"),
            ({"metadata.jsonl": b"", "metadata.csv": b""}, "has metadata.csv and metadata.jsonl; keep one"),
            ({"a.csv": b""}, "a.csv has no row that can be read"),
            ({"a.parquet": b"PAR1"}, "a.parquet is not a whole Parquet file"),
            ({"a.tar": b"x" * 600}, "a.tar is not a whole, uncompressed tar"),
            ({"a.csv": b"path,path\n1,2\n"}, "a column is named twice"),
        ],
    )
    def test_folders_that_are_no_table(self, tmp_path, files, message):
        for name, contents in files.items():
            write(tmp_path / "data" / name, contents)
        with pytest.raises(ValueError, match=message):
            load(tmp_path / "data")

    def test_names_of_nothing(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="no data set, file or folder 'nowhere'"):
            data_scripts.load("nowhere", split="test")
        with pytest.raises(FileNotFoundError, match=r"no file or folder './gone/x\.csv'"):
            data_scripts.load("./gone/x.csv", split="test")
        with pytest.raises(ValueError, match="takes no data_dir; known are shapes"):
            data_scripts.load(str(tmp_path), split="test", data_dir=str(tmp_path))


def test_a_changed_table_or_picture_is_read_again(tmp_path):
    source = image_folder(tmp_path)
    assert len(load(source)) == 3
    write(source / "e.jpg", picture(3))
    with (source / "metadata.jsonl").open("a") as file:
        file.write(json.dumps({"file_name": "e.jpg", "en": "new"}) + "\n")
    assert load(source)[3]["captions"]["en"] == ["new"]
    before = load(source)[0]["image"].tobytes()
    write(source / "a.jpg", picture(4))
    assert load(source)[0]["image"].tobytes() != before
