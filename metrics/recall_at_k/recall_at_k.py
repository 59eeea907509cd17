"""Recall at k: how often one of a query's positives is among its k best-scored candidates.

`best_ranks` and `recall_at_k` are the arithmetic, in NumPy; `RecallAtK` offers them through `evaluate`.
"""

from collections.abc import Iterable, Sequence
from itertools import chain

import datasets
import evaluate
import numpy as np

_DESCRIPTION = """\
Recall at k of a retrieval: the percentage of queries with at least one positive among their k best candidates.
Ties count against the model: a positive ranks behind every other candidate that scores as high.
"""

_INPUTS_DESCRIPTION = """
Args:
    predictions (list of list of float): one row of candidate scores per query, higher is better, all equally long.
    references (list of list of int): the indices, from 0, of each query's positive candidates; the best one counts.
    ranks (list of int): with `evaluate.load(path, "ranks")`, instead of the two above: the rank, from 1, of each
        query's best positive.
    k (int or list of int): the cut-offs. Defaults to 1, 5 and 10.
Returns:
    dict: `recall@K` in percent for each K of `k`.
Examples:
    >>> recall = evaluate.load("/path/to/metrics/recall_at_k")
    >>> recall.compute(predictions=[[0.9, 0.2, 0.4], [0.3, 0.1, 0.5]], references=[[0], [0, 1]], k=[1, 2])
    {'recall@1': 50.0, 'recall@2': 100.0}
"""

_CITATION = """\
@inproceedings{ccrk2024,
  title     = {Improving the Consistency in Cross-Lingual Cross-Modal Retrieval with 1-to-K Contrastive Learning},
  booktitle = {Proceedings of the 30th ACM SIGKDD Conference on Knowledge Discovery and Data Mining},
  year      = {2024},
  url       = {https://arxiv.org/abs/2406.18254}
}
"""

_CHUNK_ELEMENTS = 1 << 22  # scores compared at a time, so that the comparison needs a few MB whatever the corpus


def best_ranks(scores: np.ndarray, positives: Sequence[Sequence[int]]) -> np.ndarray:
    """The rank of each query's best positive.

    A positive's rank is 1 + the number of candidates that are not positives of the query and score at least as high.
    Ties thus count against the model (a constant score earns the last rank, not the first), and positives never push
    each other back.

    Args:
        scores: (Q, C), the score of every candidate for every query; higher is better.
        positives: for each of the Q queries the indices, in [0, C), of its positives; at least one.

    Returns:
        (Q,) int64 ranks from 1 to C.

    Raises:
        ValueError: rows of unequal length, a NaN score, a query without positives, or an index out of range.
    """
    scores = _score_table(scores)
    query, candidate = _positive_pairs(positives, scores.shape)
    first_pair = np.flatnonzero(np.diff(query, prepend=-1))  # where each query's positives start
    best_score = np.maximum.reduceat(scores[query, candidate], first_pair)

    num_queries, num_candidates = scores.shape
    ranks = np.empty(num_queries, dtype=np.int64)
    chunk = max(1, _CHUNK_ELEMENTS // num_candidates)
    for start in range(0, num_queries, chunk):
        rows = slice(start, start + chunk)
        if np.isnan(scores[rows]).any():
            row = start + int(np.argmax(np.isnan(scores[rows]).any(axis=1)))
            raise ValueError(
                f"row {row} of the scores holds NaN; look for the overflow or the missing score behind it"
            )
        ahead = scores[rows] >= best_score[rows, None]
        pairs = slice(*np.searchsorted(query, [start, start + chunk]))
        ahead[query[pairs] - start, candidate[pairs]] = False
        ranks[rows] = 1 + np.count_nonzero(ahead, axis=1)
    return ranks


def recall_at_k(ranks: Iterable[int], k: int | Iterable[int] = (1, 5, 10)) -> dict[str, float]:
    """The percentage of queries whose rank is at most k.

    Args:
        ranks: (Q,) whole numbers from 1, such as `best_ranks` returns.
        k: one cut-off or several.

    Returns:
        `{"recall@K": percent}` for each K of `k`.

    Raises:
        ValueError: no ranks, a rank that is fractional or below 1, or a cut-off that is not a positive integer.
    """
    ranks = np.asarray(ranks)
    if ranks.ndim != 1 or not ranks.size or ranks.dtype.kind not in "fiu":
        raise ValueError(
            f"ranks needs one query or more, each a whole number; got shape {ranks.shape}, type {ranks.dtype}"
        )
    if (ranks != np.floor(ranks)).any():
        row = int(np.argmax(ranks != np.floor(ranks)))
        raise ValueError(f"row {row}: rank {ranks[row]} is not a whole number; average recalls, not ranks")
    if ranks.min() < 1:
        row = int(np.argmax(ranks < 1))
        raise ValueError(
            f"row {row}: rank {ranks[row]:g} is below 1; ranks count from 1, so add 1 to zero-based ranks"
        )

    cutoffs = np.atleast_1d(np.asarray(k))
    if cutoffs.dtype.kind not in "iu" or cutoffs.ndim != 1 or not cutoffs.size or cutoffs.min() < 1:
        raise ValueError(f"k is one positive integer or a list of them, not {k}")
    return {f"recall@{cutoff}": float(100.0 * np.count_nonzero(ranks <= cutoff) / len(ranks)) for cutoff in cutoffs}


def _score_table(scores) -> np.ndarray:
    """`scores` as a (Q, C) array of numbers."""
    try:
        table = np.asarray(scores)
    except ValueError as error:
        lengths = [np.size(row) for row in scores]
        row = next((row for row, length in enumerate(lengths) if length != lengths[0]), None)
        if row is None:  # not a matter of lengths
            raise
        raise ValueError(
            f"row {row} has {lengths[row]} scores but row 0 has {lengths[0]}; score every candidate for every query"
        ) from error
    if table.ndim != 2 or not table.size or table.dtype.kind not in "fiu":
        raise ValueError(
            f"scores needs one query or more, each a row of numbers; got shape {table.shape}, type {table.dtype}"
        )
    return table


def _positive_pairs(positives, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """(P,) query indices, ascending, and (P,) candidate indices of all positives."""
    num_queries, num_candidates = shape
    if len(positives) != num_queries:
        raise ValueError(
            f"{num_queries} rows of scores but {len(positives)} lists of positives; give one list per row"
        )
    lengths = np.array([np.size(indices) if np.ndim(indices) == 1 else -1 for indices in positives])
    if lengths.min() < 1:
        row = int(np.argmax(lengths < 1))
        raise ValueError(f"row {row}: {positives[row]} names no positives; give a list of one candidate index or more")
    query = np.repeat(np.arange(num_queries), lengths)
    candidate = np.array(list(chain.from_iterable(positives)))
    if candidate.dtype.kind not in "iu":
        raise ValueError(f"positives are lists of integer candidate indices, not of {candidate.dtype}")
    outside = (candidate < 0) | (candidate >= num_candidates)
    if outside.any():
        pair = int(np.argmax(outside))
        raise ValueError(
            f"row {query[pair]}: positive {candidate[pair]} is not one of the {num_candidates} candidates; "
            "indices count from 0 within the row"
        )
    return query, candidate


class RecallAtK(evaluate.Metric):
    """Recall at k from scores, or, loaded with the configuration name "ranks", from ranks."""

    def _info(self) -> evaluate.MetricInfo:
        if self.config_name == "ranks":
            features = {"ranks": datasets.Value("float64")}  # int64 would cut fractions off without a word
        else:
            features = {  # float64, since rounding makes ties
                "predictions": datasets.Sequence(datasets.Value("float64")),
                "references": datasets.Sequence(datasets.Value("int64")),
            }
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS_DESCRIPTION,
            features=datasets.Features(features),
            reference_urls=["https://arxiv.org/abs/2406.18254"],
        )

    def compute(self, *, predictions=None, references=None, ranks=None, **kwargs) -> dict[str, float] | None:
        """As [`evaluate.Metric.compute`], which would leave out, without a word, inputs of the other configuration."""
        inputs = {"predictions": predictions, "references": references, "ranks": ranks}
        inputs = {name: value for name, value in inputs.items() if value is not None}
        expected = list(self._feature_names())
        if inputs and set(inputs) != set(expected):
            raise ValueError(
                f"got {' and '.join(inputs)}, and this configuration takes {' and '.join(expected)} alone; load the "
                'metric with the name "ranks" for ranks, and without for predictions and references'
            )
        return super().compute(**inputs, **kwargs)

    def _compute(self, *, predictions=None, references=None, ranks=None, k=(1, 5, 10)) -> dict[str, float]:
        if ranks is None:
            ranks = best_ranks(predictions, references)
        return recall_at_k(ranks, k)
