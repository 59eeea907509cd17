"""An index that somebody else has made, or that is damaged: refused in one line, and nothing of it runs in a page."""

import json
import os
import shutil

import lancedb
import numpy as np
import pyarrow as pa
import pytest
import torch
from fastapi.testclient import TestClient
from search_builders import Colors, bring_up_to_date, photographs

from ccrk.search import PictureIndex
from ccrk.search.__main__ import main
from ccrk.search.page import one_column
from ccrk.search.query import Found
from ccrk.search.serve import make_app
from ccrk.search.store import STATES, Store, picture_id

SCRIPT = '"><script>alert(1)</script>'


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """An index of six pictures."""
    folder = tmp_path_factory.mktemp("sound")
    bring_up_to_date(photographs(folder / "photos", 6), folder / "index")
    return folder / "index"


@pytest.fixture
def index(sound, tmp_path):
    return shutil.copytree(sound, tmp_path / "index")


def change(index, column: str, values: pa.Array | list, table: str = "pictures", **settings: str) -> None:
    """Gives a column other values, as whoever makes a hostile index does."""
    database = lancedb.connect(index)
    rows = database.open_table(table).to_arrow()
    if values:
        values = values if isinstance(values, pa.Array) else pa.array(values, rows.schema.field(column).type)
        rows = rows.set_column(rows.schema.get_field_index(column), column, values)
    metadata = dict(rows.schema.metadata or {})
    metadata |= {name.encode(): value.encode() for name, value in settings.items()}
    rows = rows.replace_schema_metadata({name: value for name, value in metadata.items() if value})
    made = database.create_table(table, schema=rows.schema, mode="overwrite")
    with pytest.MonkeyPatch.context() as patch:  # other writers do not look at vectors as LanceDB does
        patch.setattr("lancedb.table._handle_bad_vector_column", lambda batch, *_, **__: batch)
        made.merge_insert("jpeg").when_not_matched_insert_all().execute(rows.replace_schema_metadata())


def vectors(value: float, row: int = 2, width: int = 12, dtype=np.float32) -> pa.Array:
    """Six vectors, one of which holds a number that no unit vector holds, unless that is 0.25."""
    values = np.full((6, width), width**-0.5, dtype=dtype)
    values[row, 0] = value
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), width)


PATHS = [f"{number}.png" for number in range(6)]
IDS = [picture_id(path) for path in PATHS]
FLAT = vectors(12**-0.5)

COLUMNS = {
    "a script as id": ("id", [SCRIPT, *IDS[1:]], "the id of its path"),
    "an id of another path": ("id", [*IDS[1:], IDS[0]], "the id of its path"),
    "an id in capitals": ("id", [IDS[0].upper(), *IDS[1:]], "the id of its path"),
    "no id": ("id", [None, *IDS[1:]], "the id of its path"),
    "ids as numbers": ("id", pa.array(range(6)), "column id of its table pictures is int64, not string"),
    "no path": ("path", [None, *PATHS[1:]], "the id of its path None"),
    "a path twice": ("path", [PATHS[1], *PATHS[1:]], "the id of its path"),
    "paths as bytes": ("path", pa.array(PATHS).cast(pa.binary()), "column path of its table pictures is binary"),
    "times as texts": ("mtime_ns", pa.array(PATHS), "column mtime_ns of its table pictures is string, not int64"),
    "an infinite vector": ("vector", vectors(np.inf), "vector of '.*' is not of length 1"),
    "minus infinity": ("vector", vectors(-np.inf), "is not of length 1"),
    "a vector that is no number": ("vector", vectors(np.nan), "is not of length 1"),
    "a long vector": ("vector", vectors(1e30), "is not of length 1"),
    "a vector somewhat too long": ("vector", vectors(0.6), "is not of length 1"),
    "a vector of zeros": ("vector", [[0.0] * 12] * 6, "is not of length 1"),
    "no vector": ("vector", [[1.0] + [0.0] * 11] * 5 + [None], "a vector is missing"),
    "a number missing": ("vector", [[1.0] + [0.0] * 11] * 5 + [[None] + [0.0] * 11], "a vector is missing"),
    "vectors in double precision": ("vector", FLAT.cast(pa.list_(pa.float64(), 12)), "fixed_size_list<.*double"),
    "vectors in half precision": ("vector", FLAT.cast(pa.list_(pa.float16(), 12)), "fixed_size_list<.*half"),
    "vectors of any length": ("vector", FLAT.cast(pa.list_(pa.float32())), "column vector .* is list<"),
    "vectors of texts": ("vector", pa.array(PATHS), "column vector of its table pictures is string"),
    "vectors of another width": ("vector", vectors(8**-0.5, width=8), "vectors of 8 numbers, and the query's has 12"),
    "pictures as texts": ("jpeg", pa.array(PATHS), "column jpeg of its table pictures is string, not binary"),
}  # fmt: skip


def search(index) -> None:
    opened = PictureIndex(index)
    opened.encoder = Colors()
    opened.search("red")


@pytest.mark.parametrize("column, values, message", COLUMNS.values(), ids=COLUMNS)
def test_a_hostile_column_is_refused(index, column, values, message):
    change(index, column, values)
    with pytest.raises(ValueError, match=message) as error:
        search(index)
    assert "\n" not in str(error.value)
    assert "restore it from a copy, or make another" in str(error.value) or "make another index" in str(error.value)


def no_column(index):
    lancedb.connect(index).open_table("pictures").drop_columns(["jpeg"])


def other_thresholds(index):
    lancedb.connect(index).create_table("thresholds", pa.table({"language": ["en"], "score": [0.1]}))


def thresholds_without_number(index):
    Store(str(index)).write_thresholds([{"language": "en", "threshold": float("nan"), "error": 0.1, "queries": 9}])


def no_damaged_table(index):
    shutil.rmtree(index / "damaged.lance")


def damaged_of_another_schema(index):
    lancedb.connect(index).create_table("damaged", pa.table({"path": ["a"]}), mode="overwrite")


def halved(index):
    for file in (index / "pictures.lance").rglob("*.lance"):
        os.truncate(file, file.stat().st_size // 2)


def zeroed(index):
    for file in (index / "pictures.lance").rglob("*.lance"):
        file.write_bytes(bytes(file.stat().st_size))


def without_data(index):
    shutil.rmtree(index / "pictures.lance/data")


def manifests_halved(index):
    for file in (index / "pictures.lance/_versions").iterdir():
        os.truncate(file, file.stat().st_size // 2)


def without_manifests(index):
    shutil.rmtree(index / "pictures.lance/_versions")


WHOLE = {
    no_column: "column jpeg of its table pictures is missing",
    other_thresholds: "column threshold of its table thresholds is missing",
    thresholds_without_number: "the threshold of 'en' is nan",
    no_damaged_table: "is not an index of images",
    damaged_of_another_schema: "column id of its table damaged is missing",
    halved: "cannot be read",
    zeroed: "cannot be read",
    without_data: "cannot be read",
    manifests_halved: "cannot be read",
    without_manifests: "cannot be read",
}


@pytest.mark.parametrize("damage, message", WHOLE.items(), ids=[damage.__name__ for damage in WHOLE])
def test_a_damaged_index_is_refused(index, damage, message):
    damage(index)
    with pytest.raises(ValueError, match=message) as error:
        search(index)
        Store(str(index)).thresholds()
    assert "\n" not in str(error.value) and ".rs:" not in str(error.value)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"model": ""}, "its setting model is None"),
        ({"fingerprint": ""}, "its setting fingerprint is None"),
        ({"dtype": "int8"}, "its setting dtype is 'int8'"),
        ({"dtype": ""}, "its setting dtype is None"),
        ({"format": "2"}, "format 2, not 1"),
        *(({STATES: shape}, "its setting states is") for shape in ("4", "4 0", "-1 2", "4 8 9", "a b", "1 99999999")),
        ({STATES: "4 8"}, "column states of its table pictures is missing, not fixed_size_binary"),
    ],
)
def test_hostile_settings_are_refused(index, settings, message):
    change(index, "", [], **settings)
    with pytest.raises(ValueError, match=message):
        PictureIndex(index)


def test_a_model_that_is_not_there_is_named(index, tmp_path):
    change(index, "", [], model=str(tmp_path / "gone\nmodel"))
    with pytest.raises(SystemExit, match=r"was made with .*gone model, which is gone; give its new place with") as end:
        main(["query", str(index), "a dog"])
    assert "\n" not in str(end.value)


def test_a_hostile_row_stops_an_update_before_it_writes(index):
    change(index, "id", [SCRIPT, *IDS[1:]])
    with pytest.raises(ValueError, match="the id of its path"):
        bring_up_to_date(photographs(index.parent / "photos", 8), index)


@pytest.mark.parametrize("kind", ["faiss", "qdrant", "parquet"])
def test_a_hostile_index_is_not_exported(index, tmp_path, kind):
    change(index, "vector", vectors(np.inf))
    with pytest.raises(SystemExit, match="is not of length 1"):
        main(["export", str(index), str(tmp_path / "exported"), "--to", kind])
    assert not (tmp_path / "exported").exists()


@pytest.mark.parametrize(
    "values", [COLUMNS["a script as id"], COLUMNS["a long vector"], COLUMNS["an infinite vector"]]
)
def test_an_approximate_search_checks_what_it_finds(index, values):
    change(index, *values[:2])
    opened = PictureIndex(index)
    opened.store.is_approximate, opened.store.refresh = True, lambda: False  # Lance compares all without an index
    with pytest.raises(ValueError, match=values[2]):
        opened.nearest(Colors().encode_captions(["red"])["embeds"][0], 6)


def test_the_server_answers_in_one_line_and_serves_nothing_that_runs(index):
    contents = [b"<script>alert(1)</script>", None, b"\xff\xd8\xff", b"", b"%PDF", b"GIF89a"]
    names = Store(str(index)).pictures.to_arrow()["id"].to_pylist()
    change(index, "jpeg", contents)
    opened = PictureIndex(index)
    opened.encoder = Colors()
    client = TestClient(make_app(opened))
    for name, content in zip(names, contents, strict=True):
        answer = client.get(f"/picture/{name}.jpg")
        assert (answer.status_code, answer.content) == (200, content or b"")
        assert (answer.headers["content-type"], answer.headers["x-content-type-options"]) == ("image/jpeg", "nosniff")

    change(index, "vector", vectors(np.inf))
    answer = client.get("/api/search", params={"q": "red"})
    assert (answer.status_code, "is not of length 1" in answer.json()["detail"]) == (400, True)


def test_the_page_escapes_what_it_shows():
    assert "<script" not in one_column(SCRIPT, [Found(SCRIPT, SCRIPT, 0.5, 1)])


def test_a_query_whose_embedding_is_not_finite_is_refused(index):
    opened = PictureIndex(index)
    opened.encoder = Colors()
    opened.encoder.encode_captions = lambda captions: {"embeds": torch.full((1, 12), torch.nan)}
    with pytest.raises(ValueError, match="embedding of the query is not finite"):
        opened.search("red")


def test_a_link_in_place_of_the_lock_is_not_written_through(index, tmp_path):
    (index / "index.lock").unlink()
    (victim := tmp_path / "victim").write_text("precious")
    (index / "index.lock").symlink_to(victim)
    with pytest.raises((ValueError, OSError)), Store.locked(str(index)):
        pass
    assert victim.read_text() == "precious"


def test_paths_of_all_kinds_are_json(index, capsys, monkeypatch):
    paths = ["\x1b[2J.png", SCRIPT, "../../etc/passwd", "a\nb", "\u202egnp.exe", "'); DROP TABLE"]
    change(index, "path", paths)
    change(index, "id", [picture_id(path) for path in paths])
    monkeypatch.setattr(PictureIndex, "encoder", Colors())
    main(["query", str(index), "red", "--json"])
    (line,) = capsys.readouterr().out.splitlines()
    assert {found["path"] for found in json.loads(line)["results"]} == set(paths)
