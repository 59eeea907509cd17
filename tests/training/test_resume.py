"""Runs that stop and go on: which checkpoints are whole, what a resumed run keeps, and where it ends."""

import copy
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import pytest
import torch
import yaml
from conftest import ROOT
from safetensors.torch import load_file, save_file
from tiny import RECIPE, call, make_trainer, tiny_config
from transformers import AutoModel, AutoProcessor, TrainerCallback
from transformers.trainer_jit_checkpoint import CheckpointManager

import eval_mrv
import train_pretrain
import train_retrieval
from ccrk import CCRKForPreTraining
from ccrk.training.checkpoints import MANIFEST, choose_checkpoint, steps_of, what_is_wrong, write_manifest
from ccrk.training.trainer import CCRKTrainer

SMALLER = RECIPE["config"] | {"text_config": RECIPE["config"]["text_config"] | {"vocab_size": 300}}
ADAPTED = "ccrk.text_model.encoder.layer.0.attention.self.query.weight"
AUTO = ("--resume_from_checkpoint", "auto")
SAVING = ("--save_strategy", "steps", "--save_steps", 2)


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Bytes and time of every file."""
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


def changed(path: Path, **changes) -> Path:
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changes))
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A folder with a recipe, and `pretrain`, where it was trained to the end: two steps, a checkpoint at each."""
    folder = tmp_path_factory.mktemp("finished")
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(RECIPE | {"output_dir": "pretrain", "save_strategy": "steps", "save_steps": 1}))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "datasets")
        call(train_pretrain, path, monkeypatch=patch)
    return folder


@pytest.fixture
def resumable(finished, tmp_path, monkeypatch) -> Path:
    """A copy of it, which is the working directory."""
    shutil.copytree(finished, tmp_path / "run")
    monkeypatch.chdir(tmp_path / "run")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", finished / "datasets")
    return tmp_path / "run"


class TestWhatCounts:
    @pytest.mark.slow
    def test_tokens_are_those_of_the_checkpoint(self, recipe, tmp_path, monkeypatch, caplog):
        few, more = ({"num_train": n, "num_validation": 6, "num_test": 12} for n in (16, 40))
        call(train_pretrain, changed(recipe, dataset_config=few), *SAVING, monkeypatch=monkeypatch)
        folder = tmp_path / "pretrain"
        tokenizer = (folder / "checkpoint-2" / "tokenizer.json").read_bytes()
        other = ("--max_steps", 4, "--seed", 7, "--languages", "en", "de", "--learning_rate", 1e-3, "--max_words", 9)
        call(
            train_pretrain,
            changed(recipe, dataset_config=more),
            *(*SAVING, *AUTO, *other, "--gradient_accumulation_steps", 2),
            monkeypatch=monkeypatch,
        )
        assert steps_of(folder) == 4
        for name in (".", "checkpoint-4"):
            assert (folder / name / "tokenizer.json").read_bytes() == tokenizer
            assert json.loads((folder / name / "processor_config.json").read_text())["max_words"] == 40
        (warning,) = [message for message in caplog.messages if "goes on with other settings" in message]
        counted, ignored = warning.split("these are ignored")
        for told in (
            "seed 7 (was 42)",
            "num_rows 40 (was 16)",
            "languages en de (was en de zh)",
            "max_steps 4 (was 2)",
        ):
            assert told in counted
        assert "gradient_accumulation_steps 2 (was 1)" in counted
        assert "learning_rate 0.001 (was 0.0001)" in ignored and "max_words 9 (was 40)" in ignored
        assert "step 2 is at 0.67 epochs, in another order of rows" in ignored

    @pytest.mark.slow
    def test_the_learning_rate_is_that_of_the_checkpoint(self, tiny_model, processor, shapes, tmp_path):
        """What the warning says of learning rates is so."""
        steps = {"save_strategy": "steps", "save_steps": 2, "lr_scheduler_type": "constant"}
        trainer = make_trainer(tiny_model, processor, shapes, tmp_path, max_steps=2, learning_rate=1e-4, **steps)
        trainer.train()
        before = trainer.state.log_history[0]["learning_rate"]
        trainer = make_trainer(tiny_model, processor, shapes, tmp_path, max_steps=3, learning_rate=1e-2, **steps)
        trainer.train(resume_from_checkpoint="auto")
        assert trainer.state.log_history[-2]["learning_rate"] == before

    @pytest.mark.slow
    def test_nothing_is_told_where_nothing_differs(self, resumable, monkeypatch, caplog):
        shutil.rmtree("pretrain/checkpoint-2")
        Path("pretrain/trainer_state.json").unlink()
        call(train_pretrain, "recipe.yaml", *AUTO, monkeypatch=monkeypatch)
        assert "resuming from pretrain/checkpoint-1" in caplog.text and "other settings" not in caplog.text

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("script", "changes", "message"),
        [
            (train_retrieval, {}, "is of a CCRKForPreTraining, not a CCRKForImageTextRetrieval"),
            (train_pretrain, {"image_size": 32}, "image_size is 32 .there 64."),
            (train_pretrain, {"config": RECIPE["config"] | {"projection_dim": 4}}, "projection_dim is 4 .there 8."),
            (train_pretrain, {"optim": "sgd"}, "cannot go on with optim sgd"),
            (train_pretrain, {"config": SMALLER}, "cannot go on with vocab_size 300 .was 400."),
        ],
    )
    def test_another_model_is_refused(self, script, changes, message, resumable, monkeypatch):
        changed(resumable / "recipe.yaml", max_steps=4, **changes)
        before = contents(resumable / "pretrain")
        with pytest.raises(SystemExit, match=message) as raised:
            call(script, "recipe.yaml", *AUTO, monkeypatch=monkeypatch)
        assert str(raised.value).startswith("error: ") and "\n" not in str(raised.value)
        assert contents(resumable / "pretrain") == before

    @pytest.mark.slow
    def test_another_tokenizer_is_refused(self, tiny_model, processor, shapes, tmp_path):
        steps = {"save_strategy": "steps", "save_steps": 1}
        make_trainer(tiny_model, processor, shapes, tmp_path, max_steps=1, **steps).train()
        other = copy.deepcopy(processor)
        other.tokenizer.add_tokens(["star"])
        with pytest.raises(ValueError, match="checkpoint-1 was trained with another tokenizer"):
            make_trainer(tiny_model, other, shapes, tmp_path, **steps).train("auto")

    @pytest.mark.slow
    def test_a_checkpoint_that_lacks_weights_is_refused(self, tiny_model, processor, shapes, tmp_path):
        steps = {"save_strategy": "steps", "save_steps": 1}
        make_trainer(tiny_model, processor, shapes, tmp_path, max_steps=1, **steps).train()
        weights = load_file(tmp_path / "checkpoint-1" / "model.safetensors")
        del weights["temperature" if "temperature" in weights else "ccrk.temperature"]
        save_file(weights, tmp_path / "checkpoint-1" / "model.safetensors", metadata={"format": "pt"})
        write_manifest(tmp_path / "checkpoint-1")
        with pytest.raises(ValueError, match=r"not those of the model: .*temperature"):
            make_trainer(tiny_model, processor, shapes, tmp_path, **steps).train("auto")


class TestFinished:
    @pytest.mark.parametrize(
        "arguments",
        [
            AUTO,
            ("--resume_from_checkpoint", "pretrain/checkpoint-2"),
            (*AUTO, "--max_steps", 1),
            (*AUTO, "--max_steps", -1, "--num_train_epochs", 0.4),
        ],
    )
    def test_there_is_nothing_to_do(self, arguments, resumable, monkeypatch, caplog):
        before = contents(resumable)
        call(train_pretrain, "recipe.yaml", *arguments, monkeypatch=monkeypatch)
        assert "holds this run after its last step (2 of " in caplog.text and "there is nothing to do" in caplog.text
        assert contents(resumable) == before

    def test_nor_without_checkpoints(self, resumable, monkeypatch):
        for step in (1, 2):
            shutil.rmtree(f"pretrain/checkpoint-{step}")
        before = contents(resumable)
        call(train_pretrain, "recipe.yaml", *AUTO, monkeypatch=monkeypatch)
        assert contents(resumable) == before

    def test_what_a_killed_run_did_not_save_is_saved(self, resumable, monkeypatch, caplog):
        saved = {name: Path("pretrain", name).read_bytes() for name in ("model.safetensors", "config.json")}
        for path in [*Path("pretrain").glob("*.json"), Path("pretrain/model.safetensors")]:
            path.unlink()
        before = contents(resumable / "pretrain" / "checkpoint-2")
        call(train_pretrain, "recipe.yaml", *AUTO, monkeypatch=monkeypatch)
        assert {name: Path("pretrain", name).read_bytes() for name in saved} == saved
        assert contents(resumable / "pretrain" / "checkpoint-2") == before
        assert steps_of(Path("pretrain")) == 2 and "checkpoint-2 has had all of 2 steps" in caplog.text

    @pytest.mark.slow
    def test_more_steps_go_on(self, resumable, monkeypatch):
        call(train_pretrain, "recipe.yaml", *AUTO, "--max_steps", 3, monkeypatch=monkeypatch)
        assert steps_of(Path("pretrain")) == 3 and Path("pretrain/checkpoint-3").is_dir()

    @pytest.mark.slow
    def test_the_best_is_what_a_finished_run_gives(self, tiny_model, processor, shapes, tmp_path):
        steps = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1, "max_steps": 2}
        best = {"load_best_model_at_end": True, "metric_for_best_model": "mean_recall"}
        trainer = make_trainer(tiny_model, processor, shapes, tmp_path, **steps, **best)
        trainer.evaluate = lambda *_, **__: {"eval_mean_recall": {1: 70.0, 2: 60.0}[trainer.state.global_step]}
        trainer.train()
        trained = {name: tensor.clone() for name, tensor in tiny_model.state_dict().items()}
        with torch.no_grad():
            for parameter in tiny_model.parameters():
                parameter.zero_()
        trainer = make_trainer(tiny_model, processor, shapes, tmp_path, **steps, **best)
        assert trainer.train("auto").global_step == 2 and trainer.state.best_global_step == 1
        assert all(torch.equal(trained[name], tensor) for name, tensor in tiny_model.state_dict().items())


class TestManifest:
    @pytest.mark.parametrize(
        "text",
        [
            b"",
            b"not JSON",
            b"[]",
            b"null",
            b"{}",
            b'"text"',
            b'{"a": 1}',
            b'{"model.safetensors": []}',
            b'{"model.safetensors": {"bytes": "1", "crc32": null}}',
            b'{"model.safetensors": {}}',
            b'{"model.safetensors": {"bytes": 1}, "model.safetensors": 5}',
            b'{"../../secret": {"bytes": 0, "crc32": 0}}',
            b'{"/etc/passwd": {"bytes": 0, "crc32": 0}}',
            b'{"a\\u0000b": {"bytes": 0, "crc32": 0}}',
            b'{"' + b"n" * 100_000 + b'": {"bytes": 0, "crc32": 0}}',
            b'{"a\\nb\\u001b[31m": {"bytes": 0, "crc32": 0}}',
            b'{".": {"bytes": 4096, "crc32": 0}}',
            b'{"x": {"bytes": ' + b"9" * 5000 + b"}}",
            b"[" * 100_000,
            b"\xff\xfe\x00",
            None,
        ],
    )
    def test_a_damaged_one_is_passed_over(self, text, resumable, caplog):
        manifest = Path("pretrain/checkpoint-2", MANIFEST)
        manifest.unlink()
        manifest.mkdir() if text is None else manifest.write_bytes(text)
        assert choose_checkpoint("pretrain", "auto") == "pretrain/checkpoint-1"
        (message,) = [message for message in caplog.messages if "passed over" in message]
        assert len(message) < 300 and message.isprintable()
        with pytest.raises(ValueError, match=r"checkpoint-2: .*; resume from another, or 'auto'"):
            choose_checkpoint("pretrain", "pretrain/checkpoint-2")

    @pytest.mark.parametrize("left_out", ["trainer_state.json", "optimizer.pt", "model.safetensors", "rng_state.pth"])
    def test_one_that_leaves_out_what_resuming_needs(self, left_out, resumable):
        manifest = Path("pretrain/checkpoint-2", MANIFEST)
        manifest.write_text(json.dumps({k: v for k, v in json.loads(manifest.read_text()).items() if k != left_out}))
        assert what_is_wrong(manifest.parent)

    @pytest.mark.slow
    def test_what_transformers_writes_while_it_saves_is_no_part(self, tiny_model, processor, shapes, tmp_path):
        trainer = make_trainer(tiny_model, processor, shapes, tmp_path, save_strategy="steps", max_steps=1)
        trainer.train()
        trainer.state.global_step = 1
        CheckpointManager(trainer).execute_jit_checkpoint()
        assert what_is_wrong(tmp_path / "checkpoint-1") is None


class EndAt(TrainerCallback):
    """A cluster that ends the job in this step."""

    def __init__(self, step: int):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step - 1:
            os.kill(os.getpid(), signal.SIGTERM)


class LauncherEndsAt(EndAt):
    """accelerate launch, which SIGTERM ends without a word to the process that it has started."""

    def __init__(self, step: int, monkeypatch):
        super().__init__(step)
        self.monkeypatch = monkeypatch

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step - 1:
            self.monkeypatch.setattr(os, "getppid", lambda: 1)


class TestSIGTERM:
    def trainer(self, processor, rows, folder, **arguments):
        torch.manual_seed(7)
        config = tiny_config(len(processor.tokenizer))
        config.text_config.hidden_dropout_prob = 0.1
        return make_trainer(CCRKForPreTraining(config), processor, rows, folder, **arguments)

    @pytest.mark.slow
    @pytest.mark.parametrize(("accumulation", "told_by"), [(1, "SIGTERM"), (2, "SIGTERM"), (1, "launcher")])
    def test_the_run_goes_on_bit_for_bit(self, accumulation, told_by, processor, shapes, tmp_path, monkeypatch):
        same = {"per_device_train_batch_size": 8 // accumulation, "gradient_accumulation_steps": accumulation}
        undisturbed = self.trainer(processor, shapes, tmp_path / "undisturbed", **same)
        undisturbed.train()
        before = signal.getsignal(signal.SIGTERM)
        ended = self.trainer(processor, shapes, tmp_path / "ended", **same)
        monkeypatch.setenv("ACCELERATE_DYNAMO_MODE", "default")
        ended.add_callback(EndAt(2) if told_by == "SIGTERM" else LauncherEndsAt(2, monkeypatch))
        ended.train()
        monkeypatch.undo()
        assert ended.was_terminated and ended.state.global_step == 2 and signal.getsignal(signal.SIGTERM) is before
        assert [path.name for path in (tmp_path / "ended").iterdir()] == ["checkpoint-2"]  # save_strategy is no
        resumed = self.trainer(processor, shapes, tmp_path / "ended", **same)
        resumed.train("auto")
        assert resumed.state.global_step == 4 and not resumed.was_terminated
        weights = undisturbed.model.state_dict()
        assert all(torch.equal(weights[name], tensor) for name, tensor in resumed.model.state_dict().items())

    @pytest.mark.slow
    def test_the_best_checkpoint_and_the_last_stay(self, processor, shapes, tmp_path):
        """Whose evaluation at the end of an epoch is not held amid it."""
        trainer = self.trainer(
            processor,
            shapes.select(range(16)),
            tmp_path,
            eval_strategy="epoch",
            save_strategy="epoch",
            save_total_limit=1,
            load_best_model_at_end=True,
            metric_for_best_model="mean_recall",
            max_steps=6,
        )
        evaluated = []
        trainer.evaluate = lambda *_, **__: evaluated.append(trainer.state.global_step) or {"eval_mean_recall": 1.0}
        trainer.add_callback(EndAt(3))
        trainer.train()
        assert evaluated == [2] and {path.name for path in tmp_path.iterdir()} == {"checkpoint-2", "checkpoint-3"}

    @pytest.mark.slow
    def test_an_evaluation_that_is_due_is_kept(self, processor, shapes, tmp_path):
        trainer = self.trainer(processor, shapes, tmp_path, eval_strategy="steps", eval_steps=2)
        trainer.add_callback(EndAt(2))
        trainer.train()
        state = json.loads((tmp_path / "checkpoint-2" / "trainer_state.json").read_text())
        assert any("eval_mean_recall" in log for log in state["log_history"])

    @pytest.mark.slow
    def test_the_end_of_a_shell_ends_no_run(self, processor, shapes, tmp_path, monkeypatch):
        """nohup python train_pretrain.py … &, and the shell is closed."""
        trainer = self.trainer(processor, shapes, tmp_path)
        trainer.add_callback(LauncherEndsAt(2, monkeypatch))
        trainer.train()
        assert trainer.state.global_step == 4 and not trainer.was_terminated

    @pytest.mark.slow
    def test_it_can_be_switched_off(self, processor, shapes, tmp_path):
        trainer = self.trainer(processor, shapes, tmp_path, enable_jit_checkpoint=False)
        before = signal.getsignal(signal.SIGTERM)
        trainer.add_callback(Watch(lambda: signal.getsignal(signal.SIGTERM) is before))
        trainer.train()

    @pytest.mark.slow
    @pytest.mark.parametrize("launcher", [(), ("-m", "accelerate.commands.launch", "--num_processes", "1", "--cpu")])
    def test_a_script_ends_orderly(self, launcher, resumable):
        """With data loader workers, which the signal reaches as well; or only the launcher has the signal."""
        environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "HF_DATASETS_CACHE": str(datasets.config.HF_DATASETS_CACHE),
        }
        command = [sys.executable, *launcher, ROOT / "train_pretrain.py", "recipe.yaml", "--output_dir", "long"]
        command += ["--logging_steps", 1, "--max_steps", 100_000, "--save_strategy", "no"]
        command += ["--dataloader_num_workers", 0 if launcher else 2]
        with open("log", "w") as log:
            process = subprocess.Popen(
                list(map(str, command)), env=environment, stdout=log, stderr=log, start_new_session=True
            )
        wait_for(lambda: "images_per_second" in Path("log").read_text(), 120)
        if launcher:
            process.terminate()
            assert process.wait(60) == -signal.SIGTERM
        else:
            os.killpg(process.pid, signal.SIGTERM)
            assert process.wait(60) == 143, Path("log").read_text()
        wait_for(lambda: "run the same command with --resume_from_checkpoint auto" in Path("log").read_text(), 60)
        assert "Traceback" not in Path("log").read_text()
        (checkpoint,) = Path("long").glob("checkpoint-*")
        assert what_is_wrong(checkpoint) is None and not Path("long/model.safetensors").exists()


def wait_for(condition, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, Path("log").read_text()
        time.sleep(0.1)


class Watch(TrainerCallback):
    def __init__(self, holds):
        self.holds = holds

    def on_step_end(self, args, state, control, **kwargs):
        assert self.holds()


class TestLora:
    @pytest.fixture
    def arguments(self, finished, tmp_path, monkeypatch):
        pytest.importorskip("peft")
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", finished / "datasets")
        shutil.copytree(finished / "pretrain", "base", ignore=shutil.ignore_patterns("checkpoint-*"))
        adapting = {"model_name_or_path": "base", "use_peft": True, "lora_r": 4, "learning_rate": 0.01}
        steps = {"save_strategy": "steps", "save_steps": 1, "output_dir": "out", "max_steps": 3}
        Path("recipe.yaml").write_text(
            yaml.safe_dump(RECIPE | {"config": None, "image_size": None} | adapting | steps)
        )
        return "recipe.yaml"

    @pytest.mark.slow
    def test_a_checkpoint_goes_on_and_evaluates(self, arguments, monkeypatch, capsys):
        call(train_retrieval, arguments, monkeypatch=monkeypatch)
        names = ("model.safetensors", "adapter/adapter_model.safetensors")
        undisturbed = [Path("out", name).read_bytes() for name in names]
        merged = load_file("out/checkpoint-2/model.safetensors")
        assert not torch.equal(merged[ADAPTED], load_file("base/model.safetensors")[ADAPTED])
        assert not torch.equal(merged[ADAPTED], load_file("out/model.safetensors")[ADAPTED])
        evaluation = ("--task", "shapes", "--max_rows", 6, "--languages", "en", "--k_test", 2, "--output_dir", "eval")
        call(eval_mrv, "--model", "out/checkpoint-2", *evaluation, monkeypatch=monkeypatch)
        assert json.loads(Path("eval/results.json").read_text())["model"] == "out/checkpoint-2"
        model = AutoModel.from_pretrained("out/checkpoint-2", trust_remote_code=True)
        assert torch.equal(model.state_dict()[ADAPTED.removeprefix("ccrk.")], merged[ADAPTED])
        AutoProcessor.from_pretrained("out/checkpoint-2", trust_remote_code=True)

        shutil.rmtree("out/checkpoint-3")
        Path("out/trainer_state.json").unlink()
        for name in names:
            Path("out", name).unlink()
        call(train_retrieval, arguments, *AUTO, monkeypatch=monkeypatch)
        assert [Path("out", name).read_bytes() for name in names] == undisturbed

    @pytest.mark.slow
    def test_the_best_is_loaded_at_the_end(self, arguments, monkeypatch):
        best = ("--load_best_model_at_end", "true", "--metric_for_best_model", "mean_recall")
        worse_and_worse = lambda trainer, **_: {"eval_mean_recall": 70.0 - trainer.state.global_step}  # noqa: E731
        monkeypatch.setattr(CCRKTrainer, "evaluate", worse_and_worse)
        steps = ("--eval_strategy", "steps", "--eval_steps", 1)
        call(train_retrieval, arguments, *best, *steps, monkeypatch=monkeypatch)
        merged = load_file("out/checkpoint-1/model.safetensors")
        assert all(torch.equal(merged[name], tensor) for name, tensor in load_file("out/model.safetensors").items())

    @pytest.mark.slow
    @pytest.mark.parametrize("case", ["rank", "no adapters", "other weights below"])
    def test_other_adapters_are_refused(self, case, arguments, monkeypatch):
        call(train_retrieval, arguments, "--max_steps", 1, monkeypatch=monkeypatch)
        more = {"rank": ("--lora_r", 8), "no adapters": ("--use_peft", "false")}.get(case, ())
        if case == "other weights below":
            weights = load_file("base/model.safetensors")
            weights[ADAPTED] += 1
            save_file(weights, "base/model.safetensors", metadata={"format": "pt"})
        message = {"rank": r"lora_r 8 \(was 4\)", "no adapters": "has LoRA adapters, and none"}.get(
            case, "frozen_weights"
        )
        with pytest.raises(SystemExit, match=f"^error: .*{message}"):
            call(train_retrieval, arguments, *AUTO, *more, monkeypatch=monkeypatch)
