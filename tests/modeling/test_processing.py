"""The processor: nested and ragged captions, pictures of every kind, and clear refusals."""

import copy
import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from builders import isolated
from hypothesis import assume, example, given
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoTokenizer, TokenizersBackend, XLMRobertaTokenizer, pipeline

from ccrk import CCRKForImageTextRetrieval, CCRKModel, normalize_caption
from data_scripts.tokenizer import train_tokenizer
from processing_ccrk import CCRKProcessor, caption_tokenizer, published_image_processor


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


LONG = "a small red star to the left of a large blue circle " * 4


@pytest.mark.parametrize("max_length", [2, 3, 5, 8, 9, 20, 39, 77])
@pytest.mark.parametrize("padding", ["longest", True, "max_length", False])
def test_any_max_length(processor, max_length, padding):
    patient = CCRKProcessor(processor.image_processor, processor.tokenizer, max_words=99)
    texts = [LONG, "a red star"]
    inputs = patient(text=texts, padding=padding, max_length=max_length, return_tensors=None)
    ids = [processor.tokenizer(text, truncation=True, max_length=max_length)["input_ids"] for text in texts]
    lengths = [len(row) for row in ids]
    assert [sum(mask) for mask in inputs["attention_mask"]] == lengths and max(lengths) <= max_length
    assert [row[:length] for row, length in zip(inputs["input_ids"], lengths, strict=True)] == ids
    rounded = min(-(-lengths[0] // 8) * 8, max_length)
    width = {"max_length": [max_length] * 2, False: lengths}.get(padding, [rounded] * 2)
    assert [len(row) for row in inputs["input_ids"]] == width
    if padding is not False:
        nested = patient(text=[texts, [None, LONG]], padding=padding, max_length=max_length)
        assert nested["input_ids"].shape == (2, 2, width[0]) and nested["input_ids"][0].tolist() == inputs["input_ids"]


def test_without_truncation_a_caption_keeps_all_tokens(processor):
    patient = CCRKProcessor(processor.image_processor, processor.tokenizer, max_words=99)
    inputs = patient(text=[LONG], truncation=False, max_length=5)
    assert inputs["attention_mask"].sum() == len(processor.tokenizer(LONG)["input_ids"])
    assert inputs["input_ids"].shape[1] % 8 == 0
    assert patient(text=[LONG], truncation=False, pad_to_multiple_of=1)["attention_mask"].all()


@pytest.mark.parametrize("max_length", [0, 1, -3, True, "7", 7.5])
def test_a_max_length_that_leaves_nothing_is_refused(processor, max_length):
    """Of tokenizers, 1 gives the whole caption."""
    with pytest.raises(ValueError, match=f"max_length is {max_length!r}; give a whole number, 2 at least"):
        processor(text=["a red star"], max_length=max_length)


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


@pytest.fixture(scope="module")
def plain() -> TokenizersBackend:
    captions = ["a red star", "person in a rot haus", "σασ ας οδος ι̇ ß ss 星 fi ﬁ", "< > < person >"]
    return train_tokenizer([*captions, *"abcdefghijklmnopqrstuvwxyz0123456789<>"] * 3, 120)


class TestTokenizerNormalises:
    """For pipelines, which see the tokenizer and never the processor."""

    def test_reference_cases(self, processor, normalisation_cases):
        whole = [case for case in normalisation_cases if "expected" in case]
        assert len(whole) > 150
        plain = caption_tokenizer(processor.tokenizer, normalize=False)
        for case in whole:
            expected = normalize_caption(case["text"], 10**6)
            assert expected.startswith(case["expected"])
            found = processor.tokenizer(case["text"])["input_ids"]
            assert found == plain(expected)["input_ids"] == processor.tokenizer(expected)["input_ids"], case["text"]

    @given(
        st.text(
            st.sampled_from("ΣσςΑα'’.·:,<>-/ \n\t\r\x1c\x1f\x85\xa0\u200b\u2028\u3000\u0301\u02b0\u0345İıßẞﬁaBI1星")
        )
        | st.text(st.characters(exclude_categories=["Cs", "Cn"]))
        | st.lists(st.sampled_from(["<person>", "<PERSON>", "ΟΔΟΣ", "Σ", " ", "-", "A\n", "\u00a0", "<"])).map("".join)
    )
    @example("ΟΔΟΣ ΣΟΦΙΑΣ ΑΣ' ΑΣ'Α ʰΣ")
    @example("<<PERSON>")
    def test_as_the_processor_does(self, plain, text):
        try:
            expected = normalize_caption(text, 10**6)
        except ValueError:
            assume(False)
        assume(not re.search("<(s|/s|pad|unk|mask)>", text + expected))
        tokenizer = caption_tokenizer(plain)
        found = tokenizer(text)["input_ids"]
        assert found == plain(expected)["input_ids"]
        if "<person>" not in expected:  # of "<<person>>" the first time leaves "<person>", the second "person"
            assert found == tokenizer(expected)["input_ids"]

    def test_it_stays_with_the_folder_and_comes_to_older_ones(self, processor, plain, tmp_path):
        made = CCRKProcessor(processor.image_processor, plain)
        assert plain("A red, STAR!") != plain("a red star")  # it may serve another model, too
        assert made.tokenizer is CCRKProcessor(processor.image_processor, made.tokenizer).tokenizer
        expected = plain("a red star")["input_ids"]
        made(text=[LONG])  # a call leaves its truncation behind
        made.save_pretrained(tmp_path / "new")
        again = CCRKProcessor.from_pretrained(tmp_path / "new")
        again.save_pretrained(tmp_path / "again")
        # As folders were written before: a tokenizer of XLM-R's class, whose normaliser transformers makes up anew.
        made.save_pretrained(tmp_path / "old")
        vocabulary = json.loads(plain.backend_tokenizer.to_str())["model"]["vocab"]
        before = XLMRobertaTokenizer(vocab=[*map(tuple, vocabulary)], model_max_length=plain.model_max_length)
        before.save_pretrained(tmp_path / "old")
        old = CCRKProcessor.from_pretrained(tmp_path / "old").tokenizer
        alone = [AutoTokenizer.from_pretrained(tmp_path / name) for name in ("new", "again")]
        for tokenizer in (made.tokenizer, again.tokenizer, old, *alone):
            assert tokenizer("A red, STAR!")["input_ids"] == expected
            assert len(tokenizer(LONG)["input_ids"]) == len(plain(LONG)["input_ids"])
            assert tokenizer.get_vocab() == plain.get_vocab() and tokenizer.model_max_length == plain.model_max_length
            assert tokenizer.special_tokens_map == plain.special_tokens_map
            assert tokenizer("a <mask> b") == plain("a <mask> b")
            assert tokenizer.decode(expected) == plain.decode(expected)
            assert tokenizer.model_input_names == ["input_ids", "attention_mask"]
        assert AutoTokenizer.from_pretrained(tmp_path / "old")("A red, STAR!")["input_ids"] != expected

    def test_a_processor_that_does_not_normalise_has_none_that_does(self, processor, plain, tmp_path):
        off = CCRKProcessor(processor.image_processor, caption_tokenizer(plain), normalize_captions=False)
        off.save_pretrained(tmp_path)
        for tokenizer in (off.tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
            assert tokenizer("A RED, star!") == plain("A RED, star!")
        assert off(text=["A RED, star!"], padding=False)["input_ids"].tolist() == [plain("A RED, star!")["input_ids"]]


@pytest.mark.slow
def test_pipelines_open_a_checkpoint(tiny_model, processor, tmp_path):
    """With the package not importable; labels in capitals and with punctuation score as the model has them."""
    torch.manual_seed(4)
    head = CCRKForImageTextRetrieval(tiny_model.config).eval()
    with torch.no_grad():
        for parameter in head.parameters():  # so that the scores of an untrained model differ
            parameter.add_(0.3 * torch.randn_like(parameter))
    folder = tmp_path / "checkpoint"
    head.save_pretrained(folder)
    processor.save_pretrained(folder)
    picture, labels = Image.new("RGB", (50, 40), (200, 30, 30)), ["a RED, star", "blue-circle", "STERN!"]
    picture.save(tmp_path / "picture.png")
    script = f"""
import importlib.util, torch
from transformers import pipeline
assert importlib.util.find_spec("modeling_ccrk") is None
made = {{"model": {str(folder)!r}, "trust_remote_code": True}}
scores = pipeline("zero-shot-image-classification", **made)("picture.png", candidate_labels={labels!r})
text = pipeline("feature-extraction", **made)("A RED-star", return_tensors=True)
image = pipeline("image-feature-extraction", **made)("picture.png", return_tensors=True)
torch.save(([[each["label"], each["score"]] for each in scores], text, image), "found.pt")
"""
    finished = subprocess.run(
        [sys.executable, "-I", "-c", isolated(script)],
        cwd=tmp_path,
        env={"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "PATH": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    scores, text, image = torch.load(tmp_path / "found.pt", weights_only=True)
    model = CCRKModel.from_pretrained(folder).eval()
    # Where the package is imported nobody has to trust the folder's copy of it.
    assert type(pipeline("zero-shot-image-classification", model=str(folder)).model) is CCRKModel
    with torch.no_grad():
        asked = [f"This is a photo of {label}." for label in labels]
        expected = model(**processor(images=picture, text=asked)).logits_per_image[0].softmax(dim=0)
        assert dict(scores) == pytest.approx(dict(zip(labels, expected.tolist(), strict=True)), abs=1e-6)
        assert expected.std() > 0.01
        alone = model(**processor(text="a red star", padding=False))
        torch.testing.assert_close(text, alone.text_embeds, atol=1e-6, rtol=0)
        torch.testing.assert_close(image, model(**processor(images=picture)).image_embeds, atol=1e-6, rtol=0)


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
    # What a save notes on the object is gone from it: it is the processor that it was, and the one that opens again.
    assert loaded.to_dict() == changed.to_dict()
    code = {"pictures_ccrk.py", "processing_ccrk.py"}
    files = {"processor_config.json", "tokenizer.json", "tokenizer_config.json"}
    assert {file.name for file in tmp_path.iterdir()} == code | files
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
        ({"text": 3}, "a int is no caption; give text"),
        ({"text": ["a star", float("nan")]}, "a float is no caption; give text"),
        ({"text": {"en": "a star"}}, "a dict is no caption; give text"),
        ({"text": ["a \ud83d star"]}, "holds half of a character"),
        ({"images": []}, "no pictures"),
        ({"text": ["a star", " ?! "]}, "empty after normalisation"),
        ({"images": ["no such picture.jpg"]}, "no such picture.jpg cannot be read as a picture"),
        ({"images": [__file__]}, "test_processing.py cannot be read as a picture"),
        ({"images": [b"these bytes are no picture"]}, r"images\[0\] cannot be read as a picture: not an image"),
        ({"images": [Image.new("RGB", (9, 9)), 5]}, r"images\[1\] cannot be read as a picture: neither a path"),
    ],
)
def test_bad_input_is_refused_in_one_line(processor, arguments, message):
    with pytest.raises(ValueError, match=message) as raised:
        processor(**arguments)
    assert "\n" not in str(raised.value).strip()


def test_captions_are_padded_on_the_right(processor, plain):
    """The model reads token 0, whatever side the tokenizer would pad."""
    plain = copy.copy(plain)
    plain.padding_side = "left"
    made = CCRKProcessor(processor.image_processor, plain)
    assert made(text=["a", "a red star"])["attention_mask"][:, 0].tolist() == [1, 1]
    assert made.tokenizer(["a", "a red star"], padding=True)["attention_mask"][0][0] == 1
    off = CCRKProcessor(processor.image_processor, plain, normalize_captions=False)
    assert off(text=["a", "a red star"])["attention_mask"][:, 0].tolist() == [1, 1]


def test_captions_from_any_iterable(processor):
    texts, rows = ["a red star", "a blue circle"], [["a red star"], ["a blue circle"]]
    for given_texts in (tuple(texts), np.array(texts), iter(texts)):
        assert torch.equal(processor(text=given_texts)["input_ids"], processor(text=texts)["input_ids"])
    assert torch.equal(processor(text=iter(rows))["input_ids"], processor(text=rows)["input_ids"])


@pytest.mark.parametrize(
    ("name", "value"),
    [("max_words", 0), ("max_words", -1), ("max_words", None), ("max_length", 1), ("max_length", 9.5)],
)
def test_limits_that_leave_nothing_are_refused(processor, name, value):
    with pytest.raises(ValueError, match=rf"{name} is {value}; give a whole number, \d at least"):
        CCRKProcessor(processor.image_processor, processor.tokenizer, **{name: value})


def test_nested_pictures_are_one_list(processor):
    red, blue = Image.new("RGB", (9, 9), "red"), Image.new("RGB", (9, 9), "blue")
    nested = processor(images=[[red], [blue, red], []])["pixel_values"]
    assert torch.equal(nested, processor(images=[red, blue, red])["pixel_values"])


@pytest.mark.parametrize("return_tensors", ["pt", "np", None])
def test_what_comes_back(processor, return_tensors):
    image = Image.new("RGB", (20, 30), "red")
    inputs = processor(images=[image, image], text=[["a", "b"], [None, "c"]], return_tensors=return_tensors)
    expected = processor(images=[image, image], text=[["a", "b"], [None, "c"]])
    assert set(inputs) == {*processor.model_input_names, "caption_mask"}
    for name, value in inputs.items():
        assert isinstance(value, {"pt": torch.Tensor, "np": np.ndarray, None: list}[return_tensors]), name
        np.testing.assert_array_equal(np.asarray(value), expected[name].numpy())


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
    assert torch.equal(
        unscaled["pixel_values"], processor(images=[image], do_normalize=False, do_rescale=False)["pixel_values"]
    )
    # As sentence-transformers calls for captions alone.
    inputs = processor(
        text=["a red star", "a"],
        text_kwargs={"padding": True, "truncation": "longest_first"},
        images_kwargs={},
        audio_kwargs={"padding": True},
        videos_kwargs={},
        common_kwargs={"return_tensors": "pt"},
    )
    assert torch.equal(inputs["input_ids"], processor(text=["a red star", "a"])["input_ids"])


@pytest.mark.parametrize(
    ("name", "alone", "grouped"),
    [
        ("max_length", {"max_length": 16}, {"text_kwargs": {"max_length": 8}}),
        ("max_length", {"max_length": 8}, {"text_kwargs": {"max_length": 16}}),
        ("padding", {"padding": "max_length"}, {"text_kwargs": {"padding": False}}),
        ("do_normalize", {"do_normalize": True}, {"images_kwargs": {"do_normalize": False}}),
        ("do_normalize", {"do_normalize": False}, {"images_kwargs": {"do_normalize": True}}),
        ("size", {"size": {"height": 9, "width": 9}}, {"images_kwargs": {"size": {"height": 8, "width": 8}}}),
        ("return_tensors", {"return_tensors": "pt"}, {"common_kwargs": {"return_tensors": "np"}}),
        ("return_tensors", {"return_tensors": None}, {"common_kwargs": {"return_tensors": "np"}}),
    ],
)
def test_an_argument_given_twice_is_refused_by_name(processor, name, alone, grouped):
    """Not to be resolved one way for captions and another for pictures; each alone is taken."""
    inputs = {"images": Image.new("RGB", (20, 30), "red"), "text": ["a red star"]}
    processor(**inputs, **alone)
    processor(**inputs, **grouped)
    with pytest.raises(ValueError, match=f"^{name} is given twice, alone and in {next(iter(grouped))}; give it once$"):
        processor(**inputs, **alone, **grouped)


def test_what_a_call_says_goes_before_what_was_saved(processor):
    short = CCRKProcessor(processor.image_processor, processor.tokenizer, max_length=6)
    for call in ({"max_length": 16}, {"text_kwargs": {"max_length": 16}}):
        assert short(text=[LONG], **call)["attention_mask"].sum() == 16
    for call in ({}, {"max_length": None}, {"text_kwargs": {"max_length": None}}, {"text_kwargs": None}):
        assert short(text=[LONG], **call)["attention_mask"].sum() == 6


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("max_lenght", {"max_lenght": 20}),
        ("do_normalize", {"do_normalize": False}),  # there is no picture
        ("add_special_tokens", {"text_kwargs": {"add_special_tokens": False}}),
        ("device", {"common_kwargs": {"device": "cuda"}}),
        ("do_normalise", {"images_kwargs": {"do_normalise": False}}),
        ("sampling_rate", {"sampling_rate": 16000}),
        ("text_pair", {"text_pair": ["a blue star"]}),
    ],
)
def test_arguments_that_nothing_takes_are_refused(processor, name, arguments):
    with pytest.raises(TypeError, match=f"unexpected argument {name}; captions take padding"):
        processor(text=["a red star"], **arguments)
    if name != "do_normalize":
        with pytest.raises(TypeError, match=f"unexpected argument {name}; captions take padding"):
            processor(images=[Image.new("RGB", (20, 30))], **arguments)
