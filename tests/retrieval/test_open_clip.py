"""Models of open_clip in evaluation: from a folder that open_clip has saved, named, or lacking."""

import importlib.util
import json
import pickle
import unicodedata

import families
import pytest
import torch
import transformers
from builders import write_json
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny import call, make_rows

import ccrk.encoders
import data_scripts
import eval_mrv
import train_retrieval
from ccrk.encoders import load_encoder
from ccrk.retrieval.evaluate import check_model
from ccrk.search.index import PictureIndex

CONFIG = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 16},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


class Plant:
    def __reduce__(self):
        return open, ("planted", "w")


@pytest.fixture
def folder(tmp_path):
    open_clip = pytest.importorskip("open_clip")
    folder = tmp_path / "tiny"
    write_json(folder / "open_clip_config.json", {"model_cfg": CONFIG, "preprocess_cfg": {"mean": [0.4] * 3}})
    torch.manual_seed(0)
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return folder


def test_it_embeds_as_open_clip_does(folder):
    import open_clip

    encoder = load_encoder(f"open_clip:{folder}", 128, bf16=False)
    model, transform = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    pictures = [Image.effect_noise(size, 60).convert("RGB") for size in ((60, 40), (30, 90))]
    captions = ["a red star", "a star " * 20]
    with torch.no_grad():
        image = model.eval().encode_image(torch.stack([transform(picture) for picture in pictures]), normalize=True)
        text = model.encode_text(open_clip.tokenize(captions, context_length=12), normalize=True)
    torch.testing.assert_close(encoder.encode_images(pictures)["embeds"], image)
    torch.testing.assert_close(encoder.encode_captions(captions)["embeds"], text)
    reduced = load_encoder(f"open_clip:{folder}", 0, bf16=True)
    moved = load_encoder(f"open_clip:{folder.rename(folder.parent / 'moved')}", 0, bf16=False)
    assert encoder.k_test == 0 and encoder.fingerprint == moved.fingerprint != reduced.fingerprint
    assert (reduced.encode_images(pictures)["embeds"] * image).sum(dim=1).min() > 0.99
    assert reduced.encode_images(pictures)["embeds"].norm(dim=1) == pytest.approx([1, 1], abs=1e-6)


def save(folder, config: dict) -> None:
    """A random model of open_clip, in its own format."""
    import open_clip

    write_json(folder / "open_clip_config.json", {"model_cfg": config, "preprocess_cfg": {}})
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False, pretrained_text=False)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")


def test_coca_and_text_encoders_of_transformers_run_in_bf16(tmp_path):
    pytest.importorskip("open_clip")
    pooled = {"attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True}
    text = CONFIG["text_cfg"] | {"embed_cls": True, "output_tokens": True}
    coca = CONFIG | {"vision_cfg": CONFIG["vision_cfg"] | pooled, "text_cfg": text, "custom_text": True}
    save(tmp_path / "coca", coca | {"multimodal_cfg": CONFIG["text_cfg"] | {"attn_pooler_heads": 2}})
    words = families.xlmr_words()
    own = families.text(words, max_position_embeddings=families.POSITIONS + 2, pad_token_id=words.pad_token_id)
    for part in (words, transformers.XLMRobertaConfig(**own)):
        part.save_pretrained(tmp_path / "xlmr")
    text = {"hf_model_name": str(tmp_path / "xlmr"), "hf_tokenizer_name": "own", "context_length": 12}
    save(tmp_path / "xlmr", CONFIG | {"text_cfg": text})
    for folder in ("coca", "xlmr"):
        whole, reduced = (load_encoder(f"open_clip:{tmp_path / folder}", 0, bf16) for bf16 in (False, True))
        for encode, inputs in (("encode_captions", ["ein hund"]), ("encode_images", [Image.new("RGB", (40, 30))])):
            one, other = (getattr(encoder, encode)(inputs)["embeds"][0] for encoder in (whole, reduced))
            assert one @ other > 0.99, (folder, encode)


def with_own_tokenizer(folder, **kwargs) -> None:
    """Give the model that a folder holds the tokenizer of SigLIP 2, with options of open_clip."""
    families.gemma_words(folder)
    text = CONFIG["text_cfg"] | {"hf_tokenizer_name": "own", "tokenizer_kwargs": kwargs}
    write_json(folder / "open_clip_config.json", {"model_cfg": CONFIG | {"text_cfg": text}, "preprocess_cfg": {}})


def test_it_is_known_by_its_tokenizer_too(folder):
    found = [load_encoder(f"open_clip:{folder}", 0, bf16=False).fingerprint]
    for clean in ("whitespace", "canonicalize"):
        with_own_tokenizer(folder, clean=clean)
        found.append(load_encoder(f"open_clip:{folder}", 0, bf16=False).fingerprint)
    words = folder / "tokenizer_config.json"
    words.write_text(words.read_text().replace('"unk_token": "<unk>"', '"unk_token": "<mask>"'))
    found.append(load_encoder(f"open_clip:{folder}", 0, bf16=False).fingerprint)
    assert len(set(found)) == 4


def test_a_tokenizer_with_code_of_its_own_is_refused(folder, tmp_path):
    with_own_tokenizer(folder, trust_remote_code=True)
    words = folder / "tokenizer_config.json"
    settings = json.loads(words.read_text()) | {
        "tokenizer_class": "Own",
        "auto_map": {"AutoTokenizer": [None, "a.Own"]},
    }
    write_json(words, settings)
    (folder / "a.py").write_text(
        f"open({str(tmp_path / 'has_run')!r}, 'w')\nfrom transformers import GemmaTokenizer as Own\n"
    )
    with pytest.raises(ValueError, match="tiny asks to run Python code of its own, which is never done here") as found:
        load_encoder(f"open_clip:{folder}", 0, bf16=False)
    assert "\n" not in str(found.value) and not (tmp_path / "has_run").exists()


def test_a_tokenizer_whose_vocabulary_is_missing_is_refused(folder):
    with_own_tokenizer(folder)
    (folder / "tokenizer.json").unlink()
    settings = json.loads((folder / "tokenizer_config.json").read_text()) | {"tokenizer_class": "Siglip2Tokenizer"}
    write_json(folder / "tokenizer_config.json", settings)
    with pytest.raises(
        ValueError, match=r"tiny cannot be opened; is it whole\? \(its tokenizer has no vocabulary; res"
    ):
        load_encoder(f"open_clip:{folder}", 0, bf16=False)


def test_a_tokenizer_of_another_model_is_told(folder):
    with_own_tokenizer(folder)
    text = CONFIG["text_cfg"] | {"hf_tokenizer_name": "own", "vocab_size": 50}
    save(folder, CONFIG | {"text_cfg": text})
    encoder = load_encoder(f"open_clip:{folder}", 0, bf16=False)
    with pytest.raises(ValueError, match=r"tiny: its tokenizer gives token \d+, its model has 50; restore its own"):
        encoder.encode_captions(["ein hund"])


def test_opening_says_nothing(folder, caplog):
    with caplog.at_level("INFO"):
        load_encoder(f"open_clip:{folder}", 0, bf16=False)
    assert caplog.text == ""


def test_it_is_evaluated_like_any_other(folder, monkeypatch, tmp_path):
    rows = make_rows([[4], [3], [5], [2]], languages=("en", "de"))
    monkeypatch.setattr(data_scripts, "load", lambda task, **_: rows)
    given = ["--model", f"open_clip:{folder}", "--task", "shapes", "--output_dir", str(tmp_path / "out")]
    eval_mrv.main(given)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (
        results["k_test"] == 0 and results["mrv"]["languages"] == ["en", "de"] and results["parameters"] > 49408 * 16
    )


def test_what_is_not_there_is_said_in_one_line(folder, tmp_path):
    def refused(name, message):
        with pytest.raises(ValueError, match=message) as found:
            check_model(name, None, [])
            load_encoder(name, 0, False)
        assert "\n" not in str(found.value)

    refused("open_clip:ViT-B-32/none", r"open_clip has no weights 'none' for ViT-B-32; choose one of openai, ")
    refused(
        "open_clip:no/such/folder", r"there is no folder no/such/folder, and open_clip has no weights for 'no/such'"
    )
    refused(f"open_clip:{tmp_path}", r"holds no open_clip_config\.json; name a folder that open_clip has saved")
    weights = folder / "open_clip_model.safetensors"
    whole = load_file(weights)
    for lacking in ("logit_scale", "text_projection", "visual.proj"):
        save_file({name: tensor for name, tensor in whole.items() if name != lacking}, weights)
        refused(f"open_clip:{folder}", r"tiny cannot be opened; is it whole\?")
    weights.write_bytes(weights.read_bytes()[:1000])
    refused(f"open_clip:{folder}", r"tiny cannot be opened; is it whole\?")
    weights.unlink()
    refused(f"open_clip:{folder}", r"tiny cannot be opened; is it whole\?")


@pytest.mark.parametrize("is_legacy", [False, True])
def test_a_pickle_of_weights_is_not_run(is_legacy, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (folder / "open_clip_model.safetensors").unlink()
    with (folder / "open_clip_pytorch_model.bin").open("wb") as file:
        (pickle.dump if is_legacy else torch.save)(Plant(), file)
    with pytest.raises(ValueError, match="tiny holds a pickle of more than tensors, or a damaged one; nothing of it"):
        load_encoder(f"open_clip:{folder}", 0, False)
    assert not (tmp_path / "planted").exists()


def test_weights_of_another_width_are_told(folder):
    weights = load_file(folder / "open_clip_model.safetensors")
    save_file(weights | {"visual.proj": torch.zeros(16, 9)}, folder / "open_clip_model.safetensors")
    with pytest.raises(ValueError, match="tiny: weights are of another shape than its configuration says; restore"):
        load_encoder(f"open_clip:{folder}", 0, False)


def test_without_the_package_the_cure_is_named(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        ccrk.encoders.importlib.util, "find_spec", lambda name: None if name == "open_clip" else found(name)
    )
    with pytest.raises(ValueError, match="open_clip is not installed; pip install open_clip_torch"):
        check_model("open_clip:ViT-B-32/openai", None, [])


def test_training_refuses_it(tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match="open_clip:a/b can be evaluated, not trained"):
        given = ["--model_name_or_path", "open_clip:a/b", "--output_dir", tmp_path, "--use_cpu", "true"]
        call(train_retrieval, *given, monkeypatch=monkeypatch)


def test_captions_that_are_cut_are_counted(folder):
    encoder = load_encoder(f"open_clip:{folder}", 0, bf16=False)
    captions = ["", "a red star", "a star " * 5, "a star " * 5 + "a", "a star " * 20]  # 12 tokens with both ends
    assert encoder.are_cut(captions) == [False, False, False, True, True]


@pytest.mark.parametrize(
    ("clean", "is_lower_cased", "has_no_punctuation"),
    [("lower", True, False), ("whitespace", False, False), ("canonicalize", True, True)],
)
def test_text_is_cleaned_as_the_configuration_says(clean, is_lower_cased, has_no_punctuation, folder):
    with_own_tokenizer(folder, clean=clean)
    encoder = load_encoder(f"open_clip:{folder}", 0, bf16=False)
    assert not encoder.needs_language

    def is_same(one: str, other: str) -> bool:
        return torch.equal(*encoder.tokenizer([one, other]))

    assert is_same("Ein Hund", "ein hund") is is_lower_cased and is_same("ein hund!", "ein hund") is has_no_punctuation
    assert is_same(" ein\thund ", "ein hund") and is_same(unicodedata.normalize("NFD", "café"), "café")
    assert is_same("a &amp; b", "a & b") and encoder.tokenizer(["ein hund " * 30])[0, -1] == 1  # <eos>


def test_the_tokenizer_of_clip_lower_cases_and_composes(folder):
    encoder = load_encoder(f"open_clip:{folder}", 0, bf16=False)
    for one in ("ÜBER  Café\n", unicodedata.normalize("NFD", "über café"), "über caf&eacute;"):
        assert torch.equal(*encoder.tokenizer([one, "über café"])), one
    tokens = encoder.tokenizer(["ein Hund " * 30])
    assert tokens.shape == (1, 12) and tokens[0, -1] == encoder.tokenizer.eot_token_id


def test_it_searches(folder, tmp_path):
    Image.effect_noise((40, 40), 60).convert("RGB").save(tmp_path / "noise.png")
    (tmp_path / "photos").mkdir()
    (tmp_path / "noise.png").rename(tmp_path / "photos" / "noise.png")
    index = PictureIndex(tmp_path / "photos.index", f"open_clip:{folder}")
    index.update(tmp_path / "photos")
    assert [found.path for found in index.search("a red star")] == ["noise.png"]
    assert PictureIndex(tmp_path / "photos.index").search("a red star", language="de")  # which it does without
