"""SentenceTransformers of pictures and text, and two towers: made, trained, saved, opened by their own class."""

import json
import re
import subprocess
import sys

import datasets
import numpy as np
import pytest
import torch
import transformers
from builders import isolated
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import LayerNorm, Pooling
from tiny import assert_known_wherever_it_lies, call, make_rows, tokenizer
from torch.nn import functional as F

import eval_mrv
import train_retrieval
from ccrk import CCRKForImageTextRetrieval, CCRKProcessor
from ccrk.arguments import ModelArguments
from ccrk.build import build_model
from ccrk.encoders import load_encoder
from ccrk.towers import SentenceTransformerEncoder, SentenceTransformerPair, join_towers, open_pair
from ccrk.trained_on import Run, read_runs, write_runs
from ccrk.training import features
from ccrk.training.captions import warn_of_long_captions
from ccrk.training.collator import CCRKCollator
from ccrk.training.trainable import add_adapters

TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
VISION = TEXT | {"image_size": 32, "patch_size": 8}
CAPTIONS = ["a red star", "ein blauer Kreis am Strand", "一个红色的正方形"]
SIZES = json.dumps({"num_train": 24, "num_validation": 8, "num_test": 12})


def save(folder, *parts):
    for part in parts:
        part.save_pretrained(folder)
    return folder


def resnet():
    """A timm CNN, as transformers wraps it."""
    config = transformers.TimmWrapperConfig(
        architecture="test_resnet", pretrained_cfg={"input_size": [3, 32, 32], "num_classes": 0}, num_labels=0
    )
    return (transformers.TimmWrapperModel(config),)


def vit():
    images = transformers.ViTImageProcessor(size={"height": 32, "width": 32})
    return transformers.ViTModel(transformers.ViTConfig(**VISION)), images


def vit_without_pooling():
    images = transformers.ViTImageProcessor(size={"height": 32, "width": 32})
    return transformers.ViTModel(transformers.ViTConfig(**VISION), add_pooling_layer=False), images


def clip_vision():
    images = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    return transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**VISION)), images


@pytest.fixture
def text(processor, tmp_path):
    torch.manual_seed(0)
    words = tokenizer(processor)
    config = transformers.XLMRobertaConfig(**TEXT, vocab_size=len(words), max_position_embeddings=18)
    return save(tmp_path / "text", transformers.XLMRobertaModel(config, add_pooling_layer=False), words)


@pytest.fixture
def image(tmp_path):
    torch.manual_seed(0)
    return save(tmp_path / "image", *resnet())


@pytest.fixture
def clip(processor, tmp_path):
    """A SentenceTransformer of one module that takes both, with a projection, prompts, and another name for one."""
    torch.manual_seed(0)
    words = tokenizer(processor)
    config = transformers.CLIPConfig(
        text_config=TEXT | {"vocab_size": len(words), "max_position_embeddings": 16, "eos_token_id": 2},
        vision_config=VISION,
        projection_dim=16,
    )
    images = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    inner = save(tmp_path / "inner", transformers.CLIPModel(config), transformers.CLIPProcessor(images, words))
    modules = [Transformer(str(inner)), Dense(16, 8, activation_function=None), Normalize()]
    prompts = {"photo": "a photo of ", "query": ""}
    SentenceTransformer(modules=modules, prompts=prompts, default_prompt_name="photo", device="cpu").save(
        str(tmp_path / "clip")
    )
    return tmp_path / "clip"


def arguments(tmp_path, **others) -> list:
    values = {"dataset": "shapes", "languages": ["en", "de"], "output_dir": tmp_path / "out", "use_cpu": "true"}
    values |= {"dataset_config": SIZES, "learning_rate": 1e-3}
    values |= {"per_device_train_batch_size": 8, "max_steps": 3, "disable_tqdm": "true", "report_to": "none"}
    given = []
    for name, value in (values | others).items():
        given += [f"--{name}", *(value if isinstance(value, list) else [value])]
    return given


@pytest.fixture
def pictures(shapes):
    return [row["image"] for row in shapes.select(range(3))]


def test_dropout_before_the_projections_is_of_training_alone(image, text, pictures, tmp_path):
    torch.manual_seed(0)
    pair = SentenceTransformerPair(join_towers(str(image), str(text), dropout=0.5)).eval()
    encoder = SentenceTransformerEncoder(pair)
    features = encoder.features("image", pictures)
    whole = encoder.encode_images(pictures)["embeds"]
    torch.testing.assert_close(pair.encode("image", {"image_embeds": features}), whole)
    pair.train()
    assert not torch.allclose(pair.encode("image", {"image_embeds": features}), whole)
    pair.save(tmp_path / "saved")
    assert str(open_pair(tmp_path / "saved")) == str(pair)


def test_captions_that_will_be_cut_are_counted(image, text, caplog):
    encoder = SentenceTransformerEncoder(SentenceTransformerPair(join_towers(str(image), str(text))))
    warn_of_long_captions(make_rows([[30], [2]], languages=("en", "de")), encoder)
    assert "Captions longer than the model reads are cut: en 1 of 2, de 1 of 2; shorten them" in caplog.text
    prompted = SentenceTransformerEncoder(
        SentenceTransformerPair(join_towers(str(image), str(text), prompt="star star star "))
    )
    captions = ["star " * 12, "star"]
    assert encoder.are_cut(captions) == [False, False] and prompted.are_cut(captions) == [True, False]


@pytest.mark.parametrize("vision", [resnet, vit, vit_without_pooling, clip_vision])
@pytest.mark.parametrize("pooling", ["mean", "first"])
def test_towers_pool_and_project(vision, pooling, text, pictures, tmp_path):
    torch.manual_seed(0)
    encoder, *rest = vision()
    folder = save(tmp_path / "vision", encoder, *rest)
    joined = join_towers(str(folder), str(text), pooling, "query: ")
    tower, words = transformers.AutoModel.from_pretrained(text), transformers.AutoTokenizer.from_pretrained(text)
    tokens = words([f"query: {caption}" for caption in CAPTIONS], padding=True, return_tensors="pt")
    with torch.no_grad():
        states, mask = tower.eval()(**tokens).last_hidden_state, tokens["attention_mask"][..., None]
        pooled = states[:, 0] if pooling == "first" else (states * mask).sum(1) / mask.sum(1)
        expected = F.normalize(pooled @ joined[0].sub_modules["text"][-1].linear.weight.T, dim=-1)
        torch.testing.assert_close(torch.from_numpy(joined.encode(CAPTIONS)), expected, atol=1e-5, rtol=0)

        own = transformers.AutoImageProcessor.from_pretrained(folder)
        outputs = encoder.eval()(own(pictures, return_tensors="pt")["pixel_values"])
        pooled = outputs.last_hidden_state[:, 0] if vision is vit_without_pooling else outputs.pooler_output
        expected = F.normalize(pooled @ joined[0].sub_modules["image"][-1].linear.weight.T, dim=-1)
    torch.testing.assert_close(torch.from_numpy(joined.encode(pictures)), expected, atol=1e-5, rtol=0)


def sentence_transformer(encoder, folder, pooling="cls", modules=(), **options):
    """Of a text encoder, saved with its own pooling and a Dense."""
    first = Transformer(str(encoder), max_seq_length=9, do_lower_case=True)
    modules = [first, Pooling(32, pooling), *(modules or (Dense(32, 12), Normalize()))]
    SentenceTransformer(modules=modules, device="cpu", **options).save(str(folder))
    return folder


PROMPTS = {"prompts": {"passage": "a photo ", "query": "find "}, "default_prompt_name": "passage"}


@pytest.mark.parametrize("pooling", ["cls", "max", "weightedmean", "lasttoken"])
def test_a_sentence_transformer_as_a_tower_embeds_as_it_does_alone(pooling, image, text, tmp_path):
    """Pooling, Dense, prompt, length, lower case: what stands before the projection is what its own `encode` gives."""
    folder = sentence_transformer(text, tmp_path / "sentences", pooling, **PROMPTS)
    alone = SentenceTransformer(str(folder), device="cpu")
    joined = join_towers(str(image), str(folder))
    assert (joined[0].sub_modules["text"][0].max_seq_length, joined.default_prompt_name) == (9, "query")
    SentenceTransformerPair(joined).save(tmp_path / "joined")
    captions = [*CAPTIONS, "A RED Star", "a red star above a small blue circle left of a large green square"]
    for model in (joined, open_pair(tmp_path / "joined").model):
        projection = model[0].sub_modules["text"][-1].linear.weight.detach()
        expected = F.normalize(torch.from_numpy(alone.encode(captions)) @ projection.T, dim=-1)
        torch.testing.assert_close(torch.from_numpy(model.encode(captions)), expected, atol=1e-6, rtol=0)
        found = SentenceTransformerEncoder(SentenceTransformerPair(model).eval()).encode_captions(captions)["embeds"]
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_a_sentence_transformer_of_pictures_as_a_tower(text, pictures, tmp_path):
    folder = save(tmp_path / "vit", *vit())
    modules = [Transformer(str(folder)), Pooling(32, "mean"), Dense(32, 12)]
    SentenceTransformer(modules=modules, device="cpu").save(str(tmp_path / "pictures"))
    alone = SentenceTransformer(str(tmp_path / "pictures"), device="cpu")
    joined = join_towers(str(tmp_path / "pictures"), str(text))
    projection = joined[0].sub_modules["image"][-1].linear.weight.detach()
    expected = F.normalize(torch.from_numpy(alone.encode(pictures)) @ projection.T, dim=-1)
    torch.testing.assert_close(torch.from_numpy(joined.encode(pictures)), expected, atol=1e-6, rtol=0)


def test_what_is_given_has_the_last_word_over_a_sentence_transformers_prompt(image, text, tmp_path, caplog):
    folder = sentence_transformer(text, tmp_path / "sentences", **PROMPTS)
    assert join_towers(str(image), str(folder), prompt="find ").prompts["query"] == "find "
    assert not join_towers(str(image), str(folder), prompt="").prompts["query"]
    assert "captions begin with '', not with a prompt that" in caplog.text
    assert join_towers(str(image), str(folder), "first").prompts["document"] == "a photo "
    with pytest.raises(ValueError, match=r"pooling is mean, but the .*sentences pools by cls; remove pooling"):
        join_towers(str(image), str(folder), "mean")


def test_what_of_a_sentence_transformer_cannot_be_taken_over_is_refused(image, text, clip, tmp_path):
    folder = tmp_path / "sentences"
    several = {"prompts": PROMPTS["prompts"]}
    for modules, options, message in (
        ((), several, r"several prompts and no default \(query: 'find ', .*\); choose one with --caption_prompt"),
        ((LayerNorm(32),), {}, "with a LayerNorm behind its pooling, where a tower may have Dense"),
        ((), {"truncate_dim": 8}, "keeps only 8 dimensions; remove truncate_dim"),
    ):
        sentence_transformer(text, folder, modules=modules, **options)
        with pytest.raises(ValueError, match=message):
            join_towers(str(image), str(folder))
    with pytest.raises(ValueError, match="is a CLIPModel, not an encoder of text only; train it with"):
        join_towers(str(image), str(clip))
    with pytest.raises(ValueError, match="is a XLMRobertaModel, not an encoder of images only"):
        join_towers(str(folder), str(text))


def test_a_sentence_transformer_that_would_begin_with_random_weights_is_refused(clip, image, text, tmp_path):
    vision = save(tmp_path / "vision", *vit())
    SentenceTransformerPair(join_towers(str(vision), str(text))).save(tmp_path / "joined")
    sentence_transformer(text, tmp_path / "sentences")  # whose file has no pooler, which is not used
    for folder, lacking in (
        (tmp_path / "joined" / "text_0_Transformer", "encoder.layer.0.output.dense.weight"),
        (tmp_path / "joined" / "image_0_Transformer", "pooler.dense"),
        (tmp_path / "joined" / "image_0_Transformer", "pooler.dense.bias"),
        (clip, "text_projection.weight"),
        (tmp_path / "sentences", "embeddings.word_embeddings.weight"),
    ):
        opens = {"sentences": lambda folder: join_towers(str(image), str(folder)), "clip": open_pair}
        source = next(path for path in (folder, *folder.parents) if (path / "modules.json").is_file())
        weights = load_file(folder / "model.safetensors")
        kept = {name: tensor for name, tensor in weights.items() if not name.startswith(lacking)}
        assert len(kept) < len(weights)
        save_file(kept, folder / "model.safetensors", {"format": "pt"})
        with pytest.raises(ValueError, match=r"missing.*; restore the files that belong together"):
            opens.get(source.name, open_pair)(source)
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        opens.get(source.name, open_pair)(source)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_towers_stored_in_16_bits_are_opened_in_fp32(dtype, image, text, pictures, tmp_path):
    sentences = sentence_transformer(text, tmp_path / "sentences")
    for folder in (image, text):
        transformers.AutoModel.from_pretrained(folder, dtype=dtype).save_pretrained(folder)
    SentenceTransformer(str(sentences), device="cpu").to(dtype).save(str(sentences))
    vision = save(tmp_path / "vision", clip_vision()[0].to(dtype), clip_vision()[1])
    for pair in ((image, text), (vision, sentences)):
        joined = SentenceTransformerPair(join_towers(*map(str, pair)))
        assert {parameter.dtype for parameter in joined.parameters()} == {torch.float32}
        joined.save(tmp_path / "joined")
        again = open_pair(tmp_path / "joined").model
        for inputs in (pictures, CAPTIONS):
            np.testing.assert_allclose(again.encode(inputs), joined.model.encode(inputs), atol=1e-6)


def test_embeddings_in_training_are_those_of_evaluation_and_of_its_own_class(clip, image, text, pictures, shapes):
    for model in (SentenceTransformer(str(clip), device="cpu"), join_towers(str(image), str(text))):
        encoder = SentenceTransformerEncoder(SentenceTransformerPair(model).eval())
        rows = [shapes[index] for index in range(3)]
        batch = CCRKCollator(encoder.inputs, ["en", "de"])(rows)
        assert batch["input_ids"].shape[:2] == (3, 2) and batch["caption_mask"].all()
        captions = [row["captions"][language][0] for row in rows for language in ("en", "de")]
        with torch.no_grad():
            found = encoder.embed(encoder.model, batch)
        for embeds, alone, own in (
            (found.image, encoder.encode_images(pictures), model.encode(pictures)),
            (found.text.flatten(0, 1), encoder.encode_captions(captions), model.encode(captions)),
        ):
            torch.testing.assert_close(embeds, alone["embeds"], atol=1e-5, rtol=0)
            torch.testing.assert_close(embeds, torch.from_numpy(own), atol=1e-5, rtol=0)


OPENED_ELSEWHERE = """
import importlib.util, sys
import numpy
from PIL import Image
from sentence_transformers import SentenceTransformer
assert importlib.util.find_spec("ccrk") is None and importlib.util.find_spec("modeling_ccrk") is None
model = SentenceTransformer(sys.argv[1], device="cpu")
pictures = [Image.open(path) for path in sys.argv[3:]]
numpy.savez(sys.argv[2], images=model.encode(pictures), texts=model.encode(["a red star", "ein Kreis"]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("source", ["two towers", "clip"])
def test_what_is_saved_opens_with_its_own_class_alone(source, clip, image, text, pictures, tmp_path, monkeypatch):
    start = ["--model_name_or_path", clip]
    if source == "two towers":
        start = ["--vision_model", image, "--text_model", text, "--caption_prompt", "query: "]
    options = {"eval_strategy": "epoch", "save_steps": 2}
    call(train_retrieval, *start, *arguments(tmp_path, **options), monkeypatch=monkeypatch)
    out = tmp_path / "out"
    assert not any(out.rglob("*_ccrk.py"))
    saved = SentenceTransformer(str(out), device="cpu")
    if source == "clip":
        before = SentenceTransformer(str(clip), device="cpu")
        assert str(saved) == str(before)
        assert (saved.prompts["photo"], saved.default_prompt_name) == ("a photo of ", "photo")
        changed = [n for n, p in saved.state_dict().items() if not torch.equal(p, before.state_dict()[n])]
        assert any("vision" in name for name in changed) and any("text" in name for name in changed)
    card = (out / "README.md").read_text()
    assert f"SentenceTransformer('{out.name}')" in card and "library_name: sentence-transformers" in card

    if source == "clip":  # the process below takes long
        return
    paths = []
    for number, picture in enumerate(pictures):
        paths.append(tmp_path / f"{number}.png")
        picture.save(paths[-1])
    command = [sys.executable, "-I", "-c", isolated(OPENED_ELSEWHERE), out, tmp_path / "found.npz", *paths]
    subprocess.run(command, check=True, cwd=tmp_path)
    found, encoder = np.load(tmp_path / "found.npz"), load_encoder(str(out), 0, False)
    embeds = encoder.encode_images(pictures)["embeds"]
    np.testing.assert_allclose(found["images"], embeds, atol=1e-5)
    np.testing.assert_allclose(
        found["texts"], encoder.encode_captions(["a red star", "ein Kreis"])["embeds"], atol=1e-5
    )

    evaluation = ["--task", "shapes", "--languages", "en", "de", "--output_dir", tmp_path / "evaluated"]
    call(eval_mrv, "--model", out, *evaluation, "--dataset_config", SIZES, monkeypatch=monkeypatch)
    results = json.loads((tmp_path / "evaluated" / "results.json").read_text())
    assert set(results["recall"]) == {"en", "de"} and results["mrv"]["languages"] == ["en", "de"]


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"use_peft": "true"}, {"contrastive_loss": "sigmoid"}])
def test_a_run_goes_on_as_if_it_had_not_ended(options, image, text, tmp_path, monkeypatch):
    start = ["--vision_model", image, "--text_model", text]
    options |= {"save_steps": 2, "max_steps": 4, "lr_scheduler_type": "constant"}

    def trained(folder, **others):
        values = options | {"output_dir": tmp_path / folder} | others
        call(train_retrieval, *start, *arguments(tmp_path, **values), monkeypatch=monkeypatch)
        return open_pair(tmp_path / folder).state_dict()

    whole = trained("whole")
    trained("parts", max_steps=2)
    goes_on = trained("parts", resume_from_checkpoint="auto")
    assert json.loads((tmp_path / "parts" / "trainer_state.json").read_text())["global_step"] == 4
    assert "logit_bias" in whole or options.get("contrastive_loss") != "sigmoid"
    for name, tensor in whole.items():
        torch.testing.assert_close(goes_on[name], tensor, atol=1e-6, rtol=1e-5, msg=name)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_ccrk_is_made_in_fp32_of_encoders_in_16_bits(dtype, image, processor, tmp_path, caplog):
    words = tokenizer(processor)
    config = transformers.XLMRobertaConfig(**TEXT | {"num_hidden_layers": 2}, vocab_size=len(words))
    encoder = transformers.XLMRobertaModel(config, add_pooling_layer=False)
    save(tmp_path / "plain", encoder, words)
    folder = sentence_transformer(tmp_path / "plain", tmp_path / "text")
    for path in (image, folder):
        transformers.AutoModel.from_pretrained(path, dtype=dtype).save_pretrained(path)
    asked = ModelArguments(vision_model=str(image), text_model=str(folder), layers="all", image_size=64)
    made = build_model(asked, processor, CCRKForImageTextRetrieval)
    assert {parameter.dtype for parameter in made.parameters()} == {torch.float32}
    assert f"{folder} is a SentenceTransformer: a CCRK takes its encoder, not its pooling or prompts" in caplog.text


@pytest.mark.slow
def test_layers_make_a_ccrk_of_two_towers(image, processor, tmp_path, monkeypatch):
    torch.manual_seed(0)
    words = tokenizer(processor)
    words.mask_token = words.unk_token
    config = transformers.XLMRobertaConfig(
        **TEXT | {"num_hidden_layers": 2}, vocab_size=len(words), max_position_embeddings=42
    )
    text = save(tmp_path / "text", transformers.XLMRobertaModel(config, add_pooling_layer=False), words)
    start = ["--vision_model", image, "--text_model", text, "--layers", "all", "--image_size", 64]
    call(train_retrieval, *start, *arguments(tmp_path), monkeypatch=monkeypatch)
    made = CCRKForImageTextRetrieval.from_pretrained(tmp_path / "out")
    assert (made.config.text_config.num_hidden_layers, made.config.num_fusion_layers) == (1, 1)
    before = transformers.AutoModel.from_pretrained(text).encoder.layer[1].attention.self.query.weight
    moved = (made.ccrk.fusion_encoder.layers[0].attention.self.query.weight - before).norm()
    assert 0 < moved < 0.2 * before.norm()
    own = transformers.AutoImageProcessor.from_pretrained(image).data_config["mean"]
    assert tuple(CCRKProcessor.from_pretrained(tmp_path / "out").image_processor.image_mean) == own
    evaluation = ["--task", "shapes", "--languages", "en", "de", "--output_dir", tmp_path / "evaluated"]
    call(eval_mrv, "--model", tmp_path / "out", *evaluation, "--dataset_config", SIZES, monkeypatch=monkeypatch)
    assert json.loads((tmp_path / "evaluated" / "results.json").read_text())["k_test"]


def test_adapters_go_where_they_are_trained(text, tmp_path):
    """Not onto a pooler in whose place a Pooling stands."""
    vision = save(tmp_path / "vision", *vit())
    config = transformers.AutoConfig.from_pretrained(text)
    transformers.XLMRobertaModel(config).save_pretrained(text)
    adapted = add_adapters(SentenceTransformerPair(join_towers(str(vision), str(text))), 2)
    names = [name for name, _ in adapted.named_parameters() if "pooler" in name and "lora" in name]
    assert len(names) == 2 and all(".image." in name for name in names)


@pytest.mark.parametrize("pooling", ["mean", None])
def test_captions_of_queries_and_documents_begin_with_the_prompt(pooling, image, text, pictures, tmp_path):
    """As `encode` embeds them, and evaluations that ask for pictures' captions as documents."""
    start = str(text) if pooling else str(sentence_transformer(text, tmp_path / "sentences", **PROMPTS))
    pair = SentenceTransformerPair(join_towers(str(image), start, pooling, "a photo " if pooling else None))
    pair.save(tmp_path / "joined")
    model = SentenceTransformer(str(tmp_path / "joined"), device="cpu")
    assert (model.prompts["query"], model.prompts["document"]) == ("a photo ", "a photo ")
    for inputs in (CAPTIONS, pictures):
        expected = model.encode(inputs)
        for encode in (model.encode_query, model.encode_document):
            np.testing.assert_allclose(encode(inputs), expected, atol=1e-6)
    alone = [model.encode(CAPTIONS, prompt=prompt) for prompt in ("", "a photo ")]
    assert not np.allclose(*alone) and np.allclose(alone[1], model.encode(CAPTIONS))
    np.testing.assert_allclose(model.encode(pictures, prompt=""), model.encode(pictures), atol=1e-6)


def test_a_folder_with_the_prompt_of_queries_alone_opens(image, text, tmp_path):
    SentenceTransformerPair(join_towers(str(image), str(text), prompt="a photo ")).save(tmp_path)
    file = tmp_path / "config_sentence_transformers.json"
    settings = json.loads(file.read_text())
    del settings["prompts"]["document"]
    file.write_text(json.dumps(settings))
    assert SentenceTransformerEncoder(open_pair(tmp_path).eval()).inputs.prompt == "a photo "


@pytest.mark.slow
def test_adapters_are_merged_into_what_is_saved(image, text, tmp_path, monkeypatch):
    start = ["--vision_model", image, "--text_model", text, "--use_peft", "true", "--lora_r", "2"]
    call(train_retrieval, *start, *arguments(tmp_path, learning_rate=1e-2), monkeypatch=monkeypatch)
    after, before = (
        SentenceTransformer(str(tmp_path / "out"), device="cpu"),
        transformers.AutoModel.from_pretrained(text),
    )
    tower = after[0].sub_modules["text"][0].model
    assert not any("lora" in name for name, _ in after.named_parameters())
    query = "encoder.layer.0.attention.self.query.weight"
    assert not torch.equal(tower.get_parameter(query), before.get_parameter(query))
    word = "embeddings.word_embeddings.weight"
    assert torch.equal(tower.get_parameter(word), before.get_parameter(word))


def test_a_model_is_known_wherever_it_lies(image, text, tmp_path, monkeypatch):
    SentenceTransformerPair(join_towers(str(image), str(text))).save(tmp_path / "joined")
    assert_known_wherever_it_lies(tmp_path / "joined", monkeypatch)


def test_residual_projection(image, text, tmp_path):
    """x + GELU(W x + b), then a linear map: by modules that any installation of sentence-transformers has."""
    join_towers(str(image), str(text), residual=True).save_pretrained(str(tmp_path / "joined"))
    model = SentenceTransformer(str(tmp_path / "joined"), device="cpu")
    *tower, hidden, projection = model[0].sub_modules["text"]
    inputs = model.preprocess(["a dog on a beach"])
    with torch.no_grad():
        features = torch.nn.Sequential(*tower)(dict(inputs))["sentence_embedding"]
        expected = projection.linear(features + torch.nn.functional.gelu(hidden.linear(features)))
    torch.testing.assert_close(
        torch.from_numpy(model.encode(["a dog on a beach"])), torch.nn.functional.normalize(expected, dim=-1)
    )


@pytest.mark.slow
def test_adapters_of_text_are_trained_beside_cached_pictures(image, text, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    SentenceTransformerPair(join_towers(str(image), str(text))).save(tmp_path / "towers")
    parent = Run("photos", "train", 0.1, 3, 3, np.arange(1, 4, dtype=np.uint64))
    write_runs(tmp_path / "towers", [parent])
    start = ["--model_name_or_path", tmp_path / "towers", "--use_peft", "true", "--lora_r", "2", "--freeze", "image"]
    options = {"cache_image_features": "true", "learning_rate": 1e-2}
    call(train_retrieval, *start, *arguments(tmp_path, **options), monkeypatch=monkeypatch)
    before, after = (open_pair(tmp_path / name).state_dict() for name in ("towers", "out"))
    changed = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert any(".text.0." in name and "query.weight" in name for name in changed)
    assert {name for name in changed if ".image." in name} == {
        name for name in before if ".image." in name and ".linear." in name
    }
    assert [(run.data, run.images) for run in read_runs(tmp_path / "out")] == [("photos", 3), ("shapes", 24)]


@pytest.mark.slow
def test_frozen_towers_stay_as_they_are(image, text, tmp_path, monkeypatch):
    """Batch norm's statistics too; what is behind them is trained."""
    start = ["--vision_model", image, "--text_model", text, "--freeze", "image", "text", "--projection", "residual"]
    call(train_retrieval, *start, *arguments(tmp_path), monkeypatch=monkeypatch)
    after = SentenceTransformer(str(tmp_path / "out"), device="cpu")
    untrained = [transformers.AutoModel.from_pretrained(folder) for folder in (image, text)]
    for modality, before in zip(("image", "text"), untrained, strict=True):
        tower = after[0].sub_modules[modality][0].model.state_dict()
        for name, tensor in before.state_dict().items():
            if "pooler" not in name:
                assert torch.equal(tower[name], tensor), name
    torch.manual_seed(42)  # the default, from which what is behind them started
    start = join_towers(str(image), str(text), residual=True)
    for modality in ("image", "text"):
        for place in (-2, -1):
            dense = [model[0].sub_modules[modality][place].linear.weight for model in (start, after)]
            assert 0 < (dense[0] - dense[1]).norm() < 0.2 * dense[0].norm()


@pytest.mark.slow
def test_cached_features_train_the_same_projections(image, text, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    start = ["--vision_model", image, "--text_model", text, "--freeze", "image", "text"]

    def trained(folder, **others):
        values = {"output_dir": tmp_path / folder} | others
        call(train_retrieval, *start, *arguments(tmp_path, **values), monkeypatch=monkeypatch)
        return open_pair(tmp_path / folder).state_dict()

    cached = {"cache_image_features": "true", "cache_caption_features": "true"}
    first = trained("first", **cached)
    files = sorted((tmp_path / "cache" / "features").glob("*.npy"))
    assert [path.name.split("-")[0] for path in files] == ["captions", "images"]

    encoded = []
    monkeypatch.setattr(features, "_make_file", lambda path, _: encoded.append(path))
    again, plain = trained("again", **cached), trained("plain")
    torch.manual_seed(42)
    start = SentenceTransformerPair(join_towers(str(image), str(text))).state_dict()
    for name, tensor in plain.items():
        moved = (tensor.float() - start[name]).norm()
        assert (first[name].float() - tensor).norm() <= 0.01 * moved, name
        assert torch.equal(first[name], again[name]), name
    assert not encoded


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 64}, "image_size applies only to CCRK models, not to a model of two towers; remove it"),
        (
            {"vision_model": None, "text_model": None, "model_name_or_path": "clip", "layers": "all"},
            "layers applies only to CCRK models, not to .*clip; remove it",
        ),
        (
            {"vision_model": "text"},
            "is a XLMRobertaModel, not an encoder of images only; give vision_model",
        ),
        ({"text_model": "inner"}, "is a CLIPModel, not an encoder of text only; train it with --model_name_or_path"),
        ({"model_name_or_path": "clip"}, "vision_model applies only to two towers, not to .*clip; remove it"),
        ({"freeze": "images"}, "freeze takes image and text, not 'images'"),
        ({"freeze": "text", "cache_image_features": "true"}, "an encoder that stays as it is; add --freeze image"),
        (
            {"cache_image_features": "true", "freeze": "image", "augmentation": "published"},
            "cache_image_features keeps a picture as it is; remove it, or augmentation",
        ),
        (
            {"captions_per_image": "all", "languages": ["en"]},
            "captions_per_image is all, but there is one language, en; name several",
        ),
        (
            {"vision_model": None, "text_model": None, "model_name_or_path": "clip", "projection": "residual"},
            "projection applies only to two towers, not to .*clip; remove it",
        ),
        (
            {"layers": "all", "image_size": 32, "projection_dropout": 0.3},
            "projection_dropout applies only to two towers, not to a CCRK; remove it",
        ),
        ({"projection_dropout": 1}, "projection_dropout is 1.0; it must be at least 0 and below 1"),
    ],
)
def test_mistakes_end_in_one_line(options, message, clip, image, text, tmp_path, monkeypatch):
    folders = {n: tmp_path / value for n, value in options.items() if value and n.endswith(("_model", "_path"))}
    values = {"vision_model": image, "text_model": text} | options | folders
    values = {name: value for name, value in values.items() if value is not None}
    with pytest.raises(SystemExit, match=message):
        call(train_retrieval, *arguments(tmp_path, **values), monkeypatch=monkeypatch)


def test_a_sentence_transformer_of_text_alone_is_refused(text, tmp_path):
    SentenceTransformer(modules=[Transformer(str(text))], device="cpu").save(str(tmp_path / "alone"))
    with pytest.raises(ValueError, match=re.escape("takes no images; give one that takes pictures and text")):
        load_encoder(str(tmp_path / "alone"), 0, False)


def test_a_tokenizer_that_cannot_pad_is_refused(image, text, processor):
    words = tokenizer(processor)
    words.pad_token = None
    words.save_pretrained(text)
    with pytest.raises(ValueError, match="its tokenizer has no pad token; set one"):
        SentenceTransformerEncoder(SentenceTransformerPair(join_towers(str(image), str(text))))
