"""Encoders whose tokenizer needs the language of a caption, such as NLLB-CLIP's in open_clip."""

import csv
import json

import families
import numpy as np
import pytest
import torch
import transformers
from builders import write_json
from PIL import Image
from safetensors.torch import save_file
from tiny import make_rows
from torch.nn import functional as F
from transformers.models.m2m_100.tokenization_m2m_100 import FAIRSEQ_LANGUAGE_CODES as M2M100
from transformers.models.mbart50.tokenization_mbart50 import FAIRSEQ_LANGUAGE_CODES as MBART
from transformers.models.nllb.tokenization_nllb import FAIRSEQ_LANGUAGE_CODES as NLLB

from ccrk import suspects
from ccrk.encoders import language_codes, load_encoder
from ccrk.retrieval.evaluate import encode_captions, evaluate_retrieval
from ccrk.search import __main__ as search
from ccrk.search.index import PictureIndex
from data_scripts.captions import language_code
from data_scripts.xm3600 import LANGUAGES


@pytest.mark.parametrize(
    ("tag", "code"),
    [
        ("de", "deu_Latn"),
        ("deu_Latn", "deu_Latn"),
        ("German", "deu_Latn"),
        ("pt-BR", "por_Latn"),
        ("zh", "zho_Hans"),
        ("zh-CN", "zho_Hans"),
        ("zh-TW", "zho_Hant"),
        ("zh_Hant", "zho_Hant"),
        ("yue", "yue_Hant"),
        ("sr", "srp_Cyrl"),
        ("sr-Latn", None),
        ("no", "nob_Latn"),
        ("nn", "nno_Latn"),
        ("ar", "arb_Arab"),
        ("fa", "pes_Arab"),
        ("sw", "swh_Latn"),
        ("iw", "heb_Hebr"),
        ("quz", "quy_Latn"),
        ("mi", "mri_Latn"),
        ("br", None),
        ("xx", None),
        ("caption", None),
    ],
)
def test_a_tag_finds_the_code_of_nllb(tag, code):
    assert language_code(tag, NLLB) == code


def test_languages_find_their_codes_in_other_models():
    assert [language_code(tag, MBART) for tag in ("de", "zh", "ja")] == ["de_DE", "zh_CN", "ja_XX"]
    assert [language_code(tag, M2M100["m2m100"]) for tag in ("de", "deu", "zh-TW")] == ["de", "de", "zh"]
    assert all(language_code(tag, NLLB) for tag in LANGUAGES)


@pytest.fixture(scope="module")
def nllb_clip(tmp_path_factory):
    """A folder of open_clip with NLLB's tokenizer, and a random encoder as its text tower."""
    open_clip = pytest.importorskip("open_clip")
    folder = tmp_path_factory.mktemp("nllb-clip")
    words = families.nllb_words(folder)
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "max_position_embeddings": 32, "init_std": 1.0}
    sizes |= {f"{part}_{size}": 2 for part in ("encoder", "decoder") for size in ("attention_heads", "ffn_dim")}
    torch.manual_seed(0)
    config = transformers.M2M100Config(vocab_size=len(words), **sizes)
    transformers.M2M100Model(config).save_pretrained(folder / "text")
    vision = {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 16}
    text = {"hf_model_name": str(folder / "text"), "hf_tokenizer_name": "nllb", "context_length": 16}
    text |= {"hf_proj_type": "linear", "hf_pooler_type": "cls_pooler"}
    model = {"embed_dim": 8, "custom_text": True, "vision_cfg": vision, "text_cfg": text}
    write_json(folder / "open_clip_config.json", {"model_cfg": model, "preprocess_cfg": {"mean": [0.4] * 3}})
    weights = open_clip.create_model(f"local-dir:{folder}", load_weights=False).state_dict()
    save_file(weights, folder / "open_clip_model.safetensors")
    return f"open_clip:{folder}"


@pytest.fixture
def encoder(nllb_clip):
    return load_encoder(nllb_clip, 0, bf16=False)


@pytest.fixture
def seen(encoder, monkeypatch):
    """The first token of each text that the model was given, and its words."""
    given = []
    encode = encoder.model.encode_text

    def listen(tokens, **options):
        words = encoder.tokenizer.tokenizer
        given.extend((words.convert_ids_to_tokens(int(row[0])), words.decode(row[1:], True)) for row in tokens)
        return encode(tokens, **options)

    monkeypatch.setattr(encoder.model, "encode_text", listen)
    return given


def test_the_language_stands_before_the_caption(encoder, seen):
    assert encoder.needs_language and len(language_codes(encoder.tokenizer.tokenizer)) == len(NLLB)
    german = encoder.encode_captions(["Zwei hunde"], "de")["embeds"]
    french = encoder.encode_captions(["Zwei hunde"], "fr")["embeds"]
    assert [first for first, _ in seen] == ["deu_Latn", "fra_Latn"]
    assert not torch.allclose(german, french)
    torch.testing.assert_close(encoder.encode_captions(["Zwei hunde"], "deu_Latn")["embeds"], german)


def test_a_language_that_is_lacking_or_unknown_is_refused(encoder):
    with pytest.raises(ValueError, match="needs the language of each text; give --language, such as de"):
        encoder.encode_captions(["Zwei hunde"])
    with pytest.raises(ValueError, match=r"has no code for the language 'xx'; give one of its 202 codes, such as "):
        encoder.encode_captions(["Zwei hunde"], "xx")


def test_evaluation_tells_each_caption_set_its_language(encoder, seen, tmp_path):
    rows = make_rows([[4], [3], [2]], languages=("en", "de"))
    result = evaluate_retrieval(encoder, rows, ["en", "de"], cache_dir=tmp_path, takes_time=True)
    assert set(result.ranks) == {"en", "de"} and result.milliseconds_per_query > 0
    texts = {language: {texts[language][0] for texts in rows["captions"]} for language in ("en", "de")}
    assert {first for first, words in seen if words in texts["en"] - texts["de"]} == {"eng_Latn"}
    assert {first for first, words in seen if words in texts["de"] - texts["en"]} == {"deu_Latn"}


def test_equal_captions_of_two_languages_are_not_taken_for_one_another(encoder, tmp_path):
    german, french = (encode_captions(encoder, ["radio"], tag, cache_dir=tmp_path).embeds for tag in ("de", "fr"))
    assert not torch.allclose(german, french)


def test_an_unknown_language_is_refused_before_the_images_are_encoded(encoder, monkeypatch):
    monkeypatch.setattr(encoder, "encode_images", lambda _: pytest.fail("an image was encoded"))
    with pytest.raises(ValueError, match="has no code for the language 'xx'"):
        evaluate_retrieval(encoder, make_rows([[4], [3]], languages=("en", "xx")), ["en", "xx"])


def test_suspects_are_found_by_language(encoder, seen, monkeypatch):
    monkeypatch.setattr(suspects, "load_encoder", lambda *_: encoder)
    suspects.find_suspects(make_rows([[4], [3], [2]], languages=("en", "de")), "m")
    assert {first for first, _ in seen} == {"eng_Latn", "deu_Latn"}


class TestSearch:
    @pytest.fixture
    def index(self, nllb_clip, tmp_path):
        for number in range(12):
            pixels = np.random.default_rng(number).integers(0, 255, (40, 40, 3), dtype=np.uint8)
            (tmp_path / "photos").mkdir(exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / "photos" / f"{number}.png")
        index = PictureIndex(tmp_path / "photos.index", nllb_clip)
        index.update(tmp_path / "photos")
        return index

    def test_a_query_has_a_language(self, index, capsys):
        for options in ([], ["--language", "xx"]):
            with pytest.raises(SystemExit, match="the language"):
                search.main(["query", index.location, "Zwei hunde", *options])
        found = {}
        for language in ("de", "fr"):
            search.main(["query", index.location, "Zwei hunde", "--k", "12", "--language", language, "--json"])
            found[language] = json.loads(capsys.readouterr().out)["results"]
        assert found["de"] != found["fr"] and "likely" not in found["de"][0]
        with pytest.raises(ValueError, match="needs the language of each text"):
            index.search("Zwei hunde")
        expected = [picture.path for picture in index.search("Zwei hunde", 12, language="de")]
        assert [result["path"] for result in found["de"]] == expected
        assert index.search(Image.new("RGB", (30, 30)), 3)  # has none

    def test_the_server_takes_it(self, index):
        pytest.importorskip("fastapi")
        from fastapi.testclient import TestClient

        from ccrk.search.serve import make_app

        client = TestClient(make_app(index))
        assert client.get("/api/search", params={"q": "Zwei hunde", "language": "de"}).json()["results"]
        refused = client.get("/api/search", params={"q": "Zwei hunde"})
        assert refused.status_code == 400 and "needs the language" in refused.json()["detail"]

    def test_thresholds_and_consistency_are_by_language(self, index, tmp_path, capsys):
        table = tmp_path / "queries.csv"
        with table.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["path", "de", "fr"])
            writer.writerows([f"{number}.png", f"hund {'abcdefghijkl'[number]}", "un chien"] for number in range(12))
        search.main(["index", str(tmp_path / "photos"), index.location, "--calibrate", str(table)])
        thresholds = index.store.thresholds()
        vectors = index.encoder.encode_captions([f"hund {letter}" for letter in "abcdefghijkl"], "de")["embeds"]
        pictures, embeds = index.contents
        order = [pictures["path"].to_pylist().index(f"{number}.png") for number in range(12)]
        scores = (F.normalize(vectors, dim=1) * embeds[order]).sum(dim=1)
        assert thresholds["de"] == pytest.approx(scores.min().item(), abs=1e-4)
        search.main(["query", index.location, "un chien", "--language", "en", "--json"])  # is not calibrated
        capsys.readouterr()
        same = tmp_path / "same.csv"
        same.write_text("de,fr\nradio,radio\nauto,auto\n")
        search.main(["consistency", index.location, str(same), "--output_dir", str(tmp_path / "out")])
        assert json.loads((tmp_path / "out" / "results.json").read_text())["all"]["rank_drift"]["mean"] > 0
