"""The processor: nested and ragged captions, pictures of every kind, and clear refusals."""

import numpy as np
import pytest
import torch
from PIL import Image

from processing_ccrk import CCRKProcessor, published_image_processor


def test_flat_captions_are_padded_to_a_multiple_of_eight(processor):
    inputs = processor(text=["A small red star.", "ein großer blauer Kreis links von einem kleinen gelben Quadrat"])
    assert inputs["input_ids"].shape == inputs["attention_mask"].shape
    assert inputs["input_ids"].shape[1] % 8 == 0
    assert inputs["input_ids"][:, 0].tolist() == [0, 0]
    assert "caption_mask" not in inputs


def test_nested_captions_keep_their_layout_and_missing_ones_are_masked(processor):
    inputs = processor(text=[["a red star", "ein roter Stern"], [None, "ein blauer Kreis"]])
    assert inputs["input_ids"].shape[:2] == (2, 2)
    assert inputs["caption_mask"].tolist() == [[True, True], [False, True]]
    assert inputs["attention_mask"][1, 0].sum() == 2  # <s></s>: attention over nothing would be undefined
    flat = processor(text=["a red star", "ein roter Stern", "", "ein blauer Kreis"][:2])
    assert torch.equal(inputs["input_ids"][0, :, : flat["input_ids"].shape[1]], flat["input_ids"])


def test_the_arguments_that_clip_users_write(processor):
    inputs = processor(
        images=Image.new("RGB", (9, 9)), text=["a red star"], padding="max_length", max_length=16, return_tensors="pt"
    )
    assert inputs["input_ids"].shape == (1, 16) and inputs["pixel_values"].shape == (1, 3, 64, 64)


def test_normalisation_can_be_switched_off(processor):
    plain = CCRKProcessor(processor.image_processor, processor.tokenizer, normalize_captions=False)
    loud = ["A SMALL, red star!"]
    assert torch.equal(processor(text=loud)["input_ids"], processor(text=["a small red star"])["input_ids"])
    assert not torch.equal(plain(text=loud)["input_ids"], processor(text=loud)["input_ids"])


def test_long_captions_are_cut(processor):
    short = CCRKProcessor(processor.image_processor, processor.tokenizer, max_words=3, max_length=8)
    inputs = short(text=["a small red star to the left of a large blue circle"])
    assert torch.equal(inputs["input_ids"], short(text=["a small red"])["input_ids"])
    assert inputs["attention_mask"].sum() <= 8


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "CMYK", "1"])
def test_pictures_of_every_mode_become_rgb_squares(processor, mode):
    pixels = processor(images=Image.new("RGB", (50, 80), (200, 30, 30)).convert(mode))["pixel_values"]
    assert pixels.shape == (1, 3, 64, 64) and torch.isfinite(pixels).all()


def test_published_image_settings():
    picture = Image.fromarray(np.full((10, 20, 3), 255, dtype=np.uint8))
    pixels = published_image_processor(384)(picture, return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 384, 384)
    expected = [(1 - 0.48145466) / 0.26862954, (1 - 0.4578275) / 0.26130258, (1 - 0.40821073) / 0.27577711]
    assert pixels.mean(dim=(0, 2, 3)).tolist() == pytest.approx(expected, rel=1e-5)


def test_save_and_load(processor, tmp_path):
    changed = CCRKProcessor(processor.image_processor, processor.tokenizer, max_words=7, normalize_captions=False)
    changed.save_pretrained(tmp_path)
    loaded = CCRKProcessor.from_pretrained(tmp_path)
    assert (loaded.max_words, loaded.max_length, loaded.normalize_captions) == (7, 40, False)
    text = ["A red star", "一个红色的星"]
    assert torch.equal(loaded(text=text)["input_ids"], changed(text=text)["input_ids"])
    assert loaded.image_processor.size == {"height": 64, "width": 64}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "give images, text or both"),
        ({"text": []}, "K is 0"),
        ({"text": [[], []]}, "K is 0"),
        ({"text": [["a", "b"], ["c"]]}, "same number per image"),
        ({"text": ["a", ["b"]]}, "partly nested"),
        ({"text": ["a", None]}, "only nested captions"),
        ({"text": ["a star", " ?! "]}, "empty after normalisation"),
        ({"images": ["no such picture.jpg"]}, "no such picture.jpg cannot be read as a picture"),
        ({"images": [__file__]}, "test_processing.py cannot be read as a picture"),
        ({"images": [b"these bytes are no picture"]}, "a bytes is no picture; give a path"),
    ],
)
def test_bad_input_is_refused_in_one_line(processor, arguments, message):
    with pytest.raises(ValueError, match=message) as raised:
        processor(**arguments)
    assert "\n" not in str(raised.value).strip()


def test_arguments_by_group(processor):
    """As callers give them that know no single processor."""
    image = Image.new("RGB", (20, 30), "red")
    plain = processor(images=[image], text=["a red star"], padding="max_length", max_length=16, return_tensors="np")
    grouped = processor(
        images=[image],
        text=["a red star"],
        text_kwargs={"padding": "max_length", "max_length": 16},
        images_kwargs={},
        audio_kwargs={},
        videos_kwargs={},
        common_kwargs={"return_tensors": "np"},
    )
    assert plain.keys() == grouped.keys() and grouped["input_ids"].shape == (1, 16)
    for name, array in plain.items():
        assert isinstance(grouped[name], np.ndarray) and np.array_equal(grouped[name], array)
    unscaled = processor(images=[image], images_kwargs={"do_normalize": False, "do_rescale": False})
    assert unscaled["pixel_values"].max() == 255


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("max_lenght", {"max_lenght": 20}),
        ("do_normalize", {"do_normalize": False}),  # there is no picture
        ("add_special_tokens", {"text_kwargs": {"add_special_tokens": False}}),
        ("device", {"common_kwargs": {"device": "cuda"}}),
    ],
)
def test_arguments_that_nothing_takes_are_refused(processor, name, arguments):
    with pytest.raises(TypeError, match=f"unexpected argument {name}; captions take padding"):
        processor(text=["a red star"], **arguments)
