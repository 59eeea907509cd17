"""Two processes on a batch give the loss and the gradients of one process on the whole batch."""

import json
import os
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from conftest import ROOT
from distributed_worker import contrastive_gradients
from processes import run_script
from safetensors.torch import load_file
from tiny import RECIPE

from ccrk.training.arguments import CCRKTrainingArguments

WORKER = ROOT / "tests" / "distributed_worker.py"


@pytest.mark.slow
@pytest.mark.parametrize(("ragged", "doubled"), [(False, False), (True, True)], ids=["full", "ragged, image twice"])
def test_contrastive_loss_and_gradients_are_exact(tmp_path, ragged, doubled):
    what = ["ragged"] * ragged + ["doubled"] * doubled
    run_script(tmp_path / "log", WORKER, "gradients", tmp_path, *what)
    two = torch.load(tmp_path / "result.pt", weights_only=True)
    one = contrastive_gradients(str(tmp_path), ragged, doubled)
    assert (two["world"], one["world"]) == (2, 1)
    assert two["loss"].item() == pytest.approx(one["loss"].item(), rel=1e-5)
    checked = 0
    for name, expected in one["gradients"].items():
        difference = (two["gradients"][name] - expected).norm() / expected.norm().clamp(min=1e-8)
        # The bias of a key shifts all scores of a row alike: its gradient is 0 but for rounding.
        if "k_proj.bias" in name or "key.bias" in name:
            assert expected.norm() < 1e-6
            continue
        assert difference < 1e-5, (name, difference)
        checked += expected.norm() > 0
    assert checked > 60


@pytest.mark.slow
def test_one_two_and_four_processes_follow_the_same_trajectory(tmp_path):
    """Losses, temperature and parameters, ragged K included; `distributed_worker.py 20` is the longer form."""
    printed = run_script(tmp_path / "log", WORKER, 4)
    assert float(printed.splitlines()[-1]) < 1e-4


@pytest.mark.slow
def test_pretraining_on_two_processes(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(RECIPE | {"output_dir": str(tmp_path / "out"), "logging_steps": 1}))
    printed = run_script(tmp_path / "log", ROOT / "train_pretrain.py", recipe, processes=2)
    assert (tmp_path / "out" / "model.safetensors").exists()
    assert "contrastive_loss" in printed and "images_per_second" in printed


@pytest.mark.slow
@pytest.mark.skipif(find_spec("deepspeed") is None, reason="deepspeed is not installed")
@pytest.mark.skipif(shutil.which("g++") is None, reason="DeepSpeed compiles its collectives for CPUs; there is no g++")
def test_zero_trains_as_ddp_does(tmp_path, monkeypatch):
    """Ten steps from scratch with the files of configs/deepspeed; ZeRO-3 then saves whole tensors."""
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)  # of ninja
    recipe = tmp_path / "recipe.yaml"
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = RECIPE["config"] | {"text_config": RECIPE["config"]["text_config"] | dropout}
    changes = {"config": config, "max_steps": 10, "logging_steps": 1, "learning_rate": 1e-3}
    recipe.write_text(yaml.safe_dump(RECIPE | changes))

    def train(name: str, *arguments) -> tuple[list[dict], dict[str, torch.Tensor]]:
        output = tmp_path / f"{name}.out"
        script = ROOT / "train_pretrain.py"
        run_script(tmp_path / name, script, recipe, "--output_dir", output, *arguments, processes=2)
        logs = json.loads((output / "trainer_state.json").read_text())["log_history"]
        return [log for log in logs if "mlm_loss" in log], load_file(output / "model.safetensors")

    expected_logs, expected = train("ddp")
    assert len(expected_logs) == 10 and expected_logs[-1]["loss"] < expected_logs[0]["loss"] - 0.1
    for stage in (2, 3):
        logs, parameters = train(f"zero{stage}", "--deepspeed", ROOT / f"configs/deepspeed/zero{stage}.json")
        for log, other in zip(expected_logs, logs, strict=True):
            for part in ("loss", "contrastive_loss", "matching_loss", "mlm_loss", "temperature", "grad_norm"):
                assert other[part] == pytest.approx(log[part], rel=1e-3), (stage, log["step"], part)
        assert expected.keys() <= parameters.keys()  # ZeRO-2 writes the tied word embeddings twice
        for name, tensor in expected.items():
            # The bias of a key has a gradient of 0 but for rounding, of which AdamW makes whole steps.
            if not name.endswith(("k_proj.bias", "key.bias")):
                torch.testing.assert_close(parameters[name], tensor, rtol=1e-3, atol=1e-4)


def test_fsdp_is_refused(tmp_path, monkeypatch):
    message = r"FSDP is not supported; --deepspeed .*zero3\.json"
    with pytest.raises(ValueError, match=message):
        CCRKTrainingArguments(output_dir=str(tmp_path), fsdp=True)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")  # as accelerate launch sets it
    with pytest.raises(ValueError, match=message):
        CCRKTrainingArguments(output_dir=str(tmp_path))


def test_launch_files_are_read_by_accelerate():
    files = {path.stem: load_config_from_file(str(path)) for path in (ROOT / "configs" / "accelerate").glob("*.yaml")}
    processes = {name: (config.num_machines, config.num_processes) for name, config in files.items()}
    assert processes == {"cpu": (1, 1), "2xA100": (1, 2), "4xV100": (1, 4), "nodes": (2, 16)}
    assert (files["4xV100"].mixed_precision, files["2xA100"].mixed_precision) == ("fp16", "bf16")


def test_ranks_of_two_processes_are_those_of_one(processor, tmp_path):
    processor.save_pretrained(tmp_path / "processor")
    worker = ROOT / "tests" / "retrieval_worker.py"
    for processes in (1, 2):
        run_script(tmp_path / "log", worker, tmp_path / "processor", tmp_path, processes=processes)
    one, *two = (pd.read_parquet(tmp_path / name) for name in ("1-0.parquet", "2-0.parquet", "2-1.parquet"))
    for ranks in two:
        pd.testing.assert_frame_equal(ranks, one)
