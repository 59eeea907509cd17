"""Ten optimizer steps: the trainer follows the published procedure, and both the figures of the published code."""

import json
from pathlib import Path

import pytest
import torch
from conftest import ROOT, TINY_A_CONFIG
from published_training import train
from safetensors.torch import load_file
from torch import Tensor

import modeling_ccrk
from ccrk.convert import convert, published_tensors
from ccrk.training.arguments import CCRKTrainingArguments
from ccrk.training.trainer import CCRKTrainer
from modeling_ccrk import CCRKForImageTextRetrieval, CCRKForPreTraining
from objectives_ccrk import MaskedCaptions, MatchingPairs

# Figures of the published code, too large for tests/fixtures.
FIGURES = ROOT.parent / "shared" / "reference" / "trajectory"
STAGES = {"pretraining": CCRKForPreTraining, "finetuning": CCRKForImageTextRetrieval}
STEPS, B, L = 10, 3, 10
PEAK, WARMUP = {"pretraining": 1e-4, "finetuning": 3e-5}, 0.3
CLIP, SCALE = {"pretraining": 1.0, "finetuning": 0.0}, {"pretraining": 2.0, "finetuning": 1.0}


def make_model(published: dict, stage: str):
    """The checkpoint of the figures with the stage's head, without dropout."""
    config = {
        "text_config": TINY_A_CONFIG["text_config"]
        | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
        "vision_config": {"drop_path_rate": 0.0},
    }
    whole = convert(published, config)
    model = STAGES[stage](whole.config)
    model.load_state_dict({name: t for name, t in whole.state_dict().items() if name in model.state_dict()})
    return model


def made_batches(stage: str, vocab_size: int) -> list[dict[str, Tensor]]:
    """Ten random batches, in the layout of the figures'."""
    generator = torch.Generator().manual_seed(0)
    num_captions = 4 if stage == "pretraining" else 1
    draw = lambda high, *shape: torch.randint(high, shape, generator=generator)  # noqa: E731
    batches = []
    for _ in range(STEPS):
        mask = torch.arange(L) < draw(L - 4, B * num_captions, 1) + 4
        ids = torch.where(mask, draw(vocab_size - 5, B * num_captions, L) + 5, 1)
        positions = torch.rand(B * num_captions, 3, generator=generator).argsort(dim=1) + 1
        own = torch.arange(B)
        batch = {
            "image": torch.randn(B, 3, 64, 64, generator=generator),
            "input_ids": ids,
            "attention_mask": mask.long(),
            "positive_caption": own * num_captions + draw(num_captions, B),
            "negative_caption": (own + 1 + draw(B - 1, B)) % B * num_captions + draw(num_captions, B),
            "negative_image": (own + 1 + draw(B - 1, B)) % B,
        }
        if stage == "pretraining":
            batch["masked_input_ids"] = ids.scatter(1, positions, 4)
            batch["masked_pos"], batch["masked_labels"] = positions, ids.gather(1, positions)
        batches.append(batch)
    return batches


def figures_batches(stage: str) -> list[dict[str, Tensor]]:
    batches: list[dict] = [{} for _ in range(STEPS)]
    for name, tensor in load_file(FIGURES / f"{stage}_batches.safetensors").items():
        step, field = name.removeprefix("step").split(".")
        batches[int(step)][field] = tensor
    return batches


def run_trainer(model, batches: list[dict[str, Tensor]], stage: str, folder: Path, monkeypatch) -> list[list[float]]:
    """The losses of the product's trainer on the batches; what it would draw is given."""
    current = iter(batches)

    def chosen_pairs(*_):
        model.batch = batch = next(current)
        own, chosen = torch.arange(B), batch["positive_caption"]
        return MatchingPairs(
            image_index=torch.cat([own, batch["negative_image"], own]),
            caption_index=torch.cat([chosen, chosen, batch["negative_caption"]]),
            labels=torch.tensor([1] * B + [0] * 2 * B),
            positive_caption=chosen,
        )

    def chosen_masks(*_, **__):
        fields = ("masked_input_ids", "masked_pos", "masked_labels")
        return MaskedCaptions(*(model.batch[field][model.batch["positive_caption"]] for field in fields))

    monkeypatch.setattr(modeling_ccrk, "sample_matching_pairs", chosen_pairs)
    monkeypatch.setattr(modeling_ccrk, "mask_captions", chosen_masks)
    parts: list[list[float]] = []

    class Recording(CCRKTrainer):
        def _record(self, values, inputs):
            parts.append([value.item() for name, value in values.items() if name != "temperature"])
            super()._record(values, inputs)

    arguments = CCRKTrainingArguments(
        output_dir=str(folder),
        max_steps=STEPS,
        per_device_train_batch_size=1,  # an item is a batch
        learning_rate=PEAK[stage],
        warmup_steps=WARMUP,
        max_grad_norm=CLIP[stage],
        new_parameter_lr_scale=SCALE[stage],
        train_sampling_strategy="sequential",
        save_strategy="no",
        report_to="none",
        use_cpu=True,
    )
    rows = [
        {
            "pixel_values": batch["image"],
            "input_ids": batch["input_ids"].view(B, -1, L),
            "attention_mask": batch["attention_mask"].view(B, -1, L),
            "caption_mask": torch.ones(B, len(batch["input_ids"]) // B, dtype=torch.bool),
            "image_ids": torch.arange(B),
        }
        for batch in batches
    ]
    Recording(model, arguments, data_collator=lambda items: dict(items[0]), train_dataset=rows).train()
    return parts


def written_out(model, batches: list[dict[str, Tensor]], stage: str) -> list[list[float]]:
    return list(train(model.train(), batches, PEAK[stage], WARMUP, CLIP[stage], SCALE[stage]))


def assert_moved_alike(ours: dict[str, Tensor], theirs: dict[str, Tensor], start: dict[str, Tensor]) -> None:
    """Each tensor within 1e-3 of how far it moved, or what fp32 rounds a weight by in ten steps."""
    compared = [name for name in theirs if theirs[name].is_floating_point() and name in start]
    assert len(compared) > 200
    for name in compared:
        if name.endswith((".key.bias", ".k_proj.bias")):
            continue  # their true gradient is 0
        found, expected, before = (state[name].double() for state in (ours, theirs, start))
        if name.endswith(".qkv.bias"):
            found, expected, before = (tensor.view(3, -1)[[0, 2]] for tensor in (found, expected, before))
        apart, moved = (found - expected).norm(), (expected - before).norm()
        assert apart <= 1e-3 * moved + STEPS * 2**-24 * before.norm(), f"{name}: {apart / moved:.1e} of its movement"


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_the_trainer_follows_the_published_procedure(stage, published, tmp_path, monkeypatch):
    written, trained = make_model(published, stage), make_model(published, stage)
    start = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    batches = made_batches(stage, written.config.text_config.vocab_size)
    expected = written_out(written, batches, stage)
    found = run_trainer(trained, batches, stage, tmp_path, monkeypatch)
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), atol=1e-4, rtol=0)
    assert_moved_alike(trained.state_dict(), written.state_dict(), start)


@pytest.mark.skipif(not FIGURES.is_dir(), reason="the published code's figures are not beside the project")
@pytest.mark.parametrize("procedure", ["trainer", "written out"])
@pytest.mark.parametrize("stage", STAGES)
def test_the_published_figures_are_followed(stage, procedure, published, tmp_path, monkeypatch):
    figures = json.loads((FIGURES / f"{stage}.json").read_text())
    assert (figures["peak_learning_rate"], figures["gradient_clip"]) == (PEAK[stage], CLIP[stage])
    model, batches = make_model(published, stage), figures_batches(stage)
    start = {name: tensor.clone() for name, tensor in published_tensors(model)}
    if procedure == "trainer":
        found = run_trainer(model, batches, stage, tmp_path, monkeypatch)
    else:
        found = written_out(model, batches, stage)
    torch.testing.assert_close(torch.tensor(found), torch.tensor(figures["losses"]), atol=1e-4, rtol=0)
    weights = load_file(FIGURES / f"{stage}_weights.safetensors")
    assert_moved_alike(dict(published_tensors(model)), weights, start)
