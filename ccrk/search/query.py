"""From words and pictures to a vector, and from a vector to pictures in their order."""

import datetime
import difflib
import io
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from PIL import Image
from torch import Tensor

from ccrk.encoders import Encoder, encode_captions_in
from ccrk.encoding import CCRKEncoder, EncodedCaptions
from ccrk.search.pictures import within_range
from data_scripts.captions import is_usable
from data_scripts.cli import did_you_mean
from data_scripts.formats import PICTURES
from data_scripts.images import BadImage, picture_name, read_image

Query = str | Path | bytes | Image.Image

FIRST_YEAR, LAST_YEAR = 1678, 2262  # of times in nanoseconds
IMAGES_PER_BLOCK = 16  # re-scored at a time


@dataclass(frozen=True)
class Found:
    """A picture in the order of a query."""

    id: str
    path: str  # below the source that was indexed
    score: float  # cosine; after re-ranking the logit of a match
    rank: int  # from 1


@dataclass(frozen=True)
class Filter:
    """Which pictures to look among; by default all.

    Args:
        folder: below which they are, in the source.
        since, until: when their files were last changed, in nanoseconds since 1970; from, and before. Times outside
            the years 1677 to 2262 are kept as the nearest one inside.
    """

    folder: str | None = None
    since: int | None = None
    until: int | None = None

    @classmethod
    def of(cls, folder: str | None = None, since: str | None = None, until: str | None = None) -> "Filter":
        """From texts: a folder as people write it, and dates such as 2024-05-31, in this machine's time zone, both
        inclusive. ValueError for others."""
        return cls(_folder(folder or ""), _nanoseconds(since), _nanoseconds(until, end=True))

    def mask(self, pictures: pa.Table) -> np.ndarray | None:
        """Which rows are chosen, (N,); None where all are."""
        masks = []
        if self.folder is not None:
            masks.append(pc.starts_with(pictures["path"], f"{self.folder}/"))
        if self.since is not None:
            masks.append(pc.greater_equal(pictures["mtime_ns"], self.since))
        if self.until is not None:
            masks.append(pc.less(pictures["mtime_ns"], self.until))
        if not masks:
            return None
        # Without a date of its own a picture is in no span of time.
        return np.logical_and.reduce([pc.fill_null(mask, False).to_numpy() for mask in masks])

    def sql(self) -> str | None:
        """The same for Lance."""
        parts = []
        if self.folder is not None:
            parts.append("starts_with(path, '{}/')".format(self.folder.replace("'", "''")))
        if self.since is not None:
            parts.append(f"mtime_ns >= {self.since}")
        if self.until is not None:
            parts.append(f"mtime_ns < {self.until}")
        return " AND ".join(parts) or None


def _folder(text: str) -> str | None:
    """In the one form that paths of the index have; None for all of it."""
    name = text.replace("\\", "/").strip("/")
    if name in ("", "."):
        return None
    try:
        return picture_name(name)
    except (BadImage, UnicodeEncodeError) as error:
        raise ValueError(f"{text!r} is not a folder of the source; give one such as 2024/summer") from error


def _nanoseconds(text: str | None, end: bool = False) -> int | None:
    """From the beginning of a date or second, or before the end of it."""
    if not text:
        return None
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError as error:
        raise ValueError(f"{text!r} is not a date such as 2024-05-31") from error
    span = datetime.timedelta(days=1) if len(text) <= len("2024-05-31") else datetime.timedelta(seconds=1)
    if moment.tzinfo is None and not FIRST_YEAR < moment.year < LAST_YEAR:
        moment = moment.replace(tzinfo=datetime.UTC)  # so far away `datetime` knows no other zone, nor does it matter
    if moment.tzinfo is None:
        seconds = (moment + span * end).timestamp()  # a day may have 23 hours, or 25
    else:
        seconds = moment.timestamp() + span.total_seconds() * end
    nanoseconds = math.floor(seconds) * 1_000_000_000
    return within_range(nanoseconds - end) + end


def as_query(text: str) -> Query:
    """
    Return the path of an image where the text names a file, and otherwise the text itself.

    A name with the ending of an image file, or nearly so (`.jgp`), is refused where the file does not exist. A name
    with a space, as `my beach.jgp`, or with a shorter ending, as `example.jp`, is refused only where an image file of
    nearly that name exists.
    """
    if os.path.isfile(text):
        return Path(text)
    folder, name = os.path.split(text)
    ending = os.path.splitext(name)[1].lower()
    if difflib.get_close_matches(ending, PICTURES, cutoff=0.75):
        there = os.listdir(folder or ".") if os.path.isdir(folder or ".") else ()
        near = did_you_mean(name, (other for other in there if other.lower().endswith(PICTURES)))
        if near or (len(ending) >= len(".gif") and " " not in text):
            raise ValueError(f"there is no image {text}{near}")
    return text


def check_text(text: str) -> str:
    """The text; ValueError where it holds no word."""
    if not is_usable(text):
        raise ValueError("the query is empty; type some words")
    return text


def embed(encoder: Encoder, query: Query, language: str | None = None) -> Tensor:
    """
    The vector of a text or a picture, (P,), L2-normalised.

    Raises:
        ValueError: the text holds no word, the image cannot be read, or the encoder needs a language, see `Encoder`.
    """
    if isinstance(query, str):
        return encode_captions_in(encoder, [check_text(query)], language)["embeds"][0].float().cpu()
    return encoder.encode_images([read_image(query)])["embeds"][0].float().cpu()


def combine(
    encoder: Encoder,
    query: Query,
    add: Sequence[Query] = (),
    subtract: Sequence[Query] = (),
    language: str | None = None,
) -> Tensor:
    """The vector of a query, others added to it and subtracted from it; (P,), L2-normalised.

    Args:
        language: of all texts, where the encoder needs it.

    Raises:
        ValueError: as `embed`; or nothing is left of them.
    """
    vector = embed(encoder, query, language)
    for other in add:
        vector = vector + embed(encoder, other, language)
    for other in subtract:
        vector = vector - embed(encoder, other, language)
    length = vector.norm()
    if not torch.isfinite(length):
        raise ValueError("the embedding of the query is not finite; look for the overflow in the model, or use fp32")
    if length < 1e-4:
        raise ValueError("what is added and subtracted leaves nothing of the query")
    return vector / length


def nearest(pictures: pa.Table, scores: Tensor, k: int, chosen: Filter = Filter()) -> list[Found]:
    """The `k` pictures of the highest scores (N,), equal ones by their paths."""
    if (mask := chosen.mask(pictures)) is not None:
        scores = torch.where(torch.from_numpy(mask), scores, -torch.inf)
    best = scores.topk(min(k, len(scores)))
    rows = best.indices[best.values > -torch.inf]
    found = pictures.take(pa.array(rows.numpy())).select(["id", "path"]).to_pylist()
    return ranked(Found(**row, score=score, rank=0) for row, score in zip(found, best.values.tolist(), strict=False))


def ranked(found: Iterable[Found]) -> list[Found]:
    """By score, equal ones by path, with ranks from 1. ValueError where a score is not finite."""
    ordered = sorted(found, key=lambda picture: (-picture.score, picture.path))
    if wrong := [picture.path for picture in ordered if not math.isfinite(picture.score)]:
        raise ValueError(f"the score of {wrong[0]!r} is not finite; the index or its model is damaged")
    return [replace(picture, rank=rank) for rank, picture in enumerate(ordered, start=1)]


@torch.no_grad()
def rerank_found(
    encoder: CCRKEncoder,
    text: str,
    found: Sequence[Found],
    states_of: Callable[[Sequence[str]], Mapping[str, Tensor]],
) -> list[Found]:
    """Pictures in the order of the fusion encoder's match logits, which become their scores.

    Args:
        found: candidates.
        states_of: ids → the image states (T, D) of those that are there; the others were deleted just now.
    """
    caption = encoder.encode_captions([text])
    captions = EncodedCaptions(
        caption["embeds"].cpu(), caption["tokens"], torch.zeros(1, dtype=torch.long), caption["lengths"].cpu()
    )
    scored = []
    for start in range(0, len(found), IMAGES_PER_BLOCK):
        block = found[start : start + IMAGES_PER_BLOCK]
        states = states_of([picture.id for picture in block])
        block = [picture for picture in block if picture.id in states]
        if not block:
            continue
        pairs = np.stack([np.arange(len(block)), np.zeros(len(block), dtype=np.int64)], axis=1)
        logits = encoder.score_pairs(torch.stack([states[picture.id] for picture in block]), captions, pairs)
        scored += [replace(picture, score=float(logit)) for picture, logit in zip(block, logits, strict=True)]
    return ranked(scored)


def encode_again(encoder: CCRKEncoder, jpegs: Mapping[str, bytes]) -> dict[str, Tensor]:
    """Id → image states (T, D), of pictures as they are stored."""
    if not jpegs:
        return {}
    images = [read_image(io.BytesIO(jpeg), where=f"stored image {name}") for name, jpeg in jpegs.items()]
    return dict(zip(jpegs, encoder.encode_images(images)["states"], strict=True))
