"""Multi30K: Flickr30k photographs with captions in English, German, French and Czech.

The annotations are the official release, https://github.com/multi30k/dataset, as it is cloned:

    data/task1/raw/{train,val,test_2016_flickr}.{en,de,fr,cs}.gz    line i of each file is one image's caption
    data/task1/image_splits/{train,val,test_2016_flickr}.txt        line i is that image's file name
    data/task1/…/test_{2017_flickr,2017_mscoco,2018_flickr}.…       splits of these names; those of 2017 without cs
    data/task2/raw/{train,val,test_2016}.{1,…,5}.{en,de}.gz         five more, written independently of each other
    data/task2/image_splits/{train,val,test_2016}_images.txt

or the research code's files, `{train,val,test_2016_flickr}.{en,de,fr,cs}.json`: for training a caption and its image
per entry, for the others an image and all of its captions.

The photographs are Flickr30k's (https://shannon.cs.illinois.edu/DenotationGraph/), non-commercial research only.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets

from data_scripts.annotations import (
    AnnotatedImages,
    Annotation,
    AnnotationConfig,
    merge_by_image,
    read_caption_list,
    without_empty,
)
from data_scripts.problems import Problems
from data_scripts.text import read_lines

HOMEPAGE = "https://github.com/multi30k/dataset"
# Our split → the release's, task 1. The paper tests on test_2016_flickr; the later ones are of task 1 alone.
STEMS = {"train": "train", "validation": "val", "test": "test_2016_flickr"}
LATER_TESTS = {
    "test_2017_flickr": ("en", "de", "fr"),
    "test_2017_mscoco": ("en", "de", "fr"),
    "test_2018_flickr": ("en", "de", "fr", "cs"),
}
# Task 2 leaves the photographs' origin out of its names.
TASK_2_STEMS = STEMS | {"test": "test_2016"}
LANGUAGES = {1: ("en", "de", "fr", "cs"), 2: ("en", "de")}
# As released; every row has its captions in all languages of the task.
PUBLISHED_ROWS = {
    **{"train": 29_000, "validation": 1_014, "test": 1_000},
    **{"test_2017_flickr": 1_000, "test_2017_mscoco": 461, "test_2018_flickr": 1_071},
}

_CITATION = """\
@inproceedings{elliott-etal-2016-multi30k,
  title     = {Multi30K: Multilingual {English-German} Image Descriptions},
  author    = {Elliott, Desmond and Frank, Stella and Sima'an, Khalil and Specia, Lucia},
  booktitle = {Proceedings of the 5th Workshop on Vision and Language},
  year      = {2016},
  url       = {https://aclanthology.org/W16-3210}
}
"""


@dataclass
class Multi30KConfig(AnnotationConfig):
    """What to read, see `AnnotationConfig`.

    Args:
        task: 1, a caption and its translations; or 2, five independent captions in en and in de. The research code's
            files are what they are: task says nothing about them.
    """

    task: int = 1

    dataset = "multi30k"
    homepage = HOMEPAGE
    splits = (*STEMS, *LATER_TESTS)
    annotations = f"a clone of {HOMEPAGE}"
    photographs = "Flickr30k's photographs"
    published_folders = ("flickr30k-images",)

    def known_languages(self) -> Sequence[str]:
        if self.task not in LANGUAGES:
            raise ValueError(f"multi30k has task 1 and task 2, not {self.task!r}")
        if self.split in LATER_TESTS and self.task != 1:
            raise ValueError(f"{self.split} is of multi30k's task 1, not {self.task}")
        return LATER_TESTS.get(self.split, LANGUAGES[self.task])

    def find_files(self) -> dict[str | tuple[str, int], Path]:
        stem = STEMS.get(self.split, self.split)
        if any(Path(self.data_dir).glob(f"{stem}.*.json*")):
            return {language: self.file(f"{stem}.{language}.json", language=language) for language in self.languages}
        folder = self.folder_of(f"data/task{self.task}")
        if self.task == 1:
            captions = {(language, 1): f"{stem}.{language}" for language in self.languages}
            images = f"{stem}.txt"
        else:
            stem = TASK_2_STEMS[self.split]
            captions = {(language, n): f"{stem}.{n}.{language}" for language in self.languages for n in range(1, 6)}
            images = f"{stem}_images.txt"
        files = {"images": self.file(images, folder=folder / "image_splits")}
        return files | {key: self.file(name, folder=folder / "raw", language=key[0]) for key, name in captions.items()}

    def read(self, problems: Problems) -> Iterable[Annotation]:
        cure = f"download it again from {HOMEPAGE}"
        if "images" in self.files:
            return self._read_release(problems, cure)
        parts = (
            (image, language, captions, where)
            for language, path in self.files.items()
            for image, captions, where in read_caption_list(path, problems, cure)
        )
        return merge_by_image(self, parts, problems)

    def _read_release(self, problems: Problems, cure: str) -> Iterator[Annotation]:
        files = dict(self.files)
        image_list = files.pop("images")
        # Names of COCO's photographs have the number of their caption behind them.
        names = [line.strip().partition("#")[0] for line in read_lines(image_list, cure)]
        lines = {key: read_lines(path, cure) for key, path in files.items()}
        for key, path in files.items():
            if len(lines[key]) != len(names):
                raise ValueError(
                    f"{image_list} has {len(names):,} lines but {path} has {len(lines[key]):,}; they go together line "
                    f"by line, so download both again from {HOMEPAGE}"
                )
        problems.rows += len(names)
        for row, name in enumerate(names):
            captions = {language: [] for language in self.languages}
            for (language, number), path in files.items():
                caption = lines[language, number][row]
                captions[language] += without_empty([caption], language, f"{path} line {row + 1}", problems)
            yield Annotation(name, self.image_id(name), captions, f"{image_list} line {row + 1}")

    def published_counts(self) -> dict[str, int]:
        rows = PUBLISHED_ROWS[self.split]
        per_row = 1 if self.task == 1 else 5
        return {"rows": rows} | {f"captions {language}": rows * per_row for language in self.languages}


class Multi30K(AnnotatedImages):
    """Builds one split of Multi30K; `data_scripts.load("multi30k", …)` is the short way."""

    VERSION = datasets.Version("3.0.0")  # the code is not in the cache's name: count up when the rows change
    BUILDER_CONFIG_CLASS = Multi30KConfig

    def _info(self) -> datasets.DatasetInfo:
        info = super()._info()
        info.citation = _CITATION
        return info
