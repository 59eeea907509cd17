"""Two dual encoders with random weights for the benchmarks: in one a picture costs far more than a caption.

The text encoder, an XLM-R 192 wide with 6 layers, is the same in both; the embedded data set's captions have 16 tokens
on average. The image encoders are ViTs. A third one is small enough to learn something in minutes on a CPU.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence

import datasets
import numpy as np
import torch
from transformers import (
    PreTrainedTokenizerFast,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
    VisionTextDualEncoderProcessor,
    ViTConfig,
    ViTImageProcessor,
    XLMRobertaConfig,
)

from ccrk.encoders import DualEncoder
from data_scripts.rows import row_features
from data_scripts.shapes import SPLITS, render, sample_scene
from data_scripts.shapes_lexicon import LANGUAGES as SHAPES_LANGUAGES
from data_scripts.shapes_lexicon import describe
from data_scripts.tokenizer import train_tokenizer

WIDE = {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536, "num_hidden_layers": 6}
NARROW = {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768, "num_hidden_layers": 6}
# Narrow layers of the usual 0.02 make nearly equal embeddings of everything.
COMMON = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "initializer_range": 0.05}
# Of the image encoder: 196 patches, or 16, as many as a caption has tokens.
SIZES = {
    "384 x 6 at 224 px": WIDE | {"image_size": 224, "patch_size": 16},
    "192 x 6 at 64 px": NARROW | {"image_size": 64, "patch_size": 16},
}
SMALL = {"hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 128, "num_hidden_layers": 2}
LEARNS = "64 x 2 at 64 px"  # its text encoder is as small


def make_rows(split: str, number: int, image_size: int, languages: Sequence[str]) -> datasets.Dataset:
    """
    So many scenes of the embedded data set with a caption in each language; more languages than it has take turns with
    its own, each with a wording by itself.
    """
    rows = []
    for index in range(number):
        scene, generator = sample_scene(0, split, index), np.random.default_rng((SPLITS.index(split), index))
        picture = render(scene, generator, image_size)
        captions = {
            language: [describe(scene, own, generator)]
            for language, own in zip(languages, itertools.cycle(SHAPES_LANGUAGES), strict=False)
        }
        rows.append({"image": picture, "image_id": str(index), "captions": captions})
    return datasets.Dataset.from_list(rows, features=row_features(languages))


def captions_of(rows: datasets.Dataset) -> Iterator[str]:
    return (text for captions in rows["captions"] for texts in captions.values() for text in texts)


def make_encoder(size: str, captions: Iterable[str], scale: float = 20.0) -> DualEncoder:
    """The encoder, with a tokenizer that learns from the captions; the same call gives the same weights.

    Args:
        size: a name of `SIZES`, or `LEARNS`.
        scale: of the logits to begin with, 1 / temperature.
    """
    words = PreTrainedTokenizerFast(
        tokenizer_object=train_tokenizer(captions, 1500).backend_tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        model_max_length=64,
    )
    vision, text = (SMALL | {"image_size": 64, "patch_size": 8}, SMALL) if size == LEARNS else (SIZES[size], NARROW)
    side = vision["image_size"]
    images = ViTImageProcessor(size={"height": side, "width": side})
    torch.manual_seed(0)
    config = VisionTextDualEncoderConfig.from_vision_text_configs(
        ViTConfig(**vision, **COMMON),
        XLMRobertaConfig(**text, **COMMON, vocab_size=len(words), max_position_embeddings=66, type_vocab_size=1),
        projection_dim=128,
        logit_scale_init_value=math.log(scale),
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = VisionTextDualEncoderModel(config).eval().to(device)
    return DualEncoder(model, VisionTextDualEncoderProcessor(images, words))
