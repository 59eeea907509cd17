"""Do languages find the same pictures? Measured by the same queries in each, without labels."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
from scipy import stats
from torch import Tensor

from ccrk.encoders import Encoder, needs_language
from ccrk.processes import progress
from ccrk.retrieval.evaluate import encode_captions
from ccrk.search.index import PictureIndex
from ccrk.search.queries import Queries
from data_scripts.files import written_whole

TOP = 10
DEPTH = 100  # of rank-biased overlap: what lies deeper weighs 3e-5 of it
PERSISTENCE = 0.9  # of rank-biased overlap: the first ten ranks have 86 % of the weight
FUSION = 60  # of reciprocal rank fusion, by its authors (Cormack et al., SIGIR 2009)
RESAMPLES = 1_000
MEASURES = ("overlap@10", "rbo", "rank_drift")
MOST_DIFFERENT = 12


def fused(rankings: Sequence[np.ndarray]) -> np.ndarray:
    """Items in the order of several rankings together: the sum of 1 / (60 + rank). Ties go to the lower item.

    Args:
        rankings: items of each, best first.
    """
    items = np.unique(np.concatenate(rankings))
    scores = np.zeros(len(items))
    for ranking in rankings:
        scores[np.searchsorted(items, ranking)] += 1 / (FUSION + 1 + np.arange(len(ranking)))
    return items[np.argsort(-scores, kind="stable")]


def overlap(one: np.ndarray, other: np.ndarray, k: int = TOP) -> float:
    """The share that the first `k` of two rankings have in common."""
    k = min(k, len(one), len(other))
    return len(np.intersect1d(one[:k], other[:k])) / k


def rank_biased_overlap(one: np.ndarray, other: np.ndarray, persistence: float = PERSISTENCE) -> float:
    """How alike two rankings of equal length are, the top weighing most: 0 to 1.

    Extrapolated from what is seen of them (Webber et al., "A similarity measure for indefinite rankings", TOIS 2010,
    equation 32).
    """
    depth = len(one)
    seen, in_common, agreement = set(), 0, np.empty(depth)
    for place, pair in enumerate(zip(one.tolist(), other.tolist(), strict=True)):
        for item in pair:
            in_common += item in seen
            seen.add(item)
        agreement[place] = in_common / (place + 1)
    weights = (1 - persistence) * persistence ** np.arange(depth)
    return float(weights @ agreement + agreement[-1] * persistence**depth)


@dataclass
class Ranking:
    """All pictures in the order of one query."""

    order: np.ndarray  # (N,), rows of the index, best first
    ranks: np.ndarray  # (N,), from 1, of each row

    @classmethod
    def of(cls, scores: np.ndarray) -> "Ranking":
        order = np.argsort(-scores, kind="stable")
        ranks = np.empty(len(order), dtype=np.int64)
        ranks[order] = np.arange(1, len(order) + 1)
        return cls(order, ranks)


def compare(one: Ranking, other: Ranking) -> tuple[float, float, float]:
    """The three of `MEASURES`. Drift: how many ranks, in the mean, what either has among its first ten moves."""
    first = np.union1d(one.order[:TOP], other.order[:TOP])
    drift = np.abs(one.ranks[first] - other.ranks[first]).mean()
    return (
        overlap(one.order, other.order),
        rank_biased_overlap(one.order[:DEPTH], other.order[:DEPTH]),
        float(drift),
    )


def encode_queries(encoder: Encoder, languages: Sequence[str], queries: Queries) -> dict[tuple[str, str], Tensor]:
    """The vector (P,) of each language's queries; equal texts are encoded once, where the language is not needed."""
    groups = [[language] for language in languages] if needs_language(encoder) else [list(languages)]
    vectors = {}
    for group in groups:
        texts = sorted({row[language] for row in queries for language in group if language in row})
        if texts:
            own = dict(zip(texts, encode_captions(encoder, texts, group[0]).embeds, strict=True))
            vectors |= {(language, text): vector for language in group for text, vector in own.items()}
    return vectors


def measure(index: PictureIndex, languages: Sequence[str], queries: Queries, pivot: str) -> dict:
    """How alike the languages search; the content of results.json, see docs/search.md."""
    index.refresh()
    pictures = index.contents[0]
    vectors = encode_queries(index.encoder, languages, queries)
    pairs = {pair: np.full((len(queries), len(MEASURES)), np.nan) for pair in combinations(languages, 2)}
    spreads = np.full(len(queries), np.nan)
    tops: list[dict[str, list[int]]] = []
    for number in progress(range(len(queries)), "comparing languages"):
        rankings = {
            language: Ranking.of(index.scores(vectors[language, text]).numpy())
            for language, text in queries[number].items()
        }
        tops.append({language: ranking.order[:TOP].tolist() for language, ranking in rankings.items()})
        for pair in combinations(rankings, 2):
            pairs[pair][number] = compare(*(rankings[language] for language in pair))
        if len(rankings) > 1:
            best = fused([ranking.order[:DEPTH] for ranking in rankings.values()])[:TOP]
            spreads[number] = np.std([ranking.ranks[best] for ranking in rankings.values()], axis=0).mean()

    def between(one: str, other: str) -> np.ndarray:
        return pairs[one, other] if (one, other) in pairs else pairs[other, one]

    with np.errstate(invalid="ignore"):
        among = {
            language: _mean([between(language, other) for other in languages if other != language])
            for language in languages
        }
        overall = _mean(list(pairs.values()))
    different = np.argsort(np.where(np.isnan(overall[:, 0]), np.inf, overall[:, 1]), kind="stable")
    paths = pictures["path"]
    return {
        "index": index.location,
        "model": index.store.settings["model"],
        "pictures": pictures.num_rows,
        "queries": len(queries),
        "languages": list(languages),
        "pivot": pivot,
        "against_pivot": {language: _summary(between(pivot, language)) for language in languages if language != pivot},
        "among_all": {language: _summary(values) for language, values in among.items()},
        "all": _summary(overall) | {"rank_std": _interval(spreads)},
        "pairs": [
            {"languages": list(pair)}
            | {name: _interval(column)["mean"] for name, column in zip(MEASURES, values.T, strict=True)}
            for pair, values in pairs.items()
        ],
        "most_different": [
            {
                "queries": queries[number],
                "overlap@10": float(overall[number, 0]),
                "rbo": float(overall[number, 1]),
                "pictures": {
                    language: [paths[row].as_py() for row in rows] for language, rows in tops[number].items()
                },
            }
            for number in different[:MOST_DIFFERENT].tolist()
            if overall[number, 0] < 1
        ],
    }


def _mean(tables: Sequence[np.ndarray]) -> np.ndarray:
    """Of tables (queries, measures) where a query has them; NaN where it has none."""
    stacked = np.stack(tables)
    there = ~np.isnan(stacked)
    return np.where(there, stacked, 0).sum(axis=0) / np.where(there.any(axis=0), there.sum(axis=0), np.nan)


def _summary(values: np.ndarray) -> dict:
    summary = {name: _interval(column) for name, column in zip(MEASURES, values.T, strict=True)}
    return summary | {"queries": int((~np.isnan(values[:, 0])).sum())}


def _interval(values: np.ndarray) -> dict[str, float | None]:
    """Mean, and the 95 % interval of it over queries (percentile bootstrap); None where there are too few of them."""
    values = values[~np.isnan(values)]
    if len(values) < 2:
        return {"mean": float(values[0]) if len(values) else None, "low": None, "high": None}
    drawn = stats.bootstrap((values,), np.mean, n_resamples=RESAMPLES, method="percentile", rng=0, batch=100)
    low, high = drawn.confidence_interval
    return {"mean": float(values.mean()), "low": float(low), "high": float(high)}


def write_results(results: dict, output_dir: Path) -> None:
    with written_whole(output_dir / "results.json") as path:
        path.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def format_results(results: dict) -> str:
    """A table for the terminal."""
    lines = [f"{'':<16}" + "".join(f"{name:>12}" for name in MEASURES) + f"   against {results['pivot']}"]
    rows = results["against_pivot"] | {"all pairs": results["all"]}
    for name, summary in rows.items():
        values = (summary[measure]["mean"] for measure in MEASURES)
        lines.append(f"{name:<16}" + "".join("           –" if v is None else f"{v:>12,.3f}" for v in values))
    return "\n".join(lines)
