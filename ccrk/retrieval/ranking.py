"""Ranks from similarities: candidates, and their order after re-scoring."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ccrk.processes import Share, progress
from ccrk.retrieval.instances import UsableCaptions

_SIMILARITIES_PER_CHUNK = 1 << 24  # 64 MB in fp32


@dataclass
class Pool:
    """I images and N captions that are ranked for each other; those without a counterpart ask for nothing."""

    images: np.ndarray  # (I,), rows of the data set, ascending
    captions: np.ndarray  # (N,), positions among the language's captions, ascending
    has_caption: np.ndarray  # (I,), which images are queries
    has_image: np.ndarray  # (N,), which captions are queries

    @classmethod
    def of(cls, captions: UsableCaptions, images: np.ndarray, chosen: np.ndarray) -> "Pool":
        """Of rows, and of positions among a language's captions."""
        rows = captions.rows[chosen]
        return cls(images, chosen, np.isin(images, rows), np.isin(rows, images))

    @property
    def image_queries(self) -> np.ndarray:
        """Rows of the data set."""
        return self.images[self.has_caption]

    @property
    def caption_queries(self) -> np.ndarray:
        """Positions among the language's captions."""
        return self.captions[self.has_image]


@dataclass
class Candidates:
    """What Q queries found by similarity alone."""

    ranks: np.ndarray  # (Q,), from 1, of each query's best positive
    top: np.ndarray  # (Q, k), the candidates most similar to each query
    is_positive: np.ndarray  # (Q, k)


def pools_of(captions: UsableCaptions, folds: int = 0) -> list[Pool]:
    """What is searched in one language: all of it, and then each of its folds, equal parts of the images."""
    gallery = captions.gallery
    pools = [Pool.of(captions, gallery, np.arange(len(captions.rows)))]
    for fold in np.array_split(gallery, min(folds, len(gallery))) if folds else ():
        inside = (captions.rows >= fold[0]) & (captions.rows <= fold[-1])
        pools.append(Pool.of(captions, fold, np.flatnonzero(inside)))
    return [pool for pool in pools if pool.has_caption.any()]


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
        similarity: of a pool: of some image queries to its captions, and of some caption queries to its images; see
            `by_cosine`.
        score: match logits of (image row, caption) pairs, (P, 2) → (P,), the pairs sorted by image. None: ranks by
            similarity alone.
    """
    pools = pools_of(captions, folds)
    searches, pairs = [], []
    for pool in pools:
        per_image, per_caption = similarity(pool)
        image_ids, caption_ids = captions.ids[pool.images], captions.ids[captions.rows[pool.captions]]
        tr = find_candidates(per_image, image_ids[pool.has_caption], caption_ids, k_test, share)
        ir = find_candidates(per_caption, caption_ids[pool.has_image], image_ids, k_test, share)
        # A pair is one number: its image's row times the captions there are, plus its caption.
        tr.top = pool.image_queries[:, None] * len(captions.rows) + pool.captions[tr.top]
        ir.top = pool.images[ir.top] * len(captions.rows) + pool.caption_queries[:, None]
        searches.append((tr, ir))
        pairs += [tr.top.ravel(), ir.top.ravel()]
    if score is not None:
        # Score each pair once, whichever of the two directions and of the pools it is a candidate in. (`np.unique` of
        # integers hashes since NumPy 2.3, and takes 20 times as long.)
        pairs, places = torch.unique(torch.from_numpy(np.concatenate(pairs)), return_inverse=True)
        scores = score(np.stack(np.divmod(pairs.numpy(), len(captions.rows)), axis=1))
        candidates = [one for search in searches for one in search]
        for one, own in zip(candidates, places.split([one.top.size for one in candidates]), strict=True):
            one.ranks = rerank(one, scores[own.numpy().reshape(one.top.shape)])

    def named(searches: list[tuple[Candidates, Candidates]], pools: list[Pool]) -> dict[str, pd.Series]:
        if not pools:
            return {}
        ir_index = captions.index(np.concatenate([pool.caption_queries for pool in pools]))
        tr_index = captions.images[np.concatenate([pool.image_queries for pool in pools])]
        return {
            "IR": pd.Series(np.concatenate([ir.ranks for _, ir in searches]), index=ir_index),
            "TR": pd.Series(np.concatenate([tr.ranks for tr, _ in searches]), index=tr_index),
        }

    return named(searches[:1], pools[:1]), named(searches[1:], pools[1:])


def by_cosine(image_embeds: Tensor, caption_embeds: Tensor) -> Callable[[Pool], tuple[Callable, Callable]]:
    """Similarity of L2-normalised embeddings, for `rank_language`."""

    def of_pool(pool: Pool) -> tuple[Callable, Callable]:
        images, captions = image_embeds[pool.images], caption_embeds[pool.captions]
        image_queries, caption_queries = image_embeds[pool.image_queries], caption_embeds[pool.caption_queries]
        return lambda rows: image_queries[rows] @ captions.t(), lambda rows: caption_queries[rows] @ images.t()

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
    for start in progress(share.of(range(0, len(query_ids), rows_per_chunk)), "finding candidates"):
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
