"""Training on a stream: a run goes on from its checkpoint to the same weights, and what needs an end is refused."""

import logging
import shutil

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from builders import jpeg
from safetensors.torch import load_file
from tiny import RECIPE, call

import train_pretrain


@pytest.fixture
def train(tmp_path, monkeypatch):
    """Trains on 40 rows in parts of 10, in batches of 8, with a checkpoint in mid-pass."""
    rows = [
        {
            "image": {"bytes": jpeg(6 * number), "path": None},
            "image_id": str(number),
            **{tag: f"{tag} star {number}" for tag in RECIPE["languages"]},
        }
        for number in range(40)
    ]
    (tmp_path / "data").mkdir()
    monkeypatch.setattr("data_scripts.formats.ROWS_OF_A_PART", 10)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "data/rows.parquet", row_group_size=10)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf-cache")
    recipe = RECIPE | {"dataset": str(tmp_path / "data"), "dataset_config": {}, "streaming": True, "logging_steps": 1}
    small = {"text_config": RECIPE["config"]["text_config"] | {"vocab_size": 60}}
    recipe |= {"config": RECIPE["config"] | small, "max_steps": 9, "save_strategy": "steps", "save_steps": 7}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))

    def run(output, *arguments):
        call(train_pretrain, tmp_path / "recipe.yaml", "--output_dir", output, *arguments, monkeypatch=monkeypatch)
        return load_file(output / "model.safetensors")

    return run


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_ends_with_the_same_weights(train, workers, tmp_path):
    whole = train(tmp_path / "run", "--dataloader_num_workers", workers)
    shutil.rmtree(tmp_path / "run/checkpoint-9")
    (tmp_path / "run/trainer_state.json").unlink()
    start = {
        name: tensor.clone() for name, tensor in load_file(tmp_path / "run/checkpoint-7/model.safetensors").items()
    }
    resumed = train(tmp_path / "run", "--dataloader_num_workers", workers, "--resume_from_checkpoint", "auto")
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())
    assert not all(torch.equal(tensor, resumed[name]) for name, tensor in start.items())


@pytest.mark.slow
def test_another_number_of_workers_is_named(train, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    train(tmp_path / "run", "--max_steps", 7)
    assert "a stream of 4 parts, batch 8 × 1 process × 1 = 8, 7 in all" in caplog.text
    train(tmp_path / "run", "--dataloader_num_workers", 2, "--resume_from_checkpoint", "auto")
    (warning,) = [message for message in caplog.messages if "goes on with other settings" in message]
    assert "dataloader_num_workers 2 (was 0)" in warning and "some of this epoch come twice or not at all" in warning


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--max_steps", "-1"), "set max_steps"),
        (("--save_strategy", "epoch"), "set save_strategy to steps"),
        (("--max_train_rows", "5"), "max_train_rows takes the first of all rows"),
    ],
)
def test_what_needs_an_end_is_refused(train, arguments, message, tmp_path):
    with pytest.raises(SystemExit, match=message):
        train(tmp_path / "run", *arguments)
