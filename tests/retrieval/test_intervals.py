"""Intervals and comparisons of ranks, ours and others'."""

import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.stats
from builders import damaged
from test_evaluation import arrays_file, model_dir, rows, run  # noqa: F401, fixtures

import eval_mrv
from ccrk.retrieval import intervals
from ccrk.retrieval.intervals import compare, mrv_intervals, read_ranks, recall_intervals


def make_ranks(hits: np.ndarray, captions_per_image: int = 1) -> dict:
    """Rank 1 for a hit and 99 for none: (languages, images) hits, the same in both directions."""
    names = [str(image) for image in range(hits.shape[1])]
    images = pd.MultiIndex.from_product([names, [0]], names=["image", "repeat"])
    captions = pd.MultiIndex.from_product([names, [0], range(captions_per_image)], names=[*images.names, "caption"])
    ranks = np.where(hits, 1, 99)
    return {
        f"language {number}": {
            "IR": pd.Series(row.repeat(captions_per_image), index=captions),
            "TR": pd.Series(row, index=images),
        }
        for number, row in enumerate(ranks)
    }


class TestUncertainty:
    def test_interval_of_recall(self):
        hits = np.random.default_rng(0).random((1, 400)) < 0.3
        low, high = recall_intervals(make_ranks(hits))["language 0"]["TR@1"]
        expected = scipy.stats.bootstrap((100.0 * hits[0],), np.mean, method="percentile", rng=1).confidence_interval
        assert (low, high) == pytest.approx(expected, abs=0.8)

    def test_captions_of_an_image_are_drawn_together(self):
        hits = np.random.default_rng(0).random((1, 60)) < 0.5
        assert recall_intervals(make_ranks(hits, 5)) == recall_intervals(make_ranks(hits))

    def test_interval_of_mrv(self):
        ranks = make_ranks(np.random.default_rng(0).random((3, 200)) < 0.5)
        interval = mrv_intervals(ranks, list(ranks))
        spread = pd.DataFrame({language: both["TR"] for language, both in ranks.items()}).std(axis=1, ddof=0)
        assert interval["TR"]["std"][0] < spread.mean() < interval["TR"]["std"][1]
        assert interval["TR"] == interval["IR"]

    def test_a_run_equals_itself(self):
        ranks = make_ranks(np.random.default_rng(0).random((2, 50)) < 0.5)
        result = compare(ranks, ranks, list(ranks))
        assert result["recall"]["language 0"] == {"difference": 0.0, "low": 0.0, "high": 0.0, "p": 1.0}
        assert result["mrv"]["p"] == 1.0

    def test_a_worse_run_is_told_from_an_equal_one(self):
        generator = np.random.default_rng(0)
        hits = generator.random((1, 400)) < 0.6
        worse, equal = hits & (generator.random((1, 400)) < 0.8), np.roll(hits, 1)
        found = compare(make_ranks(hits), make_ranks(worse), [])["recall"]["language 0"]
        assert found["low"] > 0 and found["p"] < 0.001
        assert found["difference"] == pytest.approx(100 * (hits.mean() - worse.mean()))
        found = compare(make_ranks(hits), make_ranks(equal), [])["recall"]["language 0"]
        assert found["low"] < 0 < found["high"] and found["p"] > 0.5

    def test_chunks_change_nothing_but_the_draws(self, monkeypatch):
        ranks = make_ranks(np.random.default_rng(0).random((1, 40)) < 0.5)
        whole = recall_intervals(ranks)["language 0"]["mean"]
        monkeypatch.setattr(intervals, "_WEIGHTS_PER_CHUNK", 100)
        assert recall_intervals(ranks)["language 0"]["mean"] == pytest.approx(whole)

    def test_compare_from_the_command_line(self, rows, tmp_path, capsys):
        first = arrays_file(tmp_path / "a.npz", rows)
        second = arrays_file(tmp_path / "b.npz", rows, seed=1)
        run(tmp_path / "first", "--model", first, "--task", "shapes")
        other = tmp_path / "first" / "ranks.parquet"
        results = run(tmp_path / "second", "--model", second, "--task", "shapes", "--compare", other)
        comparison = results["comparison"]
        assert comparison["other"] == str(other) and set(comparison["recall"]) == {"en", "de"}
        assert 0 < comparison["recall"]["en"]["p"] <= 1
        assert "minus" in capsys.readouterr().out
        assert "Against another run" in (tmp_path / "second" / "report.html").read_text()

    def test_mrv_needs_every_language_of_the_other_run(self, rows, tmp_path, capsys):
        model = arrays_file(tmp_path / "a.npz", rows)
        run(tmp_path / "first", "--model", model, "--task", "shapes")
        table = pd.read_parquet(tmp_path / "first" / "ranks.parquet")
        table[table["language"] == "en"].to_parquet(tmp_path / "en.parquet")
        arguments = ("--model", model, "--task", "shapes", "--compare", tmp_path / "en.parquet")
        comparison = run(tmp_path / "second", *arguments)["comparison"]
        assert comparison["mrv"] is None and set(comparison["recall"]) == {"en"}
        assert comparison["no_mrv_because"] == "the other run does not rank de"
        for text in (capsys.readouterr().out, (tmp_path / "second" / "report.html").read_text()):
            assert "o MRV: the other run does not rank de" in text

    def test_a_comparison_that_fails_late_leaves_the_results(self, rows, model_dir, tmp_path):
        """That an image was not ranked for its captions is seen beside the new ranks alone."""
        run(tmp_path / "first", "--model", arrays_file(tmp_path / "a.npz", rows), "--task", "shapes")
        table = pd.read_parquet(tmp_path / "first" / "ranks.parquet")
        first_image = (table["direction"] == "TR") & (table["language"] == "en")
        other = tmp_path / "other.parquet"
        table.drop(index=table.index[first_image][0]).to_parquet(other)
        with pytest.raises(SystemExit, match="en TR: 6 instances here, 5 in the other run"):
            run(tmp_path / "out", "--model", model_dir, "--task", "shapes", "--compare", other)
        assert json.loads((tmp_path / "out" / "results.json").read_text())["counts"]["captions"] == {"en": 6, "de": 6}
        assert len(read_ranks(tmp_path / "out" / "ranks.parquet")["en"]["IR"]) == 6


def without_a_row(table):
    return table[1:]


def of_other_languages(table):
    return table.assign(language="fr")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_a_row, "en IR: 6 instances here, 5 in the other run, 5 in both; compare runs on the same"),
        (of_other_languages, "the other run ranks fr, this one en, de: no language in common"),
        (lambda table: table.drop(columns="rank"), r"other\.parquet lacks the columns rank; give a ranks\.parquet"),
        (lambda table: table[table["direction"] == "IR"], r"other\.parquet has no TR ranks of en; write it again"),
        (lambda table: table.assign(rank=0), r"other\.parquet holds ranks below 1"),
        (lambda table: table.assign(rank=1.5), r"other\.parquet holds ranks below 1"),
        (lambda table: table.assign(rank="1"), r"other\.parquet: rank holds (large_)?string"),
        (lambda table: table.assign(rank=[[1]] * len(table)), r"other\.parquet: rank holds list"),
        (lambda table: table.assign(image=1), r"other\.parquet: image holds int64"),
        (lambda table: table.assign(caption=-1), r"other\.parquet holds ranks below 1 or none at all"),
        (lambda table: table.assign(repeat=None), r"other\.parquet: repeat holds null"),
        (lambda table: pd.concat([table, table[-1:].assign(caption=3)]), "holds two ranks of one instance"),
        (
            lambda table: table.rename(columns={"image": "instance"}).drop(columns=["caption", "repeat"]),
            r"other\.parquet lacks the columns caption, image, repeat; .* that this version of eval_mrv\.py wrote",
        ),
        (lambda table: table.assign(language=None), r"other\.parquet: language holds null"),
        (lambda table: table.assign(language=[None, *table["language"][1:]]), "holds ranks below 1 or none at all"),
        (lambda table: table.assign(direction="\x1b[2J"), r"holds ranks of '\\x1b\[2J' beside IR and TR"),
        (lambda table: pd.concat([table, table[:1]]), r"other\.parquet holds two ranks of one instance"),
    ],
)
def test_ranks_of_another_run(change, message, rows, monkeypatch, tmp_path):
    model = arrays_file(tmp_path / "a.npz", rows)
    run(tmp_path / "out", "--model", model, "--task", "shapes")
    table = pd.read_parquet(tmp_path / "out" / "ranks.parquet")
    if change is of_other_languages:
        table = table[table["language"] == "en"]
    change(table).to_parquet(tmp_path / "other.parquet")
    monkeypatch.setattr(eval_mrv, "evaluate_models", lambda *_: pytest.fail("scored before it was checked"))
    with pytest.raises(SystemExit, match=message) as raised:
        run(tmp_path / "out", "--model", model, "--task", "shapes", "--compare", tmp_path / "other.parquet")
    assert "\n" not in str(raised.value)


class TestRanksOfOthers:
    def table(self, path, rows, **columns):
        """A small file of many rows: each column is one value over and over."""
        values = {"image": "a", "language": "en", "direction": "IR", "repeat": 0, "caption": 0, "rank": 1} | columns
        dictionaries = {
            name: pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array([value]))
            if isinstance(value, str)
            else np.full(rows, value)
            for name, value in values.items()
        }
        table = pa.table(dictionaries)
        pq.write_table(table, path, compression="zstd")
        return path

    def test_are_read_within_bounds(self, monkeypatch, tmp_path):
        monkeypatch.setattr(intervals, "MAX_RANKS", 100_000)
        monkeypatch.setattr(intervals, "MAX_BYTES", 10_000_000)
        before = pa.total_allocated_bytes()
        for number, columns, message in (
            (200_000, {}, "has 200,000 rows and .* bytes, over 100,000"),
            (2_000, {"image": "a" * 100_000}, "has 2,000 rows of up to 100,000 bytes, over 10,000,000 in all"),
            (1, {"image": "a" * 11_000_000}, "has 1 rows and .* bytes, over"),
        ):
            path = self.table(tmp_path / "other.parquet", number, **columns)
            assert path.stat().st_size < 200_000
            with pytest.raises(ValueError, match=message):
                read_ranks(path)
        assert pa.total_allocated_bytes() - before < 20_000_000

    def test_any_damage_is_one_line(self, rows, tmp_path):
        run(tmp_path / "out", "--model", arrays_file(tmp_path / "a.npz", rows), "--task", "shapes")
        contents, whole = (
            (tmp_path / "out" / "ranks.parquet").read_bytes(),
            read_ranks(tmp_path / "out" / "ranks.parquet"),
        )
        path, refused = tmp_path / "other.parquet", 0
        for seed in range(80):
            path.write_bytes(damaged(contents, seed))
            try:
                found = read_ranks(path)
            except ValueError as error:
                refused += str(path) in str(error)
            else:
                assert all(found["de"][name].equals(whole["de"][name]) for name in ("IR", "TR")), seed
        assert refused > 50
        for other in (tmp_path, tmp_path / "none"):
            with pytest.raises(ValueError, match="there is no file"):
                read_ranks(other)
