"""Tools that people already use, each with the real library: torch.compile, PEFT, ONNX Runtime, torchao, OpenMP."""

import copy
import os
import shutil
import subprocess
import sys

import pytest
import torch
import yaml
from conftest import ROOT
from safetensors.torch import load_file
from transformers import AutoModel

import train_retrieval
from ccrk import CCRKForImageTextRetrieval, CCRKModel, CCRKProcessor

ADAPTED = ("ccrk.text_model.encoder.", "ccrk.fusion_encoder.")


@pytest.fixture
def inputs(processor):
    torch.manual_seed(1)
    return {"pixel_values": torch.randn(3, 3, 64, 64), **processor(text=["a red star", "ein großer Kreis", "星", "a"])}


@pytest.mark.slow
def test_compiled_model_gives_the_same_outputs(tiny_model, inputs):
    model = tiny_model.ccrk.eval()
    compiled = torch.compile(model, backend="aot_eager")  # all but code generation, which takes minutes
    with torch.no_grad():
        expected, found = model(**inputs), compiled(**inputs)
    for name in ("image_embeds", "text_embeds", "logits_per_image"):
        torch.testing.assert_close(found[name], expected[name], atol=1e-5, rtol=0)


def test_int8_weights_and_activations(tiny_model, inputs):
    torchao = pytest.importorskip("torchao.quantization")
    model = tiny_model.ccrk.eval()
    quantised = copy.deepcopy(model)
    torchao.quantize_(quantised, torchao.Int8DynamicActivationInt8WeightConfig())
    with torch.no_grad():
        expected, found = model(**inputs), quantised(**inputs)
    for name in ("image_embeds", "text_embeds"):
        assert not torch.equal(found[name], expected[name])
        assert torch.cosine_similarity(found[name], expected[name]).min() > 0.99


def test_device_map_with_parts_on_disk(tiny_model, inputs, tmp_path):
    tiny_model.save_pretrained(tmp_path / "model")
    whole = CCRKModel.from_pretrained(tmp_path / "model").eval()
    parts = {
        name: "disk" if name in ("vision_model", "fusion_encoder") else "cpu" for name, _ in whole.named_children()
    }
    for device_map in ("auto", parts | {"temperature": "cpu"}):
        spread = CCRKModel.from_pretrained(
            tmp_path / "model", device_map=device_map, offload_folder=tmp_path / "offloaded"
        ).eval()
        with torch.no_grad():
            expected, found = whole(**inputs), spread(**inputs)
        for name in ("image_embeds", "text_embeds"):
            assert torch.equal(found[name], expected[name])
    assert spread.vision_model.embeddings.patch_embeddings.projection.weight.device.type == "meta"


class TestLora:
    @pytest.fixture
    def start(self, tiny_model, processor, tmp_path):
        folder = tmp_path / "start"
        torch.manual_seed(0)
        CCRKForImageTextRetrieval(tiny_model.config).save_pretrained(folder)
        processor.save_pretrained(folder)
        return folder

    @pytest.fixture
    def arguments(self, tmp_path):
        recipe = {
            "dataset": "shapes",
            "languages": ["en", "de"],
            "dataset_config": {"num_train": 24, "num_validation": 6, "num_test": 6, "cache_dir": str(tmp_path / "d")},
            "use_peft": True,
            "lora_r": 4,
            "per_device_train_batch_size": 8,
            "max_steps": 4,
            "learning_rate": 0.01,
            "save_strategy": "no",
            "eval_strategy": "steps",
            "eval_steps": 4,
            "use_cpu": True,
            "disable_tqdm": True,
            "report_to": "none",
        }
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        return [str(tmp_path / "recipe.yaml"), "--output_dir", str(tmp_path / "out")]

    @pytest.mark.slow
    def test_train_save_load_and_evaluate(self, start, arguments, inputs, tmp_path, monkeypatch):
        peft = pytest.importorskip("peft")
        command = ["train_retrieval.py", *arguments, "--model_name_or_path", str(start)]
        monkeypatch.setattr("sys.argv", command)
        train_retrieval.main()
        out = tmp_path / "out"

        before, after = (load_file(folder / "model.safetensors") for folder in (start, out))
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        weights = {
            name for name in before if name.startswith(ADAPTED) and name.endswith("weight") and "LayerNorm" not in name
        }
        assert before.keys() == after.keys() and changed == weights and len(weights) == 16
        # What has changed is the adapter alone: the weights under it are as they were.
        adapter = load_file(out / "adapter" / "adapter_model.safetensors")
        assert len(adapter) == 2 * len(weights)
        for name in weights:
            low_rank = f"base_model.model.{name.removesuffix('weight')}lora_"
            step = 2 * adapter[f"{low_rank}B.weight"] @ adapter[f"{low_rank}A.weight"]
            assert step.shape[0] == before[name].shape[0] and step.abs().max() > 0
            torch.testing.assert_close(after[name] - before[name], step, atol=1e-6, rtol=0)

        merged = CCRKModel.from_pretrained(out).eval()
        for base in (
            CCRKForImageTextRetrieval.from_pretrained(start),
            AutoModel.from_pretrained(start),
            AutoModel.from_pretrained(start, trust_remote_code=True),
        ):
            loaded = peft.PeftModel.from_pretrained(base, out / "adapter").eval()
            with torch.no_grad():
                expected, found = merged(**inputs), getattr(loaded, "ccrk", loaded)(**inputs)
            torch.testing.assert_close(found.text_embeds, expected.text_embeds, atol=1e-5, rtol=0)
            assert torch.equal(found.image_embeds, expected.image_embeds)
        assert CCRKProcessor.from_pretrained(out).max_words == 40 and (out / "modeling_ccrk.py").exists()

    def test_without_a_checkpoint_there_is_nothing_to_adapt(self, arguments, tmp_path, monkeypatch):
        with (tmp_path / "recipe.yaml").open("a") as recipe:
            recipe.write("image_size: 64\nconfig: {text_config: {vocab_size: 400}}\n")
        monkeypatch.setattr("sys.argv", ["train_retrieval.py", *arguments])
        with pytest.raises(SystemExit, match="use_peft adapts a trained model; give model_name_or_path"):
            train_retrieval.main()


@pytest.mark.slow
@pytest.mark.parametrize("script", ["train_pretrain.py", "train_retrieval.py", "eval_mrv.py"])
def test_threads_of_scripts_wait_passively(script, tmp_path):
    """OpenMP reads its policy once, when torch is imported."""
    (tmp_path / "torch").mkdir()
    says = "import os\nprint(os.environ.get('OMP_WAIT_POLICY'), flush=True)\nos._exit(0)\n"
    (tmp_path / "torch" / "__init__.py").write_text(says)
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    for given, expected in (({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")):
        finished = subprocess.run(
            [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import {script[:-3]}"],
            cwd=ROOT,
            env=environment | given,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert finished.stdout.split() == [expected], finished.stderr


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
def test_threads_of_the_makefile_wait_passively():
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    command = ["make", "--silent", "--eval", "policy: ; @echo $$OMP_WAIT_POLICY", "policy"]
    finished = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert finished.stdout == "PASSIVE\n", finished.stderr
