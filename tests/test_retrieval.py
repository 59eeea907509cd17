"""Two-stage retrieval against a loop that scores one pair at a time, and the results made of its ranks."""

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from data_scripts.rows import row_features
from retrieval_ccrk import CCRKRetriever, evaluate_retrieval

WORDS = "star circle square red blue green small large left right above below".split()


def make_rows(captions_per_row: list[list[int]], languages=("en",), ids=None) -> datasets.Dataset:
    """Noise pictures with captions of the given numbers of words."""
    generator = np.random.default_rng(0)
    rows = []
    for row, lengths in enumerate(captions_per_row):
        pixels = np.random.default_rng((ids or range(99))[row]).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        captions = {lang: [" ".join(generator.choice(WORDS, n)) for n in lengths] for lang in languages}
        image_id = str((ids or range(99))[row])
        rows.append({"image": Image.fromarray(pixels), "image_id": image_id, "captions": captions})
    return datasets.Dataset.from_list(rows, features=row_features(languages))


def naive_ranks(model, processor, rows, language: str, k_test: int) -> tuple[list[int], list[int]]:
    """IR and TR ranks by the protocol, one pair at a time: re-scored candidates first, the others by cosine."""
    rows = [row for row in rows if row["captions"][language]]
    pixels = [processor(images=row["image"])["pixel_values"] for row in rows]
    captions = [(i, processor(text=[text])) for i, row in enumerate(rows) for text in row["captions"][language]]
    ids = [row["image_id"] for row in rows]
    with torch.no_grad():
        images = [model.ccrk(pixel_values=p) for p in pixels]
        texts = [model.ccrk(**inputs) for _, inputs in captions]
        cosine = np.array([[float(i.image_embeds[0] @ t.text_embeds[0]) for t in texts] for i in images])
        match = np.array(
            [
                [
                    float(model.match(i.image_states, t.text_states, inputs["attention_mask"])[0, 1])
                    for t, (_, inputs) in zip(texts, captions, strict=True)
                ]
                for i in images
            ]
        )

    def rank(cosines, matches, positives) -> int:
        candidates = np.argsort(-cosines, kind="stable")
        first = sorted(candidates[:k_test], key=lambda c: -matches[c])
        order = [*first, *candidates[k_test:]]
        return 1 + min(order.index(p) - sum(q in positives for q in order[: order.index(p)]) for p in positives)

    ir = [
        rank(cosine[:, c], match[:, c], [i for i in range(len(ids)) if ids[i] == ids[owner]])
        for c, (owner, _) in enumerate(captions)
    ]
    tr = []
    for i in range(len(ids)):
        positives = [c for c, (owner, _) in enumerate(captions) if ids[owner] == ids[i]]
        if positives:
            tr.append(rank(cosine[i], match[i], positives))
    return ir, tr


@pytest.fixture
def spread_model(tiny_model):
    """Untrained embeddings all point the same way; larger weights make cosines and match logits differ."""
    with torch.no_grad():
        for parameter in tiny_model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8)
    return tiny_model.eval()


@pytest.mark.parametrize(
    ("captions", "ids", "k_test"),
    [
        ([[4], [9], [2], [6], [3]], None, 2),
        ([[4, 9], [2], [6, 1, 3], [], [5]], None, 2),
        ([[4, 9], [2], [6, 1], [5, 3]], [0, 1, 0, 2], 2),
        ([[4], [9], [2]], None, 0),
        ([[4], [9], [2]], None, 128),
        ([[4, 2], [3]], None, 1),
        ([[7]], None, 3),
    ],
    ids=["one caption", "several captions", "same image twice", "cosine alone", "all", "best only", "one image"],
)
def test_ranks_equal_the_naive_ones(spread_model, processor, captions, ids, k_test):
    rows = make_rows(captions, ids=ids)
    result = evaluate_retrieval(CCRKRetriever(spread_model, processor, k_test), rows, ["en"], batch_size=2)
    ir, tr = naive_ranks(spread_model, processor, list(rows), "en", k_test)
    assert result.ranks["en"]["IR"].tolist() == ir
    assert result.ranks["en"]["TR"].tolist() == tr


def test_scores_do_not_depend_on_the_batch(spread_model, processor):
    rows = make_rows([[4], [9], [2], [6], [3]], languages=("en", "de"))
    first = evaluate_retrieval(CCRKRetriever(spread_model, processor, 3), rows, ["en", "de"], batch_size=1)
    second = evaluate_retrieval(CCRKRetriever(spread_model, processor, 3), rows, ["en", "de"], batch_size=5)
    assert first.recall() == second.recall() and first.mrv() == second.mrv()


def test_recall_and_mrv_of_ranks_by_hand(spread_model, processor):
    rows = make_rows([[4], [3], [5]], languages=("en", "de"))
    result = evaluate_retrieval(CCRKRetriever(spread_model, processor, 2), rows, ["en", "de"])
    for language, ir, tr in (("en", [1, 2, 12], [1, 1, 6]), ("de", [1, 4, 12], [3, 1, 6])):
        result.ranks[language]["IR"][:], result.ranks[language]["TR"][:] = ir, tr
    recall = result.recall()
    assert recall["en"]["IR@1"] == pytest.approx(100 / 3) and recall["en"]["IR@10"] == pytest.approx(200 / 3)
    assert recall["de"]["TR@5"] == pytest.approx(200 / 3)
    assert recall["en"]["mean"] == pytest.approx(np.mean([list(recall["en"].values())[:6]]))
    mrv = result.mrv()
    assert mrv["languages"] == ["en", "de"]
    assert mrv["IR"] == pytest.approx({"std": 1 / 3, "variance": 1 / 3})
    assert mrv["TR"] == pytest.approx({"std": 1 / 3, "variance": 1 / 3})
    assert mrv["mean"] == pytest.approx({"std": 1 / 3, "variance": 1 / 3})
    table = result.rank_table()
    assert list(table) == ["instance", "language", "direction", "rank"] and len(table) == 12
    assert table.loc[1].tolist() == ["1#0", "en", "IR", 2]


def test_mrv_takes_only_instances_that_every_language_has(spread_model, processor):
    rows = make_rows([[4], [3], [5]], languages=("en", "de"))
    lacking = [dict(row) for row in rows]
    lacking[1]["captions"] = {"en": ["a red star"], "de": []}
    rows = datasets.Dataset.from_list(lacking, features=rows.features)
    result = evaluate_retrieval(CCRKRetriever(spread_model, processor, 2), rows, ["en", "de"])
    assert result.ranks["de"]["TR"].index.tolist() == ["0", "2"]
    shared = np.stack([result.ranks["en"]["TR"].to_numpy()[[0, 2]], result.ranks["de"]["TR"].to_numpy()], axis=1)
    assert result.mrv()["TR"]["std"] == pytest.approx(shared.std(axis=1).mean())
    assert evaluate_retrieval(CCRKRetriever(spread_model, processor, 2), rows, ["en"]).mrv() is None


def test_empty_captions_are_left_out_and_counted(spread_model, processor, caplog):
    rows = [dict(row) for row in make_rows([[4], [3]])]
    rows[0]["captions"] = {"en": ["a red star", "?!"]}
    rows = datasets.Dataset.from_list(rows, features=row_features(["en"]))
    result = evaluate_retrieval(CCRKRetriever(spread_model, processor, 2), rows, ["en"])
    assert result.left_out == {"en": 1} and len(result.ranks["en"]["IR"]) == 2
    assert "en: 1 captions left out, empty after normalisation" in caplog.text


def test_a_language_without_captions(spread_model, processor):
    rows = make_rows([[], []])
    with pytest.raises(ValueError, match="no usable caption in 'en'"):
        evaluate_retrieval(CCRKRetriever(spread_model, processor), rows, ["en"])
