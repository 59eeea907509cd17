"""The recipes of configs/ train: each on tiny files of its data set, in the layout of its publisher."""

import json
from pathlib import Path

import datasets
import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file
from test_coco import coco as coco_files  # noqa: F401, a fixture
from test_multi30k import release as multi30k_files  # noqa: F401, a fixture
from test_pretraining_data import folder as shards  # noqa: F401, a fixture
from test_wit import iglue as wit_files  # noqa: F401, a fixture
from test_xflickrco import iglue as xflickrco_files  # noqa: F401, a fixture
from tiny import call
from torch.testing import assert_close
from transformers import get_scheduler

import train_pretrain
import train_retrieval
from ccrk.arguments import DataArguments, parse_recipe
from ccrk.build import load_rows
from ccrk.training.trainer import CCRKTrainer
from data_scripts.caption_rows import CaptionRows
from modeling_ccrk import CCRKForImageTextRetrieval

RECIPES = sorted(path.stem for path in (ROOT / "configs").glob("*.yaml"))


@pytest.fixture
def checkpoint(tiny_model, processor, tmp_path) -> Path:
    tiny_model.save_pretrained(tmp_path / "checkpoint")
    processor.save_pretrained(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def small(folder: Path, data_dir: Path, image_dir: Path, output: str = "out") -> list:
    """The arguments that make a published recipe small enough for a test."""
    arguments = {"data_dir": data_dir, "image_dir": image_dir, "image_size": 64, "output_dir": folder / output}
    arguments |= {"per_device_train_batch_size": 1, "num_train_epochs": 2, "dataloader_num_workers": 0}
    arguments |= {"use_cpu": "true", "disable_tqdm": "true", "report_to": "none"}
    return [text for name, value in arguments.items() for text in (f"--{name}", value)]


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_parse(name):
    path = ROOT / "configs" / f"{name}.yaml"
    data, model, arguments = parse_recipe("", path, [str(path)])
    assert Path(arguments.output_dir).parts[0] == "outputs"
    if name.startswith("finetune_"):
        assert (data.languages, model.image_size, arguments.warmup_steps) == (["en"], 384, 0.1)
        assert arguments.per_device_train_batch_size * 4 == (80 if data.dataset == "wit" else 64)
    if name.startswith("pretrain_"):
        assert (data.dataset_config, model.image_size) == ({"preset": name[-2:]}, 224)
        assert arguments.per_device_train_batch_size * 2 == 128


@pytest.mark.slow
@pytest.mark.parametrize(
    ("data", "data_dir", "image_dir"),
    [
        ("multi30k", "m30k", "photographs"),
        ("coco", "annotations", "images"),
        ("xflickrco", "iglue", "images"),
        ("wit", "iglue", "pixels"),
    ],
)
def test_fine_tuning_keeps_the_best_checkpoint(data, data_dir, image_dir, checkpoint, request, monkeypatch):
    folder = request.getfixturevalue(f"{data}_files")
    arguments = small(folder, folder / data_dir, folder / image_dir)
    recipe = ROOT / "configs" / f"finetune_{data}.yaml"
    call(train_retrieval, recipe, "--model_name_or_path", checkpoint, *arguments, monkeypatch=monkeypatch)
    results = json.loads((folder / "out" / "train_results.json").read_text())
    state = json.loads((folder / "out" / "trainer_state.json").read_text())
    recalls = [log["eval_mean_recall"] for log in state["log_history"] if "eval_mean_recall" in log]
    assert len(recalls) == 2 and results["best_mean_recall"] == max(recalls)
    best = Path(results["best_checkpoint"])
    assert_close(
        load_file(folder / "out" / "model.safetensors"), load_file(best / "model.safetensors"), rtol=0, atol=0
    )


@pytest.mark.slow
def test_a_language_without_validation_captions_is_not_evaluated(coco_files, checkpoint, monkeypatch, caplog):
    recipe = [ROOT / "configs" / "finetune_coco.yaml", "--model_name_or_path", checkpoint]
    recipe += small(coco_files, coco_files / "annotations", coco_files / "images")
    call(train_retrieval, *recipe, "--languages", "en", "zh", "ja", monkeypatch=monkeypatch)
    state = json.loads((coco_files / "out" / "trainer_state.json").read_text())
    log = next(log for log in state["log_history"] if "eval_mean_recall" in log)
    assert {name for name in log if "_recall_" in name} == {"eval_recall_en", "eval_recall_zh"}
    assert caplog.text.count("no validation captions in ja: evaluation is in en zh alone") == 1
    with pytest.raises(SystemExit, match="error: coco validation: there are no captions in ja in this split"):
        call(train_retrieval, *recipe, "--languages", "ja", monkeypatch=monkeypatch)
    unevaluated = ("--eval_strategy", "no", "--load_best_model_at_end", "false")
    call(train_retrieval, *recipe, "--languages", "ja", *unevaluated, monkeypatch=monkeypatch)


@pytest.mark.slow
def test_few_shot_goes_on_from_english(xflickrco_files, checkpoint, monkeypatch):
    folders = xflickrco_files, xflickrco_files / "iglue", xflickrco_files / "images"
    english = ROOT / "configs" / "finetune_xflickrco.yaml"
    start = ["--model_name_or_path", checkpoint]
    call(train_retrieval, english, *start, *small(*folders, "en"), monkeypatch=monkeypatch)
    start = ["--model_name_or_path", xflickrco_files / "en", "--few_shot", "de,1"]
    few = ROOT / "configs" / "few_shot_xflickrco.yaml"
    call(train_retrieval, few, *start, *small(*folders, "de"), monkeypatch=monkeypatch)
    results = json.loads((xflickrco_files / "de" / "train_results.json").read_text())
    assert results["train_steps"] == 2 and results["train_skipped_steps"] == 0
    CCRKForImageTextRetrieval.from_pretrained(xflickrco_files / "de")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "captions", "num_rows", "steps"),
    [
        ("finetune_multi30k", {"en": [1] * 29_000}, 29_000, 453),
        ("finetune_multi30k", {name: [1] * 29_000 for name in ("en", "de", "fr", "cs")}, 116_000, 1_812),
        ("finetune_coco", {"zh": [1] * 20_000 + [0] * 100_000 + [65]}, 20_065, 313),
        ("finetune_coco", {"ja": [5] * 26_348}, 131_740, 2_058),
        ("finetune_xflickrco", {"en": [5] * 29_000}, 145_000, 2_265),
        ("few_shot_xflickrco", {"de": [1] * 100}, 100, 1),
        ("finetune_wit", {"en": [1] * 50_000}, 50_000, 625),
    ],
)
def test_published_steps_per_epoch(recipe, captions, num_rows, steps, tiny_model, tmp_path):
    """A row is a caption: the steps of the published table at the published batch (WIT's of a tenth of its rows)."""
    _, _, arguments = parse_recipe("", path := ROOT / "configs" / f"{recipe}.yaml", [str(path)])
    of_images = [[["a dog"] * count for count in counts] for counts in zip(*captions.values(), strict=True)]
    rows = CaptionRows(
        datasets.Dataset.from_dict(
            {
                "image_id": [str(image) for image in range(len(of_images))],
                "captions": [dict(zip(captions, texts, strict=True)) for texts in of_images],
            }
        )
    )
    assert len(rows) == num_rows
    arguments.per_device_train_batch_size *= 4  # devices
    arguments.eval_strategy, arguments.output_dir, arguments.use_cpu = "no", str(tmp_path), True
    trainer = CCRKTrainer(tiny_model, arguments, data_collator=list, train_dataset=rows)
    epochs = arguments.num_train_epochs
    assert trainer.steps() == (steps, steps * epochs)


def test_a_few_shots_learn_at_the_published_rates():
    """A warm-up of 12 of 120 steps, of which 60 are taken."""
    _, _, arguments = parse_recipe("", path := ROOT / "configs" / "few_shot_xflickrco.yaml", [str(path)])
    optimizer = torch.optim.AdamW(torch.nn.Linear(1, 1).parameters(), arguments.learning_rate)
    name, options = arguments.lr_scheduler_type, arguments.lr_scheduler_kwargs
    schedule = get_scheduler(name, optimizer, arguments.warmup_steps, 60, scheduler_specific_kwargs=options)
    rates = []
    for _ in range(60):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    published = [1e-6 * (step / 12 if step < 12 else (120 - step) / 108) for step in range(60)]
    assert rates == pytest.approx(published)


@pytest.mark.slow
def test_pre_training(shards, checkpoint, monkeypatch):
    arguments = small(shards.parent, shards, shards)
    arguments += [
        "--model_name_or_path",
        checkpoint,
        "--languages",
        "de",
        "en",
        "--max_steps",
        3,
        "--logging_steps",
        1,
    ]
    call(train_pretrain, ROOT / "configs" / "pretrain_2m.yaml", *arguments, monkeypatch=monkeypatch)
    results = json.loads((shards.parent / "out" / "train_results.json").read_text())
    assert results["train_steps"] == 3 and results["train_mlm_loss"] > 0


def test_mappings_on_the_command_line():
    argv = ["--config", '{"projection_dim": 8, "text_config": {"vocab_size": 9}}', "--dataset_config", '{"seed": 2}']
    data, model, _ = parse_recipe("", Path("none.yaml"), [*argv, "--output_dir", "out"])
    assert data.dataset_config == {"seed": 2}
    assert model.config == {"projection_dim": 8, "text_config": {"vocab_size": 9}}


@pytest.mark.parametrize("value", ["{", "[]", "a=1"])
def test_mappings_that_are_none(value):
    with pytest.raises(ValueError, match=r"^the command line: argument --config"):
        parse_recipe("", Path("none.yaml"), ["--config", value, "--output_dir", "out"])


def test_mappings_in_a_recipe(tmp_path):
    for value in ("[1]", "3"):
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(f"dataset_config: {value}\noutput_dir: {tmp_path}\n")
        with pytest.raises(ValueError, match=r"dataset_config is .*, not a mapping"):
            parse_recipe("", Path("none.yaml"), [str(recipe)])


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("shapes", {"seed": "2"}, "shapes: seed is '2', not of the kind int"),
        ("shapes", {"seed": True}, "shapes: seed is True"),
        ("shapes", {"translation_noise": [0]}, r"shapes: translation_noise is \[0\], not of the kind float"),
        ("shapes", {"languages": [["en"]]}, r"shapes: languages is a list of different codes .* not \[\['en'\]\]"),
        ("shapes", {"languages": 3}, "shapes: languages is a list of different codes .* not 3"),
        ("multi30k", {"task": [1]}, r"multi30k: task is \[1\], not of the kind int"),
        ("multi30k", {"max_bad_fraction": "0.5"}, "multi30k: max_bad_fraction is '0.5', not of the kind float"),
        ("multi30k", {"data_dir": 3}, "multi30k: data_dir is 3, not the path of a folder"),
        ("xflickrco", {"few_shot": 100}, r"xflickrco: few_shot is 100, not of the kind str \| None"),
        ("coco", {"fold": "0"}, "coco: fold is '0', not of the kind int"),
        ("coco", {"name": "wit"}, "name is given twice, by its own argument and in dataset_config"),
        ("coco", {"split": "train"}, "split is given twice"),
    ],
)
def test_options_of_a_data_set_that_are_wrong(name, options, message):
    with pytest.raises(ValueError, match=message):
        load_rows(DataArguments(dataset=name, dataset_config=options), "test")


def test_options_of_a_data_set_in_either_place():
    options = {"num_test": 3, "languages": ["de"], "translation_noise": 1}
    rows = load_rows(DataArguments(dataset="shapes", dataset_config=options), "test")
    assert len(rows) == 3 and list(rows.features["captions"]) == ["de"]
