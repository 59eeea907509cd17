"""Recall by chance: what a random order of each pool's candidates would have."""

import numpy as np

from ccrk.retrieval.instances import UsableCaptions
from ccrk.retrieval.ranking import Pool, pools_of

CUT_OFFS = (1, 5, 10)


def chance_recall(captions: UsableCaptions, folds: int = 0) -> tuple[dict[str, float], dict[str, float]]:
    """
    The expected recall in percent of one language, `IR@k` and `TR@k` for k of 1, 5, 10, and their `mean`; and the same
    within folds (empty without any).

    A query with m right ones among n candidates has one of them among the first k with the probability
    1 - C(n - m, k) / C(n, k).
    """
    whole, *parts = pools_of(captions, folds)
    return _expected(captions, [whole]), _expected(captions, parts) if parts else {}


def _expected(captions: UsableCaptions, pools: list[Pool]) -> dict[str, float]:
    row = {}
    for direction in ("IR", "TR"):
        found: dict[int, list[np.ndarray]] = {k: [] for k in CUT_OFFS}
        for pool in pools:
            caption_ids, image_ids = captions.ids[captions.rows[pool.captions]], captions.ids[pool.images]
            if direction == "IR":
                query_ids, candidate_ids = caption_ids[pool.has_image], image_ids
            else:
                query_ids, candidate_ids = image_ids[pool.has_caption], caption_ids
            names, counts = np.unique(candidate_ids, return_counts=True)
            right = counts[np.searchsorted(names, query_ids)]
            for k, shares in found.items():
                shares.append(hit_probability(len(candidate_ids), right, k))
        row |= {f"{direction}@{k}": 100 * float(np.concatenate(shares).mean()) for k, shares in found.items()}
    return row | {"mean": float(np.mean(list(row.values())))}


def hit_probability(candidates: int, right: np.ndarray, k: int) -> np.ndarray:
    """(Q,): how probable one of the right candidates, (Q,) numbers of them, is among the first k of a random order."""
    drawn = np.arange(min(k, candidates))
    missed = (candidates - right[:, None] - drawn).clip(min=0) / (candidates - drawn)
    return 1 - missed.prod(axis=1)
