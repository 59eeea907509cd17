"""The model card: what it says of data, languages, licence and figures."""

import json

import pytest
import yaml
from huggingface_hub import ModelCard
from PIL import Image
from tiny import RECIPE, call, make_trainer

import train_pretrain
import train_retrieval
from ccrk.training.model_card import model_card


@pytest.mark.slow
def test_model_card_tells_the_run(tiny_model, processor, shapes, tmp_path):
    trainer = make_trainer(tiny_model, processor, shapes, tmp_path, eval_strategy="steps", eval_steps=2, max_steps=2)
    trainer.train()
    trainer.create_model_card("tiny", license="mit")
    card = ModelCard.load(tmp_path / "README.md")
    assert (card.data.language, card.data.license) == (["en", "de", "zh"], "mit")
    logged = next(log for log in trainer.state.log_history if "eval_mean_recall" in log)
    results = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert results["Recall, zh"] == logged["eval_recall_zh"]
    assert results["Mean rank variance (standard deviation, ranks)"] == logged["eval_mrv"]
    assert {(result.dataset_type, result.dataset_split) for result in card.data.eval_results} == {("shapes", "train")}
    assert "shapes, split train, 48 pictures; languages en de zh" in card.text
    assert f"| mean | {logged['eval_mean_recall']:.2f} |" in card.text
    assert "2 steps of 8 pictures" in card.text
    assert "- Started from: no checkpoint" in card.text
    tiny_model.config.vision_config.name_or_path, tiny_model.config.text_config.name_or_path = "lab/swin", "lab/xlm-r"
    card = model_card(trainer, "tiny")
    assert card.data.base_model == ["lab/swin", "lab/xlm-r"] and "- Started from: swin and xlm-r" in card.text
    tiny_model.name_or_path = "lab/ccrk"
    card = model_card(trainer, "tiny")
    assert card.data.base_model == ["lab/ccrk"] and "- Started from: ccrk" in card.text
    trainer.train_dataset = shapes.to_iterable_dataset()  # a stream has no length
    assert "- Data: unnamed; languages" in model_card(trainer, "tiny").text
    trainer.recipe = {"dataset": "pretraining", "dataset_config": {"preset": "2m"}}
    assert "- Data: pretraining 2m; languages" in model_card(trainer, "tiny").text


@pytest.mark.slow
def test_model_card_reports_the_weights_that_are_saved(tiny_model, processor, shapes, tmp_path):
    steps = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1, "max_steps": 2}
    best = {"load_best_model_at_end": True, "metric_for_best_model": "mean_recall", "save_total_limit": 1}
    trainer = make_trainer(tiny_model, processor, shapes, tmp_path, **steps, **best)

    def evaluate(*args, **kwargs):
        trainer.log(metrics := {"eval_mean_recall": {1: 70.0, 2: 60.0}[trainer.state.global_step]})
        return metrics

    trainer.evaluate = evaluate
    trainer.train()
    card = model_card(trainer, "tiny").text
    assert "| mean | 70.00 |" in card and "2 steps of 8 pictures, of which step 1, the best in evaluation" in card


@pytest.mark.slow
def test_model_card_keeps_what_the_checkpoint_before_it_says(recipe, tmp_path, monkeypatch):
    call(train_pretrain, recipe, monkeypatch=monkeypatch)
    before = ModelCard.load(tmp_path / "pretrain/README.md")
    assert "Not evaluated in this run" in before.text and "figures above" not in before.text
    assert (before.data.datasets, before.data.metrics) == (["shapes"], ["recall", "mrv"])
    assert before.data.license is None and before.data.language == RECIPE["languages"]

    before.data.language, before.data.datasets, before.data.base_model = ["tr"], ["lab/scenes"], "lab/ccrk"
    before.save(tmp_path / "pretrain/README.md")
    options = ("--model_name_or_path", tmp_path / "pretrain", "--languages", "en", "--license", "apache-2.0")
    call(train_retrieval, recipe, *options, "--output_dir", tmp_path / "fine", monkeypatch=monkeypatch)
    card = ModelCard.load(tmp_path / "fine/README.md")
    assert (card.data.license, card.data.language) == ("apache-2.0", ["tr", "en"])
    assert (card.data.datasets, card.data.base_model) == (["lab/scenes", "shapes"], ["lab/ccrk"])
    assert "captions in tr, en." in card.text and "captions; languages en\n" in card.text
    assert "under apache-2.0" in card.text


@pytest.mark.parametrize("front_matter", ["{", "[1]", "language: {a: 1}\ndatasets: 3", "language: &a [*a]"])
def test_a_parents_card_that_cannot_be_read_is_passed_over(front_matter, tiny_model, processor, shapes, tmp_path):
    (tmp_path / "README.md").write_text(f"---\n{front_matter}\n---\n")
    tiny_model.name_or_path = str(tmp_path)
    trainer = make_trainer(tiny_model, processor, shapes, tmp_path / "out")
    assert model_card(trainer, "tiny").data.language == ["en", "de", "zh"]


@pytest.mark.slow
def test_weights_that_are_saved_are_evaluated(recipe, tmp_path, monkeypatch):
    options = ("--max_steps", 3, "--eval_strategy", "steps", "--eval_steps", 2)
    call(train_pretrain, recipe, *options, monkeypatch=monkeypatch)
    card = ModelCard.load(tmp_path / "pretrain/README.md")
    assert "On shapes, split validation, 6 pictures" in card.text and "The figures above" in card.text
    assert {"recall", "mrv"} == {result.metric_type for result in card.data.eval_results}


@pytest.mark.slow
def test_images_set_aside_for_validation_are_evaluated(recipe, tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    rows = []
    for number in range(12):
        Image.new("RGB", (32, 32), (20 * number, 0, 0)).save(tmp_path / f"photos/{number}.png")
        rows.append({"file_name": f"{number}.png", "en": f"red {number}", "de": f"rot {number}"})
    (tmp_path / "photos/metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    recipe.write_text(yaml.safe_dump({**RECIPE, "dataset_config": None, "output_dir": str(tmp_path / "out")}))
    options = ("--dataset", tmp_path / "photos", "--validation_fraction", 0.3, "--languages", "en", "de")
    call(train_pretrain, recipe, *options, monkeypatch=monkeypatch)
    card = ModelCard.load(tmp_path / "out/README.md")
    assert "On photos, split validation" in card.text and card.data.eval_results
    assert card.data.datasets is None and str(tmp_path) not in card.text


def test_evaluations_of_other_weights_are_not_reported(tiny_model, processor, shapes, tmp_path):
    trainer = make_trainer(tiny_model, processor, shapes, tmp_path)
    trainer.state.global_step = 3
    trainer.state.log_history = [{"step": 2, "eval_mean_recall": 50.0}]
    assert "Not evaluated in this run" in model_card(trainer, "tiny").text
    trainer.eval_dataset = {name: shapes.select(range(2)) for name in ("photographs", "scenes")}
    trainer.state.log_history += [
        {"step": 3, f"eval_{name}_mean_recall": value, f"eval_{name}_recall_en": value}
        for name, value in (("photographs", 61.0), ("scenes", 62.0))
    ]
    text = model_card(trainer, "tiny").text
    assert "| en | 61.00 |" in text and "| en | 62.00 |" in text and "50.00" not in text


@pytest.mark.parametrize("dataset", ["{folder}", "s3://bucket/photos", "{folder}/*.parquet"])
def test_a_path_is_not_told(dataset, tiny_model, processor, shapes, tmp_path):
    (tmp_path / "photos").mkdir()
    trainer = make_trainer(tiny_model, processor, shapes, tmp_path / "out")
    trainer.recipe = {"dataset": dataset.format(folder=tmp_path / "photos")}
    card = model_card(trainer, "tiny")
    assert card.data.datasets is None and str(tmp_path) not in card.text and "bucket" not in card.text
    trainer.recipe = {"dataset": "lab/photos"}
    assert model_card(trainer, "tiny").data.datasets == ["lab/photos"]
