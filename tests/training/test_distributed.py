"""Two processes on a batch give the loss and the gradients of one process on the whole batch."""

import pandas as pd
import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from conftest import ROOT
from distributed_worker import contrastive_gradients
from processes import run_script
from tiny import RECIPE, call
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

import data_scripts
import train_pretrain
from ccrk.processes import check_processes
from ccrk.training.arguments import CCRKTrainingArguments
from data_scripts.cli import one_line_errors

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


@pytest.mark.skipif(torch.accelerator.is_available(), reason="with an accelerator they find each other")
@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"WORLD_SIZE": "2"}, "start them with torchrun or accelerate launch, or start one and unset WORLD_SIZE"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "unset OMPI_COMM_WORLD_SIZE"),
        ({"PMI_SIZE": "2"}, "unset PMI_SIZE"),
        ({"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "1"}, "unset SLURM_STEP_NUM_TASKS"),
    ],
)
def test_processes_that_would_train_alone_are_refused(environment, message, recipe, tmp_path, monkeypatch):
    """Before data is read."""
    monkeypatch.setattr(data_scripts, "load", lambda *_, **__: pytest.fail("data was read"))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit, match=f"^error: .*each would train the same model by itself.*{message}"):
        call(train_pretrain, recipe, "--use_cpu", "false", monkeypatch=monkeypatch)
    assert not (tmp_path / "pretrain").exists()


def test_processes_of_a_launcher_for_gpus_are_refused_where_none_is_visible(tmp_path, monkeypatch):
    arguments = CCRKTrainingArguments(output_dir=str(tmp_path))
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("LOCAL_RANK", "3")
    with pytest.raises(ValueError, match=r"8 processes were started \(WORLD_SIZE\).*no GPU is visible; .*use_cpu"):
        check_processes(arguments)


@pytest.mark.parametrize(
    "environment", [{"WORLD_SIZE": "1", "LOCAL_RANK": "0"}, {"SLURM_NTASKS": "4"}, {"PMI_SIZE": ""}]
)
def test_one_process_is_not(environment, tmp_path, monkeypatch):
    """srun sets SLURM_STEP_NUM_TASKS; an allocation alone has SLURM_NTASKS, and its shell runs one process."""
    arguments = CCRKTrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    check_processes(arguments)


@pytest.mark.parametrize(("rank", "printed"), [("0", "error: no a b"), ("1", 1)])
def test_under_torchrun_an_error_is_printed_once_and_repeated_at_the_end(rank, printed, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    with pytest.raises(SystemExit) as raised, one_line_errors():
        raise ValueError("no a\nb")
    assert raised.value.code == printed
    failure = ProcessFailure(local_rank=0, pid=1, exitcode=1, error_file=str(tmp_path / "error.json"))
    assert str(ChildFailedError("script", {0: failure})).rstrip("=\n").endswith("traceback : error: no a b")


def test_an_error_that_torchrun_cannot_repeat_is_printed_by_each(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    for report in ("", str(tmp_path / "no" / "error.json")):
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", report)
        with pytest.raises(SystemExit, match=r"^error: no$"), one_line_errors():
            raise ValueError("no")


@pytest.mark.slow
def test_ranks_of_two_processes_are_those_of_one(processor, tmp_path):
    processor.save_pretrained(tmp_path / "processor")
    worker = ROOT / "tests" / "retrieval_worker.py"
    for processes in (1, 2):
        run_script(tmp_path / "log", worker, tmp_path / "processor", tmp_path, processes=processes)
    one, *two = (pd.read_parquet(tmp_path / name) for name in ("1-0.parquet", "2-0.parquet", "2-1.parquet"))
    for ranks in two:
        pd.testing.assert_frame_equal(ranks, one)
