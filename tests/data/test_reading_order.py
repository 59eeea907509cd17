"""Every row once, over processes and workers, from the middle as well; and training on them."""

import json
import logging
import random
import sys
from dataclasses import replace
from itertools import chain, islice

import numpy as np
import pytest
import torch
import yaml
from accelerate import skip_first_batches
from accelerate.data_loader import prepare_data_loader
from test_pretraining_data import LANGUAGES, bad_folder, folder, jpeg, load, number_of, row, write  # noqa: F401, fixtures
from tiny import RECIPE
from torch.utils.data import DataLoader

import data_scripts
import train_pretrain
from ccrk.training.arguments import CCRKTrainingArguments
from ccrk.training.collator import CCRKCollator, stable_id
from ccrk.training.trainer import CCRKTrainer
from data_scripts.shards import ShardRows


def numbers_read(loader) -> list[int]:
    return [number for batch in loader for number in batch]


def make_loader(rows, processes=1, process=0, workers=0, batch_size=4, shuffle=True, **options):
    """A data loader as the Trainer makes it, for one of several processes."""
    torch.manual_seed(3)
    loader = DataLoader(
        rows, batch_size, shuffle=shuffle, num_workers=workers, collate_fn=lambda b: [*map(number_of, b)]
    )
    return prepare_data_loader(
        loader,
        num_processes=processes,
        process_index=process,
        use_seedable_sampler=True,
        even_batches=False,
        put_on_device=False,
        **options,
    )


class TestReadingOrder:
    @pytest.mark.slow
    @pytest.mark.parametrize("workers", [0, 2])
    @pytest.mark.parametrize("processes", [1, 2, 3])
    def test_every_row_once_per_epoch(self, folder, processes, workers):
        write(folder / "cc3m-mm-data-all/part_002.data", [row(60)])  # no multiple of anything
        loaders = [make_loader(load(folder), processes, process, workers) for process in range(processes)]
        epochs = []
        for epoch in range(2):
            for loader in loaders:
                loader.set_epoch(epoch)
            epochs.append([numbers_read(loader) for loader in loaders])
            assert sorted(chain(*epochs[-1])) == list(range(61))
        assert epochs[0] != epochs[1]

    @pytest.mark.slow
    @pytest.mark.parametrize("shuffle", [False, True])
    @pytest.mark.parametrize(("processes", "workers"), [(1, 0), (2, 0), (3, 2)])
    def test_resuming_reads_exactly_the_rest(self, folder, shuffle, processes, workers, monkeypatch):
        rows = load(folder)
        read = []
        parse = ShardRows._parse
        monkeypatch.setattr(ShardRows, "_parse", lambda rows, number: read.append(number) or parse(rows, number))
        for process in range(processes):
            undisturbed = make_loader(rows, processes, process, shuffle=shuffle)
            undisturbed.set_epoch(1)
            expected = list(undisturbed)
            for stop in (1, 2, len(expected) - 1):
                started = make_loader(rows, processes, process, workers, shuffle=shuffle)
                started.set_epoch(1)
                assert list(islice(started, stop)) == expected[:stop]  # and killed there
                resumed = skip_first_batches(make_loader(rows, processes, process, workers, shuffle=shuffle), stop)
                resumed.set_epoch(1)
                read.clear()
                assert list(resumed) == expected[stop:]
                if workers == 0:  # what is skipped is not read
                    assert len(read) == sum(map(len, expected[stop:]))


class TestTraining:
    @pytest.mark.slow
    @pytest.mark.parametrize("streaming", [True, False])
    def test_from_the_command_line(self, bad_folder, tmp_path, streaming, monkeypatch, caplog):
        caplog.set_level(logging.INFO)
        recipe = tmp_path / "recipe.yaml"
        options = {"dataset_config": {}, "max_bad_fraction": 0.9, "output_dir": str(tmp_path / "out"), "max_steps": 6}
        recipe.write_text(yaml.safe_dump(RECIPE | options | {"logging_steps": 1}))
        monkeypatch.setattr(data_scripts.datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
        arguments = ["--dataset", "pretraining", "--data_dir", str(bad_folder), "--streaming", str(streaming)]
        monkeypatch.setattr(sys, "argv", ["train_pretrain", str(recipe), *arguments])
        train_pretrain.main()
        logs = json.loads((tmp_path / "out/trainer_state.json").read_text())["log_history"][:6]
        assert all(np.isfinite(log["loss"]) for log in logs)
        # Two epochs of three batches, of 26 and 22 rows, the rest left out.
        assert (logs[-1].get("bad_images", 0) > 0) == streaming
        assert ("training images: 48 rows, of which" in caplog.text) == streaming

    @pytest.mark.slow
    def test_resuming_in_mid_epoch_gives_the_same_model(self, folder, tiny_model, processor, tmp_path):
        start = {name: tensor.clone() for name, tensor in tiny_model.state_dict().items()}

        def train(output, **options):
            tiny_model.load_state_dict(start)
            arguments = CCRKTrainingArguments(
                output_dir=str(output),
                per_device_train_batch_size=8,
                max_steps=10,
                save_steps=9,
                use_cpu=True,
                report_to="none",
                disable_tqdm=True,
            )
            # Languages with one caption a row: nothing is drawn ahead of the step that it is for.
            collator = CCRKCollator(processor, ["de", "zh"])
            rows = replace(load(folder, languages=["de", "zh"]), decode=False)
            CCRKTrainer(
                model=tiny_model,
                args=arguments,
                data_collator=collator,
                train_dataset=rows,
                processing_class=processor,
            ).train(**options)
            return {name: tensor.clone() for name, tensor in tiny_model.state_dict().items()}

        whole = train(tmp_path / "a")
        resumed = train(tmp_path / "b", resume_from_checkpoint=str(tmp_path / "a/checkpoint-9"))
        assert all(torch.equal(whole[name], resumed[name]) for name in whole)

    @pytest.mark.slow
    @pytest.mark.parametrize("workers", [0, 2])
    def test_a_killed_run_reads_exactly_the_remaining_rows(
        self, tmp_path, tiny_model, processor, monkeypatch, workers
    ):
        """Killed at a random step, shuffled: with what it resumes it reads what an undisturbed run does, in order."""
        data = tmp_path / "data"
        write(data / "part_0.data", [row(0, image_path=f"{number}.jpg") for number in range(36)])
        for number in range(36):
            (data / f"{number}.jpg").write_bytes(jpeg(number))
        rows = replace(load(data, languages=["de"]), decode=False)
        numbers = {stable_id(f"{number}.jpg"): number for number in range(36)}
        batches = []

        class Killed(Exception):
            pass

        def run(output, kill_at=None, **options):
            """The numbers of the rows of each step, nine steps an epoch."""
            batches.clear()
            arguments = CCRKTrainingArguments(
                output_dir=str(output),
                per_device_train_batch_size=4,
                num_train_epochs=2,
                save_steps=3,
                dataloader_num_workers=workers,
                use_cpu=True,
                report_to="none",
                disable_tqdm=True,
            )
            trainer = CCRKTrainer(
                model=tiny_model,
                args=arguments,
                data_collator=CCRKCollator(processor, ["de"]),
                train_dataset=rows,
                processing_class=processor,
            )
            step = trainer.training_step

            def training_step(model, inputs, *others):
                if len(batches) == kill_at:
                    raise Killed
                batches.append([numbers[image_id] for image_id in inputs["image_ids"].tolist()])
                return step(model, inputs, *others)

            monkeypatch.setattr(trainer, "training_step", training_step)
            trainer.train(**options)
            return list(batches)

        whole = run(tmp_path / "whole")
        epochs = list(chain(*whole[:9])), list(chain(*whole[9:]))
        assert epochs[0] != epochs[1] and sorted(epochs[0]) == sorted(epochs[1]) == list(range(36))
        kill_at = random.randrange(3, 18)
        with pytest.raises(Killed):
            run(tmp_path / "killed", kill_at)
        assert batches == whole[:kill_at]
        saved = kill_at // 3 * 3
        resumed = run(tmp_path / "killed", resume_from_checkpoint=str(tmp_path / f"killed/checkpoint-{saved}"))
        assert resumed == whole[saved:], f"killed at step {kill_at}"

    @pytest.mark.slow
    def test_too_many_damaged_images_end_the_training(self, folder, tiny_model, processor, tmp_path, monkeypatch):
        monkeypatch.setattr("data_scripts.problems.ROWS_BEFORE_STOPPING", 16)
        rows = replace(load(folder), decode=False)  # four of five photographs break after the index is made
        for number in range(1, 5):
            (folder / f"{number}.jpg").write_bytes(b"")
        arguments = CCRKTrainingArguments(
            output_dir=str(tmp_path), per_device_train_batch_size=8, max_steps=7, use_cpu=True, report_to="none"
        )
        collator = CCRKCollator(processor, LANGUAGES)
        trainer = CCRKTrainer(
            model=tiny_model, args=arguments, data_collator=collator, train_dataset=rows, processing_class=processor
        )
        with pytest.raises(ValueError, match=r"more than max_bad_fraction 0\.05(.|\n)*image of zero bytes"):
            trainer.train()
