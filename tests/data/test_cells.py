"""Lists in a cell are read as JSON, Python, pandas and NumPy write them, or counted; captions stay as they are."""

import io
import json

import numpy as np
import pandas as pd
import pytest
from builders import reports, write, write_json_lines
from pictures import encode
from PIL import Image

import data_scripts
from data_scripts.columns import read_captions

NAMES = ["a.png", "b.png", "c.png"]


@pytest.mark.parametrize(
    ("value", "captions"),
    [
        (str(["a dog", "it's"]), ["a dog", "it's"]),
        (str(("a dog", "it's")), ["a dog", "it's"]),
        ("['a dog' \"it's\"]", ["a dog", "it's"]),
        ("['a dog'\n \"it's\"]", ["a dog", "it's"]),
        ("array(['a dog', \"it's\"],\n      dtype=object)", ["a dog", "it's"]),
        ("array(['a', 'b'], dtype='<U1')", ["a", "b"]),
        ("[np.str_('a'), np.str_('b')]", ["a", "b"]),
        (" ('a',) ", ["a"]),
        ("{'a'}", ["a"]),
        ("()", []),
        ("array([], dtype=object)", []),
        ('["a", null]', ["a", None]),
        ("['a', None, nan]", ["a", None, None]),
        ('["a", 3, ["b"]]', ["a", 3, ["b"]]),
        (r"['a\'b' 'c\u00e9']", ["a'b", "cé"]),
    ],
)
def test_lists_are_read(value, captions):
    assert read_captions(value) == captions


@pytest.mark.parametrize("texts", [["a dog", "it's", 'a "b"', "'\""], [f"a dog with number {n}" for n in range(9)]])
def test_lists_as_libraries_write_them(texts):
    for kind in (object, str):
        array = np.array(texts, dtype=kind)
        written = pd.read_csv(io.StringIO(pd.DataFrame({"en": [array]}).to_csv()))["en"][0]
        for text in (str(array), repr(array), written, str(list(array)), str(tuple(array)), json.dumps(texts)):
            assert read_captions(text) == texts


def test_captions_that_begin_as_lists_do():
    for caption in (
        *("[man] walking", "(left) a dog", "[man] and [dog]", "(a dog)", "[1] a dog", "(2 dogs)", "[", "{a}", "nan"),
        *("['quoted'] a dog", '("Stop") a sign', '"Go" is what it says', "['90s car]", "('n' roll)", "array of dogs"),
    ):
        assert read_captions(caption) == [caption]


def test_lists_that_cannot_be_read():
    for text in (
        *("['a', 'b", '["a dog", "a ca', "['it's', 'b']", "['a''b']", "['a' 'b' ... 'z']", "[b'a']", "['a', 1]"),
        *("[['a', 'b'], ['c']]", "[['a' 'b']\n ['c' 'd']]", "array([['a']], dtype=object)", "[{'en': 'a'}]"),
        *(r"['\x']", "['a" * 5000, "['a'," * 5000),
    ):
        assert read_captions(text) == [[text]], text[:50]


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
def test_of_every_format(suffix, tmp_path, caplog):
    for name in NAMES:
        write(tmp_path / "data" / name, encode(Image.new("RGB", (8, 8)), "PNG"))
    cells = ["['a dog', \"it's\"]", "['a' 'b']", "['a', 'b"]
    rows = [
        {"file_name": name, "image_id": f"('{name}', 'x')", "en": cell, "de": "x"}
        for name, cell in zip(NAMES, cells, strict=True)
    ]
    source = tmp_path / f"data/t.{suffix}"
    table = pd.DataFrame(rows)
    if suffix == "jsonl":
        write_json_lines(source, rows)
    elif suffix == "parquet":
        table.to_parquet(source)
    else:
        table.to_csv(source, index=False, sep="\t" if suffix == "tsv" else ",")
    found = data_scripts.load(str(source), split="test", cache_dir=str(tmp_path / "cache"), max_bad_fraction=1.0)
    assert [row["captions"]["en"] for row in found] == [["a dog", "it's"], ["a", "b"], []]
    assert found["image_id"][:] == [row["image_id"] for row in rows]
    where = f"{source} {'row' if suffix == 'parquet' else 'line'} {3 + suffix.endswith('sv')}"
    assert f"1  caption is a list, not text, first: {where}" in reports(caplog)


def test_nothing_in_the_lists_of_a_parquet_file(tmp_path, caplog):
    for name in NAMES:
        write(tmp_path / "data" / name, encode(Image.new("RGB", (8, 8)), "PNG"))
    pd.DataFrame({"file_name": NAMES, "en": [["a", None]] * 3}).to_parquet(tmp_path / "data/t.parquet")
    options = {"cache_dir": str(tmp_path / "cache"), "max_bad_fraction": 1.0}
    found = data_scripts.load(str(tmp_path / "data/t.parquet"), split="test", **options)
    assert found["captions"][:] == [{"en": ["a"]}] * 3
    assert "3  caption is null, not text" in reports(caplog)
