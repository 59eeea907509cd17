"""MTEB's layout: which pairs are relevant, ids that are equal as numbers, and what no pair names."""

import base64
import json

import pytest
from builders import jpeg, reports, write_json_lines
from tiny import make_spread_model

import data_scripts
import eval_mrv
from ccrk.encoders import CCRKEncoder
from ccrk.retrieval.evaluate import evaluate_retrieval


def image(number: int) -> dict:
    return {"id": number, "image": base64.b64encode(jpeg(4 * number)).decode()}


def text(key, caption: str) -> dict:
    return {"id": key, "text": caption}


def write_task(folder, corpus, queries, pairs, language="en-"):
    """Pairs are of corpus, query and score."""
    write_json_lines(folder / f"{language}corpus/test.jsonl", corpus)
    write_json_lines(folder / f"{language}queries/test.jsonl", queries)
    pairs = [{"query-id": query, "corpus-id": document} | score for document, query, score in pairs]
    write_json_lines(folder / f"{language}qrels/test.jsonl", pairs)
    return folder


def load(folder, **options):
    options = {"split": "test", "cache_dir": str(folder.parent / "cache"), "max_bad_fraction": 1.0} | options
    return data_scripts.load(str(folder), **options)


@pytest.mark.parametrize(
    ("score", "is_relevant"),
    [
        *((score, True) for score in (1, "1", 0.5, "2.0", True, 3)),
        *((score, False) for score in (0, "0", "0.0", -1, "-1", False)),
        *((score, None) for score in (None, "nan", float("nan"), "yes", [1])),
    ],
)
def test_a_score_above_0_is_relevant(score, is_relevant, tmp_path, caplog):
    corpus, queries = [image(0), image(1)], [text("a", "a dog"), text("b", "a cat")]
    folder = write_task(tmp_path / "x", corpus, queries, [(0, "a", {"score": score}), (1, "b", {})])
    found = load(folder)["captions"][:]
    assert found == [{"en": ["a dog"]}] * (is_relevant is True) + [{"en": ["a cat"]}]
    assert ("1  score is not a number, first:" in reports(caplog)) == (is_relevant is None)


def test_ids_are_compared_as_numbers(tmp_path):
    corpus = [image(0) | {"id": "007"}, image(1) | {"id": 8.0}, image(2) | {"id": " 9 "}, image(3) | {"id": "x1"}]
    queries = [text(number, f"caption {number}") for number in range(4)]
    pairs = [(7, "0", {}), ("8", 1.0, {}), (9.0, "2.0", {}), ("x1", 3, {})]
    found = load(write_task(tmp_path / "x", corpus, queries, pairs))
    assert found["image_id"][:] == ["7", "8", "9", "x1"]
    assert found["captions"][:] == [{"en": [f"caption {number}"]} for number in range(4)]


def test_a_further_entry_of_an_id_is_counted(tmp_path, caplog):
    corpus = [image(0), image(1) | {"id": "0"}, image(2) | {"id": None}]
    queries = [text("a", "first"), text("a", "second")]
    found = load(write_task(tmp_path / "x", corpus, queries, [(0, "a", {})]))
    assert found["captions"][:] == [{"en": ["first"]}]
    assert "entry without an id" in reports(caplog) and "id of another entry; the first is kept" in reports(caplog)


class TestGallery:
    def test_every_image_and_caption_is_ranked_against(self, tmp_path):
        """60 images and one query, which is searched in all of them."""
        corpus = [image(number) for number in range(60)]
        queries = [text("a", "a dog"), text("b", "of nothing")]
        folder = write_task(tmp_path / "x", corpus, queries, [(7, "a", {"score": 1})])
        assert len(load(folder)) == 1, "to train on"
        rows = load(folder, gallery=True)
        assert len(rows) == 61 and rows["gallery"][:] == [["en"]] * 60 + [[]]
        assert [row["image_id"] for row in rows if row["captions"]["en"] == ["a dog"]] == ["7"]
        assert rows[60]["image"] is None and rows[60]["captions"] == {"en": ["of nothing"]}

    @pytest.mark.parametrize("k_test", [0, 3])
    def test_ranks_of_one_query(self, processor, tmp_path, k_test):
        """As if the others had captions that nobody asks for."""
        corpus, encoder = [image(number) for number in range(12)], None
        queries = [text(number, f"a number of {'x' * number} dogs") for number in range(12)]
        every_pair = [(number, number, {}) for number in range(12)]
        encoder = CCRKEncoder(make_spread_model(len(processor.tokenizer)), processor, k_test)
        whole = evaluate_retrieval(encoder, load(write_task(tmp_path / "x", corpus, queries, every_pair)), ["en"])
        one = load(write_task(tmp_path / "y", corpus, queries, every_pair[7:8]), gallery=True)
        found = evaluate_retrieval(encoder, one, ["en"])
        for direction in ("IR", "TR"):
            ranks = found.ranks["en"][direction]
            assert ranks.tolist() == whole.ranks["en"][direction].loc[["7"]].tolist() and len(ranks) == 1
        assert found.chance["en"]["IR@1"] == found.chance["en"]["TR@1"] == pytest.approx(100 / 12)

    def test_languages_with_images_of_their_own(self, tmp_path):
        first = [image(number) for number in range(5)]
        folder = write_task(tmp_path / "x", first, [text("a", "a dog")], [(0, "a", {})])
        other = [image(number) for number in range(3, 9)]
        write_task(folder, other, [text("a", "ein Hund"), text("b", "nichts")], [(3, "a", {})], language="de-")
        rows = load(folder, gallery=True)
        of = {row["image_id"]: row["gallery"] for row in rows if row["image"] is not None}
        assert of == {str(n): ["en"] for n in range(3)} | {"3": ["de", "en"], "4": ["de", "en"]} | {
            str(n): ["de"] for n in range(5, 9)
        }

    @pytest.mark.slow
    def test_counts_and_the_report_say_it(self, processor, tmp_path, capsys):
        make_spread_model(len(processor.tokenizer)).save_pretrained(tmp_path / "model")
        processor.save_pretrained(tmp_path / "model")
        corpus = [image(number) for number in range(60)]
        queries = [text("a", "a dog"), text("b", "of nothing")]
        folder = write_task(tmp_path / "x", corpus, queries, [(7, "a", {"score": 1})])
        out = tmp_path / "out"
        arguments = ["--model", str(tmp_path / "model"), "--task", str(folder), "--no_rerank"]
        eval_mrv.main([*arguments, "--output_dir", str(out)])
        counts = json.loads((out / "results.json").read_text())["counts"]
        assert (counts["images"], counts["images_per_language"], counts["captions"]) == (60, {"en": 60}, {"en": 2})
        assert (counts["distractor_images"], counts["distractor_captions"]) == ({"en": 59}, {"en": 1})
        told = (
            "Ranked against as well: images without a caption (en 59 of 60) and captions without an image (en 1 of 2)"
        )
        assert told in capsys.readouterr().out and told in (out / "report.html").read_text()


def test_images_of_a_table_that_have_no_caption(tmp_path):
    for number in range(4):
        (tmp_path / "x").mkdir(exist_ok=True)
        (tmp_path / f"x/{number}.jpg").write_bytes(jpeg(40 * number))
    lines = [{"file_name": "0.jpg", "en": "a dog", "de": "ein Hund"}, {"file_name": "1.jpg", "de": "eine Katze"}]
    lines += [{"file_name": "2.jpg", "en": " "}, {"file_name": "3.jpg", "en": None}]
    write_json_lines(tmp_path / "x/metadata.jsonl", lines)
    assert load(tmp_path / "x")["image_id"][:] == ["0.jpg", "1.jpg"]
    rows = load(tmp_path / "x", gallery=True)
    assert rows["image_id"][:] == [f"{number}.jpg" for number in range(4)] and "gallery" not in rows.column_names
    assert len(load(tmp_path / "x", gallery=True, languages=["en"])) == 4
