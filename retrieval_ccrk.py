"""Retrieval with CCRK: encode a corpus, find candidates by cosine, re-score them by the fusion encoder, rank.

The protocol is the paper's (section 4.2): the top k_test captions of each image and the top k_test images of each
caption are re-scored by the matching head. What is not re-scored keeps its cosine order behind what is; the published
code leaves that order to chance, which recall at 10 does not show but MRV does.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

import datasets
import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from data_scripts.images import read_image
from metrics.mrv.mrv import mean_rank_variance
from metrics.recall_at_k.recall_at_k import best_ranks, recall_at_k
from modeling_ccrk import CCRKPairModel
from processing_ccrk import CCRKProcessor, normalize_caption

logger = logging.getLogger(__name__)

# Cosines are in [-1, 1] and match logits nowhere near this; float64 keeps ten digits of a cosine behind it.
_BEHIND = 1e4


@dataclass
class EncodedCaptions:
    """Captions of one language. N captions of L tokens; each belongs to one image row."""

    embeds: Tensor  # (N, projection_dim), L2-normalised
    states: Tensor  # (N, L, hidden_size)
    attention_mask: Tensor  # (N, L)


@dataclass
class LanguageRanks:
    """Ranks from 1 of one language's captions."""

    text_to_image: np.ndarray  # (N,), IR: rank of the caption's image
    image_to_text: np.ndarray  # (I,), TR: rank of the best of the image's captions, for images that have one
    captions: list[tuple[int, int]]  # (N,), (row, index of the caption in its row)
    images: list[int]  # rows of `image_to_text`


@dataclass
class RetrievalResult:
    """Ranks per language of one evaluation, and what was left out of it."""

    image_ids: list[str]
    ranks: dict[str, LanguageRanks] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)  # captions that were empty after normalisation

    def recall(self) -> dict[str, dict[str, float]]:
        """For each language `IR@k` and `TR@k` in percent for k of 1, 5, 10, and their `mean`."""
        table = {}
        for language, ranks in self.ranks.items():
            row = {f"IR@{k}": recall_at_k(ranks.text_to_image, k)[f"recall@{k}"] for k in (1, 5, 10)}
            row |= {f"TR@{k}": recall_at_k(ranks.image_to_text, k)[f"recall@{k}"] for k in (1, 5, 10)}
            table[language] = row | {"mean": float(np.mean(list(row.values())))}
        return table

    def mrv(self) -> dict | None:
        """Mean rank variance over the instances that every language has; None for fewer than two languages.

        An instance is a row for TR, and a caption (by its place in its row) for IR.
        """
        if len(self.ranks) < 2:
            return None
        by_direction = {
            "IR": [dict(zip(r.captions, r.text_to_image, strict=True)) for r in self.ranks.values()],
            "TR": [dict(zip(r.images, r.image_to_text, strict=True)) for r in self.ranks.values()],
        }
        result = {"languages": list(self.ranks)}
        for direction, per_language in by_direction.items():
            shared = sorted(set.intersection(*(set(ranks) for ranks in per_language)))
            if not shared:
                return None
            result[direction] = mean_rank_variance([[ranks[key] for ranks in per_language] for key in shared])
        result["mean"] = {name: (result["IR"][name] + result["TR"][name]) / 2 for name in ("std", "variance")}
        return result

    def rank_table(self) -> datasets.Dataset:
        """One row per instance, language and direction: `instance`, `language`, `direction`, `rank`."""
        rows = []
        for language, ranks in self.ranks.items():
            for (row, index), rank in zip(ranks.captions, ranks.text_to_image, strict=True):
                rows.append((f"{self.image_ids[row]}#{index}", language, "IR", int(rank)))
            for row, rank in zip(ranks.images, ranks.image_to_text, strict=True):
                rows.append((self.image_ids[row], language, "TR", int(rank)))
        names = ("instance", "language", "direction", "rank")
        return datasets.Dataset.from_dict(dict(zip(names, zip(*rows, strict=True), strict=True)))


@torch.no_grad()
def encode_images(
    model: CCRKPairModel, processor: CCRKProcessor, dataset: datasets.Dataset, batch_size: int = 64
) -> tuple[Tensor, Tensor]:
    """Encodes the `image` column.

    Returns: embeddings (I, projection_dim), L2-normalised, and image states (I, T, vision_hidden_size).
    """
    embeds, states = [], []
    image_size = processor.image_processor.size["height"]
    # Decoded here, at reduced scale, and not by `datasets`.
    images = dataset.select_columns(["image"]).cast_column("image", datasets.Image(decode=False))
    batches = images.iter(batch_size)
    for batch in _progress(batches, "encoding images", -(-len(dataset) // batch_size)):
        pictures = [read_image(image, image_size) for image in batch["image"]]
        pixel_values = processor(images=pictures)["pixel_values"].to(model.device, model.dtype)
        outputs = model.ccrk(pixel_values=pixel_values)
        embeds.append(outputs.image_embeds)
        states.append(outputs.image_states)
    return torch.cat(embeds), torch.cat(states)


@torch.no_grad()
def encode_captions(
    model: CCRKPairModel, processor: CCRKProcessor, captions: Sequence[str], batch_size: int = 256
) -> EncodedCaptions:
    """Encodes captions, none of them empty; those of a like length go together, so little padding is computed."""
    inputs = processor(text=list(captions))
    order = inputs["attention_mask"].sum(dim=1).argsort(stable=True)
    embeds = states = None
    for chosen in _progress(order.split(batch_size), "encoding captions"):
        mask = inputs["attention_mask"][chosen]
        length = int(mask.sum(dim=1).max())
        mask = mask[:, :length].to(model.device)
        outputs = model.ccrk(input_ids=inputs["input_ids"][chosen, :length].to(model.device), attention_mask=mask)
        if embeds is None:
            embeds = outputs.text_embeds.new_zeros(len(order), outputs.text_embeds.shape[-1])
            states = outputs.text_states.new_zeros(*inputs["input_ids"].shape, outputs.text_states.shape[-1])
        embeds[chosen.to(model.device)] = outputs.text_embeds
        states[chosen.to(model.device), :length] = outputs.text_states
    return EncodedCaptions(embeds, states, inputs["attention_mask"].to(model.device))


@torch.no_grad()
def two_stage_scores(
    model: CCRKPairModel,
    image_embeds: Tensor,
    image_states: Tensor,
    captions: EncodedCaptions,
    k_test: int,
    pair_batch_size: int = 1024,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Scores of all (image, caption) pairs, the candidates of each direction re-scored by the fusion encoder.

    A pair that is a candidate in both directions is scored once.

    Args:
        image_embeds, image_states: of I images, see `encode_images`.
        captions: of N captions.
        k_test: candidates re-scored per query; 0 ranks by cosine alone. More than there are means all.

    Returns: scores per image (I, N) and per caption (N, I), float64, higher is better, and where they were re-scored:
    there they are match logits, elsewhere cosine - 10,000.
    """
    cosine = image_embeds.float() @ captions.embeds.float().t()
    per_image = _candidates(cosine, k_test)
    per_caption = _candidates(cosine.t(), k_test).t()
    matches = torch.zeros_like(cosine)
    pairs = (per_image | per_caption).nonzero()
    batches = pairs.split(pair_batch_size) if len(pairs) else ()
    for batch in _progress(batches, "re-scoring pairs"):
        # A run of pairs is sorted by image: each image's keys and values are made once for all of its captions.
        images, local_index = batch[:, 0].unique_consecutive(return_inverse=True)
        mask = captions.attention_mask[batch[:, 1]]
        length = int(mask.sum(dim=1).max())
        logits = model.match(
            image_states[images], captions.states[batch[:, 1], :length], mask[:, :length], local_index
        )
        matches[batch[:, 0], batch[:, 1]] = logits[:, 1].float()
    behind = cosine.double() - _BEHIND
    scores_per_image = torch.where(per_image, matches.double(), behind)
    scores_per_caption = torch.where(per_caption, matches.double(), behind).t()
    return tuple(tensor.cpu().numpy() for tensor in (scores_per_image, scores_per_caption, per_image, per_caption.t()))


def _candidates(similarity: Tensor, k: int) -> Tensor:
    """(Q, C) mask of each row's k highest."""
    mask = torch.zeros_like(similarity, dtype=torch.bool)
    k = min(k, similarity.shape[1])
    return mask.scatter(1, similarity.topk(k, dim=1).indices, True) if k else mask


def evaluate_retrieval(
    model: CCRKPairModel,
    processor: CCRKProcessor,
    dataset: datasets.Dataset,
    languages: Sequence[str],
    k_test: int = 128,
    batch_size: int = 64,
) -> RetrievalResult:
    """Ranks every caption's image and every image's captions, in each language by itself.

    Rows with equal `image_id` show the same image: each other's captions are right answers. Captions that are empty
    after normalisation are left out and counted.

    Args:
        model: in evaluation mode.
        dataset: rows of `data_scripts.rows.row_features`.
        k_test: see `two_stage_scores`.
    """
    image_embeds, image_states = encode_images(model, processor, dataset, batch_size)
    result = RetrievalResult(image_ids=[str(image_id) for image_id in dataset["image_id"]])
    rows_by_id: dict[str, list[int]] = {}
    for row, image_id in enumerate(result.image_ids):
        rows_by_id.setdefault(image_id, []).append(row)
    rows = dataset["captions"]
    for language in languages:
        texts, owners, result.left_out[language] = [], [], 0
        for row, captions in enumerate(rows):
            for index, caption in enumerate(captions[language]):
                if is_usable(caption, processor):
                    texts.append(caption)
                    owners.append((row, index))
                else:
                    result.left_out[language] += 1
        if result.left_out[language]:
            logger.warning("%s: %d captions left out, empty after normalisation", language, result.left_out[language])
        if not texts:
            raise ValueError(f"the data has no usable caption in {language!r}; ask for other languages")
        encoded = encode_captions(model, processor, texts)
        per_image, per_caption, _, _ = two_stage_scores(model, image_embeds, image_states, encoded, k_test)

        captions_by_id: dict[str, list[int]] = {}
        for position, (row, _) in enumerate(owners):
            captions_by_id.setdefault(result.image_ids[row], []).append(position)
        images = [row for row, image_id in enumerate(result.image_ids) if image_id in captions_by_id]
        result.ranks[language] = LanguageRanks(
            text_to_image=best_ranks(per_caption, [rows_by_id[result.image_ids[row]] for row, _ in owners]),
            image_to_text=best_ranks(per_image[images], [captions_by_id[result.image_ids[row]] for row in images]),
            captions=owners,
            images=images,
        )
    return result


def is_usable(caption: str | None, processor: CCRKProcessor) -> bool:
    """Whether anything is left of a caption after the processor's normalisation."""
    if not caption:
        return False
    if not processor.normalize_captions:
        return True
    try:
        normalize_caption(caption, processor.max_words)
    except ValueError:
        return False
    return True


def _progress(batches, description: str, total: int | None = None):
    """A progress bar that stays away from logs and from work that is over in a moment."""
    return tqdm(batches, desc=description, total=total, leave=False, delay=2, disable=None)
