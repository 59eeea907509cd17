"""Published checkpoints come in whole and go out as they were; what is not one is refused, and nothing written."""

import hashlib
import json
import os
import pickle
import re
import subprocess
import sys
import zipfile

import pytest
import torch
from builders import damaged, full_disk, isolated
from conftest import TINY_A, TINY_A_CONFIG
from safetensors.torch import load_file, save_file
from tiny import tiny_config
from torch.testing import assert_close
from transformers import XLMRobertaTokenizer

import ccrk.convert
from ccrk import CCRKForImageTextRetrieval, CCRKForPreTraining, CCRKModel, CCRKProcessor
from ccrk.arguments import ModelArguments
from ccrk.build import build_model, build_processor
from ccrk.convert import COMPUTED, convert, load_published, published_tensors
from ccrk.resize import resize_image_encoder, resize_position_bias

PRETRAINED = TINY_A / "ccrk_tiny_epoch_29.th"


@pytest.fixture
def finetuned(published, tmp_path):
    """A file in the layout of fine-tuning: no LM head, and no `bert.` level."""
    state = {
        n.replace("text_encoder.bert.", "text_encoder."): t for n, t in published["model"].items() if ".cls." not in n
    }
    torch.save({"model": state, "config": published["config"], "epoch": 9}, tmp_path / "checkpoint_best.pth")
    return tmp_path / "checkpoint_best.pth"


def run(*arguments, tmp_path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(TINY_A_CONFIG))
    options = [] if "--to_original" in arguments else ["--config", str(tmp_path / "config.json")]
    ccrk.convert.main([str(argument) for argument in arguments] + options)


@pytest.mark.slow
@pytest.mark.parametrize("head", [CCRKForPreTraining, CCRKForImageTextRetrieval])
def test_there_and_back_again(head, published, finetuned, processor, tmp_path, capsys):
    source = PRETRAINED if head is CCRKForPreTraining else finetuned
    expected = load_published(source)["model"]
    run(source, tmp_path / "out", tmp_path=tmp_path)
    loaded, info = head.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values())
    assert f"{head.__name__}, 64 px, {loaded.num_parameters():,} parameters, checked" in capsys.readouterr().out
    # Nothing is lost on the way: the tensors named as computed are the only ones left out.
    kept = sum(t.numel() for n, t in expected.items() if not any(part in n for part in COMPUTED))
    assert kept == loaded.num_parameters()

    run(tmp_path / "out", tmp_path / "original.th", "--to_original", tmp_path=tmp_path)
    original = load_published(tmp_path / "original.th")["model"]
    assert set(original) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(original[name], tensor), name


REMOTE = """
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForPreTraining

expected = load_file({expected!r})
mask = expected["attention_mask"]
head = AutoModelForPreTraining.from_pretrained({folder!r}, trust_remote_code=True).eval()
base = AutoModel.from_pretrained({folder!r}, trust_remote_code=True).eval()
with torch.no_grad():
    outputs = base(expected["input_ids"], expected["image"], mask)
    images, captions = len(expected["image"]), len(mask)
    logits = head.match(
        outputs.image_states,
        outputs.text_states,
        mask,
        torch.arange(images).repeat_interleave(captions),
        torch.arange(captions).repeat(images),
    )
torch.save((outputs.image_embeds, outputs.text_embeds, logits), "outputs.pt")
"""


@pytest.mark.slow
def test_the_published_scores_through_remote_code(expected, tmp_path):
    run(PRETRAINED, tmp_path / "out", tmp_path=tmp_path)
    script = REMOTE.format(expected=str(TINY_A / "expected.safetensors"), folder=str(tmp_path / "out"))
    finished = subprocess.run(
        [sys.executable, "-I", "-c", isolated(script)],
        cwd=tmp_path,
        env={"HF_HOME": str(tmp_path / "hf"), "PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert finished.returncode == 0, finished.stderr[-2000:]
    image_embeds, text_embeds, logits = torch.load(tmp_path / "outputs.pt", weights_only=True)
    assert_close(image_embeds, expected["image_features"], atol=1e-4, rtol=0)
    assert_close(text_embeds, expected["text_features"], atol=1e-4, rtol=0)
    assert_close(logits.view_as(expected["itm_logits_all_pairs"]), expected["itm_logits_all_pairs"], atol=1e-4, rtol=0)


@pytest.mark.slow
def test_both_heads_open_with_the_same_tensors(published, finetuned):
    pretrained = convert(published, TINY_A_CONFIG).state_dict()
    for name, tensor in convert(load_published(finetuned), TINY_A_CONFIG).state_dict().items():
        assert torch.equal(tensor, pretrained[name]), name


def tokenizer_of(size: int, folder, start=("<s>", "<pad>", "</s>", "<unk>"), **special):
    """A tokenizer of `size` tokens in a folder, of which `start` are the first and <mask> is the last."""
    words = [f"word{number}" for number in range(size - len(start) - 1)]
    vocabulary = [(piece, 0.0) for piece in (*start, *words, "<mask>")]
    XLMRobertaTokenizer(vocab=vocabulary, **special).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("size", "options", "message"),
    [
        (201, {}, "has 201 tokens, the checkpoint 200"),
        (199, {}, "has 199 tokens, the checkpoint 200"),
        (200, {"start": ("<pad>", "<s>", "</s>", "<unk>")}, "has bos_token 1, the checkpoint 0"),
        (200, {"start": ("<s>", "<pad>", "<unk>", "</s>")}, "has eos_token 3, the checkpoint 2"),
        (200, {"mask_token": "word3"}, "has mask_token 7, the checkpoint 199"),
    ],
)
def test_a_tokenizer_that_does_not_belong(size, options, message, tmp_path):
    tokenizer = tokenizer_of(size, tmp_path / "tokenizer", **options)
    with pytest.raises(SystemExit, match=f"{message}; give the tokenizer that it was trained with"):
        run(PRETRAINED, tmp_path / "out", "--tokenizer", tokenizer, tmp_path=tmp_path)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_captions_are_cut_where_the_checkpoint_was_fine_tuned(finetuned, tmp_path, capsys):
    tokenizer = ("--tokenizer", tokenizer_of(200, tmp_path / "tokenizer"))
    for options, expected in (((), (40, 40)), (("--max_words", 80, "--max_length", 60), (80, 60))):
        out = tmp_path / f"out{expected[0]}"
        run(finetuned, out, *tokenizer, *options, tmp_path=tmp_path)
        processor = CCRKProcessor.from_pretrained(out)
        assert (processor.max_words, processor.max_length) == expected
    with pytest.raises(SystemExit):
        run(finetuned, tmp_path / "none", "--max_words", 80, tmp_path=tmp_path)
    assert "give --tokenizer too" in capsys.readouterr().err


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.module."])
def test_names_of_wrapped_models(prefix, published, reference_model, tmp_path):
    state = {f"{prefix}{name}": tensor for name, tensor in published["model"].items()}
    torch.save({"model": state, "config": published["config"]}, tmp_path / "wrapped.th")
    converted = convert(load_published(tmp_path / "wrapped.th"), TINY_A_CONFIG).state_dict()
    assert all(torch.equal(converted[name], tensor) for name, tensor in reference_model.state_dict().items())
    state["temp"] = state.pop(f"{prefix}temp")  # where one name lacks it, it is no wrapper's
    torch.save({"model": state}, tmp_path / "mixed.th")
    with pytest.raises(ValueError, match="not a CCRK checkpoint"):
        convert(load_published(tmp_path / "mixed.th"), TINY_A_CONFIG)


class TestDamage:
    def test_gives_the_same_weights_or_none(self, published, tmp_path):
        contents, refused = PRETRAINED.read_bytes(), 0
        for seed in range(100):
            path = tmp_path / f"{seed}.th"  # files are mapped: each its own
            path.write_bytes(damaged(contents, seed))
            try:
                found = load_published(path)["model"]
            except ValueError as error:
                assert f"{path} is no whole checkpoint" in str(error)
                refused += 1
            else:
                assert found.keys() == published["model"].keys()
                assert all(torch.equal(found[name], tensor) for name, tensor in published["model"].items()), seed
            path.unlink()
        assert refused > 90

    def test_leaves_no_output(self, tmp_path):
        contents = bytearray(PRETRAINED.read_bytes())
        contents[700_000] ^= 1  # within the numbers of a tensor
        (tmp_path / "bad.th").write_bytes(contents)
        with pytest.raises(SystemExit, match=r"bad\.th is no whole checkpoint \(.* is not as its checksum says\)"):
            run(tmp_path / "bad.th", tmp_path / "out", tmp_path=tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == {"bad.th", "config.json"}

    def test_zips_that_torch_reads_otherwise(self, tmp_path):
        with zipfile.ZipFile(PRETRAINED) as source, zipfile.ZipFile(tmp_path / "bad.th", "w") as out:
            for entry in source.infolist():
                out.writestr(entry.filename, source.read(entry), zipfile.ZIP_DEFLATED)
        with pytest.raises(ValueError, match="entries are compressed"):
            load_published(tmp_path / "bad.th")
        (tmp_path / "twice.th").write_bytes(PRETRAINED.read_bytes())
        with zipfile.ZipFile(tmp_path / "twice.th", "a") as out, pytest.warns(UserWarning, match="Duplicate name"):
            out.writestr(out.namelist()[-1], b"other")
        with pytest.raises(ValueError, match="two of its entries have one name"):
            load_published(tmp_path / "twice.th")

    def test_files_without_checksums(self, published, tmp_path, capsys):
        old = tmp_path / "old.th"
        torch.save(published, old, _use_new_zipfile_serialization=False)
        run(old, tmp_path / "out", tmp_path=tmp_path)
        digest = hashlib.sha256(old.read_bytes()).hexdigest()
        printed = capsys.readouterr().out
        assert "old.th is of torch before 1.6 and holds no checksums" in printed and f"its source: {digest}" in printed
        contents = old.read_bytes()
        for changed in (contents[:-1], contents + b"\0", contents[: len(contents) // 2]):
            old.write_bytes(changed)
            with pytest.raises(SystemExit, match=r"old\.th is no whole checkpoint"):
                run(old, tmp_path / "none", tmp_path=tmp_path)
        assert not (tmp_path / "none").exists()

    @pytest.mark.slow
    def test_numbers_that_are_none(self, published, reference_model, tmp_path):
        for value in (float("nan"), float("inf")):
            broken = published["model"]["temp"] * value
            torch.save({"model": published["model"] | {"temp": broken}}, tmp_path / "bad.th")
            with pytest.raises(SystemExit, match=r"bad\.th is damaged: temp holds values that are no numbers"):
                run(tmp_path / "bad.th", tmp_path / "out", tmp_path=tmp_path)
            reference_model.ccrk.temperature.data = torch.full((1,), value)  # the fixture's own stays
            reference_model.save_pretrained(tmp_path / "folder")
            with pytest.raises(SystemExit, match="folder is damaged: temp holds values that are no numbers"):
                run(tmp_path / "folder", tmp_path / "out", "--to_original", tmp_path=tmp_path)
        assert not (tmp_path / "out").exists()

    def test_a_folder_that_is_not_whole(self, reference_model, tmp_path):
        reference_model.save_pretrained(tmp_path / "folder")
        file = tmp_path / "folder" / "model.safetensors"
        state = load_file(file)
        save_file(
            {name: tensor for name, tensor in state.items() if name != "matching_head.0.bias"}, file, {"format": "pt"}
        )
        with pytest.raises(SystemExit, match=r"1 weights of a CCRKForPreTraining are missing: matching_head\.0\.bias"):
            run(tmp_path / "folder", tmp_path / "out.th", "--to_original", tmp_path=tmp_path)
        file.write_bytes(file.read_bytes()[:-1])
        with pytest.raises(
            SystemExit, match=r"folder cannot be opened as CCRKForPreTraining; is it whole\? \(Safetensor"
        ):
            run(tmp_path / "folder", tmp_path / "out.th", "--to_original", tmp_path=tmp_path)
        assert not list(tmp_path.glob("out*"))


class TestOutput:
    def test_is_looked_at_before_the_work(self, tmp_path, monkeypatch):
        monkeypatch.setattr(ccrk.convert, "load_published", lambda _: pytest.fail("read before it was checked"))
        (tmp_path / "full").mkdir()
        (tmp_path / "full" / "tokenizer.json").write_text("{}")
        (tmp_path / "file").write_text("")
        for output, message in (
            ("full", "full is not empty; name a new folder, or empty it"),
            ("file", "file is a file; name a folder to write"),
            ("file/out", "nothing can be written to .*file"),
        ):
            with pytest.raises(SystemExit, match=message):
                run(PRETRAINED, tmp_path / output, tmp_path=tmp_path)

    def test_an_empty_folder_will_do(self, tmp_path):
        (tmp_path / "out").mkdir()
        run(PRETRAINED, tmp_path / "out", tmp_path=tmp_path)
        assert (tmp_path / "out" / "model.safetensors").exists() and not list(tmp_path.glob("*.unfinished"))

    @pytest.mark.slow
    def test_a_full_disk_leaves_nothing(self, reference_model, tmp_path):
        reference_model.save_pretrained(tmp_path / "folder")
        for source, output, options in ((PRETRAINED, "out", ()), (tmp_path / "folder", "out.th", ("--to_original",))):
            with (
                full_disk(100_000),
                pytest.raises(SystemExit, match=f"error: .*{output} could not be written") as error,
            ):
                run(source, tmp_path / output, *options, tmp_path=tmp_path)
            assert "\n" not in str(error.value) and not list(tmp_path.glob("out*"))


@pytest.mark.slow
def test_the_configuration_of_a_saved_model_is_taken(tmp_path):
    run(PRETRAINED, tmp_path / "out", tmp_path=tmp_path)
    saved = CCRKForPreTraining.from_pretrained(tmp_path / "out")
    CCRKModel.from_pretrained(tmp_path / "out").save_pretrained(tmp_path / "headless")
    saved.bfloat16().save_pretrained(tmp_path / "bf16")
    contents = json.loads((tmp_path / "out/config.json").read_text())
    contents |= {"torch_dtype": contents.pop("dtype"), "_name_or_path": "a/b", "transformers_version": "4.57.1"}
    (tmp_path / "older").mkdir()
    (tmp_path / "older/config.json").write_text(json.dumps(contents))
    read = [
        ccrk.convert.read_overrides(tmp_path / name / "config.json") for name in ("out", "headless", "older", "bf16")
    ]
    assert read == read[:1] * 4
    ccrk.convert.main([str(PRETRAINED), str(tmp_path / "again"), "--config", str(tmp_path / "bf16/config.json")])
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / "out" / file).read_bytes(), file


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ("{", "config.json is no JSON"),
        ("[1]", "config.json must hold fields of CCRKConfig"),
        ('{"model_type": "clip"}', "config.json describes a model of type clip; give that of a CCRK model"),
        ('{"text_config": 12}', "config.json must hold fields of CCRKConfig"),
        ('{"num_attention_heads": 4}', "CCRKConfig has no num_attention_heads; fix"),
        ('{"text_config": {"num_attention_heads": 0}}', "num_attention_heads is 0; it must be at least 1"),
        ('{"text_config": {"pad_token_id": 999}}', "no model can be made with the fields of --config"),
        ('{"text_config": {"heads": 4}}', r"CCRKConfig has no text_config\.heads; fix"),
    ],
)
def test_fields_that_the_configuration_does_not_have(contents, message, tmp_path):
    (tmp_path / "config.json").write_text(contents)
    with pytest.raises(SystemExit, match=message):
        ccrk.convert.main([str(PRETRAINED), str(tmp_path / "out"), "--config", str(tmp_path / "config.json")])


@pytest.mark.parametrize("sizes", ["7_to_12", "7_to_15", "12_to_7", "3_to_6", "7_to_7"])
def test_position_bias_is_resized_as_published(sizes):
    """Tables made by the published code."""
    cases = load_file(TINY_A / "relative_position_bias.safetensors")
    resized = resize_position_bias(cases[f"window{sizes}.input"], int(sizes.split("_")[-1]))
    assert_close(resized, cases[f"window{sizes}.expected"], atol=1e-6, rtol=0)


@pytest.mark.slow
def test_larger_images(published, tmp_path):
    run(PRETRAINED, tmp_path / "out", "--image_size", 128, tmp_path=tmp_path)
    large, info = CCRKForPreTraining.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values())
    vision = large.config.vision_config
    assert (vision.image_size, vision.window_size) == (128, 4)
    state = published["model"]
    for name, tensor in published_tensors(large):
        if name.endswith("relative_position_bias_table"):
            assert torch.equal(tensor, resize_position_bias(state[name], 4)), name
        elif not any(part in name for part in COMPUTED):
            assert torch.equal(tensor, state[name]), name
    assert large.eval().ccrk.get_image_features(torch.rand(1, 3, 128, 128)).last_hidden_state.shape == (1, 17, 64)
    with pytest.raises(SystemExit, match="image_size 100 does not scale windows of 2 at 64 pixels to whole ones"):
        run(PRETRAINED, tmp_path / "odd", "--image_size", 100, tmp_path=tmp_path)
    assert not (tmp_path / "odd").exists()


def test_training_goes_on_with_larger_images(tiny_model, processor, tmp_path):
    """224 to 384 px in the paper; 64 to 128 here, by the argument of the training scripts."""
    tiny_model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    arguments = ModelArguments(model_name_or_path=str(tmp_path), image_size=128)
    model = build_model(arguments, build_processor(arguments, None), CCRKForImageTextRetrieval)
    table = "vision_model.encoder.layers.1.blocks.0.attention.relative_position_bias.relative_position_bias_table"
    assert model.config.vision_config.window_size == 8
    assert torch.equal(model.ccrk.get_parameter(table), resize_position_bias(tiny_model.ccrk.get_parameter(table), 8))
    same = tiny_model.ccrk.vision_model.layernorm.weight
    assert torch.equal(model.ccrk.vision_model.layernorm.weight, same)


def test_training_goes_on_in_fp32_whatever_the_files_hold(tiny_model, processor, tmp_path):
    tiny_model.bfloat16().save_pretrained(tmp_path)
    arguments = ModelArguments(model_name_or_path=str(tmp_path))
    model = build_model(arguments, processor, CCRKForImageTextRetrieval)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_resizing_keeps_precision_mode_and_absolute_positions():
    config = tiny_config()
    config.vision_config.use_absolute_embeddings = True
    model = CCRKModel(config).bfloat16().eval()
    across = torch.arange(16.0).repeat(16)  # the column of each of 16 x 16 patches
    model.vision_model.embeddings.position_embeddings.data[:] = across[:, None]
    resize_image_encoder(model, 128)
    vision = model.vision_model
    assert vision.dtype == torch.bfloat16 and not vision.training
    positions = vision.embeddings.position_embeddings.float().view(32, 32, 8)
    expected = (torch.arange(32.0) - 0.5) / 2  # in columns of before
    assert_close(positions[5, 4:-4, 3], expected[4:-4], atol=0.1, rtol=0)
    pixels = torch.rand(1, 3, 128, 128, dtype=torch.bfloat16)
    assert torch.isfinite(model.get_image_features(pixels).pooler_output).all()


def test_resizing_to_the_same_size_changes_nothing(reference_model):
    vision = reference_model.ccrk.vision_model
    resize_image_encoder(reference_model, 64)
    assert reference_model.ccrk.vision_model is vision


class TestSwin:
    """The fixture's image encoder is the Swin authors' code: its tensors are named as theirs, behind a prefix."""

    @pytest.fixture
    def swin(self, published):
        prefix = "vision_encoder."
        state = {n.removeprefix(prefix): t for n, t in published["model"].items() if n.startswith(prefix)}
        return state | {"head.weight": torch.rand(9, 8), "head.bias": torch.rand(9)}

    def convert(self, state, tmp_path, *options):
        torch.save({"model": state}, tmp_path / "swin.pth")
        ccrk.convert.main([str(tmp_path / "swin.pth"), str(tmp_path / "swin"), *options])

    def test_becomes_an_image_encoder_to_start_from(self, swin, reference_model, tmp_path, capsys):
        self.convert(swin, tmp_path)
        printed = capsys.readouterr().out
        assert (
            "SwinModel, 64 px" in printed and "of *.attn_mask*" in printed and "head.weight and head.bias" in printed
        )
        model = CCRKForPreTraining.from_vision_text_pretrained(
            str(tmp_path / "swin"), str(TINY_A / "xlm-roberta-large-tiny")
        )
        expected, found = (m.ccrk.vision_model.state_dict() for m in (reference_model, model))
        assert expected.keys() == found.keys()
        for name, tensor in expected.items():
            assert torch.equal(found[name], tensor), name
        images = torch.randn(2, 3, 64, 64)
        with torch.no_grad():
            states = [m.eval().ccrk.get_image_features(images).last_hidden_state for m in (reference_model, model)]
        assert torch.equal(*states)

    def test_what_is_not_whole_is_refused_and_nothing_written(self, swin, tmp_path):
        key, mask = "layers.0.blocks.0.mlp.fc1.weight", "layers.0.blocks.1.attn_mask"
        table = "layers.1.blocks.0.attn.relative_position_bias_table"
        cases = {
            f"1 tensors are missing ['vision_encoder.{key}']": {
                name: tensor for name, tensor in swin.items() if name != key
            },
            "1 are unknown ['vision_encoder.surprise']": swin | {"surprise": torch.zeros(1)},
            f"{key} is of shape": swin | {key: swin[key][:-1]},
            f"{mask} is not what this model computes": swin | {mask: swin[mask] + 1},
            f"lacks 'vision_encoder.{table}'": {name: tensor for name, tensor in swin.items() if name != table},
        }
        for message, state in cases.items():
            with pytest.raises(SystemExit, match=re.escape(message)):
                self.convert(state, tmp_path)
        with pytest.raises(SystemExit, match="is an image encoder alone and takes no option"):
            self.convert(swin, tmp_path, "--image_size", "128")
        assert not (tmp_path / "swin").exists()


class Planted:
    def __reduce__(self):
        return os.mkdir, ("planted",)


class TestRefusals:
    @pytest.fixture(autouse=True)
    def folder(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)

    def refused(self, message: str, tmp_path):
        with pytest.raises(SystemExit, match=message) as error:
            run("bad.th", "out", tmp_path=tmp_path)
        assert len(str(error.value).splitlines()) == 1
        assert not os.path.exists("planted") and not os.path.exists("out")

    @pytest.mark.parametrize("protocol", [2, 4])
    @pytest.mark.parametrize("form", ["torch", "pickle"])
    def test_planted_code(self, form, protocol, tmp_path):
        content = {"model": {"temp": torch.zeros(())}, "config": Planted()}
        if form == "torch":
            torch.save(content, "bad.th")
        else:
            with open("bad.th", "wb") as file:
                pickle.dump({"model": {}, "config": Planted()}, file, protocol)
        self.refused(r"bad\.th holds posix\.mkdir, which is neither a tensor nor a plain container", tmp_path)

    def test_truncated(self, tmp_path):
        (tmp_path / "bad.th").write_bytes(PRETRAINED.read_bytes()[:700_000])
        self.refused(r"bad\.th is no whole checkpoint", tmp_path)

    @pytest.mark.parametrize("text", ["", "a text\n", "<html>not found</html>"])
    def test_text(self, text, tmp_path):
        (tmp_path / "bad.th").write_text(text)
        self.refused(r"bad\.th is no whole checkpoint", tmp_path)

    @pytest.mark.parametrize("content", [{"weight": torch.zeros(1)}, [1], {"model": {"temp": 0.07}}])
    def test_no_tensors_under_model(self, content, tmp_path):
        torch.save(content, "bad.th")
        self.refused("no tensors under 'model'", tmp_path)

    def test_no_file(self, tmp_path):
        self.refused("No such file", tmp_path)

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("temp", r"1 tensors are missing \['temp'\], 1 are unknown \['renamed'\]"),
            ("text_proj.weight", r"lacks 'text_proj\.weight'"),
            (
                "vision_encoder.layers.2.blocks.1.attn.qkv.bias",
                r"missing \['vision_encoder.layers.2.blocks.1.attn.qkv",
            ),
        ],
    )
    def test_a_key_renamed(self, published, name, message, tmp_path):
        state = {("renamed" if key == name else key): tensor for key, tensor in published["model"].items()}
        torch.save({"model": state}, "bad.th")
        self.refused(message, tmp_path)

    @pytest.mark.parametrize("name", ["text_proj.weight", "vision_proj.weight", "itm_head.0.weight"])
    def test_swapped_shapes(self, published, name, tmp_path):
        torch.save({"model": published["model"] | {name: published["model"][name].t()}}, "bad.th")
        self.refused("beside the file's other tensors it must be", tmp_path)

    def test_another_architecture(self, tmp_path):
        torch.save({"model": {"weight": torch.zeros(2, 2)}}, "bad.th")
        self.refused("not a CCRK checkpoint", tmp_path)

    def test_sizes_other_than_stated(self, published, tmp_path):
        torch.save({"model": published["model"], "config": {"image_res": 384}}, "bad.th")
        self.refused("states image_res 384, but its tensors are those of image_res 64", tmp_path)

    def test_a_decoder_that_is_not_the_embeddings(self, published, tmp_path):
        name = "text_encoder.cls.predictions.decoder.weight"
        torch.save({"model": published["model"] | {name: published["model"][name] + 1}}, "bad.th")
        self.refused(rf"{name} is not what this model computes \(tied to the word embeddings", tmp_path)

    def test_what_the_research_code_could_not_open(self, reference_model, tmp_path):
        reference_model.ccrk.save_pretrained("base")
        reference_model.config.position_ids_start = 2
        reference_model.save_pretrained("shifted")
        for folder, message in (("base", r"holds \['CCRKModel'\]"), ("shifted", "starts positions at 2")):
            with pytest.raises(SystemExit, match=message):
                run(folder, "original.th", "--to_original", tmp_path=tmp_path)
        assert not os.path.exists("original.th")
