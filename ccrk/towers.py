"""SentenceTransformers that take pictures and text: opened, or made of two encoders, and trained as one module.

A SentenceTransformer is a list of modules. Its first may be a Router with a list of its own for each modality: so two
encoders that know nothing of each other become one model, towers with a projection behind each.
"""

import json
import logging
import math
from collections.abc import Iterator, Sequence
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Router, Transformer
from sentence_transformers.sentence_transformer.modules import Dropout, Pooling
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer, PreTrainedModel
from transformers.utils import cached_file

from ccrk.encoders import (
    TAKES,
    Embeddings,
    PairInputs,
    check_tokenizer,
    has_modules,
    positions_for_tokens,
    tokenizer_as_trained,
)
from ccrk.encoding import tokenizer_settings, weights_fingerprint
from data_scripts.cli import mistake, one_line
from data_scripts.files import check_vocabulary, open_model, open_pretrained, why_not_whole, without_warnings

logger = logging.getLogger(__name__)

PROJECTION_DIM = 512  # of two towers, as in transformers' VisionTextDualEncoder

# Beside the SentenceTransformer, which has no place for them: what its training goes on from.
SCALE = "logit_scale.safetensors"

POOLING = {"first": "cls", "mean": "mean"}  # by the names that sentence-transformers has for them


class SentenceTransformerPair(nn.Module):
    """
    A SentenceTransformer as a training step needs it: one forward for pictures and captions, and a temperature.

    Args:
        model: takes pictures and text.
        sigmoid: have a bias beside the temperature, for the sigmoid loss, both as SigLIP starts from.
        name_or_path: folder or Hub id that the model was opened from; empty for one made of two encoders.
    """

    def __init__(self, model: SentenceTransformer, sigmoid: bool | None = False, name_or_path: str = ""):
        super().__init__()
        self.model, self.name_or_path = model, name_or_path
        start = math.log(10) if sigmoid else math.log(1 / 0.07)  # SigLIP's; CLIP's
        self.logit_scale = nn.Parameter(torch.tensor(start))
        self.logit_bias = nn.Parameter(torch.tensor(-10.0)) if sigmoid else None

    def forward(self, pictures: dict[str, Tensor], captions: dict[str, Tensor]) -> dict[str, Tensor]:
        """`image` (B, P), `text` (N, P), L2-normalised; `temperature`, and `bias` where there is one."""
        found = {"image": self.encode("image", pictures), "text": self.encode("text", captions)}
        # Here, where data parallelism sees that the loss depends on them.
        found["temperature"] = torch.exp(-self.logit_scale)
        return found | ({} if self.logit_bias is None else {"bias": self.logit_bias + 0})

    def encode(self, modality: str, inputs: dict[str, Tensor]) -> Tensor:
        """Embeddings (N, P) of the tensors of one modality, L2-normalised, in fp32."""
        if (given := inputs.get(f"{modality}_embeds")) is None:
            given = self.features(modality, inputs)
        features = {"sentence_embedding": given, "modality": modality}
        for module in self.path(modality)[len(self.tower(modality)) :]:
            features = module(features)
        return F.normalize(features["sentence_embedding"].float(), dim=-1)

    def features(self, modality: str, inputs: dict[str, Tensor]) -> Tensor:
        """(N, D): what the tower gives, pooled, which `encode` takes as `image_embeds` or `text_embeds`."""
        features = dict(inputs, modality=modality)
        for module in self.tower(modality):
            features = module(features)
        return features["sentence_embedding"]

    def tower(self, modality: str) -> list[nn.Module]:
        """
        Return the modules that come with an encoder, in a route a Dense of its own included. They end before the
        projection, which is the last Dense, and before the Dropout and the residual layer in front of it.
        """
        path = self.path(modality)
        projections = [place for place, module in enumerate(path) if isinstance(module, Dense)]
        if not projections or not self.has_routes:
            return list(takewhile(lambda module: not isinstance(module, Dropout | Dense | Normalize), path))
        end = projections[-1]
        while isinstance(path[end - 1], Dropout) or getattr(path[end - 1], "use_residual", False):
            end -= 1
        return path[:end]

    @property
    def has_routes(self) -> bool:
        """Whether each modality has a tower of its own."""
        return isinstance(next(self.model.children()), Router)

    def path(self, modality: str) -> list[nn.Module]:
        """The modules that a modality goes through, in their order."""
        first, *others = self.model.children()
        if not isinstance(first, Router):
            return [first, *others]
        return [*first.sub_modules[first.route_mappings.get((None, modality), modality)], *others]

    def towers(self) -> list[PreTrainedModel]:
        """The encoders of transformers in it; one that takes both modalities is there once."""
        firsts = [self.path(modality)[0] for modality in ("image", "text")]
        return list(dict.fromkeys(module.model for module in firsts))

    def used_of_towers(self) -> Iterator[nn.Module]:
        """The modules of `towers`, but for a pooler of which nothing is taken."""
        for first in {id(module): module for module in (self.path("image")[0], self.path("text")[0])}.values():
            is_pooled = any(way["method_output_name"] == "pooler_output" for way in first.modality_config.values())
            for name, module in first.model.named_modules():
                if is_pooled or "pooler" not in name.split("."):
                    yield module

    @property
    def device(self) -> torch.device:
        return self.logit_scale.device

    def gradient_checkpointing_enable(self, *args, **kwargs) -> None:
        """For `Trainer`."""
        self.model.gradient_checkpointing_enable(*args, **kwargs)

    def load_scale(self, folder: Path) -> None:
        """Temperature and bias that were saved beside the model."""
        for name, value in load_file(folder / SCALE).items():
            self.get_parameter(name).data.copy_(value)

    def save(self, folder: str | Path) -> None:
        """In the model's own format, with modules and prompts as they were opened; what it has not, beside it."""
        self.model.save_pretrained(str(folder), create_model_card=False)
        scale = {name: value.detach().cpu() for name, value in self.named_parameters(recurse=False)}
        save_file(scale, Path(folder) / SCALE)


class SentenceTransformerInputs(PairInputs):
    """Pictures and captions as a SentenceTransformer prepares them, captions behind its default prompt."""

    def __init__(self, pair: SentenceTransformerPair):
        self._model = pair.model
        self.prompt = pair.model.prompts.get(pair.model.default_prompt_name)
        processor = pair.path("image")[0].processor
        text = pair.path("text")[0]
        check_vocabulary(text.tokenizer)
        tokenizer = tokenizer_as_trained(text.tokenizer, text.config.model_type)
        if tokenizer is not text.tokenizer:
            text.processor.tokenizer = tokenizer
        super().__init__(getattr(processor, "image_processor", processor), tokenizer, tokenizer.model_max_length)

    @property
    def text_names(self) -> set[str]:
        return super().text_names | {"prompt_length"}

    def are_cut(self, captions: Sequence[str]) -> list[bool]:
        """As of any pair, behind the prompt."""
        return super().are_cut([f"{self.prompt or ''}{caption}" for caption in captions])

    def pictures(self, images: list) -> dict[str, Tensor]:
        return self._tensors([image.convert("RGB") for image in images])

    def captions(self, captions: list[str]) -> dict[str, Tensor]:
        return self._tensors(captions, self.prompt)

    def _tensors(self, inputs: list, prompt: str | None = None) -> dict[str, Tensor]:
        tensors = {}
        for name, value in self._model.preprocess(inputs, prompt=prompt).items():
            if isinstance(value, Tensor):
                tensors[name] = value
            elif isinstance(value, int):  # the prompt's length
                tensors[name] = torch.full((len(inputs),), value)
        return tensors


class SentenceTransformerEncoder:
    """A SentenceTransformer that takes pictures and text; nothing re-scores pairs.

    Args:
        model: in a pair, for training.

    Raises:
        ValueError: its tokenizer cannot pad, or is another model's.
    """

    k_test = 0
    needs_language = False

    def __init__(self, model: SentenceTransformerPair):
        self.model, self.inputs = model, SentenceTransformerInputs(model)
        first = model.path("text")[0]
        check_tokenizer(
            first.model, self.inputs, first.modality_config["text"]["method_output_name"] == "pooler_output"
        )

    @classmethod
    def from_pretrained(cls, name_or_path: str, dtype: torch.dtype = torch.float32) -> "SentenceTransformerEncoder":
        """From a folder or a Hub id, in evaluation mode; ValueError, with its name, where it is none for this."""
        pair = open_pair(name_or_path, dtype=dtype)
        try:
            return cls(pair.eval())
        except ValueError as error:
            raise ValueError(f"{name_or_path}: {error}") from error

    def embed(self, model: nn.Module, inputs: dict[str, Tensor]) -> Embeddings:
        """By one forward through the wrapped model."""
        if self.model.training and self.model.logit_bias is None:
            self.model.logit_scale.data.clamp_(max=math.log(100))  # as CLIP was trained
        found = model(*self.inputs.split(inputs))
        text = found["text"].unflatten(0, inputs["caption_mask"].shape)
        return Embeddings(found["image"], text, found["temperature"], found.get("bias"))

    def embed_alone(self, inputs: dict[str, Tensor]) -> Embeddings:
        return self.embed(self.model, inputs)

    @torch.no_grad()
    def features(self, modality: str, inputs: list) -> Tensor:
        """(N, D) of N pictures or captions: what their tower gives, which batches take as `…_embeds`."""
        own = self.inputs.pictures(inputs) if modality == "image" else self.inputs.captions(inputs)
        return self.model.features(modality, self._on_device(own))

    def features_fingerprint(self, modality: str) -> str:
        """Changes with what decides `features`."""
        modules = nn.Sequential(*self.model.tower(modality))
        weights = modules.state_dict()
        if any(isinstance(module, Pooling) for module in modules):  # in place of the encoder's own
            weights = {name: tensor for name, tensor in weights.items() if ".pooler." not in name}
        settings = [str(modules), *(module.config.to_json_string() for module in modules if hasattr(module, "config"))]
        own = f"{tokenizer_settings(self.inputs.tokenizer)} {self.inputs.prompt}"
        if modality == "image":
            own = self.inputs.image_processor
        return weights_fingerprint(weights, str(own), *settings)

    def load_scale(self, folder: Path) -> None:
        """Takes temperature and bias of a checkpoint, which its adapter lacks."""
        self.model.load_scale(folder)

    def take_features(self, modality: str) -> None:
        """From here on batches may hold `features` in place of what they are made of: they always may."""

    def load(self, folder: Path) -> None:
        """Takes the weights of a checkpoint of the same model; ValueError where it is of another."""
        loaded = open_pair(folder, sigmoid=self.model.logit_bias is not None)
        if str(loaded) != str(self.model):
            raise ValueError(f"{folder} is of another model; resume with what it had, or choose another output_dir")
        self.model.load_state_dict(loaded.state_dict())

    @property
    def fingerprint(self) -> str:
        settings = [str(self.model.model), str(self.inputs.prompt), tokenizer_settings(self.inputs.tokenizer)]
        settings += [tower.config.to_json_string() for tower in self.model.towers()]
        return weights_fingerprint(self.model.state_dict(), str(self.inputs.image_processor), *settings)

    def caption_lengths(self, captions: Sequence[str]) -> list[int]:
        return [len(caption) for caption in captions]

    def are_cut(self, captions: Sequence[str]) -> list[bool]:
        return self.inputs.are_cut(captions)

    @torch.no_grad()
    def encode_images(self, images: list) -> dict[str, Tensor]:
        """`embeds` (B, dimension), L2-normalised."""
        return {"embeds": self._encode("image", self.inputs.pictures(images))}

    @torch.no_grad()
    def encode_captions(self, captions: list[str], language: str | None = None) -> dict[str, Tensor]:
        """`embeds` (N, dimension), L2-normalised."""
        return {"embeds": self._encode("text", self.inputs.captions(captions))}

    def _encode(self, modality: str, inputs: dict[str, Tensor]) -> Tensor:
        return self.model.encode(modality, self._on_device(inputs))

    def _on_device(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        device, dtype = self.model.device, self.model.towers()[0].dtype
        return {name: value.to(device, dtype if value.is_floating_point() else None) for name, value in inputs.items()}


def open_pair(
    name_or_path: str | Path, sigmoid: bool | None = None, dtype: torch.dtype = torch.float32
) -> SentenceTransformerPair:
    """A SentenceTransformer from a folder or Hub id; code that lies beside it is never run.

    Args:
        sigmoid: the loss that it is to be trained by; by default that which it was trained by here, or softmax.

    Raises:
        ValueError: it cannot be opened, or does not take both pictures and text.
    """
    model = _open(name_or_path, dtype)
    if lacking := [modality for modality in ("image", "text") if modality not in model.modalities]:
        raise ValueError(
            f"{name_or_path} is a SentenceTransformer that takes no {lacking[0]}s; give one that takes pictures and "
            "text, or make one with --vision_model and --text_model"
        )
    scale = Path(name_or_path) / SCALE
    saved_sigmoid = "logit_bias" in load_file(scale) if scale.is_file() else None
    pair = SentenceTransformerPair(model, saved_sigmoid if sigmoid is None else sigmoid, str(name_or_path))
    if saved_sigmoid is not None and saved_sigmoid == (pair.logit_bias is not None):  # else it is of the other loss
        pair.load_scale(scale.parent)
    return pair


def _open(name_or_path: str | Path, dtype: torch.dtype = torch.float32) -> SentenceTransformer:
    """A SentenceTransformer of any kind; ValueError where it cannot be opened, or lacks weights."""
    try:
        with without_warnings():  # of weights of another shape, a table above the error
            model = SentenceTransformer(str(name_or_path), device="cpu", model_kwargs={"dtype": dtype}).to(dtype)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # there is no end to what damaged files raise in the libraries that read them
        reason = one_line(str(mistake(error)).strip().partition("\n")[0])
        known = why_not_whole(name_or_path, error)
        raise ValueError(known or f"{name_or_path} cannot be opened as a SentenceTransformer: {reason}") from error
    for folder, module in _transformers(model, name_or_path):
        is_pooled = any(way["method_output_name"] == "pooler_output" for way in module.modality_config.values())
        # Names alone are compared: sentence-transformers would go on with random weights in place of missing ones.
        _, lacking = open_model(type(module.model), folder, ("pooler",) if is_pooled else (), device_map="meta")
        if lacking:
            raise ValueError(
                f"{folder}: the weights of its pooler are missing; restore the files that belong together"
            )
    return model


def _transformers(model: SentenceTransformer, name_or_path: str | Path) -> Iterator[tuple[Path, Transformer]]:
    """Each encoder of a saved SentenceTransformer, with its folder; not those that adapters are added to."""
    folder = Path(cached_file(name_or_path, "modules.json")).parent
    found = []
    for entry, module in zip(json.loads((folder / "modules.json").read_bytes()), model, strict=True):
        path = folder / entry["path"]
        found.append((path, module))
        if isinstance(module, Router):
            structure = json.loads((path / Router.config_file_name).read_bytes())["structure"]
            found += [
                (path / name, own)
                for route, names in structure.items()
                for name, own in zip(names, module.sub_modules[route], strict=True)
            ]
    for path, module in found:
        if isinstance(module, Transformer) and not (path / "adapter_config.json").is_file():
            yield path, module


def join_towers(
    vision_model: str,
    text_model: str,
    pooling: str | None = None,
    prompt: str | None = None,
    dropout: float = 0.0,
    residual: bool = False,
) -> SentenceTransformer:
    """
    One model of an image and a text encoder, with new projections into one space.

    Args:
        vision_model: folder or Hub id of an encoder of pictures: its own pooling where it has one, else the mean of
            its feature map, or the first token. A SentenceTransformer keeps all of its modules.
        text_model: of an encoder of text. A SentenceTransformer keeps all of its modules, and its default prompt.
        pooling: of the text encoder's last states: `mean` over the tokens, as by default, or the `first` one.
        prompt: before each caption, such as "query: " for E5; in place of the default prompt of `text_model`.
        dropout: the share that is dropped before the linear projections.
        residual: put a layer x + GELU(W x) before each linear projection.

    Raises:
        ValueError: one of the two cannot be opened, or is no such encoder; or a SentenceTransformer pools otherwise,
            or has prompts of which none is its default.
    """
    with without_warnings():  # of a pooling that is not used; what else a file lacks is looked at before
        towers = {"image": image_tower(vision_model), "text": text_tower(text_model, pooling, prompt)}
    routes = {}
    for modality, (modules, width, _) in towers.items():
        hidden = [Dense(width, width, activation_function=nn.GELU(), use_residual=True)] if residual else []
        projection = Dense(width, PROJECTION_DIM, bias=False, activation_function=None)
        routes[modality] = [*modules, *hidden, *([Dropout(dropout)] if dropout else []), projection]
    prompts = {}
    if prompt := towers["text"].prompt:
        prompts = {"prompts": {"query": prompt, "document": prompt}, "default_prompt_name": "query"}
    return SentenceTransformer(modules=[Router(routes), Normalize()], device="cpu", **prompts)


class Tower(NamedTuple):
    """An encoder of one modality, in fp32."""

    modules: list[nn.Module]  # a Transformer, and what pools it
    width: int  # of what comes out
    prompt: str | None = None  # before each caption


def image_tower(name_or_path: str) -> Tower:
    """An image encoder and how it is pooled."""
    if has_modules(name_or_path):
        return _own_tower(_open(name_or_path), name_or_path, "image")
    # The pooling of a classifier's checkpoint may never have been trained, and then is not used.
    encoder, lacking = open_model(AutoModel, name_or_path, may_lack=("pooler",))
    _check_tower(encoder, name_or_path, "image")
    picture = open_pretrained(AutoImageProcessor, name_or_path)([Image.new("RGB", (64, 64))], return_tensors="pt")
    with torch.no_grad():
        outputs = encoder.eval()(**picture)
    pooled, states = getattr(outputs, "pooler_output", None), outputs.last_hidden_state
    if pooled is not None and pooled.dim() == 2 and not lacking:
        own = {"image": {"method": "forward", "method_output_name": "pooler_output"}}
        transformer = _transformer(name_or_path, modality_config=own, module_output_name="sentence_embedding")
        return Tower([transformer], pooled.shape[-1])
    is_map = states.dim() == 4  # channels first
    width = states.shape[1 if is_map else -1]
    return Tower([_transformer(name_or_path), Pooling(width, "mean" if is_map else "cls")], width)


def text_tower(name_or_path: str, pooling: str | None, prompt: str | None) -> Tower:
    """A text encoder with its pooling; see `join_towers`."""
    if has_modules(name_or_path):
        model = _open(name_or_path)
        tower = _own_tower(model, name_or_path, "text")
        own = next((module.pooling_mode for module in tower.modules if isinstance(module, Pooling)), "itself")
        if pooling is not None and POOLING[pooling] != own:
            raise ValueError(
                f"pooling is {pooling}, but the SentenceTransformer {name_or_path} pools by {own}; remove pooling"
            )
        return tower._replace(prompt=_own_prompt(model, name_or_path, prompt))
    encoder, _ = open_model(AutoModel, name_or_path)
    _check_tower(encoder, name_or_path, "text")
    tokenizer = open_pretrained(AutoTokenizer, name_or_path)
    transformer = _transformer(name_or_path)
    transformer.max_seq_length = min(positions_for_tokens(encoder.config), tokenizer.model_max_length)
    width = encoder.config.hidden_size
    return Tower([transformer, Pooling(width, POOLING[pooling or "mean"])], width, prompt)


def _transformer(name_or_path: str, **options) -> Transformer:
    """In fp32, whatever the file's precision: training needs it, and towers of two precisions do not fit together."""
    return Transformer(name_or_path, model_kwargs={"dtype": torch.float32}, **options)


def _own_tower(model: SentenceTransformer, source: str, modality: str) -> Tower:
    """The modules of a SentenceTransformer; ValueError where not all that it does can be taken over."""
    first, *others = model
    if not isinstance(first, Transformer):
        raise ValueError(
            f"{source} is a SentenceTransformer that begins with a {type(first).__name__}, which cannot be a tower; "
            "give one that begins with a Transformer"
        )
    _check_tower(first.model, source, modality)
    behind = others[1:] if others and isinstance(others[0], Pooling) else others
    if unknown := [type(module).__name__ for module in behind if not isinstance(module, Dense | Dropout | Normalize)]:
        raise ValueError(
            f"{source} is a SentenceTransformer with a {unknown[0]} behind its pooling, where a tower may have Dense, "
            "Dropout and Normalize; give only the folder of its encoder"
        )
    if behind is others and first.module_output_name != "sentence_embedding":
        raise ValueError(f"{source} is a SentenceTransformer without a Pooling; add one, and save it")
    if model.truncate_dim is not None:
        raise ValueError(
            f"{source} is a SentenceTransformer that keeps only {model.truncate_dim} dimensions; remove truncate_dim "
            "from its config_sentence_transformers.json"
        )
    return Tower([first, *others], model.get_embedding_dimension())


def _own_prompt(model: SentenceTransformer, source: str, given: str | None) -> str:
    """What stands before each caption: what is given, else the default prompt that a SentenceTransformer has."""
    named = {name: prompt for name, prompt in model.prompts.items() if prompt}
    own = model.prompts.get(model.default_prompt_name) or ""
    if given is not None:
        if named and given not in named.values():
            logger.warning(
                "captions begin with %r, not with a prompt that %s was trained with: %s", given, source, named
            )
        return given
    if named and model.default_prompt_name is None:
        raise ValueError(
            f"{source} has several prompts and no default ({', '.join(f'{n}: {p!r}' for n, p in named.items())}); "
            "choose one with --caption_prompt, or '' for none"
        )
    return own


def _check_tower(encoder: PreTrainedModel, source: str, modality: str) -> None:
    """ValueError where an encoder does not take pixels, or tokens, or takes both."""
    is_whole = hasattr(encoder, "get_text_features")
    if encoder.main_input_name != TAKES[modality] or is_whole or encoder.config.is_encoder_decoder:
        what, argument = ("images", "vision_model") if modality == "image" else ("text", "text_model")
        cure = "train it with --model_name_or_path" if is_whole else f"give {argument} another"
        raise ValueError(f"{source} is a {type(encoder).__name__}, not an encoder of {what} only; {cure}")
