"""What each family of dual encoders is given of a caption: the rows of the table in docs/training.md."""

import unicodedata

import families
import pytest
import torch
import transformers
from families import gemma_words, saved, siglip2_fixed
from PIL import Image
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer

from ccrk.encoders import DualEncoder, DualInputs, kind_of_encoder, load_encoder
from ccrk.encoding import tokenizer_settings
from ccrk.towers import SentenceTransformerEncoder
from ccrk.training.collator import CCRKCollator

# Family: is text lower-cased, composed (NFC), its white space made one space; tokens kept, the last of a long caption.
FAMILIES = {
    "clip": (True, True, True, 16, "<|endoftext|>"),
    "siglip": (True, True, True, 16, "</s>"),
    "siglip2_fixed": (True, False, False, 16, "<eos>"),
    "siglip2_naflex": (True, False, False, 16, "<eos>"),
    "align": (True, True, True, 64, "[SEP]"),
    "altclip": (False, False, True, 77, "</s>"),
    "chinese_clip": (True, True, True, 52, "[SEP]"),
    "blip": (True, True, True, 16, "[SEP]"),
    "clipseg": (True, True, True, 16, "<|endoftext|>"),
    "groupvit": (True, True, True, 16, "<|endoftext|>"),
    "metaclip_2": (False, False, True, 16, "</s>"),
    "owlvit": (True, True, True, 16, "<|endoftext|>"),
    "owlv2": (True, True, True, 16, "<|endoftext|>"),
    "aimv2": (True, True, True, 16, "<|endoftext|>"),
    "tipsv2": (True, False, True, 16, None),
    "two_towers": (False, False, True, 16, "</s>"),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_captions_are_prepared_as_the_family_was_trained(family, tmp_path):
    is_lower_cased, is_composed, is_one_space, length, end = FAMILIES[family]
    encoder = load_encoder(saved(getattr(families, family), tmp_path), 0, bf16=False)

    def cosine(one: str, other: str) -> float:
        one, other = (encoder.encode_captions([caption])["embeds"][0] for caption in (one, other))
        return float(one @ other)

    assert (cosine("Ein Hund am Strand", "ein hund am strand") > 1 - 1e-6) is is_lower_cased
    assert (cosine("ÜBER DEM CAFÉ", "über dem café") > 1 - 1e-6) is is_lower_cased
    assert (cosine(unicodedata.normalize("NFD", "über café"), "über café") > 1 - 1e-6) is is_composed
    assert (cosine("  ein\thund  am\nstrand ", "ein hund am strand") > 1 - 1e-6) is is_one_space
    ids = encoder.inputs.captions(["Ein Hund am Strand " * 40])["input_ids"][0]
    assert len(ids) == length
    if end is not None:
        assert encoder.inputs.tokenizer.convert_ids_to_tokens(int(ids[-1])) == end
    both = encoder.encode_captions(["ein hund", "ein hund am strand und am meer"])["embeds"]
    torch.testing.assert_close(both[0], encoder.encode_captions(["ein hund"])["embeds"][0], atol=1e-5, rtol=0)
    caption = encoder.encode_captions(["🐕 ኣ 犬"])["embeds"]
    image = encoder.encode_images([Image.new("RGB", (40, 30), "red")])["embeds"]
    assert caption.isfinite().all() and image.isfinite().all() and len(caption) == 1 and caption.shape == image.shape


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "siglip"])  # which has a file more
def test_a_tokenizer_whose_vocabulary_is_missing_is_refused(family, tmp_path):
    folder = saved(getattr(families, family), tmp_path)
    (tmp_path / "model" / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match="model cannot be opened as AutoProcessor: its tokenizer has no vocabulary;"):
        load_encoder(folder, 0, bf16=False)


def test_so_is_that_of_a_sentence_transformer(tmp_path):
    model = SentenceTransformer(modules=[Transformer(saved(families.blip, tmp_path))], device="cpu")
    model.save_pretrained(str(tmp_path / "whole"), create_model_card=False)
    (tmp_path / "whole" / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match="whole: its tokenizer has no vocabulary; restore the files of its tokenizer"):
        load_encoder(str(tmp_path / "whole"), 0, bf16=False)


@pytest.mark.parametrize("family", ["flava", "blip_2", "clap", "x_clip"])
def test_what_has_no_vector_for_images_and_captions_is_refused(family, tmp_path):
    folder = saved(getattr(families, family), tmp_path)
    with pytest.raises(ValueError, match=r"model is a \w+Model, which embeds no images and captions; give") as found:
        kind_of_encoder(folder)
    assert "\n" not in str(found.value)


def test_chinese_clip_sees_straight_quotation_marks(tmp_path):
    encoder = load_encoder(saved(families.chinese_clip, tmp_path), 0, bf16=False)
    ids = encoder.inputs.captions(["“ein” Hund", '"ein" Hund'])["input_ids"]
    assert torch.equal(*ids) and encoder.inputs.tokenizer.unk_token_id not in ids


@pytest.mark.parametrize("family", ["align", "altclip", "chinese_clip"])
def test_what_training_saves_tokenizes_alike_in_transformers(family, tmp_path):
    encoder = load_encoder(saved(getattr(families, family), tmp_path), 0, bf16=False)
    captions = ["“Ein” Hund", "EIN HUND am Strand " * 40, "un café"]
    expected = encoder.inputs.captions(captions)
    encoder.are_cut(captions)  # counts tokens without a limit, as training does before it saves
    encoder.inputs.tokenizer.save_pretrained(tmp_path / "model")
    opened = transformers.AutoProcessor.from_pretrained(tmp_path / "model")
    found = opened(text=captions, padding=True, truncation=True, return_tensors="pt")
    assert found.keys() == expected.keys() and torch.equal(found["input_ids"], expected["input_ids"])
    again = load_encoder(str(tmp_path / "model"), 0, bf16=False)
    assert torch.equal(again.inputs.captions(captions)["input_ids"], expected["input_ids"])


def test_a_family_keeps_its_length_inside_a_sentence_transformer(tmp_path):
    model = SentenceTransformer(modules=[Transformer(saved(families.altclip, tmp_path))], device="cpu")
    model.save_pretrained(str(tmp_path / "whole"), create_model_card=False)
    encoder = load_encoder(str(tmp_path / "whole"), 0, bf16=False)
    assert encoder.inputs.max_length == encoder.inputs.captions(["ein Hund " * 80])["input_ids"].shape[1] == 77


class TestSiglip2:
    """At fixed resolution: `google/siglip2-base-patch16-224` and its kind."""

    @pytest.mark.parametrize(
        "kind", ["GemmaTokenizer", "GemmaTokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend"]
    )
    def test_it_is_lower_cased_by_whatever_name_its_tokenizer_has(self, kind, tmp_path):
        folder = saved(siglip2_fixed, tmp_path)
        settings = tmp_path / "model" / "tokenizer_config.json"
        settings.write_text(settings.read_text().replace('"GemmaTokenizer"', f'"{kind}"'))
        encoder = load_encoder(folder, 0, bf16=False)
        one, other = encoder.encode_captions(["Ein Hund am Strand", "ein hund am strand"])["embeds"]
        assert one @ other == pytest.approx(1, abs=1e-6)

    def test_training_sees_the_same_and_saves_it(self, tmp_path):
        model, processor = siglip2_fixed(tmp_path)
        rows = [
            {"image": Image.new("RGB", (40, 40)), "image_id": f"{case}", "captions": {"de": [case]}}
            for case in ("Ein Hund am Strand", "ein hund am strand")
        ]
        batch = CCRKCollator(DualInputs(processor, model.config), ["de"])(rows)
        assert torch.equal(*batch["input_ids"])
        for part in (model, processor):
            part.save_pretrained(tmp_path / "out")
        for kind in (transformers.AutoTokenizer, transformers.AutoProcessor):
            opened = kind.from_pretrained(tmp_path / "out")
            padded = {"padding": "max_length", "max_length": families.POSITIONS, "return_tensors": "pt"}
            ids = opened(text=["Ein Hund am Strand", "ein hund am strand"], **padded)["input_ids"]
            assert torch.equal(ids, batch["input_ids"].flatten(0, 1))
        again = load_encoder(str(tmp_path / "out"), 0, bf16=False).inputs.captions(["EIN HUND AM STRAND"])
        assert torch.equal(again["input_ids"][0], batch["input_ids"][0, 0])

    def test_a_tokenizer_of_another_model_keeps_its_case(self, tmp_path):
        model, processor = families.two_towers(tmp_path, gemma_words(tmp_path))
        captions = DualInputs(processor, model.config).captions(["Hund", "hund"])
        assert not torch.equal(*captions["input_ids"])

    def test_kept_features_of_captions_are_not_those_of_another_case(self, tmp_path):
        words = gemma_words(tmp_path)
        encoder = DualEncoder(*families.siglip(tmp_path, words))
        assert tokenizer_settings(encoder.inputs.tokenizer) != tokenizer_settings(words)

    def test_inside_a_sentence_transformer(self, tmp_path):
        model = SentenceTransformer(modules=[Transformer(saved(siglip2_fixed, tmp_path))], device="cpu")
        model.save_pretrained(str(tmp_path / "whole"), create_model_card=False)
        encoder = load_encoder(str(tmp_path / "whole"), 0, bf16=False)
        assert isinstance(encoder, SentenceTransformerEncoder)
        one, other = encoder.encode_captions(["Ein Hund am Strand", "ein hund am strand"])["embeds"]
        assert one @ other == pytest.approx(1, abs=1e-6)


def test_a_tokenizer_that_marks_languages_is_refused(tmp_path):
    folder = saved(lambda parts: families.two_towers(parts, families.nllb_words(parts)), tmp_path)
    with pytest.raises(ValueError, match=r"model: its tokenizer marks the language of each text \(ace_Arab\)"):
        load_encoder(folder, 0, bf16=False)
