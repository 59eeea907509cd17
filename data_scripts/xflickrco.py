"""xFlickr&CO: 1,000 photographs of Flickr30k and 1,000 of COCO with a caption in each of eight languages.

`data_dir` is an unchanged clone of https://github.com/e-bug/iglue:

    datasets/xFlickrCO/annotations/{de,en,es,id,ja,ru,tr,zh}/test.jsonl               split "test"
    datasets/xFlickrCO/annotations_machine-translate/{de,…}/test_gmt.jsonl            split "test_gmt"
    datasets/xFlickrCO/annotations/{de,…}/train_{1,5,…,100,…,100x5,…}.jsonl           few_shot "de,100" and so on
    datasets/flickr30k/annotations/{train,valid}_ann.jsonl                            "train", "validation": English

`image_dir` is the folder of `flickr30k-images` (https://shannon.cs.illinois.edu/DenotationGraph/) and of COCO's
`val2014` or `coco/val2014` (https://cocodataset.org/#download).
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets

from data_scripts.annotations import (
    AnnotatedImages,
    Annotation,
    AnnotationConfig,
    merge_by_image,
    read_json_lines,
)
from data_scripts.captions import close_tags
from data_scripts.images import with_folder
from data_scripts.problems import Problems
from data_scripts.text import BadField, text_field, texts_field

HOMEPAGE = "https://github.com/e-bug/iglue"
LANGUAGES = ("de", "en", "es", "id", "ja", "ru", "tr", "zh")
# English was not translated into English.
TRANSLATED = tuple(language for language in LANGUAGES if language != "en")
FLICKR, COCO = "flickr30k-images", "coco/val2014"
STEMS = {"train": "train", "validation": "valid"}
# Flickr30k in Karpathy's split, and the published test sets; few-shot files hold what their names say.
PUBLISHED_ROWS = {"train": 29_000, "validation": 1_014, "test": 2_000, "test_gmt": 2_000}


@dataclass
class XFlickrCOConfig(AnnotationConfig):
    """What to read, see `AnnotationConfig`.

    Args:
        few_shot: "LANGUAGE,SHOTS": train on that many photographs of a language, such as "de,100"; "de,100x5" has five
            captions for each. IGLUE has none to validate such a run on: "validation" stays Flickr30k's in English.
    """

    few_shot: str | None = None

    dataset = "xflickrco"
    homepage = HOMEPAGE
    splits = ("train", "validation", "test", "test_gmt")
    annotations = f"a clone of {HOMEPAGE}"
    photographs = "flickr30k-images and val2014"
    published_folders = (FLICKR, COCO)

    def __post_init__(self):
        shots = None if self.few_shot is None else _parse_few_shot(self.few_shot)
        if shots is not None and self.split not in STEMS:
            raise ValueError(f"few_shot is for train and validation; remove it to read {self.split}")
        self.shots = shots if self.split == "train" else None
        super().__post_init__()

    def known_languages(self) -> Sequence[str]:
        if self.shots is not None:
            return (self.shots[0],)
        return {"test": LANGUAGES, "test_gmt": TRANSLATED}.get(self.split, ("en",))

    def find_files(self) -> dict[str, Path]:
        if self.shots is not None:
            language, shots = self.shots
            folder = self.folder_of("datasets/xFlickrCO/annotations")
            return {language: self.file(f"train_{shots}.jsonl", folder=folder / language, language=language)}
        if self.split in STEMS:
            folder = self.folder_of("datasets/flickr30k/annotations")
            return {"en": self.file(f"{STEMS[self.split]}_ann.jsonl", folder=folder)}
        translated = "_machine-translate" if self.split == "test_gmt" else ""
        folder = self.folder_of(f"datasets/xFlickrCO/annotations{translated}")
        return {
            language: self.file(f"{self.split}.jsonl", folder=folder / language, language=language)
            for language in self.languages
        }

    def read(self, problems: Problems) -> Iterable[Annotation]:
        return merge_by_image(self, self._read_files(problems), problems)

    def _read_files(self, problems: Problems) -> Iterator[tuple[str, str, list[str], str]]:
        for language, path in self.files.items():
            for entry, where in read_json_lines(path, problems, f"clone {HOMEPAGE} again"):
                try:
                    image, captions = text_field(entry, "img_path"), texts_field(entry, "sentences")
                except BadField as error:
                    problems.bad(str(error), where)
                    continue
                yield with_folder(COCO if "COCO" in image else FLICKR, image), language, captions, where

    def published_counts(self) -> dict[str, int]:
        if self.shots is None:
            rows, per_row = PUBLISHED_ROWS[self.split], 5 if self.split in STEMS else 1
        else:
            rows, _, per_row = self.shots[1].partition("x")
            rows, per_row = int(rows), int(per_row or 1)
        return {"rows": rows} | {f"captions {language}": rows * per_row for language in self.languages}


def _parse_few_shot(few_shot: str) -> tuple[str, str]:
    match = re.fullmatch(r"([^,]+),(\d+(?:x\d+)?)", few_shot)
    if match is None or match[1] not in LANGUAGES:
        close = close_tags([match[1]], LANGUAGES) if match else ""
        raise ValueError(
            f"few_shot is LANGUAGE,SHOTS such as de,100 with a language of {', '.join(LANGUAGES)}, not {few_shot!r}"
            + close
        )
    return match[1], match[2]


class XFlickrCO(AnnotatedImages):
    """Builds one split of xFlickr&CO; `data_scripts.load("xflickrco", …)` is the short way."""

    VERSION = datasets.Version("2.1.0")  # the code is not in the cache's name: count up when the rows change
    BUILDER_CONFIG_CLASS = XFlickrCOConfig
