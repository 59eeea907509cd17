"""Whatever a line of an annotation file holds, it is a row or counted under its reason."""

import json
import re
import unicodedata
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest
from builders import jpeg, write
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import data_scripts
from data_scripts import images
from data_scripts.annotations import BROKEN_JSON, EMPTY_CAPTION
from data_scripts.problems import Problems


class Layout(NamedTuple):
    """How a file of a data set is laid out, and what is text in it."""

    path: str
    language: str
    options: dict
    image: str
    caption: str
    is_list: bool  # one JSON list instead of a line for each row
    forms: tuple[type, ...]  # of the captions


LAYOUTS = {
    "xflickrco": Layout("test.jsonl", "de", {"split": "test"}, "img_path", "sentences", False, (list,)),
    "wit": Layout(
        "test_da.jsonl",
        "da",
        {"split": "test"},
        "image_url",
        "caption_reference_description",
        False,
        (str, type(None)),
    ),
    "multi30k": Layout("train.cs.json", "cs", {"split": "train"}, "image", "caption", True, (str, list)),
    "coco": Layout("zh.val.json", "zh", {"split": "validation"}, "image", "caption", True, (str, list)),
}
FOLDERS = {"xflickrco": "xFlickrCO/annotations/de", "wit": "wit/annotations"}

json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=6),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=3), children, max_size=3),
    max_leaves=6,
)
names = st.sampled_from(["a.jpg", "../a.jpg", "/a.jpg", "", ".", "x" * 5000, "a\0b", "~", "gone.jpg", "\udfff.jpg"])
texts = st.text(max_size=8) | st.sampled_from(["a star", "", " \n", "\ud800", "?!", "\u200b", "\xa0\u3000."])
odd_lines = st.sampled_from(["", "[" * 100_000, "9" * 5000, "[]", '"text"', "NaN"])


def entries(layout: Layout) -> st.SearchStrategy:
    captions = texts | st.lists(texts, max_size=3) | json_values
    row = {layout.image: names, layout.caption: captions}
    mistaken = {layout.image: names | json_values, layout.caption: captions, "id": json_values}
    return st.fixed_dictionaries(row) | st.fixed_dictionaries({}, optional=mistaken) | json_values


@st.composite
def lines(draw, layout: Layout) -> str:
    """JSON of an entry; in one of four cases cut off or with another letter at some place, or something else."""
    line = json.dumps(draw(entries(layout)))
    kind = draw(st.integers(0, 11))
    position = draw(st.integers(0, len(line)))
    if kind == 0:
        return draw(odd_lines)
    if kind == 1:
        return line[:position]
    if kind == 2:
        return line[:position] + draw(st.characters(min_codepoint=32, max_codepoint=126)) + line[position + 1 :]
    return line


def is_text(value) -> bool:
    return isinstance(value, str) and not re.search("[\ud800-\udfff]", value)


def shows(text: str) -> bool:
    """By the published normalisation and Unicode's categories: something beside separators, controls and marks."""
    left = {unicodedata.category(character) for character in set(text) - set(",.'!?\"()*#:;~-/")}
    return any(category[0] not in "ZM" and category not in ("Cc", "Cf") for category in left)


def kind(value) -> str:
    names = {bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object"}
    if value is None or value != value:
        return "null" if value is None else "NaN"
    return names.get(type(value)) or ("text" if is_text(value) else "half a surrogate pair")


def expected(entry, layout: Layout) -> tuple[list[str] | None, set[str] | Counter[str]]:
    """The captions of an entry, None where it is no row, and what it may be counted as, or how many are empty."""
    if not isinstance(entry, dict):
        return None, {f"{'entry' if layout.is_list else 'line'} is {kind(entry)}, not an object"}
    reasons = set()
    captions = entry.get(layout.caption)
    captions = "" if captions is None and layout.caption in entry and type(None) in layout.forms else captions
    if layout.caption not in entry:
        reasons.add(f"{layout.caption} is missing")
    elif isinstance(captions, list) and list in layout.forms:
        reasons |= {
            f"{layout.caption} holds {kind(caption)}, not texts alone" for caption in captions if not is_text(caption)
        }
    elif not (is_text(captions) and str in layout.forms):
        form = "text" if list not in layout.forms or isinstance(captions, str) else "text or a list of texts"
        form = form if str in layout.forms else "a list of texts"
        reasons.add(f"{layout.caption} is {kind(captions)}, not {form}")
    if layout.image not in entry:
        reasons.add(f"{layout.image} is missing")
    elif not is_text(entry[layout.image]):
        reasons.add(f"{layout.image} is {kind(entry[layout.image])}, not text")
    if reasons:
        return None, reasons
    captions = captions if isinstance(captions, list) else [captions]
    kept = [caption.strip() for caption in captions if shows(caption)]
    empty = max(1, len(captions)) - len(kept)
    return kept, +Counter({f"{EMPTY_CAPTION} in {layout.language}": empty})


@pytest.fixture(scope="module", params=LAYOUTS)
def opened(request, tmp_path_factory):
    """A data set's builder, its layout and its annotation file."""
    layout, folder = LAYOUTS[request.param], tmp_path_factory.mktemp(request.param)
    path = write(folder / "data" / FOLDERS.get(request.param, "") / layout.path, "[]" if layout.is_list else "")
    write(folder / "images/a.jpg", jpeg())
    write(folder / "images/pixels.csv", "a.jpg\tAAAA\n")
    builder = data_scripts.make_builder(
        request.param,
        languages=[layout.language],
        data_dir=folder / "data" / ("" if layout.is_list else Path(FOLDERS[request.param]).parts[0]),
        image_dir=folder / "images",
        cache_dir=folder / "cache",
        max_bad_fraction=1.0,
        **layout.options,
    )
    return builder, layout, path


@pytest.mark.slow
@settings(max_examples=500, deadline=None, database=None, derandomize=True)
@given(data=st.data())
def test_fuzzed_lines_are_rows_or_counted(opened, data):
    """500 lines for each of the four: nothing is raised but the error that names a file which is no JSON at all."""
    builder, layout, path = opened
    line = data.draw(lines(layout))
    text = f"[{line}]" if layout.is_list else line
    path.write_text(f"{text}\n")
    if not layout.is_list and line.lstrip().startswith("["):
        with pytest.raises(ValueError, match=rf"{path} is a JSON array, but a JSON object on each line is expected"):
            builder.read_annotations()
        return
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        if layout.is_list:
            with pytest.raises(ValueError, match=rf"{path} is no JSON .*; \w"):
                builder.read_annotations()
            return
        captions, wrong = None, {BROKEN_JSON}
    else:
        assume(not layout.is_list or len(content) == 1)
        captions, wrong = expected(content[0] if layout.is_list else content, layout)
    annotations, problems = builder.read_annotations()
    assert problems.rows == bool(line.strip()) and not problems.absences
    if captions is None:  # one of the reasons counts the entry
        assert problems.rows == 0 or (list(problems.counts.values()) == [1] and set(problems.counts) <= wrong)
    else:
        assert problems.counts == wrong
    assert [annotation.captions for annotation in annotations] == (
        [] if captions is None else [{layout.language: captions}]
    )
    in_images = Problems("images", max_bad_fraction=1.0, rows=1, quiet=True)
    for annotation, image in builder.check_images(annotations, in_images):
        assert in_images.total() == (image is None)
        annotation.image_id.encode()  # as the cache does
    assert set(in_images.counts) <= {images.OUTSIDE, images.TOO_LONG, images.UNREADABLE, images.NOT_AN_IMAGE}
    assert set(in_images.absences) <= {images.MISSING}
