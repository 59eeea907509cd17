"""A threshold for each language, by conformal prediction: which results can be what was asked for.

Of queries whose right picture is known, the score of that picture says how low right ones come. At an error of 0.1, of
new queries like these nine in ten at least have their right picture at or above the threshold (split conformal
prediction: Vovk et al., "Algorithmic Learning in a Random World", 2005), whatever the model is worth.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import datasets
import numpy as np

from ccrk.retrieval.evaluate import encode_captions
from ccrk.search.index import PictureIndex
from ccrk.search.store import picture_id
from data_scripts.captions import is_usable, meant_language
from data_scripts.formats import SeparatedValues
from data_scripts.images import BadImage, picture_name
from data_scripts.problems import Problems
from data_scripts.spreadsheets import from_cell

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


# The path of the right picture, language → a query that is meant to find it, and in words where this stands.
Known = tuple[str | None, Mapping[str, str | None], str]


def known_queries(path: Path, problems: Problems) -> Iterator[Known]:
    """Those of a CSV with a column `path`, of the right picture as the index names it, and others that are languages.

    Raises:
        ValueError: it has no such column.
    """
    for record, _, where in SeparatedValues(path).records(problems):
        if PATH not in record:
            raise ValueError(f"{path} has no column path, only {', '.join(record)}")
        picture = record.pop(PATH)
        yield picture, {from_cell(language): from_cell(text) for language, text in record.items()}, where


def own_captions(dataset: datasets.Dataset) -> Iterator[Known]:
    """The first usable caption of each picture in each language: several of one picture are no independent queries."""
    seen = set()
    for number, (image_id, captions) in enumerate(zip(dataset["image_id"], dataset["captions"], strict=True), start=1):
        if image_id not in seen:
            seen.add(image_id)
            first = {language: next(filter(is_usable, own or ()), None) for language, own in captions.items()}
            yield image_id, first, f"row {number}"


def calibrate(index: PictureIndex, known: Path | datasets.Dataset, error: float = ERROR) -> dict[str, float]:
    """Thresholds of all languages, which the index keeps.

    Args:
        known: a table, see `known_queries`; or rows with captions, see `own_captions`. The model must not have been
            trained with either.

    Raises:
        ValueError: no picture is in the index, or there are too few queries.
    """
    if not 0 < error < 1:
        raise ValueError(f"an error is a share between 0 and 1, not {error:g}")
    index.refresh()
    pictures, vectors = index.contents
    row_of = {name: row for row, name in enumerate(pictures["id"].to_pylist())}
    name = str(known) if isinstance(known, Path) else "its captions"
    problems = Problems(name, max_bad_fraction=1.0)
    texts: dict[str, list[str]] = {}
    rows: dict[str, list[int]] = {}
    for path, queries, where in known_queries(known, problems) if isinstance(known, Path) else own_captions(known):
        row = row_of.get(_id(path))
        if row is None:
            problems.absent("picture is not in the index", where)
            continue
        for language, text in queries.items():
            if is_usable(text):
                texts.setdefault(language, []).append(text)
                rows.setdefault(language, []).append(row)
    problems.report()
    if isinstance(known, Path) and not problems.rows:
        raise ValueError(f"{name} has no rows; give the columns path, and one of queries for each language")
    if not texts:
        raise ValueError(f"no picture of {name} is in {index.location}; a path is what a query prints")
    thresholds = {}
    for language, queries in texts.items():
        embeds = encode_captions(index.encoder, queries, language).embeds
        scores = (embeds * vectors[rows[language]]).sum(dim=1).tolist()
        try:
            thresholds[language] = threshold(scores, error) - ROUNDING
        except ValueError as problem:
            raise ValueError(f"{name}, {language}: {problem}") from problem
    index.store.write_thresholds(
        [
            {"language": language, "threshold": value, "error": error, "queries": len(texts[language])}
            for language, value in thresholds.items()
        ]
    )
    return thresholds


def find_threshold(thresholds: Mapping[str, float], language: str) -> float:
    """The threshold of a language; ValueError where it has none."""
    if not thresholds:
        raise ValueError(
            "the index has no thresholds, which --language needs; remove it, or make them with python -m ccrk.search "
            "index SOURCE INDEX --calibrate QUERIES.csv"
        )
    if language not in thresholds:
        near = meant_language(language, thresholds)
        raise ValueError(f"the index has no threshold for {language}, only for {', '.join(thresholds)}{near}")
    return thresholds[language]


def _id(path: str | None) -> str | None:
    try:
        return picture_id(picture_name(path or ""))
    except BadImage:
        return None
