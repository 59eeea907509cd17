"""`python -m data_scripts.check`: the table, the exit code and the contact sheet."""

import os
import re

import datasets
import numpy as np
import pytest
from builders import full_disk, jpeg, write, write_json_lines
from PIL import Image

from data_scripts import check
from data_scripts.xflickrco import XFlickrCOConfig

RELEASE, PHOTOGRAPHS = os.environ.get("CCRK_MULTI30K"), os.environ.get("CCRK_FLICKR30K")


@pytest.fixture
def arguments(tmp_path, monkeypatch):
    """Four rows in two languages; the published set is taken to be as large."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("data_scripts.xflickrco.PUBLISHED_ROWS", {"test": 4})
    for language, captions in {"en": ["a", "b", "a", "d"], "ja": ["一", "二", "三", "四"]}.items():
        entries = [{"img_path": f"{n}.jpg", "sentences": [caption]} for n, caption in enumerate(captions)]
        write_json_lines(tmp_path / f"iglue/datasets/xFlickrCO/annotations/{language}/test.jsonl", entries)
    for number in range(4):
        write(tmp_path / f"images/flickr30k-images/{number}.jpg", jpeg(60 * number, (90, 60)))
    folders = ["--data_dir", str(tmp_path / "iglue"), "--image_dir", str(tmp_path / "images")]
    return ["xflickrco", *folders, "--splits", "test", "--languages", "en", "ja"]


def test_a_complete_data_set(arguments, capsys):
    assert check.main(arguments) == 0
    assert capsys.readouterr().out.splitlines() == [
        "xflickrco test (en ja)",
        "                        here    expected",
        "rows                       4           4",
        "images found               4           4",
        "images missing             0           0",
        "images bad                 0           0",
        "images seen twice          0",
        "entries unreadable         0           0",
        "entries left out           0           0",
        "captions                here    expected     empty  repeated",
        "  en                       4           4         0         1",
        "  ja                       4           4         0         0",
        "",
    ]


def test_what_differs(arguments, tmp_path, capsys):
    folder = tmp_path / "images/flickr30k-images"
    (folder / "0.jpg").unlink()
    (folder / "1.jpg").write_text("<html>")
    (folder / "2.jpg").write_bytes((folder / "3.jpg").read_bytes())
    annotations = tmp_path / "iglue/datasets/xFlickrCO/annotations/ja/test.jsonl"
    write_json_lines(annotations, [{"img_path": "0.jpg", "sentences": [""]}, "{"])
    assert check.main(arguments) == 1
    table = capsys.readouterr().out
    assert check.main([*arguments, "--allow-partial"]) == 0
    assert capsys.readouterr().out == table
    for line in (
        "images found               2           4  differs",
        "images missing             1           0  differs",
        "images bad                 1           0  differs",
        "images seen twice          1",
        "entries unreadable         1           0  differs",
        "  ja                       1           4         1         0  differs",
        f"          1  empty caption in ja, first: {annotations} line 1",
        f"          1  broken JSON line, first: {annotations} line 2",
    ):
        assert line in table.splitlines()
    assert "1  not an image, first: " in table and "1  image file missing, first: " in table


def test_contact_sheet(arguments, tmp_path, capsys):
    path = tmp_path / "sheet.png"
    assert check.main([*arguments, "--thumbnails", "3", "--output", str(path)]) == 0
    assert f"3 rows drawn in {path}" in capsys.readouterr().out
    pixels = np.asarray(Image.open(path).convert("RGB"), int).reshape(-1, 3)
    for number in range(3):  # each picture's own colour covers some of it
        colour = np.array([60 * number, 255 - 60 * number, 128])
        assert (np.abs(pixels - colour).max(axis=1) < 6).sum() > 5000
    assert (pixels.max(axis=1) < 60).sum() > 200, "dark pixels: the captions"


def test_captions_of_any_letters_are_drawn(tmp_path):
    """Half a formula, control characters and half a pair of UTF-16; with some matplotlib would stop, or obey."""
    captions = {"en": ["costs $5 or $6", "$_{", r"$\frac", "a\x1b[31mb\x00\u202ec\r\n\td", "\ud800", "5\u200b$"]}
    check.draw_contact_sheet([(Image.new("RGB", (40, 30)), "a$^{\nb", captions)] * 2, tmp_path / "sheet.png")
    assert Image.open(tmp_path / "sheet.png").width > 100


def test_the_sheet_is_looked_at_before_the_counting(arguments, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(check, "check", lambda _: pytest.fail("counted before it was looked at"))
    (tmp_path / "file").write_text("")
    for output, message in ((tmp_path, "is a folder; name a file"), (tmp_path / "file" / "a.png", "nothing can be")):
        assert check.main([*arguments, "--thumbnails", "3", "--output", str(output)]) == 2
        assert re.fullmatch(f"error: .*{message}.*\n", capsys.readouterr().err)


def test_a_full_disk_is_one_line(arguments, tmp_path, capsys):
    with full_disk(2_000):
        assert check.main([*arguments, "--thumbnails", "3", "--output", str(tmp_path / "sheet.png")]) == 2
    assert re.fullmatch(r"error: .*sheet\.png could not be written \(.*\); make room.*\n", capsys.readouterr().err)
    assert not list(tmp_path.glob("sheet*"))


def test_control_characters_in_names_are_not_obeyed(arguments, tmp_path, capsys):
    annotations = tmp_path / "iglue/datasets/xFlickrCO/annotations"
    for language in ("en", "ja"):
        write_json_lines(annotations / language / "test.jsonl", [{"img_path": "a\x1b[2J\r.jpg", "sentences": ["a"]}])
    assert check.main(arguments) == 1
    printed = capsys.readouterr()
    assert r"a\x1b[2J\r.jpg" in printed.out
    assert all(line.isprintable() for line in (printed.out + printed.err).split("\n"))


def test_nothing_to_draw(arguments, tmp_path, capsys):
    for number in range(4):
        (tmp_path / f"images/flickr30k-images/{number}.jpg").unlink()
    path = tmp_path / "sheet.png"
    assert check.main([*arguments, "--thumbnails", "3", "--output", str(path)]) == 1
    assert "no row has an image to draw" in capsys.readouterr().out and not path.exists()


def test_errors_are_one_line(arguments, capsys):
    assert check.main([*arguments[:3], *arguments[5:]]) == 2
    assert capsys.readouterr().err == "error: xflickrco needs image_dir: the folder of flickr30k-images and val2014\n"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("shapes", "shapes takes no max_bad_fraction"),
        ("pretraining", "pretraining needs data_dir"),
        ("nowhere", "there is no data set, file or folder 'nowhere'"),
    ],
)
def test_what_cannot_be_checked_is_one_line(name, message, capsys):
    assert check.main([name]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_a_folder_of_pictures(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf-cache")
    write(tmp_path / "data/a.jpg", jpeg(1))
    write_json_lines(tmp_path / "data/metadata.jsonl", [{"file_name": f"{n}.jpg", "de": n, "en": "x"} for n in "ab"])
    assert check.main([str(tmp_path / "data"), "--splits", "train"]) == 1
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["rows", "2"] in lines and ["images", "found", "1", "2", "differs"] in lines
    assert ["de", "2", "0", "0"] in lines and ["en", "2", "0", "1"] in lines


def test_few_shot_sizes_are_expected_from_the_name(tmp_path):
    write_json_lines(tmp_path / "annotations/de/train_10x5.jsonl", [])
    config = XFlickrCOConfig(data_dir=str(tmp_path), image_dir=str(tmp_path), few_shot="de,10x5")
    assert config.published_counts() == {"rows": 10, "captions de": 50}


@pytest.mark.skipif(not (RELEASE and PHOTOGRAPHS), reason="CCRK_MULTI30K and CCRK_FLICKR30K name no real data")
@pytest.mark.parametrize(("task", "per_row"), [(1, 1), (2, 5)])
def test_the_release(task, per_row, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    folders = ["--data_dir", RELEASE, "--image_dir", PHOTOGRAPHS]
    check.main(["multi30k", *folders, "--task", str(task), "--allow-partial"])
    table = capsys.readouterr().out
    for rows in (29_000, 1_014, 1_000):
        assert f"rows              {rows:>10,}{rows:>12,}\n" in table
        assert f"  de              {rows * per_row:>10,}{rows * per_row:>12,}" in table
