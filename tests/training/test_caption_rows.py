"""Fine-tuning's rows: every usable caption with its image, once an epoch."""

import json

import datasets
import pytest
import torch
from builders import jpeg
from PIL import Image
from tiny import call

import train_pretrain
import train_retrieval
from ccrk.training.collator import CCRKCollator, published_augmentation
from data_scripts.caption_rows import CaptionRows
from data_scripts.rows import row_features


@pytest.fixture
def images() -> datasets.Dataset:
    captions = [
        {"en": ["a red star", "?!", "a star"], "de": ["ein roter Stern"]},
        {"en": [], "de": []},
        {"en": ["a blue circle"], "de": ["ein Kreis", "ein blauer Kreis"]},
    ]
    rows = {
        "image": [{"bytes": jpeg(shade, (96, 64)), "path": None} for shade in (0, 80, 160)],
        "image_id": list("abc"),
    }
    return datasets.Dataset.from_dict(rows | {"captions": captions}, features=row_features(["en", "de"]))


def test_a_row_is_a_usable_caption(images):
    rows = CaptionRows(images)
    assert [(row["image_id"], row["caption"]) for row in rows] == [
        *(("a", name) for name in ("en 0", "en 2", "de 0")),
        *(("c", name) for name in ("en 0", "de 0", "de 1")),
    ]
    assert len(rows) == 6 and rows["image_id"] == list("aaaccc")
    assert rows[1]["captions"] == {"en": ["a star"], "de": []}
    assert rows[5]["captions"] == {"en": [], "de": ["ein blauer Kreis"]}
    with pytest.raises(IndexError):
        rows[6]


@pytest.mark.parametrize("aligned", [False, True])
def test_it_is_the_caption_that_is_trained_on(aligned, images, processor):
    if aligned:
        images = images.add_column("aligned", [True] * 3)
    rows = CaptionRows(images)
    batch = CCRKCollator(processor, ["en", "de"], one_language=True)(list(rows))
    texts = ["a red star", "a star", "ein roter Stern", "a blue circle", "ein Kreis", "ein blauer Kreis"]
    assert torch.equal(batch["input_ids"], processor(text=[[text] for text in texts])["input_ids"])
    assert batch["image_ids"].unique().numel() == 2  # captions of one image are positives of each other


def test_rows_of_one_image_are_cropped_each_by_itself(images, processor):
    collator = CCRKCollator(processor, ["en", "de"], True, published_augmentation(64, 0.2))
    noise = Image.effect_noise((96, 64), 100)
    pixels = collator([row | {"image": noise} for row in CaptionRows(images)])["pixel_values"]
    assert not any(torch.equal(pixels[0], other) for other in pixels[1:3])


@pytest.mark.slow
def test_scripts_train_on_captions_or_images(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    call(train_pretrain, recipe, "--output_dir", "pretrain", monkeypatch=monkeypatch)
    epoch = ("--max_steps", -1, "--num_train_epochs", 1, "--model_name_or_path", "pretrain")
    steps = {}
    for rows in ("captions", "images"):
        call(train_retrieval, recipe, *epoch, "--rows", rows, "--output_dir", rows, monkeypatch=monkeypatch)
        steps[rows] = json.loads((tmp_path / rows / "train_results.json").read_text())["train_steps"]
    assert steps["captions"] == 3 * steps["images"]  # en, de and zh
    assert "pictures with" in (tmp_path / "captions" / "README.md").read_text()
    with pytest.raises(SystemExit, match="agreement_weight needs captions in several languages"):
        call(train_retrieval, recipe, *epoch, "--agreement_weight", 3, "--output_dir", "x", monkeypatch=monkeypatch)
    with pytest.raises(SystemExit, match="layers applies only to an encoder to start from"):
        call(train_pretrain, recipe, "--layers", "all", "--output_dir", "x", monkeypatch=monkeypatch)
    with pytest.raises(SystemExit, match="rows is captions, but 1-to-K takes all captions of an image at once"):
        call(train_pretrain, recipe, "--rows", "captions", monkeypatch=monkeypatch)
