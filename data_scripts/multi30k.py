"""Multi30K, task 1: Flickr30k photographs, each with one English caption and its human translations.

The annotations are the official release, https://github.com/multi30k/dataset, as it is cloned:

    data_dir/data/task1/raw/{train,val,test_2016_flickr}.{en,de,fr,cs}.gz    line i of each file is one image's caption
    data_dir/data/task1/image_splits/{train,val,test_2016_flickr}.txt        line i is that image's file name

The photographs are Flickr30k's (https://shannon.cs.illinois.edu/DenotationGraph/), non-commercial research only.
Rows whose photograph is missing or broken are left out, and every load says how many.
"""

import gzip
import hashlib
import logging
import os
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

import datasets
from PIL import Image

from data_scripts.rows import row_features

logger = logging.getLogger(__name__)

HOMEPAGE = "https://github.com/multi30k/dataset"
LANGUAGES = ("en", "de", "fr", "cs")
# Our split → the release's. The paper tests on test_2016_flickr, the only test set with all four languages.
SPLITS = {"train": "train", "validation": "val", "test": "test_2016_flickr"}

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
class Multi30KConfig(datasets.BuilderConfig):
    """What to read.

    Args:
        data_dir: the clone, or its `data` or `data/task1` folder.
        image_dir: the folder of photographs; some may be missing.
        split: "train", "validation" or "test". Only this split is read and its photographs checked.
        languages: a choice of en, de, fr and cs.
    """

    data_dir: str | None = None
    image_dir: str | None = None
    split: str = "train"
    languages: Sequence[str] = LANGUAGES

    def __post_init__(self):
        super().__post_init__()
        if self.split not in SPLITS:
            raise ValueError(f"multi30k has no split {self.split!r}; choose one of {', '.join(SPLITS)}")
        if not self.languages or not set(self.languages) <= set(LANGUAGES):
            raise ValueError(f"multi30k has the languages {', '.join(LANGUAGES)}, not {list(self.languages)}")
        self.data_dir = _folder("data_dir", self.data_dir, f"a clone of {HOMEPAGE}")
        self.image_dir = _folder("image_dir", self.image_dir, "Flickr30k's photographs")

        root = Path(self.data_dir)
        task_dir = next((path for path in (root / "data" / "task1", root / "task1") if path.is_dir()), root)
        stem = SPLITS[self.split]
        self.image_list = _file(task_dir / "image_splits", f"{stem}.txt")
        self.caption_files = {language: _file(task_dir / "raw", f"{stem}.{language}") for language in self.languages}

    def create_config_id(self, config_kwargs: dict, custom_features: datasets.Features | None = None) -> str:
        """Names the cache by what is on disk, so that a new photograph or a corrected caption is not missed."""
        digest = hashlib.sha256()
        for path in (self.image_list, *self.caption_files.values()):
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        for name in _image_names(self.image_list):
            try:
                status = os.stat(os.path.join(self.image_dir, name))
            except OSError:  # not there, as os.path.exists would have it
                continue
            digest.update(f"{name}\n{status.st_size}\n{status.st_mtime_ns}\n".encode())
        contents = {
            "data_dir": self.data_dir,
            "image_dir": self.image_dir,
            "split": self.split,
            "languages": tuple(self.languages),
            "files": digest.hexdigest(),
        }
        return super().create_config_id(contents, custom_features)


class Multi30K(datasets.GeneratorBasedBuilder):
    """Builds one split of Multi30K task 1; `data_scripts.load("multi30k", …)` is the short way."""

    VERSION = datasets.Version("1.0.0")  # the code is not in the cache's name: count up when the rows change
    BUILDER_CONFIG_CLASS = Multi30KConfig

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(
            features=row_features(self.config.languages), homepage=HOMEPAGE, citation=_CITATION
        )

    def _split_generators(self, dl_manager) -> list[datasets.SplitGenerator]:
        rows, left_out = _read_rows(self.config)
        # The description is kept beside the rows in the cache: a later load repeats what was left out.
        self.info.description = "\n".join(left_out)
        # A list is what `datasets` cuts into shards: a stream can then be split and shuffled row by row.
        return [datasets.SplitGenerator(name=self.config.split, gen_kwargs={"rows": rows})]

    def _generate_examples(self, rows: list[tuple[int, dict]]) -> Iterator[tuple[int, dict]]:
        yield from rows

    def as_dataset(self, *args, **kwargs) -> datasets.Dataset:
        self._report()
        return super().as_dataset(*args, **kwargs)

    def as_streaming_dataset(self, *args, **kwargs) -> datasets.IterableDataset:
        dataset = super().as_streaming_dataset(*args, **kwargs)
        self._report()
        return dataset

    def _report(self) -> None:
        for line in self.info.description.splitlines():
            logger.warning(line)


def _read_rows(config: Multi30KConfig) -> tuple[list[tuple[int, dict]], list[str]]:
    """The rows that can be used, as (line number, row), and what was left out, one sentence each."""
    names = _image_names(config.image_list)
    captions = {language: _read_lines(path) for language, path in config.caption_files.items()}
    for language, lines in captions.items():
        if len(lines) != len(names):
            raise ValueError(
                f"{config.image_list} has {len(names):,} lines but {config.caption_files[language]} has "
                f"{len(lines):,}; they go together line by line, so download both again from {HOMEPAGE}"
            )

    paths = [os.path.join(config.image_dir, name) for name in names]
    found = [number for number, path in enumerate(paths) if os.path.exists(path)]
    with ThreadPoolExecutor() as pool:  # reading and decoding both run outside Python's lock
        readable = list(pool.map(_is_image, [paths[number] for number in found]))
    kept = [number for number, good in zip(found, readable, strict=True) if good]
    broken = [names[number] for number, good in zip(found, readable, strict=True) if not good]
    if not kept:
        raise FileNotFoundError(
            f"multi30k {config.split}: none of {len(names):,} photographs can be read in {config.image_dir}, such as "
            f"{names[0] if names else 'any'}; set image_dir to the folder of Flickr30k's photographs"
        )

    rows = []
    empty = {language: [] for language in config.languages}
    for number in kept:
        row_captions = {}
        for language in config.languages:
            caption = captions[language][number].strip()
            row_captions[language] = [caption] if caption else []
            if not caption:
                empty[language].append(f"line {number + 1}")
        image_id = PurePosixPath(names[number]).stem
        rows.append((number, {"image": paths[number], "image_id": image_id, "captions": row_captions}))

    source = f"multi30k {config.split}"
    left_out = []
    if missing := len(names) - len(found):
        left_out.append(
            f"{source}: {len(found):,} of {len(names):,} photographs found in {config.image_dir}; "
            f"the other {missing:,} rows are left out"
        )
    if broken:
        left_out.append(
            f"{source}: photographs in {config.image_dir} that cannot be read as images, their rows left out: "
            f"{len(broken):,} ({_some(broken)})"
        )
    for language, lines in empty.items():
        if lines:
            left_out.append(
                f"{source}: empty captions in {config.caption_files[language]}, their rows without {language}: "
                f"{len(lines):,} ({_some(lines)})"
            )
    return rows, left_out


def _folder(argument: str, path: str | None, contents: str) -> str:
    """An existing folder's absolute path, so that cached rows stay valid from another working directory."""
    if path is None:
        raise ValueError(f"multi30k needs {argument}: the folder of {contents}")
    path = os.path.abspath(os.path.expanduser(path))
    if not os.path.isdir(path):
        raise FileNotFoundError(f"multi30k: {argument} {path} is no folder; it should be the folder of {contents}")
    return path


def _file(folder: Path, name: str) -> Path:
    """The file as released (gzipped) or unpacked."""
    for path in (folder / f"{name}.gz", folder / name):
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"multi30k: there is neither {name}.gz nor {name} in {folder}; data_dir should be a clone of {HOMEPAGE}"
    )


def _read_lines(path: Path) -> list[str]:
    try:
        contents = path.read_bytes()
        text = (gzip.decompress(contents) if path.suffix == ".gz" else contents).decode("utf-8")
    except (EOFError, gzip.BadGzipFile, zlib.error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged ({error}); download it again from {HOMEPAGE}") from error
    # Not splitlines(): it also breaks at rare characters inside a caption, and the files would no longer align.
    return text.removesuffix("\n").split("\n") if text else []


def _image_names(image_list: Path) -> list[str]:
    """File names relative to the folder of photographs; none may lead out of it."""
    names = [line.strip() for line in _read_lines(image_list)]
    for number, name in enumerate(names, start=1):
        path = PureWindowsPath(name)  # knows drives and both separators
        if not name or path.anchor or ".." in path.parts:
            raise ValueError(
                f"{image_list} line {number}: {name!r} is not a file name inside image_dir; correct the line"
            )
    return names


def _is_image(path: str) -> bool:
    """Whether the whole file decodes: `Image.verify` alone lets JPEG files through whose download broke off."""
    try:
        with Image.open(path) as image:
            image.draft("L", (32, 32))  # JPEG: decode at an eighth of the size, several times faster
            image.load()
    except (OSError, SyntaxError, ValueError):  # what Pillow raises on damaged files
        return False
    return True


def _some(items: Sequence[str], limit: int = 5) -> str:
    more = len(items) - limit
    return ", ".join(items[:limit]) + (f" and {more:,} more" if more > 0 else "")
