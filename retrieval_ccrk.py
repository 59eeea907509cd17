"""Retrieval with CCRK: encode a corpus, find candidates by cosine, re-score them by the fusion encoder, rank.

The protocol is the paper's (section 4.2): the top k_test captions of each image and the top k_test images of each
caption are re-scored by the matching head. What is not re-scored keeps its cosine order behind what is.

Everything is cut into blocks that depend on the data alone. Processes take every n-th block, so that any number of
them gives the ranks of one, and nothing of size (images x captions) is ever held.
"""

import hashlib
import logging
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm

from data_scripts.captions import is_usable
from data_scripts.images import BadImage, read_image
from errors_ccrk import one_line
from files_ccrk import written_whole
from metrics.mrv.mrv import mean_rank_variance
from metrics.recall_at_k.recall_at_k import recall_at_k
from modeling_ccrk import CCRKPairModel
from processing_ccrk import CCRKProcessor

logger = logging.getLogger(__name__)

CAPTIONS_PER_BLOCK = 256  # encoded at a time, all of a like length
IMAGES_PER_BLOCK = 16  # whose keys and values are held: 7 MB each at the published size in fp32
TOKENS_PER_BATCH = 4096  # caption tokens that go through the fusion encoder at a time
_SIMILARITIES_PER_CHUNK = 1 << 24  # 64 MB in fp32

_NAN_CURE = "look for the overflow in the model, or evaluate without --bf16"

# language → "IR" or "TR" → ranks from 1 of the instances, which are indexed by `IMAGE` and, for IR, `CAPTION` as well
Ranks = dict[str, dict[str, pd.Series]]
# An image is its id and its number among the rows with that id; a caption is its place in its row.
IMAGE = ["image", "repeat"]
CAPTION = [*IMAGE, "caption"]
INDEX = {"IR": CAPTION, "TR": IMAGE}


def process_state() -> PartialState:
    """Rank, number and device of the processes that torchrun or accelerate started; without an accelerator on CPUs."""
    return PartialState(cpu=not torch.accelerator.is_available())


@dataclass(frozen=True)
class Share:
    """Which blocks of the work are this process's: every `count`-th from `index` on. By default all of them."""

    index: int = 0
    count: int = 1

    @classmethod
    def of_this_process(cls) -> "Share":
        state = process_state()
        return cls(state.process_index, state.num_processes)

    def of(self, blocks: Sequence) -> Sequence:
        return blocks[self.index :: self.count]

    def gather(self, own: dict[int, object]) -> dict[int, object]:
        """What all processes found, in the order of the keys."""
        return dict(sorted(gather_object(list(own.items())))) if self.count > 1 else own


class CCRKRetriever:
    """A CCRK model as an evaluation uses it. `DualEncoder` in peers_ccrk.py offers the same for other models.

    Args:
        model: in evaluation mode.
        k_test: candidates re-scored per query; 0 ranks by cosine alone. More than there are means all.
    """

    def __init__(self, model: CCRKPairModel, processor: CCRKProcessor, k_test: int = 128):
        self.model = model
        self.processor = processor
        self.k_test = k_test

    @property
    def fingerprint(self) -> str:
        """Changes with the weights, their dtype, the processor, or whether there is anything to re-score."""
        return weights_fingerprint(self.model.state_dict(), self.processor.to_json_string(), str(self.k_test > 0))

    @torch.no_grad()
    def encode_images(self, images: list) -> dict[str, Tensor]:
        """`embeds` (B, projection_dim), L2-normalised; to re-score, `states` (B, T, vision_hidden_size) as well."""
        pixel_values = self.processor(images=images)["pixel_values"].to(self.model.device, self.model.dtype)
        outputs = self.model.ccrk(pixel_values=pixel_values)
        return {"embeds": outputs.image_embeds} | ({"states": outputs.image_states} if self.k_test else {})

    @torch.no_grad()
    def encode_captions(self, captions: list[str]) -> dict[str, Tensor]:
        """
        `embeds` (N, projection_dim), L2-normalised; to re-score, `lengths` (N,) and `tokens` (sum of lengths,
        hidden_size) as well, which have the first fusion layer's self-attention behind them.
        """
        inputs = self.processor(text=captions).to(self.model.device)
        mask = inputs["attention_mask"]
        outputs = self.model.ccrk(input_ids=inputs["input_ids"], attention_mask=mask)
        if not self.k_test:
            return {"embeds": outputs.text_embeds}
        states = self.model.ccrk.fusion_encoder.prepare_captions(outputs.text_states, mask)
        return {"embeds": outputs.text_embeds, "tokens": states[mask.bool()], "lengths": mask.sum(dim=1)}

    def caption_lengths(self, captions: Sequence[str]) -> list[int]:
        """Tokens of each caption."""
        return self.processor(text=list(captions))["attention_mask"].sum(dim=1).tolist()

    @torch.no_grad()
    def score_pairs(self, image_states: Tensor, captions: "EncodedCaptions", pairs: np.ndarray) -> np.ndarray:
        """Match logits of pairs.

        Args:
            image_states: (B, T, vision_hidden_size).
            pairs: (P, 2), image among the B and caption; sorted by image.

        Returns: (P,) in fp32.
        """
        device = self.model.device
        rows, image = torch.from_numpy(pairs[:, 0]).unique_consecutive(return_inverse=True)
        caption = torch.from_numpy(pairs[:, 1])
        states = image_states[rows].to(device, self.model.dtype)
        keys_and_values = self.model.ccrk.fusion_encoder.prepare_images(states)
        lengths = captions.lengths[caption]
        batch = (lengths.cumsum(0) - 1) // TOKENS_PER_BATCH
        scores = []
        for own in torch.arange(len(pairs)).split(batch.unique_consecutive(return_counts=True)[1].tolist()):
            # Token t of the batch is token t - (tokens of the captions before it) of its caption.
            before = lengths[own].cumsum(0) - lengths[own]
            token = torch.repeat_interleave(captions.first_token[caption[own]] - before, lengths[own])
            token += torch.arange(len(token))
            images, captions_per_image = image[own].unique_consecutive(return_counts=True)
            run = slice(int(images[0]), int(images[-1]) + 1)
            logits = self.model.match_packed(
                [(key[run], value[run]) for key, value in keys_and_values],
                captions.tokens[token].to(device),
                lengths[own],
                captions_per_image,
            )
            scores.append(logits[:, 1].cpu())
        return torch.cat(scores).numpy()


@dataclass
class EncodedImages:
    """I images. States stay with the process that encoded them: re-scoring is shared out by image."""

    embeds: Tensor  # (I, projection_dim), L2-normalised, fp32
    states: dict[int, Tensor]  # first row of a block → (rows, T, vision_hidden_size), on the CPU


@dataclass
class EncodedCaptions:
    """N captions of one language; of a dual encoder only `embeds`."""

    embeds: Tensor  # (N, projection_dim), L2-normalised, fp32
    tokens: Tensor | None = None  # (sum of lengths, hidden_size), see `CCRKRetriever.encode_captions`
    first_token: Tensor | None = None  # (N,), where a caption's tokens start
    lengths: Tensor | None = None  # (N,)


@dataclass
class Pool:
    """I images and N captions that are searched for each other."""

    images: np.ndarray  # (I,), rows of the data set, ascending
    captions: np.ndarray  # (N,), positions among the language's captions, ascending


@dataclass
class Candidates:
    """What Q queries found by similarity alone."""

    ranks: np.ndarray  # (Q,), from 1, of each query's best positive
    top: np.ndarray  # (Q, k), the candidates most similar to each query
    is_positive: np.ndarray  # (Q, k)


@dataclass
class RetrievalResult:
    """Ranks per language of one evaluation, and what was left out of it."""

    ranks: Ranks = field(default_factory=dict)
    fold_ranks: Ranks = field(default_factory=dict)  # each within its fold; empty unless folds were asked for
    left_out: dict[str, int] = field(default_factory=dict)  # captions that were empty after normalisation

    def recall(self) -> dict[str, dict[str, float]]:
        return recall_table(self.ranks)

    def mrv(self) -> dict | None:
        return mrv_table(self.ranks)

    def rank_table(self) -> pd.DataFrame:
        """
        One row per instance, language and direction: `image`, its id, and `repeat`, 0 but for further rows of the same
        id; `caption`, its place among the row's captions in the language, missing for TR; `language`, `direction` and
        `rank`.
        """
        parts = [
            ranks.rename("rank").reset_index().assign(language=language, direction=direction)
            for language, directions in self.ranks.items()
            for direction, ranks in directions.items()
        ]
        table = pd.concat(parts, ignore_index=True).astype({"caption": "Int64"})
        return table[[*CAPTION, "language", "direction", "rank"]]


def evaluate_retrieval(
    retriever,
    dataset: datasets.Dataset,
    languages: Sequence[str],
    batch_size: int = 64,
    folds: Mapping[str, int] | None = None,
    share: Share = Share(),
    cache_dir: Path | None = None,
) -> RetrievalResult:
    """Ranks every caption's image and every image's captions, in each language by itself.

    A language's pool are its usable captions and the images that have one. Rows with equal `image_id` show the same
    image: each other's captions are right answers. Captions that are empty after normalisation are left out and
    counted. Images are encoded once for all languages.

    Args:
        retriever: a `CCRKRetriever` or a `DualEncoder`.
        dataset: rows of `data_scripts.rows.row_features`.
        batch_size: images encoded at a time.
        folds: in these languages rank also within so many equal parts of the images, in their order.
        share: of the work; every process that takes part must call.
        cache_dir: where encoded blocks are kept, so that an interrupted run goes on where it stopped.
    """
    texts = {language: usable_captions(dataset, language) for language in languages}
    images = encode_images(retriever, dataset, batch_size, share, cache_dir)
    result, folds = RetrievalResult(), folds or {}
    for language, found in texts.items():
        if found.left_out:
            logger.warning("%s: %d captions left out, empty after normalisation", language, found.left_out)
        captions = encode_captions(retriever, found.texts, share, cache_dir)
        score = partial(score_pairs, retriever, images, captions, share) if retriever.k_test else None
        result.left_out[language] = found.left_out
        result.ranks[language], in_folds = rank_language(
            found, by_cosine(images.embeds, captions.embeds), retriever.k_test, score, folds.get(language, 0), share
        )
        if in_folds:
            result.fold_ranks[language] = in_folds
    return result


@dataclass
class UsableCaptions:
    """N captions of one language."""

    texts: list[str]
    rows: np.ndarray  # (N,), ascending
    places: np.ndarray  # (N,), of each among its row's captions
    ids: np.ndarray  # (rows of the data set,), equal for equal images
    images: pd.MultiIndex  # all rows of the data set, by `IMAGE`
    left_out: int

    def index(self, chosen: np.ndarray) -> pd.MultiIndex:
        """Some of the captions, by `CAPTION`."""
        image, repeat = (self.images.get_level_values(level)[self.rows[chosen]] for level in IMAGE)
        return pd.MultiIndex.from_arrays([image, repeat, self.places[chosen]], names=CAPTION)


def image_index(dataset: datasets.Dataset) -> pd.MultiIndex:
    """The rows of a data set, by `IMAGE`."""
    ids = pd.Series(dataset["image_id"][:])
    return pd.MultiIndex.from_arrays([ids, ids.groupby(ids).cumcount()], names=IMAGE)


def usable_captions(dataset: datasets.Dataset, language: str) -> UsableCaptions:
    """The captions of a language that are usable."""
    texts, rows, places, left_out = [], [], [], 0
    for row, captions in enumerate(dataset["captions"]):
        for place, caption in enumerate(captions[language]):
            if is_usable(caption):
                texts.append(caption)
                rows.append(row)
                places.append(place)
            elif caption is not None:  # it is there, and not only the place of one
                left_out += 1
    if not texts:
        raise ValueError(f"the data has no usable caption in {language!r}; ask for other languages")
    ids = np.unique(dataset["image_id"], return_inverse=True)[1]
    return UsableCaptions(texts, np.array(rows), np.array(places), ids, image_index(dataset), left_out)


def encode_images(
    retriever, dataset: datasets.Dataset, batch_size: int = 64, share: Share = Share(), cache_dir: Path | None = None
) -> EncodedImages:
    """Encodes the `image` column; see `evaluate_retrieval`."""
    pictures = dataset.select_columns(["image"])
    embeds, states = {}, {}
    for start in _progress(share.of(range(0, len(pictures), batch_size)), "encoding images"):
        rows = range(start, min(start + batch_size, len(pictures)))
        path = cache_dir and cache_dir / f"images-{batch_size}-{start:07}.safetensors"
        encoded = _cached(path, lambda rows=rows: retriever.encode_images(_read_pictures(pictures, rows)))
        embeds[start] = encoded["embeds"].float()
        if "states" in encoded:
            states[start] = encoded["states"]
    embeds = torch.cat(list(share.gather(embeds).values()))
    if (broken := embeds.isnan().any(dim=1)).any():
        raise ValueError(f"row {int(broken.int().argmax())}: the embedding of its picture is NaN; {_NAN_CURE}")
    return EncodedImages(embeds, states)


def encode_captions(
    retriever, captions: Sequence[str], share: Share = Share(), cache_dir: Path | None = None
) -> EncodedCaptions:
    """Encodes captions, none of them empty; those of a like length go together, so little padding is computed."""
    order = np.argsort(retriever.caption_lengths(captions), kind="stable")
    digest = hashlib.blake2b("\0".join(captions).encode(), digest_size=8).hexdigest()
    blocks = {}
    for start in _progress(share.of(range(0, len(order), CAPTIONS_PER_BLOCK)), "encoding captions"):
        texts = [captions[i] for i in order[start : start + CAPTIONS_PER_BLOCK]]
        path = cache_dir and cache_dir / f"captions-{digest}-{start:07}.safetensors"
        blocks[start] = _cached(path, lambda texts=texts: retriever.encode_captions(texts))
    blocks = share.gather(blocks).values()
    position = torch.from_numpy(np.argsort(order))  # of each caption in the order of encoding
    embeds = torch.cat([block["embeds"] for block in blocks]).float()[position]
    if (broken := embeds.isnan().any(dim=1)).any():
        raise ValueError(f"the embedding of {captions[int(broken.int().argmax())]!r} is NaN; {_NAN_CURE}")
    if not retriever.k_test:
        return EncodedCaptions(embeds)
    lengths = torch.cat([block["lengths"] for block in blocks])
    tokens = torch.cat([block["tokens"] for block in blocks])
    return EncodedCaptions(embeds, tokens, (lengths.cumsum(0) - lengths)[position], lengths[position])


def rank_language(
    captions: UsableCaptions,
    similarity: Callable[[Pool], tuple[Callable, Callable]],
    k_test: int = 0,
    score: Callable[[np.ndarray], np.ndarray] | None = None,
    folds: int = 0,
    share: Share = Share(),
) -> tuple[dict[str, pd.Series], dict[str, pd.Series]]:
    """IR and TR ranks of one language, and the same within folds (empty without any).

    Args:
        similarity: of a pool, per image and per caption; see `by_cosine`.
        score: match logits of (image row, caption) pairs, (P, 2) → (P,), the pairs sorted by image. None: ranks by
            similarity alone.
    """
    rows = np.unique(captions.rows)
    pools = [Pool(rows, np.arange(len(captions.rows)))]
    for fold in np.array_split(rows, min(folds, len(rows))) if folds else ():
        pools.append(Pool(fold, np.flatnonzero((captions.rows >= fold[0]) & (captions.rows <= fold[-1]))))

    searches, pairs = [], []
    for pool in pools:
        per_image, per_caption = similarity(pool)
        image_ids, caption_ids = captions.ids[pool.images], captions.ids[captions.rows[pool.captions]]
        tr = find_candidates(per_image, image_ids, caption_ids, k_test, share)
        ir = find_candidates(per_caption, caption_ids, image_ids, k_test, share)
        # A pair is one number: its image's row times the captions there are, plus its caption.
        tr.top = pool.images[:, None] * len(captions.rows) + pool.captions[tr.top]
        ir.top = pool.images[ir.top] * len(captions.rows) + pool.captions[:, None]
        searches.append((tr, ir))
        pairs += [tr.top.ravel(), ir.top.ravel()]
    if score is not None:
        # Each pair once, whichever of the two directions and of the pools it is a candidate in.
        pairs = np.unique(np.concatenate(pairs))
        scores = score(np.stack(np.divmod(pairs, len(captions.rows)), axis=1))
        for found in (found for search in searches for found in search):
            found.ranks = rerank(found, scores[np.searchsorted(pairs, found.top)])

    def named(searches: list[tuple[Candidates, Candidates]], pools: list[Pool]) -> dict[str, pd.Series]:
        if not pools:
            return {}
        ir_index = captions.index(np.concatenate([pool.captions for pool in pools]))
        tr_index = captions.images[np.concatenate([pool.images for pool in pools])]
        return {
            "IR": pd.Series(np.concatenate([ir.ranks for _, ir in searches]), index=ir_index),
            "TR": pd.Series(np.concatenate([tr.ranks for tr, _ in searches]), index=tr_index),
        }

    return named(searches[:1], pools[:1]), named(searches[1:], pools[1:])


def by_cosine(image_embeds: Tensor, caption_embeds: Tensor) -> Callable[[Pool], tuple[Callable, Callable]]:
    """Similarity of L2-normalised embeddings, for `rank_language`."""

    def of_pool(pool: Pool) -> tuple[Callable, Callable]:
        images, captions = image_embeds[pool.images], caption_embeds[pool.captions]
        return lambda rows: images[rows] @ captions.t(), lambda rows: captions[rows] @ images.t()

    return of_pool


def find_candidates(
    similarity: Callable[[slice], Tensor],
    query_ids: np.ndarray,
    candidate_ids: np.ndarray,
    k: int,
    share: Share = Share(),
) -> Candidates:
    """Ranks and the k best candidates per query, a chunk of queries at a time.

    Args:
        similarity: gives the (rows, C) similarities of a slice of the Q queries.
        query_ids, candidate_ids: (Q,) and (C,) numbers; a candidate is positive for a query with the same number.
        k: more than there are means all.
    """
    query_ids, candidate_ids = torch.from_numpy(query_ids), torch.from_numpy(candidate_ids)
    k = min(k, len(candidate_ids))
    rows_per_chunk = max(1, _SIMILARITIES_PER_CHUNK // len(candidate_ids))
    chunks = {}
    for start in _progress(share.of(range(0, len(query_ids), rows_per_chunk)), "finding candidates"):
        rows = slice(start, min(start + rows_per_chunk, len(query_ids)))
        similarities = similarity(rows)
        positive = query_ids[rows, None] == candidate_ids
        best = similarities.masked_fill(~positive, -torch.inf).amax(dim=1, keepdim=True)
        # Ties count against the model, and positives never push each other back.
        ahead = ((similarities >= best) & ~positive).sum(dim=1)
        top = similarities.topk(k, dim=1).indices
        chunks[start] = (1 + ahead).numpy(), top.numpy(), positive.gather(1, top).numpy()
    return Candidates(*(np.concatenate(parts) for parts in zip(*share.gather(chunks).values(), strict=True)))


def rerank(found: Candidates, scores: np.ndarray) -> np.ndarray:
    """Ranks after re-scoring, (Q,).

    The re-scored stand before all others. A query with a positive among them ranks it by `scores` (Q, k); any other
    keeps its rank by similarity, since all that was re-scored was ahead of its positives already.
    """
    best = np.where(found.is_positive, scores, -np.inf).max(axis=1, keepdims=True)
    ahead = ((scores >= best) & ~found.is_positive).sum(axis=1)
    return np.where(found.is_positive.any(axis=1), 1 + ahead, found.ranks)


def score_pairs(
    retriever, images: EncodedImages, captions: EncodedCaptions, share: Share, pairs: np.ndarray
) -> np.ndarray:
    """Match logits of (image row, caption) pairs, (P, 2), sorted by image: (P,) in fp32."""
    blocks = [
        (states[start : start + IMAGES_PER_BLOCK], first_row + start)
        for first_row, states in images.states.items()  # this process's
        for start in range(0, len(states), IMAGES_PER_BLOCK)
    ]
    scores = {}
    for states, first_row in _progress(blocks, "re-scoring pairs"):
        start, stop = np.searchsorted(pairs[:, 0], [first_row, first_row + len(states)])
        if start < stop:
            scores[int(start)] = retriever.score_pairs(states, captions, pairs[start:stop] - [first_row, 0])
    scores = np.concatenate(list(share.gather(scores).values()))
    if np.isnan(scores).any():
        row, caption = pairs[np.argmax(np.isnan(scores))]
        raise ValueError(f"the match logit of row {row} and caption {caption} is NaN; {_NAN_CURE}")
    return scores


def recall_table(ranks: Ranks) -> dict[str, dict[str, float]]:
    """For each language `IR@k` and `TR@k` in percent for k of 1, 5, 10, and their `mean`."""
    table = {}
    for language, directions in ranks.items():
        row = {
            f"{direction}@{k}": recall_at_k(directions[direction].to_numpy(), k)[f"recall@{k}"]
            for direction in ("IR", "TR")
            for k in (1, 5, 10)
        }
        table[language] = row | {"mean": float(np.mean(list(row.values())))}
    return table


def shared_ranks(ranks: Ranks, languages: Sequence[str], direction: str) -> pd.DataFrame:
    """(instances that every language has, languages): an instance is a row for TR, for IR a caption by its place."""
    return pd.concat({language: ranks[language][direction] for language in languages}, axis=1, join="inner")


def mrv_table(ranks: Ranks, languages: Sequence[str] | None = None) -> dict | None:
    """Mean rank variance over the instances that every language has; None for fewer than two, or without any."""
    languages = list(languages or ranks)
    tables = {direction: shared_ranks(ranks, languages, direction) for direction in ("IR", "TR")}
    if len(languages) < 2 or any(table.empty for table in tables.values()):
        return None
    result = {direction: mean_rank_variance(table.to_numpy()) for direction, table in tables.items()}
    result["mean"] = {name: (result["IR"][name] + result["TR"][name]) / 2 for name in ("std", "variance")}
    return {"languages": languages} | result


def weights_fingerprint(weights: dict[str, Tensor], *settings: str) -> str:
    """A digest of weights by their names, with whatever else decides what the model answers."""
    digest = hashlib.blake2b("\0".join(settings).encode(), digest_size=16)
    for name, tensor in weights.items():
        digest.update(f"{name} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _read_pictures(pictures: datasets.Dataset, rows: range) -> list[Image.Image]:
    # Decoded here, where a broken file can be named, and not by `datasets`.
    images = pictures.cast_column("image", datasets.Image(decode=False))[rows.start : rows.stop]["image"]
    found = []
    for row, image in zip(rows, images, strict=True):
        try:
            found.append(read_image(image))
        except BadImage as error:
            raise ValueError(
                f"row {row}: {error}; put the picture back and run again, what is encoded already is kept"
            ) from error
    return found


def _cached(path: Path | None, encode: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """What `encode` returns, on the CPU; from the file of an earlier run where there is one that is whole."""
    if path is not None and path.exists():
        try:
            return _read_block(path)
        except Exception as error:  # there is no end to what damaged files raise
            logger.warning("%s cannot be used (%s): encoded anew", path, one_line(error))
    encoded = {name: tensor.cpu().contiguous() for name, tensor in encode().items()}
    if path is not None:
        with written_whole(path) as unfinished:
            save_file(encoded, unfinished, {"crc32": _crc32(encoded)})
    return encoded


def _read_block(path: Path) -> dict[str, Tensor]:
    with safe_open(path, "pt") as file:
        encoded = {name: file.get_tensor(name) for name in file.keys()}
        expected = (file.metadata() or {}).get("crc32")
    if expected != _crc32(encoded):
        raise ValueError("it is not as it was written")
    return encoded


def _crc32(tensors: dict[str, Tensor]) -> str:
    """Of the names, types, shapes and contents of tensors on the CPU."""
    checksum = 0
    for name, tensor in sorted(tensors.items()):
        checksum = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), checksum)
        checksum = zlib.crc32(tensor.flatten().view(torch.uint8).numpy(), checksum)
    return f"{checksum:08x}"


def _progress(blocks: Sequence, description: str) -> Iterable:
    """A progress bar of the first process, which stays away from logs and from work that is over in a moment."""
    hidden = None if process_state().is_main_process else True
    return tqdm(blocks, desc=description, leave=False, delay=2, disable=hidden)
