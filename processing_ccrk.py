"""Processor of CCRK: pictures for the image encoder, normalised captions of any language for the text encoder."""

import contextlib
import io
import os
import re

import numpy as np
import torch
from huggingface_hub.utils import httpx
from PIL import Image, ImageOps
from transformers import BatchFeature, CLIPImageProcessor
from transformers.image_utils import is_valid_image
from transformers.processing_utils import ProcessorMixin

URL_TIMEOUT = 30  # seconds that a picture's server may keep silent

# What Pillow raises on damaged files.
DECODING_ERRORS = (OSError, SyntaxError, ValueError, EOFError, RuntimeError)

# The published pre-processing: these become a space each, as do hyphens and slashes.
_PUNCTUATION = str.maketrans(dict.fromkeys(",.'!?\"()*#:;~-/", " "))


def normalize_caption(text: str, max_words: int) -> str:
    """A caption as the published checkpoints were trained on it.

    Lower-cased; punctuation to spaces; `<person>` to `person`; runs of white space to one space; trimmed; cut after
    `max_words` space-separated words (a language written without spaces is one word).

    Raises:
        ValueError: nothing is left.
    """
    caption = text.lower().translate(_PUNCTUATION).replace("<person>", "person")
    caption = re.sub(r"\s{2,}", " ", caption).rstrip("\n").strip(" ")
    caption = " ".join(caption.split(" ")[:max_words])
    if not caption:
        raise ValueError(f"the caption {text!r} is empty after normalisation; leave it out of the data")
    return caption


def published_image_processor(image_size: int) -> CLIPImageProcessor:
    """Bicubic resize to a square of `image_size` pixels, RGB, CLIP's mean and standard deviation."""
    # Cropping is on by default and would cut 224 px out of whatever size is asked for.
    return CLIPImageProcessor(size={"height": image_size, "width": image_size}, do_center_crop=False)


class CCRKProcessor(ProcessorMixin):
    r"""
    Pairs an image processor with XLM-R's tokenizer.

    Args:
        image_processor (`BaseImageProcessor`):
            See [`published_image_processor`] for the published settings.
        tokenizer (`PreTrainedTokenizerBase`):
            XLM-R's, or one in its format.
        max_words (`int`, defaults to 40):
            Captions keep this many words: 30 for Multi30K and COCO, 40 in pre-training, 80 for xFlickr&CO and WIT.
        max_length (`int`, defaults to 40):
            Captions keep this many tokens, `<s>` and `</s>` included: 80 for xFlickr&CO and WIT.
        normalize_captions (`bool`, defaults to `True`):
            Apply [`normalize_caption`]. Switch it off only for a model trained without.
    """

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        max_words: int = 40,
        max_length: int = 40,
        normalize_captions: bool = True,
        **kwargs,
    ):
        self.max_words = max_words
        self.max_length = max_length
        self.normalize_captions = normalize_captions
        super().__init__(image_processor, tokenizer, **kwargs)

    def __call__(
        self,
        images=None,
        text=None,
        return_tensors: str | None = "pt",
        padding: bool | str = "longest",
        truncation: bool = True,
        max_length: int | None = None,
        text_kwargs: dict | None = None,
        images_kwargs: dict | None = None,
        common_kwargs: dict | None = None,
        **kwargs,
    ) -> BatchFeature:
        """
        Prepares images, captions or both.

        Args:
            images: a picture or a list of them (path, URL, PIL image, array or tensor).
            text: a caption; a list of N; or B lists of K captions each, `None` where one is missing.
            padding, truncation, max_length: as tokenizers have them; `max_length` is the processor's own unless given.
            text_kwargs, images_kwargs, common_kwargs: the same by group, as [`ProcessorMixin`] takes them.
            kwargs: for the image processor.

        Raises:
            TypeError: an argument that nothing takes. Other options of tokenizers are refused: the model reads `<s>`.

        Returns: `pixel_values` (B, 3, H, W); `input_ids` and `attention_mask` (N, L), or (B, K, L) with `caption_mask`
        (B, K) for nested captions. L is that of the longest caption, rounded up to a multiple of 8.
        """
        if images is None and text is None:
            raise ValueError("nothing to process: give images, text or both")
        # Callers that know no single processor group their arguments, and name every group.
        for unused in ("audio_kwargs", "videos_kwargs"):
            kwargs.pop(unused, None)
        unknown = set(text_kwargs or ()) - {"padding", "truncation", "max_length"}
        unknown |= set(common_kwargs or ()) - {"return_tensors"}
        if images is None:
            unknown |= set(kwargs)
        if unknown:
            raise TypeError(
                f"unexpected argument {', '.join(sorted(unknown))}; captions take padding, truncation and max_length"
            )
        return_tensors = (common_kwargs or {}).get("return_tensors", return_tensors)
        features = {}
        if text is not None:
            options = {"padding": padding, "truncation": truncation, "max_length": max_length} | (text_kwargs or {})
            options["max_length"] = options["max_length"] or self.max_length
            features.update(self._process_captions(text, **options))
        if images is not None:
            images = images if isinstance(images, list | tuple) else [images]
            images = [_open_image(image) for image in images]
            options = (images_kwargs or {}) | kwargs | {"return_tensors": "pt"}
            features.update(self.image_processor(images, **options))
        return BatchFeature(features, tensor_type=return_tensors)

    def _process_captions(self, text, padding, truncation, max_length) -> dict[str, torch.Tensor]:
        if isinstance(text, str):
            text = [text]
        nested = any(isinstance(row, list | tuple) for row in text)
        if nested and not all(isinstance(row, list | tuple) for row in text):
            raise ValueError("captions are partly nested; give either a list of captions or a list of lists")
        flat = [caption for row in text for caption in row] if nested else list(text)
        if not flat:
            raise ValueError("no captions: every image needs at least one (K is 0)")
        if nested and len({len(row) for row in text}) != 1:
            raise ValueError("nested captions must have the same number per image; put None where one is missing")
        if not nested and None in flat:
            raise ValueError("a caption is None; only nested captions (a list per image) may have missing ones")

        present = [caption is not None for caption in flat]
        if self.normalize_captions:
            flat = [None if caption is None else normalize_caption(caption, self.max_words) for caption in flat]
        # A missing caption is "<s></s>": attention over nothing at all would be undefined.
        tokens = self.tokenizer(
            [caption or "" for caption in flat],
            padding=padding,
            pad_to_multiple_of=8,
            truncation=truncation,
            max_length=max_length,
            return_tensors="pt",
        )
        features = {"input_ids": tokens["input_ids"], "attention_mask": tokens["attention_mask"]}
        if nested:
            shape = (len(text), len(text[0]))
            features = {name: tensor.unflatten(0, shape) for name, tensor in features.items()}
            features["caption_mask"] = torch.tensor(present).view(shape)
        return features


def _open_image(image):
    """A path, URL or PIL image as an RGB picture, by the rules of training; arrays as they are; all else refused."""
    if isinstance(image, Image.Image):
        return to_rgb(image)
    if isinstance(image, str | os.PathLike):
        source = os.fspath(image)
        try:
            if source.startswith(("http://", "https://")):
                answer = httpx.get(source, timeout=URL_TIMEOUT, follow_redirects=True)
                source = io.BytesIO(answer.raise_for_status().content)
            with Image.open(source) as opened:
                opened.load()
                make_upright(opened)
                return to_rgb(opened)
        except (*DECODING_ERRORS, Image.DecompressionBombError, httpx.HTTPError) as error:
            raise ValueError(f"{image} cannot be read as a picture; is the path right and the file whole?") from error
    if not is_valid_image(image):
        raise ValueError(
            f"a {type(image).__name__} is no picture; give a path, a URL, a PIL image, an array or a tensor"
        )
    return image


def make_upright(image: Image.Image) -> None:
    """Turns an opened file as its EXIF orientation says, in place."""
    # If the pixels are whole and the camera's notes are not, the picture is taken as it lies.
    with contextlib.suppress(*DECODING_ERRORS):
        ImageOps.exif_transpose(image, in_place=True)


def to_rgb(image: Image.Image) -> Image.Image:
    """
    A picture of any mode as RGB.

    Transparent parts become white, where the published code's `convert("RGB")` shows the colour stored below them,
    mostly black. 16-bit values keep their eight high bits.
    """
    if image.mode.startswith(("I", "F")):  # Pillow would clip these to 255
        values = np.asarray(image, dtype=np.float32)
        highest = values.max()
        is_16_bit = image.mode.startswith("I;16") or highest > 255
        scale = 1 / 257 if is_16_bit else 255 if image.mode == "F" and highest <= 1 else 1
        image = Image.fromarray((values * scale).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


CCRKProcessor.register_for_auto_class()

__all__ = ["CCRKProcessor", "normalize_caption", "published_image_processor"]
