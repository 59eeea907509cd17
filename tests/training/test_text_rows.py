"""Rows of captions without a picture: which they are, and that agreement alone sees them."""

import json

import pytest
import torch
from accelerate import Accelerator
from tiny import call, tokenizer
from torch.nn import functional as F
from training.test_dual_encoders import make_clip

import data_scripts
import train_retrieval
from ccrk.encoders import Embeddings
from ccrk.training.losses import OneToKLoss
from objectives_ccrk import agreement_loss, contrastive_loss


@pytest.fixture
def table(shapes, tmp_path):
    """Eight rows with a picture, and of those without one two with captions in two languages."""
    (folder := tmp_path / "photos").mkdir()
    lines = []
    for number, row in enumerate(shapes.select(range(8))):
        row["image"].save(folder / f"{number}.png")
        lines.append(
            {"file_name": f"{number}.png"} | {language: row["captions"][language] for language in ("en", "de")}
        )
    lines += [
        {"file_name": "gone.png", "image_id": "gone.png", "en": "a dog", "de": "ein Hund"},
        *[{"file_name": "", "image_id": "cat"} | caption for caption in ({"en": "a cat"}, {"de": ["eine Katze"]})],
        {"file_name": "away.png", "image_id": "away", "en": "a bird"},
        {"file_name": "", "image_id": "fish", "en": "a fish", "de": " "},
    ]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def test_rows_without_a_picture(table):
    rows = data_scripts.load(str(table), split="train", text_only=True, max_bad_fraction=1.0)
    assert rows["captions"][:] == [{"en": ["a dog"], "de": ["ein Hund"]}, {"en": ["a cat"], "de": ["eine Katze"]}]
    assert set(rows["image"]) == {None} and rows["image_id"][:] == ["gone.png", "cat"]
    assert len(data_scripts.load(str(table), split="train", max_bad_fraction=1.0)) == 8


def test_a_table_of_many_rows_without_a_picture(table):
    """They are absent, not bad: no share of them ends a run."""
    lines = (table / "metadata.jsonl").read_text().splitlines()[:10]
    lines += [
        json.dumps({"file_name": "", "image_id": f"text {i}", "en": f"no {i}", "de": f"Nr. {i}"}) for i in range(60)
    ]
    (table / "metadata.jsonl").write_text("\n".join(lines))
    assert len(data_scripts.load(str(table), split="train")) == 8
    assert len(data_scripts.load(str(table), split="train", text_only=True)) == 61


def test_agreement_alone_sees_them():
    generator = torch.Generator().manual_seed(0)
    image, text = (F.normalize(torch.randn(*size, 8, generator=generator), dim=-1) for size in ((4,), (7, 3)))
    mask, ids = torch.rand(7, 3, generator=generator) > 0.2, torch.tensor([1, 2, 2, 3])
    found = Embeddings(image, text, torch.tensor(0.2))
    losses = OneToKLoss(Accelerator(cpu=True), agreement_weight=2.0)(found, {"caption_mask": mask, "image_ids": ids})
    torch.testing.assert_close(
        losses["contrastive_loss"],
        contrastive_loss(image, text[:4], torch.tensor(0.2), mask[:4], ids, reduction="symmetric"),
    )
    torch.testing.assert_close(losses["agreement_loss"], 2 * agreement_loss(image, text, torch.tensor(0.2), mask, ids))


FROM_SCRATCH = '{"text_config": {"vocab_size": 200}}'


def arguments(table, tmp_path, **others) -> list:
    values = {"dataset": table, "model_name_or_path": tmp_path / "clip", "output_dir": tmp_path / "out"}
    values |= {"text_only_rows": "true", "agreement_weight": 3, "agreement_start": 0.5, "max_bad_fraction": 1}
    values |= {"per_device_train_batch_size": 4, "max_steps": 2, "logging_steps": 1, "use_cpu": "true"}
    values |= {"report_to": "none", "disable_tqdm": "true", "save_strategy": "no"} | others
    return [part for name, value in values.items() if value is not None for part in (f"--{name}", value)]


@pytest.mark.slow
def test_training_with_them(table, processor, tmp_path, monkeypatch):
    torch.manual_seed(0)
    for part in make_clip(tokenizer(processor)):
        part.save_pretrained(tmp_path / "clip")
    call(train_retrieval, *arguments(table, tmp_path), monkeypatch=monkeypatch)
    first, second, *_ = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"]
    assert "agreement_loss" not in first and second["agreement_loss"] > 0
    assert "captions of 2 rows without a picture, in agreement" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"agreement_weight": 0}, "text_only_rows take part in agreement alone; set agreement_weight"),
        ({"contrastive_chunk_size": 2}, "text_only_rows and contrastive_chunk_size do not go together"),
        ({"dataset": "shapes"}, "text_only_rows needs annotations of photographs, and shapes has none; remove it"),
        ({"streaming": "true"}, "text_only_rows takes rows that are all known before; remove streaming"),
        (
            {"model_name_or_path": None, "config": FROM_SCRATCH, "image_size": 32, "captions_per_image": "all"},
            "text_only_rows applies only to dual encoders; remove it",
        ),
    ],
)
def test_mistakes_end_in_one_line(options, message, table, processor, tmp_path, monkeypatch):
    for part in make_clip(tokenizer(processor)):
        part.save_pretrained(tmp_path / "clip")
    with pytest.raises(SystemExit, match=message):
        call(train_retrieval, *arguments(table, tmp_path, **options), monkeypatch=monkeypatch)


def test_no_row_without_a_picture(table, tmp_path):
    lines = (table / "metadata.jsonl").read_text().splitlines()[:8]
    (table / "metadata.jsonl").write_text("\n".join(lines))
    with pytest.raises(ValueError, match="no row without a photograph has captions in two of en, de; remove "):
        data_scripts.load(str(table), split="train", text_only=True)
