"""Batches and runs over pictures that cannot be read."""

import numpy as np
import pytest
import torch
from pictures import JPEG, PNG, WEBP, encode
from PIL import Image

import pictures_ccrk
from ccrk.training.arguments import CCRKTrainingArguments
from ccrk.training.collator import CCRKCollator
from ccrk.training.trainer import CCRKTrainer
from data_scripts import images


def test_a_picture_that_memory_does_not_suffice_for_is_counted(processor, rows, monkeypatch):
    def to_rgb(image):
        if image.format == "WEBP":
            raise MemoryError
        return image.convert("RGB")

    monkeypatch.setattr(pictures_ccrk, "to_rgb", to_rgb)
    problems = CCRKCollator(processor, ["en"])(rows)["problems"]
    assert problems.counts[images.BOMB] == 1


@pytest.fixture
def rows(tmp_path):
    """Eight rows as `datasets.Image(decode=False)` gives them: three cannot be read."""
    contents = [JPEG, b"", PNG, JPEG[:300], WEBP, None, PNG, JPEG]
    rows = []
    for number, content in enumerate(contents):
        path = tmp_path / f"{number}.jpg"
        if content is not None:
            path.write_bytes(content)
        image = {"bytes": None, "path": str(path)}
        rows.append({"image": image, "image_id": str(number), "captions": {"en": [f"caption {number}"]}})
    return rows


def test_a_batch_goes_on_without_its_bad_images(processor, rows):
    batch = CCRKCollator(processor, ["en"])(rows)
    assert batch["pixel_values"].shape == (8, 3, 64, 64)
    assert batch["input_ids"].shape[:2] == (8, 1)
    problems = batch["problems"]
    assert problems.counts == {images.EMPTY: 1, images.DAMAGED: 1} and problems.absences == {images.MISSING: 1}
    # Five rows fill eight places; who takes another's place keeps its own captions and id.
    for place, other in ((5, 0), (6, 1), (7, 2)):
        assert batch["image_ids"][place] == batch["image_ids"][other]
        assert torch.equal(batch["pixel_values"][place], batch["pixel_values"][other])
        assert torch.equal(batch["input_ids"][place], batch["input_ids"][other])
    assert batch["image_ids"].unique().numel() == 5
    assert "problems" not in CCRKCollator(processor, ["en"])([rows[0], rows[2]])


@pytest.mark.parametrize(("augmentation", "size"), [(None, (96, 64)), (lambda picture: picture, (192, 128))])
def test_pictures_to_crop_from_keep_pixels_to_spare(processor, tmp_path, monkeypatch, augmentation, size):
    (tmp_path / "large.jpg").write_bytes(encode(Image.new("RGB", (384, 256)), "JPEG"))
    row = {"image": {"bytes": None, "path": str(tmp_path / "large.jpg")}, "image_id": "1", "captions": {"en": ["a"]}}
    sizes = []
    call = type(processor).__call__
    monkeypatch.setattr(
        type(processor),
        "__call__",
        lambda self, images, **options: sizes.extend(i.size for i in images) or call(self, images=images, **options),
    )
    CCRKCollator(processor, ["en"], augmentation=augmentation)([row])
    assert sizes == [size], "for an input of 64 pixels"


def test_a_batch_without_any_image_stops(processor, rows):
    with pytest.raises(ValueError, match=r"no image of a batch of 2 can be read(?s:.*)image of zero bytes"):
        CCRKCollator(processor, ["en"])([rows[1], rows[3]])


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_training_goes_on_and_reports(tiny_model, processor, rows, tmp_path, workers):
    arguments = CCRKTrainingArguments(
        output_dir=str(tmp_path / "out"),
        per_device_train_batch_size=4,
        max_steps=4,
        logging_steps=2,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        dataloader_num_workers=workers,
    )
    collator = CCRKCollator(processor, ["en"])
    trainer = CCRKTrainer(
        model=tiny_model, args=arguments, data_collator=collator, train_dataset=rows, processing_class=processor
    )
    trainer.train()
    assert trainer.problems.rows == 16
    assert trainer.problems.counts == {images.EMPTY: 2, images.DAMAGED: 2}
    assert trainer.problems.absences == {images.MISSING: 2}
    assert [log["bad_images"] for log in trainer.state.log_history if "bad_images" in log] == [3, 6]
    assert all(np.isfinite(log["loss"]) for log in trainer.state.log_history if "loss" in log)
