"""Tokenizers that are learnt from captions read a caption the same, however its characters are encoded."""

import unicodedata

import pytest
from transformers import AutoTokenizer

from ccrk import CCRKProcessor
from data_scripts.tokenizer import train_tokenizer

CAPTIONS = [
    *("ein schöner Hund am Straßenrand", "un été à la plage, l'œuvre", "một con chó ở trên bãi biển", "đứa trẻ ngủ"),
    *("해변에 있는 개", "пёс на пляже и ёж", "犬がビーチでパーティー", "समुद्र तट पर कुत्ता क़लम", "മാഹ്ജോംഗ് ചുവപ്പ്"),
    *("שָׁלוֹם", "ἄνθρωπος"),
]
FORMS = ("NFC", "NFD", "NFKC", "NFKD")


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(CAPTIONS * 3, 400)


def test_every_form_of_unicode_gives_the_same_tokens(tokenizer, processor, tmp_path):
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    made = CCRKProcessor(processor.image_processor, tokenizer)
    made.save_pretrained(tmp_path / "processor")
    plain = CCRKProcessor(processor.image_processor, tokenizer, normalize_captions=False)
    plain.save_pretrained(tmp_path / "plain")
    folders = [tmp_path / name for name in ("tokenizer", "processor", "plain")]
    opened = [CCRKProcessor.from_pretrained(folder).tokenizer for folder in folders[1:]]
    for one in (tokenizer, made.tokenizer, *map(AutoTokenizer.from_pretrained, folders), *opened):
        for caption in CAPTIONS:
            tokens = [one(unicodedata.normalize(form, caption))["input_ids"] for form in FORMS]
            assert tokens == tokens[:1] * 4 and one.unk_token_id not in tokens[0], caption
        assert one("\uff28und ﬁn\u00a0am\u200bＳtrand")["input_ids"] == one("Hund fin am Strand")["input_ids"]


def test_captions_of_any_form_give_the_same_tokenizer(tokenizer):
    for form in FORMS:
        other = train_tokenizer([unicodedata.normalize(form, caption) for caption in CAPTIONS * 3], 400)
        assert other.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
