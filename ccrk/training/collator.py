"""From rows to a batch: pictures read and augmented, captions drawn, tensors made."""

import contextlib
import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import TYPE_CHECKING

import datasets
import numpy as np
import torch
from PIL import Image
from timm.data.auto_augment import RandAugment, rand_augment_ops
from torch import Tensor, nn
from torchvision import transforms
from transformers import TrainerCallback

from ccrk.encoders import PairInputs, input_size
from data_scripts.captions import is_usable
from data_scripts.cli import InputError
from data_scripts.images import BadImage, read_image
from data_scripts.problems import Problems
from processing_ccrk import CCRKProcessor

if TYPE_CHECKING:
    from ccrk.training.features import Features

# Pictures to crop from are decoded at no less than this many times the model's input a side: a crop of a quarter of a
# square picture then still has all of the pixels that the input shows.
CROP_MARGIN = 2


def published_augmentation(image_size: int, min_scale: float) -> Callable[[Image.Image], Image.Image]:
    """The published training augmentation: random crop, flip, and two random operations of magnitude 7.

    Args:
        image_size: side of the crop after resizing, in pixels.
        min_scale: least share of the picture that a crop keeps: 0.2 in pre-training, 0.5 in fine-tuning.
    """
    operations = rand_augment_ops(
        magnitude=7,
        transforms=[
            "AutoContrast",
            "Equalize",
            "Brightness",
            "Sharpness",
            "ShearX",
            "ShearY",
            "TranslateX",
            "TranslateY",
            "Rotate",
        ],
        prob=0.5,
        hparams={"translate_const": 10},  # pixels at magnitude 10
    )
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(
                image_size, scale=(min_scale, 1.0), interpolation=transforms.InterpolationMode.BICUBIC
            ),
            transforms.RandomHorizontalFlip(),
            RandAugment([*operations, nn.Identity()], num_layers=2),
        ]
    )


@dataclass
class CCRKCollator:
    """
    Turns rows into a batch: `pixel_values` (B, 3, H, W); `input_ids`, `attention_mask` (B, K, L); `caption_mask`
    (B, K); `image_ids` (B,). Of CCRK `caption_lengths` as well, numbers of tokens of K captions for each of B images,
    as lists, which stay on the CPU.

    A row's caption of a language is drawn from those it has, or where a row is aligned (`data_scripts.rows`), all its
    captions together. A language that the draw lacks leaves its slot masked, so K is the same for all rows and the
    k-th caption is always of the k-th language.

    Args:
        processor: makes the tensors.
        languages: K of them; 1-to-K training.
        one_language: draw one caption per image, of any of the languages: K is 1, as in the published fine-tuning.
        augmentation: applied to each picture before the processor.
        seed: with the epoch and the image's id it decides what is drawn for a row: not the order of the rows, nor the
            process, nor how far ahead of its step the batch is made.
        image_features: of a frozen image encoder (`ccrk.training.features`): a batch then has `image_embeds` (B, D) in
            place of pixels, and no picture is read.
        caption_features: of a frozen text encoder: `text_embeds` (B, K, D) in place of tokens.
        text_rows: rows without a picture, of which B are drawn for each batch, or all where there are fewer: what is
            made of captions then has their rows behind the B of the pictures.
        agreement_only: the last so many languages take part in agreement alone, see `OneToKLoss`.

    An image that cannot be read is counted in the batch's `problems` (`data_scripts.problems`; there only if there are
    any), and a readable row of the batch takes its row's place: all processes go on with equally many rows, and those
    with equal image ids are never each other's negatives.
    """

    processor: CCRKProcessor | PairInputs
    languages: Sequence[str]
    one_language: bool = False
    augmentation: Callable[[Image.Image], Image.Image] | None = None
    seed: int = 0
    image_features: "Features | None" = None
    caption_features: "Features | None" = None
    text_rows: datasets.Dataset | None = None
    agreement_only: int = 0
    # The trainer moves it to shared memory where there are data loader workers, which thus see it move on.
    epoch: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.int64), init=False)

    def __post_init__(self):
        contrasted = len(self.languages) - self.agreement_only
        if self.agreement_only and (self.one_language or not 0 < contrasted < len(self.languages)):
            raise ValueError(
                f"agreement_only is {self.agreement_only} of {len(self.languages)} languages"
                f"{' of which one is drawn' if self.one_language else ''}; leave one or more that pictures meet"
            )

    def __call__(self, rows: list[dict]) -> dict[str, Tensor | list | Problems]:
        problems = Problems("training images", max_bad_fraction=1.0, quiet=True)
        pictures = [None] * len(rows)
        if self.image_features is None:
            rows, pictures = zip(*self._readable(rows, problems), strict=True)
        images, captions = [], []
        for row, picture in zip(rows, pictures, strict=True):
            # Rows of one image, each with a caption of its own, are cropped each by itself.
            epoch = row.get("pass", int(self.epoch))  # a stream has passes, and a worker is ahead of the trainer
            name = [str(self.seed), str(epoch), row["image_id"], *filter(None, [row.get("caption")])]
            with seeded(" ".join(name)):
                images.append(picture if self.augmentation is None else self.augmentation(picture))
                drawn = [self._draw(texts) for texts in self._to_draw_from(row)]
                captions.append([self._draw(drawn)] if self.one_language else drawn)
        if self.text_rows is not None:
            captions += self._captions_alone(rows)
        batch = {
            **self._tensors(rows, images, captions),
            "image_ids": torch.tensor([stable_id(row["image_id"]) for row in rows]),
        }
        if isinstance(self.processor, CCRKProcessor):
            batch["caption_lengths"] = batch["attention_mask"].sum(dim=-1).clamp(min=1).tolist()
        return batch | {"problems": problems} if problems.first else batch

    def _captions_alone(self, rows: Sequence[dict]) -> list[list[str | None]]:
        """Captions of as many rows without a picture; which ones follows from the first of the batch."""
        with seeded(f"{self.seed} {int(self.epoch)} {rows[0]['image_id']} alone"):
            drawn = random.sample(range(len(self.text_rows)), min(len(rows), len(self.text_rows)))
            return [[self._draw(texts) for texts in self._to_draw_from(self.text_rows[row])] for row in drawn]

    def _tensors(self, rows: Sequence[dict], images: list, captions: list[list[str | None]]) -> dict[str, Tensor]:
        if self.image_features is None and self.caption_features is None:
            return self.processor(images=images, text=captions)
        batch = {"caption_mask": torch.tensor([[caption is not None for caption in own] for own in captions])}
        if self.image_features is None:
            batch |= self.processor.pictures(images)
        else:
            batch["image_embeds"] = self.image_features.of([row["image_id"] for row in rows])
        if self.caption_features is None:
            return batch | self.processor.caption_tensors(captions)
        # Any caption stands where one is missing; it takes part in nothing.
        stand_in = next(caption for own in captions for caption in own if caption is not None)
        features = self.caption_features.of([caption or stand_in for own in captions for caption in own])
        return batch | {"text_embeds": features.unflatten(0, batch["caption_mask"].shape)}

    def _readable(self, rows: list[dict], problems: Problems) -> list[tuple[dict, Image.Image]]:
        size = input_size(self.processor.image_processor) * (1 if self.augmentation is None else CROP_MARGIN)
        readable = []
        for row in rows:
            try:
                image = read_image(row["image"], size)
            except BadImage as error:
                problems.add_image(error, f"image_id {row['image_id']}")
            else:
                readable.append((row, image))
        if not readable:
            raise InputError(f"no image of a batch of {len(rows)} can be read\n{problems.table()}")
        return [readable[index % len(readable)] for index in range(len(rows))]

    def _to_draw_from(self, row: dict) -> list[Sequence[str | None]]:
        """The captions of each language; of an aligned row, those of one draw: translations of one another."""
        captions = [row["captions"][language] for language in self.languages]
        if not row.get("aligned"):
            return captions
        contrasted = len(captions) - self.agreement_only  # a draw has one of these, where there is any
        every = [texts for texts in zip_longest(*captions) if any(map(is_usable, texts))]
        translations = [texts for texts in every if any(map(is_usable, texts[:contrasted]))] or every
        return list(zip(random.choice(translations))) if translations else captions

    def _draw(self, captions: Sequence[str | None]) -> str | None:
        usable = [caption for caption in captions if is_usable(caption)]
        return random.choice(usable) if usable else None


def stable_id(name: str) -> int:
    """A 63-bit number that is the same for the same name in every process."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") >> 1


@contextlib.contextmanager
def seeded(name: str) -> Iterator[None]:
    """Inside, all random numbers on the CPU follow from `name`; outside they go on as if nothing had been drawn."""
    python, array, key = random.getstate(), np.random.get_state(), stable_id(name)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(key)
            random.seed(key)
            np.random.seed(key % 2**32)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(array)


class EpochCallback(TrainerCallback):
    """Tells the collator the epoch, which its draws depend on."""

    def __init__(self, collator: CCRKCollator):
        self.collator = collator

    def on_train_begin(self, args, state, control, **kwargs):
        # A resumed run would log, evaluate and save as often as its checkpoint was told to.
        state.compute_steps(args, state.max_steps)

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.collator.epoch.fill_(int(state.epoch))
