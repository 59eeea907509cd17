"""Two processes on a batch give the loss and the gradients of one process on the whole batch."""

import pandas as pd
import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from conftest import ROOT
from distributed_worker import contrastive_gradients
from processes import run_script
from tiny import RECIPE

WORKER = ROOT / "tests" / "distributed_worker.py"


@pytest.mark.slow
@pytest.mark.parametrize(
    "what", [(), ("ragged", "doubled"), ("ragged", "doubled", "alone", "sigmoid")], ids=" and ".join
)
def test_contrastive_loss_and_gradients_are_exact(tmp_path, what):
    run_script(tmp_path / "log", WORKER, "gradients", tmp_path, *what)
    two = torch.load(tmp_path / "result.pt", weights_only=True)
    one = contrastive_gradients(str(tmp_path), **{"ragged": False, "doubled": False} | dict.fromkeys(what, True))
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


def test_launch_files_are_read_by_accelerate():
    files = {path.stem: load_config_from_file(str(path)) for path in (ROOT / "configs" / "accelerate").glob("*.yaml")}
    assert files["fsdp2"].fsdp_config["fsdp_version"] == 2
    processes = {name: (config.num_machines, config.num_processes) for name, config in files.items()}
    assert processes == {"cpu": (1, 1), "2xA100": (1, 2), "4xV100": (1, 4), "nodes": (2, 16), "fsdp2": (1, 8)}
    assert (files["4xV100"].mixed_precision, files["2xA100"].mixed_precision) == ("fp16", "bf16")


@pytest.mark.slow
def test_ranks_of_two_processes_are_those_of_one(processor, tmp_path):
    processor.save_pretrained(tmp_path / "processor")
    worker = ROOT / "tests" / "retrieval_worker.py"
    for processes in (1, 2):
        run_script(tmp_path / "log", worker, tmp_path / "processor", tmp_path, processes=processes)
    one, *two = (pd.read_parquet(tmp_path / name) for name in ("1-0.parquet", "2-0.parquet", "2-1.parquet"))
    for ranks in two:
        pd.testing.assert_frame_equal(ranks, one)
