"""The fusion encoder: layers in which a caption's tokens meet an image's, without a step spent on padding.

Shapes: as in `modeling_ccrk.py`; S tokens of P packed captions.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.xlm_roberta.modeling_xlm_roberta import (
    XLMRobertaAttention,
    XLMRobertaIntermediate,
    XLMRobertaOutput,
    XLMRobertaSelfAttention,
    XLMRobertaSelfOutput,
    eager_attention_forward,
)

try:
    from .configuration_ccrk import CCRKConfig
except ImportError:
    if __package__:  # a checkpoint's copy: what it lacks must not come from the code installed here
        raise
    from configuration_ccrk import CCRKConfig


class PackedCaptions:
    """
    Captions of unequal length, their tokens packed one after the other: no layer spends time on padding.

    Only attention needs captions side by side; `pad` and `pack` go there and back.

    Args:
        config: of the text encoder; its attention decides what `attention_mask` looks like.
        lengths: (P,), S in sum, on the CPU.
        like: a tensor with the dtype and on the device of the tokens.
    """

    def __init__(self, config, lengths: Tensor, like: Tensor):
        self.mask = mask = torch.arange(int(lengths.max())) < lengths[:, None]  # on the CPU
        self.shape = mask.shape
        # Without waiting for what the device has still to do, here and below.
        self.positions = true_indices(mask).to(like.device, non_blocking=True)
        self.first = (lengths.cumsum(0) - lengths).to(like.device, non_blocking=True)
        # Made on the CPU as well: it is skipped where all captions are equally long, and asking a GPU for that waits.
        states = torch.empty(*mask.shape, 1, dtype=like.dtype)
        attention_mask = create_bidirectional_mask(config=config, inputs_embeds=states, attention_mask=mask)
        self.attention_mask = None if attention_mask is None else attention_mask.to(like.device, non_blocking=True)

    def pad(self, packed: Tensor) -> Tensor:
        """(S, D) → (P, longest, D), zeros where a caption has ended."""
        padded = packed.new_zeros(self.shape.numel(), packed.shape[-1])
        return padded.index_copy_(0, self.positions, packed).view(*self.shape, -1)

    def pack(self, padded: Tensor) -> Tensor:
        """(P, at least longest, ...) → (S, ...)."""
        return padded[:, : self.shape[1]].flatten(0, 1).index_select(0, self.positions)


def true_indices(mask: Tensor) -> Tensor:
    """Where a mask on the CPU is True, counted over all of it."""
    return mask.flatten().nonzero().squeeze(1)


def to_host(tensor: Tensor) -> Tensor:
    """A copy on the CPU. It waits for all that the device has been given to do: a step of training does so once."""
    return tensor.cpu()


class CCRKSelfAttention(XLMRobertaSelfAttention):
    """XLM-R's self-attention, which can take packed captions, (S, hidden_size) or (1, S, hidden_size), too."""

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        captions: PackedCaptions | None = None,
        **kwargs,
    ) -> tuple[Tensor, Tensor | None]:
        if captions is None:
            return super().forward(hidden_states, attention_mask, **kwargs)
        tokens = hidden_states.flatten(0, -2)
        attended = self.attend(
            captions.pad(self.query(tokens)),
            captions.pad(self.key(tokens)),
            captions.pad(self.value(tokens)),
            captions,
        )
        return captions.pack(attended).view_as(hidden_states), None

    def attend(self, query: Tensor, key: Tensor, value: Tensor, captions: PackedCaptions) -> Tensor:
        """(P, Q, hidden_size), (P, longest, hidden_size) twice → (P, Q, hidden_size); Q is 1 or longest."""
        attention: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        mask = captions.attention_mask
        if mask is not None and mask.dim() == 4:
            mask = mask[:, :, : query.shape[1]]
        heads = (
            states.unflatten(-1, (-1, self.attention_head_size)).transpose(1, 2) for states in (query, key, value)
        )
        dropout = self.dropout.p if self.training else 0.0
        return attention(self, *heads, mask, dropout=dropout, scaling=self.scaling)[0].flatten(2)


def caption_lengths(attention_mask: Tensor) -> Tensor:
    """(P,) tokens of each caption of a mask (P, L); one of which nothing is attended to keeps its token 0."""
    return attention_mask.sum(dim=1).clamp(min=1)


class CCRKCrossAttention(nn.Module):
    """Caption tokens attend to image tokens. Keys and values depend on the image alone: `project` makes them once."""

    def __init__(self, config, vision_hidden_size: int):
        super().__init__()
        self.config = config
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(vision_hidden_size, config.hidden_size)
        self.value = nn.Linear(vision_hidden_size, config.hidden_size)
        self.output = XLMRobertaSelfOutput(config)

    def _heads(self, states: Tensor) -> Tensor:
        return states.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def project(self, image_states: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, vision_hidden_size) → keys and values, each (B, heads, T, head_dim)."""
        return self._heads(self.key(image_states)), self._heads(self.value(image_states))

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, **kwargs) -> tuple[Tensor, Tensor | None]:
        attention: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        dropout = self.config.attention_probs_dropout_prob if self.training else 0.0
        query = self._heads(query)
        attended, weights = attention(self, query, key, value, None, dropout=dropout, scaling=self.scaling, **kwargs)
        return attended.flatten(2), weights

    def forward(
        self, hidden_states: Tensor, key: Tensor, value: Tensor, captions: PackedCaptions | None = None, **kwargs
    ) -> tuple[Tensor, Tensor | None]:
        """The new states, and where attention is eager its weights, (P, heads, L, T)."""
        query = self.query(hidden_states)
        attended, weights = self._attend(query if captions is None else captions.pad(query), key, value, **kwargs)
        return self.output(attended if captions is None else captions.pack(attended), hidden_states), weights

    def forward_packed(self, tokens: Tensor, tokens_per_image: list[int], key: Tensor, value: Tensor) -> Tensor:
        """(S, hidden_size), the tokens of image 0 first: each image is asked by all of its captions at once."""
        per_image = zip(
            self.query(tokens)[None].split(tokens_per_image, dim=1), key.split(1), value.split(1), strict=True
        )
        attended = torch.cat([self._attend(*image)[0] for image in per_image], dim=1)
        return self.output(attended[0], tokens)


class CCRKFusionLayer(GradientCheckpointingLayer):
    """An XLM-R layer with cross-attention to the image between self-attention and feed-forward, post-LayerNorm."""

    def __init__(self, config, vision_hidden_size: int):
        super().__init__()
        self.attention = XLMRobertaAttention(config)
        self.attention.self = CCRKSelfAttention(config)
        self.cross_attention = CCRKCrossAttention(config, vision_hidden_size)
        self.intermediate = XLMRobertaIntermediate(config)
        self.output = XLMRobertaOutput(config)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None,
        image_states: Tensor,
        image_index: Tensor | None = None,
        captions: PackedCaptions | None = None,
        wanted: tuple[Tensor, PackedCaptions] | None = None,
        **kwargs,
    ) -> Tensor:
        """
        Args:
            hidden_states: (P, L, hidden_size); or packed captions, (S, hidden_size), with `captions`.
            image_states, image_index: see [`CCRKFusionEncoder.forward`]. Keys and values are made of each image once,
                and here: FSDP has a layer's parameters whole in its forward alone.
            wanted: of the S packed tokens those that anything reads behind this layer, and how they are packed.
        """
        key, value = self.cross_attention.project(image_states)
        if image_index is not None:
            key, value = key.index_select(0, image_index), value.index_select(0, image_index)
        hidden_states, _ = self.attention(hidden_states, attention_mask, captions=captions, **kwargs)
        if wanted is not None:
            index, captions = wanted
            hidden_states = hidden_states[index]
        hidden_states, _ = self.cross_attention(hidden_states, key, value, captions, **kwargs)
        return self.output(self.intermediate(hidden_states), hidden_states)

    def attend_first(self, tokens: Tensor, captions: PackedCaptions) -> Tensor:
        """The self-attention of token 0 of packed captions, (S, D) → (P, D)."""
        module, first = self.attention.self, tokens[captions.first]
        key, value = captions.pad(module.key(tokens)), captions.pad(module.value(tokens))
        attended = module.attend(module.query(first)[:, None], key, value, captions)
        return self.attention.output(attended[:, 0], first)


class CCRKFusionEncoder(nn.Module):
    """The layers in which a caption's tokens meet an image's."""

    def __init__(self, config: CCRKConfig, vision_hidden_size: int):
        super().__init__()
        self.config = config.text_config
        self.layers = nn.ModuleList(
            CCRKFusionLayer(config.text_config, vision_hidden_size) for _ in range(config.num_fusion_layers)
        )

    def forward(
        self,
        image_states: Tensor,
        text_states: Tensor,
        attention_mask: Tensor | None = None,
        image_index: Tensor | None = None,
        **kwargs,
    ) -> Tensor:
        """Fuses P captions with their images.

        Args:
            image_states: (B, T, vision_hidden_size).
            text_states: (P, L, hidden_size) from the text encoder, one row per pair.
            attention_mask: (P, L).
            image_index: (P,), each pair's image among the B. None: pair p has image p.
            kwargs: for the attention.

        Returns: (P, L, hidden_size).
        """
        mask = create_bidirectional_mask(config=self.config, inputs_embeds=text_states, attention_mask=attention_mask)
        if image_index is not None:
            image_index = torch.as_tensor(image_index, device=image_states.device)
        hidden_states = text_states
        for layer in self.layers:
            hidden_states = layer(hidden_states, mask, image_states, image_index, **kwargs)
        return hidden_states

    def fuse_tokens(
        self, image_states: Tensor, text_states: Tensor, lengths: Tensor, image_index: Tensor, wanted: Tensor
    ) -> Tensor:
        """
        What [`CCRKFusionEncoder.forward`] computes of some tokens, for training: no layer sees padding, and the last
        one only what is wanted.

        Args:
            image_states, text_states, image_index: as in `forward`.
            lengths: (P,), tokens of each caption, on the CPU.
            wanted: (P, L), True for those tokens, on the CPU.

        Returns: (number wanted, hidden_size), caption by caption.
        """
        captions = PackedCaptions(self.config, lengths, text_states)
        among_packed = wanted[:, : captions.shape[1]][captions.mask]
        index = true_indices(among_packed).to(text_states.device, non_blocking=True)
        last = index, PackedCaptions(self.config, wanted.sum(dim=1), text_states)
        tokens = captions.pack(text_states)
        for layer in self.layers:
            is_last = layer is self.layers[-1]
            tokens = layer(tokens, None, image_states, image_index, captions, last if is_last else None)
        return tokens

    def prepare_captions(self, text_states: Tensor, attention_mask: Tensor) -> Tensor:
        """The part that needs no image, once per caption: the first layer's self-attention, (N, L, hidden_size)."""
        mask = create_bidirectional_mask(config=self.config, inputs_embeds=text_states, attention_mask=attention_mask)
        return self.layers[0].attention(text_states, mask)[0]

    def prepare_images(self, image_states: Tensor) -> list[tuple[Tensor, Tensor]]:
        """The part that needs no caption, once per image: every layer's cross-attention keys and values."""
        return [layer.cross_attention.project(image_states) for layer in self.layers]

    def fuse_packed(
        self,
        keys_and_values: list[tuple[Tensor, Tensor]],
        tokens: Tensor,
        lengths: Tensor,
        captions_per_image: Tensor,
    ) -> Tensor:
        """
        What [`CCRKFusionEncoder.forward`] computes of token 0, for inference, and nothing else.

        All captions of an image attend to it as one long row, so that keys and values are never copied per pair; no
        layer but attention sees padding; the last layer computes token 0 alone.

        Args:
            keys_and_values: of B images, from `prepare_images`.
            tokens: (S, hidden_size), P captions from `prepare_captions`, packed without padding, those of image 0
                first.
            lengths: (P,), tokens of each caption, on the CPU; S in sum.
            captions_per_image: (B,), at least 1 each, on the CPU; P in sum.

        Returns: (P, hidden_size).
        """
        captions = PackedCaptions(self.config, lengths, tokens)
        tokens_per_image = [int(own.sum()) for own in lengths.split(captions_per_image.tolist())]
        for index, (layer, (key, value)) in enumerate(zip(self.layers, keys_and_values, strict=True)):
            is_last = index == len(self.layers) - 1
            if is_last:
                tokens = layer.attend_first(tokens, captions) if index > 0 else tokens[captions.first]
                tokens_per_image = captions_per_image.tolist()
            elif index > 0:
                tokens, _ = layer.attention(tokens, captions=captions)
            tokens = layer.cross_attention.forward_packed(tokens, tokens_per_image, key, value)
            tokens = layer.output(layer.intermediate(tokens), tokens)
        return tokens


__all__ = ["CCRKFusionEncoder"]
