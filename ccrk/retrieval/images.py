"""The images of an evaluation by the contents of their files: which of them are copies, and which a model has seen."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import datasets
import numpy as np
import pandas as pd

from ccrk.encoders import OPEN_CLIP
from ccrk.processes import process_state
from ccrk.retrieval.instances import gallery_of
from ccrk.retrieval.notes import equal_note, trained_on_notes
from ccrk.trained_on import image_digests, overlap, read_runs

logger = logging.getLogger(__name__)


@dataclass
class EvaluatedImages:
    """The images of all galleries.

    Args:
        digests: (I,), of their contents, see `ccrk.trained_on.image_digests`.
        with_copy: how many of them have a copy under another name in the gallery of one language.
        numbers: (rows,), equal for rows that count as one image, where any copy counts as right; else None.
    """

    digests: np.ndarray
    with_copy: int
    numbers: np.ndarray | None

    @classmethod
    def of(cls, dataset: datasets.Dataset, any_copy: bool) -> "EvaluatedImages":
        """Of the rows of an evaluation, with a warning where there are copies; every process must call."""
        digests, ids = image_digests(dataset), np.array(dataset["image_id"][:])
        with_copy, is_used = np.zeros(len(digests), bool), np.zeros(len(digests), bool)
        for language in dataset.features["captions"]:
            gallery = gallery_of(dataset, language)
            is_used[gallery] = True
            with_copy[gallery] |= have_copy(ids[gallery], digests[gallery])
        digests_used = digests[is_used]
        images = cls(digests_used, int(with_copy.sum()), number_images(ids, digests) if any_copy else None)
        _warn([equal_note(images.with_copy, len(digests_used), any_copy)])
        return images

    def trained_on(self, models: Sequence[str]) -> dict | None:
        """
        How many of the images some models were trained on, see `ccrk.trained_on.overlap`, with a warning; None where
        that is not recorded.

        Raises:
            ValueError: the record of a model is damaged.
        """
        trained_here = [model for model in models if not model.endswith(".npz") and not model.startswith(OPEN_CLIP)]
        runs = [run for model in dict.fromkeys(trained_here) for run in read_runs(model)]
        if not runs:
            return None
        found = overlap(runs, self.digests)
        _warn(trained_on_notes(found))
        return found


def have_copy(ids: np.ndarray, digests: np.ndarray) -> np.ndarray:
    """(rows,): whether a row of another id has an image of equal contents; False where one cannot be read."""
    rows = pd.DataFrame({"id": ids, "digest": digests})
    return ((rows.groupby("digest")["id"].transform("nunique") > 1) & (rows["digest"] != 0)).to_numpy()


def number_images(ids: np.ndarray, digests: np.ndarray) -> np.ndarray:
    """(rows,): numbers that are equal for rows with one id or with images of equal contents, and for rows between."""
    unreadable = digests == 0
    # What cannot be read equals nothing else.
    contents = np.where(unreadable, np.arange(len(digests)), np.unique(digests, return_inverse=True)[1] + len(digests))
    rows = pd.DataFrame({"id": ids, "contents": contents, "number": np.arange(len(digests))})
    while True:
        before = rows["number"].to_numpy(copy=True)
        for shared in ("id", "contents"):
            rows["number"] = rows.groupby(shared)["number"].transform("min")
        if (rows["number"] == before).all():
            return before


def _warn(notes: Sequence[str | None]) -> None:
    if process_state().is_main_process:
        for note in filter(None, notes):
            logger.warning(note)
