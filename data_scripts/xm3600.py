"""Crossmodal-3600: 3,600 photographs from around the world with captions written in each of 36 languages.

    data_dir/**/captions.jsonl    https://google.github.io/crossmodal-3600
    image_dir/<key>.jpg

A line is one photograph: {"image/key": "…", "image/locale": "ar", "ar": {"caption": ["…", …], …}, "bn": {…}, …}.

Each language has two captions or more for a photograph, written by themselves: caption i in one language is not that
in another. Figures are published over all captions, and over the first of each alone; they differ.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets

from data_scripts.annotations import AnnotatedImages, Annotation, AnnotationConfig, read_json_lines, without_empty
from data_scripts.problems import Problems
from data_scripts.text import BadField, files_below, text_field, texts_field, typed_field

HOMEPAGE = "https://google.github.io/crossmodal-3600"
LANGUAGES = (
    *("ar", "bn", "cs", "da", "de", "el", "en", "es", "fa", "fi", "fil", "fr"),
    *("he", "hi", "hr", "hu", "id", "it", "ja", "ko", "mi", "nl", "no", "pl"),
    *("pt", "quz", "ro", "ru", "sv", "sw", "te", "th", "tr", "uk", "vi", "zh"),
)
PROTOCOLS = ("all", "first")


@dataclass
class XM3600Config(AnnotationConfig):
    """What to read, see `AnnotationConfig`.

    Args:
        captions: "all" of a photograph and language, or the "first" alone.
    """

    split: str = "test"
    captions: str = "all"

    dataset = "xm3600"
    homepage = HOMEPAGE
    splits = ("test",)
    annotations = "captions.jsonl"
    photographs = "the photographs, KEY.jpg"

    def __post_init__(self):
        if self.captions not in PROTOCOLS:
            raise ValueError(f"xm3600 has the protocols {' and '.join(PROTOCOLS)}, not captions {self.captions!r}")
        super().__post_init__()

    def known_languages(self) -> Sequence[str]:
        return LANGUAGES

    def find_files(self) -> dict[str, Path]:
        found = files_below(self.data_dir, "captions.jsonl")
        return {"captions": self.file("captions.jsonl", folder=found[0].parent if found else None)}

    def read(self, problems: Problems) -> Iterable[Annotation]:
        for entry, where in read_json_lines(self.files["captions"], problems, f"download it again from {HOMEPAGE}"):
            try:
                image = f"{text_field(entry, 'image/key')}.jpg"
                of_languages = {
                    language: texts_field(typed_field(entry, language, dict, "an object"), "caption")
                    for language in self.languages
                    if language in entry
                }
            except BadField as error:
                problems.bad(str(error), where)
                continue
            end = 1 if self.captions == "first" else None
            captions = {
                language: without_empty(of_languages.get(language, [])[:end], language, where, problems)
                for language in self.languages
            }
            yield Annotation(image, self.image_id(image), captions, where)

    def published_counts(self) -> dict[str, int]:
        return {"rows": 3600}


class XM3600(AnnotatedImages):
    """Builds Crossmodal-3600; `data_scripts.load("xm3600", …)` is the short way."""

    VERSION = datasets.Version("1.0.0")  # the code is not in the cache's name: count up when the rows change
    BUILDER_CONFIG_CLASS = XM3600Config
