"""XTD: 1,000 photographs of COCO with one caption in each of ten languages, and English.

`data_dir` is a clone of https://github.com/adobe-research/Cross-lingual-Test-Dataset-XTD10, whose three folders hold

    test_image_names.txt              line i is a photograph's file name
    test_1kcaptions_{language}.txt    line i is its caption

`image_dir` is the folder of COCO's train2014 and val2014 (https://cocodataset.org/#download), or one above it.
"xtd10" are the ten languages, "xtd11" those and English.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets

from data_scripts.annotations import AnnotatedImages, Annotation, AnnotationConfig, without_empty
from data_scripts.images import with_folder
from data_scripts.problems import Problems
from data_scripts.text import files_below, read_lines

HOMEPAGE = "https://github.com/adobe-research/Cross-lingual-Test-Dataset-XTD10"
LANGUAGES = ("de", "es", "fr", "it", "ja", "ko", "pl", "ru", "tr", "zh")
IMAGES = "test_image_names.txt"
FILE_TAGS = {"ja": ("jp", "ja")}  # as the files are called


@dataclass
class XTD10Config(AnnotationConfig):
    """What to read, see `AnnotationConfig`."""

    split: str = "test"

    dataset = "xtd10"
    homepage = HOMEPAGE
    splits = ("test",)
    annotations = f"a clone of {HOMEPAGE}"
    photographs = "COCO's train2014 and val2014"
    published_folders = ("coco/train2014", "coco/val2014")

    def known_languages(self) -> Sequence[str]:
        return LANGUAGES

    def find_files(self) -> dict[str, Path]:
        files = {"images": self._anywhere(IMAGES)}
        for language in self.languages:
            tags = FILE_TAGS.get(language, (language,))
            files[language] = self._anywhere(*(f"test_1kcaptions_{tag}.txt" for tag in tags))
        return files

    def _anywhere(self, *names: str) -> Path:
        found = [path for name in names for path in files_below(self.data_dir, name)]
        return self.file(*names, folder=found[0].parent if found else None)

    def read(self, problems: Problems) -> Iterable[Annotation]:
        cure = f"clone {HOMEPAGE} again"
        lines = {name: read_lines(path, cure) for name, path in self.files.items()}
        names = [name.strip() for name in lines.pop("images")]
        for language, captions in lines.items():
            if len(captions) != len(names):
                raise ValueError(
                    f"{self.files['images']} has {len(names):,} lines but {self.files[language]} has "
                    f"{len(captions):,}; they go together line by line, so {cure}"
                )
        problems.rows += len(names)
        for row, name in enumerate(names):
            folder = re.search(r"(?:train|val)2014", name)
            image = with_folder(f"coco/{folder[0]}", name) if folder else name
            captions = {
                language: without_empty([lines[language][row]], language, f"{path} line {row + 1}", problems)
                for language, path in self.files.items()
                if language != "images"
            }
            yield Annotation(image, self.image_id(image), captions, f"{self.files['images']} line {row + 1}")

    def published_counts(self) -> dict[str, int]:
        return {"rows": 1000} | {f"captions {language}": 1000 for language in self.languages}


class XTD10(AnnotatedImages):
    """Builds XTD10; `data_scripts.load("xtd10", …)` is the short way."""

    VERSION = datasets.Version("1.0.0")  # the code is not in the cache's name: count up when the rows change
    BUILDER_CONFIG_CLASS = XTD10Config


@dataclass
class XTD11Config(XTD10Config):
    """What to read: the ten languages and English."""

    dataset = "xtd11"

    def known_languages(self) -> Sequence[str]:
        return ("en", *LANGUAGES)


class XTD11(XTD10):
    """Builds XTD11; `data_scripts.load("xtd11", …)` is the short way."""

    BUILDER_CONFIG_CLASS = XTD11Config
