"""Pictures on an object store, by fsspec's store in memory."""

import datetime

import datasets
import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem
from search_builders import Colors, bring_up_to_date, contents, photographs, picture

from ccrk.search.pictures import UNREADABLE, _modified, open_source

URL = "memory://bucket/photos"


@pytest.fixture
def store(tmp_path):
    filesystem = fsspec.filesystem("memory")
    filesystem.put(str(photographs(tmp_path / "photos", 10)) + "/", "/bucket/photos/", recursive=True)
    yield filesystem
    filesystem.rm("/bucket", recursive=True)


def test_index_of_an_object_store_is_that_of_the_folder(store, tmp_path):
    for source, index in ((URL, "store"), (tmp_path / "photos", "folder")):
        bring_up_to_date(source, tmp_path / index)
    found, expected = contents(tmp_path / "store"), contents(tmp_path / "folder")
    assert {path: row[3:] for path, row in found.items()} == {path: row[3:] for path, row in expected.items()}


def test_index_follows_an_object_store(store, tmp_path):
    bring_up_to_date(URL, index := tmp_path / "index")
    changes = bring_up_to_date(URL, index, encoder := Colors())
    assert (changes.unchanged, encoder.encoded) == (10, 0)

    store.put(str(picture(tmp_path / "new.png", (255, 0, 0))), "/bucket/photos/a/new.png")
    store.rm("/bucket/photos/a/0-003.png")
    store.mv("/bucket/photos/a/0-001.png", "/bucket/photos/moved.png")
    store.pipe("/bucket/photos/notes.txt", b"no picture")
    store.pipe("/bucket/photos/empty.png", b"")
    changes = bring_up_to_date(URL + "/", index, encoder := Colors())
    assert (changes.new, changes.copied, changes.deleted, encoder.encoded) == (1, 1, 2, 1)
    assert (changes.others[".txt"], changes.damaged.total()) == (1, 1)
    assert {"a/new.png", "moved.png"} <= contents(index).keys()


def test_what_a_store_does_not_give_is_tried_again(store, tmp_path, monkeypatch):
    def cat_file(self, path, **_):
        raise ConnectionError("reset by peer")

    with monkeypatch.context() as patch:
        patch.setattr(type(store), "cat_file", cat_file)
        changes = bring_up_to_date(URL, index := tmp_path / "index")
    assert changes.damaged == {UNREADABLE: 10}
    assert bring_up_to_date(URL, index).new == 10


def test_a_folder_that_cannot_be_listed_deletes_nothing(tmp_path, monkeypatch):
    """fsspec's way through folders, which most stores have, leaves it out by itself."""
    url, ls = f"file://{photographs(tmp_path / 'photos', 10)}", LocalFileSystem.ls
    bring_up_to_date(url, index := tmp_path / "index")
    before = contents(index)

    def refused(self, path, *others, **options):
        if path.rstrip("/").endswith("/a"):
            raise PermissionError(path)
        return ls(self, path, *others, **options)

    with monkeypatch.context() as patch:
        patch.setattr(LocalFileSystem, "ls", refused)
        with pytest.raises(ValueError, match=r"photos cannot be listed: .*/a"):
            bring_up_to_date(url, index)
    assert contents(index) == before and len(before) == 10


def test_a_table_at_a_url_is_opened_without_a_list(monkeypatch):
    monkeypatch.setattr("ccrk.search.pictures.pictures_at", lambda url: pytest.fail(f"{url} was listed"))
    table = datasets.Dataset.from_list([{"image": {"bytes": b"1", "path": None}, "image_id": "one"}])
    assert [item.path for item in open_source("memory://bucket/rows.parquet", lambda: table).items] == ["one"]


@pytest.mark.parametrize("name", ["rows.parquet", "rows.jsonl.gz", "rows.TGZ", "rows.csv.zst"])
def test_a_folder_of_tables_is_opened_as_a_data_set(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    table = datasets.Dataset.from_list([{"image": {"bytes": b"1", "path": None}, "image_id": "one"}])
    assert [item.path for item in open_source(str(tmp_path), lambda: table).items] == ["one"]


@pytest.mark.parametrize("url, reason", [("nowhere://bucket", "nowhere"), ("memory://bucket/none", "none")])
def test_a_store_that_is_not_there(store, url, reason):
    def load():
        raise ValueError(f"{url} is no data set")

    with pytest.raises(ValueError, match=reason):
        open_source(url, load)


NOON = datetime.datetime(2024, 5, 31, 12, tzinfo=datetime.UTC)


@pytest.mark.parametrize(
    "about",
    [
        {"LastModified": NOON},
        {"last_modified": NOON},
        {"updated": "2024-05-31T12:00:00Z"},
        {"mtime": NOON.timestamp(), "created": NOON.timestamp() - 1},
        {"LastModified": None, "created": NOON},
    ],
)
def test_when_an_object_was_written(about):
    assert _modified(about) == 1717156800 * 10**9


@pytest.mark.parametrize("about", [{}, {"mtime": None}, {"updated": "yesterday"}])
def test_an_object_without_a_date_is_known_by_its_contents(about):
    assert _modified(about) is None
