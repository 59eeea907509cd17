"""Names of pictures in folders, and problems that are counted."""

import os
import pickle
import time
import unicodedata
from pathlib import Path

import pytest
from pictures import JPEG

from data_scripts import images
from data_scripts.images import BadImage, ImageFolder, find_file, picture_name, read_image, with_folder
from data_scripts.problems import Problems


@pytest.mark.parametrize(
    "name",
    [
        "../a.jpg",
        "x/../../a.jpg",
        "/etc/passwd",
        r"..\a.jpg",
        r"C:\a.jpg",
        "C:a.jpg",
        r"\\server\a.jpg",
        "",
        ".",
        "a\0.jpg",
    ],
)
def test_names_that_leave_the_folder(tmp_path, name):
    for find in (picture_name, ImageFolder(tmp_path).find):
        with pytest.raises(BadImage) as caught:
            find(name)
        assert caught.value.reason == images.OUTSIDE


@pytest.mark.parametrize("name", ["a/b.jpg", "./a/b.jpg", "a//b.jpg", "a/./b.jpg", r"a\b.jpg", r".\a\b.jpg"])
def test_one_name_for_each_way_to_write_it(tmp_path, name):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.jpg").write_bytes(JPEG)
    assert picture_name(name) == "a/b.jpg"
    assert ImageFolder(tmp_path).find(name) == (str(tmp_path / "a" / "b.jpg"), "a/b.jpg", "")


def test_what_distinguishes_names():
    names = ["1.jpg", "1.png", "1.JPG", "VG_100K/1.jpg", "VG_100K_2/1.jpg", "1.jpg "]
    assert len({picture_name(name) for name in names}) == len(names)


@pytest.mark.parametrize("on_disk", ["NFC", "NFD"])
@pytest.mark.parametrize("written", ["NFC", "NFD"])
def test_accents_apart_from_their_letters(tmp_path, on_disk, written):
    path = tmp_path / unicodedata.normalize(on_disk, "été.jpg")
    path.write_bytes(JPEG)
    found = ImageFolder(tmp_path).find(unicodedata.normalize(written, "été.jpg"))
    assert Path(found.path).samefile(path) and found.name == unicodedata.normalize("NFC", "été.jpg")


def test_accents_in_both_ways(tmp_path):
    """A folder from one system in a file tree of another; and letters that NFC makes others of."""
    for name in (f"{unicodedata.normalize('NFC', 'é')}/{unicodedata.normalize('NFD', 'é')}.jpg", "\uf900.jpg"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(JPEG)
        assert ImageFolder(tmp_path).find(name).path == str(path)


def test_links_are_the_owners_choice(tmp_path):
    folder, elsewhere = tmp_path / "folder", tmp_path / "elsewhere"
    for path in (folder, elsewhere):
        path.mkdir()
    (elsewhere / "a.jpg").write_bytes(JPEG)
    (folder / "farm.jpg").symlink_to(elsewhere / "a.jpg")
    (folder / "val2014").symlink_to(elsewhere)
    (tmp_path / "alias").symlink_to(folder)
    (folder / "gone.jpg").symlink_to(tmp_path / "unplugged" / "a.jpg")
    (folder / "loop.jpg").symlink_to(folder / "loop.jpg")
    for name in ("farm.jpg", "val2014/a.jpg"):
        assert ImageFolder(tmp_path / "alias").find(name) == (str(tmp_path / "alias" / name), name, "")
    for name, reason in (("gone.jpg", images.MISSING), ("loop.jpg", images.UNREADABLE)):
        with pytest.raises(BadImage) as caught:
            ImageFolder(folder).find(name)
        assert caught.value.reason == reason


def test_what_is_no_file_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "device.jpg").symlink_to("/dev/zero")
    for name in ("pipe.jpg", "folder.jpg", "device.jpg"):
        with pytest.raises(BadImage) as caught:
            find_file(tmp_path, name)
        assert caught.value.reason == images.NOT_A_FILE
        with pytest.raises(BadImage, match="cannot be opened"):
            read_image(tmp_path / name)


@pytest.mark.parametrize("name", ["a/" * 200_000 + "b.jpg", "a/" * 65 + "b.jpg", "a" * 300 + ".jpg", "a" * 5_000])
def test_names_too_long_for_a_file(tmp_path, name):
    started = time.perf_counter()
    with pytest.raises(BadImage) as caught:
        ImageFolder(tmp_path).find(name)
    assert caught.value.reason in (images.TOO_LONG, images.UNREADABLE)
    assert time.perf_counter() - started < 1


def test_locate_drops_the_folders_that_it_is_in(tmp_path):
    path = tmp_path / "coco" / "val2014" / "a.jpg"
    path.parent.mkdir(parents=True)
    path.write_bytes(JPEG)
    for folder, name in ((".", "coco/val2014/a.jpg"), ("coco", "val2014/a.jpg"), ("coco/val2014", "a.jpg")):
        assert ImageFolder(tmp_path / folder).find("coco/val2014/a.jpg") == (str(path), name, "")
    with pytest.raises(BadImage) as caught:
        ImageFolder(tmp_path).find("coco/val2014/b.jpg")
    assert caught.value.reason == images.MISSING


def test_what_is_left_out_at_a_guess(tmp_path):
    (tmp_path / "a.jpg").write_bytes(JPEG)
    folder = ImageFolder(tmp_path, ["coco/val2014"])
    guesses = {
        name: folder.find(name).guess for name in ("coco/val2014/a.jpg", "val2014/a.jpg", "x/a.jpg", "x/y/a.jpg")
    }
    assert list(guesses.values()) == ["", "", "x", "x/y"]


def test_the_folder_of_a_name():
    names = ["a.jpg", "./a.jpg", "val2014/a.jpg", "coco//val2014/a.jpg", r"val2014\a.jpg"]
    assert {with_folder("coco/val2014", name) for name in names} == {"coco/val2014/a.jpg"}
    assert with_folder("coco/val2014", "b/a.jpg") == "coco/val2014/b/a.jpg"
    assert with_folder("coco/val2014", "../a.jpg") == "../a.jpg", "and is refused where it is looked for"


def test_errors_cross_processes():
    error = pickle.loads(pickle.dumps(BadImage(images.DAMAGED, "a.jpg")))
    assert (error.reason, error.where, str(error)) == (images.DAMAGED, "a.jpg", f"{images.DAMAGED}: a.jpg")


def test_problems_stop_only_after_enough_rows(caplog):
    problems = Problems("stream")
    for row in range(50):
        problems.rows += 1
        problems.bad("broken", f"a.data line {row + 1}")  # all of them so far, and still too early to say
    with pytest.raises(ValueError, match=r"51 bad among 51 rows, more than max_bad_fraction 0\.05; (?s:.*)51  broken"):
        problems.rows += 1
        problems.bad("broken", "a.data line 51")
    assert [record.getMessage().split(" (")[0] for record in caplog.records] == ["stream: broken: a.data line 1"]


def test_problems_of_a_pass_and_absent_ones():
    problems = Problems("pass", max_bad_fraction=0.1, rows=10)
    for _ in range(9):
        problems.absent("missing", "a")
    problems.bad("broken", "b")
    problems.check()  # one in ten, and what is absent does not count
    problems.bad("broken", "c")
    with pytest.raises(ValueError, match="2 bad among 10 rows"):
        problems.check()


def test_problems_of_workers_add_up():
    parts = [Problems("part", quiet=True, rows=500) for _ in range(2)]
    parts[0].bad("broken", "a line 1")
    parts[1].bad("broken", "b line 7")
    parts[1].absent("missing", "c")
    total = Problems("all")
    for part in parts:
        total.update(pickle.loads(pickle.dumps(part)))
    assert total.table() == (
        "all: 1,000 rows, of which\n          2  broken, first: a line 1\n          1  missing, first: c"
    )
    many = Problems("many", max_bad_fraction=1.0, rows=100)
    many.counts["broken"] = 100
    many.first["broken"] = "d"
    with pytest.raises(ValueError, match="102 bad among 1,100 rows"):
        total.update(many)
