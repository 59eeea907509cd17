"""One rule for splits, wherever a name tells them."""

import datasets
import pytest
from builders import jpeg, reports, write, write_json_lines
from datasets.data_files import get_data_patterns

import data_scripts
from data_scripts.rows import split_of, split_of_value


def load(source, split, **options):
    rows = data_scripts.load(str(source), split=split, **options)
    return sorted(text for captions in rows["captions"] for text in captions["en"])


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf-cache")


def pictures(root, names) -> list[dict]:
    """Pictures below a folder, and a line for each, whose caption is its path."""
    for number, name in enumerate(names):
        write(root / name.replace("\\", "/"), jpeg(10 * number))
    return [{"file_name": name, "en": name} for name in names]


FOLDERS = [
    *(("train2014/a.jpg", "val2014/b.jpg"), ("train_images/a.jpg", "validation_images/b.jpg")),
    *(("images/train/a.jpg", "images/val/b.jpg"), ("Train/a.jpg", "Dev/b.jpg"), ("training-set/a.jpg", "valid/b.jpg")),
    *(
        ("./train/a.jpg", "./val/b.jpg"),
        ("train\\a.jpg", "val\\b.jpg"),
        ("x/Train images/1/a.jpg", "x/eval.dev/b.jpg"),
    ),
]


@pytest.mark.parametrize("with_image_dir", [False, True])
@pytest.mark.parametrize("names", FOLDERS, ids="|".join)
def test_folders_of_paths(names, with_image_dir, tmp_path):
    lines = pictures(tmp_path / "photos", names)
    if with_image_dir:
        source, options = (
            write_json_lines(tmp_path / "table/all.jsonl", lines),
            {"image_dir": str(tmp_path / "photos")},
        )
    else:
        source, options = write_json_lines(tmp_path / "photos/metadata.jsonl", lines).parent, {}
    if "eval" in names[1]:
        with pytest.raises(ValueError, match="only train, test"):
            load(source, "validation", **options)
    else:
        assert load(source, "train", **options) == [names[0]] and load(source, "validation", **options) == [names[1]]


@pytest.mark.parametrize(
    ("names", "pattern"),
    [
        (("train.jsonl", "val.jsonl"), ""),
        (("en.train.jsonl", "en.val.jsonl"), "*.jsonl"),
        (("a/train-00000.jsonl", "a/val-00000.jsonl"), "**/*.jsonl"),
        (("train2017/x.jsonl", "val2017/x.jsonl"), "*/x.jsonl"),
        (("a/Train/b/x.jsonl", "a/Valid/b/x.jsonl"), "a/**"),
        (("captions_train2017.jsonl", "captions_val2017.jsonl"), "captions_*.jsonl"),
    ],
)
def test_names_of_tables_and_patterns(names, pattern, tmp_path):
    for name in names:
        lines = pictures((tmp_path / "x" / name).parent, [f"{name[-9]}.jpg"])
        write_json_lines(tmp_path / "x" / name, [lines[0] | {"en": name}])
    source = tmp_path / "x" / pattern
    assert load(source, "train") == [names[0]] and load(source, "validation") == [names[1]]


def test_a_column(tmp_path):
    values = ["train", "Test ", " VAL", "train2014", "testing", "restval"]
    lines = pictures(tmp_path / "x", [f"{number}.jpg" for number in range(6)])
    write_json_lines(
        tmp_path / "x/metadata.jsonl", [line | {"split": value} for line, value in zip(lines, values, strict=True)]
    )
    assert load(tmp_path / "x", "train") == ["0.jpg", "3.jpg"] and load(tmp_path / "x", "test") == ["1.jpg", "4.jpg"]
    assert load(tmp_path / "x", "validation") == ["2.jpg"] and load(tmp_path / "x", "restval") == ["5.jpg"]


@pytest.mark.parametrize(
    "name",
    [
        *(
            "train",
            "Training",
            "train2014",
            "train_images",
            "data-train",
            "val",
            "valid",
            "validation-2",
            "dev",
            "test1",
        ),
        *(
            "testing",
            "eval",
            "evaluation",
            "latest",
            "trainset",
            "devices",
            "photos",
            "x.test",
            "pretrained",
            "contest",
        ),
    ],
)
def test_folders_tell_what_they_tell_to_datasets(name, tmp_path):
    write(tmp_path / name / "a.jpg", jpeg())
    # All of a folder without splits is for training, there and here.
    assert set(map(str, get_data_patterns(str(tmp_path)))) == {split_of(name) or "train"}


def test_values():
    assert [split_of_value(value) for value in ("test_2016", "test_gmt", 3, "Mine ")] == [
        "test_2016",
        "test_gmt",
        "3",
        "Mine",
    ]


def test_what_looks_split_and_is_taken_as_one_is_said(tmp_path, caplog):
    names = ["trainset/a.jpg", "testset/b.jpg"]
    write_json_lines(tmp_path / "x/metadata.jsonl", pictures(tmp_path / "x", names))
    assert load(tmp_path / "x", "train") == sorted(names)
    assert (
        "has no splits: all of its rows are taken, though names look like splits (trainset/a.jpg, testset/b.jpg); "
        in (reports(caplog))
    )
    caplog.clear()
    write_json_lines(tmp_path / "y/metadata.jsonl", pictures(tmp_path / "y", ["train station.jpg", "bus.jpg"]))
    assert load(tmp_path / "y", "train") == ["bus.jpg", "train station.jpg"] and not reports(caplog)
