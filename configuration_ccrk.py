"""Configuration of CCRK: an image encoder, a text encoder and a fusion encoder, and the objectives that train them."""

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig
from transformers.configuration_utils import PreTrainedConfig

try:
    from transformers.configuration_utils import SubConfigSpec
except ImportError:  # transformers before 5.23, with which `benchmarks/gpu.py` has to do
    SubConfigSpec = None

# What opens a checkpoint with trust_remote_code=True. Written whole into every config.json: by itself transformers
# writes the entry of the class that is saved, and AutoModel could not open what a head has saved.
AUTO_MAP = {
    "AutoConfig": "configuration_ccrk.CCRKConfig",
    "AutoProcessor": "processing_ccrk.CCRKProcessor",
    "AutoModel": "modeling_ccrk.CCRKModel",
    "AutoModelForPreTraining": "modeling_ccrk.CCRKForPreTraining",
    "AutoModelForZeroShotImageClassification": "modeling_ccrk.CCRKModel",  # what the pipeline of that name opens
}

# Swin-B at 224 px, and the first half of the twelve layers that CCRK takes from XLM-R-large.
SWIN_BASE = {"embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32], "window_size": 7}
XLM_ROBERTA_LARGE_6 = {
    "vocab_size": 250002,
    "hidden_size": 1024,
    "num_hidden_layers": 6,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
}
# Type and fields of each encoder where nothing else is given.
ENCODERS = {"vision_config": ("swin", SWIN_BASE), "text_config": ("xlm-roberta", XLM_ROBERTA_LARGE_6)}
# Fields of encoders' configurations that count something there must be.
SIZES = (
    "embed_dim depths num_heads window_size patch_size image_size num_channels vocab_size hidden_size "
    "num_hidden_layers num_attention_heads intermediate_size max_position_embeddings type_vocab_size"
).split()


@strict
class CCRKConfig(PreTrainedConfig):
    r"""
    Configuration of [`CCRKModel`] and its heads. The defaults are the published model (arXiv 2406.18254, section 4.1).

    Args:
        vision_config (`PreTrainedConfig` or `dict`, *optional*):
            A vision transformer that `AutoConfig` knows, whose tokens are `hidden_size` wide (Swin, ViT, DINOv2,
            CLIP's or SigLIP's vision model); Swin-B without it. `{"model_type": "timm_wrapper", …}` for timm's, whose
            feature maps are tokens: those of convolutional networks as well.
        text_config (`PreTrainedConfig` or `dict`, *optional*):
            An XLM-R config; its `num_hidden_layers` are the text encoder's layers, its sizes the fusion layers' too.
        num_fusion_layers (`int`, defaults to 6):
            XLM-R layers with cross-attention to the image.
        projection_dim (`int`, defaults to 256):
            Width of the embeddings that cosine similarity compares.
        temperature_init_value (`float`, defaults to 0.07):
            Start of the learnt temperature, which stays within [0.001, 0.5].
        position_ids_start (`int`, defaults to 0):
            Position of the first token: 0 in the published checkpoints, 2 in XLM-R's own.
        contrastive_reduction (`str`, defaults to `"published"`):
            `"published"` or `"symmetric"`, see `objectives_ccrk.contrastive_loss`.
        matching_positive_sampling (`int`, defaults to 1):
            How a positive caption is drawn from an image's K: 0 uniformly, 1 the worst aligned more often by
            probability, 2 by logit.
        mlm_probability (`float`, defaults to 0.4), mlm_max_tokens (`int`, defaults to 12):
            Share of a caption's tokens chosen for masked language modelling, and the most of them.
        mlm_ngram_probability (`float`, defaults to 0.2), mlm_max_ngram (`int`, defaults to 3):
            How often the chosen are an n-gram of 2 to `mlm_max_ngram` tokens.
        mask_token_id (`int`, *optional*):
            The tokenizer's mask token; the last of the vocabulary, where XLM-R has it, unless given.

    Example:

    ```python
    >>> from ccrk import CCRKConfig, CCRKModel

    >>> config = CCRKConfig(vision_config={"model_type": "swin", "embed_dim": 32, "num_heads": [1, 2, 4, 8]})
    >>> config.text_config.num_hidden_layers, config.num_fusion_layers
    (6, 6)
    ```"""

    model_type = "ccrk"
    if SubConfigSpec is None:
        sub_configs = dict.fromkeys(ENCODERS, AutoConfig)
    else:
        sub_configs_defaults = {
            name: SubConfigSpec(config_class=AutoConfig, model_type=kind, init_kwargs=fields)
            for name, (kind, fields) in ENCODERS.items()
        }

    vision_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    num_fusion_layers: int = 6
    projection_dim: int = 256
    temperature_init_value: float = 0.07
    position_ids_start: int = 0
    contrastive_reduction: str = "published"
    matching_positive_sampling: int = 1
    mlm_probability: float | int = 0.4
    mlm_max_tokens: int = 12
    mlm_ngram_probability: float | int = 0.2
    mlm_max_ngram: int = 3
    mask_token_id: int | None = None
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs):
        if SubConfigSpec is None:
            for name, (kind, fields) in ENCODERS.items():
                given = getattr(self, name)
                if not isinstance(given, PreTrainedConfig):
                    given = dict(fields if given is None else given)
                    setattr(self, name, AutoConfig.for_model(given.pop("model_type", kind), **given))
        super().__post_init__(**kwargs)
        if self.mask_token_id is None:
            self.mask_token_id = self.text_config.vocab_size - 1

    def validate_architecture(self):
        """Part of the `@strict` validation: sizes that do not fit each other are refused before a model is built."""
        text, vision = self.text_config, self.vision_config
        if text.model_type != "xlm-roberta":
            raise ValueError(f"text_config is of type {text.model_type!r}; the text encoder must be 'xlm-roberta'")
        for part, fields in (("text_config", text), ("vision_config", vision)):
            for name in SIZES:
                size = getattr(fields, name, None)
                numbers = size if isinstance(size, list | tuple) else [size]
                if any(isinstance(number, int) and number < 1 for number in numbers):
                    raise ValueError(f"{part}.{name} is {size}; it must be at least 1")
        if text.hidden_size % text.num_attention_heads:
            raise ValueError(
                f"text_config.hidden_size {text.hidden_size} is not a multiple of its num_attention_heads "
                f"{text.num_attention_heads}; change one of them"
            )
        if vision.model_type == "swin":
            if len(vision.depths) != len(vision.num_heads):
                raise ValueError(
                    f"vision_config.depths {list(vision.depths)} and num_heads {list(vision.num_heads)} must have one "
                    "entry per stage each"
                )
            for stage, heads in enumerate(vision.num_heads):
                if vision.embed_dim * 2**stage % heads:
                    raise ValueError(
                        f"vision_config: stage {stage} is {vision.embed_dim * 2**stage} wide, which its {heads} heads "
                        "do not divide; change embed_dim or num_heads"
                    )
            if not 0 <= vision.drop_path_rate < 1:
                raise ValueError(
                    f"vision_config.drop_path_rate is {vision.drop_path_rate}; it must be at least 0 and below 1"
                )
        elif vision.model_type != "timm_wrapper" and getattr(vision, "hidden_size", None) is None:
            raise ValueError(
                f"vision_config is of type {vision.model_type!r}, which has no hidden_size; take a transformer: "
                "'swin', 'vit', 'dinov2', 'clip_vision_model', 'siglip_vision_model' or, for timm's, 'timm_wrapper'"
            )
        for name in ("num_fusion_layers", "projection_dim", "mlm_max_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("mlm_probability", "mlm_ngram_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be between 0 and 1")
        if not 0.001 <= self.temperature_init_value <= 0.5:
            raise ValueError(
                f"temperature_init_value is {self.temperature_init_value}; it must be within [0.001, 0.5], where the "
                "learnt temperature stays"
            )
        if self.mlm_ngram_probability and self.mlm_max_ngram < 2:
            raise ValueError(
                f"mlm_max_ngram is {self.mlm_max_ngram}; it must be at least 2 "
                "(for no n-grams set mlm_ngram_probability=0)"
            )
        if not 0 <= self.position_ids_start < text.max_position_embeddings:
            raise ValueError(
                f"position_ids_start {self.position_ids_start} is outside of the {text.max_position_embeddings} "
                "positions of text_config.max_position_embeddings"
            )
        if self.mask_token_id is not None and not 0 <= self.mask_token_id < text.vocab_size:
            raise ValueError(
                f"mask_token_id {self.mask_token_id} is outside of the vocabulary of {text.vocab_size}; "
                "take the tokenizer's mask_token_id"
            )
        if self.contrastive_reduction not in ("published", "symmetric"):
            raise ValueError(f"contrastive_reduction {self.contrastive_reduction!r}: use 'published' or 'symmetric'")
        if self.matching_positive_sampling not in (0, 1, 2):
            raise ValueError(f"matching_positive_sampling {self.matching_positive_sampling}: use 0, 1 or 2")

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        """As in [`PreTrainedConfig`], but the configuration of another architecture is an error, not a warning."""
        model_type = config_dict.get("model_type", cls.model_type)
        if model_type != cls.model_type:
            raise ValueError(
                f"this is a checkpoint of a {model_type!r} model, not of CCRK; CCRKForPreTraining."
                "from_vision_text_pretrained starts from an image encoder and an XLM-R"
            )
        return super().from_dict(config_dict, **kwargs)

    def save_pretrained(self, save_directory, push_to_hub=False, **kwargs):
        """Saves the configuration with the whole auto_map; see [`PreTrainedConfig.save_pretrained`]."""
        self.auto_map = dict(AUTO_MAP)
        super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)


CCRKConfig.register_for_auto_class()

__all__ = ["CCRKConfig"]
