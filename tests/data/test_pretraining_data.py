"""Pre-training shards: rows, bad input counted by reason, and reading them exactly once, from anywhere."""

import base64
import gzip
import io
import json
import os
import re
import shutil
from collections import Counter
from dataclasses import replace
from itertools import chain
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import data_scripts
from ccrk.training.collator import CCRKCollator
from data_scripts import captions, images, shards, text
from data_scripts.problems import Problems
from data_scripts.shards import ShardRows
from processing_ccrk import CCRKProcessor

LANGUAGES = ["en", "de", "zh"]


def jpeg(shade: int = 0) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (24, 16), (shade, 90, 200)).save(file, "JPEG")
    return file.getvalue()


def row(number: int, **changes) -> dict:
    """A row of each published form in turn: image by path or inline; one caption, several, or some languages only."""
    captions = {"en": f"a red star {number}", "de": f"ein Stern {number}", "zh": f"星 {number}"}
    forms = [
        {"caption": captions, "image_path": f"{number % 5}.jpg"},
        {"caption": [captions, {"en": "another"}], "image": base64.b64encode(jpeg(number % 256)).decode()},
        {"caption": {"de": f"nur {number}"}, "binary": base64.b64encode(jpeg(number % 256)).decode()},
    ]
    return forms[number % 3] | changes


def write(path, lines) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [line if isinstance(line, bytes) else json.dumps(line, ensure_ascii=False).encode() for line in lines]
    path.write_bytes(b"".join(line + b"\n" for line in lines))


def make_folder(data):
    """60 good rows in the folders of two sets, and five photographs."""
    write(data / "cc3m-mm-data-all/part_000.data", map(row, range(25)))
    write(data / "cc3m-mm-data-all/part_001.data", map(row, range(25, 30)))
    write(data / "sbu-mm-data-all/nested/part_0.data", map(row, range(30, 60)))
    for number in range(5):
        (data / f"{number}.jpg").write_bytes(jpeg(50 * number))
    return data


@pytest.fixture
def folder(tmp_path):
    return make_folder(tmp_path / "data")


def load(folder, streaming=True, **arguments):
    arguments = {"languages": LANGUAGES, "cache_dir": folder.parent / "cache"} | arguments
    return data_scripts.load("pretraining", split="train", data_dir=folder, streaming=streaming, **arguments)


def number_of(row: dict) -> int:
    """The number that `row` was made with."""
    return int(row["captions"]["de"][0].split()[-1])


class TestRows:
    @pytest.mark.parametrize("streaming", [True, False])
    def test_every_form(self, folder, streaming, caplog):
        rows = load(folder, streaming)
        assert len(rows) == 60 and list(rows.features["captions"]) == LANGUAGES
        assert [number_of(rows[position]) for position in range(60)] == list(range(60))
        assert rows[0]["captions"] == {"en": ["a red star 0"], "de": ["ein Stern 0"], "zh": ["星 0"]}
        assert rows[1]["captions"] == {"en": ["a red star 1", "another"], "de": ["ein Stern 1"], "zh": ["星 1"]}
        assert rows[2]["captions"] == {"en": [], "de": ["nur 2"], "zh": []}
        assert rows[3]["image_id"] == "3.jpg" and rows[3]["image_id"] != rows[1]["image_id"]
        for position in (0, 1, 2):
            image = rows[position]["image"]
            assert image.mode == "RGB" and image.size == (24, 16)
        assert rows[1]["image"].getpixel((5, 5)) == Image.open(io.BytesIO(jpeg(1))).getpixel((5, 5))
        assert caplog.records == []

    def test_stream_and_cache_are_the_same(self, folder):
        for streamed, cached in zip(load(folder), load(folder, streaming=False), strict=True):
            assert streamed["image"].tobytes() == cached["image"].tobytes()
            assert {**streamed, "image": None} == {**cached, "image": None}

    def test_presets(self, folder):
        assert len(load(folder, preset="2m")) == 30
        with pytest.raises(FileNotFoundError, match=r"no part_\*\.data in .*vg-mm-data-all"):
            load(folder, preset="3m")
        for name in ("vg", "coco"):
            write(folder / f"{name}-mm-data-all/part_0.data", [row(0)])
        assert len(load(folder, preset="3m")) == 62

    def test_undecoded(self, folder):
        rows = replace(load(folder), decode=False)
        assert rows[0]["image"] == {"path": str(folder / "0.jpg"), "bytes": None}
        assert rows[1]["image"] == {"path": None, "bytes": jpeg(1)}

    def test_the_index_is_made_once_for_the_same_files(self, folder, monkeypatch):
        load(folder)
        with monkeypatch.context() as patch:
            patch.setattr(shards, "index_shards", None)
            assert len(load(folder)) == 60
        write(folder / "sbu-mm-data-all/nested/part_0.data", map(row, range(30, 40)))
        assert len(load(folder)) == 40

    def test_an_interrupted_pass_leaves_no_index(self, folder, monkeypatch):
        with monkeypatch.context() as patch:
            patch.setattr(np, "save", lambda file, _: file.write(b"half") / 0)
            with pytest.raises(ZeroDivisionError):
                load(folder)
        assert len(load(folder)) == 60

    def test_select_and_captions(self, folder):
        rows = load(folder).select(range(7, 10))
        assert [number_of(rows[position]) for position in range(3)] == [7, 8, 9]
        assert [number_of({"captions": captions}) for captions in rows.captions()] == [7, 8, 9]
        with pytest.raises(IndexError):
            rows[3]

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"preset": "4m"}, "no preset '4m'"),
            ({"languages": ["en", "xx"]}, "no caption in xx"),
            ({"image_dir": "/nowhere/at/all"}, "is no folder"),
        ],
    )
    def test_mistakes(self, folder, arguments, message):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            load(folder, **arguments)


# One line for each way to be wrong, and the reason that it is counted under.
BAD_LINES = [
    (b'{"caption": {"en": "cut', shards.NOT_JSON),
    (b"[" * 100_000, shards.NOT_JSON),
    (b'{"caption": {"en": "\xff"}}', shards.NOT_UTF8),
    (b'["a", "list"]', "line is a list, not a JSON object"),
    (row(0, caption="text"), "caption is text, not an object of language and text"),
    (row(0, caption=None), "caption is null, not an object of language and text"),
    ({"image_path": "0.jpg"}, "caption is missing"),
    (row(0, caption=[]), "caption is an empty list"),
    (row(0, caption=[{"en": "one"}, "two"]), "caption holds text, not an object of language and text"),
    (row(0, caption={"en": 3}), "caption is a number, not text"),
    (b'{"caption": {"en": NaN}, "image_path": "0.jpg"}', "caption is NaN, not text"),
    (row(0, caption={"en": ["a"]}), "caption is a list, not text"),
    (b'{"caption": {"en": "\\ud800"}, "image_path": "0.jpg"}', "caption is half a surrogate pair, not text"),
    (row(0, caption={"en": " ?! "}), captions.EMPTY),
    (row(0, caption={"en": "\u200b", "de": "\u3000."}), captions.EMPTY),
    (row(0, caption={"EN": "loud"}), shards.NO_LANGUAGE),
    (row(0, caption={"ko": "별"}), shards.NO_LANGUAGE),
    ({"caption": {"en": "no image"}}, shards.NO_IMAGE),
    (row(0, image_path=5), "image_path is a number, not text"),
    (b'{"caption": {"en": "a"}, "image_path": "\\udfff.jpg"}', "image_path is half a surrogate pair, not text"),
    ({"caption": {"en": "a"}, "image": ["bytes"]}, "image is a list, not base64"),
    ({"caption": {"en": "a"}, "image": "not base64!"}, images.NOT_BASE64),
    (row(0, image_path="../secret.jpg"), images.OUTSIDE),
    (row(0, image_path="/etc/hostname"), images.OUTSIDE),
    (row(0, image_path="C:\\secret.jpg"), images.OUTSIDE),
    (row(0, image_path="cc3m-mm-data-all"), images.NOT_A_FILE),
    (row(0, image_path="pipe.jpg"), images.NOT_A_FILE),
    (row(0, image_path="a/" * 100_000 + "0.jpg"), images.TOO_LONG),
    (row(0, image_path="nowhere.jpg"), images.MISSING),
]
# Rows that stay, without the caption that is wrong.
MENDED_LINES = [
    (row(0, caption={"en": "", "de": "gut 100"}), captions.EMPTY),
    (row(0, caption={"en": "\ufeff", "de": "gut 101"}), captions.EMPTY),
    (row(0, caption=[{"en": None}, {"de": "gut 102"}]), "caption is null, not text"),
]
# Images that turn out to be damaged when they are read.
DAMAGED_LINES = [
    ({"caption": {"de": "x 200"}, "image": base64.b64encode(b"<html>").decode()}, images.NOT_AN_IMAGE),
    ({"caption": {"de": "x 201"}, "image": base64.b64encode(jpeg()[:300]).decode()}, images.DAMAGED),
    ({"caption": {"de": "x 202"}, "image_path": "page.jpg"}, images.NOT_AN_IMAGE),
    ({"caption": {"de": "x 203"}, "image_path": "zero.jpg"}, images.EMPTY),
]


@pytest.fixture
def bad_folder(folder):
    """Bad lines before the good ones, damaged images among them and at the very end."""
    (folder.parent / "secret.jpg").write_bytes(jpeg())
    os.mkfifo(folder / "pipe.jpg")
    (folder / "page.jpg").write_text("<html>not found</html>")
    (folder / "zero.jpg").touch()
    lines = [line for line, _ in BAD_LINES + MENDED_LINES]
    write(folder / "cc3m-mm-data-all/part_000.data", [lines[0], b"", *lines[1:], b" \r"])  # blank lines do not count
    write(folder / "cc3m-mm-data-all/part_001.data", [*map(row, range(10)), *(line for line, _ in DAMAGED_LINES[:2])])
    write(
        folder / "sbu-mm-data-all/nested/part_0.data", [*map(row, range(9)), *(line for line, _ in DAMAGED_LINES[2:])]
    )
    return folder


def test_links_in_the_image_folder_are_followed(folder):
    elsewhere = folder.parent / "big-disk"
    elsewhere.mkdir()
    (folder / "0.jpg").rename(elsewhere / "0.jpg")
    (folder / "0.jpg").symlink_to(elsewhere / "0.jpg")
    (folder / "1.jpg").rename(elsewhere / "1.jpg")
    before = len(load(folder))
    (folder / "linked").symlink_to(elsewhere)
    shard = folder / "cc3m-mm-data-all/part_000.data"
    lines = shard.read_text().replace('"1.jpg"', '"./linked//1.jpg"')
    shard.write_text(lines)
    rows = load(folder)
    assert len(rows) == before + 2, "rows 6 and 21 are there again"
    assert "linked/1.jpg" in {row["image_id"] for row in rows}


def test_links_to_shards_are_followed(folder):
    elsewhere = folder.parent / "big-disk"
    before, part = len(load(folder)), len(load(folder, preset="2m"))
    (folder / "cc3m-mm-data-all").rename(elsewhere)
    (folder / "cc3m-mm-data-all").symlink_to(elsewhere)
    (folder / "again").symlink_to(folder)  # in a circle
    os.mkfifo(elsewhere / "part_pipe.data")
    (elsewhere / "part_folder.data").mkdir()
    assert (len(load(folder)), len(load(folder, preset="2m"))) == (before, part)


class TestBadInput:
    def test_every_line_is_counted_under_its_reason(self, bad_folder, caplog):
        rows = load(bad_folder, max_bad_fraction=0.9)
        assert len(rows) == 3 + 10 + 9 + 4
        table = caplog.messages[-1]
        assert "pretraining: 55 rows, of which" in table and f"delete {bad_folder.parent}/cache/" in table
        expected = Counter(reason for _, reason in BAD_LINES + MENDED_LINES)
        counted = {
            reason: int(n)
            for n, reason in (line.split(", first:")[0].split("  ")[-2:] for line in table.splitlines()[1:-1])
        }
        tags = (
            "captions in languages not asked for: EN 1, ko 1; EN is close to en, which is asked for: rename it in the "
        )
        assert counted.pop(f"{tags}files, or ask for it by that name") == 2
        assert counted == expected
        assert f"{shards.NOT_UTF8}, first: {bad_folder}/cc3m-mm-data-all/part_000.data line 4" in table
        caplog.clear()
        load(bad_folder, max_bad_fraction=0.9)
        assert caplog.messages == [table]

    def test_captions_that_are_wrong_are_left_out_of_rows_that_stay(self, bad_folder):
        rows = load(bad_folder, max_bad_fraction=0.9)
        assert [number_of(rows[position]) for position in range(3)] == [100, 101, 102]
        assert all(rows[position]["captions"]["en"] == [] for position in range(3))

    def test_damaged_images_say_why_when_they_are_decoded(self, bad_folder):
        rows = load(bad_folder, max_bad_fraction=0.9)
        for number, (_, reason) in zip((13, 14, 24, 25), DAMAGED_LINES, strict=True):
            with pytest.raises(images.BadImage, match=reason) as raised:
                rows[number]
            assert raised.value.where.startswith(f"{bad_folder}/") and " byte " in raised.value.where

    def test_the_cache_leaves_damaged_images_out(self, bad_folder, caplog):
        rows = load(bad_folder, streaming=False, max_bad_fraction=0.9)
        assert [number_of(r) for r in rows] == [100, 101, 102, *range(10), *range(9)]
        for reason, count in Counter(reason for _, reason in DAMAGED_LINES).items():
            assert f"{count}  {reason}, first: " in caplog.text
        caplog.clear()
        load(bad_folder, streaming=False, max_bad_fraction=0.9)
        assert images.DAMAGED in caplog.text and shards.NOT_UTF8 in caplog.text

    @pytest.mark.parametrize("streaming", [True, False])
    def test_an_image_that_comes_later_is_found_as_the_table_says(self, folder, streaming, caplog):
        (folder / "0.jpg").unlink()
        assert len(load(folder, streaming=streaming)) == 56
        (folder / "0.jpg").write_bytes(jpeg())
        assert len(load(folder, streaming=streaming)) == 56
        shutil.rmtree(re.search("delete (.+) to look again", caplog.text)[1])
        assert len(load(folder, streaming=streaming)) == 60

    def test_too_many_bad_rows_stop_with_the_table(self, bad_folder):
        with pytest.raises(ValueError, match=r"more than max_bad_fraction 0\.05; (.|\n)*caption is empty, first: /"):
            load(bad_folder)

    def test_no_image_at_all(self, folder, tmp_path):
        (tmp_path / "elsewhere").mkdir()
        write(folder / "only/part_0.data", [row(0)])
        with pytest.raises(FileNotFoundError, match=r"is image_dir .*elsewhere right"):
            load(folder / "only", languages=["en"], image_dir=tmp_path / "elsewhere")

    @pytest.mark.parametrize(
        ("name", "contents", "message"),
        [
            (
                "part-0.data",
                b"{}",
                r"no part_\*\.data in .*, but part-0\.data; .* one JSON object on each line",
            ),
            ("part_0.json", b"{}", r"no part_\*\.data in .*, but part_0\.json; .* one JSON object on each line"),
            ("rows.jsonl.gz", b"", r"no part_\*\.data in .*, but rows\.jsonl\.gz; .* unpacked"),
            ("notes.txt", b"", r"no part_\*\.data in [^,]*; data_dir should hold pre-training shards"),
            (
                "part_0.data",
                b'\xef\xbb\xbf\n [\n{"caption": {}},',
                r"part_0\.data is a JSON array; write it again",
            ),
            ("part_0.data", gzip.compress(b"{}\n", mtime=0), r"part_0\.data is packed; unpack it"),
            (
                "part_0.data",
                '{"caption": 1}'.encode("utf-16"),
                r"part_0\.data is damaged or UTF-16, not UTF-8; save",
            ),
            ("part_0.data", '{"caption": 1}'.encode("utf-16-le"), r"part_0\.data is damaged or UTF-16-LE, not UTF-8"),
            (
                "part_0.data",
                b" " * 600 + b"\n",
                r"part_0\.data line 1 is longer than 512 bytes; is it a",
            ),
        ],
    )
    def test_a_folder_of_other_files_says_what_is_expected(self, tmp_path, name, contents, message, monkeypatch):
        monkeypatch.setattr(text, "MAX_LINE_BYTES", 512)
        (tmp_path / name).write_bytes(contents)
        with pytest.raises((ValueError, FileNotFoundError), match=message) as raised:
            load(tmp_path)
        assert "\n" not in str(raised.value)

    @pytest.mark.parametrize("streaming", [True, False])
    def test_byte_order_marks_blank_lines_and_windows_line_ends(self, folder, streaming, caplog):
        lines = [json.dumps(row(number), ensure_ascii=False) for number in range(4)]
        contents = "\ufeff" + "\r\n\r\n".join(lines) + "\r\n  \n\n\ufeff" + json.dumps(row(4)) + "\n"
        for shard in folder.rglob("part_*"):
            shard.unlink()
        (folder / "part_0.data").write_text(contents, newline="")
        rows = load(folder, streaming)
        assert [number_of(r) for r in rows] == [0, 1, 2, 3, 4] and caplog.records == []
        assert rows[3]["captions"] == {"en": ["a red star 3"], "de": ["ein Stern 3"], "zh": ["星 3"]}

    def test_tags_that_were_not_asked_for_are_counted_by_name(self, folder, caplog):
        odd = [row(0, caption={"en": f"a {n}", tag: "星"}) for n, tag in enumerate(["zh-CN"] * 3 + ["cn", "ko", "de"])]
        write(folder / "cc3m-mm-data-all/part_000.data", odd)
        load(folder)
        tags = (
            "5  captions in languages not asked for: zh-CN 3, cn 1, ko 1; zh-CN is close to zh; cn is close to zh, "
            "which is asked for: rename it in the files, or ask for it by that name"
        )
        assert tags in caplog.text
        assert load(folder, languages=["cn"])[0]["captions"] == {"cn": ["星"]}

    @pytest.mark.parametrize(
        ("languages", "message"),
        [
            (["en", "zh-CN"], "no caption in zh-CN .*zh 40, ja 1; zh is close to zh-CN, which is asked for: rename"),
            (
                ["en", "zh", "jp"],
                r"no caption in jp in these shards; .* not asked for: de 60, ja 1; ja is close",
            ),
        ],
    )
    def test_a_language_without_any_caption_names_the_tag_that_is_close(self, folder, languages, message):
        write(folder / "more/part_0.data", [row(0, caption={"ja": "星"})])
        with pytest.raises(ValueError, match=message):
            load(folder, languages=languages)


class TestAlignment:
    """A row with a list of caption objects: what is drawn together is from one of them."""

    OBJECTS = (
        {"en": "en zero", "de": "de zero", "zh": "zh zero"},
        {"en": "?!", "ko": "one"},  # unusable as a whole
        {"en": "en two", "de": "\u200b", "zh": "zh two"},
        {"de": "de three"},
    )

    @pytest.mark.parametrize("streaming", [True, False])
    def test_a_draw_is_one_object(self, folder, streaming, processor):
        write(folder / "more/part_0.data", [row(0, caption=self.OBJECTS)])
        rows = load(folder, streaming)
        (aligned,) = [row for row in rows if "en zero" in row["captions"]["en"]]
        assert aligned["captions"] == {
            "en": ["en zero", "en two"],
            "de": ["de zero", None, "de three"],
            "zh": ["zh zero", "zh two"],
        }
        collator = CCRKCollator(processor, LANGUAGES)
        drawn = [draw(collator, aligned) for collator.epoch[()] in range(300)]
        assert drawn == [draw(collator, aligned) for collator.epoch[()] in range(300)], "by seed, epoch and image"
        assert set(drawn) == {
            ("en zero", "de zero", "zh zero"),
            ("en two", None, "zh two"),
            (None, "de three", None),
        }
        assert min(Counter(drawn).values()) > 70, "each as often as the others"
        one = replace(collator, one_language=True)
        assert {draw(one, aligned)[0] for one.epoch[()] in range(100)} == {
            "en zero", "de zero", "zh zero", "en two", "zh two", "de three"
        }  # fmt: skip

    def test_independent_captions_are_drawn_by_themselves(self, folder, processor):
        captions = {language: [f"{language} zero", f"{language} one"] for language in ("en", "de")}
        independent = {"image": {"path": str(folder / "0.jpg"), "bytes": None}, "image_id": "0", "captions": captions}
        collator = CCRKCollator(processor, ["en", "de"])
        assert len({draw(collator, independent) for collator.epoch[()] in range(60)}) == 4


def draw(collator: CCRKCollator, row: dict) -> tuple[str | None, ...]:
    """The captions that reach the processor, None where one is masked."""
    mask = torch.ones(1, 1, 1)
    with patch.object(CCRKProcessor, "__call__", lambda self, images, text: {"text": text, "attention_mask": mask}):
        return tuple(collator([row])["text"][0])


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=6),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=3), children, max_size=3),
    max_leaves=6,
)
tags = st.sampled_from([*LANGUAGES, "EN", "ko", ""])
texts = st.text(max_size=8) | st.sampled_from(["a star", "ein Stern", "星", "", "?!", "\ud800"]) | json_values
fuzzed_captions = st.dictionaries(tags, texts, min_size=1, max_size=4)
paths = st.sampled_from(["0.jpg", "../0.jpg", "/0.jpg", "", ".", "x" * 5000, "a\0b", "~", "gone.jpg"]) | json_values
fuzzed_rows = st.fixed_dictionaries(
    {"caption": fuzzed_captions | st.lists(fuzzed_captions, max_size=3) | json_values},
    optional={
        "image_path": paths,
        "image": st.sampled_from([base64.b64encode(jpeg()).decode(), "AAAA", "?"]) | json_values,
        "binary": json_values,
    },
)


def damage(line: bytes, position: int, byte: int | None) -> bytes:
    """The line with a byte changed, or cut off."""
    position %= len(line)
    return line[:position] if byte is None else line[:position] + bytes([byte]) + line[position + 1 :]


fuzzed_lines = (
    st.builds(lambda value: json.dumps(value).encode(), fuzzed_rows)
    | st.builds(
        damage,
        st.builds(lambda value: json.dumps(value).encode(), fuzzed_rows),
        st.integers(0),
        st.none() | st.integers(0, 255),
    )
    | st.binary(max_size=20)
)


@pytest.mark.slow
@settings(max_examples=2000, deadline=None, database=None, derandomize=True)
@given(line=fuzzed_lines)
def test_fuzzed_lines_are_rows_or_counted(line, fuzz_folder):
    """2,000 lines: each is a row with usable captions or counted under one reason, and nothing else is ever raised."""
    problems = Problems("fuzz", max_bad_fraction=1, rows=1)
    languages = shards.check_line(line, LANGUAGES, str(fuzz_folder), problems, "here")
    if not languages:
        assert problems.counts.total() + problems.absences.total() == 1
        return
    (fuzz_folder / "part_0.data").write_bytes(line)
    index = np.array([(0, len(line), 0)], shards.INDEX_TYPE)
    rows = ShardRows([str(fuzz_folder / "part_0.data")], index, LANGUAGES, str(fuzz_folder), 1.0)
    try:
        read = rows[0]
    except images.BadImage as error:
        assert error.reason in {images.NOT_AN_IMAGE, images.UNREADABLE}
        read = replace(rows, decode=False)[0]
    else:
        assert read["image"].mode == "RGB"
    assert {language for language, texts in read["captions"].items() if texts} == languages
    texts = chain(*read["captions"].values())
    assert all(text is None or (text.encode() and text.strip()) for text in texts)


@pytest.fixture(scope="module")
def fuzz_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "0.jpg").write_bytes(jpeg())
    return folder
