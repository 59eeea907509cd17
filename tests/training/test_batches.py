"""Rows of a step: what the log says of them, a published recipe's batch, and the last one of an epoch."""

import logging
from types import SimpleNamespace

import pytest
import yaml
from conftest import ROOT
from tiny import call, make_trainer

import train_pretrain
from ccrk.training.batches import check_last_batch, describe_batches, warn_of_another_batch


def arguments(rows: int, processes: int, accumulation: int = 1, drop_last: bool = True, published: int | None = None):
    """As much of the training arguments as is read: tests run in one process."""
    return SimpleNamespace(
        per_device_train_batch_size=rows,
        world_size=processes,
        gradient_accumulation_steps=accumulation,
        dataloader_drop_last=drop_last,
        published_batch_size=published,
    )


def test_the_batch_and_the_steps_are_told():
    assert describe_batches(arguments(16, 1), 453, 4530) == (
        "batch 16 × 1 process × 1 = 16, 453 steps an epoch, 4,530 in all"
    )
    assert describe_batches(arguments(16, 4, 2), None, 9) == "batch 16 × 4 processes × 2 = 128, 9 in all"


@pytest.mark.slow
def test_a_run_tells_them_and_warns(recipe, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    call(train_pretrain, recipe, "--max_steps", 1, "--published_batch_size", 64, monkeypatch=monkeypatch)
    assert "40 rows, batch 8 × 1 process × 1 = 8, 5 steps an epoch, 1 in all" in caplog.text
    assert (
        "published with batches of 64 images; this run contrasts 8: set per_device_train_batch_size to 64"
        in caplog.text
    )


@pytest.mark.parametrize(
    ("rows", "processes", "accumulation", "message"),
    [
        (16, 4, 1, None),
        (64, 1, 1, None),
        (16, 1, 1, "contrasts 16: set per_device_train_batch_size to 64"),
        (16, 8, 1, "contrasts 128: set per_device_train_batch_size to 8"),
        (16, 1, 4, "contrasts 16, and accumulates 4 of them: set per_device_train_batch_size to 64"),
        (64, 1, 2, "contrasts 64, and accumulates 2 of them: set per_device_train_batch_size to 64"),
    ],
)
def test_another_batch_than_published_is_a_warning(rows, processes, accumulation, message, caplog):
    warn_of_another_batch(arguments(rows, processes, accumulation, published=64))
    assert (message in caplog.text) if message else not caplog.messages
    caplog.clear()
    warn_of_another_batch(arguments(rows, processes, accumulation))
    assert not caplog.messages


def test_each_published_recipe_states_its_batch():
    """As the paper's table of recipes has it; those that are not the paper's state none."""
    published = {
        path.stem: yaml.safe_load(path.read_text()).get("published_batch_size")
        for path in (ROOT / "configs").glob("*.yaml")
    }
    assert published == {
        "pretrain_2m": 128,
        "pretrain_3m": 128,
        "finetune_multi30k": 64,
        "finetune_coco": 64,
        "finetune_xflickrco": 64,
        "few_shot_xflickrco": 64,
        "finetune_wit": 80,
        "multi30k_photographs": None,
        "shapes_pretrain": None,
        "shapes_finetune": None,
    }


@pytest.mark.parametrize(
    ("rows", "processes", "drop_last", "num_rows", "message"),
    [
        (8, 1, False, 18, None),
        (8, 1, False, 5, None),
        (8, 2, True, 18, None),
        (8, 2, False, 32, None),
        (8, 2, False, 18, "2 rows do not fill the last batch of 2 processes, in which 14 copies of rows"),
        (8, 2, False, 24, "8 rows do not fill the last batch of 2 processes, in which 8 copies of rows"),
        (16, 4, False, 25, "25 rows do not fill the last batch of 4 processes, in which 39 copies of rows"),
        (8, 1, True, 5, "one batch of 8; lower per_device_train_batch_size or set dataloader_drop_last to false$"),
        (8, 2, True, 15, "15 rows do not fill one batch of 16; lower per_device_train_batch_size$"),
    ],
)
def test_no_copies_of_rows_fill_the_last_batch(rows, processes, drop_last, num_rows, message):
    checked = arguments(rows, processes, drop_last=drop_last)
    if message is None:
        check_last_batch(checked, num_rows)
    else:
        with pytest.raises(ValueError, match=message):
            check_last_batch(checked, num_rows)


def test_the_trainer_asks_the_same(tiny_model, processor, shapes, tmp_path):
    trainer = make_trainer(tiny_model, processor, shapes.select(range(5)), tmp_path)
    with pytest.raises(ValueError, match="5 rows do not fill one batch of 8"):
        trainer.get_train_dataloader()


@pytest.mark.slow
def test_the_learning_rate_of_the_log_is_that_of_the_arguments(tiny_model, processor, shapes, tmp_path):
    constant = {"lr_scheduler_type": "constant", "max_steps": 1}
    trainer = make_trainer(tiny_model, processor, shapes, tmp_path, learning_rate=1e-4, **constant)
    assert trainer.args.new_parameter_lr_scale == 2
    trainer.train()
    assert trainer.state.log_history[0]["learning_rate"] == 1e-4
    assert {group["lr"] for group in trainer.optimizer.param_groups} == {1e-4, 2e-4}
