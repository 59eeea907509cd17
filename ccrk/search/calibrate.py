"""A threshold for each language, by conformal prediction: which results can be what was asked for.

Of queries whose right picture is known, the score of that picture says how low right ones come. At an error of 0.1, of
new queries like these nine in ten at least have their right picture at or above the threshold (split conformal
prediction: Vovk et al., "Algorithmic Learning in a Random World", 2005), whatever the model is worth.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ccrk.retrieval.evaluate import encode_captions
from ccrk.search.index import PictureIndex
from ccrk.search.store import picture_id
from data_scripts.captions import is_usable
from data_scripts.images import BadImage, picture_name
from data_scripts.problems import Problems
from data_scripts.sources import SeparatedValues

PATH = "path"
ERROR = 0.1
ROUNDING = 1e-6  # of scores: their last digits depend on how many are computed at a time


def threshold(scores: Sequence[float], error: float) -> float:
    """The score below which at most a share `error` of new right pictures fall.

    Raises:
        ValueError: there are too few scores for that.
    """
    place = math.floor(error * (len(scores) + 1))
    if place < 1:
        least = math.ceil(1 / error) - 1
        raise ValueError(f"{len(scores)} queries are too few for an error of {error:g}; give {least} at least")
    return float(np.sort(np.asarray(scores))[place - 1])


def calibrate(index: PictureIndex, path: Path, error: float = ERROR) -> dict[str, float]:
    """Thresholds of all languages in a table, which the index keeps.

    Args:
        path: CSV with a column `path`, of the right picture as the index names it, and others that are languages.

    Raises:
        ValueError: there is no such file or column, no picture of it is in the index, or there are too few queries.
    """
    if not 0 < error < 1:
        raise ValueError(f"an error is a share between 0 and 1, not {error:g}")
    if not path.is_file():
        raise ValueError(f"there is no file {path}; give a CSV with the columns path, and one for each language")
    index.refresh()
    pictures, vectors = index.contents
    row_of = {name: row for row, name in enumerate(pictures["id"].to_pylist())}
    problems = Problems(str(path), max_bad_fraction=1.0)
    texts: dict[str, list[str]] = {}
    rows: dict[str, list[int]] = {}
    for record, _, where in SeparatedValues(path).records(problems):
        if PATH not in record:
            raise ValueError(f"{path} has no column path, only {', '.join(record)}")
        row = row_of.get(_id(record.pop(PATH)))
        if row is None:
            problems.absent("picture is not in the index", where)
            continue
        for language, text in record.items():
            if is_usable(text):
                texts.setdefault(language, []).append(text)
                rows.setdefault(language, []).append(row)
    problems.report()
    if not texts:
        raise ValueError(f"no picture of {path} is in {index.location}; its column path holds what a query prints")
    thresholds = {}
    for language, queries in texts.items():
        embeds = encode_captions(index.encoder, queries).embeds
        scores = (embeds * vectors[rows[language]]).sum(dim=1).tolist()
        try:
            thresholds[language] = threshold(scores, error) - ROUNDING
        except ValueError as problem:
            raise ValueError(f"{path}, {language}: {problem}") from problem
    index.store.write_thresholds(
        [
            {"language": language, "threshold": value, "error": error, "queries": len(texts[language])}
            for language, value in thresholds.items()
        ]
    )
    return thresholds


def find_threshold(thresholds: Mapping[str, float], language: str) -> float:
    """The threshold of a language; ValueError where it has none."""
    if language not in thresholds:
        known = f"only of {', '.join(thresholds)}" if thresholds else "of none; see index --calibrate"
        raise ValueError(f"the index knows no threshold of {language}, {known}")
    return thresholds[language]


def _id(path: str | None) -> str | None:
    try:
        return picture_id(picture_name(path or ""))
    except BadImage:
        return None
