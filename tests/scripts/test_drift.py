"""Drift without labels beside ranks with labels: what the script makes of the folders of two models."""

import json
from pathlib import Path

import pandas as pd
import pytest
from tiny import call

from research.search import drift


def write(folder: Path, drifts: dict[str, float], ranks: dict[str, list[int]]) -> str:
    (folder / "consistency").mkdir(parents=True)
    against = {language: {"rank_drift": {"mean": value}} for language, value in drifts.items()}
    everything = {name: {"mean": max(drifts.values())} for name in ("overlap@10", "rank_std")}
    results = {"pivot": "en", "against_pivot": against, "all": everything}
    (folder / "consistency" / "results.json").write_text(json.dumps(results))
    (folder / "evaluation").mkdir()
    rows = [
        {"image": f"{i}", "repeat": 0, "caption": 0 if direction == "IR" else None, "language": language}
        | {"direction": direction, "rank": rank}
        for language, own in ranks.items()
        for i, rank in enumerate(own)
        for direction in ("IR", "TR")
    ]
    pd.DataFrame(rows).to_parquet(folder / "evaluation" / "ranks.parquet")
    return f"{folder.name}={folder / 'consistency'},{folder / 'evaluation'}"


@pytest.fixture
def models(tmp_path) -> list[str]:
    return [
        write(tmp_path / "one", {"de": 1.0, "fr": 2.0}, {"en": [1, 2], "de": [1, 3], "fr": [2, 4]}),
        write(tmp_path / "other", {"de": 4.0, "fr": 3.0}, {"en": [1, 2], "de": [9, 9], "fr": [3, 5]}),
        write(tmp_path / "third", {"de": 5.0, "fr": 6.0}, {"en": [1, 2], "de": [20, 20], "fr": [30, 30]}),
    ]


def test_both_measures_of_each_model(models, tmp_path, monkeypatch, capsys):
    call(drift, *models, "--output_dir", tmp_path / "out", monkeypatch=monkeypatch)
    found = json.loads((tmp_path / "out" / "drift.json").read_text())
    assert found["models"]["one"]["labelled"] == {"de": 0.5, "fr": 1.5}
    assert found["spearman"] == pytest.approx(
        {"one": 1.0, "other": 1.0, "third": 1.0, "all languages": 1.0, "models": 1.0}
    )
    assert (tmp_path / "out" / "drift.png").stat().st_size > 1000
    assert "Spearman, models: 1.00" in capsys.readouterr().out


def test_a_language_without_ranks(models, tmp_path, monkeypatch):
    table = pd.read_parquet(tmp_path / "one" / "evaluation" / "ranks.parquet")
    table[table["language"] != "fr"].to_parquet(tmp_path / "one" / "evaluation" / "ranks.parquet")
    with pytest.raises(SystemExit, match=r"ranks\.parquet has no ranks in fr; evaluate in en de fr"):
        call(drift, *models, "--output_dir", tmp_path / "out", monkeypatch=monkeypatch)
