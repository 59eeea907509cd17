"""Two processes on a batch give the loss and the gradients of one process on the whole batch."""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from conftest import ROOT
from distributed_worker import contrastive_gradients
from test_training import RECIPE


def run(*command, tmp_path: Path) -> subprocess.CompletedProcess:
    # One thread per process: two processes whose threads wait for each other's cores are many times slower.
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
        "HF_DATASETS_CACHE": str(tmp_path / "datasets"),
    }
    command = [sys.executable, *map(str, command)]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert finished.returncode == 0, finished.stderr[-2000:]
    return finished


def torchrun(*command, tmp_path: Path) -> subprocess.CompletedProcess:
    launcher = "-m torch.distributed.run --nproc_per_node 2 --rdzv_backend c10d --rdzv_endpoint localhost:0"
    return run(*launcher.split(), *command, tmp_path=tmp_path)


@pytest.mark.parametrize(("ragged", "doubled"), [(False, False), (True, True)], ids=["full", "ragged, image twice"])
def test_contrastive_loss_and_gradients_are_exact(tmp_path, ragged, doubled):
    what = ["ragged"] * ragged + ["doubled"] * doubled
    run(ROOT / "tests" / "distributed_worker.py", "gradients", tmp_path, *what, tmp_path=tmp_path)
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


def test_one_two_and_four_processes_follow_the_same_trajectory(tmp_path):
    """Losses, temperature and parameters, ragged K included; `distributed_worker.py 20` is the longer form."""
    finished = run(ROOT / "tests" / "distributed_worker.py", 4, tmp_path=tmp_path)
    assert float(finished.stdout.splitlines()[-1]) < 1e-4


def test_pretraining_on_two_processes(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(RECIPE | {"output_dir": str(tmp_path / "out"), "logging_steps": 1}))
    finished = torchrun(ROOT / "train_pretrain.py", recipe, tmp_path=tmp_path)
    assert (tmp_path / "out" / "model.safetensors").exists()
    assert "contrastive_loss" in finished.stdout and "images_per_second" in finished.stdout


def test_ranks_of_two_processes_are_those_of_one(processor, tmp_path):
    processor.save_pretrained(tmp_path / "processor")
    worker = ROOT / "tests" / "retrieval_worker.py"
    torchrun(worker, tmp_path / "processor", tmp_path, tmp_path=tmp_path)
    run(worker, tmp_path / "processor", tmp_path, tmp_path=tmp_path)
    one, *two = (pd.read_parquet(tmp_path / name) for name in ("1-0.parquet", "2-0.parquet", "2-1.parquet"))
    for ranks in two:
        pd.testing.assert_frame_equal(ranks, one)
