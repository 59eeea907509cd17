"""Mean rank variance (MRV): how far an instance's rank moves when only the language changes.

`mean_rank_variance` is the arithmetic, in NumPy; `MRV` offers it through `evaluate`.
"""

from collections.abc import Sequence

import datasets
import evaluate
import numpy as np

_DESCRIPTION = """\
Mean rank variance (MRV): the spread of an instance's retrieval ranks over K languages, averaged over instances.
0 says that every instance ranks alike in every language; lower is better.
"""

_INPUTS_DESCRIPTION = """
Args:
    ranks (list of list of int): a row of K ranks, from 1, per instance: one rank per language, in the same order.
Returns:
    dict: `std`, the population standard deviation over the K languages, in ranks, averaged over instances;
    `variance`, the same with the population variance, in ranks squared.
Examples:
    >>> mrv = evaluate.load("/path/to/metrics/mrv")
    >>> mrv.compute(ranks=[[1, 1, 1, 1], [1, 3, 1, 3]])
    {'std': 0.5, 'variance': 0.5}
"""

_CITATION = """\
@inproceedings{ccrk2024,
  title     = {Improving the Consistency in Cross-Lingual Cross-Modal Retrieval with 1-to-K Contrastive Learning},
  booktitle = {Proceedings of the 30th ACM SIGKDD Conference on Knowledge Discovery and Data Mining},
  year      = {2024},
  url       = {https://arxiv.org/abs/2406.18254}
}
"""


def mean_rank_variance(ranks: Sequence[Sequence[int]]) -> dict[str, float]:
    """The spread of each instance's ranks over K languages, averaged over instances.

    Args:
        ranks: (N, K) whole numbers from 1; row j holds the ranks of instance j, one column per language.

    Returns:
        `std`: the population standard deviation over K, averaged over N; what the paper's tables show.
        `variance`: the population variance over K, averaged over N; how the paper defines MRV. Both are 0 at K = 1.

    Raises:
        ValueError: no instances, no languages, rows of unequal length, or a rank that is no whole number from 1 on.
    """
    try:
        table = np.asarray(ranks)
    except ValueError as error:
        lengths = [np.size(row) for row in ranks]
        row = next((row for row, length in enumerate(lengths) if length != lengths[0]), None)
        if row is None:  # not a matter of lengths
            raise
        raise ValueError(
            f"row {row} has {lengths[row]} ranks but row 0 has {lengths[0]}; remove instances that lack a language"
        ) from error
    if table.ndim != 2 or not table.size or table.dtype.kind not in "fiu":
        raise ValueError(
            "ranks needs one instance or more, each a row of K whole numbers, one per language; "
            f"got shape {table.shape}, type {table.dtype}"
        )
    not_whole = ~(np.isfinite(table) & (table == np.floor(table))).all(axis=1)
    if not_whole.any():
        row = int(np.argmax(not_whole))
        raise ValueError(f"row {row}: {table[row].tolist()} are not all whole numbers; give ranks as they come")
    if table.min() < 1:
        row = int(np.argmax((table < 1).any(axis=1)))
        raise ValueError(
            f"row {row}: rank {table[row].min():g} is below 1; ranks count from 1, so add 1 to zero-based ranks"
        )
    return {"std": float(table.std(axis=1).mean()), "variance": float(table.var(axis=1).mean())}


class MRV(evaluate.Metric):
    """Mean rank variance through `evaluate`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS_DESCRIPTION,
            # float64, since int64 would cut fractions off without a word
            features=datasets.Features({"ranks": datasets.Sequence(datasets.Value("float64"))}),
            reference_urls=["https://arxiv.org/abs/2406.18254"],
        )

    def _compute(self, *, ranks) -> dict[str, float]:
        return mean_rank_variance(ranks)
