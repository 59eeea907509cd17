"""Batches: captions drawn and masked, augmentation, rows that cannot be used."""

import datasets
import pytest
import torch
from PIL import Image

from ccrk.training.collator import CCRKCollator, published_augmentation, stable_id
from data_scripts.rows import row_features


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
