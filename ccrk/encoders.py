"""
The seam between models and what is done with them: training asks for embeddings with a graph, evaluation and search
for those without one, and where there is a fusion encoder for scores of pairs.
"""

import importlib.util
import logging
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
from tokenizers import Regex, normalizers
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    MODEL_MAPPING,
    AutoConfig,
    AutoModel,
    AutoProcessor,
    BatchFeature,
    BertTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Siglip2Tokenizer,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import cached_file

from ccrk import CCRKConfig, CCRKForImageTextRetrieval, CCRKProcessor
from ccrk.encoding import CCRKEncoder, Embeddings, tokenizer_settings, weights_fingerprint
from ccrk.processes import process_state
from data_scripts.files import open_model, open_pretrained, without_warnings
from modeling_ccrk import CCRKPairModel

logger = logging.getLogger(__name__)


class Encoder(Protocol):
    """A model as training, evaluation and search use it."""

    @property
    def model(self) -> torch.nn.Module:
        """Bare."""

    @property
    def inputs(self) -> "CCRKProcessor | PairInputs":
        """Makes the tensors of pictures and captions."""

    @property
    def k_test(self) -> int:
        """Candidates to re-score per query; 0 without a fusion encoder."""

    @property
    def fingerprint(self) -> str:
        """Changes with whatever decides what the model answers."""

    @property
    def needs_language(self) -> bool:
        """Whether `encode_captions` needs the captions' language."""

    def embed(self, model: torch.nn.Module, inputs: dict[str, Tensor]) -> Embeddings:
        """One forward of a batch (`ccrk.training.collator`) through the model, as it is wrapped for training."""

    def embed_alone(self, inputs: dict[str, Tensor]) -> Embeddings:
        """The same embeddings by the bare model, without the losses of its own."""

    def encode_images(self, images: list) -> dict[str, Tensor]:
        """`embeds` (B, P), L2-normalised, and what `score_pairs` needs of the images."""

    def encode_captions(self, captions: list[str], language: str | None = None) -> dict[str, Tensor]:
        """
        `embeds` (N, P), L2-normalised, and what `score_pairs` needs of the captions.

        Args:
            language: of all of them, a tag such as `de`; only an encoder with `needs_language` looks at it.

        Raises:
            ValueError: the encoder needs a language, and `language` is None or one that it has no code for.
        """

    def caption_lengths(self, captions: Sequence[str]) -> list[int]:
        """Length of each caption: captions of similar length are encoded together."""

    def are_cut(self, captions: Sequence[str]) -> list[bool]:
        """Whether each caption is longer than the model reads, so that its end is ignored."""


def needs_language(encoder: Encoder) -> bool:
    """Whether an encoder needs the captions' language; False where it does not say."""
    return getattr(encoder, "needs_language", False)


def encode_captions_in(encoder: Encoder, captions: list[str], language: str | None) -> dict[str, Tensor]:
    """`Encoder.encode_captions`, with the language where the encoder needs it."""
    return encoder.encode_captions(captions, *([language] if needs_language(encoder) else []))


def language_codes(tokenizer) -> list[str]:
    """Codes by which a tokenizer marks the language of a text: NLLB's `deu_Latn`, mBART's `de_DE`, M2M100's `de`."""
    pattern = re.compile(r"__([a-z]{2,3})__|([a-z]{2,3}_[A-Z][A-Za-z]{1,3})")
    return [found[1] or found[2] for token in tokenizer.all_special_tokens if (found := pattern.fullmatch(token))]


# Tokens of a caption in the training of families whose text encoders have positions for more; docs/training.md.
TRAINED_LENGTHS = {"align": 64, "altclip": 77, "chinese_clip": 52}

GEMMA = ["<pad>", "<eos>", "<bos>", "<unk>"]  # the first tokens of its vocabulary


def tokenizer_as_trained(tokenizer, model_type: str):
    """
    Return the tokenizer that does to text what the model's training did, also when it is saved and opened again.

    SigLIP 2's training lower-cased. transformers' `Siglip2Tokenizer` does so, but checkpoints of fixed resolution,
    such as `google/siglip2-base-patch16-224`, are `siglip` models with Gemma's tokenizer, which keeps case.
    Chinese-CLIP's training wrote “ and ” as ". Captions keep `TRAINED_LENGTHS` tokens.
    """
    if model_type in TRAINED_LENGTHS:
        tokenizer.model_max_length = min(tokenizer.model_max_length, TRAINED_LENGTHS[model_type])
    if model_type.startswith("siglip") and not isinstance(tokenizer, Siglip2Tokenizer):
        # By its vocabulary: a tokenizer that was saved anew may have the name of a general class.
        if tokenizer.convert_tokens_to_ids(GEMMA) == [0, 1, 2, 3]:
            return _as_class(Siglip2Tokenizer, tokenizer)
    # BertTokenizer makes its own normalizer whenever it is opened.
    if model_type == "chinese_clip" and isinstance(tokenizer, BertTokenizer):
        words = tokenizer.backend_tokenizer
        words.normalizer = normalizers.Sequence([normalizers.Replace(Regex("[“”]"), '"'), words.normalizer])
        return _as_class(PreTrainedTokenizerFast, tokenizer)
    return tokenizer


def _as_class(kind: type, tokenizer):
    """Return a tokenizer with the same vocabulary and settings, of another class."""
    settings = {name: value for name, value in tokenizer.init_kwargs.items() if name != "tokenizer_class"}
    settings |= {"model_max_length": tokenizer.model_max_length, "model_input_names": tokenizer.model_input_names}
    return kind(tokenizer_object=tokenizer.backend_tokenizer, **settings)


class PairInputs(ABC):
    """
    The processors of two encoders, called as CCRK's is: captions may come as K for each picture, None where one is
    missing.

    Args:
        image_processor: of the image encoder.
        tokenizer: of the text encoder.
        max_length: tokens that a caption keeps.

    Raises:
        ValueError: the tokenizer cannot pad, or marks the language of each text.
    """

    def __init__(self, image_processor, tokenizer, max_length: int):
        if codes := language_codes(tokenizer):
            raise ValueError(
                f"its tokenizer marks the language of each text ({codes[0]}), which works only in models of "
                "open_clip; use a text encoder whose tokenizer does not"
            )
        if tokenizer.pad_token is None:
            raise ValueError(
                "its tokenizer has no pad token; set one (tokenizer.pad_token = tokenizer.eos_token) and save it"
            )
        self.image_processor, self.tokenizer, self.max_length = image_processor, tokenizer, max_length

    def __call__(self, images: list, text: list[list[str | None]]) -> dict[str, Tensor]:
        """A batch as `ccrk.training.collator` describes it, of B pictures with K captions each."""
        mask = torch.tensor([[caption is not None for caption in captions] for captions in text])
        return {**self.pictures(images), **self.caption_tensors(text), "caption_mask": mask}

    def caption_tensors(self, text: list[list[str | None]]) -> dict[str, Tensor]:
        """Each (B, K, …), of K captions for each of B pictures."""
        tokens = self.captions([caption or "" for captions in text for caption in captions])
        return {name: tensor.unflatten(0, (len(text), len(text[0]))) for name, tensor in tokens.items()}

    def are_cut(self, captions: Sequence[str]) -> list[bool]:
        """Whether each caption is longer than `max_length` tokens."""
        with without_warnings():  # of the tokenizer, one for each
            return [len(tokens) > self.max_length for tokens in self.tokenizer(list(captions))["input_ids"]]

    @abstractmethod
    def pictures(self, images: list) -> Mapping[str, Tensor]:
        """What the image encoder takes of B pictures; each tensor begins with B."""

    @abstractmethod
    def captions(self, captions: list[str]) -> Mapping[str, Tensor]:
        """What the text encoder takes of N captions; each tensor begins with N."""

    # What a batch holds beside what the encoders take.
    BESIDE = ("caption_mask", "image_ids", "sampling_keys")

    def split(self, batch: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """What of a batch is the image encoder's, each with B rows, and the text encoder's, with B · K."""
        own = {name: value for name, value in batch.items() if name not in self.BESIDE}
        text = {name: own.pop(name).flatten(0, 1) for name in list(own) if name in self.text_names}
        return own, text

    @property
    def text_names(self) -> set[str]:
        """Tensors of a batch that are made of captions."""
        return {*self.tokenizer.model_input_names, "text_embeds"}


def positions_for_tokens(config: PreTrainedConfig) -> int:
    """How many tokens a text encoder has positions for."""
    positions = config.max_position_embeddings
    if any(family in config.model_type for family in ("roberta", "altclip", "camembert")):
        positions -= config.pad_token_id + 1  # theirs start behind the padding's
    return positions


# Text encoders that pool at a caption's highest token id, as OpenAI's CLIP does: where their eos_token_id is 2, which
# its first configurations have, or always.
POOL_AT_HIGHEST = ("clip_text_model", "clipseg_text_model", "groupvit_text_model")
ALWAYS_POOL_AT_HIGHEST = ("owlvit_text_model", "owlv2_text_model")


def check_tokenizer(model: PreTrainedModel, inputs: PairInputs, pools_itself: bool = True) -> None:
    """
    Compares a text encoder with what its tokenizer makes of a caption. Warns where the encoder pools at another token
    than the end.

    Args:
        pools_itself: whether what the encoder pools is used.

    Raises:
        ValueError: the tokenizer has tokens that the encoder has not; or a caption lacks the token that the encoder
            pools at, and transformers would take the first in its place.
    """
    ids, known = max(inputs.tokenizer.get_vocab().values()) + 1, model.config.get_text_config().vocab_size
    if ids > known:
        raise ValueError(f"its tokenizer has {ids} tokens, but its model {known}; restore the model's own tokenizer")
    tokens, end = inputs.captions(["a"])["input_ids"][0], inputs.tokenizer.eos_token_id
    for module in model.modules() if pools_itself else ():
        kind = getattr(getattr(module, "config", None), "model_type", None)
        pooled_at = vars(module).get("eos_token_id")
        if kind in ALWAYS_POOL_AT_HIGHEST or (kind in POOL_AT_HIGHEST and pooled_at == 2):
            if tokens.max() != end:
                logger.warning("captions are pooled at their highest token id, which is not the end token (%s)", end)
                return
        elif pooled_at is not None and pooled_at not in tokens:
            raise ValueError(
                f"its text encoder pools at token {pooled_at}, its tokenizer ends captions with {int(tokens[-1])}; "
                "restore the tokenizer that it was trained with, or set text_config.eos_token_id in its config.json"
            )


class DualInputs(PairInputs):
    """
    The processor of a dual encoder of transformers. It does what each family was trained with: SigLIP pads captions to
    their full length, without a mask, and ALIGN reads 64 tokens of a caption.

    Args:
        processor: with `image_processor` and `tokenizer`.
        config: of the model, which says how many tokens a caption may have: it keeps so many.

    Raises:
        ValueError: a part of the processor is missing, or its tokenizer cannot pad.
    """

    def __init__(self, processor, config: PreTrainedConfig):
        parts = ("image_processor", "tokenizer")
        if lacking := [part for part in parts if getattr(processor, part, None) is None]:
            raise ValueError(f"there is no {' and no '.join(lacking)}; save the model's processor beside it")
        self._processor = processor
        processor.tokenizer = tokenizer_as_trained(processor.tokenizer, config.model_type)
        max_length = positions_for_tokens(config.text_config)
        is_siglip = config.model_type.startswith("siglip")
        if not is_siglip:
            max_length = min(max_length, processor.tokenizer.model_max_length)
        super().__init__(processor.image_processor, processor.tokenizer, max_length)
        self.options = {"padding": True, "truncation": True, "max_length": max_length}  # of the processor
        if is_siglip:
            self.options |= {"padding": "max_length", "return_attention_mask": False}

    def pictures(self, images: list) -> BatchFeature:
        """`pixel_values`; with SigLIP 2 at native resolution masks and shapes beside them."""
        return BatchFeature(self._processor(images=[image.convert("RGB") for image in images], return_tensors="pt"))

    def captions(self, captions: list[str]) -> BatchFeature:
        """`input_ids` (N, L), and `attention_mask` where the model takes one."""
        return self._processor(text=captions, return_tensors="pt", **self.options)


def input_size(image_processor) -> int:
    """Side of the pictures that a model sees, in pixels; about, where it keeps their shape."""
    size = {name: value for name, value in dict(getattr(image_processor, "size", None) or {}).items() if value}
    if side := size.get("height") or size.get("shortest_edge"):
        return side
    if hasattr(image_processor, "data_config"):  # of timm
        return image_processor.data_config["input_size"][-1]
    if hasattr(image_processor, "max_num_patches"):
        return math.isqrt(image_processor.max_num_patches) * image_processor.patch_size
    raise ValueError(f"a {type(image_processor).__name__} does not say how large its pictures are")


def check_is_dual_encoder(kind: type, source: str) -> None:
    """Raises ValueError, with the source's name, for a class of models that has not got two towers."""
    if not hasattr(kind, "get_image_features") or not hasattr(kind, "get_text_features") or _is_other(kind):
        raise ValueError(
            f"{source} is a {kind.__name__}, which embeds no images and captions; give a CCRK checkpoint, a dual "
            "encoder such as CLIP or SigLIP, or an .npz of embeddings or scores"
        )


def _is_other(kind: type) -> bool:
    """Whether a class has a dual encoder's methods, but no vector for each image and caption in one space."""
    # FLAVA's features are of every token; BLIP-2's of text are a language model's.
    return kind.config_class.model_type in ("flava", "blip-2")


TAKES = {"image": "pixel_values", "text": "input_ids"}


def _pass_features(tower: torch.nn.Module, name: str) -> None:
    """
    From here on an encoder passes on what it gave before, (B, D) and pooled, as it is: so the model's one forward,
    which data parallelism asks for, takes features where it takes pixels or tokens.
    """
    encode = tower.forward

    def forward(*args, **kwargs):
        given = kwargs.get(name)
        if given is not None and given.dim() == 2 and given.is_floating_point():
            return BaseModelOutputWithPooling(last_hidden_state=given, pooler_output=given)
        return encode(*args, **kwargs)

    tower.forward = forward


class DualEncoder:
    """A dual encoder of transformers, such as CLIP or SigLIP: two towers, and nothing that re-scores pairs.

    Args:
        model: bare, with `get_image_features` and `get_text_features`.
        processor: its own.

    Raises:
        ValueError: it is not such a model, or its processor lacks a part.
    """

    k_test = 0
    needs_language = False

    def __init__(self, model: PreTrainedModel, processor):
        check_is_dual_encoder(type(model), "the model")
        self.model, self.processor = model, processor
        self.inputs = DualInputs(processor, model.config)
        check_tokenizer(model, self.inputs)

    @classmethod
    def from_pretrained(cls, name_or_path: str, dtype: torch.dtype = torch.float32) -> "DualEncoder":
        """From a folder or a Hub id; ValueError as above, with its name."""
        model, _ = open_model(AutoModel, name_or_path, dtype=dtype)
        check_is_dual_encoder(type(model), name_or_path)
        processor = open_pretrained(AutoProcessor, name_or_path)
        try:
            return cls(model.eval(), processor)
        except ValueError as error:
            raise ValueError(f"{name_or_path}: {error}") from error

    @property
    def bias(self) -> Tensor | None:
        """Of a model that was trained by sigmoid."""
        return getattr(self.model, "logit_bias", None)

    def embed(self, model: torch.nn.Module, inputs: dict[str, Tensor]) -> Embeddings:
        """By one forward through the wrapped model."""
        pictures, captions = self.inputs.split(inputs)
        scale = self.model.logit_scale
        if self.model.training and self.bias is None:
            scale.data.clamp_(max=math.log(100))  # as CLIP was trained
        for modality, own in (("image", pictures), ("text", captions)):
            if (name := f"{modality}_embeds") in own:
                own[TAKES[modality]] = own.pop(name)  # see `_pass_features`
        outputs = model(**pictures, **captions, return_dict=True)
        return Embeddings(
            F.normalize(outputs.image_embeds.float(), dim=-1),
            F.normalize(outputs.text_embeds.float(), dim=-1).unflatten(0, inputs["caption_mask"].shape),
            torch.exp(-scale),
            self.bias,
        )

    def embed_alone(self, inputs: dict[str, Tensor]) -> Embeddings:
        return self.embed(self.model, inputs)

    @property
    def fingerprint(self) -> str:
        return weights_fingerprint(
            self.model.state_dict(), str(self.inputs.image_processor), tokenizer_settings(self.inputs.tokenizer)
        )

    def tower(self, modality: str) -> torch.nn.Module:
        """The image or text encoder, before its projection; ValueError where the model has it under another name."""
        name = {"image": "vision_model", "text": "text_model"}[modality]
        if (tower := getattr(self.model, name, None)) is None:
            raise ValueError(f"a {type(self.model).__name__} has no {name} whose features could be cached")
        return tower

    def features(self, modality: str, inputs: list) -> Tensor:
        """(N, D) of N pictures or captions: what their encoder gives, pooled, which batches take as `…_embeds`."""
        found = []
        hook = self.tower(modality).register_forward_hook(lambda *outputs: found.append(outputs[-1].pooler_output))
        try:
            (self.encode_images if modality == "image" else self.encode_captions)(inputs)
        finally:
            hook.remove()
        return found[0]

    def features_fingerprint(self, modality: str) -> str:
        """Changes with what decides `features`."""
        weights = self.tower(modality).state_dict()
        if modality == "image":
            return weights_fingerprint(weights, str(self.inputs.image_processor))
        return weights_fingerprint(weights, f"{tokenizer_settings(self.inputs.tokenizer)} {self.inputs.options}")

    def take_features(self, modality: str) -> None:
        """From here on batches may hold `features` in place of what they are made of."""
        _pass_features(self.tower(modality), TAKES[modality])

    def load(self, folder: Path) -> None:
        """Takes the weights of a checkpoint of the same model."""
        # They are saved by the names that the model's class had first, which from_pretrained alone understands.
        loaded, _ = open_model(type(self.model), folder, dtype=self.model.dtype)
        self.model.load_state_dict(loaded.state_dict())

    def load_scale(self, folder: Path) -> None:
        """Takes temperature and bias of a checkpoint, which its adapter lacks."""
        loaded, _ = open_model(type(self.model), folder, dtype=self.model.dtype)
        for name, parameter in self.model.named_parameters(recurse=False):
            parameter.data.copy_(loaded.get_parameter(name))

    def caption_lengths(self, captions: Sequence[str]) -> list[int]:
        return [len(caption) for caption in captions]

    def are_cut(self, captions: Sequence[str]) -> list[bool]:
        return self.inputs.are_cut(captions)

    @torch.no_grad()
    def encode_images(self, images: list) -> dict[str, Tensor]:
        """`embeds` (B, dimension), L2-normalised."""
        features = self.model.get_image_features(
            **self.inputs.pictures(images).to(self.model.device, self.model.dtype)
        )
        return {"embeds": F.normalize(features.pooler_output.float(), dim=-1)}

    @torch.no_grad()
    def encode_captions(self, captions: list[str], language: str | None = None) -> dict[str, Tensor]:
        """`embeds` (N, dimension), L2-normalised."""
        features = self.model.get_text_features(**self.inputs.captions(captions).to(self.model.device))
        return {"embeds": F.normalize(features.pooler_output.float(), dim=-1)}


OPEN_CLIP = "open_clip:"  # what names of its models begin with


def open_clip_models():
    """The module `ccrk.open_clip`, whose package need not be installed for all else."""
    if not importlib.util.find_spec("open_clip"):
        raise ValueError("open_clip is not installed; pip install open_clip_torch")
    from ccrk import open_clip

    return open_clip


def kind_of_encoder(name_or_path: str) -> type[Encoder]:
    """The class that opens a folder or Hub id; ValueError where none does, before its weights are read."""
    if name_or_path.startswith(OPEN_CLIP):
        open_clip_models().check_name(name_or_path)
        return open_clip_models().OpenClipEncoder
    try:
        config = open_pretrained(AutoConfig, name_or_path)
    except ValueError as error:
        # The modules of a SentenceTransformer may have a config.json each, and the folder none.
        is_elsewhere = not Path(name_or_path).exists() and "does not appear to have a file" not in str(error.__cause__)
        if is_elsewhere or not has_modules(name_or_path):
            raise
        return sentence_transformer_encoder()
    if config.model_type == CCRKConfig.model_type:
        return CCRKEncoder
    if has_modules(name_or_path):
        return sentence_transformer_encoder()
    check_is_dual_encoder(MODEL_MAPPING.get(type(config), type(None)), name_or_path)
    return DualEncoder


def has_modules(name_or_path: str) -> bool:
    """Whether a folder or Hub id is a SentenceTransformer's."""
    return optional_file(name_or_path, "modules.json") is not None


def optional_file(name_or_path: str, file: str) -> str | None:
    """The path of a file in a folder or Hub id; None where the file is not there."""
    failures = ("missing_entries", "connection_errors")
    quietly = {f"_raise_exceptions_for_{failure}": False for failure in failures}
    try:
        return cached_file(name_or_path, file, **quietly)
    except OSError:  # the Hub does not allow the name; whoever opens the model reports it
        return None


def sentence_transformer_encoder() -> type[Encoder]:
    """`ccrk.towers.SentenceTransformerEncoder`, whose package need not be installed for all else."""
    if not importlib.util.find_spec("sentence_transformers"):
        raise ValueError("sentence-transformers is not installed; pip install 'sentence-transformers>=6.2'")
    from ccrk.towers import SentenceTransformerEncoder

    return SentenceTransformerEncoder


def load_encoder(name_or_path: str, k_test: int, bf16: bool) -> Encoder:
    """The model in evaluation mode. Re-ranking by a head that was never trained is refused."""
    options = {"dtype": torch.bfloat16 if bf16 else torch.float32}
    device = process_state().device
    kind = kind_of_encoder(name_or_path)
    if kind is not CCRKEncoder:
        encoder = kind.from_pretrained(name_or_path, **options)
        encoder.model.to(device)
        return encoder
    processor = open_pretrained(CCRKProcessor, name_or_path)
    model, lacking = open_model(CCRKForImageTextRetrieval, name_or_path, ("matching_head",), **options)
    if k_test and lacking:
        raise ValueError(f"{name_or_path} has no matching head; rank with --no_rerank, or fine-tune it first")
    tokens, vocab_size = len(processor.tokenizer), model.config.text_config.vocab_size
    if tokens > vocab_size:
        raise ValueError(
            f"{name_or_path}: its tokenizer has {tokens} tokens, but its model {vocab_size}; restore the model's own "
            "tokenizer"
        )
    return CCRKEncoder(model.eval().to(device), processor, k_test)


def make_encoder(model: torch.nn.Module, processor=None, k_test: int = 0) -> Encoder:
    """The encoder of a bare model: with its fusion encoder where it has one. Its processor is that of transformers."""
    if isinstance(model, CCRKPairModel):
        return CCRKEncoder(model, processor, k_test)
    if isinstance(model, PreTrainedModel):
        return DualEncoder(model, processor)
    return sentence_transformer_encoder()(model)  # ty: ignore[too-many-positional-arguments]
