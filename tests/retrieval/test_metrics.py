"""Recall at k and MRV: the published figures, ties, several positives, errors, and loading through `evaluate`."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from metrics.mrv.mrv import mean_rank_variance
from metrics.recall_at_k import recall_at_k as recall_module
from metrics.recall_at_k.recall_at_k import best_ranks, recall_at_k

METRICS = ROOT / "metrics"
# Recalls and MRV that the published code gave. Its "txt" is the direction image→text, "img" text→image.
PUBLISHED = json.loads((ROOT / "tests" / "fixtures" / "metrics.json").read_text())


def published_names(recall, direction):
    values = {f"{direction}_r{k}": recall[f"recall@{k}"] for k in (1, 5, 10)}
    return {**values, f"{direction}_r_mean": sum(values.values()) / 3}


def assert_published(text_recall, image_recall, expected):
    figures = {**published_names(text_recall, "txt"), **published_names(image_recall, "img")}
    figures["r_mean"] = (figures["txt_r_mean"] + figures["img_r_mean"]) / 2
    assert figures == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("language", ["en", "de", "ja", "zh"])
def test_published_recall_from_ranks(language):
    ranks = {direction: np.array(values) + 1 for direction, values in PUBLISHED["ranks_zero_based"][language].items()}
    assert_published(recall_at_k(ranks["tr"]), recall_at_k(ranks["ir"]), PUBLISHED["recall_percent"][language])


def test_published_recall_from_scores_with_five_captions_per_image():
    case = PUBLISHED["five_captions"]
    image_of_text = np.array(case["text_image_index"])
    texts_of_image = [np.flatnonzero(image_of_text == image) for image in range(len(case["scores_i2t"]))]
    text_recall = recall_at_k(best_ranks(case["scores_i2t"], texts_of_image))
    image_recall = recall_at_k(best_ranks(case["scores_t2i"], image_of_text[:, None]))
    assert_published(text_recall, image_recall, case["recall_percent"])


@pytest.mark.parametrize("direction", ["tr", "ir"])
def test_published_mrv_is_the_population_standard_deviation(direction):
    ranks = np.stack([PUBLISHED["ranks_zero_based"][language][direction] for language in ("en", "de", "ja", "zh")], 1)
    result = mean_rank_variance(ranks + 1)
    assert result["std"] == pytest.approx(PUBLISHED["mrv_published_code"][direction], rel=1e-14)
    assert result["variance"] == pytest.approx(np.mean([np.var(row) for row in ranks]))


def test_ties_count_against_the_model():
    constant = np.zeros((3, 4))
    assert best_ranks(constant, [[0], [3], [1]]).tolist() == [4, 4, 4]
    assert best_ranks(constant, [[0, 1], [0, 1, 2], [0, 1, 2, 3]]).tolist() == [3, 2, 1]
    assert best_ranks([[0.5, 0.7, 0.5, 0.1]], [[0]]).tolist() == [3]
    assert best_ranks([[-np.inf, -np.inf, 0.0]], [[1]]).tolist() == [3]


def test_several_positives():
    scores = [[0.9, 0.8, 0.7, 0.1], [0.9, 0.8, 0.7, 0.1]]
    assert best_ranks(scores, [[3, 2], [2, 0]]).tolist() == [3, 1]
    assert best_ranks(scores, [[1, 2], [3, 3]]).tolist() == [2, 4], "positives do not push each other back"


@pytest.mark.parametrize("chunk_elements", [1, 7 * 30, 1 << 22])
def test_best_ranks_against_one_query_at_a_time(monkeypatch, chunk_elements):
    monkeypatch.setattr(recall_module, "_CHUNK_ELEMENTS", chunk_elements)
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 12, (50, 30))  # many ties
    positives = [rng.integers(0, 30, rng.integers(1, 6)).tolist() for _ in range(50)]
    expected = []
    for row, indices in zip(scores, positives, strict=True):
        others = np.delete(row, indices)
        expected.append(min(1 + int((others >= row[index]).sum()) for index in indices))
    ranks = best_ranks(scores, positives)
    assert ranks.tolist() == expected
    assert ranks.dtype == np.int64
    assert best_ranks(scores.astype(np.float32), positives).tolist() == expected


def test_recall_cut_offs():
    assert recall_at_k([1, 2, 3, 11]) == {"recall@1": 25.0, "recall@5": 75.0, "recall@10": 75.0}
    assert recall_at_k(np.array([1, 2, 3, 11]), k=3) == {"recall@3": 75.0}
    assert all(type(value) is float for value in recall_at_k([1, 2]).values())  # json.dumps takes them


def test_mrv_by_hand():
    assert mean_rank_variance([[1, 1, 1, 1], [1, 7, 1, 7]]) == {"std": 1.5, "variance": 4.5}
    assert mean_rank_variance([[3], [80]]) == {"std": 0.0, "variance": 0.0}


rank_tables = st.tuples(st.integers(1, 12), st.integers(1, 6)).flatmap(
    lambda shape: arrays(np.int64, shape, elements=st.integers(1, 5_000))
)
# One score per candidate, query and language: (K, Q, C), with ties.
score_tables = st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(6, 9)).flatmap(
    lambda shape: arrays(np.int64, shape, elements=st.integers(-20, 20))
)


@given(rank_tables, st.randoms())
def test_mrv_does_not_depend_on_the_order_of_instances_and_languages(ranks, random):
    instances, languages = list(range(ranks.shape[0])), list(range(ranks.shape[1]))
    random.shuffle(instances)
    random.shuffle(languages)
    assert mean_rank_variance(ranks[instances][:, languages]) == pytest.approx(mean_rank_variance(ranks))


@given(rank_tables)
def test_mrv_is_never_negative_and_0_for_identical_ranks(ranks):
    result = mean_rank_variance(ranks)
    assert result["std"] >= 0 and result["variance"] >= 0
    assert (result["std"] == 0) == (ranks == ranks[:, :1]).all()
    # Jensen: the mean of the roots is at most the root of the mean.
    assert result["std"] <= np.sqrt(result["variance"]) + 1e-9
    assert mean_rank_variance(np.repeat(ranks[:, :1], 4, axis=1)) == {"std": 0.0, "variance": 0.0}


@given(score_tables)
def test_a_monotone_transform_of_the_scores_changes_nothing(scores):
    positives = [[query] for query in range(scores.shape[1])]

    def ranks(scores):
        return np.stack([best_ranks(table, positives) for table in scores], axis=1)

    before, after = ranks(scores), ranks(np.exp(scores / 3.0) + 7)
    assert (before == after).all()
    assert mean_rank_variance(before) == mean_rank_variance(after)


@given(score_tables)
def test_recall_grows_with_k_and_reaches_everything(scores):
    ranks = best_ranks(scores[0], [[0]] * scores.shape[1])
    recalls = list(recall_at_k(ranks, range(1, scores.shape[2] + 1)).values())
    assert recalls == sorted(recalls) and recalls[-1] == 100.0


@pytest.mark.parametrize(
    ("scores", "positives", "message"),
    [
        ([[0.1, 0.2], [0.3]], [[0], [0]], "row 1 has 1 scores but row 0 has 2; score every candidate"),
        ([[0.1, 0.2], [0.3, np.nan]], [[0], [0]], "row 1 of the scores holds NaN"),
        ([[0.1, 0.2], [0.3, 0.4]], [[0], []], r"row 1: \[\] names no positives; give a list"),
        ([[0.1, 0.2], [0.3, 0.4]], [0, 1], "row 0: 0 names no positives; give a list"),
        ([[0.1, 0.2], [0.3, 0.4]], [[0], [1, 2]], "row 1: positive 2 is not one of the 2 candidates"),
        ([[0.1, 0.2], [0.3, 0.4]], [[0], [-1]], "row 1: positive -1 is not one of the 2 candidates"),
        ([[0.1, 0.2]], [[0.5]], "integer candidate indices, not of float64"),
        ([[0.1, 0.2]], [[0], [1]], "1 rows of scores but 2 lists of positives"),
        ([0.1, 0.2], [[0], [1]], r"scores needs one query or more, each a row of numbers; got shape \(2,\)"),
        ([], [], "scores needs one query or more"),
        ([[], []], [[0], [0]], "scores needs one query or more"),
        ([["a", "b"]], [[0]], "each a row of numbers"),
    ],
)
def test_wrong_scores(scores, positives, message):
    with pytest.raises(ValueError, match=message) as caught:
        best_ranks(scores, positives)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("ranks", "k", "message"),
    [
        ([1, 0, 2], 1, "row 1: rank 0 is below 1; ranks count from 1, so add 1"),
        ([1, 2.5], 1, "row 1: rank 2.5 is not a whole number"),
        ([], 1, "ranks needs one query or more"),
        ([[1], [2]], 1, r"got shape \(2, 1\)"),
        ([1], 0, "k is one positive integer or a list of them, not 0"),
        ([1], [1, -5], "k is one positive integer or a list of them"),
        ([1], [], "k is one positive integer or a list of them"),
        ([1], 1.5, "k is one positive integer or a list of them"),
    ],
)
def test_wrong_ranks_for_recall(ranks, k, message):
    with pytest.raises(ValueError, match=message):
        recall_at_k(ranks, k)


@pytest.mark.parametrize(
    ("ranks", "message"),
    [
        ([[1, 2], [1]], "row 1 has 1 ranks but row 0 has 2; remove instances that lack a language"),
        ([[1, 2], [3, 0]], "row 1: rank 0 is below 1"),
        ([[1, 2], [1.5, 2]], r"row 1: \[1.5, 2.0\] are not all whole numbers"),
        ([[1, 2], [float("inf"), 2]], r"row 1: \[inf, 2.0\] are not all whole numbers"),
        ([], "ranks needs one instance or more, each a row of K whole numbers"),
        ([[], []], "one instance or more"),
        ([1, 2], "one instance or more"),
    ],
)
def test_wrong_ranks_for_mrv(ranks, message):
    with pytest.raises(ValueError, match=message):
        mean_rank_variance(ranks)


USE_FROM_ELSEWHERE = """
import json, sys
import evaluate

recall = evaluate.load(sys.argv[1] + "/recall_at_k")
recall_from_ranks = evaluate.load(sys.argv[1] + "/recall_at_k", "ranks")
mrv = evaluate.load(sys.argv[1] + "/mrv")
errors = []
for metric, inputs in (
    (recall, {"predictions": [[0.1, 0.2]], "references": [[2]]}),
    (recall_from_ranks, {"ranks": [1.5]}),
    (recall, {"predictions": [[0.9, 0.2]], "references": [[0]], "ranks": [2]}),
    (recall_from_ranks, {"predictions": [[0.9, 0.2]], "references": [[0]], "ranks": [2]}),
    (recall, {"ranks": [2]}),
    (recall, {"predictions": [[0.9, 0.2]]}),
    (recall, {}),
    (mrv, {"ranks": [[1, 2], [1]]}),
):
    try:
        metric.compute(**inputs)
    except ValueError as error:
        errors.append(str(error))
json.dump({
    "errors": errors,
    "scores": recall.compute(
        predictions=[[0.9, 0.2, 0.4], [0.3, 0.1, 0.5]], references=[[0], [0, 1]], k=[1, 2]
    ),
    "default": recall.compute(predictions=[[0.25, 0.25 + 1e-12]], references=[[0]]),
    "ranks": recall_from_ranks.compute(ranks=[1, 2], k=1),
    "mrv": mrv.compute(ranks=[[1, 1, 1, 1], [1, 7, 1, 7]]),
}, sys.stdout)
"""


@pytest.mark.slow
def test_evaluate_loads_them_offline_from_another_folder(tmp_path):
    """In a fresh process, with caches of its own: nothing may come from this one's `sys.path` or a former load."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PYTHONPATH"))}
    environment |= {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "HF_EVALUATE_OFFLINE": "1"}
    command = [sys.executable, "-c", USE_FROM_ELSEWHERE, str(METRICS)]
    process = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    result = json.loads(process.stdout)
    errors = result.pop("errors")
    assert result == {
        "scores": {"recall@1": 50.0, "recall@2": 100.0},
        "default": {"recall@1": 0.0, "recall@5": 100.0, "recall@10": 100.0},
        "ranks": {"recall@1": 50.0},
        "mrv": {"std": 1.5, "variance": 4.5},
    }
    messages = [
        "positive 2 is not one of",
        "not a whole number",
        "got predictions and references and ranks, and this configuration takes predictions and references alone",
        "got predictions and references and ranks, and this configuration takes ranks alone",
        "got ranks, and this configuration takes predictions and references alone",
        "got predictions, and this configuration takes predictions and references alone",
        "make sure that you call `add` or `add_batch`",
        "row 1 has 1",
    ]
    for error, message in zip(errors, messages, strict=True):
        assert message in error
