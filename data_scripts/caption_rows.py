"""A data set read caption by caption: the rows of the published fine-tuning."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import datasets
import numpy as np

from data_scripts.captions import is_usable


@dataclass
class CaptionRows:
    """
    The usable captions of a data set, each a row of its own with its image: what the published code fine-tunes on.

    A row has all the fields of its image's, of the captions but this one, and `caption`: the name of it among the
    image's, such as `de 2`.

    Args:
        images: rows of one image each.
    """

    images: datasets.Dataset
    _image: np.ndarray = field(init=False, repr=False)  # of each caption
    _language: np.ndarray = field(init=False, repr=False)
    _place: np.ndarray = field(init=False, repr=False)

    def __post_init__(self):
        self._languages = list(self.images.features["captions"])
        found = [
            (image, language, place)
            for image, captions in enumerate(self.images["captions"])
            for language, name in enumerate(self._languages)
            for place, caption in enumerate(captions[name])
            if is_usable(caption)
        ]
        self._image, self._language, self._place = np.array(found, dtype=np.int64).reshape(-1, 3).T
        self.column_names, self._fingerprint = self.images.column_names, self.images._fingerprint

    def __len__(self) -> int:
        return len(self._image)

    def __getitem__(self, row: int | str) -> dict | list:
        if isinstance(row, str):
            column = self.images[row][:]
            return [column[image] for image in self._image]
        image, language, place = int(self._image[row]), self._languages[self._language[row]], int(self._place[row])
        fields = self.images[image]
        captions = {name: [] for name in self._languages} | {language: [fields["captions"][language][place]]}
        return fields | {"captions": captions, "caption": f"{language} {place}"}

    def __iter__(self) -> Iterator[dict]:
        return (self[row] for row in range(len(self)))
