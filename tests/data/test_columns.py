"""Which columns hold images, names and captions, by their names and values."""

import pytest
from builders import write_json_lines
from test_tables import NAMES, load, write_pictures

from data_scripts.columns import LANGUAGES, find_columns, read_captions
from data_scripts.options import parse_caption_columns


def test_names_of_languages():
    sample = {
        "file_name": "a.jpg",
        "caption_de": "x",
        "texts.fr": ["y"],
        "pt_caption": "z",
        "zh-Hans": "w",
        "url": "u",
    }
    columns = find_columns("t", [sample])
    assert columns.captions == {
        "de": ("caption_de",), "fr": ("texts.fr",), "pt": ("pt_caption",), "zh-Hans": ("zh-Hans",)
    }  # fmt: skip


def test_indonesian_and_numbers_of_rows():
    sample = {"file_name": "a.jpg", "en": "a red star", "id": "bintang merah"}
    assert set(find_columns("t", [sample]).captions) == {"en", "id"}
    for number in (7, "7", "img_7", "abc"):
        assert set(find_columns("t", [sample | {"id": number}]).captions) == {"en"}


def test_most_values_tell_indonesian_from_names_of_rows():
    captions = ["anjing di salju", "jam 3 sore", "2 ekor kucing hitam", "kucing", "jam 12"]
    names = ["000000391895.jpg", "dog_7", "3f2504e0-4f89-11d3-9a0c-0305e82c3301", "val2014/7", "lihat gambar ini"]
    for column, values, is_taken in (
        *(("id", captions, True), ("id", names, False), ("ID", names, False), ("caption_id", names, False)),
        *(("cat", captions, True), ("cat", ["animal"], False), ("tel", ["+49 30 1"], False)),
    ):
        samples = [{"file_name": "a.jpg", "en": "a red star", column: value} for value in values]
        assert (len(find_columns("t", samples).captions) == 2) is is_taken, (column, values)


@pytest.mark.parametrize(
    "name", ["shn", "eng_Latn", "deu", "zh-Hant", "zh_hant", "pt_BR", "en-US", "xal_Cyrl", "zh-Hans-CN", "es-419"]
)
def test_tags_of_any_form(name):
    for column in (name, f"caption_{name}", f"{name}.txt"):
        samples = [{"file_name": "a.jpg", column: value} for value in ("Hund", "3 Hunde", "12")]
        columns = find_columns("t", samples)
        assert columns.captions == {name: (column,)} and not columns.warning


def test_what_may_be_captions_and_is_left_out_is_named_first(tmp_path, caplog):
    write_pictures(tmp_path / "data")
    doubtful = {
        "id": "anjing",
        "title_fr": "un chien",
        "german": "ein Hund",
        "jp": "犬",
        "alt": "a dog",
        "sv": None,
    }
    others = {"url": "https://a.b/c.jpg", "author": "A. Person", "key": "7", "width": 3}
    entries = [{"file_name": name, "en": "a dog", "de": "ein Tier"} | doubtful | others for name in NAMES]
    write_json_lines(tmp_path / "data/metadata.jsonl", entries)
    assert list(load(tmp_path / "data")[0]["captions"]) == ["en", "de"]
    first = caplog.records[0]
    assert first.levelname == "WARNING"
    message, _, cure = first.getMessage().partition("; to read them, use --caption_columns ")
    assert message.endswith("may be languages: id, title_fr, german, jp, alt, sv")
    found = load(tmp_path / "data", caption_columns=parse_caption_columns(cure.split()))[0]["captions"]
    assert found["de"] == ["ein Tier", "ein Hund"] and found["ja"] == ["犬"] and found["id"] == ["anjing"]


def test_what_the_user_says_goes():
    sample = {"picture": b"x", "first": "a", "second": "b", "other": "c"}
    columns = find_columns("t", [sample], parse_caption_columns(["en=first,second", "de=other"]), "picture")
    assert list(columns.read(sample)) == [("en", ["a", "b"]), ("de", ["c"])]


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ({"file_name": "a.jpg", "text": "x"}, r"--caption_columns en=text. Its columns: file_name \(text\), text"),
        ({"file_name": "a.jpg", "url": "x"}, r"by --caption_columns LANGUAGE=COLUMN. Its columns: .*url \(text\)"),
        ({"en": "x", "number": 3}, r"no column holds pictures; name it by --image_column. .*number \(int\)"),
    ],
)
def test_nothing_found(sample, message):
    with pytest.raises(ValueError, match=message):
        find_columns("t", [sample])


@pytest.mark.parametrize(
    ("value", "captions"),
    [
        ("a", ["a"]),
        (["a", "b"], ["a", "b"]),
        ('["a", "b"]', ["a", "b"]),
        ("[a bracket", ["[a bracket"]),
        ("[1, 2]", ["[1, 2]"]),
        (None, []),
        ([], []),
        (3, [3]),
    ],
)
def test_cells(value, captions):
    assert read_captions(value) == captions


def test_codes():
    assert {"en", "yue", "chr", "quz"} <= LANGUAGES and not LANGUAGES & {"url", "key", "img", "txt", "alt"}
    with pytest.raises(ValueError, match="LANGUAGE=COLUMN such as de=caption_de, not 'de'"):
        parse_caption_columns(["de"])
