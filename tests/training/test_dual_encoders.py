"""Dual encoders of transformers trained by 1-to-K: losses, one step, the script, and what is saved."""

import json
import math
import re

import families
import numpy as np
import pytest
import torch
import transformers
from conftest import ROOT
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny import assert_known_wherever_it_lies, assert_same_gradients, call, loss_and_gradients, tokenizer
from torch.nn import functional as F

import eval_mrv
import train_pretrain
import train_retrieval
from ccrk.arguments import ModelArguments
from ccrk.build import build_dual
from ccrk.encoders import DualEncoder, DualInputs
from ccrk.training.arguments import CCRKTrainingArguments
from ccrk.training.collator import CCRKCollator
from ccrk.training.trainable import freeze
from ccrk.training.trainer import CCRKTrainer
from objectives_ccrk import contrastive_loss, sigmoid_loss

B, K, P = 5, 3, 8
VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
VISION |= {"image_size": 32, "patch_size": 8}
TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}


def make_clip(words):
    config = transformers.CLIPConfig(
        text_config=TEXT
        | {"vocab_size": len(words), "max_position_embeddings": 16, "eos_token_id": words.eos_token_id},
        vision_config=VISION,
        projection_dim=P,
    )
    images = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    return transformers.CLIPModel(config), transformers.CLIPProcessor(images, words)


def make_siglip(words):
    config = transformers.SiglipConfig(
        text_config=TEXT | {"vocab_size": len(words), "max_position_embeddings": 16, "projection_size": 32},
        vision_config=VISION,
    )
    images = transformers.SiglipImageProcessor(size={"height": 32, "width": 32})
    return transformers.SiglipModel(config), transformers.SiglipProcessor(images, words)


def make_siglip2(words):
    vision = {name: value for name, value in VISION.items() if name != "image_size"} | {"patch_size": 16}
    config = transformers.Siglip2Config(
        text_config=TEXT | {"vocab_size": len(words), "max_position_embeddings": 16, "projection_size": 32},
        vision_config=vision,
    )
    images = transformers.Siglip2ImageProcessor()
    return transformers.Siglip2Model(config), transformers.Siglip2Processor(images, words)


def make_two_towers(words):
    text = transformers.XLMRobertaConfig(**TEXT, vocab_size=len(words), max_position_embeddings=20)
    vision = transformers.ViTConfig(**VISION)
    config = transformers.VisionTextDualEncoderConfig.from_vision_text_configs(vision, text, projection_dim=P)
    images = transformers.ViTImageProcessor(size={"height": 32, "width": 32})
    return transformers.VisionTextDualEncoderModel(config), transformers.VisionTextDualEncoderProcessor(images, words)


FAMILIES = {"clip": make_clip, "siglip": make_siglip, "siglip2": make_siglip2, "two towers": make_two_towers}


LIKE_CLIP = {
    "CLIPSeg": {},
    "GroupViT": {"depths": [1, 1, 1], "num_group_tokens": [4, 2, 0], "num_output_groups": [4, 2, 2]},
    "MetaClip2": {},
    "Aimv2": {},
    "OwlViT": {},
}


def make_like_clip(name, words, **text):
    """A tiny model of a family whose text encoder pools at the end of a caption."""
    text = TEXT | {"vocab_size": len(words), "max_position_embeddings": 16} | text
    vision = VISION | LIKE_CLIP[name] | ({"hidden_size": 24} if name == "GroupViT" else {})
    config = getattr(transformers, f"{name}Config")(text_config=text, vision_config=vision, projection_dim=P)
    if name == "GroupViT":
        config.projection_intermediate_dim = 16
    images = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    return getattr(transformers, f"{name}Model")(config), transformers.CLIPProcessor(images, words)


def make_with_bert(name, words):
    text = TEXT | {"vocab_size": len(words), "max_position_embeddings": 20}
    text |= {"project_dim": P} if name == "AltCLIP" else {}
    config = getattr(transformers, f"{name}Config")(text_config=text, vision_config=VISION, projection_dim=P)
    images = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    return getattr(transformers, f"{name}Model")(config), transformers.CLIPProcessor(images, words)


def make_others(words):
    """Twelve families, and CLIP with the end of captions that its first configurations had."""
    legacy = make_clip(words)[0].config
    legacy.text_config.eos_token_id = 2
    yield "legacy", transformers.CLIPModel(legacy), make_clip(words)[1]
    for name, make in FAMILIES.items():
        yield name, *make(words)
    for name in LIKE_CLIP:
        yield name, *make_like_clip(name, words, eos_token_id=words.eos_token_id)
    for name in ("AltCLIP", "ChineseCLIP"):
        yield name, *make_with_bert(name, words)
    yield "BLIP", *families.blip(None)


@pytest.fixture(params=FAMILIES)
def dual(request, processor):
    torch.manual_seed(0)
    return FAMILIES[request.param](tokenizer(processor))


@pytest.fixture
def embeddings():
    generator = torch.Generator().manual_seed(0)
    image, text = (F.normalize(torch.randn(*size, P, generator=generator), dim=-1) for size in ((B,), (B, K)))
    present = torch.rand(B, K, generator=generator) > 0.3
    return image, text, present


class TestSigmoid:
    def test_it_is_the_loop_over_pairs(self, embeddings):
        image, text, present = embeddings
        ids, temperature, bias = torch.tensor([0, 1, 1, 2, 3]), torch.tensor(0.1), torch.tensor(-10.0)
        total = 0.0
        for i, j, k in np.ndindex(B, B, K):
            if present[j, k]:
                logit = image[i] @ text[j, k] / temperature + bias
                total -= F.logsigmoid(logit if ids[i] == ids[j] else -logit)
        found = sigmoid_loss(image, text, temperature, bias, present, ids)
        assert found == pytest.approx((total / present.sum()).item(), rel=1e-5)

    def test_of_one_caption_it_is_that_of_transformers(self, processor):
        model, own = make_siglip(tokenizer(processor))
        inputs = own(
            text=["a red star", "ein Kreis"], images=[Image.new("RGB", (40, 40), c) for c in ("red", "blue")],
            padding="max_length", max_length=16, return_tensors="pt",
        )  # fmt: skip
        with torch.no_grad():
            theirs = model(**inputs, return_loss=True)
        found = sigmoid_loss(
            theirs.image_embeds, theirs.text_embeds[:, None], torch.exp(-model.logit_scale), model.logit_bias
        )
        assert found.item() == pytest.approx(theirs.loss.item(), rel=1e-6)

    def test_softmax_of_one_caption_is_that_of_transformers(self, processor):
        model, own = make_clip(tokenizer(processor))
        pictures = [Image.fromarray(np.full((40, 40, 3), shade, np.uint8)) for shade in (0, 100, 200)]
        inputs = own(text=["a red star", "ein Kreis", "a"], images=pictures, padding=True, return_tensors="pt")
        with torch.no_grad():
            theirs = model(**inputs, return_loss=True)
        found = contrastive_loss(theirs.image_embeds, theirs.text_embeds[:, None], torch.exp(-model.logit_scale))
        assert found.item() == pytest.approx(theirs.loss.item(), rel=1e-6)


def test_embeddings_in_training_are_those_of_evaluation(dual, shapes):
    model, own = dual
    encoder = DualEncoder(model.eval(), own)
    rows = [shapes[index] for index in range(3)]
    batch = CCRKCollator(DualInputs(own, model.config), ["en", "de"])(rows)
    assert batch["input_ids"].shape[:2] == (3, 2) and batch["caption_mask"].all()
    with torch.no_grad():
        found = encoder.embed(model, batch)
    pictures = [row["image"] for row in rows]
    torch.testing.assert_close(found.image, encoder.encode_images(pictures)["embeds"], atol=1e-5, rtol=0)
    captions = [row["captions"][language][0] for row in rows for language in ("en", "de")]
    torch.testing.assert_close(
        found.text.flatten(0, 1), encoder.encode_captions(captions)["embeds"], atol=1e-5, rtol=0
    )
    assert found.temperature.item() == pytest.approx(math.exp(-model.logit_scale.item()))


def test_captions_that_are_cut_are_counted(dual):
    assert DualEncoder(*dual).are_cut(["star", "star " * 12, "star " * 60]) == [False, False, True]


def test_a_missing_caption_takes_part_in_nothing(dual, shapes):
    model, own = dual
    row = shapes[0] | {"captions": {"en": shapes[0]["captions"]["en"], "de": []}}
    batch = CCRKCollator(DualInputs(own, model.config), ["en", "de"])([row, shapes[1]])
    assert batch["caption_mask"].tolist() == [[True, False], [True, True]]


def trainer_of(model, own, rows, folder, **arguments) -> CCRKTrainer:
    arguments = {"per_device_train_batch_size": 8, "max_steps": 3, "learning_rate": 1e-3} | arguments
    arguments |= {"use_cpu": True, "disable_tqdm": True, "report_to": "none", "output_dir": str(folder)}
    return CCRKTrainer(
        model=model,
        args=CCRKTrainingArguments(**arguments),
        data_collator=CCRKCollator(DualInputs(own, model.config), ["en", "de", "zh"]),
        train_dataset=rows,
        eval_dataset=rows.select(range(6)),
        processing_class=own,
    )


def test_a_model_is_known_wherever_it_lies(processor, tmp_path, monkeypatch):
    for part in make_clip(tokenizer(processor)):
        part.save_pretrained(tmp_path / "clip")
    assert_known_wherever_it_lies(tmp_path / "clip", monkeypatch)


OTHERS = ["legacy", *FAMILIES, *LIKE_CLIP, "AltCLIP", "ChineseCLIP", "BLIP"]


@pytest.mark.parametrize("family", OTHERS)
def test_what_is_trained_is_what_is_opened_again(family, processor, shapes, tmp_path):
    """Though the tokenizer has another end, beginning and padding than the configuration says."""
    torch.manual_seed(0)
    words = tokenizer(processor)
    words.bos_token, words.pad_token = "</s>", "<unk>"
    if family == "legacy":
        words.eos_token = "<s>"  # the first of a caption, and not its highest
    model, own = next(parts for name, *parts in make_others(words) if name == family)
    trainer = trainer_of(model, own, shapes, tmp_path / "out", max_steps=2, save_strategy="no")
    trainer.train()
    trainer.save_model()
    trained, again = trainer.encoder, DualEncoder.from_pretrained(str(tmp_path / "out"))
    trained.model.eval()
    if family == "siglip2":  # whose tokenizer's own class opens the tests' words otherwise
        again = DualEncoder(again.model, own)
    captions = ["a red star", "ein Kreis", "a"]
    pictures = [shapes[index]["image"] for index in range(3)]
    for encode, inputs in (("encode_captions", captions), ("encode_images", pictures)):
        found, expected = (getattr(encoder, encode)(inputs)["embeds"] for encoder in (again, trained))
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", [name for name in LIKE_CLIP if name != "OwlViT"])
def test_a_text_encoder_that_pools_at_a_token_that_captions_lack_is_refused(name, processor, tmp_path):
    words = tokenizer(processor)
    for part in make_like_clip(name, words, eos_token_id=words.eos_token_id + 7):
        part.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"pools at token {words.eos_token_id + 7}, its tokenizer ends captions"):
        DualEncoder.from_pretrained(str(tmp_path))


@pytest.mark.parametrize(
    ("family", "lacking"),
    [
        ("two towers", "text_model.pooler"),
        ("two towers", "vision_model.pooler"),
        ("two towers", "vision_model.pooler.dense.bias"),
        ("two towers", "text_projection"),
        ("clip", "visual_projection"),
        ("clip", "logit_scale"),
        ("siglip", "logit_bias"),
        ("siglip", "vision_model.head"),
        ("siglip2", "text_model.head"),
    ],
)
def test_a_model_that_would_begin_with_random_weights_is_refused(family, lacking, processor, tmp_path):
    for part in FAMILIES[family](tokenizer(processor)):
        part.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    weights = load_file(path)
    kept = {name: tensor for name, tensor in weights.items() if not name.startswith(lacking)}
    assert len(kept) < len(weights)
    save_file(kept, path, {"format": "pt"})
    for opens in (
        lambda: DualEncoder.from_pretrained(str(tmp_path)),
        lambda: build_dual(ModelArguments(model_name_or_path=str(tmp_path)), DualEncoder, None),
    ):
        with pytest.raises(ValueError, match=rf"are missing: {lacking}.*; restore the files that belong together"):
            opens()
    save_file(weights | {"text_model.embeddings.position_ids": torch.ones(1)}, path, {"format": "pt"})
    DualEncoder.from_pretrained(str(tmp_path))  # a buffer of older versions


def test_a_tokenizer_with_more_tokens_than_its_model_is_refused(processor, tmp_path):
    words = tokenizer(processor)
    model, own = make_clip(words)
    own.tokenizer.add_tokens(["<new>"])
    with pytest.raises(
        ValueError, match=f"its tokenizer has {len(words)} tokens, but its model {len(words) - 1}; restore"
    ):
        DualEncoder(model, own)


def test_a_caption_whose_end_is_not_the_highest_token_is_told(processor, caplog):
    words = tokenizer(processor)
    DualEncoder(*make_like_clip("OwlViT", words))
    DualEncoder(*make_like_clip("CLIPSeg", words, eos_token_id=2))
    assert caplog.text.count("captions are pooled at their highest token id, which is not the end token") == 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_model_stored_in_16_bits_is_trained_in_fp32(dtype, dual, tmp_path):
    for part in (dual[0].to(dtype), dual[1]):
        part.save_pretrained(tmp_path)
    model = build_dual(ModelArguments(model_name_or_path=str(tmp_path)), DualEncoder, None)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
@pytest.mark.parametrize("chunk_size", [1, 3])
def test_chunks_give_the_gradient_of_the_batch(kind, chunk_size, processor, shapes, tmp_path):
    def gradients(chunk_size):
        torch.manual_seed(0)
        model, own = make_siglip(tokenizer(processor))
        options = {"contrastive_loss": kind, "contrastive_chunk_size": chunk_size, "agreement_weight": 3.0}
        trainer = trainer_of(model, own, shapes, tmp_path, **options)
        return loss_and_gradients(trainer, shapes)

    assert_same_gradients(gradients(chunk_size), gradients(None), 1e-5, 1e-7)


def test_the_loss_is_that_which_the_model_was_trained_by(processor, shapes, tmp_path):
    words = tokenizer(processor)
    assert trainer_of(*make_siglip(words), shapes, tmp_path).loss.kind == "sigmoid"
    assert trainer_of(*make_clip(words), shapes, tmp_path).loss.kind == "softmax"
    with pytest.raises(ValueError, match="contrastive_loss is sigmoid, but a CLIPModel has no bias; remove it"):
        trainer_of(*make_clip(words), shapes, tmp_path, contrastive_loss="sigmoid")


@pytest.fixture
def folder(dual, tmp_path):
    model, own = dual
    model.save_pretrained(tmp_path / "model")
    own.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def arguments(tmp_path, **others) -> list:
    values = {"dataset": "shapes", "languages": ["en", "de"], "output_dir": tmp_path / "out", "use_cpu": "true"}
    values |= {"dataset_config": json.dumps({"num_train": 24, "num_validation": 8, "num_test": 12})}
    values |= {"per_device_train_batch_size": 8, "max_steps": 3, "disable_tqdm": "true", "report_to": "none"}
    given = []
    for name, value in (values | others).items():
        given += [f"--{name}", *(value if isinstance(value, list) else [value])]
    return given


@pytest.mark.slow
def test_what_is_saved_opens_with_its_own_class(folder, tmp_path, monkeypatch):
    trained = arguments(tmp_path, learning_rate=1e-3, eval_strategy="epoch", save_steps=2)
    call(train_retrieval, "--model_name_or_path", folder, *trained, monkeypatch=monkeypatch)
    before, after = (transformers.AutoModel.from_pretrained(path) for path in (folder, tmp_path / "out"))
    assert type(after) is type(before) and not any((tmp_path / "out").glob("*_ccrk.py"))
    changed = [n for n, p in after.state_dict().items() if not torch.equal(p, before.state_dict()[n])]
    assert any("vision" in name for name in changed) and any("text" in name for name in changed)
    transformers.AutoProcessor.from_pretrained(tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert type(after).__name__ in card and "trust_remote_code" not in card

    evaluation = ["--task", "shapes", "--languages", "en", "de", "--output_dir", tmp_path / "evaluated"]
    config = json.dumps({"num_train": 24, "num_validation": 8, "num_test": 12})
    call(eval_mrv, "--model", tmp_path / "out", *evaluation, "--dataset_config", config, monkeypatch=monkeypatch)
    results = json.loads((tmp_path / "evaluated" / "results.json").read_text())
    assert set(results["recall"]) == {"en", "de"} and results["mrv"]["languages"] == ["en", "de"]

    goes_on = arguments(tmp_path, max_steps=4, learning_rate=1e-3, save_steps=2, resume_from_checkpoint="auto")
    call(train_retrieval, "--model_name_or_path", folder, *goes_on, monkeypatch=monkeypatch)
    assert json.loads((tmp_path / "out" / "trainer_state.json").read_text())["global_step"] == 4


@pytest.mark.slow
@pytest.mark.parametrize("frozen", ["image", "text"])
def test_a_frozen_encoder_stays_as_it_is(frozen, folder, tmp_path, monkeypatch):
    trained = arguments(tmp_path, learning_rate=1e-3, freeze=frozen)
    call(train_retrieval, "--model_name_or_path", folder, *trained, monkeypatch=monkeypatch)
    before, after = (transformers.AutoModel.from_pretrained(path) for path in (folder, tmp_path / "out"))
    names = {"image": ("vision", "visual"), "text": ("text",)}[frozen]
    for name, parameter in after.named_parameters():
        if any(part in name for part in names):
            assert torch.equal(parameter, before.get_parameter(name)), name
    assert any(not torch.equal(p, before.get_parameter(n)) for n, p in after.named_parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_every_adapter_and_the_temperature_are_trained_and_saved(family, processor, shapes, tmp_path, caplog):
    torch.manual_seed(0)
    start = tmp_path / "start"
    for part in FAMILIES[family](tokenizer(processor)):
        part.save_pretrained(start)
    own = transformers.AutoProcessor.from_pretrained(start)

    def adapted():
        asked = ModelArguments(model_name_or_path=str(start), use_peft=True, lora_r=2)
        options = {"max_steps": 3, "learning_rate": 1e-2, "save_steps": 3}
        return trainer_of(build_dual(asked, DualEncoder, None), own, shapes, tmp_path / "out", **options)

    caplog.set_level("INFO")
    trainer = adapted()
    assert "LoRA: adapters are trained, and in full logit_scale" in caplog.text
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
    trainer.train()
    bare = trainer.encoder.model
    assert {"logit_scale", "logit_bias"} & set(dict(bare.named_parameters())) <= {
        name.rpartition(".")[2] for name in before
    }
    still = [name for name in before if torch.equal(trainer.model.get_parameter(name), before[name])]
    assert [name for name in still if "lora_A" not in name and not name.endswith("in_proj_bias")] == []

    goes_on = adapted()
    goes_on._load_from_checkpoint(str(tmp_path / "out" / "checkpoint-3"))
    for name in before:
        assert torch.equal(goes_on.model.get_parameter(name), trainer.model.get_parameter(name)), name
    trainer.save_model()
    again = DualEncoder.from_pretrained(str(tmp_path / "out"))
    assert torch.equal(again.model.logit_scale, bare.logit_scale)
    captions, pictures = ["a red star", "ein Kreis"], [shapes[0]["image"]]
    trained = DualEncoder(trainer.model.merge_and_unload().eval(), own)
    for encode, inputs in (("encode_captions", captions), ("encode_images", pictures)):
        found, expected = (getattr(encoder, encode)(inputs)["embeds"] for encoder in (again, trained))
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_temperature_and_embeddings_of_one_dimension_are_not_decayed(processor, shapes, tmp_path):
    for make in (make_clip, make_siglip):
        model, own = make(tokenizer(processor))
        groups = trainer_of(model, own, shapes, tmp_path, weight_decay=0.1).create_optimizer().param_groups
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        decayed = {names[id(p)] for group in groups if group["weight_decay"] for p in group["params"]}
        assert not decayed & {"logit_scale", "logit_bias", "vision_model.embeddings.class_embedding"}
        assert all(model.get_parameter(name).dim() > 1 for name in decayed)
        assert "text_model.encoder.layers.0.mlp.fc1.weight" in decayed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 64}, "image_size applies only to CCRK models, not to .*; remove it"),
        ({"max_length": 8}, "max_length applies only to CCRK models, not to .*; remove it"),
        ({"freeze": "images"}, "freeze takes image and text, not 'images'"),
        ({"contrastive_loss": "sigmoid"}, "contrastive_loss is sigmoid, but a CLIPModel has no bias"),
        ({"rows": "captions"}, "1-to-K takes all captions of an image at once"),
    ],
)
def test_mistakes_end_in_one_line(options, message, processor, tmp_path, monkeypatch):
    for part in make_clip(tokenizer(processor)):
        part.save_pretrained(tmp_path / "model")
    with pytest.raises(SystemExit, match=message):
        given = ["--model_name_or_path", tmp_path / "model", *arguments(tmp_path, **options)]
        call(train_retrieval, *given, monkeypatch=monkeypatch)


def test_training_names_the_model_whose_tokenizer_is_anothers(processor, tmp_path, monkeypatch):
    words = tokenizer(processor)
    for part in make_like_clip("CLIPSeg", words, eos_token_id=words.eos_token_id + 7):
        part.save_pretrained(tmp_path / "model")
    with pytest.raises(
        SystemExit, match=r"model: its text encoder pools at token \d+, its tokenizer ends captions with"
    ):
        given = ["--model_name_or_path", tmp_path / "model", *arguments(tmp_path)]
        call(train_retrieval, *given, monkeypatch=monkeypatch)


def test_freezing_what_is_called_otherwise_is_refused():
    with pytest.raises(ValueError, match="freeze image: a Linear has no vision_model or vision_projection or visual"):
        freeze(torch.nn.Linear(2, 2), ["image"])


@pytest.mark.slow
def test_the_cards_example_embeds_as_evaluation_does(folder, tmp_path, monkeypatch, capsys):
    """Run as it stands there; padding decides what SigLIP sees of a caption."""
    call(train_retrieval, "--model_name_or_path", folder, *arguments(tmp_path, max_steps=1), monkeypatch=monkeypatch)
    example = re.search(r"```python\n(.+?)```", (tmp_path / "out" / "README.md").read_text(), re.DOTALL)[1]
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(example, names)
    texts = DualEncoder.from_pretrained("out").encode_captions(["a red square", "ein blauer Kreis"])["embeds"]
    torch.testing.assert_close(F.normalize(names["text_embeds"], dim=-1), texts)


def test_other_models_are_told_where_to_go(processor, tmp_path, monkeypatch):
    for part in make_clip(tokenizer(processor)):
        part.save_pretrained(tmp_path / "clip")
    with pytest.raises(SystemExit, match=r"is no CCRK; train_retrieval\.py trains it by 1-to-K"):
        given = ["--model_name_or_path", tmp_path / "clip", *arguments(tmp_path)]
        call(train_pretrain, ROOT / "configs" / "shapes_pretrain.yaml", *given, monkeypatch=monkeypatch)
    words = tokenizer(processor)
    transformers.BertModel(transformers.BertConfig(**TEXT, vocab_size=len(words))).save_pretrained(tmp_path / "bert")
    words.save_pretrained(tmp_path / "bert")
    with pytest.raises(SystemExit, match="bert is a BertModel, which embeds no images and captions"):
        given = ["--model_name_or_path", tmp_path / "bert", *arguments(tmp_path)]
        call(train_retrieval, *given, monkeypatch=monkeypatch)


@pytest.mark.parametrize(("family", "name"), [("align", "AlignModel"), ("tipsv2", "Tipsv2Model")])
def test_a_model_without_a_temperature_of_that_name_is_refused(family, name, tmp_path):
    model = ModelArguments(model_name_or_path=families.saved(getattr(families, family), tmp_path))
    with pytest.raises(ValueError, match=f"since its {name} has no logit_scale; train a model that has one, such as"):
        build_dual(model, DualEncoder, None)
