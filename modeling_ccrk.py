"""CCRK in PyTorch: an image and a text encoder that meet in one space, and a fusion encoder that compares a pair.

Shapes: B images, K captions each, N captions, L tokens, P (image, caption) pairs, T image tokens, their mean first.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import MODEL_MAPPING, AutoModel, AutoModelForMaskedLM, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithCrossAttentions, BaseModelOutputWithPooling
from transformers.models.swin.modeling_swin import SwinModel
from transformers.models.xlm_roberta.modeling_xlm_roberta import (
    XLMRobertaLMHead,
)
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, can_return_tuple, logging
from transformers.utils.output_capturing import capture_outputs

try:
    from .configuration_ccrk import CCRKConfig
    from .fusion_ccrk import (
        CCRKCrossAttention,
        CCRKFusionEncoder,
        CCRKFusionLayer,
        CCRKSelfAttention,
        PackedCaptions,
        caption_lengths,
        to_host,
        true_indices,
    )
    from .objectives_ccrk import (
        IGNORE,
        MatchingPairs,
        contrastive_loss,
        cross_entropy,
        mask_captions,
        sample_matching_pairs,
        similarity,
    )
except ImportError:
    if __package__:  # a checkpoint's copy: what it lacks must not come from the code installed here
        raise
    from configuration_ccrk import CCRKConfig
    from fusion_ccrk import (
        CCRKCrossAttention,
        CCRKFusionEncoder,
        CCRKFusionLayer,
        CCRKSelfAttention,
        PackedCaptions,
        caption_lengths,
        to_host,
        true_indices,
    )
    from objectives_ccrk import (
        IGNORE,
        MatchingPairs,
        contrastive_loss,
        cross_entropy,
        mask_captions,
        sample_matching_pairs,
        similarity,
    )

logger = logging.get_logger(__name__)

TEMPERATURE_RANGE = (0.001, 0.5)  # the published code clamps to it before each pre-training step
RECORDED = ("output_attentions", "output_hidden_states")  # what encoders can be asked to return besides


@dataclass
class CCRKOutput(ModelOutput):
    """
    Output of [`CCRKModel`], in this order. What was not given as input is `None`.

    Args:
        logits_per_image (`torch.FloatTensor` of shape `(B, N)`): cosine similarity / temperature, in fp32.
        logits_per_text (`torch.FloatTensor` of shape `(N, B)`): the same, transposed.
        image_embeds (`torch.FloatTensor` of shape `(B, projection_dim)`): L2-normalised.
        text_embeds (`torch.FloatTensor` of shape `(N, projection_dim)`, or `(B, K, projection_dim)` for captions
            given as `(B, K, L)`): L2-normalised.
        image_states (`torch.FloatTensor` of shape `(B, T, vision_hidden_size)`): image tokens, their mean first.
        text_states (`torch.FloatTensor` of shape `(N, L, hidden_size)`): text tokens; N = B·K for nested captions.
        hidden_states, attentions (tuples of `torch.FloatTensor`): the text encoder's, where `output_hidden_states`
            asks for them, or `output_attentions` with eager attention.
        image_hidden_states, image_attentions (tuples of `torch.FloatTensor`): the image encoder's.
    """

    logits_per_image: torch.FloatTensor | None = None
    logits_per_text: torch.FloatTensor | None = None
    image_embeds: torch.FloatTensor | None = None
    text_embeds: torch.FloatTensor | None = None
    image_states: torch.FloatTensor | None = None
    text_states: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    image_hidden_states: tuple[torch.FloatTensor, ...] | None = None
    image_attentions: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class CCRKLossOutput(ModelOutput):
    """
    Output of the heads in training, in this order.

    Args:
        loss (`torch.FloatTensor` of shape `(1,)`): the sum of the losses below, each with weight 1.
        contrastive_loss, matching_loss, mlm_loss (`torch.FloatTensor` of shape `(1,)`): the parts; `mlm_loss` is
            `None` from [`CCRKForImageTextRetrieval`].
        num_matching_pairs, num_masked_tokens (`torch.LongTensor` of shape `(1,)`): over how many `matching_loss` and
            `mlm_loss` are means, to weight them across processes.
        temperature (`torch.FloatTensor` of shape `(1,)`): with its gradient, to compute the contrastive loss again
            over the embeddings of all processes.
        image_embeds (`torch.FloatTensor` of shape `(B, projection_dim)`): L2-normalised.
        text_embeds (`torch.FloatTensor` of shape `(B, K, projection_dim)`): L2-normalised.
        hidden_states, attentions, image_hidden_states, image_attentions: as in [`CCRKOutput`].
    """

    loss: torch.FloatTensor | None = None
    contrastive_loss: torch.FloatTensor | None = None
    matching_loss: torch.FloatTensor | None = None
    mlm_loss: torch.FloatTensor | None = None
    num_matching_pairs: torch.LongTensor | None = None
    num_masked_tokens: torch.LongTensor | None = None
    temperature: torch.FloatTensor | None = None
    image_embeds: torch.FloatTensor | None = None
    text_embeds: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    image_hidden_states: tuple[torch.FloatTensor, ...] | None = None
    image_attentions: tuple[torch.FloatTensor, ...] | None = None


class CCRKMatchingHead(nn.Sequential):
    """Linear(d, 2d) → LayerNorm → GELU → Linear(2d, 2) on the fusion encoder's token 0; class 1 is a match."""

    def __init__(self, hidden_size: int):
        super().__init__(
            nn.Linear(hidden_size, 2 * hidden_size),
            nn.LayerNorm(2 * hidden_size),
            nn.GELU(),
            nn.Linear(2 * hidden_size, 2),
        )


class CCRKPreTrainedModel(PreTrainedModel):
    """Weight initialisation, loading and saving of all CCRK models."""

    config: CCRKConfig
    config_class = CCRKConfig
    base_model_prefix = "ccrk"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _no_split_modules = ["CCRKFusionLayer", "XLMRobertaEmbeddings", "XLMRobertaLayer", "SwinStage"]
    # The losses are means already; the Trainer must not scale them by accumulation steps or ranks.
    accepts_loss_kwargs = False

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, CCRKModel):
            init.constant_(module.temperature, self.config.temperature_init_value)
        elif isinstance(module, XLMRobertaLMHead):
            init.zeros_(module.bias)

    def resize_token_embeddings(self, *args, **kwargs) -> nn.Embedding:
        """As [`PreTrainedModel`]. The last token left takes the place of a mask token that is cut off; a warning."""
        embeddings = super().resize_token_embeddings(*args, **kwargs)
        last = self.config.text_config.vocab_size - 1
        if self.config.mask_token_id > last:
            logger.warning(
                f"mask_token_id {self.config.mask_token_id} is cut off, and {last}, the last token left, takes its "
                "place; set model.config.mask_token_id if the tokenizer has another"
            )
            self.config.mask_token_id = last
        return embeddings

    def save_pretrained(self, save_directory: str | os.PathLike, save_original_format: bool = False, **kwargs):
        """
        Saves weights, configuration and the code that opens them with `trust_remote_code=True`.

        The weights keep this model's names (`save_original_format=False`): Swin's older ones, which transformers would
        write by default, are not found again when the Trainer resumes, and the image encoder would restart at random.
        """
        super().save_pretrained(save_directory, save_original_format=save_original_format, **kwargs)


def _drop_branch(branch: nn.Module, args: tuple, output: Tensor) -> Tensor:
    return branch.drop_path(output)


class CCRKSwinModel(SwinModel):
    """Swin whose stochastic depth drops both branches of a block, as published; transformers' drops attention only."""

    def __init__(self, config, add_pooling_layer: bool = False):
        super().__init__(config, add_pooling_layer)
        for stage in self.encoder.layers:
            for block in stage.blocks:
                block.mlp.drop_path = block.drop_path
                block.mlp.register_forward_hook(_drop_branch)

    def get_input_embeddings(self):
        # Not the module above it: that answers a tuple, which enable_input_require_grads() cannot take.
        return self.embeddings.patch_embeddings.projection


class CCRKModel(CCRKPreTrainedModel):
    """
    The two encoders with their projections, and the fusion encoder that the heads score pairs with.

    Example:

    ```python
    >>> import torch
    >>> from ccrk import CCRKConfig, CCRKModel

    >>> model = CCRKModel(
    ...     CCRKConfig(
    ...         vision_config={"image_size": 64, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2]},
    ...         text_config={"vocab_size": 99, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
    ...         num_fusion_layers=1,
    ...     )
    ... ).eval()
    >>> outputs = model(input_ids=torch.tensor([[0, 5, 6, 2], [0, 7, 8, 2]]), pixel_values=torch.rand(3, 3, 64, 64))
    >>> outputs.logits_per_image.shape
    torch.Size([3, 2])
    ```"""

    # Opening a head's checkpoint as the base model leaves the head behind on purpose.
    _keys_to_ignore_on_load_unexpected = [r"^matching_head\.", r"^lm_head\."]
    # Of the fusion encoder, see `fuse`; the encoders have their own.
    _can_record_outputs = {
        "hidden_states": CCRKFusionLayer,
        "attentions": CCRKSelfAttention,
        "cross_attentions": CCRKCrossAttention,
    }

    # What peft loads adapters by: those of a head name its base model, `ccrk.`.
    _checkpoint_conversion_mapping = {r"^ccrk\.": ""}

    def __init__(self, config: CCRKConfig):
        super().__init__(config)
        implementation = config._attn_implementation
        if "flash" in (implementation or "") and not MODEL_MAPPING[type(config.vision_config)]._supports_flash_attn:
            implementation = "sdpa"  # Swin adds its position bias to the scores, which flash attention cannot
        vision = CCRKSwinModel._from_config if config.vision_config.model_type == "swin" else AutoModel.from_config
        self.vision_model = vision(config.vision_config, attn_implementation=implementation)
        # Token 0 is the mean made here. A pooler that nothing uses would stop distributed training.
        if hasattr(self.vision_model, "pooler"):
            self.vision_model.pooler = None
        self.text_model = AutoModel.from_config(config.text_config, add_pooling_layer=False)
        for layer in self.text_model.encoder.layer:
            layer.attention.self = CCRKSelfAttention(config.text_config)
        # XLM-R never uses its position 1, the padding's: zero, without a gradient. Here positions may start at 0.
        self.text_model.embeddings.position_embeddings = nn.Embedding(
            config.text_config.max_position_embeddings, config.text_config.hidden_size
        )

        vision_hidden_size = getattr(config.vision_config, "hidden_size", None)
        if vision_hidden_size is None:  # timm_wrapper's config does not say
            vision_hidden_size = self.vision_model.timm_model.num_features
        self.fusion_encoder = CCRKFusionEncoder(config, vision_hidden_size)
        self.vision_projection = nn.Linear(vision_hidden_size, config.projection_dim)
        self.text_projection = nn.Linear(config.text_config.hidden_size, config.projection_dim)
        # One element, not zero dimensions: FSDP cannot shard a scalar.
        self.temperature = nn.Parameter(torch.full((1,), config.temperature_init_value))
        self.post_init()

    def get_input_embeddings(self):
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value):
        self.text_model.set_input_embeddings(value)

    @can_return_tuple
    def get_image_features(
        self, pixel_values: Tensor, **kwargs: Unpack[TransformersKwargs]
    ) -> BaseModelOutputWithPooling:
        """
        Encodes images (B, 3, H, W), in the model's precision.

        Returns: `last_hidden_state` (B, T, vision_hidden_size), the image tokens after the final norm with their mean
        prepended; `pooler_output` (B, projection_dim), the projection of that mean, not normalised; of the encoder
        `hidden_states` and, with eager attention, `attentions`, where `output_hidden_states` or `output_attentions`
        ask for them.
        """
        _refuse_unknown(kwargs)
        if not pixel_values.is_floating_point():
            raise ValueError(f"pixel_values are of type {pixel_values.dtype}; give what the processor makes of images")
        encoded = self.vision_model(pixel_values=pixel_values.to(self.vision_model.dtype), return_dict=True, **kwargs)
        tokens = encoded.last_hidden_state
        if tokens.dim() == 4:  # a map: (B, height, width, channels) of timm's Swin, channels first of all others
            timm_model = getattr(self.vision_model, "timm_model", None)
            if getattr(timm_model, "output_fmt", "NCHW") == "NCHW":
                tokens = tokens.movedim(1, -1)
            tokens = tokens.flatten(1, 2)
        states = torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1)
        return BaseModelOutputWithPooling(
            last_hidden_state=states,
            pooler_output=self.vision_projection(states[:, 0]),
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )

    @can_return_tuple
    def get_text_features(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        lengths: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """
        Encodes captions (N, L), padded on the right. `lengths` (N,) on the CPU, where they are known there, spare a
        training step the wait for what the mask holds.

        Returns: `last_hidden_state` (N, L, hidden_size); `pooler_output` (N, projection_dim), the projection of
        token 0, not normalised; `hidden_states` and `attentions` as in [`CCRKModel.get_image_features`]. In training
        no time is spent on padding, and its states are zero, unless those are asked for.
        """
        _refuse_unknown(kwargs)
        length = input_ids.shape[1]
        longest = self.config.text_config.max_position_embeddings - self.config.position_ids_start
        if length > longest:
            raise ValueError(
                f"captions of {length} tokens do not fit the model's {longest} positions; truncate them with the "
                "processor's max_length"
            )
        # Graphs cannot branch on what a mask holds.
        if attention_mask is not None and lengths is None and not torch.compiler.is_compiling():
            if (attention_mask.int().diff(dim=1) > 0).any():
                raise ValueError('captions are padded on the right: set tokenizer.padding_side = "right"')
        position_ids = torch.arange(length, device=input_ids.device)[None] + self.config.position_ids_start
        config = self.config.text_config
        records = any(kwargs.get(name, getattr(config, name)) for name in RECORDED)
        if self.training and attention_mask is not None and not records:
            if lengths is None:
                lengths = to_host(caption_lengths(attention_mask))
            captions = PackedCaptions(config, lengths, self.text_projection.weight)
            encoded = self.text_model(
                input_ids=captions.pack(input_ids)[None],
                position_ids=captions.pack(position_ids.expand_as(input_ids))[None],
                captions=captions,
                return_dict=True,
            )
            states = captions.pad(encoded.last_hidden_state[0])
            states = F.pad(states, (0, 0, 0, length - captions.shape[1]))
        else:
            encoded = self.text_model(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                return_dict=True,
                **kwargs,
            )
            states = encoded.last_hidden_state
        return BaseModelOutputWithPooling(
            last_hidden_state=states,
            pooler_output=self.text_projection(states[:, 0]),
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )

    @capture_outputs
    def fuse(
        self,
        image_states: Tensor,
        text_states: Tensor,
        attention_mask: Tensor | None = None,
        image_index: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithCrossAttentions:
        """
        Fuses P captions with their images; arguments as in [`CCRKFusionEncoder.forward`].

        Returns: `last_hidden_state` (P, L, hidden_size); where `output_hidden_states` asks for it, `hidden_states`, as
        many as fusion layers and one; where `output_attentions` does, and attention is eager, `attentions`
        (P, heads, L, L) and `cross_attentions` (P, heads, L, T) of each fusion layer.
        """
        _refuse_unknown(kwargs)
        fused = self.fusion_encoder(image_states, text_states, attention_mask, image_index, **kwargs)
        return BaseModelOutputWithCrossAttentions(last_hidden_state=fused)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        caption_mask: Tensor | None = None,
        image_ids: Tensor | None = None,
        caption_lengths: Sequence[Sequence[int]] | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CCRKOutput:
        """
        Encodes the captions, the images, or both, and compares them.

        Args:
            input_ids, attention_mask: (N, L), or (B, K, L) for K captions per image.
            pixel_values: (B, 3, H, W).
            caption_mask: (B, K), False where a caption is missing: its logits are the lowest that there are.
            image_ids: (B,), of training's batches; nothing here depends on them.
            caption_lengths: K numbers of tokens for each of B images, see [`CCRKModel.get_text_features`].
        """
        _refuse_unknown(kwargs)
        if input_ids is None and pixel_values is None:
            raise ValueError("nothing to encode: give input_ids, pixel_values or both")
        image = text = BaseModelOutputWithPooling()
        image_embeds = text_embeds = logits_per_image = logits_per_text = None
        if pixel_values is not None:
            image = self.get_image_features(pixel_values, return_dict=True, **kwargs)
            image_embeds = F.normalize(image.pooler_output.float(), dim=-1)
        if input_ids is not None:
            flat_mask = attention_mask.flatten(0, -2) if attention_mask is not None else None
            lengths = None if caption_lengths is None else torch.tensor(caption_lengths).flatten()
            text = self.get_text_features(input_ids.flatten(0, -2), flat_mask, lengths, return_dict=True, **kwargs)
            text_embeds = F.normalize(text.pooler_output.float(), dim=-1).unflatten(0, input_ids.shape[:-1])
        if pixel_values is not None and input_ids is not None:
            if self.training:
                # On .data: the parameter itself stays in range, so that its gradient is never cut off by the clamp.
                self.temperature.data.clamp_(*TEMPERATURE_RANGE)
            logits_per_image = similarity(image_embeds, text_embeds.flatten(0, -2), self.temperature)
            if caption_mask is not None:
                lowest = torch.finfo(logits_per_image.dtype).min
                logits_per_image = logits_per_image.masked_fill(~caption_mask.flatten().bool(), lowest)
            logits_per_text = logits_per_image.t()
        # In one call: the order of a `ModelOutput` is that of assignment.
        return CCRKOutput(
            logits_per_image=logits_per_image,
            logits_per_text=logits_per_text,
            image_embeds=image_embeds,
            text_embeds=text_embeds,
            image_states=image.last_hidden_state,
            text_states=text.last_hidden_state,
            hidden_states=text.hidden_states,
            attentions=text.attentions,
            image_hidden_states=image.hidden_states,
            image_attentions=image.attentions,
        )

    def encode_images(self, images: Sequence, processor: Callable, batch_size: int = 32) -> Tensor:
        """
        Embeddings of any number of pictures, in evaluation mode, on the model's device and in its precision.

        Args:
            images: N paths, URLs, PIL images or arrays, mixed as they come.
            processor: the [`CCRKProcessor`] of the checkpoint.
            batch_size: pictures encoded, and held in memory, at a time.

        Returns: (N, projection_dim), L2-normalised, in fp32 on the CPU.

        Raises:
            ValueError: what is given is no list, or a picture cannot be read.
        """
        return self._encode(images, lambda batch: processor(images=batch), batch_size, "encoding images")

    def encode_texts(self, texts: Sequence[str], processor: Callable, batch_size: int = 32) -> Tensor:
        """
        Embeddings of any number of captions, in any mix of languages; see [`CCRKModel.encode_images`].

        Raises:
            ValueError: what is given is no list, or nothing is left of a caption after normalisation.
        """
        return self._encode(texts, lambda batch: processor(text=batch), batch_size, "encoding texts")

    @torch.no_grad()
    def _encode(self, items: Sequence, prepare: Callable, batch_size: int, description: str) -> Tensor:
        if isinstance(items, str) or not isinstance(items, Sequence):
            raise ValueError(f"{description} takes a list, not a single {type(items).__name__}; put it in brackets")
        self.eval()
        embeds = [torch.empty(0, self.config.projection_dim)]
        starts = range(0, len(items), batch_size)
        for start in logging.tqdm(starts, desc=description, leave=False, delay=2):
            inputs = prepare(list(items[start : start + batch_size])).to(self.device)
            outputs = self(**inputs, return_dict=True)
            embeds.append((outputs.image_embeds if "pixel_values" in inputs else outputs.text_embeds).cpu())
        return torch.cat(embeds)

    @classmethod
    def from_vision_text_pretrained(cls, vision: str | PreTrainedModel, text: str | PreTrainedModel, **kwargs):
        """See [`CCRKPairModel.from_vision_text_pretrained`]."""
        return CCRKForImageTextRetrieval.from_vision_text_pretrained(vision, text, **kwargs).ccrk


class CCRKPairModel(CCRKPreTrainedModel):
    """What both heads have: the base model, the matching head on its fusion encoder, and the score of a pair."""

    def __init__(self, config: CCRKConfig):
        super().__init__(config)
        self.ccrk = CCRKModel(config)
        self.matching_head = CCRKMatchingHead(config.text_config.hidden_size)

    def get_input_embeddings(self):
        return self.ccrk.get_input_embeddings()

    def match(
        self,
        image_states: Tensor,
        text_states: Tensor,
        attention_mask: Tensor | None = None,
        image_index: Tensor | None = None,
        caption_index: Tensor | None = None,
    ) -> Tensor:
        """
        Scores pairs of encoded images and encoded captions.

        Each image's cross-attention keys and values are computed once, however many pairs it is in: pass the images of
        a call once and point at them.

        Args:
            image_states: (B, T, vision_hidden_size), `CCRKOutput.image_states`.
            text_states: (N, L, hidden_size), `CCRKOutput.text_states`.
            attention_mask: (N, L), or as the processor gave it, (B, K, L).
            image_index, caption_index: (P,) each, the pairs. None: pair p is image p, or caption p.

        Returns: (P, 2) logits; class 1 is a match, and its logit the score that retrieval ranks by.
        """
        if attention_mask is not None:
            attention_mask = attention_mask.flatten(0, -2)
        if caption_index is not None:
            text_states = text_states[caption_index]
            attention_mask = attention_mask[caption_index] if attention_mask is not None else None
        fused = self.ccrk.fusion_encoder(image_states, text_states, attention_mask, image_index)
        return self.matching_head(fused[:, 0])

    def match_packed(
        self,
        keys_and_values: list[tuple[Tensor, Tensor]],
        tokens: Tensor,
        lengths: Tensor,
        captions_per_image: Tensor,
    ) -> Tensor:
        """
        The logits of [`CCRKPairModel.match`] for inference over many pairs; see [`CCRKFusionEncoder.fuse_packed`].

        Returns: (P, 2), in fp32.
        """
        hidden = self.ccrk.fusion_encoder.fuse_packed(keys_and_values, tokens, lengths, captions_per_image)
        *layers, classifier = self.matching_head
        for layer in layers:
            hidden = layer(hidden)
        # A logit in bf16 has 8 bits: candidates would tie, and ties count as errors.
        return F.linear(hidden.float(), classifier.weight.float(), classifier.bias.float())

    @classmethod
    def from_vision_text_pretrained(
        cls, vision: str | PreTrainedModel, text: str | PreTrainedModel, layers: str = "every_second", **kwargs
    ) -> "CCRKPairModel":
        """
        Starts from a pre-trained image encoder and XLM-R (section 4.1 of the paper).

        Of the layers of XLM-R that are taken, the first half become text layers, the others fusion layers. Embeddings
        and LM head are copied; cross-attention, projections and the matching head are new.

        Args:
            vision (`str` or `PreTrainedModel`): folder or Hub id of an image encoder (Swin), or the model.
            text (`str` or `PreTrainedModel`): folder or Hub id of an XLM-R, or its masked-LM model.
            layers (`str`, defaults to `"every_second"`): which are taken: 1, 3, 5, … counted from 0, as the paper does
                with the 24 of XLM-R-large; or `"all"`, of which a text model of 12 layers gives 6 and 6.
            kwargs: other fields of [`CCRKConfig`]. Positions start at 0 as published, though XLM-R has learnt its own
                from `pad_token_id` + 1 on: `position_ids_start=2` keeps them in place.
        """
        if decided := {"vision_config", "text_config", "num_fusion_layers"} & kwargs.keys():
            raise ValueError(f"{', '.join(sorted(decided))} cannot be given: the two models decide it")
        vision_model = AutoModel.from_pretrained(vision) if isinstance(vision, str | os.PathLike) else vision
        masked_lm = AutoModelForMaskedLM.from_pretrained(text) if isinstance(text, str | os.PathLike) else text
        if masked_lm.config.model_type != "xlm-roberta":
            raise ValueError(
                f"the text model is of type {masked_lm.config.model_type!r}; give an XLM-R such as "
                "FacebookAI/xlm-roberta-large"
            )
        source = masked_lm.roberta
        if layers not in ("every_second", "all"):
            raise ValueError(f"layers is {layers!r}; choose 'every_second' or 'all'")
        taken = source.encoder.layer[1::2] if layers == "every_second" else source.encoder.layer
        num_text_layers = len(taken) // 2
        if num_text_layers == 0:
            raise ValueError(
                f"the text model has {len(source.encoder.layer)} layers, too few for text and fusion layers: 4 are "
                'needed to take every second, 2 with layers="all"'
            )
        # Without dtype: encoders saved in 16 bits would stay so, amid new parameters in 32.
        text_config = source.config.to_dict() | {"num_hidden_layers": num_text_layers, "dtype": None}
        config = CCRKConfig(
            vision_config=vision_model.config.to_dict() | {"dtype": None},
            text_config=text_config,
            num_fusion_layers=len(taken) - num_text_layers,
            **kwargs,
        )

        model = cls(config)
        # The pooler of the image encoder, where it has one, is left behind.
        wanted = model.ccrk.vision_model.state_dict().keys()
        model.ccrk.vision_model.load_state_dict({k: v for k, v in vision_model.state_dict().items() if k in wanted})
        model.ccrk.text_model.embeddings.load_state_dict(source.embeddings.state_dict())
        for layer, origin in zip(model.ccrk.text_model.encoder.layer, taken[:num_text_layers], strict=True):
            layer.load_state_dict(origin.state_dict())
        for layer, origin in zip(model.ccrk.fusion_encoder.layers, taken[num_text_layers:], strict=True):
            layer.attention.load_state_dict(origin.attention.state_dict())
            layer.intermediate.load_state_dict(origin.intermediate.state_dict())
            layer.output.load_state_dict(origin.output.state_dict())
        if hasattr(model, "lm_head"):
            model.lm_head.load_state_dict(masked_lm.lm_head.state_dict())
        return model


class CCRKForImageTextRetrieval(CCRKPairModel):
    """
    CCRK with the matching head: fine-tuning by contrastive and matching loss, and scores of (image, caption) pairs.

    Example:

    ```python
    >>> from ccrk import CCRKForImageTextRetrieval, CCRKProcessor

    >>> model = CCRKForImageTextRetrieval.from_pretrained("outputs/demo/finetune")
    >>> processor = CCRKProcessor.from_pretrained("outputs/demo/finetune")
    >>> inputs = processor(images=[image], text=["a red star", "ein blauer Kreis"], return_tensors="pt")
    >>> outputs = model.ccrk(**inputs)
    >>> model.match(outputs.image_states, outputs.text_states, inputs["attention_mask"], image_index=[0, 0])[:, 1]
    ```"""

    # Pre-training's LM head is not needed here: no note when a pre-training checkpoint is opened.
    _keys_to_ignore_on_load_unexpected = [r"^lm_head\."]

    def __init__(self, config: CCRKConfig):
        super().__init__(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor,
        pixel_values: Tensor,
        attention_mask: Tensor | None = None,
        caption_mask: Tensor | None = None,
        image_ids: Tensor | None = None,
        sampling_keys: Tensor | None = None,
        caption_lengths: Sequence[Sequence[int]] | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CCRKLossOutput:
        """
        Contrastive and matching loss of a batch.

        Args:
            input_ids, attention_mask: (B, K, L); K is 1 in the published fine-tuning.
            pixel_values: (B, 3, H, W).
            caption_mask: (B, K), False where a caption is missing.
            image_ids: (B,), equal for equal images: positives of each other, never negatives.
            sampling_keys: (B,), what is drawn depends on them, see `objectives_ccrk.sampling_keys`. None: fresh ones.
            caption_lengths: K numbers of tokens for each of B images, at least 1, not on the device: with them a step
                waits for the device once, without them twice.
            kwargs: `output_attentions`, `output_hidden_states`, of the encoders.
        """
        caption_mask = _complete_caption_mask(input_ids, pixel_values, caption_mask)
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        outputs = self.ccrk(
            input_ids, pixel_values, attention_mask, caption_lengths=caption_lengths, return_dict=True, **kwargs
        )
        pairs = sample_matching_pairs(
            outputs.logits_per_image, caption_mask, image_ids, self.config.matching_positive_sampling, sampling_keys
        )
        lengths, _ = _on_host(attention_mask.flatten(0, 1), pairs)
        fused = self.ccrk.fusion_encoder.fuse_tokens(
            outputs.image_states,
            outputs.text_states.index_select(0, pairs.caption_index),
            lengths,
            pairs.image_index,
            wanted=_first_token(len(lengths), attention_mask.shape[-1]),
        )
        return _loss_output(self, outputs, caption_mask, image_ids, (self.matching_head(fused), pairs.labels))


class CCRKForPreTraining(CCRKPairModel):
    """CCRK with the matching head and XLM-R's LM head: one forward gives the three losses of pre-training."""

    _tied_weights_keys = {
        "lm_head.decoder.weight": "ccrk.text_model.embeddings.word_embeddings.weight",
        "lm_head.decoder.bias": "lm_head.bias",
    }

    def __init__(self, config: CCRKConfig):
        super().__init__(config)
        self.lm_head = XLMRobertaLMHead(config.text_config)
        self.post_init()

    def get_output_embeddings(self):
        return self.lm_head.decoder

    def set_output_embeddings(self, new_embeddings):
        self.lm_head.decoder = new_embeddings

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor,
        pixel_values: Tensor,
        attention_mask: Tensor | None = None,
        caption_mask: Tensor | None = None,
        image_ids: Tensor | None = None,
        sampling_keys: Tensor | None = None,
        caption_lengths: Sequence[Sequence[int]] | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CCRKLossOutput:
        """
        Contrastive, matching and masked-LM loss of a batch; arguments as in [`CCRKForImageTextRetrieval.forward`].

        The masked caption of each image is the one that matching chose for it. Matching and masked LM share one pass
        through the fusion encoder: 3·B pairs and B masked captions.
        """
        caption_mask = _complete_caption_mask(input_ids, pixel_values, caption_mask)
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        outputs = self.ccrk(
            input_ids, pixel_values, attention_mask, caption_lengths=caption_lengths, return_dict=True, **kwargs
        )
        pairs = sample_matching_pairs(
            outputs.logits_per_image, caption_mask, image_ids, self.config.matching_positive_sampling, sampling_keys
        )
        flat_mask = attention_mask.flatten(0, 1)
        chosen_mask = flat_mask[pairs.positive_caption]
        masked = mask_captions(
            input_ids.flatten(0, 1)[pairs.positive_caption],
            chosen_mask,
            mask_token_id=self.config.mask_token_id,
            vocab_size=self.config.text_config.vocab_size,
            probability=self.config.mlm_probability,
            max_tokens=self.config.mlm_max_tokens,
            ngram_probability=self.config.mlm_ngram_probability,
            max_ngram=self.config.mlm_max_ngram,
            keys=sampling_keys,
        )
        # An image without any caption has no chosen one either.
        slot_labels = masked.labels.masked_fill(~caption_mask.any(dim=1, keepdim=True), IGNORE)
        labels = torch.full_like(masked.input_ids, IGNORE).scatter(1, masked.positions, slot_labels)
        lengths, is_masked = _on_host(flat_mask, pairs, labels != IGNORE)
        num_images, num_pairs = len(is_masked), len(lengths)
        chosen_lengths = lengths[:num_images]  # the first pairs are those of the chosen captions
        masked_states = self.ccrk.get_text_features(
            masked.input_ids, chosen_mask, chosen_lengths, return_dict=True
        ).last_hidden_state
        fused = self.ccrk.fusion_encoder.fuse_tokens(
            outputs.image_states,
            torch.cat([outputs.text_states.index_select(0, pairs.caption_index), masked_states]),
            torch.cat([lengths, chosen_lengths]),
            torch.cat([pairs.image_index, torch.arange(num_images, device=pixel_values.device)]),
            wanted=torch.cat([_first_token(num_pairs, labels.shape[1]), is_masked]),
        )
        masked_places = true_indices(is_masked).to(labels.device, non_blocking=True)
        return _loss_output(
            self,
            outputs,
            caption_mask,
            image_ids,
            (self.matching_head(fused[:num_pairs]), pairs.labels),
            (self.lm_head(fused[num_pairs:]), labels.flatten().index_select(0, masked_places)),
        )


def _refuse_unknown(kwargs: dict) -> None:
    """The encoders would take, and not heed, any argument."""
    if unknown := kwargs.keys() - set(RECORDED):
        raise TypeError(f"unexpected argument {', '.join(sorted(unknown))}; beside inputs take {', '.join(RECORDED)}")


def _first_token(num_captions: int, length: int) -> Tensor:
    """(num_captions, length) on the CPU, True for token 0."""
    return (torch.arange(length) == 0).expand(num_captions, -1)


def _on_host(attention_mask: Tensor, pairs: MatchingPairs, is_masked: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """
    What decides shapes behind the encoders, on the CPU: (P,) tokens of the pairs' captions, and `is_masked` (B, L).

    One transfer, for which the step has to wait: the device has drawn the pairs.
    """
    lengths = caption_lengths(attention_mask)[pairs.caption_index]
    if is_masked is None:
        return to_host(lengths), lengths
    found = to_host(torch.cat([lengths, is_masked.flatten()]))
    return found[: len(lengths)], found[len(lengths) :].view_as(is_masked).bool()


def _complete_caption_mask(input_ids: Tensor, pixel_values: Tensor, caption_mask: Tensor | None) -> Tensor:
    """The (B, K) caption mask of B images and captions (B, K, L); shapes that do not fit are refused here."""
    if input_ids.dim() != 3 or input_ids.shape[1] == 0:
        raise ValueError(
            f"training takes captions of shape (images, captions per image, tokens), at least one per image; "
            f"got {tuple(input_ids.shape)}"
        )
    if caption_mask is None:
        caption_mask = torch.ones(input_ids.shape[:2], dtype=torch.bool, device=input_ids.device)
    if len(pixel_values) != len(input_ids) or caption_mask.shape != input_ids.shape[:2]:
        raise ValueError(
            f"{len(pixel_values)} images, captions of shape {tuple(input_ids.shape)} and a caption_mask of shape "
            f"{tuple(caption_mask.shape)} do not belong to one batch"
        )
    return caption_mask.bool()


def _loss_output(
    model: CCRKPairModel,
    outputs: CCRKOutput,
    caption_mask: Tensor,
    image_ids: Tensor | None,
    matching: tuple[Tensor, Tensor],
    mlm: tuple[Tensor, Tensor] | None = None,
) -> CCRKLossOutput:
    """Adds the contrastive loss of this process's batch to those of matching and masked LM, each (logits, labels)."""
    contrastive = contrastive_loss(
        outputs.image_embeds,
        outputs.text_embeds,
        model.ccrk.temperature,
        caption_mask,
        image_ids,
        model.config.contrastive_reduction,
    )
    matching_loss = cross_entropy(*matching)
    mlm_loss = cross_entropy(*mlm) if mlm is not None else None
    parts = [part for part in (contrastive, matching_loss, mlm_loss) if part is not None]
    return CCRKLossOutput(
        loss=torch.stack(parts).sum(),
        contrastive_loss=contrastive,
        matching_loss=matching_loss,
        mlm_loss=mlm_loss,
        num_matching_pairs=(matching[1] != IGNORE).sum(),
        num_masked_tokens=(mlm[1] != IGNORE).sum() if mlm is not None else None,
        # A copy: what the caller does with it must reach the parameter through this forward's graph.
        temperature=model.ccrk.temperature * 1.0,
        image_embeds=outputs.image_embeds,
        text_embeds=outputs.text_embeds,
        hidden_states=outputs.hidden_states,
        attentions=outputs.attentions,
        image_hidden_states=outputs.image_hidden_states,
        image_attentions=outputs.image_attentions,
    )


CCRKModel.register_for_auto_class("AutoModel")
CCRKForPreTraining.register_for_auto_class("AutoModelForPreTraining")
# No Auto class exists for retrieval heads; registering the base one makes their code travel, and AutoModel opens them.
CCRKForImageTextRetrieval.register_for_auto_class("AutoModel")

__all__ = ["CCRKForImageTextRetrieval", "CCRKForPreTraining", "CCRKModel", "CCRKPreTrainedModel"]
