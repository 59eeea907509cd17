"""Converts a published CCRK checkpoint into a transformers checkpoint folder, and back.

    python convert_checkpoint.py ccrk_3m_10lan_epoch_29.th ccrk-3m --tokenizer FacebookAI/xlm-roberta-large
    python convert_checkpoint.py checkpoint_best.pth ccrk-xflickrco --tokenizer FacebookAI/xlm-roberta-large \
        --max_words 80 --max_length 80
    python convert_checkpoint.py ccrk-3m ccrk_3m.th --to_original
    python convert_checkpoint.py swin_base_patch4_window7_224_22k.pth swin-base     the Swin authors' own format

No file says where its captions were cut: after 40 words and 40 tokens in pre-training, as here unless told otherwise;
after 30 words in fine-tuning on Multi30K and COCO, after 80 words and 80 tokens on xFlickr&CO and WIT.

Files of pre-training (.th) become a CCRKForPreTraining, those of fine-tuning (.pth) a CCRKForImageTextRetrieval, and a
Swin the image encoder to start from (train_pretrain.py --vision_model).
Every tensor of the file is mapped, or compared with what the model computes in its place; anything else is an error,
and nothing is written. Nothing is unpickled but tensors, plain containers and the NumPy types of the random state.
A file's checksums are compared; files of torch before 1.6 have none, and their SHA-256 is printed to compare by hand.
"""

import argparse
import contextlib
import hashlib
import json
import math
import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, SwinConfig, SwinModel

import ccrk
from ccrk import CCRKConfig, CCRKForImageTextRetrieval, CCRKForPreTraining, CCRKProcessor
from ccrk.resize import resize_image_encoder
from data_scripts.cli import one_line_errors
from data_scripts.files import check_output_folder, open_model, open_pretrained, written_whole
from modeling_ccrk import CCRKPairModel
from processing_ccrk import published_image_processor

# Our name → published, applied one after another. Layer numbers and fine-tuning's names: see `published_name`.
RENAMINGS = [
    (r"^ccrk\.temperature$", "temp"),
    (r"^ccrk\.(vision|text)_projection\.", r"\1_proj."),
    (r"^matching_head\.", "itm_head."),
    (r"^ccrk\.vision_model\.embeddings\.patch_embeddings\.projection\.", "vision_encoder.patch_embed.proj."),
    (r"^ccrk\.vision_model\.embeddings\.norm\.", "vision_encoder.patch_embed.norm."),
    (r"^ccrk\.vision_model\.layernorm\.", "vision_encoder.norm."),
    (r"^ccrk\.vision_model\.encoder\.", "vision_encoder."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.relative_position_bias\.", ".attn."),
    (r"\.attention\.o_proj\.", ".attn.proj."),
    (r"\.attention\.[qkv]_proj\.", ".attn.qkv."),
    (r"^ccrk\.text_model\.", "text_encoder.bert."),
    (r"^ccrk\.fusion_encoder\.layers\.", "text_encoder.bert.encoder.layer."),
    (r"\.cross_attention\.output\.", ".crossattention.output."),
    (r"\.cross_attention\.", ".crossattention.self."),
    (r"^lm_head\.(bias|decoder)", r"text_encoder.cls.predictions.\1"),
    (r"^lm_head\.dense\.", "text_encoder.cls.predictions.transform.dense."),
    (r"^lm_head\.layer_norm\.", "text_encoder.cls.predictions.transform.LayerNorm."),
]

# What the files hold and a model computes; they are compared, not loaded.
COMPUTED = {
    ".relative_position_index": "follows from the window size",
    ".attn_mask": "follows from the image size",
    ".position_ids": "counts from 0",
    ".predictions.decoder.": "tied to the word embeddings and the LM head's bias",
}

OPTIONS = ("config", "tokenizer", "image_size", "max_words", "max_length")  # of the way to a CCRK folder

CLASSIFIER = ("head.weight", "head.bias")  # of a Swin's file

# The random state of NumPy that the files hold, under the module names of NumPy 1 and 2.
NUMPY_RANDOM_STATE = [
    (np._core.multiarray._reconstruct, "numpy.core.multiarray._reconstruct"),
    np._core.multiarray._reconstruct,
    np.ndarray,
    np.dtype,
    type(np.dtype("uint32")),
]

PARTS = ("vision_config", "text_config")
# What `save_pretrained` writes of a save, beside the fields of the model.
OF_SAVING = {"_name_or_path", "architectures", "auto_map", "dtype", "torch_dtype", "transformers_version"}

# Levels that DistributedDataParallel and torch.compile put in front of every name.
WRAPPERS = ("module.", "_orig_mod.")

# XLM-R's, whatever the size; <mask> is the last.
SPECIAL_TOKENS = {"bos_token": 0, "pad_token": 1, "eos_token": 2, "unk_token": 3}


def is_zip(path: Path) -> bool:
    """Whether torch takes a file for a zip; its format before version 1.6 is a row of pickles and numbers."""
    with path.open("rb") as file:
        return file.read(4) == b"PK\3\4"


def load_published(path: Path) -> dict:
    """The published file's dictionary, its tensors left on disk until used; nothing that it might hold is run.

    Raises:
        ValueError: the file is damaged, or holds anything but tensors under 'model'.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name a published file, or convert it with --to_original")
    zipped = is_zip(path)
    if zipped and (damage := _what_is_damaged(path)):
        raise ValueError(f"{path} is no whole checkpoint ({damage}); it was not opened. Get it anew")
    with path.open("rb") as file:
        try:
            with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals(NUMPY_RANDOM_STATE):
                content = torch.load(path if zipped else file, map_location="cpu", weights_only=True, mmap=zipped)
        except MemoryError:
            raise
        except Exception as error:  # there is no end to what unpickling raises on damaged files
            found = re.search(r"GLOBAL (\S+)", str(error))
            name = found[1] if found else None if zipped else _first_global(path)
            what = (
                f"holds {name}, which is neither a tensor nor a plain container" if name else "is no whole checkpoint"
            )
            raise ValueError(
                f"{path} {what}; it was not opened. Get it anew, or ask its author for the weights"
            ) from error
        if not zipped and (beyond := path.stat().st_size - file.tell()):
            raise ValueError(f"{path} is no whole checkpoint ({beyond} bytes follow its last tensor); get it anew")
    state = content.get("model") if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in state.items()
    ):
        raise ValueError(
            f"{path} has no tensors under 'model'; a published checkpoint such as checkpoint_best.pth has"
        )
    check_finite(state, path)
    while prefix := next((p for p in WRAPPERS if state and all(name.startswith(p) for name in state)), None):
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return content | {"model": state}


def _what_is_damaged(path: Path) -> str | None:
    """What a zip's checksums, which torch does not compare, say of it; None where it is whole."""
    try:
        with zipfile.ZipFile(path) as file:
            entries = file.infolist()
            if len({entry.filename for entry in entries}) < len(entries):
                return "two of its entries have one name"
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                return "its entries are compressed, which torch does not write"
            damaged = file.testzip()
    except Exception as error:  # zipfile has several, and on damaged files others come through
        return str(error)
    return damaged and f"{damaged} is not as its checksum says"


def check_finite(state: dict[str, Tensor], path: Path) -> None:
    """ValueError where a tensor holds NaN or infinity; looked at in pieces, which take no memory to speak of."""
    for name, tensor in state.items():
        if not all(bool(piece.isfinite().all()) for piece in tensor.flatten().split(1 << 22)):
            raise ValueError(f"{path} is damaged: {name} holds values that are no numbers; get it anew")


def _first_global(path: Path) -> str | None:
    """The first object that a plain pickle would import, which torch does not name for today's pickle protocols."""
    strings = []
    with path.open("rb") as file, contextlib.suppress(ValueError):  # not a pickle
        for operation, argument, _ in pickletools.genops(file):
            if operation.name == "STACK_GLOBAL":
                return ".".join(strings[-2:])
            if isinstance(argument, str):
                strings.append(argument)
    return None


def _count(names, pattern: str) -> int:
    """One more than the highest number in the pattern's group; 0 where no name has it."""
    return 1 + max((int(m[1]) for m in (re.search(pattern, name) for name in names) if m), default=-1)


def read_swin(state: dict[str, Tensor]) -> dict:
    """Fields of SwinConfig from the tensors under `vision_encoder.`."""
    stages = _count(state, r"^vision_encoder\.layers\.(\d+)\.")
    tables = [
        state[f"vision_encoder.layers.{stage}.blocks.0.attn.relative_position_bias_table"] for stage in range(stages)
    ]
    window_size = (math.isqrt(tables[0].shape[0]) + 1) // 2
    embed_dim, _, patch_size, _ = state["vision_encoder.patch_embed.proj.weight"].shape
    # The shifted block of the first stage keeps one attention mask per window: that tells the image size.
    windows = math.isqrt(state["vision_encoder.layers.0.blocks.1.attn_mask"].shape[0])
    return {
        "model_type": "swin",
        "image_size": windows * window_size * patch_size,
        "patch_size": patch_size,
        "embed_dim": embed_dim,
        "depths": [_count(state, rf"^vision_encoder\.layers\.{stage}\.blocks\.(\d+)\.") for stage in range(stages)],
        "num_heads": [table.shape[1] for table in tables],
        "window_size": window_size,
    }


def read_config(content: dict, overrides: dict) -> CCRKConfig:
    """Sizes from the tensors, held against those that the file states.

    Args:
        content: of `load_published`.
        overrides: what no tensor shows, such as the text model's attention heads.
    """
    state = content["model"]
    bert = _text_prefix(state)

    count = partial(_count, state)
    if not count(r"^vision_encoder\.layers\.(\d+)\.") or not count(rf"^{bert}encoder\.layer\.(\d+)\."):
        raise ValueError("this is not a CCRK checkpoint: it lacks vision_encoder.layers or text_encoder")
    layers = count(rf"^{bert}encoder\.layer\.(\d+)\.")
    fusion = sum(name.endswith(".crossattention.self.key.weight") for name in state)
    words = state[f"{bert}embeddings.word_embeddings.weight"]
    text = {
        "model_type": "xlm-roberta",
        "vocab_size": words.shape[0],
        "hidden_size": words.shape[1],
        "num_hidden_layers": layers - fusion,
        "num_attention_heads": max(1, words.shape[1] // 64),
        "intermediate_size": state[f"{bert}encoder.layer.0.intermediate.dense.weight"].shape[0],
        "max_position_embeddings": state[f"{bert}embeddings.position_embeddings.weight"].shape[0],
        "type_vocab_size": state[f"{bert}embeddings.token_type_embeddings.weight"].shape[0],
        "layer_norm_eps": 1e-5,
    }
    config = CCRKConfig(
        **{
            "vision_config": read_swin(state) | overrides.get("vision_config", {}),
            "text_config": text | overrides.get("text_config", {}),
            "num_fusion_layers": fusion,
            "projection_dim": state["text_proj.weight"].shape[0],
            "position_ids_start": 0,
        }
        | {name: value for name, value in overrides.items() if name not in ("vision_config", "text_config")}
    )
    known = CCRKConfig(vision_config={"model_type": "swin"}, text_config={"model_type": "xlm-roberta"}).to_dict()
    for fields, place, names in (
        (overrides, "", known),
        *((overrides.get(part, {}), f"{part}.", known[part]) for part in PARTS),
    ):
        if unknown := [f"{place}{name}" for name in fields if name not in names]:
            raise ValueError(f"CCRKConfig has no {', '.join(unknown)}; fix the file of --config")
    stated = content["config"] if isinstance(content.get("config"), dict) else {}
    for name, size in published_config(config).items():
        if stated.get(name, size) != size:
            raise ValueError(f"the file states {name} {stated[name]}, but its tensors are those of {name} {size}")
    return config


def published_config(config: CCRKConfig) -> dict[str, int]:
    """The sizes among the fields of the research code's configuration."""
    return {
        "image_res": config.vision_config.image_size,
        "embed_dim": config.projection_dim,
        "text_num_hidden_layers": config.text_config.num_hidden_layers + config.num_fusion_layers,
    }


def _text_prefix(names) -> str:
    """Fine-tuned files lack the `bert.` level."""
    return "text_encoder.bert." if any(name.startswith("text_encoder.bert.") for name in names) else "text_encoder."


def published_name(name: str, model: PreTrainedModel) -> str:
    """The research code's name of one of our tensors; a query, key and value of Swin share one. Of a Swin alone, the
    name that it has as an image encoder."""
    if isinstance(model, SwinModel):
        name = f"ccrk.vision_model.{name}"
    if match := re.match(r"(ccrk\.fusion_encoder\.layers\.)(\d+)(.+)", name):  # they follow the text layers
        name = f"{match[1]}{int(match[2]) + model.config.text_config.num_hidden_layers}{match[3]}"
    for pattern, replacement in RENAMINGS:
        name = re.sub(pattern, replacement, name)
    if isinstance(model, CCRKForImageTextRetrieval):
        name = name.replace("text_encoder.bert.", "text_encoder.")
    return name


def published_tensors(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of a model as the research code stores them, the computed ones included."""
    state = model.state_dict()
    for name, tensor in state.items():
        if ".q_proj." in name:
            tensor = torch.cat([state[name.replace(".q_proj.", f".{letter}_proj.")] for letter in "qkv"])
        elif ".k_proj." in name or ".v_proj." in name:
            continue
        yield published_name(name, model), tensor.squeeze() if name == "ccrk.temperature" else tensor
    for name, module in model.named_modules():
        if name.endswith(".relative_position_bias"):
            area = module.window_area
            yield (
                published_name(f"{name}.relative_position_index", model),
                module.relative_position_index.view(area, area),
            )
        elif hasattr(module, "get_attn_mask"):
            module.set_shift_and_window_size(module.input_resolution)
            mask = module.get_attn_mask(*module.input_resolution, torch.float32, model.device)
            if mask is not None:
                yield published_name(f"{name}.attn_mask", model), mask
    if isinstance(model, SwinModel):
        return
    positions = model.ccrk.text_model.embeddings.position_ids
    yield published_name("ccrk.text_model.embeddings.position_ids", model), positions


def convert(content: dict, overrides: dict | None = None) -> CCRKPairModel:
    """A published checkpoint's dictionary to a model, every key accounted for: none missing, none left over.

    Raises:
        ValueError: the first key that is missing, unknown, of another shape, or not what the model computes for it.
    """
    state = content["model"]
    try:
        config = read_config(content, overrides or {})
        head = CCRKForPreTraining if _text_prefix(state) == "text_encoder.bert." else CCRKForImageTextRetrieval
        with torch.device("meta"):
            model = head(config)
    except KeyError as error:
        raise ValueError(f"this is not a whole CCRK checkpoint: it lacks {error}; nothing was written") from error
    except (ArithmeticError, AssertionError, TypeError) as error:
        raise ValueError(f"no model can be made with the fields of --config ({error}); nothing was written") from error
    return _fill(model, state)


def convert_swin(content: dict) -> SwinModel:
    """An image encoder as the Swin authors store it, with the checks of `convert`; its classifier is left out."""
    state = {f"vision_encoder.{name}": tensor for name, tensor in content["model"].items() if name not in CLASSIFIER}
    try:
        config = SwinConfig(**read_swin(state))
    except KeyError as error:
        raise ValueError(f"this is not a whole Swin: it lacks {error}; nothing was written") from error
    with torch.device("meta"):
        model = SwinModel(config, add_pooling_layer=False)
    return _fill(model, state, add_pooling_layer=False)


def _fill(empty: PreTrainedModel, state: dict[str, Tensor], **options) -> PreTrainedModel:
    """The model on the meta device with the tensors of a file in it, every key accounted for."""
    head = type(empty)
    shapes = {name: tuple(tensor.shape) for name, tensor in published_tensors(empty)}
    missing = [name for name in shapes if name not in state and not any(part in name for part in COMPUTED)]
    unknown = [name for name in state if name not in shapes]
    if missing or unknown:
        raise ValueError(
            f"this file does not fill a {head.__name__}: {len(missing)} tensors are missing {missing[:2]}, "
            f"{len(unknown)} are unknown {unknown[:2]}; nothing was written"
        )
    for name, tensor in state.items():
        if tuple(tensor.shape) != shapes[name]:
            raise ValueError(
                f"{name} is of shape {tuple(tensor.shape)}; beside the file's other tensors it must be "
                f"{shapes[name]}; nothing was written"
            )

    converted = {}
    for name in empty.state_dict():
        if name in empty.all_tied_weights_keys:
            continue
        tensor = state[published_name(name, empty)]
        if match := re.search(r"\.([qkv])_proj\.", name):
            tensor = tensor.chunk(3)["qkv".index(match[1])].clone()
        converted[name] = tensor.view(1) if name == "ccrk.temperature" else tensor
    model = head.from_pretrained(None, config=empty.config, state_dict=converted, **options)
    for name, tensor in published_tensors(model):
        if name in state and not torch.equal(tensor, state[name]):
            reason = next(
                (reason for part, reason in COMPUTED.items() if part in name), "is changed by the conversion"
            )
            raise ValueError(f"{name} is not what this model computes ({reason}); nothing was written")
    return model


def checksums(model: PreTrainedModel, description: str) -> dict[str, str]:
    """SHA-256 of every tensor by name."""
    return {
        name: hashlib.sha256(tensor.contiguous().view(-1).view(torch.uint8).numpy()).hexdigest()
        for name, tensor in tqdm(model.state_dict().items(), desc=description, leave=False)
    }


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, config: CCRKConfig, name: str) -> None:
    """ValueError where its ids cannot be those that a checkpoint was trained with: each must have a word embedding."""
    cure = "give the tokenizer that it was trained with, such as FacebookAI/xlm-roberta-large"
    vocab_size = config.text_config.vocab_size
    if len(tokenizer) != vocab_size:
        raise ValueError(f"{name} has {len(tokenizer)} tokens, the checkpoint {vocab_size}; {cure}")
    for token, expected in (SPECIAL_TOKENS | {"mask_token": vocab_size - 1}).items():
        if (found := getattr(tokenizer, f"{token}_id", None)) != expected:
            raise ValueError(f"{name} has {token} {found}, the checkpoint {expected}; {cure}")


def read_overrides(path: Path | None) -> dict:
    """The fields of CCRKConfig in a JSON file, which may be a whole `config.json` of `save_pretrained`."""
    try:
        overrides = json.loads(path.read_bytes()) if path else {}
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error})") from error
    parts = [overrides, *(overrides.get(name, {}) for name in PARTS)] if isinstance(overrides, dict) else [overrides]
    if not all(isinstance(part, dict) for part in parts):
        raise ValueError(
            f'{path} must hold fields of CCRKConfig, such as {{"text_config": {{"num_attention_heads": 16}}}}'
        )
    if overrides.get("model_type", "ccrk") != "ccrk":
        raise ValueError(f"{path} describes a model of type {overrides['model_type']}; give that of a CCRK model")
    for part in parts:
        for name in OF_SAVING & part.keys():
            del part[name]
    return overrides


def to_transformers(arguments: argparse.Namespace) -> None:
    """From the command line's published file to a folder, which is then opened and compared."""
    output = arguments.output
    if output.exists() and not output.is_dir():
        raise ValueError(f"{output} is a file; name a folder to write")
    if output.exists() and any(output.iterdir()):  # its files would be taken for the checkpoint's
        raise ValueError(f"{output} is not empty; name a new folder, or empty it")
    check_output_folder(output.absolute().parent)
    overrides = read_overrides(arguments.config)
    tokenizer = open_pretrained(AutoTokenizer, arguments.tokenizer) if arguments.tokenizer else None
    content = load_published(arguments.checkpoint)
    if "patch_embed.proj.weight" in content["model"]:
        if any(getattr(arguments, name) for name in OPTIONS):
            raise ValueError(f"{arguments.checkpoint} is an image encoder alone and takes no option")
        model, options = convert_swin(content), {"add_pooling_layer": False}
    else:
        model, options = convert(content, overrides), {}
    if tokenizer is not None:
        check_tokenizer(tokenizer, model.config, arguments.tokenizer)
    if arguments.image_size is not None:
        resize_image_encoder(model, arguments.image_size)
    head, names, written = type(model), list(content["model"]), checksums(model, "adding up")
    image_size = (model.config if head is SwinModel else model.config.vision_config).image_size
    with written_whole(output) as folder:
        model.save_pretrained(folder)
        if tokenizer is not None:
            max_words, max_length = arguments.max_words or 40, arguments.max_length or 40
            processor = CCRKProcessor(published_image_processor(image_size), tokenizer, max_words, max_length)
            processor.save_pretrained(folder)
        del content, model  # so that the check needs no second copy in memory
        loaded, _ = open_model(head, folder, dtype="auto", **options)
        if checksums(loaded, "checking") != written:
            raise ValueError(f"{output} does not open with the tensors of {arguments.checkpoint}; nothing was written")
    print_not_needed(names)
    if tokenizer is None and head is not SwinModel:
        print(
            "no tokenizer: convert with --tokenizer FacebookAI/xlm-roberta-large for a folder that AutoProcessor opens"
        )
    if not is_zip(arguments.checkpoint):
        print(
            f"{arguments.checkpoint} is of torch before 1.6 and holds no checksums to find damage by; compare its "
            f"SHA-256 with that of its source: {sha256(arguments.checkpoint)}"
        )
    print(
        f"{head.__name__}, {image_size} px, {loaded.num_parameters():,} parameters, checked by loading; "
        f"SHA-256 of {output / 'model.safetensors'}: {sha256(output / 'model.safetensors')}"
    )


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def print_not_needed(names: list[str]) -> None:
    """Of a file's tensors those that no model has taken, and why."""
    for part, reason in COMPUTED.items():
        if number := sum(part in name for name in names):
            print(f"not needed: {number} of *{part}*, {reason}")
    if classifier := [name for name in names if name in CLASSIFIER]:
        print(f"not needed: {' and '.join(classifier)}, the classifier of a Swin")


def to_original(arguments: argparse.Namespace) -> None:
    """From the command line's folder to a file that the research code opens."""
    if arguments.output.exists():
        raise ValueError(f"{arguments.output} exists; name a file to write")
    check_output_folder(arguments.output.absolute().parent)
    config = open_pretrained(AutoConfig, arguments.checkpoint)
    head = getattr(ccrk, str((config.architectures or ["none"])[0]), None)
    if config.model_type != "ccrk" or head not in (CCRKForPreTraining, CCRKForImageTextRetrieval):
        raise ValueError(
            f"{arguments.checkpoint} holds {config.architectures}; the research code opens a CCRKForPreTraining or a "
            "CCRKForImageTextRetrieval"
        )
    model, _ = open_model(head, arguments.checkpoint, dtype="auto")
    if model.config.position_ids_start != 0 or model.config.vision_config.model_type != "swin":
        raise ValueError(
            f"{arguments.checkpoint} starts positions at {model.config.position_ids_start} and sees by "
            f"{model.config.vision_config.model_type}; the research code knows 0 and swin alone"
        )
    state = dict(published_tensors(model))
    check_finite(state, arguments.checkpoint)
    with written_whole(arguments.output) as path:
        torch.save({"model": state, "config": published_config(model.config)}, path)
    print(f"{model.num_parameters():,} parameters; SHA-256 of {arguments.output}: {sha256(arguments.output)}")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="published checkpoint: ccrk_*_epoch_29.th, checkpoint_best.pth")
    parser.add_argument("output", type=Path, help="folder to write")
    parser.add_argument(
        "--config", type=Path, help="JSON of CCRKConfig fields that the tensors do not show, or a saved config.json"
    )
    parser.add_argument("--tokenizer", help="folder or Hub id of XLM-R's tokenizer, saved with the model")
    parser.add_argument("--image_size", type=int, help="resize the image encoder to pictures of this side, in pixels")
    parser.add_argument("--max_words", type=int, help="words that a caption keeps, 40 unless given")
    parser.add_argument("--max_length", type=int, help="tokens that a caption keeps, 40 unless given")
    parser.add_argument(
        "--to_original", action="store_true", help="from a folder (first) to a published file (second)"
    )
    arguments = parser.parse_args(argv)
    if arguments.to_original and any(getattr(arguments, name) for name in OPTIONS):
        parser.error("--to_original takes no other option")
    for name in ("image_size", "max_words", "max_length"):
        if getattr(arguments, name) is not None and getattr(arguments, name) < 1:
            parser.error(f"--{name} must be at least 1")
    if (arguments.max_words or arguments.max_length) and not arguments.tokenizer:
        parser.error("--max_words and --max_length are saved beside a tokenizer; give --tokenizer too")
    with one_line_errors():
        (to_original if arguments.to_original else to_transformers)(arguments)
