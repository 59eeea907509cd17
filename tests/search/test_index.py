"""The index: it follows its source, tells what it cannot use, and survives whatever ends it."""

import contextlib
import io
import os
import shutil
import signal
from collections import Counter

import datasets
import pytest
from builders import full_disk, jpeg, write
from pictures import DAMAGED
from PIL import ExifTags, Image
from processes import exit_code_of
from search_builders import Colors, bring_up_to_date, contents, photographs, picture

import ccrk.search.pictures
import data_scripts
from ccrk.search import PictureIndex
from ccrk.search.store import Store

RED, BLUE = (255, 0, 0), (0, 0, 255)


@pytest.fixture
def folder(tmp_path):
    return photographs(tmp_path / "photos", 10)


@pytest.fixture
def index(tmp_path):
    return tmp_path / "index"


def test_index_follows_its_folder(folder, index):
    changes = bring_up_to_date(folder, index)
    assert (changes.new, changes.unchanged, changes.deleted) == (10, 0, 0)
    assert "a/0-001.png" in contents(index)

    changes = bring_up_to_date(folder, index, encoder := Colors())
    assert (changes.unchanged, encoder.encoded) == (10, 0)

    picture(folder / "a/0-001.png", RED)
    picture(folder / "new.png", BLUE)
    (folder / "a/0-003.png").unlink()
    changes = bring_up_to_date(folder, index, encoder := Colors())
    assert (changes.new, changes.changed, changes.deleted, changes.unchanged) == (1, 1, 1, 8)
    assert encoder.encoded == 2
    assert "a/0-003.png" not in contents(index)


def test_known_contents_are_not_encoded_again(folder, index):
    bring_up_to_date(folder, index)
    before = contents(index)
    (folder / "a").rename(folder / "renamed")
    os.utime(folder / "b/c/0-000.png")
    shutil.copy(folder / "b/c/0-002.png", folder / "copy.png")
    changes = bring_up_to_date(folder, index, encoder := Colors())
    assert (changes.copied, changes.deleted, encoder.encoded) == (7, 5, 0)
    after = contents(index)
    assert after["renamed/0-001.png"][3:] == before["a/0-001.png"][3:]
    assert after["copy.png"][3:] == before["b/c/0-002.png"][3:]


def test_contents_that_change_places_in_one_run(folder, index):
    """What was a.png is b.png now, and a.png, read before it, another picture: there is no row left to copy from."""
    picture(folder / "a.png", RED)
    bring_up_to_date(folder, index)
    (folder / "a.png").rename(folder / "b.png")
    picture(folder / "a.png", BLUE)
    bring_up_to_date(folder, index, batch_size=1)
    bring_up_to_date(folder, fresh := index.parent / "fresh")
    assert contents(index) == contents(fresh)


def test_damaged_pictures_are_kept_with_their_reason_until_they_change(folder, index, monkeypatch):
    write(folder / "empty.jpg", b"")
    write(folder / "text.jpg", "no picture")
    write(folder / "half.jpg", jpeg()[:200])
    write(folder / "tiny.png", picture(folder / "tiny.png", RED, size=(2, 2)).read_bytes())
    write(folder / "photo.heic", b"of a kind that is not read")
    changes = bring_up_to_date(folder, index)
    reasons = {"image of zero bytes", "not an image", "image truncated or damaged", "image smaller than 8 pixels"}
    assert changes.damaged == dict.fromkeys(reasons, 1)
    assert changes.others == {".heic": 1}
    assert "image of zero bytes, first: empty.jpg" in str(changes)

    read = []
    monkeypatch.setattr(ccrk.search.pictures, "read_image", lambda *a, **k: read.append(a))
    os.utime(folder / "half.jpg")  # touched, but the same
    assert bring_up_to_date(folder, index).damaged == changes.damaged
    assert not read
    monkeypatch.undo()

    write(folder / "half.jpg", jpeg())
    write(folder / "a/0-001.png", b"")
    changes = bring_up_to_date(folder, index)
    assert changes.new == 1
    assert changes.damaged["image of zero bytes"] == 2
    found = contents(index)
    assert {"half.jpg", "damaged a/0-001.png"} <= found.keys()
    assert not {"damaged half.jpg", "a/0-001.png"} & found.keys()


def test_every_kind_of_damage_is_told(folder, index):
    for number, (damage, _) in enumerate(DAMAGED.values()):
        write(folder / f"{number}.jpg", damage)
    reasons = Counter(reason for _, reason in DAMAGED.values())
    assert len(DAMAGED) > 20
    for _ in range(2):
        assert bring_up_to_date(folder, index).damaged == reasons
    assert len(contents(index)) == 10 + len(DAMAGED)


def test_the_stored_picture_is_small_and_holds_nothing_of_the_camera(folder, index):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    exif[ExifTags.Base.Make] = "SECRET camera"
    Image.new("RGB", (900, 600), RED).save(folder / "large.jpg", exif=exif, comment="SECRET place")
    assert b"SECRET" in (folder / "large.jpg").read_bytes()
    bring_up_to_date(folder, index)
    jpeg = contents(index)["large.jpg"][-1]
    assert b"SECRET" not in jpeg
    assert Image.open(io.BytesIO(jpeg)).size == (256, 384)  # upright


def test_a_picture_that_cannot_be_opened_now_is_tried_again(folder, index, monkeypatch):
    bring_up_to_date(folder, index)
    picture(gone := folder / "gone.png", RED)
    prepare = ccrk.search.machines.prepare

    def vanishing(item, *others):
        gone.unlink(missing_ok=True)
        return prepare(item, *others)

    monkeypatch.setattr(ccrk.search.machines, "prepare", vanishing)
    assert bring_up_to_date(folder, index).damaged == {"image file missing": 1}
    monkeypatch.undo()
    picture(gone, RED)
    assert bring_up_to_date(folder, index).new == 1


def test_a_picture_replaced_while_it_is_read_is_read_again(folder, index, monkeypatch):
    prepare = ccrk.search.machines.prepare

    def replacing(item, *others):
        prepared = prepare(item, *others)
        if item.path == "a/0-001.png":
            picture(folder / item.path, BLUE)
        return prepared

    monkeypatch.setattr(ccrk.search.machines, "prepare", replacing)
    bring_up_to_date(folder, index)
    monkeypatch.undo()
    assert bring_up_to_date(folder, index).changed == 1
    bring_up_to_date(folder, fresh := index.parent / "fresh")
    assert contents(index) == contents(fresh)


def test_a_folder_that_vanishes_takes_nothing_out(folder, index, tmp_path, monkeypatch):
    bring_up_to_date(folder, index)
    before = contents(index)
    prepare, moved = ccrk.search.machines.prepare, tmp_path / "moved"

    def vanishing(item, *others):
        with contextlib.suppress(FileNotFoundError):  # another thread was faster
            folder.rename(moved)
        return prepare(item, *others)

    (folder / "a/0-001.png").unlink()
    photographs(folder, 4, seed=1)
    monkeypatch.setattr(ccrk.search.machines, "prepare", vanishing)
    with pytest.raises(ValueError, match="is gone; is its disk mounted"):
        bring_up_to_date(folder, index)
    monkeypatch.undo()
    assert contents(index) == before
    moved.rename(folder)
    bring_up_to_date(folder, index)
    bring_up_to_date(folder, fresh := tmp_path / "fresh")
    assert contents(index) == contents(fresh)


def test_a_folder_that_cannot_be_listed_keeps_its_pictures(folder, index, monkeypatch):
    bring_up_to_date(folder, index)
    before = contents(index)
    (folder / "a/0-001.png").unlink()
    (folder / "b/c/0-000.png").unlink()
    scandir = os.scandir

    def failing(path):
        if os.fspath(path) == str(folder / "a"):
            raise OSError(5, "Input/output error", os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", failing)
    changes = bring_up_to_date(folder, index)
    assert (changes.deleted, changes.unchanged) == (1, 4)
    assert "folder cannot be listed; its pictures stay as they were, first: a/" in str(changes)
    assert contents(index) == {path: row for path, row in before.items() if path != "b/c/0-000.png"}
    monkeypatch.undo()
    assert bring_up_to_date(folder, index).deleted == 1


def interrupted(folder, index, commits: int, after: bool) -> None:
    """Indexes, and is killed before or after a commit."""
    write_rows, number = Store.write, 0

    def write_and_die(self, rows, damaged=False):
        nonlocal number
        number += bool(rows)
        if rows and number == commits and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        write_rows(self, rows, damaged)
        if rows and number == commits:
            os.kill(os.getpid(), signal.SIGKILL)

    Store.write = write_and_die
    ccrk.search.update.ROWS_PER_COMMIT = 4
    bring_up_to_date(folder, index, batch_size=2)


@pytest.mark.slow
@pytest.mark.parametrize("commits, after", [(2, False), (1, True)], ids=["before the second", "after the first"])
def test_killed_at_a_commit_it_goes_on(folder, index, commits, after):
    write(folder / "b.jpg", b"")
    bring_up_to_date(folder, index)
    (folder / "a").rename(folder / "renamed")
    write(folder / "b.jpg", jpeg())  # once damaged, mended now
    write(folder / "b/c/0-000.png", b"")  # and the other way round
    photographs(folder, 6, seed=1)
    assert exit_code_of(interrupted, folder, index, commits, after) == -signal.SIGKILL
    changes = bring_up_to_date(folder, index)
    bring_up_to_date(folder, fresh := index.parent / "fresh")
    assert contents(index) == contents(fresh)
    assert changes.new + changes.copied < 12  # what was written is kept


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on(tmp_path, index):
    folder = photographs(tmp_path / "photos", 40)
    ends = [exit_code_of(killed_after, folder, index, milliseconds) for milliseconds in (15, 50, 100)]
    assert set(ends) <= {-signal.SIGKILL, 0}
    assert ends.count(-signal.SIGKILL) >= 2
    bring_up_to_date(folder, index)
    bring_up_to_date(folder, fresh := tmp_path / "fresh")
    assert contents(index) == contents(fresh)


def test_killed_while_its_table_is_made_it_begins_again(folder, index):
    (index / "pictures.lance").mkdir(parents=True)
    assert bring_up_to_date(folder, index).new == 10


def killed_after(folder, index, milliseconds: int) -> None:
    ccrk.search.update.ROWS_PER_COMMIT = 4
    signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    signal.setitimer(signal.ITIMER_REAL, milliseconds / 1000)
    bring_up_to_date(folder, index, batch_size=2)


def test_on_a_full_disk_the_index_stays_as_it_was(folder, index):
    bring_up_to_date(folder, index)
    before = contents(index)
    photographs(folder, 4, seed=1)
    with full_disk(), pytest.raises((OSError, RuntimeError)):
        bring_up_to_date(folder, index)
    assert contents(index) == before
    assert bring_up_to_date(folder, index).new == 4


def test_two_runs_at_once_are_refused(folder, index):
    with Store.locked(str(index)), pytest.raises(ValueError, match="another process is writing"):
        bring_up_to_date(folder, index)
    assert bring_up_to_date(folder, index).new == 10


def test_another_source_or_an_unmounted_one_changes_nothing(folder, index, tmp_path):
    bring_up_to_date(folder, index)
    before = contents(index)
    with pytest.raises(ValueError, match="has none of its images; use another index"):
        bring_up_to_date(photographs(tmp_path / "others", 4, seed=7), index)
    shutil.move(folder, moved := tmp_path / "moved")
    folder.mkdir()
    with pytest.raises((ValueError, FileNotFoundError)):
        bring_up_to_date(folder, index)
    assert contents(index) == before
    assert bring_up_to_date(moved, index).unchanged == 10
    assert bring_up_to_date(photographs(moved, 2, seed=3), index).new == 2  # of the place it is at now


def test_names_of_all_kinds(folder, index):
    for name in ("it's.png", "صورة.png", "a b\n.png", "e\u0301.png", "' OR 1=1 --.png"):
        picture(folder / name, RED, size=(40, 40 + len(name)))
    with open(os.fsencode(folder) + b"/\xff.png", "wb") as file:
        file.write(jpeg())
    changes = bring_up_to_date(folder, index)
    assert (changes.new, changes.damaged) == (15, {"file name is no Unicode": 1})
    assert "é.png" in contents(index)
    assert bring_up_to_date(folder, index).unchanged == 15
    (folder / "' OR 1=1 --.png").unlink()
    assert bring_up_to_date(folder, index).deleted == 1


def test_links_are_followed_and_circles_end(folder, index, tmp_path):
    photographs(tmp_path / "elsewhere", 3, seed=5)
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    (folder / "circle").symlink_to(folder)
    assert bring_up_to_date(folder, index).new == 13


def test_rows_of_a_data_set(index, tmp_path):
    def load():
        options = {"num_train": 4, "num_validation": 4, "num_test": 6, "languages": ["en"]}
        return data_scripts.load("shapes", split="test", cache_dir=str(tmp_path / "cache"), **options)

    assert bring_up_to_date("shapes", index, load=load).new == 6
    changes = bring_up_to_date("shapes", index, encoder := Colors(), load=load)
    assert (changes.unchanged, encoder.encoded) == (6, 0)
    assert contents(index).keys() == set(load()["image_id"])


def test_what_is_no_index_is_refused(folder, index, tmp_path):
    with pytest.raises(ValueError, match="there is no index"):
        PictureIndex(tmp_path / "nothing")
    with pytest.raises(ValueError, match="is not an index of images"):
        PictureIndex(folder)
    bring_up_to_date(folder, index)
    store = Store(str(index))
    foreign = store.pictures.to_arrow().replace_schema_metadata({"format": "99"})
    store.database.create_table("pictures", foreign, mode="overwrite")
    with pytest.raises(ValueError, match=r"format 99, not 1\); make another"):
        PictureIndex(index)


def another_card(folder, seed: int = 9, common: int = 1):
    """Sixty pictures as cameras name them, `common` of whose names another such card has as well."""
    for number in range(60):
        name = f"DCIM/100CANON/IMG_{number + (0 if seed == 9 else 60 - common):04}.png"
        picture(folder / name, (seed, 4 * number, 255 - 4 * number), size=(40 + number % 7, 40 + seed))
    return folder


def empty_sub_folder(folder, _):
    shutil.rmtree(folder / "b/c")
    (folder / "b/c").mkdir()


def missing_sub_folder(folder, _):
    shutil.rmtree(folder / "b")


def more_than_a_tenth(folder, _):
    for file in sorted(folder.rglob("*.png"))[::9]:
        file.unlink()


def another_card_in_its_place(folder, _):
    shutil.rmtree(folder)
    another_card(folder)


def all_files_replaced(folder, _):
    for file in folder.rglob("*.png"):
        picture(file, (1, 2, 3), size=(50, 50))


def files_of_a_folder_emptied(folder, _):
    for file in (folder / "a").rglob("*.png"):
        file.write_bytes(b"")


LOSSES = [empty_sub_folder, missing_sub_folder, more_than_a_tenth, another_card_in_its_place, all_files_replaced]


@pytest.mark.parametrize("lose", [*LOSSES, files_of_a_folder_emptied])
def test_what_would_lose_much_is_refused(index, tmp_path, lose):
    folder = photographs(tmp_path / "photos", 60)
    bring_up_to_date(folder, index)
    before = contents(index)
    lose(folder, tmp_path)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"Nothing was changed.*add --allow_deletions") as error:
            bring_up_to_date(folder, index, encoder := Colors())
        assert (contents(index), encoder.encoded) == (before, 0) and "\n" not in str(error.value)
    bring_up_to_date(folder, index, allow_deletions=True)
    bring_up_to_date(folder, fresh := tmp_path / "fresh")
    assert contents(index) == contents(fresh)


def test_a_folder_that_is_a_small_part_is_named(index, tmp_path):
    folder = photographs(tmp_path / "photos", 60)
    photographs(folder / "2024/disk", 5, seed=2)
    bring_up_to_date(folder, index)
    shutil.rmtree(folder / "2024/disk")
    (folder / "2024/disk").mkdir()
    with pytest.raises(ValueError, match=r"lacks 5 of the 65 images of the index \(all 5 of its folder 2024\)"):
        bring_up_to_date(folder, index)
    photographs(folder / "2024/disk", 1, seed=2)  # four of five
    assert bring_up_to_date(folder, index).deleted == 4


@pytest.mark.parametrize("common", [1, 40, 60])
def test_another_card_with_common_names_is_refused(index, tmp_path, common):
    bring_up_to_date(another_card(tmp_path / "one"), index)
    before = contents(index)
    with pytest.raises(ValueError, match=r"is an index of .*one, and .*two lacks 60 of the 60 images of the index"):
        bring_up_to_date(another_card(tmp_path / "two", seed=8, common=common), index)
    assert contents(index) == before


def test_of_another_source_few_pictures_are_many(index, tmp_path):
    bring_up_to_date(photographs(tmp_path / "one", 4), index)
    others = photographs(tmp_path / "two", 4, seed=1)
    shutil.copy(tmp_path / "one/a/0-001.png", others / "a")
    with pytest.raises(ValueError, match="lacks 3 of the 4 images of the index"):
        bring_up_to_date(others, index)
    assert bring_up_to_date(others, index, allow_deletions=True).deleted == 3


def test_a_data_set_of_the_same_names_is_refused(index, tmp_path):
    def rows(color: int, names=range(12)) -> datasets.Dataset:
        images = [Image.new("RGB", (32, 32), (color, 20 * name, 99)) for name in names]
        table = {"image": images, "image_id": [str(place) for place in range(len(images))]}
        return datasets.Dataset.from_dict(table).cast_column("image", datasets.Image())

    bring_up_to_date("set", index, load=lambda: rows(0))
    before = contents(index)
    with pytest.raises(ValueError, match="lacks 12 of the 12 images of the index"):
        bring_up_to_date("set", index, load=lambda: rows(200))
    assert contents(index) == before
    # One row fewer at the beginning: all names are of other pictures, which the index has.
    changes = bring_up_to_date("set", index, load=lambda: rows(0, range(1, 12)))
    assert (changes.new, changes.changed, changes.deleted) == (0, 0, 1)


def test_ordinary_changes_are_not_refused(tmp_path, index):
    folder = photographs(tmp_path / "photos", 60)
    bring_up_to_date(folder, index)
    shutil.move(folder / "b/c", folder / "renamed")  # a folder, within its source
    (folder / "a/0-001.png").rename(folder / "renamed/0-000.png")  # over another
    assert bring_up_to_date(folder, index).deleted == 31
    for file in folder.rglob("*.png"):
        os.utime(file, (0, 0))
    for file in sorted(folder.rglob("*.png"))[:5]:
        file.unlink()
    assert bring_up_to_date(folder, index).deleted == 5
    shutil.move(folder, moved := tmp_path / "moved")  # and all of it
    for file in sorted(moved.rglob("*.png"))[:25]:
        picture(file, BLUE, size=(50, 50 + len(file.name)))
    assert bring_up_to_date(moved, index).deleted == 0


def test_few_pictures_may_go(tmp_path, index):
    folder = photographs(tmp_path / "photos", 5)
    picture(folder / "alone/one.png", RED)
    bring_up_to_date(folder, index)
    shutil.rmtree(folder / "alone")
    (folder / "a/0-001.png").unlink()
    assert bring_up_to_date(folder, index).deleted == 2


def test_a_run_that_was_killed_after_a_move_is_not_refused(tmp_path, index, monkeypatch):
    folder = photographs(tmp_path / "photos", 20)
    bring_up_to_date(folder, index)
    shutil.move(folder / "a", folder / "renamed")
    with monkeypatch.context() as patch:
        patch.setattr(Store, "delete", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            bring_up_to_date(folder, index)
    assert bring_up_to_date(folder, index).deleted == 10


@pytest.mark.parametrize(
    "files, message",
    [
        ([], r"photos holds no images that can be indexed$"),
        (["a.heic", "b/c.heic", "notes"], r"\(files of other kinds: .heic 2, no ending 1\)$"),
    ],
)
def test_a_folder_without_pictures_is_told(index, tmp_path, files, message):
    (tmp_path / "photos").mkdir()
    for name in files:
        write(tmp_path / "photos" / name, b"1")
    with pytest.raises(ValueError, match=message):
        bring_up_to_date(tmp_path / "photos", index)
