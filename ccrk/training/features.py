"""What a frozen encoder makes of pictures and captions: once, in a memory-mapped file, for all steps and runs."""

import hashlib
import logging
import os
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import datasets
import numpy as np
import torch
from torch import Tensor

from ccrk.encoders import CCRKEncoder, Encoder
from ccrk.processes import Share, process_state, progress
from ccrk.training.collator import stable_id
from data_scripts.caption_rows import CaptionRows
from data_scripts.captions import is_usable
from data_scripts.images import BadImage, read_image
from data_scripts.problems import Problems

if TYPE_CHECKING:
    from ccrk.arguments import ModelArguments
    from ccrk.training.trainer import CCRKTrainer

logger = logging.getLogger(__name__)

BLOCK = 64  # pictures or captions that are encoded at a time


class Features:
    """Rows of a memory-mapped array, by name.

    Args:
        names: N different ones, such as image ids.
        array: (N, D), fp32.
    """

    def __init__(self, names: Sequence[str], array: np.ndarray):
        ids = np.array([stable_id(name) for name in names], dtype=np.int64)
        self._order = np.argsort(ids)
        self._ids, self.array = ids[self._order], array

    def of(self, names: Sequence[str]) -> Tensor:
        """(len(names), D). Raises KeyError for a name that is not there."""
        wanted = np.array([stable_id(name) for name in names], dtype=np.int64)
        places = np.searchsorted(self._ids, wanted).clip(max=len(self._ids) - 1)
        if (unknown := self._ids[places] != wanted).any():
            raise KeyError(names[int(unknown.argmax())])
        return torch.from_numpy(self.array[self._order[places]])


def image_features(encoder: Encoder, rows: datasets.Dataset, folder: Path, problems: Problems) -> Features:
    """
    Of the pictures of all rows, by their `image_id`; NaN where one cannot be read, which is counted and tried again
    the next time.
    """
    first = {}
    for row, image_id in enumerate(rows["image_id"]):
        first.setdefault(image_id, row)
    images = rows.select_columns(["image"]).cast_column("image", datasets.Image(decode=False))
    width = encoder.features("image", [read_image(images[0]["image"])]).shape[1]

    def encode(names: Sequence[str]) -> Tensor:
        found, readable = torch.full((len(names), width), torch.nan), []
        pictures = []
        for place, name in enumerate(names):
            problems.rows += 1
            try:
                pictures.append(read_image(images[first[name]]["image"]))
            except BadImage as error:
                problems.add_image(error, f"image_id {name}")
            else:
                readable.append(place)
        if readable:
            found[readable] = encoder.features("image", pictures).float().cpu()
        return found

    digest = hashlib.blake2b(encoder.features_fingerprint("image").encode(), digest_size=16)
    for name, row in first.items():
        digest.update(f"{name}\0{_version(images[row]['image'])}\0".encode())
    return _cached(folder / f"images-{digest.hexdigest()}.npy", list(first), width, encode, "encoding images")


def caption_features(encoder: Encoder, rows: datasets.Dataset, folder: Path) -> Features:
    """Of all usable captions of all rows, by themselves."""
    captions = {
        caption for row in rows["captions"] for texts in row.values() for caption in texts if is_usable(caption)
    }
    names = sorted(captions, key=lambda caption: (len(caption), caption))  # captions of similar length together
    width = encoder.features("text", names[:1]).shape[1]
    digest = hashlib.blake2b(encoder.features_fingerprint("text").encode(), digest_size=16)
    digest.update("\0".join(names).encode())
    path = folder / f"captions-{digest.hexdigest()}.npy"
    return _cached(path, names, width, lambda own: encoder.features("text", own).float().cpu(), "encoding captions")


def _version(image: dict) -> str:
    """Changes with a picture, as far as can be seen without reading it."""
    if image["bytes"] is not None:
        return hashlib.blake2b(image["bytes"], digest_size=8).hexdigest()
    try:
        status = os.stat(image["path"])
    except OSError:  # which is counted when it is read
        return "missing"
    return f"{image['path']} {status.st_size} {status.st_mtime_ns}"


def _cached(
    path: Path, names: list[str], width: int, encode: Callable[[Sequence[str]], Tensor], description: str
) -> Features:
    """
    The features in a file, each block with a checksum in the journal beside it; what is missing or damaged there is
    encoded first, shared out over processes, which must see the same file.

    Raises:
        OSError: there is no room for it.
    """
    state = process_state()
    blocks = [names[start : start + BLOCK] for start in range(0, len(names), BLOCK)]
    if state.is_main_process:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_file():
            _make_file(path, (len(names), width))
    state.wait_for_everyone()
    array = np.load(path, mmap_mode="r+")
    journal = path.with_suffix(".blocks")
    done = _whole_blocks(journal, array)
    missing = [number for number in range(len(blocks)) if number not in done]
    if missing and state.is_main_process:
        logger.info("%s: %d of %d blocks are there already", path, len(done), len(blocks))
    state.wait_for_everyone()  # before anybody adds to the journal that others read
    for number in progress(Share.of_this_process().of(missing), description):
        found = encode(blocks[number]).numpy()
        array[number * BLOCK : number * BLOCK + len(found)] = found
        array.flush()
        if not np.isnan(found).any():
            with journal.open("a") as file:
                file.write(f"{number} {zlib.crc32(found)}\n")
    state.wait_for_everyone()
    return Features(names, np.load(path, mmap_mode="r"))


def _make_file(path: Path, shape: tuple[int, int]) -> None:
    """A file of zeros, all of which has its place on the disk: a map into a full disk would end the process."""
    unfinished = path.with_suffix(".unfinished")
    try:
        with unfinished.open("wb") as file:
            header = {"descr": "<f4", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            file.flush()
            os.posix_fallocate(file.fileno(), file.tell(), 4 * shape[0] * shape[1])
        unfinished.replace(path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise OSError(
            f"{path} could not be written ({error.strerror}); make room, or set HF_DATASETS_CACHE"
        ) from error


def _whole_blocks(journal: Path, array: np.ndarray) -> set[int]:
    """Numbers of the blocks that are as they were written."""
    whole = set()
    for line in journal.read_text().splitlines() if journal.is_file() else []:
        number, _, checksum = line.partition(" ")
        if (
            number.isdigit()
            and str(zlib.crc32(np.ascontiguousarray(array[int(number) * BLOCK :][:BLOCK]))) == checksum
        ):
            whole.add(int(number))
    return whole


def cache_features(trainer: "CCRKTrainer", model: "ModelArguments") -> None:
    """
    Encodes pictures, or captions, by a frozen encoder once, for the batches of `trainer`, whose rows then have no
    pictures any more. Rows whose picture cannot be read are left out, and counted.

    Raises:
        ValueError: the encoder is not frozen, or what is asked of pictures makes others of them in each step.
    """
    asked = [name for name in ("image", "caption") if getattr(model, f"cache_{name}_features")]
    for name in asked:
        encoder = "text" if name == "caption" else name
        if encoder not in (model.freeze or ()):
            raise ValueError(f"cache_{name}_features needs an encoder that stays as it is; add --freeze {encoder}")
        if isinstance(trainer.encoder, CCRKEncoder):
            raise ValueError(
                f"cache_{name}_features applies only to dual encoders: fusion looks at more of them; remove it"
            )
    collator, rows = trainer.data_collator, trainer.train_dataset
    if "image" in asked and collator.augmentation is not None:
        raise ValueError("cache_image_features keeps a picture as it is; remove it, or augmentation")
    images = rows.images if isinstance(rows, CaptionRows) else rows
    if asked and not isinstance(images, datasets.Dataset):
        raise ValueError(f"cache_{asked[0]}_features takes rows that are all known before; remove streaming")
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "features"
    trainer.encoder.model.eval()
    if "image" in asked:
        trainer.encoder.take_features("image")
        problems = Problems("training images", trainer.problems.max_bad_fraction)
        collator.image_features = image_features(trainer.encoder, images, folder, problems)
        problems.check()
        is_readable = ~np.isnan(collator.image_features.of(images["image_id"]).numpy()).any(axis=1)
        if not is_readable.all():
            images = images.select(np.flatnonzero(is_readable))
            logger.warning("%d of %d rows left out: no readable picture", (~is_readable).sum(), len(is_readable))
        trainer.rows_with_images = images
        images = images.remove_columns("image")
    if "caption" in asked:
        trainer.encoder.take_features("text")
        captions = [own.select_columns("captions") for own in (images, collator.text_rows) if own is not None]
        collator.caption_features = caption_features(trainer.encoder, datasets.concatenate_datasets(captions), folder)
    trainer.train_dataset = CaptionRows(images) if isinstance(rows, CaptionRows) else images
