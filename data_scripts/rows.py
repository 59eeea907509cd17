"""The one row format that every builder in this folder yields and everything downstream reads."""

from collections.abc import Sequence

import datasets

# How files and folders of a split are called on the Hub.
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


def is_text(value: object) -> bool:
    """Whether a row can hold it: a string, without half a surrogate pair, which is valid JSON and no valid text."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def row_features(languages: Sequence[str], aligned: bool = False) -> datasets.Features:
    """Features of a row: one image with its captions in every language.

    - `image`: a PIL image when read; a path or encoded bytes on disk.
    - `image_id`: equal images share it, and are then never negatives of each other.
    - `captions`: for each language a list of strings, empty where the row has none. Caption `i` of one
      language and caption `i` of another belong together where the data set says so (MRV relies on it).
    - `aligned`, with the argument of that name: whether captions `i` of the languages are translations of one another,
      `None` standing for one that is missing before others; training then draws one `i` for all languages. Without
      it, each language's captions are drawn from by themselves.
    """
    features = {
        "image": datasets.Image(),
        "image_id": datasets.Value("string"),
        "captions": {language: datasets.List(datasets.Value("string")) for language in languages},
    }
    return datasets.Features(features | ({"aligned": datasets.Value("bool")} if aligned else {}))
