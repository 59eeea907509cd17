"""COCO from tiny files of its publishers: splits, languages, folds, and what is wrong in the files."""

import re

import pytest
from builders import jpeg, reports, write, write_json

import data_scripts


def image_name(number: int, folder: str) -> str:
    return f"COCO_{folder}_{number:012d}"


def image_path(number):
    folder = "train2014" if number > 12 else "val2014"
    return f"coco/{folder}/{image_name(number, folder)}.jpg"


@pytest.fixture
def coco(tmp_path):
    """Images 1 to 10 test, 11 validation, 12 restval (all val2014), 13 to 15 train (train2014)."""
    entries = []
    for number in range(1, 16):
        folder = "train2014" if number > 12 else "val2014"
        split = "test" if number < 11 else {11: "val", 12: "restval"}.get(number, "train")
        entries.append(
            {
                "filepath": folder,
                "filename": f"{image_name(number, folder)}.jpg",
                "cocoid": number,
                "split": split,
                "sentences": [
                    {"raw": f"en {number}.{n}", "tokens": ["en"], "imgid": 0, "sentid": n} for n in range(5)
                ],
            }
        )
        write(tmp_path / "images" / "coco" / folder / f"{image_name(number, folder)}.jpg", jpeg(number))
    annotations = tmp_path / "annotations"
    write_json(annotations / "karpathy/dataset_coco.json", {"images": entries, "dataset": "coco"})
    write_json(
        annotations / "yj/yjcaptions26k_clean.json",
        {
            "images": [{"id": 13}],
            "annotations": [
                {"image_id": 14, "id": 1, "caption": "十四の一"},
                {"image_id": 13, "id": 2, "caption": "十三"},
                {"image_id": 14, "id": 3, "caption": "十四の二"},
            ],
        },
    )
    root = annotations / "coco-cn-version1805v1.1"
    names = {13: "train", 14: "val", 2: "test"}
    for number, split in names.items():
        folder = "train2014" if number > 12 else "val2014"
        write(root / f"coco-cn_{split}.txt", f"{image_name(number, folder)}\n")
    write(
        root / "imageid.human-written-caption.txt",
        f"{image_name(13, 'train2014')}#0\t一\n{image_name(2, 'val2014')}#0\t二\n{image_name(2, 'val2014')}#1\t二二\n"
        f"{image_name(14, 'train2014')}#0\t三\n",
    )
    return tmp_path


def load(coco, split, **arguments):
    folders = {"data_dir": coco / "annotations", "image_dir": coco / "images", "cache_dir": coco / "cache"}
    return data_scripts.load("coco", split=split, **{**folders, **arguments})


def test_english_follows_karpathy(coco):
    test = load(coco, "test")
    assert test["image_id"][:] == [image_path(number) for number in range(1, 11)]
    assert test[2]["captions"] == {"en": [f"en 3.{n}" for n in range(5)]}
    assert load(coco, "validation")["image_id"][:] == [image_path(11)]
    assert [name[-6:-4] for name in load(coco, "train")["image_id"]] == ["12", "13", "14", "15"], "restval is train"


def test_japanese_joins_karpathy_by_number(coco):
    train = load(coco, "train", languages=["ja"])
    assert {row["image_id"][-6:-4]: row["captions"]["ja"] for row in train} == {
        "14": ["十四の一", "十四の二"],
        "13": ["十三"],
    }
    with pytest.raises(ValueError, match="coco test: there are no captions in ja in this split; choose another split"):
        load(coco, "test", languages=["ja"])


def test_chinese_has_a_split_of_its_own(coco):
    (row,) = load(coco, "test", languages=["zh"])
    assert row["image_id"] == image_path(2) and row["captions"] == {"zh": ["二", "二二"]}
    (row,) = load(coco, "validation", languages=["zh"])
    assert row["image_id"] == image_path(14)


def test_languages_of_an_image_are_one_row(coco):
    rows = {row["image_id"][-6:-4]: row["captions"] for row in load(coco, "train", languages=["en", "ja", "zh"])}
    assert list(rows) == ["12", "13", "14", "15"]
    assert rows["12"]["ja"] == rows["12"]["zh"] == []
    assert rows["13"] == {"en": [f"en 13.{n}" for n in range(5)], "ja": ["十三"], "zh": ["一"]}


def test_five_folds_make_the_test_split(coco):
    folds = [load(coco, "test", fold=fold)["image_id"][:] for fold in range(5)]
    assert [len(fold) for fold in folds] == [2] * 5
    assert [image_id for fold in folds for image_id in fold] == load(coco, "test")["image_id"][:]
    (coco / "images/coco/val2014" / f"{image_name(1, 'val2014')}.jpg").unlink()
    folds = [load(coco, "test", fold=fold)["image_id"][:] for fold in range(5)]
    assert [len(fold) for fold in folds] == [1, 2, 2, 2, 2], "a missing photograph moves no other to another fold"
    with pytest.raises(ValueError, match="coco has the folds 0 to 4, not 5"):
        load(coco, "test", fold=5)


@pytest.mark.parametrize("image_dir", ["images", "images/coco", "images/coco/val2014"])
def test_layout_of_the_research_code(coco, image_dir):
    folder = coco / "json"
    for language, beginning in (("en", "coco/val2014"), ("ja", "./val2014")):
        image = f"{beginning}/{image_name(3, 'val2014')}.jpg"
        write_json(folder / f"{language}.test.json", [{"image": image, "caption": ["a", "b"], "image_id": 3}])
    (row,) = load(coco, "test", data_dir=folder, image_dir=coco / image_dir, languages=["en", "ja"])
    assert row["captions"] == {"en": ["a", "b"], "ja": ["a", "b"]} and row["image_id"] == image_path(3)


def test_damaged_entries_are_counted(coco, caplog):
    good = {"filepath": "val2014", "filename": f"{image_name(1, 'val2014')}.jpg", "cocoid": 1, "split": "test"}
    good["sentences"] = [{"raw": "one"}, {"raw": " "}]
    bad = [
        7,
        {},
        {**good, "split": "nonsense"},
        {**good, "filename": None},
        {**good, "sentences": "one"},
        {**good, "sentences": [{"raw": 1}]},
        {**good, "sentences": [None]},
        {**good, "cocoid": "1"},
    ]
    write_json(coco / "annotations/karpathy/dataset_coco.json", {"images": [good, *bad]})
    (row,) = load(coco, "test", max_bad_fraction=1.0)
    assert row["captions"]["en"] == ["one"]
    for reason, number in {
        "entry is a number, not an object": 2,
        "split is missing": 3,
        "split is none of train, restval, val and test": 4,
        "filename is null, not text": 5,
        "sentences is text, not a list of objects": 6,
        "raw is a number, not text": 7,
        "sentences holds null, not objects alone": 8,
        "cocoid is text, not a whole number": 9,
    }.items():
        assert re.search(rf"1  {reason}, first: .*dataset_coco.json image {number}\b", reports(caplog))
    assert "1  empty caption in en, first: " in reports(caplog)
    with pytest.raises(ValueError, match=r"9 bad among 9 rows(?s:.*)split is missing"):
        load(coco, "test")


@pytest.mark.parametrize("contents", ["[1]", "{", '{"images": 3}', "\xff"])
def test_a_file_that_is_something_else(coco, contents):
    (coco / "annotations/karpathy/dataset_coco.json").write_bytes(contents.encode("latin-1"))
    with pytest.raises(ValueError, match=r"dataset_coco\.json (is|has) .*download it again"):
        load(coco, "test")


def test_a_damaged_file_of_coco_cn_names_its_publisher(coco):
    (coco / "annotations/coco-cn-version1805v1.1/coco-cn_test.txt").write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"coco-cn_test\.txt is damaged .*again from https://github.com/li-xirong"):
        load(coco, "test", languages=["zh"])


def test_a_path_out_of_the_folder_is_refused(coco, caplog):
    entry = {"image": "../../secret.jpg", "caption": ["a"], "image_id": 1}
    write(coco / "secret.jpg", jpeg())
    write_json(coco / "json/en.test.json", [entry, {**entry, "image": "val2014/" + image_name(1, "val2014") + ".jpg"}])
    arguments = {"data_dir": coco / "json", "image_dir": coco / "images/coco"}
    assert len(load(coco, "test", **arguments, max_bad_fraction=0.5)) == 1
    assert "1  image path leaves its folder, first: '../../secret.jpg'" in reports(caplog)


def test_a_missing_file_is_named(coco):
    (coco / "annotations/yj/yjcaptions26k_clean.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"there is no yjcaptions26k_clean\.json in .*data_dir should be"):
        load(coco, "train", languages=["ja"])
    assert len(load(coco, "train")) == 4
