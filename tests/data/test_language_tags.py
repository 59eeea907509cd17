"""Tags that differ in case and separators are one language; what is not asked for is counted and named."""

import csv

import datasets
import pytest
from builders import jpeg, reports, write, write_json_lines

import data_scripts
from data_scripts.columns import language_of_name


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf-cache")


def write_csv(path, *rows):
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def load(folder, **options):
    for name in "ab":
        write(folder / f"{name}.jpg", jpeg(ord(name)))
    return data_scripts.load(str(folder), split="train", **options)


def test_long_form_counts_what_is_not_asked_for(tmp_path, caplog):
    """Each close tag with the language that it is close to."""
    tags = ["EN", "en-US", "eng", "English", "de", "iw", "he", "fr"]
    write_csv(tmp_path / "x/all.csv", ("path", "language", "caption"), *(("a.jpg", tag, f"in {tag}") for tag in tags))
    rows = load(tmp_path / "x", languages=["en", "he"])
    assert rows["captions"][:] == [{"en": ["in EN"], "he": ["in he"]}]
    text = reports(caplog)
    assert "6  captions in languages not asked for: " in text and "English 1" in text and "fr 1" in text
    for tag in ("en-US is close to en", "eng is close to en", "English is close to en", "iw is close to he"):
        assert tag in text


def test_columns_and_mappings_are_counted_too(tmp_path, caplog):
    lines = [
        {"file_name": "a.jpg", "captions": {"EN": ["a dog"], "eng": ["dog"], "pt_BR": ["um cão"], "pt-br": ["cão"]}}
    ]
    write_json_lines(tmp_path / "x/metadata.jsonl", lines)
    rows = load(tmp_path / "x", languages=["en", "pt-BR"])
    assert rows["captions"][:] == [{"en": ["a dog"], "pt-BR": ["um cão", "cão"]}]
    assert "1  captions in languages not asked for: eng 1; eng is close to en" in reports(caplog)


@pytest.mark.parametrize("streaming", [False, True])
def test_spellings_of_a_tag_are_one_language(streaming, tmp_path, caplog):
    caplog.set_level("INFO")
    lines = [
        {"file_name": f"{name}.jpg", f"caption_{tag}": f"{tag}"} for name, tag in (("a", "zh_TW"), ("b", "zh-tw"))
    ]
    write_json_lines(tmp_path / "x/metadata.jsonl", lines)
    rows = load(tmp_path / "x", streaming=streaming)
    assert [row["captions"] for row in rows] == [{"zh_TW": ["zh_TW"]}, {"zh_TW": ["zh-tw"]}]
    assert "language 'zh-tw' is taken for 'zh_TW'" in caplog.text


def test_rows_without_a_language_that_is_asked_for_are_counted(tmp_path, caplog):
    lines = [{"file_name": "a.jpg", "en": "a dog"}, {"file_name": "b.jpg", "de": "eine Katze"}]
    write_json_lines(tmp_path / "x/metadata.jsonl", lines)
    assert len(load(tmp_path / "x", languages=["en"])) == 1
    assert "1  row without a caption in the languages asked for, first: " in reports(caplog)


def test_a_header_with_spaces(tmp_path):
    write_csv(
        tmp_path / "x/metadata.csv", ("file_name", "en", " de", "fr "), ("a.jpg", "a dog", "ein Hund", "un chien")
    )
    assert load(tmp_path / "x")["captions"][:] == [{"en": ["a dog"], "de": ["ein Hund"], "fr": ["un chien"]}]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *(("de", "de"), ("captions.de", "de"), ("captions_de", "de"), ("zh-TW", "zh-TW"), ("de.test", "de")),
        *(("train.sw", "sw"), ("deu", "deu"), ("test.captions.ja", "ja")),
        *((name, None) for name in ("my_photos", "ms_coco", "data_tr", "is.it.ok", "photos.de.v2", "captions")),
        *((name, None) for name in ("new", "cat", "may", "train", "all", "metadata", "x", "")),
    ],
)
def test_a_language_in_a_tables_name(name, expected):
    assert language_of_name(name) == expected


def test_it_is_said_and_never_guessed(tmp_path, caplog):
    caplog.set_level("INFO")
    write_csv(tmp_path / "x/captions.de.csv", ("path", "caption"), ("a.jpg", "ein Hund"))
    assert load(tmp_path / "x")["captions"][:] == [{"de": ["ein Hund"]}]
    assert "captions.de.csv: captions are in de, by its name" in caplog.text
    write_csv(tmp_path / "y/my_photos.csv", ("path", "caption"), ("a.jpg", "a dog"))
    with pytest.raises(ValueError, match=r"no column is called by a language.* --caption_columns en=caption"):
        load(tmp_path / "y")
