"""Other models in the same evaluation: dual encoders of transformers, and embeddings or scores from anywhere."""

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
from transformers import AutoModel, AutoProcessor

from errors_ccrk import one_line
from files_ccrk import open_model, open_pretrained
from retrieval_ccrk import RetrievalResult, Share, by_cosine, rank_language, usable_captions, weights_fingerprint

# Of an embedding in an .npz file. The data says how many rows there are, so this bounds what is read of it.
MAX_WIDTH = 16_384


class DualEncoder:
    """A dual encoder of transformers, such as CLIP or SigLIP: what `CCRKRetriever` is, without re-scoring.

    Args:
        name_or_path: folder or Hub id of a model with `get_image_features` and `get_text_features`.
        dtype: of its weights.
    """

    k_test = 0

    def __init__(self, name_or_path: str, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"):
        model, _ = open_model(AutoModel, name_or_path, dtype=dtype)
        self.model = model.eval().to(device)
        if not hasattr(self.model, "get_image_features") or not hasattr(self.model, "get_text_features"):
            raise ValueError(
                f"{name_or_path} is a {type(self.model).__name__}, which embeds no images and captions; give a CCRK "
                "checkpoint, a dual encoder such as CLIP or SigLIP, or an .npz of embeddings or scores"
            )
        self.processor = open_pretrained(AutoProcessor, name_or_path)
        if lacking := [
            part for part in ("image_processor", "tokenizer") if getattr(self.processor, part, None) is None
        ]:
            raise ValueError(f"{name_or_path} holds no {' and no '.join(lacking)}; save the model's processor there")

    @property
    def fingerprint(self) -> str:
        return weights_fingerprint(self.model.state_dict(), str(self.processor))

    def caption_lengths(self, captions: Sequence[str]) -> list[int]:
        return [len(caption) for caption in captions]

    @torch.no_grad()
    def encode_images(self, images: list) -> dict[str, Tensor]:
        """`embeds` (B, dimension), L2-normalised."""
        # With SigLIP 2 at native resolution, masks and shapes come beside the pixels.
        inputs = self.processor(images=[image.convert("RGB") for image in images], return_tensors="pt")
        features = self.model.get_image_features(**inputs.to(self.model.device, self.model.dtype))
        return {"embeds": F.normalize(features.pooler_output.float(), dim=-1)}

    @torch.no_grad()
    def encode_captions(self, captions: list[str]) -> dict[str, Tensor]:
        """`embeds` (N, dimension), L2-normalised."""
        options = {"padding": True}
        if self.model.config.model_type.startswith("siglip"):
            # It was trained on captions padded to its full length, without attention mask.
            length = self.model.config.text_config.max_position_embeddings
            options = {"padding": "max_length", "max_length": length, "return_attention_mask": False}
        inputs = self.processor(text=captions, truncation=True, return_tensors="pt", **options)
        features = self.model.get_text_features(**inputs.to(self.model.device))
        return {"embeds": F.normalize(features.pooler_output.float(), dim=-1)}


def evaluate_arrays(
    path: Path, dataset: datasets.Dataset, languages: Sequence[str], folds: Mapping[str, int] | None = None
) -> RetrievalResult:
    """Ranks from an .npz file, in the order of the data set's rows and of the captions in them.

    The file holds `images` (rows, D) and for each language `captions_LANGUAGE` (N, D), compared by cosine; or for
    each language `scores_LANGUAGE` (rows, N), higher is better. N counts the usable captions, see
    `data_scripts.captions`.

    Raises:
        ValueError: no such file, or a damaged one; a missing array; one of another type or shape, which is looked at
            before its contents are read; one wider than `MAX_WIDTH`, or with NaN.
    """
    result = RetrievalResult()
    with ArrayFile(path) as arrays:
        for language in languages:
            captions = usable_captions(dataset, language)
            found = [
                arrays.read(name, shape)
                for name, shape in _needed(arrays, language, len(dataset), len(captions.texts)).items()
            ]
            similarity = _by_score(*found) if len(found) == 1 else by_cosine(*(F.normalize(x, dim=-1) for x in found))
            result.left_out[language] = captions.left_out
            result.ranks[language], in_folds = rank_language(
                captions, similarity, folds=(folds or {}).get(language, 0), share=Share()
            )
            if in_folds:
                result.fold_ranks[language] = in_folds
    return result


def check_arrays(path: Path, dataset: datasets.Dataset, languages: Sequence[str]) -> None:
    """Raises what `evaluate_arrays` would raise, as far as names, types and shapes show it."""
    with ArrayFile(path) as arrays:
        for language in languages:
            number = len(usable_captions(dataset, language).texts)
            for name, shape in _needed(arrays, language, len(dataset), number).items():
                arrays.check(name, shape)


def _needed(arrays: "ArrayFile", language: str, rows: int, captions: int) -> dict[str, tuple[int, int]]:
    """Names and shapes of a language's arrays: its scores, or the embeddings of images and captions."""
    if f"scores_{language}" in arrays.names:
        return {f"scores_{language}": (rows, captions)}
    width = arrays.check(f"captions_{language}", (captions, None))[1]
    return {"images": (rows, width), f"captions_{language}": (captions, width)}


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
        chosen = scores[torch.from_numpy(pool.images)[:, None], torch.from_numpy(pool.captions)]
        return lambda rows: chosen[rows], lambda rows: chosen[:, rows].t()

    return of_pool
