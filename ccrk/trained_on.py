"""What a model was trained on: a file beside every saved model, and how many images of an evaluation it lists."""

import base64
import json
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import datasets
import numpy as np

from ccrk.encoders import optional_file
from ccrk.processes import Share, process_state, progress
from data_scripts.caption_rows import CaptionRows
from data_scripts.cards import CARDS
from data_scripts.cli import one_line
from data_scripts.files import written_whole
from data_scripts.formats import is_url
from data_scripts.images import BadImage, contents_digest
from data_scripts.shards import ShardRows

logger = logging.getLogger(__name__)

FILE = "trained_on.json"

KEPT = 100_000  # images of a run whose digests are kept, 8 bytes each; of larger sets an even sample of the rows

_BLOCK = 256  # images that a process reads before the next block


@dataclass(frozen=True, eq=False)
class Run:
    """
    The images of one training run.

    Args:
        data: name of the data set.
        split: of it.
        validation_fraction: the share of the images that was held out, where there was one.
        images: rows of images; None where nobody has counted them: a stream, or a data set of torch.
        digests: (N,) uint64, different, ascending: of the contents of their files, see `image_digests`.
        sampled: rows that the digests are of, `images` unless there are more than `KEPT`.
    """

    data: str
    split: str | None
    validation_fraction: float | None
    images: int | None
    sampled: int
    digests: np.ndarray

    @classmethod
    def of(cls, rows) -> "Run":
        """Of a trainer's rows, which may be None; every process must call."""
        rows = rows.images if isinstance(rows, CaptionRows) else rows
        info, split = getattr(rows, "info", None), getattr(rows, "split", None)
        about = ((info and info.dataset_name) or "unnamed", split and str(split), None)
        if isinstance(rows, ShardRows) or (isinstance(rows, datasets.Dataset) and "image" in rows.column_names):
            chosen = np.linspace(0, len(rows) - 1, min(len(rows), KEPT)).astype(int)
            digests = image_digests(rows if len(chosen) == len(rows) else rows.select(chosen))
            return cls(*about, len(rows), len(chosen), np.unique(digests[digests != 0]))
        return cls(*about, 0 if rows is None else None, 0, np.empty(0, np.uint64))

    def warn_of(self, evaluated) -> None:
        """A warning where images that are evaluated during training are trained on; every process must call."""
        if not isinstance(evaluated, datasets.Dataset) or "image" not in evaluated.column_names or not self.images:
            return
        both = self.found_in(image_digests(evaluated))
        if both and process_state().is_main_process:
            logger.warning("%d of %d images evaluated during training are trained on as well", both, len(evaluated))

    def named(self, recipe: Mapping) -> "Run":
        """The same with what a recipe calls its data; of a path its last part, since models are shared."""
        if (data := recipe.get("dataset")) is None:
            return self
        fraction = recipe.get("validation_fraction", (recipe.get("dataset_config") or {}).get("validation_fraction"))
        return replace(self, data=data if is_public(data) else Path(data).resolve().name, validation_fraction=fraction)

    def found_in(self, digests: np.ndarray) -> int | None:
        """How many of an evaluation's images the run has seen: counted, or estimated from a sample; None: unknown."""
        if self.images is None:
            return None
        hits = int(np.isin(digests, self.digests).sum())
        return min(len(digests), round(hits * self.images / self.sampled))

    def to_json(self) -> dict:
        about = {name: getattr(self, name) for name in ("data", "split", "validation_fraction", "images", "sampled")}
        return about | {"digests": base64.b64encode(self.digests.astype("<u8").tobytes()).decode()}

    @classmethod
    def from_json(cls, saved: dict) -> "Run":
        digests = np.frombuffer(base64.b64decode(saved["digests"], validate=True), "<u8").astype(np.uint64)
        run = cls(**saved | {"digests": digests})
        texts, counts = (run.data, run.split or ""), (run.sampled, run.images or 0)
        fraction = run.validation_fraction or 0.0
        if not all(isinstance(text, str) for text in texts) or not all(isinstance(count, int) for count in counts):
            raise ValueError("a field is of another type")
        fits = len(digests) <= run.sampled <= (run.images or 0) and (run.sampled or not run.images)
        if not isinstance(fraction, float) or not fits:
            raise ValueError("its counts do not fit together")
        return run


def is_public(dataset: str) -> bool:
    """Whether a data set has this name for everybody: it is not a path or a URL of the user's own."""
    is_path = Path(dataset).is_absolute() or Path(dataset).exists() or any(mark in dataset for mark in "*?[{")
    return dataset in CARDS or not (is_path or is_url(dataset))


def image_digests(rows: datasets.Dataset | ShardRows) -> np.ndarray:
    """
    (rows,) uint64: equal for images with files of equal contents, 0 where one cannot be read.

    An image is known by the bytes of its file, not by its name: the same rows are recognised in another order, folder
    or format (`data_scripts.export` keeps the bytes), while images of two data sets that are called alike are not
    confused. An image that was encoded again is another. Each process reads its share; all must call.
    """
    if isinstance(rows, datasets.Dataset):
        rows = rows.select_columns(["image"]).cast_column("image", datasets.Image(decode=False))
    else:
        rows = replace(rows, decode=False)
    share, found = Share.of_this_process(), {}

    def digest(row: int) -> int:
        try:
            return int.from_bytes(contents_digest(rows[row]["image"])[:8], "big") or 1
        except (OSError, BadImage):  # whoever decodes it counts it
            return 0

    with ThreadPoolExecutor() as pool:
        for start in progress(share.of(range(0, len(rows), _BLOCK)), "reading images"):
            found[start] = list(pool.map(digest, range(start, min(start + _BLOCK, len(rows)))))
    return np.array([digest for block in share.gather(found).values() for digest in block], dtype=np.uint64)


def read_runs(name_or_path: str | Path) -> list[Run]:
    """
    The runs that a model of a folder or Hub id was trained in, the first one first; empty where that is not recorded.

    Raises:
        ValueError: the file is there and damaged.
    """
    path = Path(name_or_path) / FILE
    if not name_or_path:  # of a model from scratch
        return []
    if not Path(name_or_path).is_dir():
        path = Path(optional_file(str(name_or_path), FILE) or path)
    if not path.is_file():
        return []
    try:
        return [Run.from_json(run) for run in json.loads(path.read_bytes())["runs"]]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({one_line(error)}); restore or remove it") from error


def write_runs(folder: Path, runs: Sequence[Run]) -> None:
    """Writes the runs that had rows beside a model; equal ones, as of a run that was resumed, once."""
    different = list({json.dumps(run.to_json()): run.to_json() for run in runs if run.images != 0}.values())
    with written_whole(folder / FILE) as path:
        path.write_text(json.dumps({"runs": different}) + "\n", encoding="utf-8")


def overlap(runs: Sequence[Run], digests: np.ndarray) -> dict:
    """
    For results.json: how many of an evaluation's images a model was trained on.

    Returns: `images`, how many of them some run has seen, `of` how many, and `runs`: what each is of, and its own
        `overlap`, None where it is unknown. A number from a run with more than `KEPT` images is an estimate.
    """
    known = [run.found_in(digests) for run in runs]
    seen = np.isin(digests, np.concatenate([run.digests for run in runs])).sum() if runs else 0
    about = [{name: value for name, value in run.to_json().items() if name != "digests"} for run in runs]
    return {
        "images": max([int(seen), *(number for number in known if number is not None)]),
        "of": len(digests),
        "runs": [run | {"overlap": number} for run, number in zip(about, known, strict=True)],
    }
