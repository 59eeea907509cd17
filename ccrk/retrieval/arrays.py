"""Embeddings or scores from anywhere, in an .npz file, ranked like a model."""

import contextlib
import math
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import datasets
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ccrk.processes import Share
from ccrk.retrieval.instances import count_images, usable_captions
from ccrk.retrieval.ranking import by_cosine, rank_language
from ccrk.retrieval.results import RetrievalResult
from data_scripts.cli import one_line

# Of an embedding in an .npz file. The data says how many rows there are, so this bounds what is read of it.
MAX_WIDTH = 16_384


def evaluate_arrays(
    path: Path,
    dataset: datasets.Dataset,
    languages: Sequence[str],
    folds: Mapping[str, int] | None = None,
    image_numbers: np.ndarray | None = None,
) -> RetrievalResult:
    """Ranks from an .npz file, in the order of the data set's images and of the captions in its rows.

    The file holds `images` (I, D) and for each language `captions_LANGUAGE` (N, D), compared by cosine; or for each
    language `scores_LANGUAGE` (I, N), higher is better. N counts the usable captions, see
    `data_scripts.captions`. `image_numbers` as for `usable_captions`.

    Raises:
        ValueError: no such file, or a damaged one; a missing array; one of another type or shape, which is looked at
            before its contents are read; one wider than `MAX_WIDTH`, or with NaN.
    """
    result = RetrievalResult()
    with ArrayFile(path) as arrays:
        for language in languages:
            captions = usable_captions(dataset, language, image_numbers)
            found = [
                arrays.read(name, shape)
                for name, shape in _needed(arrays, language, count_images(dataset), len(captions.texts)).items()
            ]
            similarity = _by_score(*found) if len(found) == 1 else by_cosine(*(F.normalize(x, dim=-1) for x in found))
            number = (folds or {}).get(language, 0)
            ranked = rank_language(captions, similarity, folds=number, share=Share())
            result.add(language, captions, ranked, number)
    return result


def check_arrays(path: Path, dataset: datasets.Dataset, languages: Sequence[str]) -> None:
    """Raises what `evaluate_arrays` would raise, as far as names, types and shapes show it."""
    with ArrayFile(path) as arrays:
        for language in languages:
            number = len(usable_captions(dataset, language).texts)
            for name, shape in _needed(arrays, language, count_images(dataset), number).items():
                arrays.check(name, shape)


def _needed(arrays: "ArrayFile", language: str, images: int, captions: int) -> dict[str, tuple[int, int]]:
    """Names and shapes of a language's arrays: its scores, or the embeddings of images and captions."""
    if f"scores_{language}" in arrays.names:
        return {f"scores_{language}": (images, captions)}
    width = arrays.check(f"captions_{language}", (captions, None))[1]
    return {"images": (images, width), f"captions_{language}": (captions, width)}


class ArrayFile:
    """An .npz file. Nothing in it is unpickled, and no more is read than the shapes that are asked for."""

    def __init__(self, path: Path):
        if not path.is_file():
            raise ValueError(f"there is no file {path}")
        self.path = path
        with self._damage():
            self.file = zipfile.ZipFile(path)
        self.names = [name.removesuffix(".npy") for name in self.file.namelist()]

    def __enter__(self) -> "ArrayFile":
        return self

    def __exit__(self, *_) -> None:
        self.file.close()

    @contextlib.contextmanager
    def _damage(self) -> Iterator[None]:
        try:
            yield
        except (MemoryError, PermissionError):
            raise
        except Exception as error:  # there is no end to what damaged files raise in zipfile and its decompressors
            raise ValueError(f"{self.path} is damaged ({one_line(error)}); write it again with numpy.savez") from error

    def check(self, name: str, shape: tuple[int, int | None]) -> tuple[int, int]:
        """The shape of an array, which must be `shape` but where that is None; by its header alone."""
        if name not in self.names:
            raise ValueError(
                f"{self.path} has no array {name!r}, only {', '.join(self.names[:9])}; see --help for what belongs "
                "in it"
            )
        with self._damage():
            entry = self.file.getinfo(f"{name}.npy")
            with self.file.open(entry) as file:
                read_header = {
                    (1, 0): np.lib.format.read_array_header_1_0,
                    (2, 0): np.lib.format.read_array_header_2_0,
                }[np.lib.format.read_magic(file)]
                found, _, dtype = read_header(file)
                header_size = file.tell()
        if dtype.hasobject:
            raise ValueError(f"{self.path}: {name} holds Python objects, which are not read (allow_pickle=False)")
        if dtype.kind not in "fiub" or dtype.itemsize > 8:
            raise ValueError(f"{self.path}: {name} holds {dtype}; give numbers of up to 64 bits")
        if len(found) != 2 or any(size not in (None, own) for size, own in zip(shape, found, strict=True)):
            raise ValueError(
                f"{self.path}: {name} has shape {found}, but the data asks for {shape}; give its pictures and "
                "captions in their order, without those captions that are empty or punctuation alone"
            )
        if shape[1] is None and not 0 < found[1] <= MAX_WIDTH:
            raise ValueError(f"{self.path}: {name} is {found[1]} wide; an embedding has 1 to {MAX_WIDTH} numbers")
        if entry.file_size != header_size + math.prod(found) * dtype.itemsize:
            raise ValueError(
                f"{self.path} is damaged ({name} is not as long as it says); write it again with numpy.savez"
            )
        return found

    def read(self, name: str, shape: tuple[int, int]) -> Tensor:
        self.check(name, shape)
        with self._damage(), self.file.open(f"{name}.npy") as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
        if np.isnan(array).any():
            raise ValueError(f"{self.path}: {name} holds NaN in row {int(np.isnan(array).any(axis=1).argmax())}")
        if not name.startswith("scores_") and np.isinf(array).any():
            raise ValueError(f"{self.path}: {name} holds infinity in row {int(np.isinf(array).any(axis=1).argmax())}")
        return torch.from_numpy(array.astype(np.promote_types(array.dtype, np.float32)))


def _by_score(scores: Tensor):
    """Similarity as given, for `rank_language`."""

    def of_pool(pool):
        def of(images: np.ndarray, captions: np.ndarray) -> Tensor:
            return scores[torch.from_numpy(images)[:, None], torch.from_numpy(captions)]

        return (
            lambda rows: of(pool.image_queries[rows], pool.captions),
            lambda rows: of(pool.images, pool.caption_queries[rows]).t(),
        )

    return of_pool
