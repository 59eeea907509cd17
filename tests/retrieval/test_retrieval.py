"""Two-stage retrieval against a loop that scores one pair at a time, and the results made of its ranks."""

import subprocess
import sys

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT
from tiny import make_rows, make_spread_model

from ccrk import encoding
from ccrk.encoders import CCRKEncoder
from ccrk.retrieval import evaluate, ranking
from ccrk.retrieval.evaluate import evaluate_retrieval
from ccrk.retrieval.ranking import find_candidates
from data_scripts.rows import row_features
from metrics.recall_at_k.recall_at_k import best_ranks


def naive_ranks(model, processor, rows, language: str, k_test: int) -> tuple[list[int], list[int]]:
    """IR and TR ranks by the protocol, one pair at a time: re-scored candidates first, the others by cosine."""
    rows = list(rows)
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
def spread_model(processor):
    return make_spread_model(len(processor.tokenizer))


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks so small that the tests' few rows fill several of each kind."""
    monkeypatch.setattr(evaluate, "CAPTIONS_PER_BLOCK", 3)
    monkeypatch.setattr(evaluate, "IMAGES_PER_BLOCK", 2)
    monkeypatch.setattr(encoding, "TOKENS_PER_BATCH", 20)
    monkeypatch.setattr(ranking, "_SIMILARITIES_PER_CHUNK", 9)


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
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_ranks_equal_the_naive_ones(processor, small_blocks, captions, ids, k_test, layers, attention):
    model = make_spread_model(len(processor.tokenizer), num_fusion_layers=layers)
    model.set_attn_implementation(attention)
    rows = make_rows(captions, ids=ids)
    result = evaluate_retrieval(CCRKEncoder(model, processor, k_test), rows, ["en"], batch_size=3)
    ir, tr = naive_ranks(model, processor, list(rows), "en", k_test)
    assert result.ranks["en"]["IR"].tolist() == ir
    assert result.ranks["en"]["TR"].tolist() == tr


def test_scores_do_not_depend_on_the_batch(spread_model, processor):
    rows = make_rows([[4], [9], [2], [6], [3]], languages=("en", "de"))
    first = evaluate_retrieval(CCRKEncoder(spread_model, processor, 3), rows, ["en", "de"], batch_size=1)
    second = evaluate_retrieval(CCRKEncoder(spread_model, processor, 3), rows, ["en", "de"], batch_size=5)
    assert first.recall() == second.recall() and first.mrv() == second.mrv()


def test_recall_and_mrv_of_ranks_by_hand(spread_model, processor):
    rows = make_rows([[4], [3], [5]], languages=("en", "de"))
    result = evaluate_retrieval(CCRKEncoder(spread_model, processor, 2), rows, ["en", "de"])
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
    assert list(table) == ["image", "repeat", "caption", "language", "direction", "rank"] and len(table) == 12
    assert table.loc[1].tolist() == ["1", 0, 0, "en", "IR", 2]
    assert table["caption"][table["direction"] == "TR"].isna().all()


def test_names_that_look_like_others_stay_apart(spread_model, processor):
    ids = ["x", "d/x", "x~2", "x", "x#0"]
    rows = make_rows([[4], [3], [5], [6], [2]])
    rows = rows.remove_columns("image_id").add_column("image_id", ids).cast(rows.features)
    table = evaluate_retrieval(CCRKEncoder(spread_model, processor, 2), rows, ["en"]).rank_table()
    found = table[table["direction"] == "IR"][["image", "repeat", "caption"]]
    assert found.values.tolist() == [["x", 0, 0], ["d/x", 0, 0], ["x~2", 0, 0], ["x", 1, 0], ["x#0", 0, 0]]


def test_mrv_takes_only_instances_that_every_language_has(spread_model, processor):
    rows = make_rows([[4], [3], [5]], languages=("en", "de"))
    lacking = [dict(row) for row in rows]
    lacking[1]["captions"] = {"en": ["a red star"], "de": []}
    rows = datasets.Dataset.from_list(lacking, features=rows.features)
    result = evaluate_retrieval(CCRKEncoder(spread_model, processor, 2), rows, ["en", "de"])
    assert result.ranks["de"]["TR"].index.tolist() == [("0", 0), ("2", 0)]
    shared = np.stack([result.ranks["en"]["TR"].to_numpy()[[0, 2]], result.ranks["de"]["TR"].to_numpy()], axis=1)
    assert result.mrv()["TR"]["std"] == pytest.approx(shared.std(axis=1).mean())
    assert evaluate_retrieval(CCRKEncoder(spread_model, processor, 2), rows, ["en"]).mrv() is None


def test_empty_captions_are_left_out_and_counted(spread_model, processor, caplog):
    rows = [dict(row) for row in make_rows([[4], [3]])]
    rows[0]["captions"] = {"en": ["a red star", "?!"]}
    rows = datasets.Dataset.from_list(rows, features=row_features(["en"]))
    result = evaluate_retrieval(CCRKEncoder(spread_model, processor, 2), rows, ["en"])
    assert result.left_out == {"en": 1} and len(result.ranks["en"]["IR"]) == 2
    assert "en: 1 captions left out, empty after normalisation" in caplog.text


def test_a_language_without_captions(spread_model, processor):
    rows = make_rows([[], []])
    with pytest.raises(ValueError, match="no usable caption in 'en'"):
        evaluate_retrieval(CCRKEncoder(spread_model, processor), rows, ["en"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_scores_are_those_of_match(processor, dtype):
    model = make_spread_model(len(processor.tokenizer), num_fusion_layers=3).to(dtype)
    inputs = processor(text=["a star", "a small red star above a large blue circle", "red"])
    mask = inputs["attention_mask"]
    with torch.no_grad():
        outputs = model.ccrk(**inputs, pixel_values=torch.randn(2, 3, 64, 64, dtype=dtype))
        expected = model.match(
            outputs.image_states, outputs.text_states, mask, torch.tensor([0, 0, 1]), torch.tensor([1, 2, 0])
        )
        fusion_encoder = model.ccrk.fusion_encoder
        tokens = fusion_encoder.prepare_captions(outputs.text_states, mask)
        packed = model.match_packed(
            fusion_encoder.prepare_images(outputs.image_states),
            torch.cat([tokens[caption][mask[caption].bool()] for caption in (1, 2, 0)]),
            mask.sum(dim=1)[[1, 2, 0]],
            torch.tensor([2, 1]),
        )
    assert packed.dtype == torch.float32
    torch.testing.assert_close(packed, expected.float(), atol=1e-5 if dtype == torch.float32 else 0.05, rtol=0.01)


def test_each_pair_is_scored_once(spread_model, processor):
    rows = make_rows([[4], [9, 2], [2], [6, 7], [3]])
    encoder = CCRKEncoder(spread_model, processor, 3)
    scored = []
    score_pairs = encoder.score_pairs
    encoder.score_pairs = lambda states, captions, pairs: (
        scored.extend(map(tuple, pairs.tolist())),
        score_pairs(states, captions, pairs),
    )[1]
    result = evaluate_retrieval(encoder, rows, ["en"], folds={"en": 3})
    assert len(scored) == len(set(scored)) <= 5 * 7
    assert result.fold_ranks["en"]["TR"].index.tolist() == [(name, 0) for name in "01234"]


def test_folds_are_searched_by_themselves(spread_model, processor):
    rows = make_rows([[4], [9, 2], [2], [], [6], [3]])
    encoder = CCRKEncoder(spread_model, processor, 1)
    result = evaluate_retrieval(encoder, rows, ["en"], folds={"en": 3})
    for fold in ([0, 1], [2, 3], [4, 5]):
        alone = evaluate_retrieval(encoder, rows.select(fold), ["en"])
        for direction in ("IR", "TR"):
            expected = alone.ranks["en"][direction]
            pd.testing.assert_series_equal(result.fold_ranks["en"][direction][expected.index], expected)
    result = evaluate_retrieval(encoder, rows, ["en"], folds={"en": 9})
    assert (result.fold_ranks["en"]["TR"] == 1).all() and len(result.fold_ranks["en"]["TR"]) == 5, "one image a fold"


def test_ranks_never_need_all_similarities(monkeypatch):
    monkeypatch.setattr(ranking, "_SIMILARITIES_PER_CHUNK", 50)
    generator = torch.Generator().manual_seed(0)
    whole = torch.randint(0, 6, (40, 20), generator=generator).float()  # many ties
    shapes = []

    def similarity(rows):
        shapes.append(whole[rows].shape)
        return whole[rows]

    query_ids, candidate_ids = np.arange(40) % 7, np.arange(20) % 7
    found = find_candidates(similarity, query_ids, candidate_ids, k=4)
    assert max(rows * columns for rows, columns in shapes) <= 50 and len(shapes) == 20
    positives = [np.flatnonzero(candidate_ids == query) for query in query_ids]
    assert found.ranks.tolist() == best_ranks(whole.numpy(), positives).tolist()
    assert (np.take_along_axis(whole.numpy(), found.top, 1) == np.sort(whole.numpy(), axis=1)[:, :-5:-1]).all()


def test_an_interrupted_evaluation_goes_on_from_what_it_encoded(spread_model, processor, tmp_path, small_blocks):
    rows = make_rows([[4], [9, 2], [2], [6], [3]], languages=("en", "de"))
    expected = evaluate_retrieval(CCRKEncoder(spread_model, processor, 2), rows, ["en", "de"], batch_size=2)
    encoder = CCRKEncoder(spread_model, processor, 2)
    encoded = []

    def counted(encode):
        def call(batch):
            encoded.append(encode.__name__)
            if len(encoded) == 5:
                raise KeyboardInterrupt
            return encode(batch)

        return call

    encoder.encode_images = counted(encoder.encode_images)
    encoder.encode_captions = counted(encoder.encode_captions)
    with pytest.raises(KeyboardInterrupt):
        evaluate_retrieval(encoder, rows, ["en", "de"], batch_size=2, cache_dir=tmp_path)
    result = evaluate_retrieval(encoder, rows, ["en", "de"], batch_size=2, cache_dir=tmp_path)
    # 3 blocks of images, and 2 blocks of captions in each of two languages; one of them was begun twice.
    assert encoded == ["encode_images"] * 3 + ["encode_captions"] * 5
    pd.testing.assert_frame_equal(result.rank_table(), expected.rank_table())


def test_the_fingerprint_changes_with_what_decides_the_states(spread_model, processor):
    first = CCRKEncoder(spread_model, processor, 2).fingerprint
    assert first == CCRKEncoder(spread_model, processor, 9).fingerprint
    assert first != CCRKEncoder(spread_model, processor, 0).fingerprint
    with torch.no_grad():
        spread_model.ccrk.text_projection.bias[0] += 1
    assert first != CCRKEncoder(spread_model, processor, 2).fingerprint


def test_a_missing_picture(spread_model, processor, tmp_path):
    rows = [{"image": str(tmp_path / "gone.jpg"), "image_id": "a", "captions": {"en": ["a star"]}}]
    rows = datasets.Dataset.from_list(rows, features=row_features(["en"]))
    with pytest.raises(ValueError, match=r"row 0: image file missing: .*gone\.jpg; put the picture back"):
        evaluate_retrieval(CCRKEncoder(spread_model, processor), rows, ["en"])


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ("ccrk.vision_projection", "row 0: the embedding of its picture is NaN; look for the overflow"),
        ("ccrk.text_projection", "the embedding of '.*' is NaN; look for the overflow"),
        ("matching_head.3", "the match logit of row 0 and caption 0 is NaN; look for the overflow"),
    ],
)
def test_nan(spread_model, processor, module, message):
    spread_model.get_submodule(module).bias.data.fill_(torch.nan)
    with pytest.raises(ValueError, match=message):
        evaluate_retrieval(CCRKEncoder(spread_model, processor, 2), make_rows([[4], [3]]), ["en"])


LARGE = """
import resource, sys, time
import numpy as np, pandas as pd, torch
from torch.nn import functional as F
from ccrk.retrieval.instances import UsableCaptions
from ccrk.retrieval.ranking import by_cosine, rank_language
images, per_image, k_test = map(int, sys.argv[1:])
generator = torch.Generator().manual_seed(0)
image_embeds = F.normalize(torch.randn(images, 16, generator=generator), dim=1)
rows = np.arange(images).repeat(per_image)
caption_embeds = F.normalize(image_embeds[rows] + 0.3 * torch.randn(len(rows), 16, generator=generator), dim=1)
texts, places, ids = [""] * len(rows), np.tile(np.arange(per_image), images), np.arange(images)
index = pd.MultiIndex.from_arrays([ids.astype(str), 0 * ids], names=["image", "repeat"])
captions = UsableCaptions(texts, rows, ids, places, ids, index, 0)
scored = lambda pairs: -np.arange(len(pairs), dtype=np.float32)
started = time.perf_counter()
score = scored if k_test else None
ranks, _ = rank_language(captions, by_cosine(image_embeds, caption_embeds), k_test, score)
seconds = time.perf_counter() - started
print(len(ranks["TR"]), len(ranks["IR"]), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, seconds)
"""


@pytest.mark.slow
def test_memory_of_a_ranking_of_coco_size():
    """5,000 images, 25,000 captions, 256 candidates each, in a process of its own: at most 3 GiB at any time."""
    command = [sys.executable, "-c", LARGE, "5000", "5", "256"]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stderr[-2000:]
    images, captions, gib, _ = map(float, finished.stdout.split())
    assert (images, captions) == (5000, 25000) and gib < 3
