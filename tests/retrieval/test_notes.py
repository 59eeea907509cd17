"""What a reader must know before the figures: chance, small pools, copies, captions that are cut."""

import itertools
import json
import re
from math import comb

import datasets
import numpy as np
import pytest
import torch
from test_evaluation import run
from tiny import make_rows, make_spread_model

import data_scripts
import eval_mrv
from ccrk.encoders import CCRKEncoder
from ccrk.retrieval.chance import chance_recall, hit_probability
from ccrk.retrieval.evaluate import count_cut_captions, evaluate_retrieval
from ccrk.retrieval.images import EvaluatedImages, have_copy, number_images
from ccrk.retrieval.instances import usable_captions
from ccrk.retrieval.ranking import by_cosine, rank_language
from ccrk.retrieval.results import format_table, recall_table


def named(rows: datasets.Dataset, names: list[str]) -> datasets.Dataset:
    return rows.remove_columns("image_id").add_column("image_id", names).select_columns(list(rows.features))


def use(rows, monkeypatch) -> None:
    monkeypatch.setattr(data_scripts, "load", lambda task, **_: rows)


def arrays_of(path, images: list[int], captions: list[int]):
    """Embeddings that are equal for equal numbers, and orthogonal for others."""
    unit = np.eye(max(images) + 1)
    np.savez(path, images=unit[images], captions_en=unit[captions], captions_de=unit[captions])
    return path


class TestChance:
    @pytest.mark.parametrize(("n", "m"), [(1, 1), (4, 1), (5, 2), (6, 4)])
    @pytest.mark.parametrize("k", [1, 2, 5, 10])
    def test_it_counts_all_orders(self, n, m, k):
        orders = list(itertools.permutations(range(n)))
        share = np.mean([min(order[: min(k, n)]) < m for order in orders])
        assert hit_probability(n, np.array([m]), k)[0] == pytest.approx(share)

    def test_of_several_captions_and_rows_of_one_image(self):
        rows = make_rows([[4, 9], [2], [6, 1, 3], [], [5]], ids=[0, 1, 0, 2, 3])  # 5 rows, 4 images; 7 captions
        found, in_folds = chance_recall(usable_captions(rows, "en"))
        assert not in_folds
        for k in (1, 5, 10):
            ir = [1 - comb(5 - m, k) / comb(5, k) if k <= 5 else 1.0 for m in (2, 2, 1, 2, 2, 2, 1)]
            tr = [1 - comb(7 - m, k) / comb(7, k) if k <= 7 else 1.0 for m in (5, 1, 5, 1)]
            assert found[f"IR@{k}"] == pytest.approx(100 * np.mean(ir))
            assert found[f"TR@{k}"] == pytest.approx(100 * np.mean(tr))
        assert found["mean"] == pytest.approx(np.mean([value for name, value in found.items() if name != "mean"]))

    def test_a_random_model_has_it(self):
        rows, drawn = make_rows([[2, 2], [2], [2, 2, 2], [2]] * 3, ids=[0, 1, 2, 3, 4, 5, 0, 6, 7, 8, 9, 10]), []
        texts = usable_captions(rows, "en")
        for seed in range(300):
            torch.manual_seed(seed)
            ranks, _ = rank_language(texts, by_cosine(torch.randn(12, 8), torch.randn(len(texts.rows), 8)))
            drawn.append(list(recall_table({"en": ranks})["en"].values()))
        np.testing.assert_allclose(np.mean(drawn, axis=0), list(chance_recall(texts)[0].values()), atol=2.5)

    def test_folds_have_pools_of_their_own(self, processor, tmp_path, monkeypatch):
        rows = make_rows([[3]] * 12)
        encoder = CCRKEncoder(make_spread_model(len(processor.tokenizer)), processor, 0)
        result = evaluate_retrieval(encoder, rows, ["en"], folds={"en": 3})
        assert result.chance["en"]["IR@1"] == pytest.approx(100 / 12)
        assert result.fold_chance["en"] == pytest.approx(
            {f"{direction}@{k}": min(100, 25 * k) for direction in ("IR", "TR") for k in (1, 5, 10)} | {"mean": 75}
        )

    @pytest.mark.slow
    def test_it_is_in_the_table_and_small_pools_are_told(self, tmp_path, monkeypatch, capsys):
        rows = make_rows([[3]] * 14, languages=("en", "de"))
        use(rows, monkeypatch)
        arrays = arrays_of(tmp_path / "a.npz", list(range(14)), list(range(14)))
        results = run(tmp_path / "out", "--model", arrays, "--task", "shapes")
        assert results["chance"]["de"]["IR@10"] == results["chance"]["en"]["TR@10"] == pytest.approx(100 * 10 / 14)
        table = capsys.readouterr().out
        assert "warning: Only 14 images: R@10 is 71 % by chance; evaluate 100 or more\n" in table
        assert re.search(r"^chance +7\.1 +35\.7 +71\.4 +7\.1 +35\.7 +71\.4 +38\.1$", table, re.MULTILINE)
        report = (tmp_path / "out" / "report.html").read_text()
        assert "Only 14 images: R@10 is 71 % by chance" in report and "<td>chance</td><td>7.1</td>" in report
        again = arrays_of(tmp_path / "b.npz", list(range(14)), list(range(14)))
        two = tmp_path / "two"
        eval_mrv.main(["--model", str(arrays), str(again), "--task", "shapes", "--output_dir", str(two)])
        for name in ("models.md", "models.html"):
            text = (two / name).read_text()
            assert "Only 14 images" in text and "by chance" in text and "38.1" in text

    def test_enough_images_are_no_warning(self, tmp_path, monkeypatch, capsys):
        rows = make_rows([[1]], languages=("en", "de"))
        rows = datasets.concatenate_datasets([rows] * 100)
        use(named(rows, [str(number) for number in range(100)]), monkeypatch)
        arrays = arrays_of(tmp_path / "a.npz", list(range(100)), list(range(100)))
        run(tmp_path / "out", "--model", arrays, "--task", "shapes", "--any_copy")
        assert "R@10 is" not in capsys.readouterr().out


class TestCopies:
    IDS = (0, 1, 1, 2)  # the same image twice, under two names

    @pytest.fixture
    def rows(self, monkeypatch):
        rows = make_rows([[4], [3], [5], [2]], languages=("en", "de"), ids=list(self.IDS))
        rows = named(rows, ["a", "b", "a copy of b", "c"])
        use(rows, monkeypatch)
        return rows

    @pytest.mark.slow
    def test_they_are_told_and_any_may_count(self, rows, tmp_path, monkeypatch, capsys):
        arrays = arrays_of(tmp_path / "a.npz", list(self.IDS), list(self.IDS))
        results = run(tmp_path / "out", "--model", arrays, "--task", "shapes")
        assert results["equal_images"] == 2 and results["recall"]["en"]["IR@1"] == 50  # ties count against it
        note = "2 of 4 images have a copy of equal contents under another name, and "
        assert f"warning: {note}only one name counts as right; --any_copy counts any" in capsys.readouterr().out
        assert note in (tmp_path / "out" / "report.html").read_text()

        any_copy = run(tmp_path / "any", "--model", arrays, "--task", "shapes", "--any_copy")
        assert any_copy["equal_images"] == 2 and any_copy["any_copy"] is True
        assert f"{note}any copy counts as right" in capsys.readouterr().out
        use(named(rows, ["a", "b", "b", "c"]), monkeypatch)
        one_name = run(tmp_path / "one", "--model", arrays, "--task", "shapes")
        assert one_name["equal_images"] == 0 and one_name["recall"] == any_copy["recall"]
        assert one_name["recall"]["en"]["IR@1"] == 100 and one_name["chance"] == any_copy["chance"]

    def test_any_copy_with_a_model_that_re_scores(self, rows, processor, tmp_path):
        encoder = CCRKEncoder(make_spread_model(len(processor.tokenizer)), processor, 2)
        numbers = EvaluatedImages.of(rows, any_copy=True).numbers
        found = evaluate_retrieval(encoder, rows, ["en"], image_numbers=numbers)
        expected = evaluate_retrieval(encoder, named(rows, ["a", "b", "b", "c"]), ["en"])
        for direction in ("IR", "TR"):
            assert found.ranks["en"][direction].tolist() == expected.ranks["en"][direction].tolist()

    def test_copies_in_galleries_of_different_languages_never_meet(self, rows):
        def one_language(row, place):
            return {"gallery": ["de" if place == 1 else "en"]}

        apart = rows.map(one_language, with_indices=True)
        assert EvaluatedImages.of(rows, False).with_copy == 2 and EvaluatedImages.of(apart, False).with_copy == 0

    def test_by_hand(self):
        ids, digests = np.array(list("aabcd")), np.array([1, 2, 2, 0, 0], np.uint64)
        assert have_copy(ids, digests).tolist() == [False, True, True, False, False]
        assert number_images(ids, digests).tolist() == [0, 0, 0, 3, 4]
        chain = np.array([1, 2, 2, 3, 3, 1], np.uint64), np.array(list("abccde"))
        assert number_images(chain[1], chain[0]).tolist() == [0, 1, 1, 1, 1, 0]


class TestCutCaptions:
    @pytest.fixture
    def encoder(self, processor):
        return CCRKEncoder(make_spread_model(len(processor.tokenizer)), processor, 0)

    def test_by_words_and_by_tokens(self, encoder):
        short, words = "a red star", " ".join(["star"] * 41)
        no_spaces, rare = "红色的星" * 20, " ".join(["zyxwvutsrq"] * 20)
        assert encoder.are_cut([short, words, no_spaces, rare]) == [False, True, True, True]
        assert encoder.are_cut([" ".join(["star"] * 38), "star, " * 38, "!" * 90 + "star"]) == [False] * 3

    def test_they_are_counted_by_language(self, encoder, caplog):
        rows = make_rows([[60], [3]], languages=("en", "de"))
        assert count_cut_captions(encoder, rows, ["en", "de"]) == {"en": 1, "de": 1}
        assert "Captions longer than the model reads are cut: en 1 of 2, de 1 of 2; shorten them" in caplog.text
        behind = count_cut_captions(encoder, rows, ["en"], "star " * 39 + "{}")
        assert behind == {"en": 2}

    @pytest.mark.slow
    def test_they_are_told_before_the_figures(self, processor, tmp_path, monkeypatch, capsys):
        rows = make_rows([[60], [3], [4]], languages=("en", "de"))
        use(rows, monkeypatch)
        for part in (make_spread_model(len(processor.tokenizer)), processor):
            part.save_pretrained(tmp_path / "model")
        results = run(tmp_path / "out", "--model", tmp_path / "model", "--task", "shapes", "--no_rerank")
        assert results["cut_captions"] == {"en": 1, "de": 1}
        note = "Captions longer than the model reads are cut: en 1 of 3, de 1 of 3; shorten them"
        table = capsys.readouterr().out
        assert table.index(f"warning: {note}") < table.index("IR@1")
        assert note in (tmp_path / "out" / "report.html").read_text()
        assert json.loads((tmp_path / "out" / "results.json").read_text()) == results
        assert format_table(results) in table
