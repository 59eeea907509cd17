"""What evaluation asks of a model: a CCRK with its fusion encoder, or a dual encoder of transformers."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, AutoProcessor

from ccrk import CCRKConfig, CCRKForImageTextRetrieval, CCRKProcessor
from ccrk.processes import process_state
from data_scripts.files import open_model, open_pretrained
from modeling_ccrk import CCRKPairModel


class DualEncoder:
    """A dual encoder of transformers, such as CLIP or SigLIP: what `CCRKRetriever` is, without re-scoring.

    Args:
        name_or_path: folder or Hub id of a model with `get_image_features` and `get_text_features`.
        dtype: of its weights.
    """

    k_test = 0

    def __init__(self, name_or_path: str, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"):
        model, _ = open_model(AutoModel, name_or_path, dtype=dtype)
        self.model = model.eval().to(device)
        if not hasattr(self.model, "get_image_features") or not hasattr(self.model, "get_text_features"):
            raise ValueError(
                f"{name_or_path} is a {type(self.model).__name__}, which embeds no images and captions; give a CCRK "
                "checkpoint, a dual encoder such as CLIP or SigLIP, or an .npz of embeddings or scores"
            )
        self.processor = open_pretrained(AutoProcessor, name_or_path)
        if lacking := [
            part for part in ("image_processor", "tokenizer") if getattr(self.processor, part, None) is None
        ]:
            raise ValueError(f"{name_or_path} holds no {' and no '.join(lacking)}; save the model's processor there")

    @property
    def fingerprint(self) -> str:
        return weights_fingerprint(self.model.state_dict(), str(self.processor))

    def caption_lengths(self, captions: Sequence[str]) -> list[int]:
        return [len(caption) for caption in captions]

    @torch.no_grad()
    def encode_images(self, images: list) -> dict[str, Tensor]:
        """`embeds` (B, dimension), L2-normalised."""
        # With SigLIP 2 at native resolution, masks and shapes come beside the pixels.
        inputs = self.processor(images=[image.convert("RGB") for image in images], return_tensors="pt")
        features = self.model.get_image_features(**inputs.to(self.model.device, self.model.dtype))
        return {"embeds": F.normalize(features.pooler_output.float(), dim=-1)}

    @torch.no_grad()
    def encode_captions(self, captions: list[str]) -> dict[str, Tensor]:
        """`embeds` (N, dimension), L2-normalised."""
        options = {"padding": True}
        if self.model.config.model_type.startswith("siglip"):
            # It was trained on captions padded to its full length, without attention mask.
            length = self.model.config.text_config.max_position_embeddings
            options = {"padding": "max_length", "max_length": length, "return_attention_mask": False}
        inputs = self.processor(text=captions, truncation=True, return_tensors="pt", **options)
        features = self.model.get_text_features(**inputs.to(self.model.device))
        return {"embeds": F.normalize(features.pooler_output.float(), dim=-1)}


TOKENS_PER_BATCH = 4096  # caption tokens that go through the fusion encoder at a time


class CCRKRetriever:
    """A CCRK model as an evaluation uses it. `DualEncoder` offers the same for other models.

    Args:
        model: in evaluation mode.
        k_test: candidates re-scored per query; 0 ranks by cosine alone. More than there are means all.
    """

    def __init__(self, model: CCRKPairModel, processor: CCRKProcessor, k_test: int = 128):
        self.model = model
        self.processor = processor
        self.k_test = k_test

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
    def encode_captions(self, captions: list[str]) -> dict[str, Tensor]:
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
    tokens: Tensor | None = None  # (sum of lengths, hidden_size), see `CCRKRetriever.encode_captions`
    first_token: Tensor | None = None  # (N,), where a caption's tokens start
    lengths: Tensor | None = None  # (N,)


def weights_fingerprint(weights: dict[str, Tensor], *settings: str) -> str:
    """A digest of weights by their names, with whatever else decides what the model answers."""
    digest = hashlib.blake2b("\0".join(settings).encode(), digest_size=16)
    for name, tensor in weights.items():
        digest.update(f"{name} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def load_retriever(name_or_path: str, k_test: int, bf16: bool) -> CCRKRetriever | DualEncoder:
    """The model in evaluation mode. Re-ranking by a head that was never trained is refused."""
    options = {"dtype": torch.bfloat16 if bf16 else torch.float32}
    device = process_state().device
    if open_pretrained(AutoConfig, name_or_path).model_type != CCRKConfig.model_type:
        return DualEncoder(name_or_path, device=device, **options)
    processor = open_pretrained(CCRKProcessor, name_or_path)
    model, lacking = open_model(CCRKForImageTextRetrieval, name_or_path, ("matching_head",), **options)
    if k_test and lacking:
        raise ValueError(f"{name_or_path} has no matching head; rank with --no_rerank, or fine-tune it first")
    tokens, vocab_size = len(processor.tokenizer), model.config.text_config.vocab_size
    if tokens > vocab_size:
        raise ValueError(f"{name_or_path}: its tokenizer has {tokens} tokens, its model {vocab_size}; restore its own")
    return CCRKRetriever(model.eval().to(device), processor, k_test)
