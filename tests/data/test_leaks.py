"""An image in two splits, or in both parts of a fraction, is said before anything is trained on it."""

import json

import datasets
import pytest
from builders import jpeg, reports, write, write_json_lines
from PIL import Image
from tiny import make_rows

import data_scripts
from ccrk.trained_on import Run
from data_scripts import check


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf-cache")


def photos(root, **shades: int):
    """Images by name, equal where their shades are, each with a line in metadata.jsonl."""
    for name, shade in shades.items():
        write(root / f"{name}.jpg", jpeg(shade))
    write_json_lines(root / "metadata.jsonl", [{"file_name": f"{name}.jpg", "en": name} for name in shades])
    return root


@pytest.mark.parametrize("streaming", [False, True])
def test_copies_are_in_one_part(streaming, tmp_path):
    """Whatever their names; a part follows from the contents, in any folder, order and format."""
    photos(tmp_path / "x", **{f"{copy}{shade}": shade for copy in "abc" for shade in range(0, 250, 10)})
    parts = {}
    for split in ("train", "validation"):
        rows = data_scripts.load(str(tmp_path / "x"), split=split, validation_fraction=0.4, streaming=streaming)
        parts[split] = {row["image_id"].removesuffix(".jpg") for row in rows}
    shades = {split: {name[1:] for name in names} for split, names in parts.items()}
    assert not shades["train"] & shades["validation"] and all(len(names) > 3 for names in shades.values())
    assert sum(map(len, parts.values())) == 75


def test_splits_of_one_table(tmp_path, caplog):
    """By path or id, since these stand in the table."""
    for name in "abcde":
        write(tmp_path / f"x/{name}.jpg", jpeg(40 * ord(name) % 250))
    rows = [
        ("a", "train", 1),
        ("b", "train", 2),
        ("c", "train", 3),
        ("a", "test", None),
        ("d", "test", 2),
        ("e", "test", 9),
    ]
    lines = [{"file_name": f"{n}.jpg", "split": split, "image_id": i, "en": n} for n, split, i in rows]
    write_json_lines(tmp_path / "x/metadata.jsonl", lines)
    assert len(data_scripts.load(str(tmp_path / "x"), split="train")) == 3
    text = reports(caplog)
    assert "2 images to train on are in another split as well, such as " in text
    assert "metadata.jsonl line 1 and " in text and "metadata.jsonl line 4; remove them from one" in text


def test_check_compares_contents_and_ids(tmp_path, capsys):
    photos(tmp_path / "x/train", a=10, b=20, c=30)
    photos(tmp_path / "x/test", d=20, e=40)
    assert check.main([str(tmp_path / "x")]) == 0
    line = "1 images of test are in train as well, such as test/d.jpg and train/b.jpg; remove them from one"
    assert line in capsys.readouterr().out.splitlines()
    photos(tmp_path / "x/test", d=50, e=40)
    assert check.main([str(tmp_path / "x")]) == 0 and "as well" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ({"file_name": "a.jpg", "en": "a", "de": "ein"}, 0),
        ({"file_name": "a.jpg", "en": "a", "de": None}, 0),
        ({"file_name": None, "en": "a"}, 1),
        ({"file_name": "gone.jpg", "en": "a"}, 1),
        ({"file_name": "a.jpg", "en": 3}, 1),
        ("{broken", 1),
    ],
)
def test_check_ends_with_1_where_something_is_lost(line, code, tmp_path, capsys):
    photos(tmp_path / "x", a=10, b=20)
    with (tmp_path / "x/metadata.jsonl").open("a") as file:
        file.write((line if isinstance(line, str) else json.dumps(line)) + "\n")
    assert check.main([str(tmp_path / "x")]) == code, capsys.readouterr().out
    assert check.main([str(tmp_path / "x"), "--allow-partial"]) == 0


def test_training_compares_what_it_evaluates(caplog):
    rows = make_rows([[4], [3], [5], [2]])
    Run.of(rows.select([0, 1, 2])).warn_of(rows.select([2, 3]))
    assert "1 of 2 images evaluated during training are trained on as well" in reports(caplog)
    caplog.clear()
    Run.of(rows.select([0, 1])).warn_of(rows.select([2, 3]))
    Run.of(rows).warn_of(None)
    assert not reports(caplog)


def test_a_picture_that_differs_by_a_pixel_is_another(tmp_path, capsys):
    photos(tmp_path / "x/train", a=10)
    photos(tmp_path / "x/test", b=10)
    with Image.open(tmp_path / "x/test/b.jpg") as image:
        image.convert("RGB").save(tmp_path / "x/test/b.jpg", quality=60)
    assert check.main([str(tmp_path / "x")]) == 0 and "as well" not in capsys.readouterr().out
