"""What is ranked: captions and images, by names that hold in every language."""

from collections.abc import Sequence
from dataclasses import dataclass

import datasets
import numpy as np
import pandas as pd

from data_scripts.captions import is_usable

# language → "IR" or "TR" → ranks from 1 of the instances, which are indexed by `IMAGE` and, for IR, `CAPTION` as well
Ranks = dict[str, dict[str, pd.Series]]

# An image is its id and its number among the rows with that id; a caption is its place in its row.
IMAGE = ["image", "repeat"]

CAPTION = [*IMAGE, "caption"]

INDEX = {"IR": CAPTION, "TR": IMAGE}


@dataclass
class UsableCaptions:
    """N captions of one language, and the I images among which theirs are looked for."""

    texts: list[str]
    rows: np.ndarray  # (N,), ascending
    gallery: np.ndarray  # (I,), rows, ascending
    places: np.ndarray  # (N,), of each among its row's captions
    ids: np.ndarray  # (rows of the data set,), equal for equal images
    images: pd.MultiIndex  # all rows of the data set, by `IMAGE`
    left_out: int

    def index(self, chosen: np.ndarray) -> pd.MultiIndex:
        """Some of the captions, by `CAPTION`."""
        image, repeat = (self.images.get_level_values(level)[self.rows[chosen]] for level in IMAGE)
        return pd.MultiIndex.from_arrays([image, repeat, self.places[chosen]], names=CAPTION)


def image_index(dataset: datasets.Dataset) -> pd.MultiIndex:
    """The rows of a data set, by `IMAGE`."""
    ids = pd.Series(dataset["image_id"][:])
    return pd.MultiIndex.from_arrays([ids, ids.groupby(ids).cumcount()], names=IMAGE)


def usable_captions(
    dataset: datasets.Dataset, language: str, image_numbers: np.ndarray | None = None
) -> UsableCaptions:
    """The captions of a language that are usable.

    Args:
        image_numbers: (rows,), equal for rows that show one image; by default rows with equal `image_id` do.
    """
    texts, rows, places, left_out = [], [], [], 0
    for row, captions in enumerate(dataset["captions"]):
        for place, caption in enumerate(captions[language]):
            if is_usable(caption):
                texts.append(caption)
                rows.append(row)
                places.append(place)
            elif caption is not None:  # it is there, and not only the place of one
                left_out += 1
    if not texts:
        raise ValueError(f"the data has no usable caption in {language!r}; ask for other languages")
    ids = np.unique(dataset["image_id"] if image_numbers is None else image_numbers, return_inverse=True)[1]
    gallery = gallery_of(dataset, language)
    return UsableCaptions(texts, np.array(rows), gallery, np.array(places), ids, image_index(dataset), left_out)


def gallery_of(dataset: datasets.Dataset, language: str) -> np.ndarray:
    """The rows whose images are in a language's gallery, ascending, see `data_scripts.rows.row_features`."""
    if "gallery" not in dataset.column_names:
        return np.arange(len(dataset))
    return np.flatnonzero([language in languages for languages in dataset["gallery"]])


def count_images(dataset: datasets.Dataset) -> int:
    """How many rows have an image: captions without one come last."""
    return sum(map(bool, dataset["gallery"])) if "gallery" in dataset.column_names else len(dataset)


def shared_ranks(ranks: Ranks, languages: Sequence[str], direction: str) -> pd.DataFrame:
    """(instances that every language has, languages): an instance is a row for TR, for IR a caption by its place."""
    return pd.concat({language: ranks[language][direction] for language in languages}, axis=1, join="inner")
