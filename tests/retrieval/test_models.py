"""Several models in one table: where their results go, what a row says, and that names cannot break it."""

import json
from pathlib import Path

import numpy as np
import pytest
from tiny import make_rows, make_spread_model

import data_scripts
import eval_mrv
from ccrk.encoders import load_encoder
from ccrk.retrieval import evaluate
from ccrk.retrieval.intervals import mean_recall_interval, read_ranks
from ccrk.retrieval.models import folders_of_models, table_row, write_models

LANGUAGES = ("en", "de")


@pytest.fixture
def rows(monkeypatch):
    rows = make_rows([[4], [3], [5], [2], [6], [3]], languages=LANGUAGES)
    monkeypatch.setattr(data_scripts, "load", lambda task, **_: rows)
    return rows


@pytest.fixture
def model(processor, tmp_path):
    folder = tmp_path / "ours" / "model"
    for part in (make_spread_model(len(processor.tokenizer)), processor):
        part.save_pretrained(folder)
    return folder


def arrays(path: Path, seed: int) -> Path:
    path.parent.mkdir(exist_ok=True)
    drawn = np.random.default_rng(seed)
    np.savez(path, **{name: drawn.normal(size=(6, 5)) for name in ("images", "captions_en", "captions_de")})
    return path


def run(out, *arguments) -> None:
    eval_mrv.main([*map(str, arguments), "--task", "shapes", "--output_dir", str(out)])


@pytest.mark.slow
def test_each_has_its_results_and_all_one_table(rows, model, tmp_path, capsys):
    others = [arrays(tmp_path / folder / "model.npz", seed) for seed, folder in enumerate(["a", "b"])]
    out = tmp_path / "out"
    run(out, "--model", model, *others)
    assert not (out / "results.json").exists() and not (out / "encoded").exists()
    folders = folders_of_models([str(name) for name in (model, *others)], out)
    table = (out / "models.md").read_text()
    assert table.rstrip() in capsys.readouterr().out and "the median of 20" in table
    page = (out / "models.html").read_text()
    for name, folder in folders.items():
        results = json.loads((folder / "results.json").read_text())
        assert results["model"] == name and (folder / "report.html").exists()
        assert f"| {' | '.join(table_row(results))} |" in table
        assert f'href="{folder.name}/report.html"' in page and f"({folder.name}/report.html)" in table
        alone = tmp_path / "alone" / folder.name
        run(alone, "--model", name)
        assert (alone / "ranks.parquet").read_bytes() == (folder / "ranks.parquet").read_bytes()
        again = json.loads((alone / "results.json").read_text())
        assert {**results, "milliseconds_per_query": 0} == {**again, "milliseconds_per_query": 0} or name.endswith(
            "npz"
        )
    ours = json.loads((folders[str(model)] / "results.json").read_text())
    weights = load_encoder(str(model), 0, bf16=False).model
    assert ours["parameters"] == sum(p.numel() for p in weights.parameters()) and ours["milliseconds_per_query"] > 0
    assert "parameters" not in json.loads((folders[str(others[0])] / "results.json").read_text())


def test_a_row_tells_the_worst_language_and_the_spread():
    interval = [1.0, 9.0]
    results = {
        "recall": {"en": {"mean": 80.0}, "de": {"mean": 60.0}},
        "mrv": {"mean": {"std": 1.234}},
        "intervals": {
            "recall": {"en": {"mean": interval}, "de": {"mean": [55.0, 65.0]}},
            "mean_recall": [68.0, 72.0],
            "mrv": {"mean": {"std": [1.1, 1.4]}},
        },
        "parameters": 1_250_000_000,
        "milliseconds_per_query": 12.345,
    }
    row = ["1,250.0 M", "12.3", "70.0 (68.0 to 72.0)", "de: 60.0 (55.0 to 65.0)", "10.0", "1.23 (1.10 to 1.40)"]
    assert table_row(results) == row
    del results["parameters"], results["milliseconds_per_query"]
    assert table_row(results | {"mrv": None}) == ["–", "–", *row[2:5], "–"]


def test_the_interval_of_the_mean_holds_it(rows, tmp_path):
    run(tmp_path, "--model", arrays(tmp_path / "a.npz", 0))
    results = json.loads((tmp_path / "results.json").read_text())
    low, high = results["intervals"]["mean_recall"]
    assert low < np.mean([row["mean"] for row in results["recall"].values()]) < high
    ranks = read_ranks(tmp_path / "ranks.parquet")
    one = mean_recall_interval({"en": ranks["en"]})
    assert one == pytest.approx(results["intervals"]["recall"]["en"]["mean"])


def test_names_that_clash_are_told_apart(tmp_path):
    models = ["google/siglip2", "../siglip2", "outputs/SigLIP2", "a.npz", "encoded"]
    folders = folders_of_models(models, tmp_path)
    assert [folder.name for folder in folders.values()] == [
        *("google-siglip2", "siglip2", "outputs-SigLIP2", "a", "encoded")
    ]
    assert folders_of_models(["encoded"], tmp_path) == {"encoded": tmp_path}
    assert all(folder.parent == tmp_path for folder in folders.values())
    with pytest.raises(ValueError, match=r"--model names a twice; name each model once"):
        folders_of_models(["a", "b", "a"], tmp_path)
    for models in (["a", ".."], ["x/m", "x-m", "y/m"], ["a/b", "A/B"]):
        with pytest.raises(ValueError, match="there is no folder name of its own for"):
            folders_of_models(models, tmp_path)


def test_a_name_is_no_markup(tmp_path):
    name = "<b>|x|</b> [y](z)"
    row = {"en": {"mean": 1.0}}
    results = {
        "task": "<i>",
        "split": "test",
        "languages": ["en"],
        "counts": {"images": 3},
        "recall": row,
        "mrv": None,
        "chance": row,
    }
    results["intervals"] = {"recall": {"en": {"mean": [0, 2]}}, "mean_recall": [0, 2]}
    write_models({name: results, "b": results}, folders_of_models([name, "b"], tmp_path), tmp_path, 20)
    assert "<b>" not in (tmp_path / "models.html").read_text()
    line = next(line for line in (tmp_path / "models.md").read_text().splitlines() if "x" in line)
    assert r"\<b\>\|x\|\</b\> \[y\](z)" in line


def test_what_is_wrong_is_told_before_the_first_is_evaluated(rows, model, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "load_encoder", lambda *_: pytest.fail("the first was opened"))
    with pytest.raises(SystemExit, match=r"there is no file .*lacking\.npz"):
        run(tmp_path / "out", "--model", model, tmp_path / "lacking.npz")
    with pytest.raises(SystemExit):
        run(tmp_path / "out", "--model", model, model, "--model_for", "de=a.npz")


@pytest.mark.slow
def test_captions_go_into_the_template_of_each_model(rows, model, tmp_path, monkeypatch):
    given = []
    kind = evaluate.load_encoder(str(model), 0, False).__class__
    encode = kind.encode_captions
    monkeypatch.setattr(
        kind, "encode_captions", lambda self, captions: given.extend(captions) or encode(self, captions)
    )
    again = tmp_path / "again"
    again.symlink_to(model)
    out = tmp_path / "out"
    run(out, "--model", model, again, "--no_rerank", "--caption_template", "query: {}", "{}!")
    captions = {text for row in rows["captions"] for texts in row.values() for text in texts}
    assert set(given) == {f"query: {text}" for text in captions} | {f"{text}!" for text in captions}
    told = [json.loads((out / name / "results.json").read_text())["caption_template"] for name in ("model", "again")]
    assert told == ["query: {}", "{}!"]
    run(tmp_path / "plain", "--model", model, "--no_rerank")
    assert "caption_template" not in json.loads((tmp_path / "plain" / "results.json").read_text())


@pytest.mark.parametrize(
    ("templates", "message"),
    [
        (["query:"], "--caption_template has no {} where the caption goes: query:"),
        (["{}", "{}", "{}"], "give one for all models, or one for each"),
        (["query: {}"], "the captions of an .npz are embedded already"),
    ],
)
def test_templates_that_cannot_be_are_refused(templates, message, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run(tmp_path, "--model", "a", "b.npz", "--caption_template", *templates)
    assert message in capsys.readouterr().err
