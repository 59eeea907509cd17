"""Exporting: what others load with plain `datasets` is what the builders give, images included."""

import shutil

import datasets
import pyarrow.parquet as pq
import pytest
from builders import full_disk, write, write_json_lines
from pictures import encode
from PIL import Image
from test_pretraining_data import LANGUAGES, load, make_folder

import data_scripts
from data_scripts import export


@pytest.fixture
def call(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf-cache")
    return lambda *arguments: export.main([str(argument) for argument in arguments])


def loaded(path, tmp_path, **arguments):
    return datasets.load_dataset(str(path), cache_dir=str(tmp_path / "elsewhere"), **arguments)


def test_shards_with_images_by_path_and_inline(call, tmp_path, monkeypatch, capsys):
    folder = make_folder(tmp_path / "data")
    monkeypatch.setattr(export, "ROWS_PER_FILE", 25)
    out = tmp_path / "out"
    call("pretraining", out, "--splits", "train", "--data_dir", folder, "--languages", *LANGUAGES)
    names = [f"train-0000{number}-of-00003.parquet" for number in range(3)]
    assert sorted(path.name for path in out.iterdir()) == names
    assert capsys.readouterr().out.split() == [str(out / name) for name in names]
    assert [pq.read_metadata(out / name).num_rows for name in names] == [20, 20, 20]

    expected = list(load(folder, streaming=False))
    files = load(folder, streaming=False).cast_column("image", datasets.Image(decode=False))
    contents = [image["bytes"] or open(image["path"], "rb").read() for image in files["image"]]
    shutil.rmtree(folder)  # the images must be inside
    rows = loaded(out, tmp_path)["train"]
    assert rows.features["captions"] == files.features["captions"]
    for row, original in zip(rows, expected, strict=True):
        assert row["image"].tobytes() == original["image"].tobytes()
        assert (row["image_id"], row["captions"]) == (original["image_id"], original["captions"])
    undecoded = rows.cast_column("image", datasets.Image(decode=False))
    assert [image["bytes"] for image in undecoded["image"]] == contents
    parquet = datasets.load_dataset("parquet", data_files=str(out / "*.parquet"), cache_dir=str(tmp_path / "p"))
    assert parquet["train"]["image_id"][:] == rows["image_id"][:]


def test_splits_and_options_of_another_builder(call, tmp_path):
    arguments = ("--splits", "validation", "test", "--languages", "en", "ja")
    call("shapes", tmp_path / "out", *arguments, "--config", "num_train=1", "num_validation=3", "num_test=5", "seed=2")
    rows = loaded(tmp_path / "out", tmp_path)
    assert {split: len(part) for split, part in rows.items()} == {"validation": 3, "test": 5}
    assert list(rows["test"].features["captions"]) == ["en", "ja"]
    assert rows["test"][0]["image"].size == (64, 64)


@pytest.mark.slow
def test_push_to_hub(call, tmp_path, monkeypatch):
    pushed = []
    monkeypatch.setattr(
        datasets.Dataset, "push_to_hub", lambda rows, repo, split: pushed.append((repo, split, len(rows)))
    )
    config = ("--config", "num_train=2", "num_validation=3", "num_test=1", "--push_to_hub", "user/shapes")
    call("shapes", tmp_path / "out", "--splits", "train", "validation", *config)
    assert pushed == [("user/shapes", "train", 2), ("user/shapes", "validation", 3)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("pretraining", "--splits", "train"), "pretraining needs data_dir"),
        (("shapes", "--splits", "dev"), "shapes has no split 'dev'"),
        (("shapes", "--config", "sides=3"), "shapes takes no sides"),
        (("shapes", "--config", "num_test=many"), "shapes: num_test is 'many', not of the kind int"),
        (("shapes", "--dataset_config", '{"split": "test"}'), "split is given twice"),
        (("shapes", "--splits", "train"), "holds files of train already"),
    ],
)
def test_mistakes_end_in_one_line(arguments, message, call, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/train-00000-of-00001.parquet").touch()
    small = (
        ()
        if "--config" in arguments or arguments[0] != "shapes"
        else ("--config", "num_train=1", "num_validation=1", "num_test=1")
    )
    with pytest.raises(SystemExit, match=message) as raised:
        call(arguments[0], tmp_path / "out", *arguments[1:], *small)
    assert str(raised.value).startswith("error: ")


def test_the_folder_is_looked_at_before_the_work(call, tmp_path, monkeypatch):
    monkeypatch.setattr(export.data_scripts, "load", lambda *_, **__: pytest.fail("read before it was looked at"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out/test-00000-of-00001.parquet").touch()
    with pytest.raises(SystemExit, match="holds files of test already"):  # though train would be written first
        call("shapes", tmp_path / "out")
    with pytest.raises(SystemExit, match="nothing can be written to"):
        call("shapes", tmp_path / "out/test-00000-of-00001.parquet/out")


def test_a_full_disk_leaves_no_half_file(call, tmp_path):
    config = ("--config", "num_train=9", "num_validation=1", "num_test=1")
    call("shapes", tmp_path / "first", "--splits", "train", *config)  # the cache is made
    with full_disk(6_000), pytest.raises(SystemExit, match=r"error: .*\.parquet could not be written") as error:
        call("shapes", tmp_path / "out", "--splits", "train", *config)
    assert "\n" not in str(error.value) and not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("kinds", [("JPEG", "PNG", "WEBP"), ("PNG", "JPEG"), ("PNG",), ("JPEG", "PNG")])
def test_a_tar_of_any_images_opens_with_datasets(kinds, call, tmp_path):
    """Also where the first rows lack a language, and where splits differ in their kind of images."""
    for split, own in {"train": kinds, "test": kinds[-1:]}.items():
        entries = []
        for number in range(7):
            kind = own[number % len(own)]
            name = f"{number}.{kind.lower()}"
            write(tmp_path / "data" / split / name, encode(Image.new("RGB", (20, 20), (30 * number, 0, 0)), kind))
            entries.append({"file_name": name, "en": "a dog runs", "de": "ein Hund" if number == 6 else None})
        write_json_lines(tmp_path / "data" / split / "metadata.jsonl", entries)
    call(tmp_path / "data", tmp_path / "out", "--format", "tar")
    column = kinds[-1].lower().replace("jpeg", "jpg")  # of the split that is written first
    for split, rows in loaded(tmp_path / "out", tmp_path).items():
        own = kinds if split == "train" else kinds[-1:]
        assert [image.format for image in rows[column]] == [own[number % len(own)] for number in range(7)]
        assert [fields["captions"]["de"] for fields in rows["json"]] == [[]] * 6 + [["ein Hund"]]
    ours = data_scripts.load(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(ours) == 7 and ours[6]["captions"] == {"en": ["a dog runs"], "de": ["ein Hund"]}
