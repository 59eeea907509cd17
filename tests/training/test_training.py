"""Training: batches, parameter groups, logs, evaluation, resuming, and the scripts from end to end."""

import math

import pytest
import torch
import transformers
from tiny import make_rows, make_trainer

from ccrk.encoders import CCRKEncoder
from ccrk.training.collator import CCRKCollator
from ccrk.training.memory import saved_bytes
from objectives_ccrk import sampling_keys


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


@pytest.mark.slow
def test_logs_hold_every_part(tiny_model, processor, shapes, tmp_path):
    trainer = make_trainer(tiny_model, processor, shapes, tmp_path, max_steps=2)
    trainer.train()
    for log in trainer.state.log_history[:2]:
        parts = log["contrastive_loss"] + log["matching_loss"] + log["mlm_loss"]
        assert parts == pytest.approx(log["loss"], abs=1e-3)
        assert 0.001 <= log["temperature"] <= 0.5 and log["images_per_second"] > 0


@pytest.mark.slow
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


@pytest.mark.slow
def test_evaluation_on_several_data_sets(tiny_model, processor, shapes, tmp_path):
    trainer = make_trainer(tiny_model, processor, shapes, tmp_path, eval_strategy="steps", eval_steps=1, max_steps=1)
    trainer.eval_dataset = {"near": shapes.select(range(4)), "far": shapes.select(range(4, 8))}
    trainer.train()
    logged = {name for log in trainer.state.log_history for name in log}
    assert {"eval_near_recall_zh", "eval_near_mean_recall", "eval_far_recall_zh", "eval_far_mrv"} <= logged


@pytest.mark.slow
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
    with pytest.raises(ValueError, match="no usable caption in de; choose other languages"):
        trainer.languages_to_evaluate(make_rows([[], []], ("en", "de")))


class Poisoned(CCRKCollator):
    """Every picture of the images named `poisoned` is NaN."""

    poisoned = frozenset()

    def __call__(self, rows):
        batch = super().__call__(rows)
        for index, row in enumerate(rows):
            if row["image_id"] in self.poisoned:
                batch["pixel_values"][index] = float("nan")
        return batch


@pytest.mark.slow
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


@pytest.mark.slow
def test_too_many_skipped_steps_end_the_run(tiny_model, processor, shapes, tmp_path):
    trainer = make_trainer(tiny_model, processor, shapes, tmp_path, max_steps=6, max_skipped_steps=2)
    trainer.data_collator = Poisoned(processor, ["en"])
    trainer.data_collator.poisoned = set(shapes["image_id"])
    with pytest.raises(FloatingPointError, match=r"3 in a row, 3 in all\); images: train-"):
        trainer.train()


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_batch_of_one_image_trains(tiny_model, processor, shapes, tmp_path):
    trainer = make_trainer(tiny_model, processor, shapes.select([0]), tmp_path, per_device_train_batch_size=1)
    trainer.train()
    assert all(torch.isfinite(torch.tensor(log["loss"])) for log in trainer.state.log_history if "loss" in log)
