"""What a run shows of its steps."""

import re

import pytest
from tiny import make_trainer

from ccrk.training.console import LogLines, log_line


def test_figures_stand_in_columns():
    logs = [
        {"loss": 10.53, "learning_rate": 0.0, "mlm_loss": 7.5312, "total_flos": 3e9, "epoch": 0.1},
        {"loss": 9.0, "learning_rate": 1.25e-05, "mlm_loss": 123456.0, "total_flos": 6e9, "epoch": 0.2},
    ]
    lines = [log_line(log, step, 2100) for log, step in zip(logs, (5, 1000), strict=True)]
    assert lines[0] == "   5/2100  loss 10.53      learning_rate 0          mlm_loss 7.531"
    for name in logs[0].keys() - {"total_flos", "epoch"}:
        assert lines[0].index(name) == lines[1].index(name)
    assert log_line({"eval_recall_en": 56.25, "eval_mrv": 0.5}, 5, 9) == "5/9  evaluated  recall_en 56.25      mrv 0.5"
    assert log_line({"eval_mrv": 0.5}, 0, 0) == "evaluated  mrv 0.5"


@pytest.mark.slow
def test_a_run_shows_a_line_per_log(tiny_model, processor, shapes, tmp_path, capsys):
    for disable_tqdm in (True, False):
        trainer = make_trainer(tiny_model, processor, shapes, tmp_path, max_steps=2, disable_tqdm=disable_tqdm)
        assert any(type(callback) is LogLines for callback in trainer.callback_handler.callbacks)
        trainer.train()
        printed = capsys.readouterr()
        lines = [line for line in printed.out.splitlines() if re.match("[12]/2  loss ", line)]
        assert len(lines) == 2 and "{" not in printed.out
        assert ("2/2 [" in printed.err) == (not disable_tqdm)
