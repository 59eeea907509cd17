"""The one row format that every builder in this folder yields and everything downstream reads."""

import os
import re
from collections.abc import Sequence
from pathlib import PureWindowsPath
from typing import Any

import datasets

# How files and folders of a split are called on the Hub, by `datasets.data_files`.
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
}

_WHOLE_NUMBER = re.compile(r"(?P<sign>-?)0*(?P<digits>[0-9]+)(\.0*)?")


def split_of(name: str) -> str | None:
    """The split that a word of a name tells: `train-00000-of-00002`, `val2014`, `Test images`, `captions.dev`."""
    words = re.split(r"[^a-z]+", name.lower())
    return next((SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES), None)


def split_of_folders(path: str | os.PathLike) -> str | None:
    """The split that a folder of a relative path tells. The file's own name, `train station.jpg`, tells none."""
    path = PureWindowsPath(path)
    # The folders of an absolute path lie above the data set: `/home/test/photos`.
    return None if path.anchor else next(filter(None, map(split_of, path.parts[:-1])), None)


def split_of_value(value: Any) -> str:
    """The split that stands in a column: one of these names, alone or before a number, or else one of its own."""
    text = str(value).strip()
    word = re.sub("[0-9]+$", "", text.lower())
    return SPLIT_NAMES.get(word, text)


def is_text(value: object) -> bool:
    """Whether a row can hold it: a string, without half a surrogate pair, which is valid JSON and no valid text."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_missing(value: Any) -> bool:
    """Whether nothing stands in a cell: null, or NaN as pandas writes it, also into JSON."""
    return value is None or (isinstance(value, float) and value != value)


def id_text(value: Any) -> str | None:
    """An id as text that is equal for equal numbers, such as 7, "007" and pandas' 7.0; None where there is none."""
    if is_missing(value) or (text := str(value).strip()) in ("", "nan", "NaN", "None", "<NA>"):
        return None
    number = _WHOLE_NUMBER.fullmatch(text)
    return f"{number['sign']}{number['digits']}" if number else text


def row_features(languages: Sequence[str], aligned: bool = False, gallery: bool = False) -> datasets.Features:
    """Features of a row: one image with its captions in every language.

    - `image`: a PIL image when read; a path or encoded bytes on disk.
    - `image_id`: equal images share it, and are then never negatives of each other.
    - `captions`: for each language a list of strings, empty where the row has none. Caption `i` of one
      language and caption `i` of another belong together where the data set says so (MRV relies on it).
    - `aligned`, with the argument of that name: whether captions `i` of the languages are translations of one another,
      `None` standing for one that is missing before others; training then draws one `i` for all languages. Without
      it, each language's captions are drawn from by themselves.
    - `gallery`, with the argument of that name: the languages whose captions are ranked against this image, also where
      it has none. Empty where the row has captions and no image; such rows come last. Without it, all languages.
    """
    features = {
        "image": datasets.Image(),
        "image_id": datasets.Value("string"),
        "captions": {language: datasets.List(datasets.Value("string")) for language in languages},
    }
    if aligned:
        features["aligned"] = datasets.Value("bool")
    if gallery:
        features["gallery"] = datasets.List(datasets.Value("string"))
    return datasets.Features(features)
