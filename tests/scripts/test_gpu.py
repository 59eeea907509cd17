"""The one command for a machine with a GPU: small, on a CPU, with nothing but PyTorch, transformers and accelerate."""

import json
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

ALONE = """
import runpy, sys
for package in ("datasets", "deepspeed", "evaluate", "lancedb", "pandas", "peft", "sentence_transformers"):
    sys.modules[package] = None  # as if it were not installed
sys.argv = ["gpu", "--cpu", "--output", sys.argv[1]]
runpy.run_module("benchmarks.gpu", run_name="__main__")
"""


@pytest.mark.slow
def test_it_runs_with_pytorch_alone(tmp_path):
    command = [sys.executable, "-c", ALONE, tmp_path / "outputs" / "gpu.json"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-2000:]
    found = json.loads((tmp_path / "outputs" / "gpu.json").read_text())
    assert len(found) == 15 and not any(part.keys() & {"error", "failed", "skipped"} for part in found.values())
    assert found["check: resume"]["weights"] == 0.0 and found["step, K = 10"]["ratio"] > 0
    assert found["decoding"]["levels, where the worker decodes all pixels"] < 2  # the same pictures
    assert "| check: gradients | published |" in ended.stdout


def test_a_part_that_fails_or_does_not_fit_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import gpu

    run = gpu.Run(tmp_path / "gpu.json", torch.device("cpu"), gpu.SMALL, minutes=0.0)
    run.part("wrong", 1, lambda run: gpu.check({"outputs": (float("nan"), 1.0)}))
    run.part("broken", 1, lambda run: {}["nothing"])
    run.device = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    run.part("long", 60, lambda run: {"done": 1})
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["wrong"]["failed"] == "outputs nan, at most 1"
    assert found["broken"]["error"] == "KeyError: 'nothing'"
    assert found["long"]["skipped"] == "takes about 60 s, 0 s are left"
    assert "| long | skipped | takes about 60 s, 0 s are left |" in capsys.readouterr().out
