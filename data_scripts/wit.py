"""WIT: photographs of Wikipedia with the captions of its language editions, as IGLUE splits them.

`data_dir` is an unchanged clone of https://github.com/e-bug/iglue, its archives unpacked:

    datasets/wit/annotations/{train_en,val_en}.jsonl                        splits "train", "validation": English
    datasets/wit/annotations/test_{ar,bg,da,el,en,et,id,ja,ko,tr,vi}.jsonl  split "test"
    datasets/wit/annotations_machine-translate/test_{ar,…}_gmt.jsonl        split "test_gmt": translated to English

`image_dir` holds the pixels, from https://www.kaggle.com/c/wikipedia-image-caption/data: tab-separated `*.csv`,
unpacked, in any folders below it; a line is an image's URL, its bytes in base64, and more that is not read.

Each CSV is read once, for an index of where its lines are, which stays in the cache.
"""

import hashlib
import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import datasets
import numpy as np
from tqdm.auto import tqdm

from data_scripts.annotations import (
    AnnotatedImages,
    Annotation,
    AnnotationConfig,
    merge_by_image,
    read_json_lines,
)
from data_scripts.images import MISSING, BadImage, decode_base64
from data_scripts.problems import Problems
from data_scripts.text import BYTE_ORDER_MARK, BadField, files_below, numbered_lines, text_field

HOMEPAGE = "https://github.com/e-bug/iglue"
LANGUAGES = ("ar", "bg", "da", "el", "en", "et", "id", "ja", "ko", "tr", "vi")
TRANSLATED = tuple(language for language in LANGUAGES if language != "en")

# Images and captions of the test sets, as IGLUE's files have them; those of bg, el, ko and vi were not at hand.
PUBLISHED_TEST = {
    "ar": (792, 890),
    "da": (814, 891),
    "en": (685, 1_000),
    "et": (780, 874),
    "id": (854, 901),
    "ja": (842, 1_000),
    "tr": (681, 721),
}

_MARK = BYTE_ORDER_MARK.encode()
_ENTRY = np.dtype([("url", "<u8"), ("offset", "<i8")])


@dataclass
class WITConfig(AnnotationConfig):
    """What to read, see `AnnotationConfig`. Captions with the same image URL are of one row.

    The languages have photographs of their own: each is searched in its own, as in the published work.
    """

    dataset = "wit"
    homepage = HOMEPAGE
    splits = ("train", "validation", "test", "test_gmt")
    annotations = f"a clone of {HOMEPAGE}"
    photographs = "WIT's tab-separated *.csv files"
    languages_apart = True

    def known_languages(self) -> Sequence[str]:
        return {"test": LANGUAGES, "test_gmt": TRANSLATED}.get(self.split, ("en",))

    def find_files(self) -> dict[str, Path]:
        translated = "_machine-translate" if self.split == "test_gmt" else ""
        folder = self.folder_of(f"datasets/wit/annotations{translated}")
        name = {
            "train": "train_{}.jsonl",
            "validation": "val_{}.jsonl",
            "test": "test_{}.jsonl",
            "test_gmt": "test_{}_gmt.jsonl",
        }[self.split]
        self.tables = files_below(self.image_dir, "*.csv")
        if not self.tables:
            raise FileNotFoundError(
                f"wit: there is no *.csv below {self.image_dir}; unpack the pixel files of WIT there"
            )
        return {
            language: self.file(name.format(language), folder=folder, language=language) for language in self.languages
        }

    def read(self, problems: Problems) -> Iterable[Annotation]:
        return merge_by_image(self, self._read_files(problems), problems)

    def _read_files(self, problems: Problems) -> Iterator[tuple[str, str, list[str], str]]:
        for language, path in self.files.items():
            for entry, where in read_json_lines(path, problems, f"clone {HOMEPAGE} again"):
                field = "caption_reference_description"
                try:
                    # IGLUE's null is an empty caption.
                    caption = "" if entry.get(field, 0) is None else text_field(entry, field)
                    yield text_field(entry, "image_url"), language, [caption], where
                except BadField as error:
                    problems.bad(str(error), where)

    def image_id(self, image: str) -> str:
        return image  # its URL

    def place(self, image: str) -> str:
        return image

    def check_places(self, annotations: Iterable[Annotation]) -> str:
        return ""  # a URL is found as a whole or not at all

    def published_counts(self) -> dict[str, int]:
        if self.split != "test" or len(self.languages) > 1 or self.languages[0] not in PUBLISHED_TEST:
            return {}
        images, captions = PUBLISHED_TEST[self.languages[0]]
        return {"rows": images, f"captions {self.languages[0]}": captions}

    def image_states(self) -> Iterator[str]:
        for path in self.tables:
            status = path.stat()
            yield f"{path}\n{status.st_size}\n{status.st_mtime_ns}\n"


class Line(NamedTuple):
    """A line of a CSV file."""

    path: str
    offset: int


class WIT(AnnotatedImages):
    """Builds one split of WIT; `data_scripts.load("wit", …)` is the short way.

    A map-style data set copies the images that its rows need into the cache; a stream reads them from the CSV files.
    """

    VERSION = datasets.Version("2.0.0")  # the code is not in the cache's name: count up when the rows change
    BUILDER_CONFIG_CLASS = WITConfig

    def check_images(self, *args, **kwargs) -> Iterator[tuple[Annotation, Line | None]]:
        self.open_tables()
        return super().check_images(*args, **kwargs)

    def open_tables(self) -> None:
        """Loads the index of every CSV file, making those that are not in the cache."""
        folder = Path(self._cache_dir_root, "wit_index")
        self._indices = {str(path): open_index(path, folder) for path in self.config.tables}

    def locate(self, annotation: Annotation) -> Line:
        url = annotation.image.encode()
        key = _key(url)
        for path, index in self._indices.items():
            first, last = (np.searchsorted(index["url"], key, side) for side in ("left", "right"))
            for entry in index[first:last]:  # more than one where two URLs share a key
                line = Line(path, int(entry["offset"]))
                if _read(line)[0] == url:
                    return line
        raise BadImage(MISSING, annotation.image)

    def encoded(self, image: Line) -> bytes:
        return decode_base64(_read(image)[1], f"{image.path} at byte {image.offset:,}")


def _read(line: Line) -> tuple[bytes, bytes]:
    with open(line.path, "rb") as file:
        file.seek(line.offset)
        url, _, rest = file.readline().rstrip(b"\r\n").removeprefix(_MARK).partition(b"\t")
    return url, rest.partition(b"\t")[0]


def _key(url: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(url, digest_size=8).digest(), "little")


def open_index(path: Path, folder: Path) -> np.ndarray:
    """Where each line of a CSV file begins, sorted by a 64-bit key of its URL: (lines,) of `url` and `offset`.

    16 bytes a line, on disk: it is mapped, not read. Made in one pass when the file is new, or other than it was.
    """
    status = path.stat()
    # Counted up when the index of the same file changes.
    version = 2
    contents = f"{version}\n{path.resolve()}\n{status.st_size}\n{status.st_mtime_ns}"
    name = hashlib.sha256(contents.encode()).hexdigest()[:32]
    index_path = folder / f"{name}.npy"
    if not index_path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f"{name}.{os.getpid()}.npy"
        np.save(temporary, _make_index(path, status.st_size), allow_pickle=False)
        temporary.replace(index_path)  # whole or not at all
    return np.lib.format.open_memmap(index_path, mode="r")  # np.load is replaced by `datasets` in builders' modules


def _make_index(path: Path, size: int) -> np.ndarray:
    keys, offsets, offset = array("Q"), array("q"), 0
    progress = tqdm(
        desc=f"indexing {path.name}", total=size, unit="B", unit_scale=True, leave=False, delay=2, disable=None
    )
    with open(path, "rb") as file, progress:
        for _, line in numbered_lines(file, path):
            keys.append(_key(line.removeprefix(_MARK).partition(b"\t")[0].rstrip(b"\r\n")))
            offsets.append(offset)
            offset += len(line)
            progress.update(len(line))
    index = np.empty(len(keys), _ENTRY)
    index["url"], index["offset"] = keys, offsets
    return index[np.argsort(index["url"], kind="stable")]
