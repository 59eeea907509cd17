"""xFlickr&CO from a tiny IGLUE clone, and from a real one where there is one."""

import os
from pathlib import Path

import pytest
from builders import jpeg, reports, write, write_json_lines

import data_scripts
from ccrk.arguments import DataArguments
from ccrk.build import load_rows
from data_scripts.xflickrco import LANGUAGES

# An IGLUE clone and the folder of flickr30k-images and val2014, or one of the two.
IGLUE, PHOTOGRAPHS = os.environ.get("CCRK_IGLUE"), os.environ.get("CCRK_FLICKR30K")

FLICKR, COCO = "1007129816", "COCO_val2014_000000122239"


def entry(image: str, *sentences: str) -> dict:
    return {"sentences": list(sentences), "id": image, "img_path": f"{image}.jpg"}


@pytest.fixture
def iglue(tmp_path):
    root = tmp_path / "iglue/datasets"
    for language in LANGUAGES:
        folder = root / "xFlickrCO/annotations" / language
        write_json_lines(folder / "test.jsonl", [entry(FLICKR, f"{language} f"), entry(COCO, f"{language} c")])
        write_json_lines(folder / "train_1.jsonl", [entry(FLICKR, f"{language} shot")])
        write_json_lines(folder / "train_2x5.jsonl", [entry(i, *"12345") for i in (FLICKR, COCO)])
        if language != "en":
            translated = root / "xFlickrCO/annotations_machine-translate" / language / "test_gmt.jsonl"
            write_json_lines(translated, [entry(FLICKR, f"english of {language}")])
    for stem in ("train", "valid"):
        write_json_lines(
            root / f"flickr30k/annotations/{stem}_ann.jsonl", [entry(FLICKR, *(f"{stem} {n}" for n in "12345"))]
        )
    write(tmp_path / "images/flickr30k-images" / f"{FLICKR}.jpg", jpeg(1))
    write(tmp_path / "images/coco/val2014" / f"{COCO}.jpg", jpeg(2))
    return tmp_path


def load(iglue, split="test", **arguments):
    folders = {"data_dir": iglue / "iglue", "image_dir": iglue / "images", "cache_dir": iglue / "cache"}
    return data_scripts.load("xflickrco", split=split, **{**folders, **arguments})


def test_eight_languages_of_an_image_are_one_row(iglue, caplog):
    test = load(iglue)
    assert test["image_id"][:] == [f"flickr30k-images/{FLICKR}.jpg", f"coco/val2014/{COCO}.jpg"]
    assert test[0]["captions"] == {language: [f"{language} f"] for language in LANGUAGES}
    assert test[1]["captions"]["zh"] == ["zh c"]
    assert reports(caplog) == ""


@pytest.mark.parametrize("image_dir", ["images", "images/flickr30k-images", "flat"])
def test_one_photograph_however_each_language_writes_it(iglue, image_dir):
    write(iglue / "flat" / f"{FLICKR}.jpg", jpeg(1))
    spellings = {"en": "", "de": "./", "ja": "flickr30k-images/", "zh": ".\\flickr30k-images\\"}
    for language, beginning in spellings.items():
        path = iglue / "iglue/datasets/xFlickrCO/annotations" / language / "test.jsonl"
        write_json_lines(path, [entry(f"{beginning}{FLICKR}", f"{language} f")])
    (row,) = load(iglue, image_dir=iglue / image_dir, languages=list(spellings))
    assert row["image_id"] == f"flickr30k-images/{FLICKR}.jpg"
    assert row["captions"] == {language: [f"{language} f"] for language in spellings}


def test_machine_translated_test_is_without_english(iglue):
    (row,) = load(iglue, "test_gmt")
    assert row["captions"] == {lang: [f"english of {lang}"] for lang in LANGUAGES if lang != "en"}


def test_train_and_validation_are_flickr30k(iglue):
    for split, stem in (("train", "train"), ("validation", "valid")):
        (row,) = load(iglue, split)
        assert row["captions"] == {"en": [f"{stem} {n}" for n in "12345"]}


def test_few_shot(iglue):
    (row,) = load(iglue, "train", few_shot="de,1")
    assert row["captions"] == {"de": ["de shot"]}
    assert [len(row["captions"]["ja"]) for row in load(iglue, "train", few_shot="ja,2x5")] == [5, 5]
    arguments = {"dataset": "xflickrco", "data_dir": str(iglue / "iglue"), "image_dir": str(iglue / "images")}
    rows = load_rows(DataArguments(**arguments, few_shot="tr,1"), "train")
    assert rows[0]["captions"] == {"tr": ["tr shot"]}
    (row,) = load_rows(DataArguments(**arguments, few_shot="tr,1"), "validation")
    assert list(row["captions"]) == ["en"]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"few_shot": "de,3"},
            FileNotFoundError,
            r"there is no train_3\.jsonl in .*/annotations/de; data_dir should be",
        ),
        ({"few_shot": "de"}, ValueError, "few_shot is LANGUAGE,SHOTS such as de,100 .*, not 'de'"),
        ({"few_shot": "fr,1"}, ValueError, "with a language of de, en, .*, not 'fr,1'"),
        ({"few_shot": "../../x,1"}, ValueError, "few_shot is LANGUAGE,SHOTS"),
        (
            {"few_shot": "de,1", "split": "test"},
            ValueError,
            "few_shot is for train and validation; remove it to read test",
        ),
        ({"languages": ["de"]}, ValueError, "xflickrco has the languages en, not"),
        ({"split": "dev"}, ValueError, "no split 'dev'; choose one of train, validation, test, test_gmt"),
        ({"max_bad_fraction": 2}, ValueError, "max_bad_fraction is a share between 0 and 1, not 2"),
    ],
)
def test_wrong_arguments(iglue, arguments, error, message):
    with pytest.raises(error, match=message):
        load(iglue, **{"split": "train", **arguments})


@pytest.mark.parametrize(
    "data_dir", ["iglue", "iglue/datasets", "iglue/datasets/xFlickrCO", "iglue/datasets/xFlickrCO/annotations"]
)
def test_every_folder_of_a_clone_will_do(iglue, data_dir):
    assert len(load(iglue, data_dir=iglue / data_dir)) == 2


def test_photographs_in_one_folder_and_half_of_them_missing(iglue, caplog):
    (row,) = load(iglue, image_dir=iglue / "images/flickr30k-images")
    assert row["image_id"] == f"flickr30k-images/{FLICKR}.jpg", "wherever the photographs are"
    assert f"1  image file missing, first: coco/val2014/{COCO}.jpg in " in reports(caplog)


def test_bad_lines_are_counted(iglue, caplog):
    good = entry(FLICKR, "ein Mann")
    bad = ["{", '"text"', {**good, "sentences": "ein Mann"}, {**good, "img_path": 7}, {"id": "1"}, "[" * 2000]
    write_json_lines(iglue / "iglue/datasets/xFlickrCO/annotations/de/test.jsonl", [good, *bad, entry(COCO, "  ")])
    (row,) = load(iglue, languages=["de"], max_bad_fraction=1.0)
    assert row["image_id"] == f"flickr30k-images/{FLICKR}.jpg", "a row without any caption is left out"
    text = reports(caplog)
    assert "2  broken JSON line, first: " in text and "de/test.jsonl line 2" in text
    assert "1  line is text, not an object" in text and "1  sentences is text, not a list of texts" in text
    assert "1  img_path is a number, not text" in text and "1  img_path is missing" in text
    assert "1  empty caption in de, first: " in text and "de/test.jsonl line 8" in text
    with pytest.raises(ValueError, match="7 bad among 8 rows"):
        load(iglue, languages=["de"])


@pytest.mark.skipif(not IGLUE, reason="CCRK_IGLUE names no IGLUE clone")
def test_the_clone_has_what_its_names_say():
    from data_scripts.annotations import read_json_lines
    from data_scripts.problems import Problems

    annotations = Path(IGLUE, "datasets/xFlickrCO")
    sizes = {}
    for path in sorted(annotations.glob("annotations*/*/*.jsonl")):
        problems = Problems(str(path))
        sizes[path] = [len(row["sentences"]) for row, _ in read_json_lines(path, problems, "")]
        assert not problems.counts
    assert sizes
    for path, counts in sizes.items():
        name, _, shots = path.stem.partition("_")
        rows, _, captions = ("2000" if name == "test" else shots).partition("x")
        assert counts == [int(captions or 1)] * int(rows), path


@pytest.mark.skipif(not (IGLUE and PHOTOGRAPHS), reason="CCRK_IGLUE and CCRK_FLICKR30K name no real data")
def test_the_real_test_set(tmp_path, caplog):
    rows = data_scripts.load(
        "xflickrco", split="test", languages=["de", "en"], data_dir=IGLUE, image_dir=PHOTOGRAPHS, cache_dir=tmp_path
    )
    assert 0 < len(rows) <= 2000
    assert "1  empty caption in de, first: " in reports(caplog) and "de/test.jsonl line 1960" in reports(caplog)
