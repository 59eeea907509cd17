"""Features of frozen encoders: encoded once, and only what is missing of them."""

import numpy as np
import pytest
import torch
from builders import full_disk
from test_dual_encoders import FAMILIES
from tiny import make_rows, tokenizer

from ccrk.encoders import DualEncoder
from ccrk.training import features
from ccrk.training.collator import CCRKCollator
from ccrk.training.features import Features, caption_features, image_features
from data_scripts.problems import Problems

NAMES = [f"{number}.jpg" for number in range(20)]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(features, "BLOCK", 8)


def encode(names, seen):
    seen.append(list(names))
    return torch.tensor([[float(name.split(".")[0]), 1.0] for name in names])


def cached(path, seen, encode=encode):
    return features._cached(path, NAMES, 2, lambda names: encode(names, seen), "encoding")


def test_a_name_finds_its_features():
    found = Features(["b", "a", "c"], np.arange(6, dtype=np.float32).reshape(3, 2))
    assert found.of(["a", "c", "a"]).tolist() == [[2, 3], [4, 5], [2, 3]]
    with pytest.raises(KeyError, match="d"):
        found.of(["a", "d"])


def test_what_is_whole_is_not_encoded_again(tmp_path):
    path, seen = tmp_path / "features" / "a.npy", []

    def interrupted(names, seen):
        if len(seen) == 2:
            raise KeyboardInterrupt
        return encode(names, seen)

    with pytest.raises(KeyboardInterrupt):
        cached(path, seen, interrupted)
    assert seen == [NAMES[:8], NAMES[8:16]]
    seen.clear()
    assert cached(path, seen).of(NAMES).tolist() == encode(NAMES, []).tolist()
    assert seen == [NAMES[16:]]
    seen.clear()
    contents = bytearray(path.read_bytes())
    contents[-12 * 8 + 3] ^= 1  # of the second block
    path.write_bytes(contents)
    assert cached(path, seen).of(NAMES).tolist() == encode(NAMES, []).tolist()
    assert seen == [NAMES[8:16]]


def test_a_full_disk_ends_in_one_line(tmp_path):
    with full_disk(64), pytest.raises(OSError, match=r"a\.npy could not be written .*; make room, or set"):
        cached(tmp_path / "a.npy", [])
    assert not list(tmp_path.glob("a*"))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_of_features_embeds_as_one_of_pictures(family, processor, tmp_path):
    torch.manual_seed(0)
    encoder = DualEncoder(*FAMILIES[family](tokenizer(processor)))
    encoder.model.eval()
    rows = make_rows([[3], [5], [2]], languages=("en", "de"))
    whole = CCRKCollator(encoder.inputs, ["en", "de"])
    with torch.no_grad():
        expected = encoder.embed(encoder.model, whole(list(rows)))
        own = CCRKCollator(
            encoder.inputs,
            ["en", "de"],
            image_features=image_features(encoder, rows, tmp_path, Problems("pictures")),
            caption_features=caption_features(encoder, rows, tmp_path),
        )
        for modality in ("image", "text"):
            encoder.take_features(modality)
        batch = own(list(rows.remove_columns("image")))
        assert set(batch) == {"image_embeds", "text_embeds", "caption_mask", "image_ids"}
        found = encoder.embed(encoder.model, batch)
        again = encoder.embed(encoder.model, whole(list(rows)))  # evaluation goes on with pictures
    for embeddings in (found, again):
        torch.testing.assert_close(embeddings.image, expected.image, atol=1e-5, rtol=0)
        torch.testing.assert_close(embeddings.text, expected.text, atol=1e-5, rtol=0)


def test_a_picture_that_cannot_be_read_is_counted_and_tried_again(processor, tmp_path):
    torch.manual_seed(0)
    encoder = DualEncoder(*FAMILIES["clip"](tokenizer(processor)))
    rows = make_rows([[3], [5], [2]])
    broken = rows.to_list()
    broken[1]["image"] = {"bytes": b"no picture", "path": None}
    rows = rows.from_list(broken, features=rows.features)
    for _ in range(2):
        problems = Problems("pictures")
        found = image_features(encoder, rows, tmp_path, problems)
        assert problems.counts.total() == 1 and problems.rows == 3
        assert found.of(["0", "1", "2"]).isnan().any(dim=1).tolist() == [False, True, False]
