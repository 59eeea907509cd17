"""Other models in the same evaluation: dual encoders of transformers, and embeddings or scores from anywhere."""

import contextlib
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import datasets
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModel, AutoProcessor

from files_ccrk import open_model, open_pretrained
from retrieval_ccrk import RetrievalResult, Share, by_cosine, rank_language, usable_captions, weights_fingerprint


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

    @property
    def fingerprint(self) -> str:
        return weights_fingerprint(self.model, str(self.processor))

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
    path: Path, dataset: datasets.Dataset, languages: Sequence[str], fold_size: int | None = None
) -> RetrievalResult:
    """Ranks from an .npz file, in the order of the data set's rows and of the captions in them.

    The file holds `images` (rows, D) and for each language `captions_LANGUAGE` (N, D), compared by cosine; or for
    each language `scores_LANGUAGE` (rows, N), higher is better. N counts the usable captions, see
    `data_scripts.captions`.

    Raises:
        ValueError: a damaged file; a missing array, one of another shape, or one with NaN.
    """
    result = RetrievalResult()
    with _arrays_of(path) as arrays:
        for language in languages:
            captions = usable_captions(dataset, language)
            rows, number = len(dataset), len(captions.texts)
            if f"scores_{language}" in arrays:
                scores = _array(path, arrays, f"scores_{language}", (rows, number))
                similarity = _by_score(scores)
            else:
                embeds = _array(path, arrays, f"captions_{language}", (number, None))
                images = _array(path, arrays, "images", (rows, embeds.shape[1]))
                similarity = by_cosine(F.normalize(images, dim=-1), F.normalize(embeds, dim=-1))
            result.left_out[language] = captions.left_out
            result.ranks[language], folds = rank_language(captions, similarity, fold_size=fold_size, share=Share())
            if fold_size:
                result.fold_ranks[language] = folds
    return result


@contextlib.contextmanager
def _arrays_of(path: Path) -> Iterator[np.lib.npyio.NpzFile]:
    """An open .npz file, whose arrays are read when they are asked for."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            yield arrays
    except (zipfile.BadZipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is damaged ({error}); write it again with numpy.savez") from error


def _array(path: Path, arrays, name: str, shape: tuple[int, int | None]) -> Tensor:
    if name not in arrays:
        raise ValueError(f"{path} has no array {name!r}, only {', '.join(arrays)}; see --help for what belongs in it")
    array = arrays[name]
    if array.ndim != 2 or any(size not in (None, found) for size, found in zip(shape, array.shape, strict=True)):
        raise ValueError(
            f"{path}: {name} has shape {array.shape}, but the data asks for {shape}; give its pictures and captions "
            "in their order, without those captions that are empty or punctuation alone"
        )
    if np.isnan(array).any():
        raise ValueError(f"{path}: {name} holds NaN in row {int(np.isnan(array).any(axis=1).argmax())}")
    return torch.from_numpy(array.astype(np.promote_types(array.dtype, np.float32)))


def _by_score(scores: Tensor):
    """Similarity as given, for `rank_language`."""

    def of_pool(pool):
        chosen = scores[torch.from_numpy(pool.images)[:, None], torch.from_numpy(pool.captions)]
        return lambda rows: chosen[rows], lambda rows: chosen[:, rows].t()

    return of_pool
