"""Converts a published CCRK checkpoint (.th) into a transformers checkpoint folder.

    python convert_checkpoint.py ccrk_3m_10lan_epoch_29.th ccrk-3m --tokenizer FacebookAI/xlm-roberta-large

Every tensor of the file is mapped, or named as not needed and why; anything else is an error. Nothing is unpickled but
tensors, plain containers and the NumPy types of the file's random state.
"""

import argparse
import json
import math
import pickle
import re
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer

from ccrk import CCRKConfig, CCRKForPreTraining, CCRKProcessor
from processing_ccrk import published_image_processor
from recipe_ccrk import one_line_errors

# Published name → ours, tried in order. Swin's qkv is split and text layers are renumbered in `convert_state_dict`.
RENAMINGS = [
    (r"^temp$", "ccrk.temperature"),
    (r"^(vision|text)_proj\.", r"ccrk.\1_projection."),
    (r"^itm_head\.", "matching_head."),
    (r"^vision_encoder\.patch_embed\.proj\.", "ccrk.vision_model.embeddings.patch_embeddings.projection."),
    (r"^vision_encoder\.patch_embed\.norm\.", "ccrk.vision_model.embeddings.norm."),
    (r"^vision_encoder\.norm\.", "ccrk.vision_model.layernorm."),
    (r"^vision_encoder\.(layers\.\d+\.downsample)\.", r"ccrk.vision_model.encoder.\1."),
    (r"^vision_encoder\.(layers\.\d+\.blocks\.\d+)\.norm1\.", r"ccrk.vision_model.encoder.\1.layernorm_before."),
    (r"^vision_encoder\.(layers\.\d+\.blocks\.\d+)\.norm2\.", r"ccrk.vision_model.encoder.\1.layernorm_after."),
    (r"^vision_encoder\.(layers\.\d+\.blocks\.\d+)\.mlp\.", r"ccrk.vision_model.encoder.\1.mlp."),
    (r"^vision_encoder\.(layers\.\d+\.blocks\.\d+)\.attn\.proj\.", r"ccrk.vision_model.encoder.\1.attention.o_proj."),
    (
        r"^vision_encoder\.(layers\.\d+\.blocks\.\d+)\.attn\.relative_position_bias_table$",
        r"ccrk.vision_model.encoder.\1.attention.relative_position_bias.relative_position_bias_table",
    ),
    (
        r"^vision_encoder\.(layers\.\d+\.blocks\.\d+)\.attn\.qkv\.",
        r"ccrk.vision_model.encoder.\1.attention.{q,k,v}_proj.",
    ),
    (r"^text_encoder\.bert\.embeddings\.", "ccrk.text_model.embeddings."),
    (r"^text_encoder\.bert\.encoder\.layer\.", "layer."),
    (r"^text_encoder\.cls\.predictions\.transform\.dense\.", "lm_head.dense."),
    (r"^text_encoder\.cls\.predictions\.transform\.LayerNorm\.", "lm_head.layer_norm."),
    (r"^text_encoder\.cls\.predictions\.bias$", "lm_head.bias"),
]
NOT_NEEDED = [
    (r"\.relative_position_index$", "computed from the window size"),
    (r"\.attn_mask$", "computed from the image size"),
    (r"\.embeddings\.position_ids$", "computed from the caption's length"),
    (r"^text_encoder\.cls\.predictions\.decoder\.(weight|bias)$", "tied to the word embeddings and lm_head.bias"),
]
# The random state of NumPy that the files hold, under the module names of NumPy 1 and 2.
NUMPY_RANDOM_STATE = [
    (np._core.multiarray._reconstruct, "numpy.core.multiarray._reconstruct"),
    np._core.multiarray._reconstruct,
    np.ndarray,
    np.dtype,
    type(np.dtype("uint32")),
]


def load_published(path: Path) -> dict:
    """The published file's dictionary, read without running anything that it might hold."""
    try:
        with torch.serialization.safe_globals(NUMPY_RANDOM_STATE):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = f"holds {found[1]}, which is neither a tensor nor a plain container" if found else "is not a checkpoint"
        raise ValueError(f"{path} {what}; it was not opened. Ask its author for the weights alone") from error
    if not isinstance(content, dict) or "model" not in content:
        raise ValueError(f"{path} has no 'model' entry; a published checkpoint such as ccrk_3m_10lan_epoch_29.th has")
    return content


def read_config(state: dict[str, torch.Tensor], overrides: dict) -> CCRKConfig:
    """Sizes from the tensors. `overrides` supplies what no tensor shows, such as the text model's attention heads."""

    def count(pattern: str) -> int:
        return 1 + max((int(m[1]) for m in (re.search(pattern, name) for name in state) if m), default=-1)

    stages = count(r"^vision_encoder\.layers\.(\d+)\.")
    words = state.get("text_encoder.bert.embeddings.word_embeddings.weight")
    if stages == 0 or words is None:
        raise ValueError(
            "this is not a CCRK checkpoint: it lacks vision_encoder.layers or text_encoder.bert.embeddings"
        )
    tables = [
        state[f"vision_encoder.layers.{stage}.blocks.0.attn.relative_position_bias_table"] for stage in range(stages)
    ]
    window_size = (math.isqrt(tables[0].shape[0]) + 1) // 2
    patch_size = state["vision_encoder.patch_embed.proj.weight"].shape[-1]
    # The shifted block of the first stage keeps one attention mask per window: that tells the image size.
    windows = math.isqrt(state["vision_encoder.layers.0.blocks.1.attn_mask"].shape[0])
    vision = {
        "model_type": "swin",
        "image_size": windows * window_size * patch_size,
        "patch_size": patch_size,
        "embed_dim": state["vision_encoder.patch_embed.proj.weight"].shape[0],
        "depths": [count(rf"^vision_encoder\.layers\.{stage}\.blocks\.(\d+)\.") for stage in range(stages)],
        "num_heads": [table.shape[1] for table in tables],
        "window_size": window_size,
    }
    layers = count(r"^text_encoder\.bert\.encoder\.layer\.(\d+)\.")
    fusion = len(
        {m[1] for m in (re.search(r"layer\.(\d+)\.crossattention\.self\.key\.weight", n) for n in state) if m}
    )
    text = {
        "model_type": "xlm-roberta",
        "vocab_size": words.shape[0],
        "hidden_size": words.shape[1],
        "num_hidden_layers": layers - fusion,
        "num_attention_heads": max(1, words.shape[1] // 64),
        "intermediate_size": state["text_encoder.bert.encoder.layer.0.intermediate.dense.weight"].shape[0],
        "max_position_embeddings": state["text_encoder.bert.embeddings.position_embeddings.weight"].shape[0],
        "type_vocab_size": state["text_encoder.bert.embeddings.token_type_embeddings.weight"].shape[0],
        "layer_norm_eps": 1e-5,
    }
    return CCRKConfig(
        **{
            "vision_config": vision | overrides.get("vision_config", {}),
            "text_config": text | overrides.get("text_config", {}),
            "num_fusion_layers": fusion,
            "projection_dim": state["text_proj.weight"].shape[0],
            "position_ids_start": 0,
        }
        | {name: value for name, value in overrides.items() if name not in ("vision_config", "text_config")}
    )


def convert_state_dict(state: dict[str, torch.Tensor], num_text_layers: int) -> dict[str, torch.Tensor]:
    """Published names and layouts to those of [`CCRKForPreTraining`]; an unknown name is an error."""
    converted, unknown = {}, []
    for name, tensor in state.items():
        if any(re.search(pattern, name) for pattern, _ in NOT_NEEDED):
            continue
        matching = [(pattern, replacement) for pattern, replacement in RENAMINGS if re.search(pattern, name)]
        if not matching:
            unknown.append(name)
            continue
        new_name = re.sub(*matching[0], name)
        if "{q,k,v}" in new_name:
            for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                converted[new_name.replace("{q,k,v}", letter)] = part.clone()
            continue
        if new_name.startswith("layer."):
            _, index, rest = new_name.split(".", 2)
            if int(index) < num_text_layers:
                new_name = f"ccrk.text_model.encoder.layer.{index}.{rest}"
            else:
                rest = rest.replace("crossattention.self.", "cross_attention.")
                rest = rest.replace("crossattention.output.", "cross_attention.output.")
                new_name = f"ccrk.fusion_encoder.layers.{int(index) - num_text_layers}.{rest}"
        converted[new_name] = tensor.view(1) if name == "temp" else tensor
    if unknown:
        raise ValueError(
            f"{len(unknown)} tensors are of another architecture, the first {unknown[0]!r}; nothing was written"
        )
    return converted


def convert(content: dict, overrides: dict | None = None) -> CCRKForPreTraining:
    """A published checkpoint's dictionary to a model with every key accounted for: none missing, none left over."""
    state = content["model"]
    try:
        config = read_config(state, overrides or {})
    except KeyError as error:
        raise ValueError(f"this is not a CCRK pre-training checkpoint: it lacks {error}") from error
    model = CCRKForPreTraining(config)
    converted = convert_state_dict(state, config.text_config.num_hidden_layers)
    result = model.load_state_dict(converted, strict=False)
    tied = set(model.all_tied_weights_keys)
    missing = [name for name in result.missing_keys if name not in tied]
    if missing or result.unexpected_keys:
        raise ValueError(
            f"the file does not fill this model: missing {missing[:3]}, left over {result.unexpected_keys[:3]}; "
            "is it a CCRK pre-training checkpoint?"
        )
    return model


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="published pre-training checkpoint, ccrk_*_epoch_29.th")
    parser.add_argument("output", type=Path, help="folder to write")
    parser.add_argument("--config", type=Path, help="JSON of CCRKConfig fields that the tensors do not show")
    parser.add_argument("--tokenizer", help="folder or Hub id of XLM-R's tokenizer, saved with the model")
    arguments = parser.parse_args(argv)
    with one_line_errors():
        overrides = json.loads(arguments.config.read_text()) if arguments.config else {}
        model = convert(load_published(arguments.checkpoint), overrides)
    model.save_pretrained(arguments.output)
    if arguments.tokenizer:
        image_size = model.config.vision_config.image_size
        tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer)
        CCRKProcessor(published_image_processor(image_size), tokenizer).save_pretrained(arguments.output)
    for pattern, why in NOT_NEEDED:
        print(f"not needed: {pattern}  ({why})")
    print(f"{model.num_parameters():,} parameters written to {arguments.output}")


if __name__ == "__main__":
    main()
