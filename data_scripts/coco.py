"""COCO photographs with captions in English (Karpathy's split), Japanese (YJ Captions) and Chinese (COCO-CN).

`data_dir` holds what each language's publisher ships, as downloaded and unpacked, anywhere below it:

    en    dataset_coco.json                                        https://cs.stanford.edu/people/karpathy/deepimagesent/
    ja    yjcaptions26k_clean.json, and dataset_coco.json          https://github.com/yahoojapan/YJCaptions
    zh    coco-cn_{train,val,test}.txt, imageid.human-written-caption.txt    https://github.com/li-xirong/coco-cn

or the research code's `{en,ja,zh}.{train,val,test}.json`. `image_dir` is the folder of `train2014` and `val2014`
(https://cocodataset.org/#download), or one above it.

YJ Captions come without a split: they follow Karpathy's, which puts photographs of train2014 into training only. The
split behind the published Japanese figures is not public; with its JSON files they can be reproduced, with YJ
Captions alone they cannot.

The languages have test photographs of their own: each is searched in its own, and there is no MRV. One language's test
photographs may be among another's training photographs, as in the published work.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np

from data_scripts.annotations import (
    AnnotatedImages,
    Annotation,
    AnnotationConfig,
    merge_by_image,
    read_caption_list,
    read_json,
)
from data_scripts.images import with_folder
from data_scripts.problems import Problems
from data_scripts.text import BadField, files_below, objects_field, read_lines, text_field, typed_field

HOMEPAGE = "https://cocodataset.org"
COCO_CN_HOMEPAGE = "https://github.com/li-xirong/coco-cn"
KARPATHY = "dataset_coco.json"
YJ_CAPTIONS = "yjcaptions26k_clean.json"
COCO_CN = "imageid.human-written-caption.txt"
STEMS = {"train": "train", "validation": "val", "test": "test"}
# Karpathy's "restval", what is left of val2014, is for training.
KARPATHY_SPLITS = {"train": ("train", "restval"), "validation": ("val",), "test": ("test",)}
FOLDS = 5
# Photographs of each split, as published.
PUBLISHED_ROWS = {
    "en": {"train": 113_287, "validation": 5_000, "test": 5_000},
    "zh": {"train": 18_341, "validation": 1_000, "test": 1_000},
}


@dataclass
class COCOConfig(AnnotationConfig):
    """What to read, see `AnnotationConfig`. English alone unless languages are given.

    Args:
        fold: 0 to 4: only this fifth of the split's images, in the order of the files. The published evaluation in en
            and ja is the mean over the five folds of the test split.
    """

    fold: int | None = None

    dataset = "coco"
    homepage = HOMEPAGE
    annotations = f"{KARPATHY}, {YJ_CAPTIONS} and COCO-CN, or of the research code's JSON files"
    photographs = "COCO's train2014 and val2014"
    published_folders = ("coco/train2014", "coco/val2014")
    languages_apart = True

    def __post_init__(self):
        if self.fold is not None and self.fold not in range(FOLDS):
            raise ValueError(f"coco has the folds 0 to {FOLDS - 1}, not {self.fold!r}")
        if self.languages is None:
            self.languages = ("en",)
        super().__post_init__()

    def known_languages(self) -> Sequence[str]:
        return ("en", "ja", "zh")

    def find_files(self) -> dict[tuple[str, str], Path]:
        stem = STEMS[self.split]
        if any(Path(self.data_dir).glob(f"*.{stem}.json*")):
            return {
                (language, "json"): self.file(f"{language}.{stem}.json", language=language)
                for language in self.languages
            }
        files = {}
        for language in self.languages:
            if language == "zh":
                files["zh", "captions"] = self._anywhere(COCO_CN)
                files["zh", "split"] = self._anywhere(f"coco-cn_{stem}.txt")
            else:
                files["en", "captions"] = self._anywhere(KARPATHY)
            if language == "ja":
                files["ja", "captions"] = self._anywhere(YJ_CAPTIONS)
        return files

    def _anywhere(self, name: str) -> Path:
        """The first file of that name, nearest to data_dir first."""
        found = sorted(files_below(self.data_dir, name), key=lambda path: len(path.parts))
        return self.file(name, folder=found[0].parent if found else self.data_dir)

    def read(self, problems: Problems) -> Iterable[Annotation]:
        parts = (part for language in self.languages for part in self._read_language(language, problems))
        annotations = merge_by_image(self, parts, problems)
        if self.fold is None:
            return annotations
        return [annotations[row] for row in np.array_split(range(len(annotations)), FOLDS)[self.fold]]

    def _read_language(self, language: str, problems: Problems) -> Iterator[tuple[str, str, list[str], str]]:
        if (language, "json") in self.files:
            path = self.files[language, "json"]
            for image, captions, where in read_caption_list(path, problems, "write it again as docs/data.md says"):
                in_coco = re.match(r"[./\\]*(train|val)2014[/\\]", image)
                yield with_folder("coco", image) if in_coco else image, language, captions, where
        elif language == "zh":
            yield from self._read_coco_cn(problems)
        elif language == "ja":
            yield from self._read_yj_captions(problems)
        else:
            for _, image, captions, where in self._read_karpathy(problems):
                yield image, "en", captions, where

    def _read_karpathy(self, problems: Problems) -> Iterator[tuple[int, str, list[str], str]]:
        """COCO's number of the image, its path, captions, and where they are from."""
        path = self.files["en", "captions"]
        for number, entry in enumerate(_entries(path, "images"), start=1):
            where = f"{path} image {number}"
            try:
                split = text_field(entry, "split")
                if split not in (*KARPATHY_SPLITS["train"], "val", "test"):
                    raise BadField("split is none of train, restval, val and test")
                if split not in KARPATHY_SPLITS[self.split]:
                    continue
                names = text_field(entry, "filepath"), text_field(entry, "filename")
                captions = [text_field(sentence, "raw") for sentence in objects_field(entry, "sentences")]
                cocoid = typed_field(entry, "cocoid", int, "a whole number")
            except BadField as error:
                problems.rows += 1
                problems.bad(str(error), where)
                continue
            problems.rows += 1
            yield cocoid, f"coco/{names[0]}/{names[1]}", captions, where

    def _read_yj_captions(self, problems: Problems) -> Iterator[tuple[str, str, list[str], str]]:
        counted_elsewhere = Problems(self.source, 1.0, quiet=True)
        images = {number: image for number, image, _, _ in self._read_karpathy(counted_elsewhere)}
        path = self.files["ja", "captions"]
        for number, entry in enumerate(_entries(path, "annotations"), start=1):
            where = f"{path} annotation {number}"
            try:
                caption, image_id = text_field(entry, "caption"), typed_field(entry, "image_id", int, "a whole number")
            except BadField as error:
                problems.rows += 1
                problems.bad(str(error), where)
                continue
            if image_id in images:
                problems.rows += 1
                yield images[image_id], "ja", [caption], where

    def _read_coco_cn(self, problems: Problems) -> Iterator[tuple[str, str, list[str], str]]:
        path, cure = self.files["zh", "captions"], f"download it again from {COCO_CN_HOMEPAGE}"
        captions: dict[str, list[str]] = {}
        for number, line in enumerate(read_lines(path, cure), start=1):
            if not line.strip():
                continue
            key, tab, caption = line.partition("\t")  # COCO_train2014_000000000009#0, a caption
            if tab:
                captions.setdefault(key.split("#")[0], []).append(caption)
            else:
                problems.rows += 1
                problems.bad("line without a tab", f"{path} line {number}")
        for number, line in enumerate(read_lines(self.files["zh", "split"], cure), start=1):
            if not (name := line.strip()):
                continue
            folder = name.split("_")[1] if name.count("_") == 2 else ""
            problems.rows += 1
            yield (
                f"coco/{folder}/{name}.jpg",
                "zh",
                captions.get(name, [""]),
                f"{self.files['zh', 'split']} line {number}",
            )

    def published_counts(self) -> dict[str, int]:
        if len(self.languages) > 1 or self.fold is not None or self.languages[0] not in PUBLISHED_ROWS:
            return {}
        return {"rows": PUBLISHED_ROWS[self.languages[0]][self.split]}


def _entries(path: Path, field: str) -> list:
    cure = f"download it again; docs/data.md says where {path.name} is from"
    content = read_json(path, cure)
    if not isinstance(content, dict) or not isinstance(content.get(field), list):
        raise ValueError(f"{path} has no list {field!r}; {cure}")
    return content[field]


class COCO(AnnotatedImages):
    """Builds one split of COCO; `data_scripts.load("coco", …)` is the short way."""

    VERSION = datasets.Version("2.1.0")  # the code is not in the cache's name: count up when the rows change
    BUILDER_CONFIG_CLASS = COCOConfig
