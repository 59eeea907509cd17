"""What a model was trained on: recorded beside it, carried on, and counted against the images of an evaluation."""

import base64
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_dual_encoders import make_clip, trainer_of
from tiny import make_rows, make_trainer, tokenizer

import ccrk.trained_on
import data_scripts
import eval_mrv
from ccrk import CCRKForPreTraining
from ccrk.trained_on import FILE, Run, image_digests, overlap, read_runs, write_runs
from ccrk.training.trainable import add_adapters
from data_scripts.caption_rows import CaptionRows
from data_scripts.export import export
from data_scripts.streams import EndlessRows

COUNT = 40


def image_folder(folder: Path, seed: int = 0, order=range(COUNT)) -> Path:
    """Noise images with captions in two languages; `seed` decides the images, not their names."""
    folder.mkdir()
    lines = []
    for number in order:
        pixels = np.random.default_rng((seed, number)).integers(0, 255, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        lines.append(json.dumps({"file_name": f"{number}.png", "caption_en": f"star {number}", "caption_de": "Stern"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


def trained(trainer):
    trainer.train()
    return trainer


def load(source, split="train", fraction=0.1):
    return data_scripts.load(str(source), split=split, validation_fraction=fraction)


@pytest.fixture
def cached(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def photos(cached, tmp_path):
    return image_folder(tmp_path / "photos")


def seen(run: Run, rows) -> int:
    return overlap([run], image_digests(rows))["images"]


class TestTheSameImages:
    def test_another_validation_fraction(self, photos):
        run = Run.of(load(photos))
        assert run.images == len(load(photos)) and seen(run, load(photos, "validation")) == 0
        wider = load(photos, "validation", 0.3)
        trained = set(load(photos)["image_id"])
        assert seen(run, wider) == sum(name in trained for name in wider["image_id"]) > 0

    @pytest.mark.parametrize("kind", ["order", "parquet", "tar", "copy", "relative", "absolute paths", "captions"])
    def test_the_same_rows_elsewhere(self, kind, photos, tmp_path, monkeypatch):
        rows, out = load(photos), tmp_path / "out"
        if kind in FORMATS:
            export(data_scripts.load(str(photos), split="train"), "data", out, kind)
        elif kind == "order":
            image_folder(out, order=np.random.default_rng(1).permutation(COUNT).tolist())
        elif kind == "copy":
            shutil.copytree(photos, out)
        elif kind == "relative":
            monkeypatch.chdir(tmp_path)
            out = Path("photos")
        elif kind == "absolute paths":
            lines = map(json.loads, (photos / "metadata.jsonl").read_text().splitlines())
            table = [row | {"file_name": str(photos / row["file_name"])} for row in lines]
            out = tmp_path / "rows.jsonl"
            out.write_text("\n".join(map(json.dumps, table)))
        again = load(out) if kind != "captions" else CaptionRows(rows)
        everything = data_scripts.load(str(photos if kind == "captions" else out), split="train")
        assert seen(Run.of(again), rows) >= len(rows) - 10 and seen(Run.of(rows), everything) == len(rows)

    def test_other_images_of_the_same_names(self, photos, tmp_path):
        other = image_folder(tmp_path / "other", seed=1)
        everything = [data_scripts.load(str(folder), split="train") for folder in (other, photos)]
        assert everything[0]["image_id"][:] == everything[1]["image_id"][:]
        assert seen(Run.of(load(photos)), everything[0]) == 0

    def test_an_image_that_cannot_be_read_equals_no_other(self, photos):
        rows = load(photos)
        for name in ("1.png", "2.png"):
            os.unlink(photos / name)
        digests = image_digests(rows)
        assert (digests == 0).sum() == 2 and overlap([Run.of(rows)], digests)["images"] == len(rows) - 2

    def test_of_a_large_set_a_sample_gives_an_estimate(self, photos, monkeypatch):
        monkeypatch.setattr(ccrk.trained_on, "KEPT", 20)
        rows = data_scripts.load(str(photos), split="train")
        run = Run.of(rows)
        assert (run.images, run.sampled, len(run.digests)) == (COUNT, 20, 20)
        assert seen(run, rows) == COUNT and 4 <= seen(run, rows.select(range(10))) <= 10


FORMATS = ("parquet", "tar")


class TestBesideTheModel:
    def test_every_kind_and_every_checkpoint(self, processor, tiny_model, shapes, tmp_path):
        trainer = make_trainer(tiny_model, processor, shapes, tmp_path / "ccrk", max_steps=1, save_strategy="steps")
        trainer.recipe = {"dataset": str(tmp_path), "validation_fraction": 0.1}
        trainer.args.save_steps = 1
        trainer.train()
        trainer.save_model()
        (run,) = read_runs(tmp_path / "ccrk")
        assert (run.data, run.split, run.validation_fraction) == (tmp_path.name, "train", 0.1)
        assert run.images == len(shapes) == seen(run, shapes)
        checkpoint = tmp_path / "ccrk" / "checkpoint-1"
        assert FILE in json.loads((checkpoint / "manifest.json").read_text())
        assert (checkpoint / FILE).read_bytes() == (tmp_path / "ccrk" / FILE).read_bytes()

    def test_it_is_carried_on(self, processor, tiny_model, shapes, tmp_path):
        first, second = shapes.select(range(16)), shapes.select(range(16, 32))
        trained(make_trainer(tiny_model, processor, first, tmp_path / "one")).save_model()
        again = CCRKForPreTraining.from_pretrained(tmp_path / "one")
        trained(make_trainer(again, processor, second, tmp_path / "two")).save_model()
        runs = read_runs(tmp_path / "two")
        assert [seen(run, first) for run in runs] == [16, 0] and [seen(run, second) for run in runs] == [0, 16]
        assert overlap(runs, image_digests(shapes))["images"] == 32

    @pytest.mark.slow
    def test_a_run_that_is_resumed_is_there_once(self, processor, tiny_model, shapes, tmp_path):
        options = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
        make_trainer(tiny_model, processor, shapes, tmp_path, **options).train()
        for rows, expected in ((shapes, 1), (shapes.select(range(16)), 2)):
            trainer = make_trainer(tiny_model, processor, rows, tmp_path, **options)
            trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
            trainer.save_model()
            assert len(read_runs(tmp_path)) == expected

    @pytest.mark.parametrize("use_peft", [False, True])
    def test_dual_encoders(self, use_peft, processor, shapes, tmp_path):
        if use_peft:
            pytest.importorskip("peft")
        torch.manual_seed(0)
        model, own = make_clip(tokenizer(processor))
        trained(trainer_of(model, own, shapes.select(range(8)), tmp_path / "one")).save_model()
        model = type(model).from_pretrained(tmp_path / "one")
        trainer = trainer_of(add_adapters(model, 2) if use_peft else model, own, shapes, tmp_path / "two")
        trained(trainer).save_model()
        assert [run.images for run in read_runs(tmp_path / "two")] == [8, len(shapes)]

    def test_no_image_is_read_before_training(self, processor, tiny_model, shapes, tmp_path, monkeypatch):
        read = []
        monkeypatch.setattr(ccrk.trained_on, "image_digests", lambda rows: read.append(rows))
        make_trainer(tiny_model, processor, shapes, tmp_path).save_model()
        assert not read and read_runs(tmp_path) == []

    def test_a_stream_says_that_it_was_not_recorded(self, photos, processor, tiny_model, tmp_path):
        rows = data_scripts.load(str(photos), split="train", streaming=True)
        run = Run.of(EndlessRows(rows, batch_size=2))
        assert run.images is None and run.found_in(np.arange(1, 5, dtype=np.uint64)) is None
        write_runs(tmp_path, [run])
        assert read_runs(tmp_path)[0].images is None

    def test_without_rows_or_a_record_there_is_none(self, tmp_path):
        write_runs(tmp_path, [Run.of(None)])
        assert read_runs(tmp_path) == read_runs("") == []

    @pytest.mark.parametrize(
        "damage",
        [
            b"", b"{}", b"[]", b"\xff", b'{"runs": 3}', b'{"runs": [{}]}',
            {"digests": "!"}, {"digests": base64.b64encode(b"123").decode()}, {"images": "many"}, {"images": 1},
            {"data": 3}, {"more": 1}, {"sampled": 0, "digests": ""}, {"validation_fraction": "0.1"},
        ],
    )  # fmt: skip
    def test_a_damaged_record_is_one_line(self, damage, photos, tmp_path):
        write_runs(tmp_path, [Run.of(load(photos))])
        if isinstance(damage, dict):
            (run,) = json.loads((tmp_path / FILE).read_text())["runs"]
            damage = json.dumps({"runs": [run | damage]}).encode()
        (tmp_path / FILE).write_bytes(damage)
        with pytest.raises(ValueError, match=rf"{FILE} is damaged \(.*\); restore or remove it"):
            read_runs(tmp_path)


class TestEvaluation:
    @pytest.fixture
    def model(self, tiny_model, processor, photos, tmp_path):
        for part in (tiny_model, processor):
            part.save_pretrained(tmp_path / "model")
        write_runs(tmp_path / "model", [Run.of(load(photos)).named({"dataset": str(photos)})])
        return tmp_path / "model"

    def evaluate(self, model, photos, tmp_path, *others) -> dict:
        options = ["--split", "validation", "--validation_fraction", "0.3", "--no_rerank", *map(str, others)]
        out = tmp_path / "out"
        eval_mrv.main(["--model", str(model), "--dataset", str(photos), *options, "--output_dir", str(out)])
        return json.loads((out / "results.json").read_text()) if (out / "results.json").exists() else {}

    def test_images_of_training_are_counted_and_told(self, model, photos, tmp_path, capsys, caplog):
        results = self.evaluate(model, photos, tmp_path)
        trained, evaluated = set(load(photos)["image_id"]), load(photos, "validation", 0.3)["image_id"]
        expected = sum(name in trained for name in evaluated)
        assert results["trained_on"]["images"] == expected and results["trained_on"]["of"] == len(evaluated)
        (run,) = results["trained_on"]["runs"]
        assert run["data"] == "photos" and run["overlap"] == expected
        note = f"The model was trained on {expected} of these {len(evaluated)} images (photos train"
        report = (tmp_path / "out" / "report.html").read_text()
        assert all(note in text for text in (capsys.readouterr().out, caplog.text, report))

    def test_new_images_are_no_warning(self, model, photos, tmp_path, capsys):
        results = self.evaluate(model, photos, tmp_path, "--validation_fraction", "0.1")
        assert results["trained_on"]["images"] == 0 and "was trained on" not in capsys.readouterr().out

    @pytest.mark.slow
    def test_every_model_of_a_table_and_of_a_language(self, model, photos, tmp_path, capsys):
        fresh = tmp_path / "fresh"
        shutil.copytree(model, fresh)
        (fresh / FILE).unlink()
        assert "trained_on" not in self.evaluate(fresh, photos, tmp_path)
        assert self.evaluate(fresh, photos, tmp_path, "--model_for", f"de={model}")["trained_on"]["images"] > 0
        capsys.readouterr()
        self.evaluate(model, photos, tmp_path / "two", "--model", model, fresh)
        for text in (capsys.readouterr().out, (tmp_path / "two" / "out" / "models.html").read_text()):
            assert "/model: The model was trained on" in text and "/fresh: The model" not in text

    @pytest.mark.parametrize("missing", ["outputs/gone/far/away", "gone"])
    def test_a_missing_model_is_told_as_ever(self, missing, photos, tmp_path):
        with pytest.raises(SystemExit, match=f"there is no folder {missing}"):
            self.evaluate(missing, photos, tmp_path)

    @pytest.mark.slow
    def test_what_was_not_recorded_is_told(self, model, photos, tmp_path, capsys):
        (run,) = read_runs(model)
        write_runs(model, [replace(run, images=None, sampled=0, digests=run.digests[:0])])
        self.evaluate(model, photos, tmp_path)
        assert "images that were not recorded (photos train): they may be among these" in capsys.readouterr().out

    @pytest.mark.slow
    def test_of_arrays_nothing_is_said(self, photos, tmp_path):
        rows = load(photos, "validation", 0.3)
        arrays = {name: np.ones((len(rows), 3)) for name in ("images", "captions_en", "captions_de")}
        np.savez(tmp_path / "a.npz", **arrays)
        results = self.evaluate(tmp_path / "a.npz", photos, tmp_path)
        assert "trained_on" not in results and "cut_captions" not in results


def test_rows_that_torch_alone_knows_are_not_recorded():
    assert Run.of([{"image": None}]).images is None
    assert Run.of(make_rows([[1], [2]])).images == 2
