"""
What training and retrieval have of a model, and the CCRK model as both use it. It imports PyTorch and transformers
alone: `benchmarks/gpu.py` runs where nothing else is installed.
"""

import hashlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from modeling_ccrk import CCRKPairModel
from processing_ccrk import CCRKProcessor, normalize_caption


class Embeddings(NamedTuple):
    """What a training step asks of a model, for this process's B images with K captions each."""

    image: Tensor  # (B, P), L2-normalised
    text: Tensor  # (B, K, P), L2-normalised; whatever where a caption is missing
    temperature: Tensor  # one element; logits are cosine / temperature
    bias: Tensor | None = None  # one element, added to them where the loss is a sigmoid
    # Name → a loss of the model's own, and of how many items it is a mean.
    parts: Mapping[str, tuple[Tensor, Tensor]] = MappingProxyType({})


TOKENS_PER_BATCH = 4096  # caption tokens that go through the fusion encoder at a time


class CCRKEncoder:
    """A CCRK model as an evaluation uses it. `DualEncoder` offers the same for other models.

    Args:
        model: bare; in evaluation mode to encode with.
        k_test: candidates re-scored per query; 0 ranks by cosine alone. More than there are means all.
    """

    needs_language = False

    def __init__(self, model: CCRKPairModel, processor: CCRKProcessor, k_test: int = 128):
        self.model = model
        self.processor = self.inputs = processor
        self.k_test = k_test

    def embed(self, model: torch.nn.Module, inputs: dict[str, Tensor]) -> Embeddings:
        """By one forward through the wrapped model, with its own losses of the batch: matching, and masked LM."""
        outputs = model(**inputs)
        parts = {"matching_loss": (outputs.matching_loss, outputs.num_matching_pairs)}
        if outputs.mlm_loss is not None:
            parts["mlm_loss"] = outputs.mlm_loss, outputs.num_masked_tokens
        return Embeddings(outputs.image_embeds, outputs.text_embeds, outputs.temperature, parts=parts)

    def embed_alone(self, inputs: dict[str, Tensor]) -> Embeddings:
        given = ("input_ids", "pixel_values", "attention_mask", "caption_lengths")
        outputs = self.model.ccrk(**{name: inputs.get(name) for name in given})
        return Embeddings(outputs.image_embeds, outputs.text_embeds, self.model.ccrk.temperature)

    @property
    def fingerprint(self) -> str:
        """Changes with the weights, their dtype, the processor, or whether there is anything to re-score."""
        return weights_fingerprint(self.model.state_dict(), self.processor.to_json_string(), str(self.k_test > 0))

    @torch.no_grad()
    def encode_images(self, images: list) -> dict[str, Tensor]:
        """`embeds` (B, projection_dim), L2-normalised; to re-score, `states` (B, T, vision_hidden_size) as well."""
        pixel_values = self.processor(images=images)["pixel_values"].to(self.model.device, self.model.dtype)
        outputs = self.model.ccrk(pixel_values=pixel_values)
        return {"embeds": outputs.image_embeds} | ({"states": outputs.image_states} if self.k_test else {})

    @torch.no_grad()
    def encode_captions(self, captions: list[str], language: str | None = None) -> dict[str, Tensor]:
        """
        `embeds` (N, projection_dim), L2-normalised; to re-score, `lengths` (N,) and `tokens` (sum of lengths,
        hidden_size) as well, which have the first fusion layer's self-attention behind them.
        """
        inputs = self.processor(text=captions).to(self.model.device)
        mask = inputs["attention_mask"]
        outputs = self.model.ccrk(input_ids=inputs["input_ids"], attention_mask=mask)
        if not self.k_test:
            return {"embeds": outputs.text_embeds}
        states = self.model.ccrk.fusion_encoder.prepare_captions(outputs.text_states, mask)
        return {"embeds": outputs.text_embeds, "tokens": states[mask.bool()], "lengths": mask.sum(dim=1)}

    def caption_lengths(self, captions: Sequence[str]) -> list[int]:
        """Tokens of each caption."""
        return self.processor(text=list(captions))["attention_mask"].sum(dim=1).tolist()

    def are_cut(self, captions: Sequence[str]) -> list[bool]:
        """Whether each caption has more than `max_words` words, or more than `max_length` tokens of these."""
        processor, captions = self.processor, list(captions)
        kept = captions
        if processor.normalize_captions:
            captions = [normalize_caption(caption, sys.maxsize) for caption in captions]
            kept = [normalize_caption(caption, processor.max_words) for caption in captions]
        tokens = processor.tokenizer(kept, verbose=False)["input_ids"]
        return [
            caption != own or len(ids) > processor.max_length
            for caption, own, ids in zip(captions, kept, tokens, strict=True)
        ]

    @torch.no_grad()
    def score_pairs(self, image_states: Tensor, captions: "EncodedCaptions", pairs: np.ndarray) -> np.ndarray:
        """Match logits of pairs.

        Args:
            image_states: (B, T, vision_hidden_size).
            pairs: (P, 2), image among the B and caption; sorted by image.

        Returns: (P,) in fp32.
        """
        device = self.model.device
        rows, image = torch.from_numpy(pairs[:, 0]).unique_consecutive(return_inverse=True)
        caption = torch.from_numpy(pairs[:, 1])
        states = image_states[rows].to(device, self.model.dtype)
        keys_and_values = self.model.ccrk.fusion_encoder.prepare_images(states)
        lengths = captions.lengths[caption]
        batch = (lengths.cumsum(0) - 1) // TOKENS_PER_BATCH
        scores = []
        for own in torch.arange(len(pairs)).split(batch.unique_consecutive(return_counts=True)[1].tolist()):
            # Token t of the batch is token t - (tokens of the captions before it) of its caption.
            before = lengths[own].cumsum(0) - lengths[own]
            token = torch.repeat_interleave(captions.first_token[caption[own]] - before, lengths[own])
            token += torch.arange(len(token))
            images, captions_per_image = image[own].unique_consecutive(return_counts=True)
            run = slice(int(images[0]), int(images[-1]) + 1)
            logits = self.model.match_packed(
                [(key[run], value[run]) for key, value in keys_and_values],
                captions.tokens[token].to(device),
                lengths[own],
                captions_per_image,
            )
            scores.append(logits[:, 1].cpu())
        return torch.cat(scores).numpy()


@dataclass
class EncodedCaptions:
    """N captions of one language; of a dual encoder only `embeds`."""

    embeds: Tensor  # (N, projection_dim), L2-normalised, fp32
    tokens: Tensor | None = None  # (sum of lengths, hidden_size), see `CCRKEncoder.encode_captions`
    first_token: Tensor | None = None  # (N,), where a caption's tokens start
    lengths: Tensor | None = None  # (N,)


def weights_fingerprint(weights: dict[str, Tensor], *settings: str) -> str:
    """A digest of weights by their names, with whatever else decides what the model answers."""
    digest = hashlib.blake2b("\0".join(settings).encode(), digest_size=16)
    for name, tensor in weights.items():
        digest.update(f"{name} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def tokenizer_settings(tokenizer) -> str:
    """What of a tokenizer tells it from others, for `weights_fingerprint`: not the folder that it was opened from."""
    return str(tokenizer).replace(f"name_or_path={tokenizer.name_or_path!r}", "")
