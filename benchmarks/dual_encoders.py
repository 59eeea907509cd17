"""Two dual encoders with random weights for the benchmarks: in one a picture costs far more than a caption.

The text encoder, an XLM-R 192 wide with 6 layers, is the same in both; the embedded data set's captions have 16 tokens
on average. The image encoders are ViTs.
"""

import math
from collections.abc import Iterable

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


def make_encoder(size: str, captions: Iterable[str], scale: float = 20.0) -> DualEncoder:
    """The encoder, with a tokenizer that learns from the captions; the same call gives the same weights.

    Args:
        size: a name of `SIZES`.
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
    side = SIZES[size]["image_size"]
    images = ViTImageProcessor(size={"height": side, "width": side})
    torch.manual_seed(0)
    config = VisionTextDualEncoderConfig.from_vision_text_configs(
        ViTConfig(**SIZES[size], **COMMON),
        XLMRobertaConfig(**NARROW, **COMMON, vocab_size=len(words), max_position_embeddings=66, type_vocab_size=1),
        projection_dim=128,
        logit_scale_init_value=math.log(scale),
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = VisionTextDualEncoderModel(config).eval().to(device)
    return DualEncoder(model, VisionTextDualEncoderProcessor(images, words))
