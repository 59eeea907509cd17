"""One notion of a usable caption and of a language's name, and text files as people have them."""

import json

import datasets
import pytest
from builders import jpeg, write

from data_scripts import captions, shards
from data_scripts.annotations import without_empty
from data_scripts.problems import Problems
from data_scripts.rows import row_features
from processing_ccrk import normalize_caption
from recipe_ccrk import ModelArguments, build_processor, keep_usable_rows
from retrieval_ccrk import usable_captions
from trainer_ccrk import CCRKCollator

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
            "en": ["EN", "en-US", "eng", "eng_Latn", "en1", "English"],
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
