"""Training scripts from end to end, and mistakes in recipes."""

import json
import math
import multiprocessing
from pathlib import Path

import datasets
import pytest
import torch
import yaml
from conftest import ROOT
from tiny import RECIPE, call, make_rows

import data_scripts
import eval_mrv
import train_pretrain
import train_retrieval
from ccrk import CCRKForImageTextRetrieval, CCRKForPreTraining, CCRKModel, CCRKProcessor
from ccrk.arguments import parse_recipe
from ccrk.build import build_trainer, check_settings, run

CONTRADICTED = RECIPE["config"] | {"vision_config": RECIPE["config"]["vision_config"] | {"image_size": 64}}


@pytest.mark.slow
@pytest.mark.figures
def test_pretrain_finetune_evaluate(recipe, tmp_path, monkeypatch, capsys):
    call(train_pretrain, recipe, monkeypatch=monkeypatch)
    folder = tmp_path / "pretrain"
    assert {"config.json", "model.safetensors", "tokenizer.json", "processing_ccrk.py"} <= {
        path.name for path in folder.iterdir()
    }
    pretrained = CCRKForPreTraining.from_pretrained(folder)
    assert pretrained.config.mask_token_id == pretrained.config.text_config.vocab_size - 1

    fine = tmp_path / "finetune"
    call(
        train_retrieval,
        recipe,
        *(
            "--model_name_or_path",
            folder,
            "--languages",
            "en",
            "--output_dir",
            fine,
            "--max_steps",
            1,
            "--max_words",
            9,
        ),
        monkeypatch=monkeypatch,
    )
    _, info = CCRKForImageTextRetrieval.from_pretrained(fine, output_loading_info=True)
    assert not any(info.values())

    out = tmp_path / "out"
    call(
        eval_mrv,
        *("--model", fine, "--task", "shapes", "--languages", "en", "zh", "--split", "test", "--k_test", 4),
        *("--max_rows", 12, "--output_dir", out),
        monkeypatch=monkeypatch,
    )
    results = json.loads((out / "results.json").read_text())
    contract = ["task", "split", "model", "k_test", "languages", "recall", "mrv", "counts"]
    assert list(results)[: len(contract)] == contract
    further = {"intervals", "parameters", "milliseconds_per_query"}
    assert further | {"chance", "equal_images", "cut_captions", "trained_on"} == set(results) - set(contract)
    assert (results["task"], results["split"], results["k_test"]) == ("shapes", "test", 4)
    assert results["languages"] == ["en", "zh"]
    (run,) = results["trained_on"]["runs"]  # the same images in both stages
    assert (run["data"], run["images"], run["overlap"]) == ("shapes", 40, results["trained_on"]["images"])
    assert list(results["recall"]["zh"]) == ["IR@1", "IR@5", "IR@10", "TR@1", "TR@5", "TR@10", "mean"]
    assert results["mrv"]["languages"] == ["en", "zh"] and results["mrv"]["mean"]["std"] >= 0
    assert results["counts"]["images"] == 12 and results["counts"]["captions"] == {"en": 12, "zh": 12}
    table = datasets.Dataset.from_parquet(str(out / "ranks.parquet"), cache_dir=str(tmp_path / "cache"))
    assert len(table) == 2 * 2 * 12
    assert (out / "report.html").stat().st_size > 10_000 and not (out / "encoded").exists()
    assert CCRKProcessor.from_pretrained(fine).max_words == 9
    printed = capsys.readouterr().out
    assert "MRV over en zh" in printed and printed.count("\nzh ") == 1


@pytest.mark.slow
@pytest.mark.parametrize("script", [train_pretrain, train_retrieval])
def test_starting_from_encoders(script, swin_folder, processor, recipe, tmp_path, monkeypatch):
    from transformers import XLMRobertaConfig, XLMRobertaForMaskedLM

    sizes = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32}
    text = XLMRobertaConfig(
        vocab_size=len(processor.tokenizer), max_position_embeddings=50, type_vocab_size=1, **sizes
    )
    XLMRobertaForMaskedLM(text).save_pretrained(tmp_path / "xlmr")
    processor.tokenizer.save_pretrained(tmp_path / "xlmr")
    recipe.write_text(
        yaml.safe_dump(
            RECIPE
            | {
                "output_dir": str(tmp_path / "out"),
                "vision_model": str(swin_folder),
                "text_model": str(tmp_path / "xlmr"),
                "config": {"projection_dim": 8},
                "image_size": 32,  # the image encoder's is 64
            }
        )
    )
    call(script, recipe, monkeypatch=monkeypatch)
    model = CCRKModel.from_pretrained(tmp_path / "out")
    assert (model.config.num_fusion_layers, model.config.position_ids_start) == (1, 0)
    assert (model.config.vision_config.image_size, model.config.vision_config.window_size) == (32, 2)
    assert "Started from: swin and xlmr" in (tmp_path / "out" / "README.md").read_text()
    head = "CCRKForPreTraining" if script is train_pretrain else "CCRKForImageTextRetrieval"
    assert json.loads((tmp_path / "out" / "config.json").read_text())["architectures"] == [head]


def test_help_is_short_and_complete(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        call(train_pretrain, "--help", monkeypatch=monkeypatch)
    text = capsys.readouterr().out
    assert "accelerate launch train_pretrain.py" in text and "--languages" in text and "--learning_rate" in text
    assert "--fsdp " not in text and len(text.splitlines()) < 150
    with pytest.raises(SystemExit):
        call(train_pretrain, "--help_all", monkeypatch=monkeypatch)
    assert "--fsdp " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"languages": ["en", "xx"]}, "'xx'"),
        ({"dataset": "imagenet"}, "there is no data set, file or folder 'imagenet'; .*known are shapes"),
        ({"datasets": "shapes"}, "unknown argument datasets"),
        ({"augmentation": "Published"}, "augmentation is 'Published'; choose one of none, published"),
        ({"per_device_train_batch_size": 64, "rows": "images"}, "40 rows do not fill one batch of 64"),
        ({"config": {}}, "there is nothing to start from"),
        ({"config": {"text_config": {"vocab_size": 400, "hidden_size": 30}}}, "is not a multiple"),
        ({"image_size": None}, "image_size is missing"),
        ({"image_size": 32, "config": CONTRADICTED}, r"image_size is 32, but config\.vision_config\.image_size 64"),
        ({"vision_model": "swin"}, "give both, or neither"),
        ({"dataset": "multi30k", "dataset_config": None, "languages": ["en"]}, "data_dir"),
        ({"model_name_or_path": "no/such/folder/here"}, "no/such/folder/here"),
    ],
)
@pytest.mark.parametrize("script", [train_pretrain, train_retrieval])
def test_mistakes_in_a_recipe_end_in_one_line(script, changes, message, recipe, monkeypatch):
    recipe.write_text(yaml.safe_dump(yaml.safe_load(recipe.read_text()) | changes))
    with pytest.raises(SystemExit, match=message) as raised:
        call(script, recipe, monkeypatch=monkeypatch)
    assert str(raised.value).startswith("error: ") and "\n" not in str(raised.value).strip()


def config(part: str | None = None, **fields) -> dict:
    """RECIPE's configuration with other fields, of a part of it or its own."""
    whole = RECIPE["config"]
    return {"config": whole | (fields if part is None else {part: whole[part] | fields})}


# What the line says after the recipe's name.
WRONG_VALUES = [
    ({"max_steps": "two"}, "max_steps is 'two' .invalid literal"),
    ({"max_steps": 2.5}, "max_steps is 2.5, not of the kind int"),
    ({"max_steps": True}, "max_steps is True, not of the kind int"),
    ({"max_steps": [1]}, r"max_steps is \[1\], not of the kind int"),
    ({"max_steps": 0}, "max_steps is 0; it must be at least 1, or -1"),
    ({"learning_rate": "fast"}, "learning_rate is 'fast' .could not convert"),
    ({"learning_rate": -1}, "learning_rate is -1; it must be at least 0"),
    ({"learning_rate": math.nan}, "learning_rate is nan; it must be at least 0"),
    ({"learning_rate": math.inf}, "learning_rate is inf; it must be at least 0"),
    ({"per_device_train_batch_size": None}, "per_device_train_batch_size is None, not of the kind int"),
    ({"per_device_train_batch_size": 0}, "per_device_train_batch_size is 0; it must be at least 1"),
    ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps is 0; it must be at least 1"),
    ({"num_train_epochs": -3}, "num_train_epochs is -3; it must be above 0"),
    ({"seed": 2.5}, "seed is 2.5, not of the kind int"),
    ({"seed": 2**40}, "seed is 1099511627776; it must be from 0 to 4294967295"),
    ({"adam_beta2": 1.0}, "adam_beta2 is 1.0; it must be at least 0 and below 1"),
    ({"max_grad_norm": -1}, "max_grad_norm is -1; it must be at least 0"),
    ({"save_steps": 0}, "save_steps is 0; it must be above 0"),
    ({"optim": "adam"}, "optim is 'adam'; choose one of adamw_torch"),
    ({"optim": "adamw_troch"}, "optim is 'adamw_troch'; choose one of .*; did you mean 'adamw_torch'"),
    ({"bf16": "ture"}, "bf16 is 'ture' .Truthy value expected.*; did you mean 'true'"),
    ({"learing_rate": 1}, "unknown argument learing_rate; did you mean 'learning_rate'"),
    ({"use_cpu": 3}, "use_cpu is 3, not of the kind bool"),
    ({"enable_jit_checkpoint": "x"}, "enable_jit_checkpoint is 'x' .Truthy value expected"),
    ({"output_dir": 3}, "output_dir is 3, not of the kind str"),
    ({"output_dir": ""}, "output_dir is empty"),
    ({"dataset": [1]}, r"dataset is \[1\], not of the kind str"),
    ({"languages": "en"}, "languages is 'en', not of the kind list"),
    ({"languages": ["en", 3]}, r"languages is .*, not of the kind list"),
    ({"optim_args": "betas=1"}, "optim_args has no effect on optim adamw_torch"),
    ({"dataset_config": {3: 4}}, "dataset_config has the name 3; put it in quotes"),
    ({"max_train_rows": 0}, "max_train_rows is 0; it must be at least 1"),
    ({"max_bad_fraction": 2}, "max_bad_fraction is 2; it must be from 0 to 1"),
    ({"crop_min_scale": math.nan}, "crop_min_scale is nan; it must be from 0 to 1"),
    ({"image_size": -64}, "image_size is -64; it must be from 1 to"),
    ({"image_size": 10**6}, "image_size is 1000000; it must be from 1 to"),
    ({"max_words": 0}, "max_words is 0; it must be at least 1"),
    ({"max_length": 1}, "max_length is 1; it must be at least 2"),
    ({"model_name_or_path": 3}, "model_name_or_path is 3, not of the kind str"),
    ({"resume_from_checkpoint": 3}, "resume_from_checkpoint is 3, not of the kind str"),
    ({"dataloader_num_workers": -1}, "dataloader_num_workers is -1; it must be at least 0"),
    ({"metric_for_best_model": 3}, "metric_for_best_model is 3, not of the kind str"),
    ({"lr_scheduler_kwargs": "x"}, "lr_scheduler_kwargs is 'x' .'x' is no JSON"),
    ({"accelerator_config": {"nope": 1}}, "unexpected keyword argument 'nope'"),
    ({1: 2}, "unknown argument 1"),
    ({"help": True}, "unknown argument help"),
    (config(nope=1), "config has no nope; a CCRKConfig has "),
    (config(text_config=None), "config.text_config is None, not a mapping"),
    (config("text_config", num_attention_heads=0), "text_config.num_attention_heads is 0; it must be at least 1"),
    (config("text_config", num_hidden_layers=-1), "text_config.num_hidden_layers is -1; it must be at least 1"),
    (config("text_config", nope=1), "config.text_config has no nope; a XLMRobertaConfig has "),
    (config("vision_config", num_heads=[0, 0]), r"vision_config.num_heads is \[0, 0\]; it must be at least 1"),
    (config("vision_config", depths=[1, -1]), r"vision_config.depths is \[1, -1\]; it must be at least 1"),
    (config("vision_config", window_size=0), "vision_config.window_size is 0; it must be at least 1"),
]


# What is seen once the model is made; before the first step.
WRONG_SETTINGS = [
    (config("text_config", hidden_act="nope"), "config: 'nope'"),
    (config("text_config", pad_token_id=10**6), "config: Padding_idx must be within"),
    (config("text_config", vocab_size=5), "vocab_size is 5, but the characters of the captions alone need"),
    (config("vision_config", num_channels=1), "image_size 64 or config: Given groups=1, weight of size"),
    (config("vision_config", window_size=17), "image_size 64 or config: The size of tensor a"),
    ({"image_size": 1}, "image_size 1 or config: "),
    ({"optim": "sgd", "optim_args": "x"}, "optim sgd, optim_args x: not enough values to unpack"),
    ({"torch_compile_mode": "nope"}, "torch_compile_mode nope: Unrecognized mode"),
    ({"lr_scheduler_kwargs": {"nope": 1}}, "lr_scheduler_type linear, lr_scheduler_kwargs {'nope': 1}: "),
    ({"dataset_config": {"num_train": 0}}, "shapes has no rows in its split train"),
]


@pytest.mark.parametrize(
    ("changes", "message"),
    [*((changes, f"recipe.yaml: .*{message}") for changes, message in WRONG_VALUES), *WRONG_SETTINGS],
)
def test_wrong_values_end_in_one_line_before_the_first_step(changes, message, recipe, tmp_path, monkeypatch):
    recipe.write_text(yaml.safe_dump(yaml.safe_load(recipe.read_text()) | changes))
    with pytest.raises(SystemExit, match=f"^error: .*{message}") as raised:
        call(train_pretrain, recipe, monkeypatch=monkeypatch)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "pretrain").exists() or not any((tmp_path / "pretrain").iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("recipe.yaml --learing_rate 1", "unknown argument --learing_rate; did you mean '--learning_rate'"),
        ("recipe.yaml --learing_rate=1", "unknown argument --learing_rate=1; did you mean '--learning_rate'"),
        ("recipe.yaml --captions-per-imag all", "did you mean '--captions_per_image'"),
        ("recipe.yaml --zzz 1", "unknown argument --zzz; --help_all lists those that exist"),
        ("recipe.yaml --bf16 Treu", "argument --bf16: Truthy value expected: got Treu .*; did you mean 'true'"),
        ("recipe.yaml --captions_per_image al", "'al' is not one of one, all; did you mean 'all'"),
        ("recipe.yaml --lr_scheduler_type linaer", "'linaer' is not one of .*; did you mean 'linear'"),
        ("recipe.yaml --learning_rate fast", "argument --learning_rate: invalid float value: 'fast'"),
        ("recpie.yaml", "recipe recpie.yaml does not exist; did you mean 'recipe.yaml'"),
        ("recipe.yml", "recipe recipe.yml does not exist; did you mean 'recipe.yaml'"),
        ("recipe", "recipe recipe does not exist; did you mean 'recipe.yaml'"),
        ("../hree/recipe.yaml", "recipe ../hree/recipe.yaml does not exist; did you mean '../here/recipe.yaml'"),
        ("nothing.yaml", "recipe nothing.yaml does not exist; give a YAML file"),
        (".", "Is a directory: '.'"),
        ("--seed 1 recipe.yaml", "recipe.yaml does not belong to an option; put the recipe first"),
        ("recipe.yaml --model_name_or_path modle", "there is no folder modle; did you mean 'model'"),
        ("recipe.yaml --model_name_or_path ../hree/modle", "did you mean '../here/model'"),
    ],
)
def test_what_is_nearly_right_on_the_command_line_is_named(arguments, message, recipe, tmp_path, monkeypatch, capsys):
    (tmp_path / "here" / "model").mkdir(parents=True)
    (tmp_path / "here" / "recipe.yaml").write_text(recipe.read_text())
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(SystemExit, match=f"^error: .*{message}") as raised:
        call(train_retrieval, *arguments.split(), monkeypatch=monkeypatch)
    assert "\n" not in str(raised.value) and not capsys.readouterr().err


def test_a_recipe_that_comes_along_is_named(monkeypatch):
    monkeypatch.chdir(ROOT)
    for name in ("configs/shapes_fintune.yaml", "shapes_finetune.yaml", "config/shapes_finetune"):
        with pytest.raises(SystemExit, match=r"did you mean 'configs/shapes_finetune\.yaml'"):
            call(train_retrieval, name, monkeypatch=monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_pictures_that_cannot_be_read_end_a_run_in_one_line(workers, recipe, monkeypatch, capsys):
    argv = [str(recipe), "--dataloader_num_workers", str(workers)]
    trainer = build_trainer(*parse_recipe("", recipe, argv), CCRKForPreTraining)
    damaged = [{"bytes": b"no picture", "path": None}] * len(trainer.train_dataset)
    features = trainer.train_dataset.features
    trainer.train_dataset = trainer.train_dataset.remove_columns("image").add_column("image", damaged).cast(features)
    with pytest.raises(SystemExit, match=r"^error: no image of a batch of 8 can be read .*8  not an image") as raised:
        run(trainer)
    assert "\n" not in str(raised.value) and "Traceback" not in str(raised.value)
    for child in multiprocessing.active_children():  # which leave SIGTERM to their parent only while it trains
        child.terminate()  # as Python does at its end, and waits
        child.join(20)
        assert child.exitcode == 0


@pytest.mark.slow
def test_it_says_what_a_model_has_no_positions_for_and_what_it_cannot_learn_with(
    recipe, tmp_path, monkeypatch, caplog
):
    call(train_pretrain, recipe, "--max_length", 1000, "--negatives_queue", 8, monkeypatch=monkeypatch)
    assert "negatives_queue: from scratch nothing was learnt with it" in caplog.text
    assert "positions for 48 tokens: captions keep so many, not max_length 1000" in caplog.text
    assert CCRKProcessor.from_pretrained(tmp_path / "pretrain").max_length == 48


def test_checking_leaves_no_trace(recipe, monkeypatch):
    """The model is tried, the optimizer and the schedule made, and nothing of it shows in the run."""
    argv = [str(recipe), "--lr_scheduler_type", "cosine"]
    trainer = build_trainer(*parse_recipe("", recipe, argv), CCRKForPreTraining)
    state = torch.get_rng_state()
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    check_settings(trainer)
    assert torch.equal(state, torch.get_rng_state()) and trainer.model.training
    assert trainer.optimizer is None and trainer.lr_scheduler is None
    assert all(torch.equal(before[name], tensor) for name, tensor in trainer.model.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize("text", ["- a list", "a: [1", "a: " + "[" * 3000])
def test_a_recipe_that_is_no_mapping(text, recipe, monkeypatch):
    recipe.write_text(text)
    with pytest.raises(SystemExit, match=r"recipe\.yaml"):
        call(train_pretrain, recipe, monkeypatch=monkeypatch)


@pytest.fixture
def swin_folder(tmp_path) -> Path:
    from transformers import SwinConfig, SwinModel

    config = SwinConfig(image_size=64, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4)
    SwinModel(config).save_pretrained(tmp_path / "swin")
    return tmp_path / "swin"


def test_checkpoints_that_scripts_cannot_use(recipe, swin_folder, tiny_model, processor, tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match="swin is a SwinModel, which embeds no images and captions"):
        call(train_retrieval, recipe, "--model_name_or_path", swin_folder, monkeypatch=monkeypatch)
    evaluation = ("--task", "shapes", "--languages", "en", "--output_dir", tmp_path / "out", "--max_rows", 4)
    monkeypatch.setattr(data_scripts, "load", lambda *_, **__: make_rows([[3], [4], [5], [2]]))
    with pytest.raises(SystemExit, match="is a SwinModel, which embeds no images and captions; give a CCRK"):
        call(eval_mrv, "--model", swin_folder, *evaluation, monkeypatch=monkeypatch)
    tiny_model.ccrk.save_pretrained(tmp_path / "base")
    processor.save_pretrained(tmp_path / "base")
    with pytest.raises(SystemExit, match="no matching head; rank with --no_rerank, or fine-tune it first"):
        call(eval_mrv, "--model", tmp_path / "base", *evaluation, monkeypatch=monkeypatch)
    call(eval_mrv, "--model", tmp_path / "base", *evaluation, "--no_rerank", monkeypatch=monkeypatch)
    assert json.loads((tmp_path / "out" / "results.json").read_text())["k_test"] == 0
