"""One notion of a usable caption and of a language's name, and text files as people have them."""

import base64
import gzip
import json
import tracemalloc

import datasets
import pandas as pd
import pytest
from builders import jpeg, reports, write

import data_scripts
from ccrk.arguments import ModelArguments, read_yaml
from ccrk.build import build_processor, keep_usable_rows
from ccrk.convert import read_overrides
from ccrk.retrieval.instances import shared_ranks, usable_captions
from ccrk.training.collator import CCRKCollator
from data_scripts import captions, shards, text
from data_scripts.annotations import without_empty
from data_scripts.problems import Problems
from data_scripts.rows import row_features
from processing_ccrk import normalize_caption

BLANK = [
    "", " ", "\n\t\r", "\0", "\x7f\x85", "\xa0", "\xad", "\u034f", "\u0301", "\u061c", "\u115f\u1160", "\u180e",
    "\u200e\u200f", "\u2028\u2029", "\u2060", "\u2800", "\u3000", "\u3164", "\ufe0f", "\ufeff", "\uffa0", "\ufffc",
    "\u200b", "\U000e0020", "?!", ".\u200b.", "\u3000-\ufeff", "\u200b " * 50,
]  # fmt: skip
SHOWN = ["a", "7", "星", "ก็", "🙂", "♥️", "a\u200b", "\ufeffword", "%", "。", "\ue000", "\u200b " * 50 + "dog"]
NO_TEXT = [None, float("nan"), 3, True, ["a"], {"a": "b"}, "\ud800"]


class TestUsable:
    @pytest.mark.parametrize("max_words", [1, 40])
    def test_normalisation_leaves_something_that_shows_or_raises(self, max_words):
        for caption in BLANK:
            with pytest.raises(ValueError, match="empty after normalisation"):
                normalize_caption(caption, max_words)
        for caption in SHOWN:
            assert not set(normalize_caption(caption, max_words)) <= set("\u200b ")

    def test_what_shows_is_normalised_as_published(self):
        assert normalize_caption("\u200bA dog,\xa0 \u3000red\u200d!", 40) == "\u200ba dog red\u200d"

    @pytest.mark.slow
    def test_every_reader_counts_the_same(self, tmp_path, processor, caplog):
        """A caption is left out by all or by none: shards, annotations, training, evaluation and its tokenizer."""
        for caption in [*BLANK, *SHOWN, *NO_TEXT]:
            usable = caption in SHOWN
            assert captions.is_usable(caption) == usable, caption
            row = json.dumps({"caption": {"en": caption}, "image_path": "a.jpg"}).encode()
            problems = Problems("shards", 1.0, rows=1, quiet=True)
            write(tmp_path / "a.jpg", jpeg())
            assert bool(shards.check_line(row, ["en"], str(tmp_path), problems, "here")) == usable
            assert problems.counts.total() == (not usable)
            image = {"path": str(tmp_path / "a.jpg"), "bytes": None}
            batch = CCRKCollator(processor, ["en"])([{"image": image, "image_id": "a", "captions": {"en": [caption]}}])
            assert batch["caption_mask"].item() == usable
        rows = datasets.Dataset.from_list(
            [{"image": None, "image_id": str(n), "captions": {"en": [c]}} for n, c in enumerate(BLANK + SHOWN)],
            features=row_features(["en"]),
        )
        problems = Problems("annotations", 1.0, quiet=True)
        assert without_empty(BLANK + SHOWN, "en", "here", problems) == [caption.strip() for caption in SHOWN]
        assert problems.counts == {"empty caption in en": len(BLANK)}
        assert len(keep_usable_rows(rows)) == len(SHOWN)
        found = usable_captions(rows, "en")
        assert found.texts == SHOWN and found.left_out == len(BLANK)
        from_scratch = ModelArguments(config={"text_config": {"vocab_size": 60}}, image_size=64)
        assert build_processor(from_scratch, rows).tokenizer.vocab_size > 5

    def test_a_caption_that_is_no_text_is_refused_by_the_processor(self, processor):
        for caption in (float("nan"), 0, {}):
            with pytest.raises(ValueError, match=f"a {type(caption).__name__} is no caption; give text"):
                processor(text=["a", caption])


class TestTags:
    @pytest.mark.parametrize(
        ("language", "tags"),
        {
            "zh": ["zh-CN", "zh_CN", "zh-Hans", "ZH", " zh", "cmn", "zho_Hans", "chi", "cn", "Chinese", "zh-TW"],
            "ja": ["jp", "JA", "jpn", "ja_JP.UTF-8", "Japanese"],
            "id": ["in", "ind", "id-ID"],
            "he": ["iw", "heb"],
            "cs": ["cz", "ces", "cze"],
            "ko": ["kr", "kor_Hang"],
            "el": ["gr", "ell", "gre"],
            "uk": ["ua", "ukr"],
            "en": ["EN", "en-US", "eng", "eng_Latn", "en1", "English", "caption_en", "en-caption"],
            "de": ["deu", "ger", "de-AT", "German"],
            "pt": ["pt-BR", "por"],
        }.items(),
    )
    def test_other_names_of_a_language_are_close(self, language, tags):
        for tag in tags:
            assert captions.is_close(tag, language) and captions.is_close(language, tag), tag
            assert not captions.is_close(tag, "xx")
        assert not captions.is_close(language, language)

    def test_different_languages_are_not(self):
        codes = set(captions._CODE_OF.values()) | {"eo", "xx", "", "中文"}
        assert not any(captions.is_close(a, b) for a in codes for b in codes)

    def test_hostile_tags_are_bounded_and_not_printed_raw(self):
        problems = Problems("shards", languages=["en"])
        for number in range(5000):
            problems.other_language(f"\x1b[31m{number}\n" * 20)
        assert len(problems.tags) <= 1001 and problems.tags.total() == 5000
        line = problems.table().splitlines()[-1]
        assert line.isprintable() and len(problems.table().splitlines()) == 2 and len(line) < 1500
        other = Problems("shards", languages=["en"])
        other.update(problems)
        assert other.tags == problems.tags


MARK = "\ufeff"


def odd(*lines: str) -> str:
    """A text file as editors on Windows, and `cat` of such files, leave it."""
    return MARK + "\r\n \r\n".join(lines[:-1]) + f"\r\n\n{MARK}{lines[-1]}\r\n"


class TestFiles:
    """Byte-order marks, Windows line ends and blank lines change no row, whatever the layout."""

    @pytest.fixture
    def load(self, tmp_path):
        for name in "abc":
            write(tmp_path / f"images/{name}.jpg", jpeg())
            write(tmp_path / f"images/val2014/COCO_val2014_{name}.jpg", jpeg())

        def load(name, **options):
            folders = {
                "data_dir": tmp_path / "data",
                "image_dir": tmp_path / "images",
                "cache_dir": tmp_path / "cache",
            }
            return data_scripts.load(name, **folders, **options)

        return load

    @staticmethod
    def captions(rows) -> list[dict[str, list[str]]]:
        return list(rows["captions"])

    @pytest.mark.parametrize("ending", ["", ".gz"])
    def test_multi30k_stays_aligned(self, load, tmp_path, caplog, ending):
        """Where files go together line by line, a blank line is an empty caption and moves none of the others."""
        pack = gzip.compress if ending else bytes
        contents = {"en": f"{MARK}one\r\n\r\nthree\r\n", "de": "eins\nzwei\n\u200b\n"}
        for language, lines in contents.items():
            write(tmp_path / f"data/task1/raw/train.{language}{ending}", pack(lines.encode()))
        write(tmp_path / "data/task1/image_splits/train.txt", f"{MARK}a.jpg\r\nb.jpg\r\nc.jpg\r\n")
        rows = load("multi30k", split="train", languages=["en", "de"], max_bad_fraction=1.0)
        assert self.captions(rows) == [
            {"en": ["one"], "de": ["eins"]},
            {"en": [], "de": ["zwei"]},
            {"en": ["three"], "de": []},
        ]
        assert "1  empty caption in en, first: " in reports(caplog) and f"train.en{ending} line 2" in reports(caplog)
        assert f"train.de{ending} line 3" in reports(caplog)

    def test_research_code(self, load, tmp_path):
        entries = [{"image": "a.jpg", "caption": "one", "image_id": 1}]
        write(tmp_path / "data/train.en.json", MARK + json.dumps(entries))
        assert self.captions(load("multi30k", split="train", languages=["en"])) == [{"en": ["one"]}]

    def test_xflickrco(self, load, tmp_path, caplog):
        lines = [json.dumps({"img_path": f"{name}.jpg", "sentences": [name]}) for name in "abc"]
        for name in ("test", "train_1"):
            write(tmp_path / f"data/xFlickrCO/annotations/de/{name}.jsonl", odd(*lines))
        for options in ({"split": "test"}, {"split": "train", "few_shot": "de,1"}):
            rows = load("xflickrco", languages=["de"], **options)
            assert self.captions(rows) == [{"de": ["a"]}, {"de": ["b"]}, {"de": ["c"]}]
        assert reports(caplog) == ""
        write(tmp_path / "data/xFlickrCO/annotations/de/test.jsonl", odd(*lines[:2], "{"))
        load("xflickrco", languages=["de"], split="test", max_bad_fraction=1.0)
        assert "1  broken JSON line, first: " in reports(caplog) and "test.jsonl line 5" in reports(caplog)

    def test_wit(self, load, tmp_path, caplog):
        lines = [json.dumps({"image_url": f"http://{n}", "caption_reference_description": n}) for n in "ab"]
        write(tmp_path / "data/wit/annotations/test_da.jsonl", odd(*lines))
        pixels = base64.b64encode(jpeg()).decode()
        write(tmp_path / "images/x.csv", f"{MARK}http://a\t{pixels}\tmore\r\nhttp://b\t{pixels}\r\n")
        rows = load("wit", split="test", languages=["da"])
        assert self.captions(rows) == [{"da": ["a"]}, {"da": ["b"]}] and reports(caplog) == ""

    def test_coco_cn(self, load, tmp_path, caplog):
        names = [f"COCO_val2014_{name}" for name in "abc"]
        write(tmp_path / "data/coco-cn_test.txt", odd(*names))
        write(tmp_path / "data/imageid.human-written-caption.txt", odd(*(f"{name}#0\t{name[-1]}" for name in names)))
        rows = load("coco", split="test", languages=["zh"])
        assert self.captions(rows) == [{"zh": ["a"]}, {"zh": ["b"]}, {"zh": ["c"]}] and reports(caplog) == ""

    def test_recipe_and_configuration(self, tmp_path):
        assert read_yaml(write(tmp_path / "a.yaml", f"{MARK}dataset: coco\r\n")) == {"dataset": "coco"}
        assert read_overrides(write(tmp_path / "a.json", f'{MARK}{{"text_config": {{}}}}')) == {"text_config": {}}

    @pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
    def test_another_encoding_is_named(self, tmp_path, encoding):
        path = write(tmp_path / "a.jsonl", '{"a": "ü"}\n'.encode(encoding))
        with pytest.raises(ValueError, match=r"a\.jsonl is damaged or UTF-\d\d.*, not UTF-8; save it as UTF-8"):
            text.read_text(path, "mend it")

    def test_a_packed_file_is_read_within_its_bound(self, tmp_path, monkeypatch):
        """66 kB of 64 MiB: no more is unpacked than the bound."""
        path = write(tmp_path / "bomb.jsonl.gz", gzip.compress(bytes(64 << 20)))
        monkeypatch.setattr(text, "MAX_FILE_BYTES", 1 << 21)
        tracemalloc.start()
        with pytest.raises(ValueError, match=r"bomb\.jsonl\.gz holds more than 2,097,152 bytes of text"):
            text.read_text(path, "mend it")
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
        tracemalloc.stop()
        monkeypatch.setattr(text, "MAX_FILE_BYTES", 64 << 20)
        with pytest.raises(ValueError, match="UTF-32"):  # it is within the bound, and no text
            text.read_text(path, "mend it")

    def test_a_line_of_a_table_is_read_within_its_bound(self, load, tmp_path, monkeypatch):
        row = {"image_url": "a", "caption_reference_description": "one"}
        write(tmp_path / "data/wit/annotations/test_da.jsonl", json.dumps(row))
        write(tmp_path / "images/x.csv", "a\tb\n" + "x" * 300)
        monkeypatch.setattr(text, "MAX_LINE_BYTES", 256)
        with pytest.raises(ValueError, match=r"x\.csv line 2 is longer than 256 bytes"):
            load("wit", split="test", languages=["da"])

    @pytest.mark.parametrize(
        ("path", "name", "split", "language", "message"),
        [
            ("train.cz.json", "multi30k", "train", "cs", r"no train\.cs\.json in .*; rename .*/train\.cz\.json$"),
            ("jp.val.json.gz", "coco", "validation", "ja", r"no ja\.val\.json in .*; rename .*/jp\.val\.json\.gz$"),
            ("task1/raw/train.ger.gz", "multi30k", "train", "de", r"no train\.de in .*; rename .*/train\.ger\.gz$"),
            (
                "xFlickrCO/annotations/zh_CN/test.jsonl",
                "xflickrco",
                "test",
                "zh",
                "no test.* in .*/zh; rename .*/zh_CN$",
            ),
            (
                "wit/annotations/test_in.jsonl",
                "wit",
                "test",
                "id",
                r"no test_id\.jsonl in .*; rename .*/test_in\.jsonl$",
            ),
            ("x", "multi30k", "train", "cz", r"has the languages en, de, fr, cs, not \['cz'\]; cs is close to cz$"),
            ("x", "coco", "train", "zh_CN", "coco has the languages .*; zh is close to zh_CN$"),
        ],
    )
    def test_a_file_with_another_tag_of_its_language_is_named(
        self, load, tmp_path, path, name, split, language, message
    ):
        write(tmp_path / "data" / path, "[]")
        write(tmp_path / "data/task1/image_splits/train.txt", "a.jpg\n")
        write(tmp_path / "images/x.csv", "")
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            load(name, split=split, languages=[language])

    def test_a_few_shot_language_by_another_tag_is_named(self, load):
        with pytest.raises(ValueError, match=r"few_shot is LANGUAGE,SHOTS .*, not 'jp,100'; ja is close to jp$"):
            load("xflickrco", split="train", few_shot="jp,100")

    @pytest.mark.parametrize(
        ("path", "contents", "name", "message"),
        [
            ("train.en.json", '{"a": 1}', "multi30k", "train.en.json is an object, but a JSON list is expected"),
            ("train.en.json", "{}\n{}", "multi30k", "one document is expected and not one on each line"),
            (
                "wit/annotations/train_en.jsonl",
                MARK + "\n[\n{}]",
                "wit",
                "a JSON array, but a JSON object on each line",
            ),
        ],
    )
    def test_a_file_of_another_form_says_which_is_expected(self, load, tmp_path, path, contents, name, message):
        write(tmp_path / "data" / path, contents)
        write(tmp_path / "images/x.csv", "")
        with pytest.raises(ValueError, match=message):
            load(name, split="train", languages=["en"])


class TestMissingTranslations:
    """None in a list keeps the place of a caption that one language lacks: readers pass over it."""

    ROWS = datasets.Dataset.from_list(
        [{"image_id": str(n), "captions": {"en": [f"a {n}", f"b {n}"], "de": [None, f"d {n}"]}} for n in range(3)]
    )

    def test_evaluation_leaves_nothing_out_and_compares_equal_places(self):
        found = {language: usable_captions(self.ROWS, language) for language in ("en", "de")}
        second = [("0", 0, 1), ("1", 0, 1), ("2", 0, 1)]
        index = {language: of.index(range(len(of.texts))) for language, of in found.items()}
        assert list(index["de"]) == second and found["de"].left_out == 0
        assert found["de"].texts == ["d 0", "d 1", "d 2"]
        ranks = {language: {"IR": pd.Series(1, index=of)} for language, of in index.items()}
        assert list(shared_ranks(ranks, ["en", "de"], "IR").index) == second

    def test_a_tokenizer_learns_from_the_others(self):
        from_scratch = ModelArguments(config={"text_config": {"vocab_size": 40}}, image_size=64)
        tokenizer = build_processor(from_scratch, self.ROWS).tokenizer
        assert tokenizer.unk_token_id not in tokenizer("a 1 d 2")["input_ids"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a cat &amp; a dog", "a cat & a dog"),
        ("it&#39;s &quot;new&quot;", 'it\'s "new"'),
        ("it&amp;#39;s &amp;amp;amp; &#x27;", "it's & '"),
        ("caf&eacute; &lt;person&gt;", "café <person>"),
        ("AT&T, R&D; Q&A? a&b;c &notanentity;", "AT&T, R&D; Q&A? a&b;c &notanentity;"),
        ("x?a=1&lt=2&copy=3", "x?a=1&lt=2&copy=3"),
        ("&#0;&#xD800;", "\ufffd\ufffd"),
        ("100 % & more", "100 % & more"),
    ],
)
def test_html_entities_are_characters(text, expected):
    plain = captions.without_entities(text)
    assert plain == expected == captions.without_entities(plain)
