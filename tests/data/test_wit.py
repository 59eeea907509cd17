"""WIT from tiny annotations and pixel files: joining by URL, the index, and bad lines."""

import base64
import json
import os

import numpy as np
import pytest
from builders import jpeg, reports, write, write_json_lines

import data_scripts
from data_scripts import wit
from data_scripts.check import main

IGLUE = os.environ.get("CCRK_IGLUE")  # an IGLUE clone


def url(number: int) -> str:
    return f"https://upload.wikimedia.org/wikipedia/commons/{number}/Bild_ä.jpg"


def entry(number: int, caption, language: str = "en") -> dict:
    return {"language": language, "image_url": url(number), "caption_reference_description": caption, "wit_ix": "w"}


def pixels(*numbers: int) -> bytes:
    return b"".join(
        f"{url(number)}\t".encode() + base64.b64encode(jpeg(number)) + f"\thttp://meta/{number}\n".encode()
        for number in numbers
    )


@pytest.fixture
def iglue(tmp_path):
    folder = tmp_path / "iglue/datasets/wit/annotations"
    write_json_lines(
        folder / "test_en.jsonl", [entry(1, "one"), entry(2, "two"), entry(1, "also one"), entry(9, "none")]
    )
    write_json_lines(folder / "test_ja.jsonl", [entry(3, "三", "ja"), entry(1, "一", "ja")])
    write_json_lines(folder / "train_en.jsonl", [entry(4, "four")])
    write_json_lines(folder / "val_en.jsonl", [entry(5, "five")])
    translated = tmp_path / "iglue/datasets/wit/annotations_machine-translate"
    write_json_lines(translated / "test_ja_gmt.jsonl", [entry(3, "three")])
    write(tmp_path / "pixels/image_data_train/train-0.csv", pixels(7, 4, 5))
    write(tmp_path / "pixels/wit_test/part-0.csv", pixels(2, 1))
    write(tmp_path / "pixels/wit_test/part-1.csv", pixels(3)[:-1])  # its last line does not end
    return tmp_path


def load(iglue, split="test", languages=("en",), **arguments):
    folders = {"data_dir": iglue / "iglue", "image_dir": iglue / "pixels", "cache_dir": iglue / "cache"}
    return data_scripts.load("wit", split=split, languages=languages, **{**folders, **arguments})


def test_captions_are_joined_by_url(iglue, caplog):
    test = load(iglue)
    assert test["image_id"][:] == [url(1), url(2)]
    assert test[0]["captions"] == {"en": ["one", "also one"]}
    for row, number in zip(test, (1, 2), strict=True):
        assert row["image"].getpixel((5, 5))[0] == pytest.approx(number, abs=4)
    assert f"1  image file missing, first: {url(9)} (" in reports(caplog)


def test_splits_and_languages(iglue):
    assert load(iglue, "train")["image_id"][:] == [url(4)]
    assert load(iglue, "validation")["image_id"][:] == [url(5)]
    assert load(iglue, languages=["ja"])["captions"][:] == [{"ja": ["三"]}, {"ja": ["一"]}]
    assert load(iglue, "test_gmt", ["ja"])["captions"][:] == [{"ja": ["three"]}]
    both = load(iglue, languages=["en", "ja"])
    assert both["captions"][0] == {"en": ["one", "also one"], "ja": ["一"]} and len(both) == 3


def test_each_language_has_its_own_gallery(iglue):
    """Of the images that it has entries of, also where the only caption is empty."""
    annotations = iglue / "iglue/datasets/wit/annotations"
    with (annotations / "test_ja.jsonl").open("a") as file:
        file.write(json.dumps(entry(2, " ", "ja")) + "\n")
    rows = load(iglue, languages=["en", "ja"], gallery=True, max_bad_fraction=1.0)
    galleries = {row["image_id"]: row["gallery"] for row in rows}
    assert galleries == {url(1): ["en", "ja"], url(2): ["en", "ja"], url(3): ["ja"]}
    assert "gallery" not in load(iglue, languages=["en", "ja"], max_bad_fraction=1.0).column_names


def test_a_stream_reads_the_lines_when_asked(iglue):
    stream = load(iglue, streaming=True)
    assert stream.num_shards == 2
    assert [row["captions"] for row in stream] == [row["captions"] for row in load(iglue)]


def test_pixels_are_indexed_once(iglue, monkeypatch):
    indexed = []
    make_index = wit._make_index
    monkeypatch.setattr(wit, "_make_index", lambda path, size: indexed.append(path.name) or make_index(path, size))
    load(iglue)
    assert sorted(indexed) == ["part-0.csv", "part-1.csv", "train-0.csv"]
    load(iglue, "train")
    load(iglue, languages=["ja"])
    assert len(indexed) == 3, "other splits and languages use the same index"
    write(iglue / "pixels/wit_test/part-2.csv", pixels(9))
    assert len(load(iglue)) == 3 and indexed[3:] == ["part-2.csv"], "a new file is indexed, and its image found"
    assert not list((iglue / "cache").rglob("*.*.npy")), "no half-written index stays"


def test_urls_that_share_a_key_are_told_apart(iglue, monkeypatch):
    monkeypatch.setattr(wit, "_key", lambda url: 7)
    test = load(iglue)
    assert test["image_id"][:] == [url(1), url(2)]
    assert test[1]["image"].getpixel((5, 5))[0] == pytest.approx(2, abs=4)


def test_index_of_a_file(tmp_path):
    contents = b"image_url\tb64_bytes\n" + pixels(1) + b"\n" + b"no tab at all\n" + pixels(2)
    index = wit.open_index(write(tmp_path / "a.csv", contents), tmp_path / "index")
    assert len(index) == 5 and (np.diff(index["url"].astype(object)) >= 0).all()
    offsets = {contents[o:].partition(b"\t")[0].decode() for o in index["offset"].tolist()}
    assert {url(1), url(2), "image_url"} <= offsets


def test_bad_lines_are_counted(iglue, caplog):
    annotations = [entry(n, f"caption {n}") for n in range(1, 6)]
    annotations += [entry(6, None), "{", {**entry(1, "x"), "image_url": None}, entry(1, ["x"])]
    write_json_lines(iglue / "iglue/datasets/wit/annotations/test_en.jsonl", annotations)
    lines = [
        pixels(1),
        f"{url(2)}\tno base64!\tm\n".encode(),
        f"{url(3)}\t\tm\n".encode(),
        f"{url(4)}\t{base64.b64encode(b'<html>').decode()}\tm\n".encode(),
        f"{url(5)}\n".encode(),
        pixels(6),
    ]
    for path in (iglue / "pixels").rglob("*.csv"):
        path.unlink()
    write(iglue / "pixels/a.csv", b"".join(lines))
    (row,) = load(iglue, max_bad_fraction=1.0)
    assert row["image_id"] == url(1)
    text = reports(caplog)
    assert "1  image is no base64, first: " in text and "a.csv at byte" in text
    assert "2  image of zero bytes" in text and "1  not an image" in text
    assert "1  broken JSON line" in text and "1  image_url is null, not text" in text
    assert "1  caption_reference_description is a list, not text" in text
    assert "1  empty caption in en, first: " in text


def test_without_pixels(iglue):
    (iglue / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"wit: there is no \*\.csv below .*unpack the pixel files"):
        load(iglue, image_dir=iglue / "empty")
    with pytest.raises(FileNotFoundError, match=r"there is no test_bg\.jsonl in .*data_dir should be a clone of"):
        load(iglue, languages=["bg"])


@pytest.mark.skipif(not IGLUE, reason="CCRK_IGLUE names no IGLUE clone")
def test_check_of_a_real_clone(tmp_path, capsys):
    """Rows and captions of each language are the published ones; no pixels at all are here."""
    write(tmp_path / "pixels/a.csv", pixels(1))
    languages = [
        lang for lang in wit.PUBLISHED_TEST if os.path.exists(f"{IGLUE}/datasets/wit/annotations/test_{lang}.jsonl")
    ]
    folders = ["--data_dir", IGLUE, "--image_dir", str(tmp_path / "pixels")]
    assert main(["wit", *folders, "--splits", "test", "--languages", *languages]) == 1
    table = capsys.readouterr().out
    for language in languages:
        images, captions = wit.PUBLISHED_TEST[language]
        assert f"wit test ({language})" in table
        assert f"{captions:>10,}{captions:>12,}" in table and f"{images:>10,}{images:>12,}" in table
    assert table.count("differs") == 2 * len(languages), "images found and missing, nothing else"
