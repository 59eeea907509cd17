"""Processor of CCRK: pictures for the image encoder, normalised captions of any language for the text encoder."""

import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from itertools import dropwhile
from typing import TypedDict, Unpack

import numpy as np
import torch
from PIL import Image
from tokenizers import Regex, normalizers
from transformers import BatchFeature, CLIPImageProcessor, TokenizersBackend
from transformers.image_utils import ImageInput
from transformers.processing_utils import ProcessingKwargs, ProcessorMixin

try:
    from .pictures_ccrk import open_image, read_image
except ImportError:
    if __package__:  # a checkpoint's copy: what it lacks must not come from the code installed here
        raise
    from pictures_ccrk import open_image, read_image

# The published pre-processing: these become a space each, as do hyphens and slashes.
_PUNCTUATION = ",.'!?\"()*#:;~-/"
_TO_SPACES = str.maketrans(dict.fromkeys(_PUNCTUATION, " "))
LONE_SURROGATE = re.compile("[\ud800-\udfff]")  # broken JSON can hold it; no tokenizer takes it

# Letters and symbols that are drawn as nothing: Hangul's fillers, Braille's empty cell, a musical null note, and the
# place of an object that text cannot hold.
_DRAWN_AS_NOTHING = frozenset("\u115f\u1160\u3164\uffa0\u2800\U0001d159\ufffc")


def is_blank(text: str) -> bool:
    """Whether a text shows nothing: separators, controls, format characters and marks without a letter to stand on.

    Private and unassigned characters do show: the latter are those that came after this Python's edition of Unicode.
    """
    return all(
        unicodedata.category(character) in ("Cc", "Cf", "Cs")
        or unicodedata.category(character)[0] in "ZM"
        or character in _DRAWN_AS_NOTHING
        for character in text
    )


def normalize_caption(text: str, max_words: int) -> str:
    """A caption as the published checkpoints were trained on it.

    Lower-cased; punctuation to spaces; `<person>` to `person`; runs of white space to one space; trimmed; cut after
    `max_words` space-separated words (a language written without spaces is one word).

    Raises:
        ValueError: nothing is left that shows (`is_blank`), whatever `max_words` is.
    """
    caption = text.lower().translate(_TO_SPACES).replace("<person>", "person")
    caption = re.sub(r"\s{2,}", " ", caption).rstrip("\n").strip(" ")
    words = caption.split(" ")
    if is_blank("".join(words[:max_words])):  # start with the first word that shows, if there is one
        words = list(dropwhile(is_blank, words))
    caption = " ".join(words[:max_words])
    if not caption:
        raise ValueError(f"the caption {text!r} is empty after normalisation; remove it from the data")
    return caption


def published_image_processor(image_size: int) -> CLIPImageProcessor:
    """Bicubic resize to a square of `image_size` pixels, RGB, CLIP's mean and standard deviation."""
    # Cropping is on by default and would cut 224 px out of whatever size is asked for.
    return CLIPImageProcessor(size={"height": image_size, "width": image_size}, do_center_crop=False)


# `normalize_caption` as a tokenizer's normaliser, word limit aside, for callers that know the tokenizer alone.
_CASED = r"[\p{Cased}&&[^\p{Case_Ignorable}]]"
_WHITE_SPACE = r"[\t-\r\x1c-\x20\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000}]"
CAPTION_NORMALIZER = (
    # A capital sigma that ends a word has a small letter of its own, of which `Lowercase` knows nothing.
    normalizers.Replace(Regex(rf"{_CASED}\p{{Case_Ignorable}}*\KΣ(?!\p{{Case_Ignorable}}*{_CASED})"), "ς"),
    normalizers.Lowercase(),
    normalizers.Replace(Regex(f"[{re.escape(_PUNCTUATION)}]"), " "),
    normalizers.Replace("<person>", "person"),
    normalizers.Replace(Regex(_WHITE_SPACE + "{2,}"), " "),
    normalizers.Replace(Regex(r"\A |[ \n]\z"), ""),
)


def caption_tokenizer(tokenizer: TokenizersBackend, normalize: bool = True) -> TokenizersBackend:
    """
    A tokenizer that does to every text what [`normalize_caption`] does, word limit aside, before its own steps.

    A pipeline, which never sees the processor, then reads captions as the model was trained on them. Normalising twice
    changes nothing, but for `<<person>>`, which loses both pairs of brackets. Special tokens in the text (`</s>`) are
    found before anything is normalised.

    Args:
        tokenizer: XLM-R's, or one in its format; stays as it is.
        normalize: False takes these steps away again.

    Returns: the tokenizer itself if it does so already.
    """
    steps = tokenizer.backend_tokenizer.normalizer
    steps = [] if steps is None else list(steps) if isinstance(steps, normalizers.Sequence) else [steps]
    states = [step.__getstate__() for step in CAPTION_NORMALIZER]
    normalizes = [step.__getstate__() for step in steps[: len(states)]] == states
    if normalizes == normalize:
        return tokenizer
    # Of this class, whose files are read as they are: XLMRobertaTokenizer would make up its normaliser anew.
    kept = ("model_input_names", "model_max_length", "truncation_side", "split_special_tokens")
    copied = TokenizersBackend(
        tokenizer_object=tokenizer.backend_tokenizer,
        **tokenizer.special_tokens_map,
        extra_special_tokens=tokenizer.extra_special_tokens,
        **{name: getattr(tokenizer, name) for name in kept},
    )
    steps = [*CAPTION_NORMALIZER, *steps] if normalize else steps[len(states) :]
    copied.backend_tokenizer.normalizer = normalizers.Sequence(steps) if steps else None
    return copied


class CCRKTextKwargs(TypedDict, total=False):
    """The options of captions. Tokenizers have others, but the model reads `<s> … </s>`, padded on the right."""

    padding: bool | str
    truncation: bool | str
    max_length: int | None
    pad_to_multiple_of: int | None
    return_tensors: str | None


class CCRKProcessorKwargs(ProcessingKwargs, total=False):
    """What a call of [`CCRKProcessor`] takes besides pictures and captions."""

    text_kwargs: CCRKTextKwargs


class CCRKProcessor(ProcessorMixin):
    r"""
    Pairs an image processor with XLM-R's tokenizer.

    Args:
        image_processor (`BaseImageProcessor`):
            See [`published_image_processor`] for the published settings.
        tokenizer (`PreTrainedTokenizerBase`):
            XLM-R's, or one in its format. The processor keeps a copy that normalises captions by itself, see
            [`caption_tokenizer`].
        max_words (`int`, defaults to 40):
            Captions keep this many words: 30 for Multi30K and COCO, 40 in pre-training, 80 for xFlickr&CO and WIT.
        max_length (`int`, defaults to 40):
            Captions keep this many tokens, `<s>` and `</s>` included: 80 for xFlickr&CO and WIT.
        normalize_captions (`bool`, defaults to `True`):
            Apply [`normalize_caption`]. Switch it off only for a model trained without.
    """

    valid_processor_kwargs = CCRKProcessorKwargs
    # Multiples of 8 suit tensor cores.
    text_kwargs = {"padding": "longest", "truncation": True, "pad_to_multiple_of": 8, "return_tensors": "pt"}
    images_kwargs = {"return_tensors": "pt"}

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        max_words: int = 40,
        max_length: int = 40,
        normalize_captions: bool = True,
        **kwargs,
    ):
        for name, value, least in (("max_words", max_words, 1), ("max_length", max_length, 2)):
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{name} is {value!r}; give a whole number, {least} at least")
        self.max_words = max_words
        self.max_length = max_length
        self.normalize_captions = normalize_captions
        if isinstance(tokenizer, TokenizersBackend):
            tokenizer = caption_tokenizer(tokenizer, normalize_captions)
        super().__init__(image_processor, tokenizer, **kwargs)

    def __call__(
        self,
        images: ImageInput | str | os.PathLike | Sequence | None = None,
        text: str | Sequence[str] | Sequence[Sequence[str | None]] | None = None,
        **kwargs: Unpack[CCRKProcessorKwargs],
    ) -> BatchFeature:
        """
        Prepares images, captions or both.

        Args:
            images: a picture or a list of them (a URL, or what [`read_image`] takes: path, PIL image, array, …), a
                batch of pictures as one array, or a list of such lists or batches, which is taken as one.
            text: a caption; a list of N; or B lists of K captions each, `None` where one is missing.
            kwargs: `padding` ("longest" unless given), `truncation` (True), `max_length` (the processor's own) and
                `pad_to_multiple_of` (8) of captions, as tokenizers have them; the options of the image processor;
                `return_tensors` ("pt"). Each alone, or by group: `text_kwargs`, `images_kwargs` and, for
                `return_tensors`, `common_kwargs`. What is given here goes before what was saved with the processor.

        Raises:
            TypeError: an argument that nothing takes. Other options of tokenizers are refused: the model reads `<s>`.
            ValueError: a picture that cannot be read, an option given twice, alone and in a group.

        Returns: `pixel_values` (B, 3, H, W); `input_ids` and `attention_mask` (N, L), or (B, K, L) with `caption_mask`
        (B, K) for nested captions. L is that of the longest caption, rounded up to a multiple of 8 as far as
        `max_length` allows.
        """
        if images is None and text is None:
            raise ValueError("nothing to process: give images, text or both")
        options = self._options(with_images=images is not None, **kwargs)
        features = {}
        if text is not None:
            features.update(self._process_captions(text, **options["text_kwargs"]))
        if images is not None:
            flat = [image for row in _pictures(images) for image in _pictures(row)]
            if not flat:
                raise ValueError("no pictures: the list of images is empty")
            images = [open_image(image, number) for number, image in enumerate(flat)]
            features.update(self._process_pictures(images, **options["images_kwargs"]))
        return BatchFeature(features, tensor_type=options["text_kwargs"]["return_tensors"])

    def _options(self, with_images: bool, **kwargs) -> dict[str, dict]:
        """The options of a call and the defaults, by group; what nothing takes or is given twice is refused."""
        # Callers that know no single processor group their arguments, and name every group.
        for unused in ("audio_kwargs", "videos_kwargs"):
            kwargs.pop(unused, None)
        takes = {
            "text_kwargs": set(CCRKTextKwargs.__annotations__) - {"return_tensors"},
            "images_kwargs": set(self.image_processor.valid_kwargs.__annotations__) - {"return_tensors"},
            "common_kwargs": {"return_tensors"},
        }
        groups = {name: kwargs.pop(name, None) or {} for name in takes}
        flat = takes["text_kwargs"] | takes["common_kwargs"] | (takes["images_kwargs"] if with_images else set())
        unknown = set(kwargs) - flat
        for name, options in groups.items():
            unknown |= set(options) - takes[name]
        if unknown:
            raise TypeError(
                f"unexpected argument {', '.join(sorted(unknown))}; captions take padding, truncation, max_length "
                f"and pad_to_multiple_of, pictures what {type(self.image_processor).__name__} takes"
            )
        for name, options in groups.items():
            # Where a caller names the output twice and alike, transformers has nothing against it.
            alike = {option for option in takes["common_kwargs"] if kwargs.get(option) == options.get(option)}
            if twice := set(kwargs) & set(options) - alike:
                raise ValueError(f"{', '.join(sorted(twice))} is given twice, alone and in {name}; give it once")
        return self._merge_kwargs(**kwargs, **groups)

    def _process_pictures(self, pictures: list[Image.Image], **options) -> BatchFeature:
        settings = {name: getattr(self.image_processor, name, True) for name in ("do_rescale", "do_normalize")}
        settings |= {name: options[name] for name in settings if options.get(name) is not None}
        # Means and deviations are of values up to 1; elsewhere the option says of floats that theirs are.
        if settings["do_normalize"] and not settings["do_rescale"]:
            raise ValueError(
                "do_rescale is off and do_normalize on; leave do_rescale out: whatever is given, floats from 0 to 1 "
                "included, is rescaled from levels of 0 to 255"
            )
        return self.image_processor(pictures, **options)

    def _process_captions(
        self, text, padding, truncation, pad_to_multiple_of, max_length=None, return_tensors=None
    ) -> dict:
        is_one = isinstance(text, str | bytes | dict) or not isinstance(text, Iterable)
        text = [text] if is_one else list(text)
        nested = any(isinstance(row, list | tuple) for row in text)
        if nested and not all(isinstance(row, list | tuple) for row in text):
            raise ValueError("captions are partly nested; give either a list of captions or a list of lists")
        flat = [caption for row in text for caption in row] if nested else text
        if not flat:
            raise ValueError("no captions: every image needs at least one (K is 0)")
        if nested and len({len(row) for row in text}) != 1:
            raise ValueError("nested captions must have the same number per image; put None where one is missing")
        if not nested and None in flat:
            raise ValueError("a caption is None; only nested captions (a list per image) may have missing ones")
        if others := [caption for caption in flat if not isinstance(caption, str | None)]:
            raise ValueError(f"a {type(others[0]).__name__} is no caption; give text")
        if broken := [caption for caption in flat if caption and LONE_SURROGATE.search(caption)]:
            raise ValueError(
                f"the caption {broken[0]!r} holds half of a character (a lone surrogate), which no text has"
            )

        present = [caption is not None for caption in flat]
        if self.normalize_captions:
            flat = [None if caption is None else normalize_caption(caption, self.max_words) for caption in flat]
        # A missing caption is "<s></s>": attention over nothing at all would be undefined.
        tokens = self._tokenize(
            [caption or "" for caption in flat], padding, truncation, pad_to_multiple_of, max_length
        )
        features = {"input_ids": tokens["input_ids"], "attention_mask": tokens["attention_mask"]}
        if nested:
            per_image = len(text[0])
            starts = range(0, len(flat), per_image)
            features["caption_mask"] = present
            features = {name: [rows[start : start + per_image] for start in starts] for name, rows in features.items()}
        return features

    def _tokenize(self, captions: list[str], padding, truncation, pad_to_multiple_of, max_length: int | None):
        """Token ids and attention mask of each caption, as lists."""
        max_length = self.max_length if max_length is None else max_length
        least = self.tokenizer.num_special_tokens_to_add()
        if not isinstance(max_length, int | np.integer) or max_length < least:
            raise ValueError(
                f"max_length is {max_length!r}; give a whole number, {least} at least: <s> and </s> count"
            )
        tokens = self.tokenizer(captions, truncation=truncation, max_length=max_length)
        if padding in (True, "longest"):
            # By ourselves: tokenizers refuse a multiple of 8 beside a max_length that is none.
            longest = max(len(ids) for ids in tokens["input_ids"])
            multiple = pad_to_multiple_of or 1
            rounded = -(-longest // multiple) * multiple
            padding, max_length = "max_length", min(rounded, max_length) if longest <= max_length else rounded
        return self.tokenizer.pad(tokens, padding=padding, max_length=max_length, padding_side="right")

    def save_pretrained(self, save_directory, push_to_hub: bool = False, **kwargs):
        """Saves processor, tokenizer and code; see [`ProcessorMixin.save_pretrained`]."""
        files = super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)
        # Written to the file, it would stay on the object, which then differs from the one that is opened again.
        vars(self).pop("auto_map", None)
        return files


def _pictures(images) -> list:
    """What is given as a list of pictures, or as one."""
    is_batch = isinstance(images, np.ndarray | torch.Tensor) and images.ndim == 4
    is_list = isinstance(images, Sequence) and not isinstance(images, str | bytes | bytearray)
    return list(images) if is_batch or is_list else [images]


CCRKProcessor.register_for_auto_class()

__all__ = ["CCRKProcessor", "caption_tokenizer", "normalize_caption", "published_image_processor", "read_image"]
