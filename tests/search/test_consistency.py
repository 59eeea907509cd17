"""Consistency without labels: the measures against slow ones written out, and the command."""

import json
import shutil

import numpy as np
import pytest
import torch
from builders import write
from search_builders import NAMES, Colors, bring_up_to_date, photographs
from tiny import tiny_translator
from tqdm import tqdm

from ccrk.search import PictureIndex
from ccrk.search.__main__ import main
from ccrk.search.consistency import (
    Ranking,
    compare,
    fused,
    measure,
    overlap,
    rank_biased_overlap,
)
from ccrk.search.queries import read_queries
from data_scripts.translate import Gap, Translator

WORDS = list(NAMES)


def test_overlap_counts_what_both_have():
    assert overlap(np.array([1, 2, 3]), np.array([3, 2, 9]), k=3) == pytest.approx(2 / 3)
    assert overlap(np.arange(30), np.arange(30)[::-1]) == 0
    assert overlap(np.arange(4), np.arange(4)[::-1]) == 1  # all there is


def test_rank_biased_overlap_is_its_published_sum():
    one, other = np.random.default_rng(0).permutation(50)[:20], np.random.default_rng(1).permutation(50)[:20]
    p, depth = 0.9, 20
    agreement = [len(set(one[:d]) & set(other[:d])) / d for d in range(1, depth + 1)]
    expected = (1 - p) / p * sum(a * p**d for d, a in enumerate(agreement, start=1)) + agreement[-1] * p**depth
    assert rank_biased_overlap(one, other) == pytest.approx(expected)
    assert rank_biased_overlap(one, one) == pytest.approx(1)
    assert rank_biased_overlap(np.arange(20), np.arange(20, 40)) == 0


def test_drift_is_how_far_the_first_ten_move():
    one = Ranking.of(-np.arange(100.0))
    other = Ranking.of(-np.r_[50.0, np.arange(1.0, 100.0)])  # the first one falls to rank 50, the next rise by one
    assert other.ranks[:3].tolist() == [50, 1, 2]
    expected = (49 + 9 * 1 + 1) / 11  # pictures 0 to 10 are among either's first ten
    assert compare(one, other)[2] == pytest.approx(expected)
    assert compare(one, one) == (1, pytest.approx(1), 0)


def test_fused_order_is_reciprocal_rank_fusion():
    rankings = [np.array([5, 3, 1]), np.array([3, 7, 5])]
    scores = {item: sum(1 / (61 + r.tolist().index(item)) for r in rankings if item in r) for item in (1, 3, 5, 7)}
    assert fused(rankings).tolist() == sorted(scores, key=lambda item: (-scores[item], item))


@pytest.fixture
def index(tmp_path):
    bring_up_to_date(photographs(tmp_path / "photos", 40), tmp_path / "index")
    index = PictureIndex(tmp_path / "index")
    index.encoder = Colors()
    index.encoder.caption_lengths = lambda captions: [len(caption) for caption in captions]
    return index


def test_languages_that_mean_the_same_agree_and_others_do_not(index):
    queries = [{"en": "red", "de": "rot", "xx": "blue"}, {"en": "green", "de": "grün", "xx": "red"}, {"en": "blue"}]
    results = measure(index, ["en", "de", "xx"], queries, "en")
    de, xx = (results["against_pivot"][language] for language in ("de", "xx"))
    assert de["overlap@10"] == {"mean": 1, "low": 1, "high": 1}
    assert de["rank_drift"]["mean"] == 0
    assert de["queries"] == xx["queries"] == 2
    assert xx["overlap@10"]["mean"] < 0.6
    assert xx["rank_drift"]["mean"] > 5
    among = results["among_all"]
    assert among["xx"]["rbo"]["mean"] < among["en"]["rbo"]["mean"] < de["rbo"]["mean"]
    assert results["all"]["rank_std"]["mean"] > 0
    assert [row["queries"] for row in results["most_different"]] == sorted(
        queries[:2], key=lambda row: next(r["rbo"] for r in results["most_different"] if r["queries"] == row)
    )
    assert measure(index, ["en", "de"], [{"en": "red", "de": "rot"}], "en")["all"]["rbo"]["low"] is None


def test_queries_are_read_as_people_write_them(tmp_path):
    path = write(tmp_path / "q.csv", '\ufeffen,de\r\nred,rot\r\n"a, dog",\r\n...,grün\r\n')
    languages, rows, problems = read_queries(path)
    assert languages == ["en", "de"]
    assert rows == [{"en": "red", "de": "rot"}, {"en": "a, dog"}, {"de": "grün"}]
    assert problems.absences == {"no usable query in de": 1, "no usable query in en": 1}
    for empty in ("", "\ufeff", "en,de\n", "\ufeffen,de\n", "\n\n"):
        with pytest.raises(ValueError, match="has no queries; give a header of languages"):
            read_queries(write(tmp_path / "empty.csv", empty))
    with pytest.raises(ValueError, match="has no column german, only en, de; did you mean 'de'"):
        read_queries(path, ["german"])
    with pytest.raises(ValueError, match="has no column fr, only en, de"):
        read_queries(path, ["en", "fr"])
    with pytest.raises(ValueError, match="there is no file"):
        read_queries(tmp_path / "none.csv")


def test_the_command_writes_results_and_report(index, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(PictureIndex, "encoder", index.encoder)
    queries = write(tmp_path / "q.csv", "en,de,ar\nred,rot,أزرق\ngreen,grün,أزرق\n<script>,blau,أزرق\n")
    out = tmp_path / "out"
    main(["consistency", str(tmp_path / "index"), str(queries), "--output_dir", str(out)])
    results = json.loads((out / "results.json").read_text())
    assert results["languages"] == ["en", "de", "ar"]
    assert results["pivot"] == "en"
    assert set(results["against_pivot"]) == {"de", "ar"}
    page = (out / "report.html").read_text()
    assert "data:image/jpeg;base64," in page and "أزرق" in page
    assert "<script" not in page and "http" not in page.replace("http://www.w3.org", "")
    assert "overlap@10" in capsys.readouterr().out
    shutil.rmtree(out)
    with pytest.raises(SystemExit, match="--pivot fr is not one of en, de, ar"):
        main(["consistency", str(tmp_path / "index"), str(queries), "--output_dir", str(out), "--pivot", "fr"])


@pytest.mark.slow
def test_missing_languages_are_translated(index, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(PictureIndex, "encoder", index.encoder)
    sentences = ["red star", "green star and blue star", "two small dogs", "done it"]
    model = tiny_translator(tmp_path, sentences * 3)
    queries = write(tmp_path / "q.csv", "en,de\nred star,rot\ngreen star,\n,blau\n")
    out = tmp_path / "out"
    command = ["consistency", str(tmp_path / "index"), str(queries), "--output_dir", str(out)]
    command += ["--translator", str(model), "--translate"]
    main([*command, "de", "sw"])
    assert "sw" in capsys.readouterr().out
    results = json.loads((out / "results.json").read_text())
    assert results["translated"] == {"model": str(model), "queries": {"de": 1, "sw": 2}}
    assert results["against_pivot"]["sw"]["queries"] == 2
    assert "Translated from en by" in (out / "report.html").read_text()

    languages, rows, _ = read_queries(out / "queries.csv")
    assert languages == ["en", "de", "sw"]
    assert (rows[0]["de"], rows[2]) == ("rot", {"de": "blau"})  # what was there, and what had nothing to translate
    translator = Translator(str(model), "en", ["sw"], 1, torch.device("cpu"))
    assert rows[0]["sw"] == translator([Gap("red star", "sw", 0)], tqdm(disable=True))[0]

    with pytest.raises(SystemExit, match="does not know xyz"):
        main([*command, "xyz"])
    alone = write(tmp_path / "alone.csv", "en\nred\n")
    with pytest.raises(SystemExit, match="has no query in two languages"):
        main(["consistency", str(tmp_path / "index"), str(alone), "--output_dir", str(out)])
