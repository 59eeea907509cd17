"""Checkpoints, image encoders and configurations."""

import contextlib
import importlib
import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from builders import isolated
from conftest import ROOT, TINY_A
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file, save_file
from test_modeling import batch
from tiny import tiny_config
from torch.testing import assert_close
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoProcessor,
    SwinConfig,
    SwinModel,
    TimmWrapperConfig,
    ViTConfig,
)

from ccrk import CCRKConfig, CCRKForImageTextRetrieval, CCRKForPreTraining, CCRKModel, CCRKProcessor


class TestCheckpoints:
    def test_round_trip(self, tiny_model, tmp_path):
        tiny_model.save_pretrained(tmp_path)
        # The names in the file are the model's own, Swin's included: what resumes finds them with strict names.
        stored = set(load_file(tmp_path / "model.safetensors"))
        assert stored == set(tiny_model.state_dict()) - set(tiny_model.all_tied_weights_keys)
        loaded, info = CCRKForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
        assert not any(info.values())
        for (name, ours), theirs in zip(tiny_model.named_parameters(), loaded.parameters(), strict=True):
            assert torch.equal(ours, theirs), name

    def test_base_and_heads_open_each_other(self, tiny_model, tmp_path):
        tiny_model.save_pretrained(tmp_path / "head")
        base, info = CCRKModel.from_pretrained(tmp_path / "head", output_loading_info=True)
        assert not any(info.values())  # leaving the heads behind is the purpose, and worth no note
        base.save_pretrained(tmp_path / "base")
        head, info = CCRKForImageTextRetrieval.from_pretrained(tmp_path / "base", output_loading_info=True)
        assert not info["unexpected_keys"]
        assert {name.split(".")[0] for name in info["missing_keys"]} == {"matching_head"}
        for ours, theirs in zip(tiny_model.ccrk.parameters(), head.ccrk.parameters(), strict=True):
            assert torch.equal(ours, theirs)

    @pytest.mark.slow
    def test_remote_code_in_an_isolated_process(self, tiny_model, processor, tmp_path):
        """AutoConfig, AutoModel and AutoProcessor, with the package not importable, give the same embeddings."""
        torch.manual_seed(3)
        heads = {"base": tiny_model.ccrk, "pretraining": tiny_model}
        heads["retrieval"] = CCRKForImageTextRetrieval(tiny_model.config)
        folders = {name: tmp_path / f"check-point.{name}" for name in heads}  # no Python identifiers
        for name, folder in folders.items():
            heads[name].save_pretrained(folder)
            processor.save_pretrained(folder)
        captions = ["a small red star", "一个红色的星"]
        pixels = torch.linspace(-1, 1, 3 * 64 * 64).view(1, 3, 64, 64)
        script = f"""
import importlib.util, torch
from transformers import AutoConfig, AutoModel, AutoProcessor
assert importlib.util.find_spec("modeling_ccrk") is None
pixels = torch.linspace(-1, 1, 3 * 64 * 64).view(1, 3, 64, 64)
for folder in {list(map(str, folders.values()))!r}:
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    names = config.model_type, type(model).__name__, type(processor).__name__
    assert names == ("ccrk", "CCRKModel", "CCRKProcessor")
    with torch.no_grad():
        outputs = model(pixel_values=pixels, **processor(text={captions!r}))
    torch.save((outputs.image_embeds, outputs.text_embeds), folder + "/embeds.pt")
"""
        environment = {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "PATH": "", "OMP_NUM_THREADS": "1"}
        finished = subprocess.run(
            [sys.executable, "-I", "-c", isolated(script)],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert finished.returncode == 0, finished.stderr
        for name, folder in folders.items():
            images, texts = torch.load(folder / "embeds.pt", weights_only=True)
            base = heads[name] if name == "base" else heads[name].ccrk
            with torch.no_grad():
                ours = base.eval()(pixel_values=pixels, **processor(text=captions))
            assert torch.equal(ours.image_embeds, images) and torch.equal(ours.text_embeds, texts)

    @pytest.mark.slow
    def test_code_that_lacks_a_name_is_not_completed_by_the_code_installed_here(self, tiny_model, tmp_path):
        tiny_model.save_pretrained(tmp_path / "checkpoint")
        code = tmp_path / "checkpoint" / "objectives_ccrk.py"
        code.write_text(code.read_text().replace("def similarity(", "def renamed("))
        script = "from transformers import AutoModel; AutoModel.from_pretrained('checkpoint', trust_remote_code=True)"
        environment = {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
        finished = subprocess.run(
            [sys.executable, "-c", script], cwd=tmp_path, env=os.environ | environment, capture_output=True, text=True
        )
        assert finished.returncode != 0
        assert "cannot import name 'similarity' from 'transformers_modules.checkpoint" in finished.stderr

    @pytest.mark.parametrize("name", ["configuration", "modeling", "objectives", "processing"])
    def test_every_file_beside_a_checkpoint_imports_its_neighbours_alone(self, name, tmp_path, monkeypatch):
        """A neighbour that is empty is an error, though a whole one is installed here."""
        package = tmp_path / f"copy_of_{name}"
        package.mkdir()
        for file in ROOT.glob("*_ccrk.py"):
            (package / file.name).write_text("")
        shutil.copy(ROOT / f"{name}_ccrk.py", package)
        monkeypatch.syspath_prepend(str(tmp_path))
        has_neighbours = "    from ." in (package / f"{name}_ccrk.py").read_text()
        with pytest.raises(ImportError, match=package.name) if has_neighbours else contextlib.nullcontext():
            importlib.import_module(f"{package.name}.{name}_ccrk")

    @pytest.mark.slow
    def test_with_the_package_imported_nothing_asks_for_trust(self, tiny_model, processor, tmp_path, monkeypatch):
        def asked(*_):
            raise AssertionError("asked whether to run remote code")

        monkeypatch.setattr("builtins.input", asked)
        tiny_model.save_pretrained(tmp_path)
        processor.save_pretrained(tmp_path)
        assert isinstance(AutoConfig.from_pretrained(tmp_path), CCRKConfig)
        assert isinstance(AutoModel.from_pretrained(tmp_path), CCRKModel)
        assert isinstance(AutoProcessor.from_pretrained(tmp_path), CCRKProcessor)
        assert isinstance(CCRKProcessor.from_pretrained(tmp_path), CCRKProcessor)

    def test_another_architecture_is_refused(self, tmp_path):
        config = SwinConfig(image_size=32, embed_dim=8, depths=[1], num_heads=[1], window_size=2)
        SwinModel(config).save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="a checkpoint of a 'swin' model, not of CCRK"):
            CCRKForPreTraining.from_pretrained(tmp_path)

    def test_weights_of_other_sizes_are_refused(self, tiny_model, tmp_path):
        tiny_model.save_pretrained(tmp_path)
        weights = load_file(tmp_path / "model.safetensors")
        weights["ccrk.text_projection.weight"] = torch.zeros(5, 32)
        save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
            CCRKForPreTraining.from_pretrained(tmp_path)


class TestImageEncoders:
    def test_vit(self):
        vision = ViTConfig(
            image_size=64,
            patch_size=16,
            hidden_size=24,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=48,
        )
        model = CCRKForPreTraining(tiny_config(vision_config=vision))
        outputs = model(**batch())
        assert model.ccrk.vision_projection.in_features == 24
        outputs.loss.backward()
        assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []

    def test_timm_swin(self, tmp_path):
        vision = {
            "model_type": "timm_wrapper",
            "architecture": "swin_tiny_patch4_window7_224",
            "model_args": {
                "img_size": 64,
                "window_size": 2,
                "embed_dim": 8,
                "depths": (1, 1, 1, 1),
                "num_heads": (1, 1, 2, 2),
            },
        }
        model = CCRKModel(tiny_config(vision_config=vision)).eval()
        images = torch.randn(2, 3, 64, 64)
        states = model.get_image_features(images).last_hidden_state
        assert states.shape == (2, 1 + 2 * 2, 64)
        assert_close(states[:, 0], states[:, 1:].mean(dim=1))
        model.save_pretrained(tmp_path)
        again = CCRKModel.from_pretrained(tmp_path).eval()
        assert_close(again.get_image_features(images).last_hidden_state, states)

    def test_timm_vision_transformer(self):
        sizes = {"img_size": 64, "embed_dim": 24, "depth": 2, "num_heads": 2}
        vision = {"model_type": "timm_wrapper", "architecture": "vit_tiny_patch16_224", "model_args": sizes}
        model = CCRKForPreTraining(tiny_config(vision_config=vision))
        outputs = model(**batch())
        assert model.ccrk.vision_projection.in_features == 24
        outputs.loss.backward()
        assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
        states = model.ccrk.get_image_features(torch.randn(2, 3, 64, 64)).last_hidden_state
        assert states.shape == (2, 1 + 1 + 4 * 4, 24)  # the mean, timm's class token, patches

    def test_a_convolutional_network_of_timm(self):
        """Its map has channels first: each place is a token."""
        vision = {"model_type": "timm_wrapper", "architecture": "test_resnet"}
        model = CCRKForPreTraining(tiny_config(vision_config=vision)).eval()
        images = torch.randn(2, 3, 96, 64)
        states = model.ccrk.get_image_features(images).last_hidden_state
        maps = model.ccrk.vision_model.timm_model.forward_features(images)
        channels, height, width = maps.shape[1:]
        assert states.shape == (2, 1 + height * width, channels) and height > width
        assert_close(states[:, 2], maps[:, :, 0, 1])
        assert_close(states[:, 0], maps.mean(dim=(2, 3)))
        model.train()(**batch()).loss.backward()
        assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


class TestFromVisionTextPretrained:
    @pytest.mark.slow
    def test_from_folders_and_with_the_published_positions(self, tmp_path):
        swin = SwinModel(SwinConfig(image_size=64, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4))
        swin.save_pretrained(tmp_path / "swin")
        text = str(TINY_A / "xlm-roberta-large-tiny")
        model = CCRKForPreTraining.from_vision_text_pretrained(
            str(tmp_path / "swin"), text, projection_dim=8, position_ids_start=0
        )
        assert model.config.position_ids_start == 0 and model.config.mask_token_id == 199
        assert (model.config.text_config.num_hidden_layers, model.config.num_fusion_layers) == (6, 6)
        for (name, ours), theirs in zip(swin.named_parameters(), model.ccrk.vision_model.parameters(), strict=True):
            assert torch.equal(ours, theirs), name
        source = AutoModelForMaskedLM.from_pretrained(text)
        ours = model.ccrk.fusion_encoder.layers[0].output.dense.weight
        assert torch.equal(ours, source.roberta.encoder.layer[13].output.dense.weight)
        assert model.lm_head.decoder.weight is model.ccrk.text_model.embeddings.word_embeddings.weight
        for cls in (CCRKModel, CCRKForImageTextRetrieval):
            assert type(cls.from_vision_text_pretrained(str(tmp_path / "swin"), text)) is cls
        with pytest.raises(ValueError, match="text_config cannot be given: the two models decide it"):
            CCRKModel.from_vision_text_pretrained(str(tmp_path / "swin"), text, text_config={})

    def test_all_layers(self):
        """Half of them, in their order, are text layers, the others fusion layers."""
        swin = SwinModel(SwinConfig(image_size=64, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4))
        text = AutoModelForMaskedLM.from_pretrained(TINY_A / "xlm-roberta-large-tiny")
        model = CCRKModel.from_vision_text_pretrained(swin, text, layers="all")
        assert (model.config.text_config.num_hidden_layers, model.config.num_fusion_layers) == (12, 12)
        ours = [*model.text_model.encoder.layer, *model.fusion_encoder.layers]
        for own, theirs in zip(ours, text.roberta.encoder.layer, strict=True):
            assert torch.equal(own.output.dense.weight, theirs.output.dense.weight)
        text.roberta.encoder.layer = text.roberta.encoder.layer[:2]
        assert CCRKModel.from_vision_text_pretrained(swin, text, layers="all").config.num_fusion_layers == 1
        with pytest.raises(ValueError, match="has 2 layers, too few for text and fusion layers: 4 are needed"):
            CCRKModel.from_vision_text_pretrained(swin, text)
        with pytest.raises(ValueError, match="layers is 'each'; choose 'every_second' or 'all'"):
            CCRKModel.from_vision_text_pretrained(swin, text, layers="each")

    def test_encoders_in_16_bits_start_in_fp32(self):
        """As the parameters that are new do."""
        config = SwinConfig(image_size=64, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4)
        swin = SwinModel(config).half()
        text = AutoModelForMaskedLM.from_pretrained(TINY_A / "xlm-roberta-large-tiny", dtype=torch.bfloat16)
        model = CCRKForPreTraining.from_vision_text_pretrained(swin, text)
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
        assert_close(model.ccrk.vision_model.layernorm.weight, swin.layernorm.weight.float())

    def test_from_timm(self, tmp_path):
        """As with "timm/swin_base_patch4_window7_224.ms_in22k": transformers opens timm's checkpoints by a wrapper."""
        sizes = {"img_size": 64, "window_size": 2, "embed_dim": 8, "depths": (1, 1), "num_heads": (1, 2)}
        config = TimmWrapperConfig(architecture="swin_tiny_patch4_window7_224", model_args=sizes)
        tower = AutoModel.from_config(config).eval()
        tower.save_pretrained(tmp_path / "timm")
        text = str(TINY_A / "xlm-roberta-large-tiny")
        model = CCRKModel.from_vision_text_pretrained(str(tmp_path / "timm"), text).eval()
        images = torch.randn(2, 3, 64, 64)
        with torch.no_grad():
            expected = tower(images).last_hidden_state.flatten(1, 2)
            assert_close(model.get_image_features(images).last_hidden_state[:, 1:], expected)
        model.save_pretrained(tmp_path / "ccrk")
        again = CCRKModel.from_pretrained(tmp_path / "ccrk").eval()
        assert_close(again.get_image_features(images).pooler_output, model.get_image_features(images).pooler_output)

    def test_a_text_model_that_is_no_xlm_roberta(self, tmp_path):
        from transformers import BertConfig, BertForMaskedLM

        sizes = {"hidden_size": 8, "num_hidden_layers": 4, "num_attention_heads": 1, "intermediate_size": 8}
        with pytest.raises(ValueError, match="give an XLM-R such as FacebookAI/xlm-roberta-large"):
            CCRKForPreTraining.from_vision_text_pretrained(
                SwinModel(SwinConfig(image_size=32, embed_dim=8, depths=[1], num_heads=[1])),
                BertForMaskedLM(BertConfig(vocab_size=20, **sizes)),
            )


class TestConfiguration:
    def test_defaults_are_the_published_model(self):
        config = CCRKConfig()
        assert (config.vision_config.hidden_size, config.vision_config.window_size) == (1024, 7)
        assert (config.text_config.hidden_size, config.text_config.num_hidden_layers) == (1024, 6)
        assert (config.num_fusion_layers, config.projection_dim, config.position_ids_start) == (6, 256, 0)
        assert config.mask_token_id == 250001

    def test_round_trip_with_the_whole_auto_map(self, tmp_path):
        config = tiny_config(mlm_probability=0.3)
        config.save_pretrained(tmp_path)
        assert CCRKConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()
        auto_map = json.loads((tmp_path / "config.json").read_text())["auto_map"]
        assert auto_map["AutoModel"] == "modeling_ccrk.CCRKModel"
        assert auto_map["AutoModelForPreTraining"] == "modeling_ccrk.CCRKForPreTraining"

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"projection_dim": 0}, "projection_dim is 0; it must be at least 1"),
            ({"num_fusion_layers": 0}, "num_fusion_layers is 0"),
            ({"text_config": {"hidden_size": 30, "num_attention_heads": 4}}, "not a multiple"),
            ({"text_config": {"model_type": "bert"}}, "must be 'xlm-roberta'"),
            ({"vision_config": {"depths": [1, 1], "num_heads": [1]}}, "one entry per stage"),
            ({"vision_config": {"drop_path_rate": 1.0}}, r"drop_path_rate is 1\.0; it must be at least 0 and below 1"),
            ({"vision_config": {"embed_dim": 10, "depths": [1], "num_heads": [3]}}, "its 3 heads do not divide"),
            ({"vision_config": {"model_type": "convnext"}}, "of type 'convnext', which has no hidden_size"),
            ({"position_ids_start": 514}, "outside of the 514 positions"),
            ({"mask_token_id": 250002}, "outside of the vocabulary"),
            ({"contrastive_reduction": "mean"}, "use 'published' or 'symmetric'"),
            ({"matching_positive_sampling": 5}, "use 0, 1 or 2"),
            ({"mlm_max_ngram": 1}, "must be at least 2"),
            ({"mlm_probability": 40}, "mlm_probability is 40; it must be between 0 and 1"),
            ({"temperature_init_value": 0.0}, r"temperature_init_value is 0\.0; it must be within \[0\.001, 0\.5\]"),
        ],
    )
    def test_sizes_that_do_not_fit(self, fields, message):
        with pytest.raises(StrictDataclassError, match=message):
            CCRKConfig(**fields)

    def test_no_ngrams_as_the_message_says(self):
        model = CCRKForPreTraining(tiny_config(mlm_max_ngram=1, mlm_ngram_probability=0))
        assert torch.isfinite(model(**batch()).mlm_loss)

    def test_captions_longer_than_the_positions(self):
        model = CCRKModel(tiny_config(position_ids_start=60))
        with pytest.raises(ValueError, match=r"8 tokens do not fit the model's 6 positions; truncate them"):
            model(input_ids=torch.zeros(1, 8, dtype=torch.long))

    def test_training_refuses_captions_that_do_not_fit(self, tiny_model):
        inputs = batch(vocab_size=100)
        with pytest.raises(ValueError, match="at least one per image"):
            tiny_model(input_ids=inputs["input_ids"][:, :0], pixel_values=inputs["pixel_values"])
        with pytest.raises(ValueError, match=r"2 images, captions of shape \(3, 2, 8\).* do not belong to one batch"):
            tiny_model(input_ids=inputs["input_ids"], pixel_values=inputs["pixel_values"][:2])
