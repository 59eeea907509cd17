"""The paper's pre-training sets: web images, each with a caption machine-translated into several languages.

    data_dir/**/part_*.data    JSON lines, see `data_scripts.shards`

The sets are told apart by their folders. A first pass over the lines writes an index of the usable ones, and every
load says what was left out and why.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import datasets

from data_scripts.images import BadImage, read_image
from data_scripts.problems import MAX_BAD_FRACTION, Problems
from data_scripts.rows import row_features
from data_scripts.shards import ShardRows, find_shards

logger = logging.getLogger(__name__)

SPLITS = ("train",)
SIX_LANGUAGES = ("zh", "ja", "en", "de", "fr", "cs")
LANGUAGES = (*SIX_LANGUAGES, "id", "es", "ru", "tr")
# The paper's "2M" and "3M" (section 4.1).
PRESETS = {
    "2m": ("cc3m-mm-data-all",),
    "3m": ("cc3m-mm-data-all", "sbu-mm-data-all", "vg-mm-data-all", "coco-mm-data-all"),
}


@dataclass
class PretrainingConfig(datasets.BuilderConfig):
    """What to read.

    Args:
        data_dir: a folder with `part_*.data` at any depth.
        image_dir: the folder that image paths are relative to; `data_dir` by default.
        preset: "2m" (CC3M) or "3m" (CC3M, SBU, VG and COCO), by the published folder names in `data_dir`; all shards
            by default.
        languages: of the captions; a row needs one of them. The published ten by default, see also `SIX_LANGUAGES`.
        max_bad_fraction: the share of rows that may be bad, captions included.
    """

    data_dir: str | None = None
    image_dir: str | None = None
    preset: str | None = None
    languages: Sequence[str] = LANGUAGES
    max_bad_fraction: float = MAX_BAD_FRACTION

    def __post_init__(self):
        super().__post_init__()
        if self.data_dir is None:
            raise ValueError("pretraining needs data_dir: the folder of the part_*.data files")
        if self.preset is not None and self.preset not in PRESETS:
            raise ValueError(f"pretraining has no preset {self.preset!r}; choose one of {', '.join(PRESETS)}")
        self.data_dir = os.path.abspath(os.path.expanduser(self.data_dir))
        self.image_dir = os.path.abspath(os.path.expanduser(self.image_dir or self.data_dir))
        if not os.path.isdir(self.image_dir):
            raise FileNotFoundError(f"pretraining: image_dir {self.image_dir} is no folder")
        self.shards = [str(path) for path in find_shards(self.data_dir, PRESETS.get(self.preset))]

    def create_config_id(self, config_kwargs: dict, custom_features: datasets.Features | None = None) -> str:
        """Names index and cache by what is on disk, so that a changed shard is read again."""
        stats = [os.stat(shard) for shard in self.shards]
        files = [(shard, stat.st_size, stat.st_mtime_ns) for shard, stat in zip(self.shards, stats, strict=True)]
        contents = {
            "image_dir": self.image_dir,
            "languages": tuple(self.languages),
            "max_bad_fraction": self.max_bad_fraction,
            "files": hashlib.sha256(json.dumps(files).encode()).hexdigest(),
        }
        return super().create_config_id(contents, custom_features)


class Pretraining(datasets.GeneratorBasedBuilder):
    """Builds pre-training shards; `data_scripts.load("pretraining", …)` is the short way.

    A stream is `ShardRows`. The Arrow cache holds a copy of inline images, and only rows whose image decodes.
    """

    VERSION = datasets.Version("3.0.0")  # the code is not in the cache's name: count up when the rows change
    BUILDER_CONFIG_CLASS = PretrainingConfig

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(features=row_features(self.config.languages, aligned=True))

    def _split_generators(self, dl_manager) -> list[datasets.SplitGenerator]:
        return [datasets.SplitGenerator(name="train")]

    def _generate_examples(self) -> Iterator[tuple[int, dict]]:
        rows = replace(self.rows(), decode=False)
        problems = Problems("pretraining images", self.config.max_bad_fraction, rows=len(rows))
        for number, row in enumerate(rows):
            try:
                read_image(row["image"], target_size=32)  # all of the file, at small scale
            except BadImage as error:
                problems.add_image(error, f"image_id {row['image_id']}")
            else:
                yield number, row
        problems.check()
        # The description is kept beside the rows in the cache: a later load repeats what was left out.
        self.info.description = problems.table()

    def as_dataset(self, *args, **kwargs) -> datasets.Dataset:
        dataset = super().as_dataset(*args, **kwargs)
        self.rows()  # says what the index left out
        if self.info.description:
            logger.warning(self.info.description)
        return dataset

    def as_streaming_dataset(self, split: str | None = None, base_path: str | None = None) -> ShardRows:
        return self.rows()

    def rows(self) -> ShardRows:
        """The usable rows; their index lies beside the Arrow cache."""
        config = self.config
        return ShardRows.open(
            f"{self.cache_dir}-index.npy",
            config.shards,
            config.languages,
            config.image_dir,
            config.max_bad_fraction,
        )
