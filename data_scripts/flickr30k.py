"""Flickr30k: photographs with five English captions each, in Karpathy's split.

The annotations are IGLUE's, https://github.com/e-bug/iglue, as it is cloned:

    datasets/flickr30k/annotations/{train,valid,test}_ann.jsonl    {"sentences": […], "img_path": "….jpg"} per line

The photographs are Flickr30k's (https://shannon.cs.illinois.edu/DenotationGraph/), non-commercial research only.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets

from data_scripts.annotations import AnnotatedImages, Annotation, AnnotationConfig, read_json_lines, without_empty
from data_scripts.problems import Problems
from data_scripts.text import BadField, text_field, texts_field

HOMEPAGE = "https://github.com/e-bug/iglue"
STEMS = {"train": "train", "validation": "valid", "test": "test"}
PUBLISHED_ROWS = {"train": 29_000, "validation": 1_014, "test": 1_000}


@dataclass
class Flickr30KConfig(AnnotationConfig):
    """What to read, see `AnnotationConfig`."""

    dataset = "flickr30k"
    homepage = HOMEPAGE
    annotations = f"a clone of {HOMEPAGE}"
    photographs = "Flickr30k's photographs"
    published_folders = ("flickr30k-images",)

    def known_languages(self) -> Sequence[str]:
        return ("en",)

    def find_files(self) -> dict[str, Path]:
        folder = self.folder_of("datasets/flickr30k/annotations")
        return {"en": self.file(f"{STEMS[self.split]}_ann.jsonl", folder=folder)}

    def read(self, problems: Problems) -> Iterable[Annotation]:
        for entry, where in read_json_lines(self.files["en"], problems, f"clone {HOMEPAGE} again"):
            try:
                image, captions = text_field(entry, "img_path"), texts_field(entry, "sentences")
            except BadField as error:
                problems.bad(str(error), where)
                continue
            yield Annotation(
                image, self.image_id(image), {"en": without_empty(captions, "en", where, problems)}, where
            )

    def published_counts(self) -> dict[str, int]:
        rows = PUBLISHED_ROWS[self.split]
        return {"rows": rows, "captions en": 5 * rows}


class Flickr30K(AnnotatedImages):
    """Builds one split of Flickr30k; `data_scripts.load("flickr30k", …)` is the short way."""

    VERSION = datasets.Version("1.0.0")  # the code is not in the cache's name: count up when the rows change
    BUILDER_CONFIG_CLASS = Flickr30KConfig
