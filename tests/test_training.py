"""Training: batches, parameter groups, logs, evaluation, resuming, and the scripts from end to end."""

import json
import math
import multiprocessing
import os
import resource
import signal
import sys
from pathlib import Path
from typing import ClassVar

import datasets
import pytest
import torch
import transformers
import yaml
from conftest import exit_code_of, tiny_config
from huggingface_hub import ModelCard
from PIL import Image
from test_retrieval import make_rows
from transformers import TrainerCallback

import data_scripts
import eval_mrv
import train_pretrain
import train_retrieval
from ccrk import CCRKForImageTextRetrieval, CCRKForPreTraining, CCRKModel, CCRKProcessor
from ccrk.arguments import parse_recipe
from ccrk.build import build_trainer, check_settings, run
from ccrk.encoders import CCRKEncoder
from ccrk.training.arguments import WITHOUT_EFFECT, CCRKTrainingArguments
from ccrk.training.checkpoints import choose_checkpoint, what_is_wrong
from ccrk.training.collator import CCRKCollator, published_augmentation, stable_id
from ccrk.training.losses import OneToKLoss
from ccrk.training.memory import saved_bytes
from ccrk.training.model_card import model_card
from ccrk.training.trainer import CCRKTrainer
from data_scripts.rows import row_features
from objectives_ccrk import sampling_keys


def make_trainer(model, processor, rows, output_dir, languages=("en", "de", "zh"), **arguments) -> CCRKTrainer:
    arguments = {
        "output_dir": str(output_dir),
        "per_device_train_batch_size": 8,
        "max_steps": 4,
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        "report_to": "none",
    } | arguments
    return CCRKTrainer(
        model=model,
        args=CCRKTrainingArguments(**arguments),
        data_collator=CCRKCollator(processor, languages),
        train_dataset=rows,
        eval_dataset=rows.select(range(min(6, len(rows)))),
        processing_class=processor,
    )


class TestCollator:
    def test_one_caption_per_language(self, processor, shapes):
        rows = [shapes[0], shapes[1]]
        batch = CCRKCollator(processor, ["en", "zh"])(rows)
        assert batch["pixel_values"].shape == (2, 3, 64, 64)
        assert batch["input_ids"].shape == batch["attention_mask"].shape and batch["input_ids"].shape[:2] == (2, 2)
        assert batch["caption_mask"].all()
        expected = processor(text=[[row["captions"][lang][0] for lang in ("en", "zh")] for row in rows])
        assert torch.equal(batch["input_ids"], expected["input_ids"])
        assert batch["image_ids"].tolist() == [stable_id("train-00000"), stable_id("train-00001")]

    def test_missing_and_empty_captions_leave_their_slot_masked(self, processor):
        captions = {"en": ["a red star", "a star"], "de": ["?!"], "zh": []}
        rows = [{"image": Image.new("L", (19, 11)), "image_id": "a", "captions": captions}]
        batch = CCRKCollator(processor, ["en", "de", "zh"])(rows)
        assert batch["caption_mask"].tolist() == [[True, False, False]]

    def test_one_language_draws_among_those_that_are_there(self, processor):
        captions = {"en": [], "de": ["ein roter stern"], "zh": ["一个红色的星"]}
        rows = [{"image": Image.new("RGB", (9, 9)), "image_id": "a", "captions": captions}]
        collator = CCRKCollator(processor, ["de", "zh"], one_language=True)
        drawn = set()
        for epoch in range(20):
            collator.epoch.fill_(epoch)
            drawn.add(tuple(collator(rows)["input_ids"][0, 0].tolist()))
        assert len(drawn) == 2
        assert collator(rows)["caption_mask"].shape == (1, 1)

    def test_every_caption_of_a_language_is_drawn(self, processor):
        captions = {"en": ["a red star", "a blue circle", "?"]}
        rows = [{"image": Image.new("RGB", (9, 9)), "image_id": "a", "captions": captions}]
        collators = [CCRKCollator(processor, ["en"], seed=seed) for seed in range(20)]
        assert len({tuple(collator(rows)["input_ids"].flatten().tolist()) for collator in collators}) == 2

    def test_draws_depend_on_the_image_and_the_epoch_alone(self, processor, shapes):
        collator = CCRKCollator(processor, ["en", "de"], True, published_augmentation(64, 0.2))
        rows = [shapes[index] for index in range(4)]
        state = torch.get_rng_state()
        first, turned = collator(rows), collator(rows[::-1])
        assert torch.equal(first["pixel_values"], turned["pixel_values"].flip(0))
        assert torch.equal(first["input_ids"], turned["input_ids"].flip(0))
        assert torch.equal(state, torch.get_rng_state())
        collator.epoch.fill_(1)
        assert not torch.equal(first["pixel_values"], collator(rows)["pixel_values"])

    def test_published_augmentation(self):
        torch.manual_seed(0)
        picture = Image.effect_noise((80, 50), 60).convert("RGB")
        augment = published_augmentation(64, 0.2)
        first, second = augment(picture), augment(picture)
        assert first.size == second.size == (64, 64) and first.tobytes() != second.tobytes()
        names = {getattr(operation, "name", type(operation).__name__) for operation in augment.transforms[-1].ops}
        assert names == {"Identity", "AutoContrast", "Equalize", "Brightness", "Sharpness", "Rotate"} | {
            f"{kind}{axis}" for kind in ("Shear", "Translate") for axis in "XY"
        }


def test_parameter_groups(tiny_model, processor, shapes, tmp_path):
    trainer = make_trainer(tiny_model, processor, shapes, tmp_path, learning_rate=1e-3, weight_decay=0.05)
    names = {id(parameter): name for name, parameter in tiny_model.named_parameters()}
    groups = trainer.create_optimizer().param_groups
    seen = [names[id(p)] for group in groups for p in group["params"]]
    assert sorted(seen) == sorted(names.values())
    for group in groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            undecayed = any(part in name for part in ("bias", "norm", "Norm"))
            assert group["weight_decay"] == (0.0 if undecayed else 0.05), name
            new = any(p in name for p in ("temperature", "projection.", "matching_head", "cross_attention"))
            new = new and "patch_embeddings" not in name
            assert group["lr"] == (2e-3 if new else 1e-3), name
    assert groups[0]["betas"] == (0.9, 0.98) and groups[0]["eps"] == 1e-8


def test_an_optimizer_of_ones_own(tiny_model, processor, shapes, tmp_path):
    trainer = make_trainer(tiny_model, processor, shapes, tmp_path)
    trainer.optimizer_cls_and_kwargs = torch.optim.SGD, {"lr": 0.1, "momentum": 0.5}
    optimizer = trainer.create_optimizer()
    assert isinstance(optimizer, torch.optim.SGD) and optimizer.defaults["momentum"] == 0.5
    assert {group["lr"] for group in optimizer.param_groups} == {0.1, 0.2}
    trainer.optimizer = None
    trainer.optimizer_cls_and_kwargs = torch.optim.SGD, {"params": []}  # as transformers sets GaLore up
    with pytest.raises(ValueError, match=r"SGD groups the parameters itself, .*; choose another"):
        trainer.create_optimizer()


def test_logs_hold_every_part(tiny_model, processor, shapes, tmp_path):
    trainer = make_trainer(tiny_model, processor, shapes, tmp_path, max_steps=2)
    trainer.train()
    for log in trainer.state.log_history[:2]:
        parts = log["contrastive_loss"] + log["matching_loss"] + log["mlm_loss"]
        assert parts == pytest.approx(log["loss"], abs=1e-3)
        assert 0.001 <= log["temperature"] <= 0.5 and log["images_per_second"] > 0


def test_gradient_accumulation_averages(tiny_model, processor, shapes, tmp_path):
    """The loss is a mean: two half-weight passes over the same rows are one."""
    start = {name: tensor.clone() for name, tensor in tiny_model.state_dict().items()}
    rows = shapes.select([0] * 8)  # equal rows: whatever is drawn, every batch is the same
    logs = []
    for accumulation in (1, 2):
        tiny_model.load_state_dict(start)
        trainer = make_trainer(
            tiny_model,
            processor,
            rows,
            tmp_path,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=accumulation,
            max_steps=1,
        )
        trainer.train()
        logs.append(trainer.state.log_history[0])
    assert logs[0]["contrastive_loss"] == pytest.approx(logs[1]["contrastive_loss"], abs=1e-4)
    assert logs[1]["loss"] == pytest.approx(logs[0]["loss"], rel=0.1)


def test_evaluation_on_several_data_sets(tiny_model, processor, shapes, tmp_path):
    trainer = make_trainer(tiny_model, processor, shapes, tmp_path, eval_strategy="steps", eval_steps=1, max_steps=1)
    trainer.eval_dataset = {"near": shapes.select(range(4)), "far": shapes.select(range(4, 8))}
    trainer.train()
    logged = {name for log in trainer.state.log_history for name in log}
    assert {"eval_near_recall_zh", "eval_near_mean_recall", "eval_far_recall_zh", "eval_far_mrv"} <= logged


def test_evaluation_during_training(tiny_model, processor, shapes, tmp_path):
    trainer = make_trainer(
        tiny_model, processor, shapes, tmp_path, eval_strategy="steps", eval_steps=2, eval_k_test=2, max_steps=2
    )
    trainer.train()
    metrics = next(log for log in trainer.state.log_history if "eval_mean_recall" in log)
    per_language = [metrics[f"eval_recall_{language}"] for language in ("en", "de", "zh")]
    assert metrics["eval_mean_recall"] == pytest.approx(sum(per_language) / 3, abs=0.02)
    assert metrics["eval_mrv"] >= 0


def test_languages_to_evaluate(tiny_model, processor, tmp_path):
    rows = make_rows([[3], [2]], ("en", "de"))
    trainer = make_trainer(tiny_model, processor, rows, tmp_path, languages=("de", "fr"))
    assert trainer.languages_to_evaluate(rows) == ["de"]
    assert trainer.languages_to_evaluate(make_rows([[3], [2]], ("en",))) == ["en"]
    with pytest.raises(ValueError, match="no usable caption in de; set eval_strategy to no"):
        trainer.languages_to_evaluate(make_rows([[], []], ("en", "de")))


def test_model_card_tells_the_run(tiny_model, processor, shapes, tmp_path):
    trainer = make_trainer(tiny_model, processor, shapes, tmp_path, eval_strategy="steps", eval_steps=2, max_steps=2)
    trainer.train()
    trainer.create_model_card("tiny", license="mit")
    card = ModelCard.load(tmp_path / "README.md")
    assert (card.data.language, card.data.license) == (["en", "de", "zh"], "mit")
    logged = next(log for log in trainer.state.log_history if "eval_mean_recall" in log)
    results = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert results["Recall, zh"] == logged["eval_recall_zh"]
    assert results["Mean rank variance (standard deviation, ranks)"] == logged["eval_mrv"]
    assert {(result.dataset_type, result.dataset_split) for result in card.data.eval_results} == {("shapes", "train")}
    assert "shapes, split train, 48 pictures; languages en de zh" in card.text
    assert f"| mean | {logged['eval_mean_recall']:.2f} |" in card.text
    assert "2 steps of 8 pictures" in card.text
    assert "- Started from: no checkpoint" in card.text
    tiny_model.config.vision_config.name_or_path, tiny_model.config.text_config.name_or_path = "lab/swin", "lab/xlm-r"
    card = model_card(trainer, "tiny")
    assert card.data.base_model == ["lab/swin", "lab/xlm-r"] and "- Started from: swin and xlm-r" in card.text
    tiny_model.name_or_path = "lab/ccrk"
    card = model_card(trainer, "tiny")
    assert card.data.base_model == ["lab/ccrk"] and "- Started from: ccrk" in card.text
    trainer.train_dataset = shapes.to_iterable_dataset()  # a stream has no length
    assert "- Data: unnamed; languages" in model_card(trainer, "tiny").text


def test_model_card_reports_the_weights_that_are_saved(tiny_model, processor, shapes, tmp_path):
    steps = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1, "max_steps": 2}
    best = {"load_best_model_at_end": True, "metric_for_best_model": "mean_recall", "save_total_limit": 1}
    trainer = make_trainer(tiny_model, processor, shapes, tmp_path, **steps, **best)

    def evaluate(*args, **kwargs):
        trainer.log(metrics := {"eval_mean_recall": {1: 70.0, 2: 60.0}[trainer.state.global_step]})
        return metrics

    trainer.evaluate = evaluate
    trainer.train()
    card = model_card(trainer, "tiny").text
    assert "| mean | 70.00 |" in card and "2 steps of 8 pictures, of which step 1, the best in evaluation" in card


def test_resuming_continues_bit_for_bit(processor, shapes, tmp_path):
    """Model with the image encoder's weights, optimizer, schedule, random state and data position."""

    def run(folder, **arguments):
        torch.manual_seed(7)
        model = CCRKForPreTraining(tiny_config(len(processor.tokenizer)))
        trainer = make_trainer(model, processor, shapes, folder, save_strategy="steps", save_steps=2, **arguments)
        return trainer, model

    trainer, undisturbed = run(tmp_path / "a")
    trainer.train()
    trainer, resumed = run(tmp_path / "b")
    trainer.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))
    for (name, ours), theirs in zip(undisturbed.named_parameters(), resumed.named_parameters(), strict=True):
        assert torch.equal(ours, theirs[1]), name


def loss_and_gradients(trainer, rows) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Of a step on eight rows, one caption missing."""
    trainer.current_gradient_accumulation_steps = 1
    batch = trainer.data_collator([rows[index] for index in range(8)])
    batch["caption_mask"][2, 1] = False
    loss = trainer.training_step(trainer.model, batch)
    return loss, {name: parameter.grad for name, parameter in trainer.model.named_parameters()}


def assert_same_gradients(found, expected, relative: float, absolute: float) -> None:
    """Of two `loss_and_gradients`."""
    assert found[0].item() == pytest.approx(expected[0].item(), rel=1e-5)
    for name, gradient in expected[1].items():
        if not name.endswith(("k_proj.bias", "key.bias")):  # 0 but for rounding
            assert (found[1][name] - gradient).norm() <= relative * gradient.norm() + absolute, name


@pytest.mark.parametrize("chunk_size", [1, 3, 8])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_chunked_contrastive_gradients_equal_those_of_the_whole_batch(
    chunk_size, checkpointing, processor, shapes, tmp_path
):
    class ContrastiveAlone(OneToKLoss):
        def shares(self, found):
            return {name: part * 0 for name, part in super().shares(found).items()}

    def gradients(chunk_size):
        torch.manual_seed(0)
        model = CCRKForPreTraining(tiny_config(len(processor.tokenizer)))
        if checkpointing:
            model.activation_checkpointing_enable()
        trainer = make_trainer(model, processor, shapes, tmp_path, contrastive_chunk_size=chunk_size)
        trainer.loss = ContrastiveAlone(trainer.accelerator, reduction=trainer.loss.reduction)
        return loss_and_gradients(trainer, shapes)

    assert_same_gradients(gradients(chunk_size), gradients(None), 1e-5, 1e-9)


@pytest.mark.parametrize("bf16", [False, True])
def test_both_passes_over_a_chunk_meet_the_same_dropout_and_precision(bf16, processor, shapes, tmp_path):
    torch.manual_seed(0)
    config = tiny_config(len(processor.tokenizer))
    config.text_config.hidden_dropout_prob = 0.3
    first, second = [], []

    class Listening(OneToKLoss):
        def contrastive(self, found, inputs):
            first.append(found.text.detach())
            return super().contrastive(found, inputs)

        def shares(self, found):
            second.append(found.text.detach())
            return super().shares(found)

    model = CCRKForPreTraining(config)
    trainer = make_trainer(model, processor, shapes, tmp_path, max_steps=1, contrastive_chunk_size=3, bf16=bf16)
    trainer.loss = Listening(trainer.accelerator)
    trainer.train()
    assert len(second) == 3 and torch.equal(first[0], torch.cat(second))


def test_chunked_training_logs_every_part(tiny_model, processor, shapes, tmp_path):
    trainer = make_trainer(tiny_model, processor, shapes, tmp_path, contrastive_chunk_size=4)
    trainer.train()
    for log in trainer.state.log_history[:-1]:
        parts = log["contrastive_loss"] + log["matching_loss"] + log["mlm_loss"]
        assert parts == pytest.approx(log["loss"], abs=1e-3)


def train_and_save(folder, processor, rows, die_in_save: int | None = None, **arguments) -> None:
    """Six steps with dropout, a checkpoint after each; killed in the n-th call of torch.save, if told to."""
    torch.manual_seed(7)
    config = tiny_config(len(processor.tokenizer))
    config.text_config.hidden_dropout_prob = 0.1
    trainer = make_trainer(CCRKForPreTraining(config), processor, rows, folder, max_steps=6, save_steps=1, **arguments)
    save, calls = torch.save, iter(range(1000))

    def save_and_die(value, path):
        save(value, path)
        if next(calls) == die_in_save:
            os.truncate(path, os.path.getsize(path) // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "save", save_and_die)
        trainer.train(resume_from_checkpoint=trainer.args.resume_from_checkpoint)
    trainer.save_model()


# A checkpoint calls torch.save for the arguments, the optimizer, the schedule and the random state.
@pytest.mark.parametrize("die_in_save", [1, 13, 15])
def test_killed_and_resumed_equals_undisturbed(die_in_save, processor, shapes, tmp_path):
    folder, arguments = tmp_path / "killed", {"save_strategy": "steps", "save_total_limit": 2}
    train_and_save(tmp_path / "undisturbed", processor, shapes, **arguments)
    assert exit_code_of(train_and_save, folder, processor, shapes, die_in_save, **arguments) == -signal.SIGKILL
    assert what_is_wrong(folder / f"checkpoint-{die_in_save // 4 + 1}")
    train_and_save(folder, processor, shapes, resume_from_checkpoint="auto", **arguments)
    for name in ("model.safetensors", "checkpoint-6/optimizer.pt", "checkpoint-6/rng_state.pth"):
        assert (folder / name).read_bytes() == (tmp_path / "undisturbed" / name).read_bytes(), name
    assert len(list(folder.glob("checkpoint-*"))) == 2


def test_a_damaged_checkpoint_is_passed_over(tiny_model, processor, shapes, tmp_path, caplog):
    trainer = make_trainer(tiny_model, processor, shapes, tmp_path, save_strategy="steps", save_steps=1, max_steps=3)
    trainer.train()
    (tmp_path / "checkpoint-3" / "trainer_state.json").unlink()
    weights = tmp_path / "checkpoint-2" / "model.safetensors"
    os.truncate(weights, weights.stat().st_size - 1)
    assert choose_checkpoint(tmp_path, "auto") == str(tmp_path / "checkpoint-1")
    assert "checkpoint-3 passed over: trainer_state.json is missing" in caplog.text
    assert "checkpoint-2 passed over: model.safetensors is not as it was written" in caplog.text
    with pytest.raises(ValueError, match=r"checkpoint-2: model\.safetensors is not as it was written"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_resuming_without_an_optimizer_is_refused(tiny_model, processor, shapes, tmp_path):
    with pytest.raises(ValueError, match="save_only_model leaves nothing to resume from"):
        CCRKTrainingArguments(output_dir=str(tmp_path), save_only_model=True, resume_from_checkpoint="auto")
    trainer = make_trainer(
        tiny_model, processor, shapes, tmp_path, save_strategy="steps", save_steps=1, max_steps=1, save_only_model=True
    )
    trainer.train()
    with pytest.raises(ValueError, match="saved with save_only_model and holds no optimizer"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


def test_a_full_disk_leaves_the_last_checkpoint(tiny_model, processor, shapes, tmp_path):
    trainer = make_trainer(
        tiny_model, processor, shapes, tmp_path, save_strategy="steps", save_steps=1, max_steps=2, save_total_limit=1
    )
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    class FillDisk(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 2:
                resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, limits[1]))

    trainer.add_callback(FillDisk())
    try:
        with pytest.raises(OSError, match=r"checkpoint-2 could not be written .* make room"):
            trainer.train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert choose_checkpoint(tmp_path, "auto") == str(tmp_path / "checkpoint-1")


class Poisoned(CCRKCollator):
    """Every picture of the images named `poisoned` is NaN."""

    poisoned = frozenset()

    def __call__(self, rows):
        batch = super().__call__(rows)
        for index, row in enumerate(rows):
            if row["image_id"] in self.poisoned:
                batch["pixel_values"][index] = float("nan")
        return batch


def test_a_step_that_is_not_finite_is_skipped_and_named(tiny_model, processor, shapes, tmp_path, caplog):
    trainer = make_trainer(tiny_model, processor, shapes, tmp_path, max_steps=6)
    trainer.data_collator = Poisoned(processor, ["en", "de", "zh"])
    trainer.data_collator.poisoned = {"train-00007"}
    trainer.train()
    assert trainer.skipped_steps == 1 and caplog.text.count("skipped, its gradient is not finite") == 1
    assert "train-00007" in caplog.text
    assert all(torch.isfinite(parameter).all() for parameter in tiny_model.parameters())
    logs = [log for log in trainer.state.log_history if "mlm_loss" in log]
    assert logs[-1]["skipped_steps"] == 1 and all(math.isfinite(log["contrastive_loss"]) for log in logs)


def test_too_many_skipped_steps_end_the_run(tiny_model, processor, shapes, tmp_path):
    trainer = make_trainer(tiny_model, processor, shapes, tmp_path, max_steps=6, max_skipped_steps=2)
    trainer.data_collator = Poisoned(processor, ["en"])
    trainer.data_collator.poisoned = set(shapes["image_id"])
    with pytest.raises(FloatingPointError, match=r"3 in a row, 3 in all\); images: train-"):
        trainer.train()


def test_gradients_that_overflow_in_fp16_lower_the_scale(tiny_model, processor, shapes, tmp_path):
    """Real fp16 and a real scaler: accelerate asks for a GPU, torch has both for CPUs."""
    trainer = make_trainer(tiny_model, processor, shapes, tmp_path, max_steps=12)
    accelerator = trainer.accelerator
    accelerator.state._mixed_precision = "fp16"
    accelerator.native_amp = True
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**22)
    before = {name: parameter.detach().clone() for name, parameter in tiny_model.named_parameters()}
    try:
        trainer.train()
    finally:
        accelerator.state._mixed_precision = "no"
    assert 0 < trainer.skipped_steps < 12
    assert accelerator.scaler.get_scale() == 2.0 ** (22 - trainer.skipped_steps)
    assert all(torch.isfinite(parameter).all() for parameter in tiny_model.parameters())
    assert any(not torch.equal(parameter, before[name]) for name, parameter in tiny_model.named_parameters())
    assert trainer.summary()["train_skipped_steps"] == trainer.skipped_steps


def test_out_of_memory_says_what_the_step_needs(tiny_model, processor, shapes, tmp_path, monkeypatch):
    def run_out(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    trainer = make_trainer(tiny_model, processor, shapes, tmp_path)
    monkeypatch.setattr(transformers.Trainer, "training_step", run_out)
    with pytest.raises(torch.OutOfMemoryError, match=r"8 images × 3 captions needs about .*_chunk_size 2,.*2\.00 GiB"):
        trainer.train()


def test_memory_is_estimated_from_two_images(tiny_model, processor, shapes):
    batch = CCRKCollator(processor, ["en", "de", "zh"])([shapes[index] for index in range(8)])
    encoder = CCRKEncoder(tiny_model, processor)
    of_two = saved_bytes(encoder, tiny_model, {name: value[:2] for name, value in batch.items()})
    assert 4 * of_two == pytest.approx(saved_bytes(encoder, tiny_model, batch), rel=0.1)


def test_losses_and_sampling_stay_in_fp32_under_bf16(tiny_model, processor, shapes):
    batch = CCRKCollator(processor, ["en", "de", "zh"])([shapes[index] for index in range(8)])
    keys = sampling_keys(batch["image_ids"], 0, 0)
    exact = tiny_model(**batch, sampling_keys=keys)
    with torch.autocast("cpu", torch.bfloat16):
        logits = tiny_model.ccrk(batch["input_ids"], batch["pixel_values"], batch["attention_mask"]).logits_per_image
        rounded = tiny_model(**batch, sampling_keys=keys)
    assert logits.dtype == torch.float32
    for name in ("contrastive_loss", "matching_loss", "mlm_loss", "image_embeds", "text_embeds"):
        assert rounded[name].dtype == torch.float32
    for name in ("contrastive_loss", "matching_loss", "mlm_loss"):
        assert rounded[name].item() == pytest.approx(exact[name].item(), rel=0.05)


def test_a_batch_of_one_image_trains(tiny_model, processor, shapes, tmp_path):
    trainer = make_trainer(tiny_model, processor, shapes.select([0]), tmp_path, per_device_train_batch_size=1)
    trainer.train()
    assert all(torch.isfinite(torch.tensor(log["loss"])) for log in trainer.state.log_history if "loss" in log)


RECIPE = {
    "dataset": "shapes",
    "dataset_config": {"num_train": 40, "num_validation": 6, "num_test": 12},
    "languages": ["en", "de", "zh"],
    "image_size": 64,
    "config": {
        "vision_config": {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4},
        "text_config": {
            "vocab_size": 400,
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "max_position_embeddings": 48,
            "type_vocab_size": 1,
        },
        "num_fusion_layers": 1,
        "projection_dim": 8,
    },
    "per_device_train_batch_size": 8,
    "max_steps": 2,
    "use_cpu": True,
    "report_to": "none",
    "save_strategy": "no",
    "disable_tqdm": True,
}
CONTRADICTED = RECIPE["config"] | {"vision_config": RECIPE["config"]["vision_config"] | {"image_size": 64}}


@pytest.fixture
def recipe(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(RECIPE | {"output_dir": str(tmp_path / "pretrain")}))
    return path


def call(script, *arguments, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", [script.__name__, *map(str, arguments)])
    script.main()


def test_pretrain_finetune_evaluate(recipe, tmp_path, monkeypatch, capsys):
    call(train_pretrain, recipe, monkeypatch=monkeypatch)
    folder = tmp_path / "pretrain"
    assert {"config.json", "model.safetensors", "tokenizer.json", "processing_ccrk.py"} <= {
        path.name for path in folder.iterdir()
    }
    pretrained = CCRKForPreTraining.from_pretrained(folder)
    assert pretrained.config.mask_token_id == pretrained.config.text_config.vocab_size - 1

    fine = tmp_path / "finetune"
    call(
        train_retrieval,
        recipe,
        *(
            "--model_name_or_path",
            folder,
            "--languages",
            "en",
            "--output_dir",
            fine,
            "--max_steps",
            1,
            "--max_words",
            9,
        ),
        monkeypatch=monkeypatch,
    )
    _, info = CCRKForImageTextRetrieval.from_pretrained(fine, output_loading_info=True)
    assert not any(info.values())

    out = tmp_path / "out"
    call(
        eval_mrv,
        *("--model", fine, "--task", "shapes", "--languages", "en", "zh", "--split", "test", "--k_test", 4),
        *("--max_rows", 12, "--output_dir", out),
        monkeypatch=monkeypatch,
    )
    results = json.loads((out / "results.json").read_text())
    contract = ["task", "split", "model", "k_test", "languages", "recall", "mrv", "counts"]
    assert list(results) == [*contract, "intervals"]
    assert (results["task"], results["split"], results["k_test"]) == ("shapes", "test", 4)
    assert results["languages"] == ["en", "zh"]
    assert list(results["recall"]["zh"]) == ["IR@1", "IR@5", "IR@10", "TR@1", "TR@5", "TR@10", "mean"]
    assert results["mrv"]["languages"] == ["en", "zh"] and results["mrv"]["mean"]["std"] >= 0
    assert results["counts"]["images"] == 12 and results["counts"]["captions"] == {"en": 12, "zh": 12}
    table = datasets.Dataset.from_parquet(str(out / "ranks.parquet"), cache_dir=str(tmp_path / "cache"))
    assert len(table) == 2 * 2 * 12
    assert (out / "report.html").stat().st_size > 10_000 and not (out / "encoded").exists()
    assert CCRKProcessor.from_pretrained(fine).max_words == 9
    printed = capsys.readouterr().out
    assert "MRV over en zh" in printed and printed.count("\nzh ") == 1


@pytest.mark.parametrize("script", [train_pretrain, train_retrieval])
def test_starting_from_encoders(script, swin_folder, processor, recipe, tmp_path, monkeypatch):
    from transformers import XLMRobertaConfig, XLMRobertaForMaskedLM

    sizes = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32}
    text = XLMRobertaConfig(
        vocab_size=len(processor.tokenizer), max_position_embeddings=50, type_vocab_size=1, **sizes
    )
    XLMRobertaForMaskedLM(text).save_pretrained(tmp_path / "xlmr")
    processor.tokenizer.save_pretrained(tmp_path / "xlmr")
    recipe.write_text(
        yaml.safe_dump(
            RECIPE
            | {
                "output_dir": str(tmp_path / "out"),
                "vision_model": str(swin_folder),
                "text_model": str(tmp_path / "xlmr"),
                "config": {"projection_dim": 8},
                "image_size": 32,  # the image encoder's is 64
            }
        )
    )
    call(script, recipe, monkeypatch=monkeypatch)
    model = CCRKModel.from_pretrained(tmp_path / "out")
    assert (model.config.num_fusion_layers, model.config.position_ids_start) == (1, 0)
    assert (model.config.vision_config.image_size, model.config.vision_config.window_size) == (32, 2)
    assert "Started from: swin and xlmr" in (tmp_path / "out" / "README.md").read_text()
    head = "CCRKForPreTraining" if script is train_pretrain else "CCRKForImageTextRetrieval"
    assert json.loads((tmp_path / "out" / "config.json").read_text())["architectures"] == [head]


def test_help_is_short_and_complete(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        call(train_pretrain, "--help", monkeypatch=monkeypatch)
    text = capsys.readouterr().out
    assert "accelerate launch train_pretrain.py" in text and "--languages" in text and "--learning_rate" in text
    assert "--fsdp " not in text and len(text.splitlines()) < 130
    with pytest.raises(SystemExit):
        call(train_pretrain, "--help_all", monkeypatch=monkeypatch)
    assert "--fsdp " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"languages": ["en", "xx"]}, "'xx'"),
        ({"dataset": "imagenet"}, "there is no data set, file or folder 'imagenet'; .*known are shapes"),
        ({"datasets": "shapes"}, "unknown argument datasets"),
        ({"augmentation": "Published"}, "augmentation is 'Published'; choose one of none, published"),
        ({"per_device_train_batch_size": 64, "rows": "images"}, "40 rows do not fill one batch of 64"),
        ({"config": {}}, "there is nothing to start from"),
        ({"config": {"text_config": {"vocab_size": 400, "hidden_size": 30}}}, "is not a multiple"),
        ({"image_size": None}, "image_size is missing"),
        ({"image_size": 32, "config": CONTRADICTED}, r"image_size is 32, but config\.vision_config\.image_size 64"),
        ({"vision_model": "swin"}, "give both, or neither"),
        ({"dataset": "multi30k", "dataset_config": None, "languages": ["en"]}, "data_dir"),
        ({"model_name_or_path": "no/such/folder/here"}, "no/such/folder/here"),
    ],
)
@pytest.mark.parametrize("script", [train_pretrain, train_retrieval])
def test_mistakes_in_a_recipe_end_in_one_line(script, changes, message, recipe, monkeypatch):
    recipe.write_text(yaml.safe_dump(yaml.safe_load(recipe.read_text()) | changes))
    with pytest.raises(SystemExit, match=message) as raised:
        call(script, recipe, monkeypatch=monkeypatch)
    assert str(raised.value).startswith("error: ") and "\n" not in str(raised.value).strip()


def config(part: str | None = None, **fields) -> dict:
    """RECIPE's configuration with other fields, of a part of it or its own."""
    whole = RECIPE["config"]
    return {"config": whole | (fields if part is None else {part: whole[part] | fields})}


# What the line says after the recipe's name.
WRONG_VALUES = [
    ({"max_steps": "two"}, "max_steps is 'two' .invalid literal"),
    ({"max_steps": 2.5}, "max_steps is 2.5, not of the kind int"),
    ({"max_steps": True}, "max_steps is True, not of the kind int"),
    ({"max_steps": [1]}, r"max_steps is \[1\], not of the kind int"),
    ({"max_steps": 0}, "max_steps is 0; it must be at least 1, or -1"),
    ({"learning_rate": "fast"}, "learning_rate is 'fast' .could not convert"),
    ({"learning_rate": -1}, "learning_rate is -1; it must be at least 0"),
    ({"learning_rate": math.nan}, "learning_rate is nan; it must be at least 0"),
    ({"learning_rate": math.inf}, "learning_rate is inf; it must be at least 0"),
    ({"per_device_train_batch_size": None}, "per_device_train_batch_size is None, not of the kind int"),
    ({"per_device_train_batch_size": 0}, "per_device_train_batch_size is 0; it must be at least 1"),
    ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps is 0; it must be at least 1"),
    ({"num_train_epochs": -3}, "num_train_epochs is -3; it must be above 0"),
    ({"seed": 2.5}, "seed is 2.5, not of the kind int"),
    ({"seed": 2**40}, "seed is 1099511627776; it must be from 0 to 4294967295"),
    ({"adam_beta2": 1.0}, "adam_beta2 is 1.0; it must be at least 0 and below 1"),
    ({"max_grad_norm": -1}, "max_grad_norm is -1; it must be at least 0"),
    ({"save_steps": 0}, "save_steps is 0; it must be above 0"),
    ({"optim": "adam"}, "optim is 'adam'; choose one of adamw_torch"),
    ({"use_cpu": 3}, "use_cpu is 3, not of the kind bool"),
    ({"enable_jit_checkpoint": "x"}, "enable_jit_checkpoint is 'x' .Truthy value expected"),
    ({"output_dir": 3}, "output_dir is 3, not of the kind str"),
    ({"output_dir": ""}, "output_dir is empty"),
    ({"dataset": [1]}, r"dataset is \[1\], not of the kind str"),
    ({"languages": "en"}, "languages is 'en', not of the kind list"),
    ({"languages": ["en", 3]}, r"languages is .*, not of the kind list"),
    ({"optim_args": "betas=1"}, "optim_args has no effect on optim adamw_torch"),
    ({"dataset_config": {3: 4}}, "dataset_config has the name 3; put it in quotes"),
    ({"max_train_rows": 0}, "max_train_rows is 0; it must be at least 1"),
    ({"max_bad_fraction": 2}, "max_bad_fraction is 2; it must be from 0 to 1"),
    ({"crop_min_scale": math.nan}, "crop_min_scale is nan; it must be from 0 to 1"),
    ({"image_size": -64}, "image_size is -64; it must be from 1 to"),
    ({"image_size": 10**6}, "image_size is 1000000; it must be from 1 to"),
    ({"max_words": 0}, "max_words is 0; it must be at least 1"),
    ({"max_length": 1}, "max_length is 1; it must be at least 2"),
    ({"model_name_or_path": 3}, "model_name_or_path is 3, not of the kind str"),
    ({"resume_from_checkpoint": 3}, "resume_from_checkpoint is 3, not of the kind str"),
    ({"dataloader_num_workers": -1}, "dataloader_num_workers is -1; it must be at least 0"),
    ({"metric_for_best_model": 3}, "metric_for_best_model is 3, not of the kind str"),
    ({"lr_scheduler_kwargs": "x"}, "lr_scheduler_kwargs is 'x' .'x' is no JSON"),
    ({"accelerator_config": {"nope": 1}}, "unexpected keyword argument 'nope'"),
    ({1: 2}, "unknown argument 1"),
    ({"help": True}, "unknown argument help"),
    (config(nope=1), "config has no nope; a CCRKConfig has "),
    (config(text_config=None), "config.text_config is None, not a mapping"),
    (config("text_config", num_attention_heads=0), "text_config.num_attention_heads is 0; it must be at least 1"),
    (config("text_config", num_hidden_layers=-1), "text_config.num_hidden_layers is -1; it must be at least 1"),
    (config("text_config", nope=1), "config.text_config has no nope; a XLMRobertaConfig has "),
    (config("vision_config", num_heads=[0, 0]), r"vision_config.num_heads is \[0, 0\]; it must be at least 1"),
    (config("vision_config", depths=[1, -1]), r"vision_config.depths is \[1, -1\]; it must be at least 1"),
    (config("vision_config", window_size=0), "vision_config.window_size is 0; it must be at least 1"),
]
# What is seen once the model is made; before the first step.
WRONG_SETTINGS = [
    (config("text_config", hidden_act="nope"), "config: 'nope'"),
    (config("text_config", pad_token_id=10**6), "config: Padding_idx must be within"),
    (config("text_config", vocab_size=5), "vocab_size is 5, but the characters of the captions alone need"),
    (config("vision_config", num_channels=1), "image_size 64 or config: Given groups=1, weight of size"),
    (config("vision_config", window_size=17), "image_size 64 or config: The size of tensor a"),
    ({"image_size": 1}, "image_size 1 or config: "),
    ({"optim": "sgd", "optim_args": "x"}, "optim sgd, optim_args x: not enough values to unpack"),
    ({"torch_compile_mode": "nope"}, "torch_compile_mode nope: Unrecognized mode"),
    ({"lr_scheduler_kwargs": {"nope": 1}}, "lr_scheduler_type linear, lr_scheduler_kwargs {'nope': 1}: "),
    ({"dataset_config": {"num_train": 0}}, "shapes has no rows in its split train"),
]


@pytest.mark.parametrize(
    ("changes", "message"),
    [*((changes, f"recipe.yaml: .*{message}") for changes, message in WRONG_VALUES), *WRONG_SETTINGS],
)
def test_wrong_values_end_in_one_line_before_the_first_step(changes, message, recipe, tmp_path, monkeypatch):
    recipe.write_text(yaml.safe_dump(yaml.safe_load(recipe.read_text()) | changes))
    with pytest.raises(SystemExit, match=f"^error: .*{message}") as raised:
        call(train_pretrain, recipe, monkeypatch=monkeypatch)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "pretrain").exists() or not any((tmp_path / "pretrain").iterdir())


@pytest.mark.parametrize("workers", [0, 1])
def test_pictures_that_cannot_be_read_end_a_run_in_one_line(workers, recipe, monkeypatch, capsys):
    argv = [str(recipe), "--dataloader_num_workers", str(workers)]
    trainer = build_trainer(*parse_recipe("", recipe, argv), CCRKForPreTraining)
    damaged = [{"bytes": b"no picture", "path": None}] * len(trainer.train_dataset)
    features = trainer.train_dataset.features
    trainer.train_dataset = trainer.train_dataset.remove_columns("image").add_column("image", damaged).cast(features)
    with pytest.raises(SystemExit, match=r"^error: no image of a batch of 8 can be read .*8  not an image") as raised:
        run(trainer)
    assert "\n" not in str(raised.value) and "Traceback" not in str(raised.value)
    for child in multiprocessing.active_children():  # which leave SIGTERM to their parent only while it trains
        child.terminate()  # as Python does at its end, and waits
        child.join(20)
        assert child.exitcode == 0


def test_captions_keep_what_the_model_has_positions_for(recipe, tmp_path, monkeypatch, caplog):
    call(train_pretrain, recipe, "--max_length", 1000, monkeypatch=monkeypatch)
    assert "positions for 48 tokens: captions keep so many, not max_length 1000" in caplog.text
    assert CCRKProcessor.from_pretrained(tmp_path / "pretrain").max_length == 48


def test_checking_leaves_no_trace(recipe, monkeypatch):
    """The model is tried, the optimizer and the schedule made, and nothing of it shows in the run."""
    argv = [str(recipe), "--lr_scheduler_type", "cosine"]
    trainer = build_trainer(*parse_recipe("", recipe, argv), CCRKForPreTraining)
    state = torch.get_rng_state()
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    check_settings(trainer)
    assert torch.equal(state, torch.get_rng_state()) and trainer.model.training
    assert trainer.optimizer is None and trainer.lr_scheduler is None
    assert all(torch.equal(before[name], tensor) for name, tensor in trainer.model.state_dict().items())


@pytest.mark.parametrize("text", ["- a list", "a: [1", "a: " + "[" * 3000])
def test_a_recipe_that_is_no_mapping(text, recipe, monkeypatch):
    recipe.write_text(text)
    with pytest.raises(SystemExit, match=r"recipe\.yaml"):
        call(train_pretrain, recipe, monkeypatch=monkeypatch)


@pytest.fixture
def swin_folder(tmp_path) -> Path:
    from transformers import SwinConfig, SwinModel

    config = SwinConfig(image_size=64, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4)
    SwinModel(config).save_pretrained(tmp_path / "swin")
    return tmp_path / "swin"


def test_checkpoints_that_scripts_cannot_use(recipe, swin_folder, tiny_model, processor, tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match="swin is a SwinModel, which embeds no images and captions"):
        call(train_retrieval, recipe, "--model_name_or_path", swin_folder, monkeypatch=monkeypatch)
    evaluation = ("--task", "shapes", "--languages", "en", "--output_dir", tmp_path / "out", "--max_rows", 4)
    monkeypatch.setattr(data_scripts, "load", lambda *_, **__: make_rows([[3], [4], [5], [2]]))
    with pytest.raises(SystemExit, match="is a SwinModel, which embeds no images and captions; give a CCRK"):
        call(eval_mrv, "--model", swin_folder, *evaluation, monkeypatch=monkeypatch)
    tiny_model.ccrk.save_pretrained(tmp_path / "base")
    processor.save_pretrained(tmp_path / "base")
    with pytest.raises(SystemExit, match="no matching head; rank with --no_rerank, or fine-tune it first"):
        call(eval_mrv, "--model", tmp_path / "base", *evaluation, monkeypatch=monkeypatch)
    call(eval_mrv, "--model", tmp_path / "base", *evaluation, "--no_rerank", monkeypatch=monkeypatch)
    assert json.loads((tmp_path / "out" / "results.json").read_text())["k_test"] == 0


def test_rows_without_usable_captions_are_counted(caplog):
    from ccrk.build import keep_usable_rows

    rows = [
        {"image": Image.new("RGB", (8, 8)), "image_id": str(i), "captions": {"en": texts}}
        for i, texts in enumerate([["a star"], ["..."], []])
    ]
    dataset = datasets.Dataset.from_list(rows, features=row_features(["en"]))
    assert len(keep_usable_rows(dataset)) == 1
    assert "2 of 3 rows left out: no usable caption" in caplog.text
    with pytest.raises(ValueError, match="no row has a usable caption"):
        keep_usable_rows(dataset.select([1, 2]))


# Every argument of transformers that does here what it says; the others are refused by name. One that a new release
# brings belongs to either.
HEEDED = """
    output_dir per_device_train_batch_size num_train_epochs max_steps learning_rate lr_scheduler_type
    lr_scheduler_kwargs warmup_steps optim optim_args weight_decay adam_beta1 adam_beta2 adam_epsilon
    gradient_accumulation_steps max_grad_norm bf16 fp16 tf32 activation_checkpointing activation_checkpointing_kwargs
    gradient_checkpointing gradient_checkpointing_kwargs torch_compile torch_compile_backend torch_compile_mode
    torch_empty_cache_steps logging_strategy logging_steps logging_first_step log_on_each_node logging_nan_inf_filter
    include_num_input_tokens_seen log_level log_level_replica disable_tqdm report_to run_name project
    trackio_space_id trackio_bucket_id trackio_static_space_id eval_strategy eval_steps eval_delay
    per_device_eval_batch_size eval_on_start save_only_model save_strategy save_steps save_on_each_node
    save_total_limit enable_jit_checkpoint push_to_hub hub_token hub_private_repo hub_model_id hub_strategy
    hub_always_push hub_revision load_best_model_at_end metric_for_best_model greater_is_better ignore_data_skip
    restore_callback_states_from_checkpoint full_determinism seed data_seed use_cpu accelerator_config
    dataloader_drop_last dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers
    dataloader_prefetch_factor dataloader_multiprocessing_context dataloader_in_order train_sampling_strategy
    ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph ddp_backend ddp_timeout
    fsdp deepspeed debug skip_memory_metrics do_eval resume_from_checkpoint local_rank
""".split()


class TestArguments:
    def test_each_is_heeded_or_refused(self):
        assert not set(HEEDED) & WITHOUT_EFFECT.keys()
        assert set(transformers.TrainingArguments.__dataclass_fields__) == set(HEEDED) | WITHOUT_EFFECT.keys()

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("label_smoothing_factor", 0.1),
            ("bf16_full_eval", True),
            ("fp16_full_eval", True),
            ("do_train", False),
            ("do_predict", True),
            ("do_eval", True),
            ("eval_on_start", True),
            ("prediction_loss_only", True),
            ("include_for_metrics", ["loss"]),
            ("eval_accumulation_steps", 2),
            ("batch_eval_metrics", True),
            ("eval_do_concat_batches", False),
            ("eval_use_gather_object", True),
            ("train_sampling_strategy", "group_by_length"),
            ("train_sampling_strategy", "batch_rebalance"),
            ("length_column_name", "tokens"),
            ("neftune_noise_alpha", 5.0),
            ("auto_find_batch_size", True),
            ("use_liger_kernel", True),
            ("liger_kernel_config", {"rope": True}),
            ("label_names", ["labels"]),
            ("include_num_input_tokens_seen", "all"),
            ("average_tokens_across_devices", False),
            ("remove_unused_columns", True),
            ("use_cache", True),
            ("optim_target_modules", "all-linear"),
            ("fsdp_config", {"version": 2}),
            ("load_best_model_at_end", True),
            ("save_strategy", "best"),
        ],
    )
    def test_what_would_do_nothing_is_refused_by_name(self, name, value, tmp_path):
        with pytest.raises(ValueError, match=name) as raised:
            CCRKTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **{name: value})
        assert "\n" not in str(raised.value)

    @pytest.mark.parametrize("name", ["compute_loss_func", "compute_metrics", "preprocess_logits_for_metrics"])
    def test_functions_that_nothing_calls_are_refused(self, name, tiny_model, processor, shapes, tmp_path):
        arguments = CCRKTrainingArguments(output_dir=str(tmp_path), use_cpu=True)
        with pytest.raises(ValueError, match=f"{name} has no effect"):
            CCRKTrainer(tiny_model, arguments, train_dataset=shapes, **{name: lambda *_: None})

    def test_a_script_refuses_in_one_line(self, recipe, monkeypatch):
        with pytest.raises(SystemExit, match=r"^error: .*do_train cannot be False: these scripts train"):
            call(train_pretrain, recipe, "--do_train", "false", monkeypatch=monkeypatch)

    def test_accumulation_is_no_part_of_the_loss(self, tiny_model, processor, shapes, tmp_path):
        """transformers may decide it by what a model's forward takes; the Trainer says so itself."""
        assert make_trainer(tiny_model, processor, shapes, tmp_path).loss_is_scaled_for_ga is False

    def test_tokens_and_a_first_evaluation(self, tiny_model, processor, shapes, tmp_path):
        arguments = {"include_num_input_tokens_seen": "non_padding", "eval_on_start": True, "eval_strategy": "steps"}
        trainer = make_trainer(tiny_model, processor, shapes, tmp_path, max_steps=1, eval_steps=1, **arguments)
        trainer.train()
        assert [log["step"] for log in trainer.state.log_history if "eval_mean_recall" in log] == [0, 1]
        assert 8 * 3 * 5 < trainer.state.num_input_tokens_seen < 8 * 3 * 40


class TestBestMetric:
    STEPS: ClassVar = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}

    @pytest.mark.parametrize(
        ("metric", "best"), [("mrv", 1), ("eval_mrv", 1), ("mean_recall", 2), ("recall_de", 2), ("runtime", 1)]
    )
    def test_which_way_is_better(self, metric, best, tiny_model, processor, shapes, tmp_path):
        """Evaluations whose every figure grows: the first is the best where lower is better."""
        arguments = {"load_best_model_at_end": True, "metric_for_best_model": metric, "max_steps": 2}
        trainer = make_trainer(tiny_model, processor, shapes, tmp_path, **self.STEPS, **arguments)

        def evaluate(*_, **__):
            names = ("mrv", "mean_recall", "recall_de", "runtime")
            trainer.log(metrics := {f"eval_{name}": float(trainer.state.global_step) for name in names})
            trainer.control.should_evaluate = False
            return metrics

        trainer.evaluate = evaluate
        trainer.train()
        assert trainer.state.best_global_step == best

    def test_names_end_alike_in_several_data_sets(self, tmp_path):
        for name, greater in (("far_mrv", False), ("far_mean_recall", True), ("std", False), ("variance", False)):
            arguments = {"metric_for_best_model": name, "output_dir": str(tmp_path), "use_cpu": True}
            assert CCRKTrainingArguments(**arguments).greater_is_better is greater
            with pytest.raises(ValueError, match=rf"{name} is better when .*; leave greater_is_better out"):
                CCRKTrainingArguments(**arguments, greater_is_better=not greater)

    @pytest.mark.parametrize("metric", [None, "loss", "recall_xx", "accuracy", "eval_loss"])
    def test_one_that_cannot_exist_ends_the_run_before_it_begins(self, metric, recipe, tmp_path, monkeypatch):
        arguments = ["--eval_strategy", "steps", "--save_strategy", "steps", "--load_best_model_at_end", "true"]
        arguments += [] if metric is None else ["--metric_for_best_model", metric]
        names = "choose one of recall_en, recall_de, recall_zh, mean_recall, mrv, runtime"
        with pytest.raises(SystemExit, match=f"^error: metric_for_best_model is {metric or 'loss'}, .*{names}$"):
            call(train_pretrain, recipe, *arguments, monkeypatch=monkeypatch)

    def test_the_names_are_those_of_an_evaluation(self, tiny_model, processor, shapes, tmp_path):
        trainer = make_trainer(tiny_model, processor, shapes, tmp_path)
        apart = [{"en": ["a star"], "de": []}, {"en": [], "de": ["ein stern"]}]
        rows = [{"image": Image.new("RGB", (8, 8)), "image_id": str(i), "captions": c} for i, c in enumerate(apart)]
        apart = datasets.Dataset.from_list(rows, features=row_features(["en", "de"]))
        few = shapes.select(range(4))
        for evaluated in (few, {"a": few, "b": few}, apart):
            trainer.eval_dataset = evaluated
            found = [name for name in trainer.evaluate() if name.startswith("eval_")]
            assert [f"eval_{name}" for name in trainer.metric_names()] == found

    def test_schedules_that_follow_a_metric_know_which_way_is_better(self, tiny_model, processor, shapes, tmp_path):
        for metric, mode in (("mrv", "min"), ("mean_recall", "max")):
            arguments = {"lr_scheduler_type": "reduce_lr_on_plateau", "metric_for_best_model": metric}
            trainer = make_trainer(tiny_model, processor, shapes, tmp_path, **self.STEPS, **arguments)
            trainer.create_optimizer_and_scheduler(4)
            assert trainer.lr_scheduler.mode == mode
