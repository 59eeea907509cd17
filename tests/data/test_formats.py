"""Tables as people have them: pictures as JSON has bytes, local URLs, encodings, NaN, and paths of other machines."""

import base64
import io
import json
import logging
import math
import tarfile
from pathlib import Path

import pytest
from builders import jpeg, reports, write, write_json_lines

import data_scripts

PICTURES = [jpeg(60 * number) for number in range(3)]
TEXT = "ein Hund läuft"


def table(folder: Path, rows: list, name: str = "rows.jsonl") -> Path:
    """A file of rows with the pictures `0.jpg`, `1.jpg` and `2.jpg` beside it."""
    for number, contents in enumerate(PICTURES):
        write(folder / "data" / f"{number}.jpg", contents)
    return write_json_lines(folder / "data" / name, rows)


def load(source, tmp_path, **options):
    return data_scripts.load(str(source), cache_dir=str(tmp_path / "cache"), **{"split": "train"} | options)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", ["base64", "data URI", "numbers", "paths between"])
def test_bytes_in_json(kind, streaming, tmp_path):
    images = {
        "base64": [{"bytes": base64.b64encode(contents).decode()} for contents in PICTURES],
        "data URI": [{"bytes": f"Data:image/jpeg;base64,{base64.b64encode(own).decode()}"} for own in PICTURES],
        "numbers": [{"bytes": list(contents), "path": None} for contents in PICTURES],
        "paths between": ["0.jpg", {"bytes": list(PICTURES[1])}, {"path": "2.jpg", "bytes": None}],
    }[kind]
    path = table(tmp_path, [{"image": image, "en": "a dog runs"} for image in images])
    rows = load(path, tmp_path, streaming=streaming)
    assert {row["image"].getpixel((5, 5)) for row in rows} == {
        row["image"].getpixel((5, 5))
        for row in load(table(tmp_path, [{"image": f"{n}.jpg", "en": "a dog"} for n in range(3)]), tmp_path)
    }


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        ({"bytes": 5}, "image is a number, neither a path nor bytes"),
        ({"bytes": [300, -1]}, "image is a list of other than bytes"),
        ({"bytes": "?!"}, "image is no base64"),
        ({"path": 5}, "image is a number, neither a path nor bytes"),
        ({"path": None, "bytes": None}, "row without a picture"),
        (7, "image is a number, neither a path nor bytes"),
        (math.nan, "row without a picture"),
    ],
)
def test_what_is_no_picture_is_counted_and_named(image, reason, tmp_path, caplog):
    good = [{"image": "0.jpg", "en": "a dog runs"}, {"image": "1.jpg", "en": "a cat sleeps"}]
    path = table(tmp_path, [*good, {"image": image, "en": "a bird"}])
    assert len(load(path, tmp_path, max_bad_fraction=0.9)) == 2
    assert f"1  {reason}, first: {path} line 3" in reports(caplog)
    if isinstance(image, dict):  # where none is a picture, the error says why, and does not speak of splits
        path = table(tmp_path / "all", [{"image": image, "en": "a bird"}] * 3)
        with pytest.raises(ValueError, match=rf"has no row that can be read\n.*\n *3  {reason}"):
            load(path, tmp_path)


def test_local_patterns_and_urls(tmp_path, monkeypatch):
    path = table(tmp_path, [{"image": f"{number}.jpg", "en": "a dog runs"} for number in range(3)])
    folder = path.parent
    monkeypatch.chdir(tmp_path)
    names = [f"{folder}/*.jsonl", f"{tmp_path}/**/*.jsonl", "./d*/*.jsonl", f"{folder}/rows.[j]sonl"]
    for start in ("file://", "local://", "file://localhost"):
        names += [f"{start}{path}", f"{start}{folder}", f"{start}{folder}/*.jsonl"]
    for name in names:
        assert [Path(image_id).name for image_id in load(name, tmp_path)["image_id"]] == ["0.jpg", "1.jpg", "2.jpg"]


@pytest.mark.parametrize(
    "start", ["C:\\data\\train\\", "c:/test images/", "\\\\server\\share\\", "D:" + "\\very long folder" * 20 + "\\"]
)
@pytest.mark.parametrize("split", ["train", "test"])
def test_paths_of_windows_are_named_as_such(start, split, tmp_path):
    rows = [{"image": f"{start}{number}.jpg", "en": "a dog runs"} for number in range(3)]
    with pytest.raises(ValueError, match=r"3  image path leaves .*absolute path of Windows; write it relative to"):
        load(table(tmp_path, rows), tmp_path, split=split)


def test_absolute_paths_are_named_with_the_cure(tmp_path):
    rows = [{"image": str(tmp_path / f"data/{number}.jpg"), "en": "a dog runs"} for number in range(3)]
    path = write_json_lines(table(tmp_path, []).parents[1] / "elsewhere/rows.jsonl", rows)
    with pytest.raises(
        ValueError, match=rf"leaves its folder, first: '{rows[0]['image']}', an absolute path; set image_"
    ):
        load(path, tmp_path)
    assert load(path, tmp_path, image_dir=str(tmp_path))["image_id"][:] == [
        f"data/{number}.jpg" for number in range(3)
    ]


@pytest.mark.parametrize("absolute", [False, True])
def test_long_paths_are_paths(absolute, tmp_path):
    folder = "/".join(letter * 60 for letter in "abcde")
    for number, contents in enumerate(PICTURES):
        write(tmp_path / "data" / folder / f"{number}.jpg", contents)
    start = tmp_path / "data" if absolute else Path()
    path = table(tmp_path, [{"image": str(start / folder / f"{n}.jpg"), "en": "a dog runs"} for n in range(3)])
    assert load(path, tmp_path)["image_id"][:] == [f"{folder}/{number}.jpg" for number in range(3)]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.tsv"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252", "utf-8", "utf-8-sig"])
def test_the_encoding_is_named(encoding, name, tmp_path):
    separator = "\t" if name.endswith(".tsv") else ","
    text = f"image{separator}de\n" + "".join(f"{number}.jpg{separator}{TEXT}\n" for number in range(3))
    if name.endswith(".jsonl"):
        text = "".join(f'{{"image": "{number}.jpg", "de": "{TEXT}"}}\n' for number in range(3))
    path = table(tmp_path, [], name)
    path.write_bytes(text.encode(encoding))
    if encoding.startswith("utf-8"):
        assert load(path, tmp_path)["captions"][2] == {"de": [TEXT]}
        return
    wrong = "line is not UTF-8, first: .* line 1" if path.suffix == ".jsonl" else "line 2: 'utf-8' codec"
    with pytest.raises(ValueError, match=wrong if encoding == "cp1252" else f"or {encoding.upper()}, not UTF-8"):
        load(path, tmp_path)


@pytest.mark.parametrize("streaming", [False, True])
def test_nan_is_a_missing_caption(streaming, tmp_path, caplog):
    """As `json.dumps` writes the empty cells of pandas; in most rows, too."""
    rows = [{"image": "0.jpg", "en": "a dog runs", "de": math.nan}, {"image": "1.jpg", "en": "a cat", "de": TEXT}]
    rows.append({"image": "2.jpg", "en": math.nan, "de": math.nan})
    found = load(table(tmp_path, rows), tmp_path, streaming=streaming)
    captions = [row["captions"] for row in found]
    assert captions == [{"en": ["a dog runs"], "de": []}, {"en": ["a cat"], "de": [TEXT]}]
    mapped = [{"image": row["image"], "captions": {tag: row[tag] for tag in ("en", "de")}} for row in rows]
    assert [row["captions"] for row in load(table(tmp_path / "map", mapped), tmp_path)] == captions
    assert "number" not in caplog.text


def test_nan_and_numbers_among_texts_are_told(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    rows = [{"image": f"{n}.jpg", "en": "a dog", "de": de} for n, de in enumerate([math.inf, 5, TEXT])]
    assert load(table(tmp_path / "few", rows), tmp_path).column_names == ["image", "image_id", "captions"]
    assert "columns left out although their names may be languages: de" in reports(caplog)
    rows[1]["de"] = TEXT
    load(table(tmp_path / "most", rows), tmp_path, max_bad_fraction=0.5)
    assert "1  caption is a number, not text, first: " in reports(caplog)
    rows = [{"image": f"{n}.jpg", "split": "train", "language": "en", "caption": "a dog"} for n in range(3)]
    rows[1]["language"] = math.nan
    assert len(load(table(tmp_path / "long", rows), tmp_path, max_bad_fraction=0.5)) == 2
    assert "1  language is NaN, not text, first: " in reports(caplog)
    rows[1] |= {"language": "en", "split": json.loads("NaN")}
    with pytest.raises(ValueError, match=r"line 2 is of no split, where other rows are of train"):
        load(table(tmp_path / "split", rows), tmp_path)


@pytest.mark.parametrize("streaming", [False, True])
def test_entities_in_captions_are_characters(streaming, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    captions = {"en": ["a cat &amp; a dog", "it&amp;#39;s new"], "de": "&nbsp;", "fr": "AT&T"}
    path = table(tmp_path, [{"image": f"{number}.jpg", **captions} for number in range(3)])
    found = [row["captions"] for row in load(path, tmp_path, streaming=streaming, max_bad_fraction=1.0)]
    assert found == [{"en": ["a cat & a dog", "it's new"], "de": [], "fr": ["AT&T"]}] * 3
    assert f"{path}: HTML entities in captions, such as &amp;, are read as characters" in caplog.text
    assert "3  empty caption in de" in caplog.text


@pytest.mark.parametrize("ending", ["heic", "HEIF", "jp2", "jxl"])
def test_images_that_are_not_read_are_named_in_a_tar_too(ending, tmp_path, caplog):
    beginning = {
        "jp2": b"\0\0\0\x0cjP  \r\n\x87\n",
        "jxl": b"\0\0\0\x0cJXL \r\n\x87\n",
    }.get(ending, b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, contents in (
            *((f"0.{ending}", beginning + bytes(200)), ("0.json", b'{"en": "a dog"}')),
            *(("1.jpg", PICTURES[1]), ("1.json", b'{"en": "a cat"}')),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(contents)
            archive.addfile(member, io.BytesIO(contents))
    assert len(load(tmp_path / "a.tar", tmp_path, max_bad_fraction=0.5)) == 1
    kind = {"jp2": "JPEG 2000", "jxl": "JPEG XL"}.get(ending, "HEIC")
    assert f"1  {kind} image, which " in reports(caplog)
