"""Thresholds by conformal prediction, and exports that other engines open."""

import json

import faiss
import numpy as np
import pyarrow.parquet as pq
import pytest
from builders import write, write_json_lines
from qdrant_client import QdrantClient
from search_builders import NAMES, Colors, bring_up_to_date, picture

from ccrk.search import PictureIndex
from ccrk.search.__main__ import main
from ccrk.search.calibrate import calibrate, threshold


@pytest.fixture
def index(tmp_path):
    for number in range(12):
        color = tuple(max(0, 255 - 9 * number) if value else 8 * number for value in NAMES["red"])
        picture(tmp_path / "photos" / f"red/{number}.png", color)
        picture(tmp_path / "photos" / f"blue/{number}.png", color[::-1])
    bring_up_to_date(tmp_path / "photos", tmp_path / "index")
    index = PictureIndex(tmp_path / "index")
    index.encoder = Colors()
    index.encoder.caption_lengths = lambda captions: [len(caption) for caption in captions]
    return index


@pytest.mark.parametrize("error", [0.05, 0.1, 0.3])
def test_right_pictures_fall_below_as_often_as_was_said(error):
    generator = np.random.default_rng(0)
    below = []
    for _ in range(400):
        scores = generator.beta(2, 5, size=60)
        below.append((scores[:20] < threshold(scores[20:], error)).mean())
    assert np.mean(below) <= error + 0.01
    assert np.mean(below) > error - 0.035  # and no more pictures than that are let through


def test_too_few_queries_say_nothing():
    assert threshold([0.1] * 9, 0.1) == 0.1
    with pytest.raises(ValueError, match=r"8 queries are too few for an error of 0\.1; give 9 at least"):
        threshold([0.1] * 8, 0.1)


def test_an_index_keeps_its_thresholds_and_marks_what_is_likely(index, tmp_path, monkeypatch, capsys):
    rows = "".join(f"red/{number}.png,red,rot\n" for number in range(12)) + "gone.png,red,rot\n"
    thresholds = calibrate(index, write(tmp_path / "q.csv", f"path,en,de\n{rows}"), error=0.25)
    scores = sorted(found.score for found in index.search("red") if found.path.startswith("red/"))
    assert (
        thresholds["en"] == thresholds["de"] == pytest.approx(scores[2], abs=1e-5)
    )  # 0.25 of 12 + 1, rounded down: the third

    monkeypatch.setattr(PictureIndex, "encoder", index.encoder)
    query = ["query", index.location, "red", "--k", "24", "--json", "--language"]
    main([*query, "en"])
    results = json.loads(capsys.readouterr().out)["results"]
    assert sum(found["likely"] for found in results) == 10
    assert not any(found["likely"] for found in results if found["path"].startswith("blue/"))
    with pytest.raises(SystemExit, match=r"no threshold for fr, only for (en, de|de, en)$"):
        main([*query, "fr"])
    for tag, meant in (("EN", "en"), ("german", "de"), ("de-AT", "de")):
        with pytest.raises(SystemExit, match=f"no threshold for {tag}, only for .*; did you mean '{meant}'"):
            main([*query, tag])


def test_an_index_is_calibrated_by_the_captions_of_its_source(index, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(PictureIndex, "encoder", index.encoder)
    captions = [
        {"file_name": f"{color}/{number}.png", "caption_en": [color, "green"], "caption_de": None if number else [de]}
        for color, de in (("red", "rot"), ("blue", "blau"))
        for number in range(12)
    ]
    write_json_lines(tmp_path / "photos/metadata.jsonl", captions)
    index.store.source = str(tmp_path / "photos")
    command = ["index", str(tmp_path / "photos"), index.location, "--languages"]
    main([*command, "en", "--split", "train", "--error", "0.2", "--calibrate"])
    assert "en: a result is likely from a score of" in capsys.readouterr().out
    scores = sorted(
        found.score
        for color in ("red", "blue")
        for found in index.search(color, k=24)
        if found.path.startswith(color)  # one caption of each picture, the first
    )
    assert index.store.thresholds() == {"en": pytest.approx(scores[4], abs=1e-5)}  # 0.2 of 24 + 1: the fifth
    with pytest.raises(SystemExit, match="de: 2 queries are too few"):
        main([*command, "de", "--split", "train", "--calibrate"])
    (tmp_path / "photos/metadata.jsonl").unlink()
    with pytest.raises(SystemExit, match="holds no captions"):
        main([*command, "en", "--calibrate"])
    with pytest.raises(SystemExit, match=r"there is no file none\.csv"):
        main([*command, "en", "--calibrate", "none.csv"])


@pytest.mark.parametrize(
    "contents, message",
    [("en\nred\n", "has no column path, only en"), ("path,en\nx.png,red\n", "no picture of .* is in")]
    + [
        (empty, "has no rows; give the columns path")
        for empty in ("", "\ufeff", "path,en\n", "\ufeffpath,en\n", "\n\n")
    ],
)
def test_what_cannot_calibrate_is_told(index, tmp_path, contents, message):
    with pytest.raises(ValueError, match=message):
        calibrate(index, write(tmp_path / "q.csv", contents))


def test_exports_find_what_the_index_finds(index, tmp_path, capsys):
    expected = [found.path for found in index.search("blue", k=5)]
    vector = index.encoder.encode_captions(["blue"])["embeds"].numpy()
    for kind in ("faiss", "qdrant", "parquet"):
        main(["export", index.location, str(tmp_path / kind), "--to", kind])
        assert "24 pictures written" in capsys.readouterr().out

    rows = faiss.read_index(str(tmp_path / "faiss/index.faiss")).search(vector, 5)[1][0]
    paths = json.loads((tmp_path / "faiss/paths.json").read_text())
    assert [paths[row] for row in rows] == expected

    client = QdrantClient(path=str(tmp_path / "qdrant"))
    found = client.query_points("pictures", query=vector[0].tolist(), limit=5).points
    client.close()
    assert [point.payload["path"] for point in found] == expected

    table = pq.read_table(tmp_path / "parquet").to_pydict()
    best = (np.array(table["vector"]) @ vector[0]).argsort()[::-1][:5]
    assert [table["path"][row] for row in best] == expected
    with pytest.raises(SystemExit, match="is there already; name another"):
        main(["export", index.location, str(tmp_path / "faiss"), "--to", "faiss"])
