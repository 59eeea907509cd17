"""One path is one image, and one number one id, however tables write them."""

import csv

import pytest
from builders import jpeg, reports, write_json_lines

import data_scripts
from data_scripts.rows import id_text


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        *((value, "7") for value in (7, 7.0, "7", " 7 ", "7.0", "7.", "007", "7.000")),
        *((value, "-7") for value in (-7, "-7.0")),
        *((value, "0") for value in (0, "0", "000", "0.0")),
        *((value, value) for value in ("7.5", "a7", "7a", "1_000", "7 8", "1e3", "COCO_val2014_000000000042")),
        *((value, None) for value in (None, float("nan"), "nan", "NaN", "", "  ", "<NA>", "None")),
    ],
)
def test_ids_are_numbers_where_they_can_be(value, expected):
    assert id_text(value) == expected


def write(folder, name: str, rows: list[tuple]) -> None:
    folder.mkdir(exist_ok=True)
    with (folder / f"{name}.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image_id", "path", name), *rows])


def load(folder, **options):
    for number in range(1, 7):
        (folder / f"{number}.jpg").write_bytes(jpeg(30 * number))
    return data_scripts.load(str(folder), split="train", cache_dir=str(folder.parent / "cache"), **options)


def test_tables_of_languages_meet(tmp_path):
    """What pandas writes where one id is missing: 1.0."""
    write(tmp_path / "x", "en", [(i, f"{i}.jpg", f"dog {i}") for i in range(1, 7)])
    write(
        tmp_path / "x", "de", [(f"{i}.0", f"./{i}.jpg", f"Hund {i}") for i in range(1, 6)] + [("", "6.jpg", "Hund 6")]
    )
    rows = load(tmp_path / "x")
    assert rows["image_id"][:] == [str(i) for i in range(1, 7)]
    assert rows["captions"][:] == [{"de": [f"Hund {i}"], "en": [f"dog {i}"]} for i in range(1, 7)]


def test_one_path_under_several_ids_is_one_image(tmp_path, caplog):
    """Ids of captions, for instance."""
    write(tmp_path / "x", "en", [(10 * i + k, f"{i}.jpg", f"dog {k}") for i in (1, 2) for k in range(3)])
    rows = load(tmp_path / "x")
    assert rows["image_id"][:] == ["10", "20"] and rows["captions"][:] == [{"en": ["dog 0", "dog 1", "dog 2"]}] * 2
    assert "4  image under a further image_id; the first is kept, first: " in reports(caplog)
    assert "en.csv line 3: 11, in " in reports(caplog)


def test_one_id_of_several_paths_is_counted(tmp_path, caplog):
    write(tmp_path / "x", "en", [(1, "1.jpg", "a dog"), (1, "2.jpg", "a cat"), (2, "3.jpg", "a tree")])
    rows = load(tmp_path / "x", max_bad_fraction=1.0)
    assert rows["image_id"][:] == ["1", "2"] and rows["captions"][:] == [{"en": ["a dog"]}, {"en": ["a tree"]}]
    assert "1  image_id of another picture, first: " in reports(caplog)


def test_no_id_is_not_an_id(tmp_path):
    lines = [{"file_name": f"{i}.jpg", "image_id": i_d, "en": f"a {i}"} for i, i_d in enumerate([None, "nan", ""], 1)]
    (tmp_path / "x").mkdir()
    write_json_lines(tmp_path / "x/metadata.jsonl", lines)
    assert load(tmp_path / "x")["image_id"][:] == ["1.jpg", "2.jpg", "3.jpg"]
