"""Folders of models that others wrote: opened whole or refused in one line, and never run. And what is printed."""

import ast
import io
import json
import logging
import os
import pickle
import re
import shutil
import subprocess
import sys
import zlib
from collections import OrderedDict
from pathlib import Path

import datasets
import families
import pytest
import torch
from conftest import ROOT, TINY_A
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from tiny import make_trainer, tiny_config
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoTokenizer,
    CLIPConfig,
    CLIPModel,
    SwinConfig,
    SwinForImageClassification,
    XLMRobertaConfig,
    XLMRobertaForMaskedLM,
)

import ccrk.convert
from ccrk import CCRKConfig, CCRKForImageTextRetrieval, CCRKForPreTraining, CCRKProcessor
from ccrk.arguments import ModelArguments
from ccrk.build import build_model, build_processor, kind_of_model
from ccrk.encoders import DualEncoder, load_encoder
from ccrk.training.checkpoints import MANIFEST, what_is_wrong
from ccrk.training.model_card import model_card
from data_scripts.cli import one_line, one_line_errors
from data_scripts.files import open_model, open_pretrained
from data_scripts.rows import row_features
from data_scripts.translate import Translator


@pytest.fixture(scope="module")
def whole(processor, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    CCRKForImageTextRetrieval(tiny_config(len(processor.tokenizer))).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "folder")


def refused(call, *expected: str) -> None:
    with pytest.raises(ValueError) as error:
        call()
    assert all(part in str(error.value) for part in expected), str(error.value)
    assert one_line(error.value) == str(error.value)


class Plant:
    def __reduce__(self):
        return open, ("planted", "w")


PLANTED = "open('planted', 'w').close()\n"


class TestCodeInAFolder:
    """A folder that brings code: every way in leaves it alone, with a `y` waiting on stdin and with nothing there."""

    @pytest.fixture(params=["y\n", None])
    def stdin(self, request, monkeypatch, tmp_path):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("sys.stdin", request.param and io.StringIO(request.param))
        yield
        assert not (tmp_path / "planted").exists()

    @pytest.fixture
    def stranger(self, folder, stdin):
        """A model type that transformers does not know."""
        classes = {f"Auto{name}": f"evil.{name}" for name in ("Config", "Model", "Tokenizer", "Processor")}
        for file in ("config.json", "tokenizer_config.json", "processor_config.json"):
            content = json.loads((folder / file).read_text()) | {"model_type": "evil", "auto_map": classes}
            for name in ("architectures", "tokenizer_class", "processor_class"):
                content |= {name: "Evil"} if name in content else {}
            (folder / file).write_text(json.dumps(content))
        (folder / "evil.py").write_text(PLANTED)
        return str(folder)

    def test_of_an_unknown_type(self, stranger):
        to_start_from = ModelArguments(vision_model=stranger, text_model=stranger, image_size=64)
        for call in (
            lambda: load_encoder(stranger, 0, False),
            lambda: DualEncoder.from_pretrained(stranger),
            lambda: build_processor(to_start_from, None),
            lambda: open_model(AutoModel, stranger),
            lambda: open_model(AutoModelForMaskedLM, stranger),
            lambda: open_pretrained(AutoTokenizer, stranger),
            lambda: build_processor(ModelArguments(model_name_or_path=stranger), None),
        ):
            refused(call, f"{stranger} asks to run Python code of its own, which is never done here; name a folder")
        refused(lambda: Translator(stranger, "en", ["de"], 1, torch.device("cpu")), stranger)

    def test_of_ccrk_is_opened_by_the_code_installed(self, folder, stdin):
        for name in ("configuration", "modeling", "objectives", "processing"):
            with (folder / f"{name}_ccrk.py").open("a") as file:
                file.write(PLANTED)
        encoder = load_encoder(str(folder), 4, False)
        assert type(encoder.model) is CCRKForImageTextRetrieval and type(encoder.processor) is CCRKProcessor


def change_weights(change):
    def damage(folder):
        state = load_file(folder / "model.safetensors")
        change(state)
        save_file(state, folder / "model.safetensors", {"format": "pt"})

    return damage


def change_config(**fields):
    def damage(folder):
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return damage


def write(name, contents):
    return lambda folder: (folder / name).write_bytes(contents)


def cut(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:20_000])


def lose_a_shard(folder):
    CCRKForImageTextRetrieval.from_pretrained(folder).save_pretrained(folder, max_shard_size="50KB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    next(folder.glob("model-00002-*")).unlink()


LAYER = "ccrk.text_model.encoder.layer"
DAMAGES = {
    "cut": (cut, "is it whole? (SafetensorError"),
    "no tensors": (write("model.safetensors", b"\xff" * 99), "is it whole? (SafetensorError"),
    "empty": (write("model.safetensors", b""), "is it whole? (SafetensorError"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "no file named model.safetensors"),
    "a shard less": (lose_a_shard, "model-00002-of-0"),
    "weights less": (
        change_weights(lambda state: [state.pop(name) for name in list(state) if "attention.self" in name]),
        "weights of a CCRKForImageTextRetrieval are missing: ccrk.",
    ),
    "half a head": (
        change_weights(lambda state: state.pop("matching_head.0.bias")),
        "are missing: matching_head.0.bias",
    ),
    "a layer more": (
        change_weights(lambda state: state.update({f"{LAYER}.1.output.dense.bias": torch.zeros(32)})),
        f"1 weights of a CCRKForImageTextRetrieval are beyond what its config.json says: {LAYER}.1.output.dense.bias",
    ),
    "a name for the terminal": (
        change_weights(lambda state: state.update({"ccrk.\x1b[31m\rx\n": torch.zeros(1)})),
        r"beyond what its config.json says: ccrk.\x1b[31m\rx;",
    ),
    "another width": (
        change_config(projection_dim=8),
        "text_projection.bias: (16,) instead of (8,); restore the files",
    ),
    "no JSON": (write("config.json", b'{"a":'), "not a valid JSON file"),
    "no text": (write("config.json", b"\xff\xfe\x00"), "config"),
    "a list": (write("config.json", b"[1]"), "folder"),
    "words for numbers": (change_config(projection_dim="wide"), "'projection_dim' expected int, got str"),
    "a number for fields": (change_config(text_config=5), "'text_config'"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "folder holds no config.json; name the folder"),
    "tokenizer cut": (write("tokenizer.json", b'{"a":'), "as CCRKProcessor; is it whole?"),
    "processor cut": (write("processor_config.json", b"{"), "not a valid JSON file"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_folder_is_neither_evaluated_nor_trained_on(name, folder):
    damage, message = DAMAGES[name]
    damage(folder)
    arguments = ModelArguments(model_name_or_path=str(folder))

    def train():
        kind_of_model(arguments, CCRKForImageTextRetrieval)
        build_model(arguments, build_processor(arguments, None), CCRKForImageTextRetrieval)

    refused(lambda: load_encoder(str(folder), 4, False), str(folder), message)
    refused(lambda: load_encoder(str(folder), 0, False), str(folder), message)
    refused(train, str(folder), message)


def test_a_pickle_of_weights_is_not_run(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (folder / "model.safetensors").unlink()
    torch.save(Plant(), folder / "pytorch_model.bin")
    refused(lambda: load_encoder(str(folder), 4, False), "more than tensors", "nothing of it was run")
    assert not (tmp_path / "planted").exists()


def dual_encoder(folder):
    return families.saved(families.siglip2_fixed, folder)


def sentence_transformer(folder):
    model = SentenceTransformer(modules=[Transformer(dual_encoder(folder))], device="cpu")
    model.save_pretrained(str(folder / "whole"), create_model_card=False)
    return str(folder / "whole")


def without(*patterns: str):
    def damage(folder):
        for file in [file for pattern in patterns for file in folder.glob(pattern)]:
            file.unlink()

    return damage


def as_pickle(folder):
    (folder / "model.safetensors").unlink()
    torch.save(Plant(), folder / "pytorch_model.bin")


def widened(state) -> None:
    state["text_model.embeddings.token_embedding.weight"] = torch.zeros(9, 9)


def as_adapter(folder):
    without("*.*")(folder)
    (folder / "adapter_config.json").write_text("{}")


LACKING = {
    "weights that run code": (
        as_pickle,
        "more than tensors, or a damaged one; nothing of it was run; get safetensors",
    ),
    "tokenizer": (without("tokenizer*"), "holds no tokenizer that can be opened; save the model's own beside it"),
    "images": (without("*processor*"), "holds no preprocessor_config.json; save the model's processor beside it"),
    "width": (change_weights(widened), "of another shape than its config"),
    "all but an adapter": (as_adapter, "holds an adapter alone; name the folder of the model that it is merged into"),
}


@pytest.mark.parametrize("name", LACKING)
@pytest.mark.parametrize("make", [dual_encoder, sentence_transformer])
def test_a_part_that_a_model_of_others_lacks_is_told(make, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    damage, message = LACKING[name]
    damage(Path(folder := make(tmp_path)))
    with pytest.raises(ValueError) as error:
        load_encoder(folder, 0, False)
    found = str(error.value)
    assert message in found and found.count(folder) == 1 and one_line(found) == found
    assert not (tmp_path / "planted").exists()


def test_parts_that_are_not_needed_may_be_there_or_not(folder, caplog):
    """A pre-trained model has an LM head, a base model no head at all, encoders have poolers."""
    model = CCRKForPreTraining(CCRKConfig.from_pretrained(folder))
    model.save_pretrained(folder)
    assert load_encoder(str(folder), 4, False).k_test == 4
    model.ccrk.save_pretrained(folder)
    assert load_encoder(str(folder), 0, False).k_test == 0
    refused(lambda: load_encoder(str(folder), 4, False), "has no matching head; rank with --no_rerank")
    caplog.set_level(logging.INFO)
    arguments = ModelArguments(model_name_or_path=str(folder))
    started = build_model(arguments, build_processor(arguments, None), CCRKForPreTraining)
    assert torch.equal(started.ccrk.text_projection.weight, model.ccrk.text_projection.weight)
    assert f"{folder} has no matching_head and no lm_head: to be trained from scratch" in caplog.text


def test_encoders_as_the_hub_has_them(tmp_path):
    """With a head that is left behind, a pooler, or buffers of older versions; but with no layer more."""
    swin = SwinConfig(image_size=64, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4)
    SwinForImageClassification(swin).save_pretrained(tmp_path / "swin")
    sizes = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32}
    XLMRobertaForMaskedLM(XLMRobertaConfig(vocab_size=60, **sizes)).save_pretrained(tmp_path / "text")
    attention = "encoder.layers.{}.blocks.0.attention.self"
    for folder, kind, prefix, known, beyond in (
        (
            "swin",
            AutoModel,
            "swin.",
            f"{attention.format(0)}.relative_position_index",
            f"{attention.format(7)}.key.bias",
        ),
        ("text", AutoModelForMaskedLM, "roberta.", "pooler.dense.bias", "encoder.layer.4.output.dense.bias"),
    ):
        path = tmp_path / folder / "model.safetensors"
        state = load_file(path) | {
            f"{prefix}{known}": torch.zeros(1),
            f"{prefix}embeddings.position_ids": torch.ones(1),
        }
        save_file(state, path, {"format": "pt"})
        assert open_model(kind, tmp_path / folder)[1] == []
        save_file(state | {f"{prefix}{beyond}": torch.zeros(1)}, path, {"format": "pt"})
        refused(
            lambda kind=kind, folder=folder: open_model(kind, tmp_path / folder), "beyond what its config.json says"
        )


@pytest.mark.parametrize(
    "name", ["outputs/typo", "typo", "/nowhere/at/all", "../typo", "a/b/c", "has space/x", "x\x1b[2J"]
)
def test_a_folder_that_is_not_there(name, processor, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs").mkdir()
    encoders = ModelArguments(vision_model=name, text_model=name, image_size=64)
    for call in (
        lambda: load_encoder(name, 4, False),
        lambda: build_processor(ModelArguments(model_name_or_path=name), None),
        lambda: build_processor(encoders, None),
        lambda: build_model(encoders, processor, CCRKForPreTraining),
        lambda: ccrk.convert.main([str(CHECKPOINT), "out", "--tokenizer", name]),
    ):
        with pytest.raises((ValueError, SystemExit), match=r"^(error: )?there is no folder ") as error:
            call()
        assert "epo id" not in str(error.value) and "\n" not in str(error.value)


def test_a_processor_of_another_model(folder, processor, tmp_path):
    model = CCRKForImageTextRetrieval(tiny_config(len(processor.tokenizer) - 1))
    model.save_pretrained(folder)
    size = len(processor.tokenizer)
    refused(lambda: load_encoder(str(folder), 4, False), f"has {size} tokens, but its model {size - 1}; restore")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    vision = sizes | {"image_size": 64, "patch_size": 16}
    CLIPModel(CLIPConfig(text_config=sizes, vision_config=vision)).save_pretrained(tmp_path / "clip")
    refused(lambda: DualEncoder.from_pretrained(tmp_path / "clip"), str(tmp_path / "clip"))
    processor.tokenizer.save_pretrained(tmp_path / "clip")
    refused(lambda: DualEncoder.from_pretrained(tmp_path / "clip"), "clip")


def test_a_folder_without_a_checkpoint(tmp_path):
    for call in (
        lambda: load_encoder(str(tmp_path), 4, False),
        lambda: build_processor(ModelArguments(model_name_or_path=str(tmp_path)), None),
        lambda: open_model(AutoModel, tmp_path),
    ):
        refused(call, f"{tmp_path} holds no config.json; name the folder of a checkpoint")
    (tmp_path / "model.safetensors").write_text("")
    refused(lambda: open_pretrained(AutoConfig, tmp_path / "model.safetensors"), "is a file; name a folder")


CHECKPOINT = TINY_A / "ccrk_tiny_epoch_29.th"
HOSTILE = "a\x1b[31mred\x07\rover\u202egpj\u2066.\x9bm\n\ud800"


class TestScreen:
    @pytest.mark.slow
    @pytest.mark.parametrize("ci", ["", "true"])
    def test_control_characters_are_shown_and_not_obeyed(self, ci):
        """Of our messages, of an error, and of a library's, each once: transformers does otherwise where CI is set."""
        script = (
            "import logging, sys\nfrom data_scripts.cli import log_to_screen, one_line_errors\n"
            f"name = {HOSTILE!r}\nlog_to_screen()\nlogging.getLogger('data_scripts').warning('first: %s', name)\n"
            "import transformers\ntransformers.logging.get_logger('transformers.x').warning('key %s', name)\n"
            "with one_line_errors():\n    raise ValueError(name)\n"
        )
        environment = os.environ | {"CI": ci}
        finished = subprocess.run(
            [sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, timeout=120
        )
        assert finished.returncode == 1
        lines = [line for line in finished.stderr.decode().splitlines() if "31mred" in line]
        assert lines[-1] == r"error: a\x1b[31mred\x07\rover\u202egpj\u2066.\x9bm \ud800"
        assert len(lines) == 3 and all(line.isprintable() for line in lines)

    @pytest.mark.parametrize("error", [KeyError("x"), TypeError("x"), NotImplementedError("x"), AssertionError("x")])
    def test_faults_of_ours_keep_their_traceback(self, error):
        with pytest.raises(type(error)), one_line_errors():
            raise error

    @pytest.mark.parametrize(
        ("error", "message"),
        [
            (MemoryError(), "error: out of memory; take smaller batches"),
            (torch.OutOfMemoryError("CUDA out of memory.\nTried 2 GiB"), "(CUDA out of memory. Tried 2 GiB)"),
            (OSError(28, "No space left on device", "a\nb"), "No space left on device"),
        ],
    )
    def test_what_input_and_machine_are_to_blame_for_is_one_line(self, error, message):
        with pytest.raises(SystemExit) as ended, one_line_errors():
            raise error
        assert message in str(ended.value) and "\n" not in str(ended.value)


class TestCheckpointsOfDeepSpeed:
    @pytest.fixture
    def checkpoint(self, tmp_path, monkeypatch):
        """Files with the classes that ZeRO-2 and ZeRO-3 write, beside a manifest that is right."""
        pytest.importorskip("deepspeed")
        from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
        from deepspeed.runtime.zero.config import ZeroStageEnum
        from deepspeed.utils.tensor_fragment import fragment_address

        monkeypatch.chdir(tmp_path)
        state = {
            "tensor": torch.ones(3),
            "scaler": LossScaler(1.0),
            "dynamic": DynamicLossScaler(1.0, 2, 1, 1, 1, False),
        }
        state |= {"stage": ZeroStageEnum.gradients, "fragments": OrderedDict(a=fragment_address(numel=1, start=0))}
        folder = tmp_path / "checkpoint-2" / "global_step2"
        folder.mkdir(parents=True)
        torch.save(state, folder / "zero_pp_rank_0_mp_rank_00_optim_states.pt")
        torch.save(state, folder / "old_optim_states.pt", _use_new_zipfile_serialization=False)
        torch.save({"module": {"w": torch.ones(2)}}, folder / "mp_rank_00_model_states.pt")
        (folder.parent / "latest").write_text("global_step2")
        torch.save({}, folder.parent / "rng_state.pth")
        return folder.parent

    def problem(self, checkpoint):
        files = [path for path in checkpoint.rglob("*") if path.is_file() and path.name != MANIFEST]
        entries = {
            str(path.relative_to(checkpoint)): {"bytes": path.stat().st_size, "crc32": zlib.crc32(path.read_bytes())}
            for path in files
        }
        (checkpoint / MANIFEST).write_text(json.dumps(entries))
        return what_is_wrong(checkpoint)

    def test_as_deepspeed_writes_them(self, checkpoint):
        assert self.problem(checkpoint) is None

    @pytest.mark.parametrize("name", ["zero_pp_rank_0_mp_rank_00_optim_states.pt", "mp_rank_00_model_states.pt"])
    @pytest.mark.parametrize("write", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))])
    def test_with_code_in_a_pickle(self, name, write, checkpoint, tmp_path):
        write({"module": Plant()}, checkpoint / "global_step2" / name)
        assert f"global_step2/{name} holds " in self.problem(checkpoint)
        assert not (tmp_path / "planted").exists()

    def test_that_point_elsewhere(self, checkpoint, tmp_path):
        shutil.copytree(checkpoint / "global_step2", tmp_path / "global_step3")
        for name in ("../global_step3", str(tmp_path / "global_step3"), "none", "..", ""):
            (checkpoint / "latest").write_text(name)
            assert "its latest names" in self.problem(checkpoint)
        (checkpoint / "latest").write_text("global_step3")
        torch.save(Plant(), tmp_path / "global_step3" / "mp_rank_00_model_states.pt")
        (checkpoint / "global_step3").symlink_to(tmp_path / "global_step3")
        assert "global_step3/mp_rank_00_model_states.pt holds " in self.problem(checkpoint)


NAMES = [
    """a"b'c""",
    "back\\slash`tick",
    "```\nimport os",
    "x\n---\nlicense: evil",
    "a|b*c_d_ <b>[x](y)&amp;$x$",
    "a: [b, {c}] # d %s {name}",
    "\x1b[31mred\u202e",
    "模型 😀",
]


@pytest.mark.parametrize("name", NAMES)
def test_names_mean_nothing_in_the_model_card(name, tiny_model, processor, shapes, tmp_path):
    languages = (name, "de")
    features = row_features(languages)
    rows = [dict(row, captions={name: row["captions"]["en"], "de": row["captions"]["de"]}) for row in shapes]
    rows = datasets.Dataset.from_list(rows[:8], features=features)
    rows.info.dataset_name = name
    tiny_model.config.vision_config.name_or_path = tiny_model.config.text_config.name_or_path = f"lab/{name}"
    trainer = make_trainer(tiny_model, processor, rows, tmp_path, languages)
    metrics = {f"eval_recall_{name}": 50.0, "eval_recall_de": 51.0, "eval_mean_recall": 50.5, "step": 0}
    trainer.state.log_history = [metrics]
    model_card(trainer, f"lab/{name}").save(tmp_path / "README.md")
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.to_dict().keys() <= {
        "language", "library_name", "pipeline_tag", "tags", "base_model", "model-index", "model_name", "metrics"
    }  # fmt: skip
    assert card.data.language == [one_line(name), "de"]

    snippets = re.findall(r"^```python\n(.*?)^```$", card.text, re.DOTALL | re.MULTILINE)
    assert len(snippets) == 1 and card.text.count("\n```") == 4
    opened = [node.args[0].value for node in ast.walk(ast.parse(snippets[0])) if is_call(node, "from_pretrained")]
    assert opened == [f"lab/{name}"] * 2

    prose = re.sub(r"^```.*?^```$", "", card.text, flags=re.DOTALL | re.MULTILINE)
    assert all(line.isprintable() for line in card.text.splitlines())
    html = re.sub(r"\\(.)", "", prose)  # what is escaped has no meaning
    for mark in ("`tick", "_d_", "<b>", "[x](", "&amp;", "$x$", "a|b"):
        assert mark not in html
    table = [line for line in html.splitlines() if line.startswith("|")]
    assert len(table) == 5 and {line.count("|") for line in table} == {3}


def is_call(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Call) and getattr(node.func, "attr", None) == name
