"""Models of open_clip as evaluation and search use one: `open_clip:NAME/PRETRAINED`, or `open_clip:FOLDER`."""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import open_clip
import torch
from open_clip.tokenizer import HFTokenizer
from open_clip.utils import to_2tuple
from torch import Tensor
from torch.nn import functional as F

from ccrk.encoders import OPEN_CLIP, language_codes, weights_fingerprint
from ccrk.encoding import tokenizer_settings
from data_scripts.captions import language_code
from data_scripts.cli import one_line
from data_scripts.files import check_vocabulary, why_not_whole

FOLDER = "local-dir:"  # what open_clip's names of folders begin with

# What else than its vocabulary decides what a tokenizer of open_clip makes of a text.
TOKENIZER_SETTINGS = ("context_length", "clean_fn", "strip_sep_token", "tokenizer_mode")


class OpenClipEncoder:
    """
    A dual encoder of open_clip, with its own transforms and tokenizer.

    Args:
        model: with `encode_image` and `encode_text`, in evaluation mode.
        transform: from a PIL image to the model's input.
        tokenizer: from captions to tokens, padded to the length that the model has.
        name: what the tokenizer was opened by.
        dtype: of pictures.
    """

    k_test = 0

    def __init__(self, model: torch.nn.Module, transform, tokenizer, name: str, dtype: torch.dtype = torch.float32):
        self.model, self.transform, self.tokenizer, self.name, self.dtype = model, transform, tokenizer, name, dtype
        self.languages = language_codes(tokenizer.tokenizer) if isinstance(tokenizer, HFTokenizer) else []
        if self.languages and not hasattr(tokenizer.tokenizer, "src_lang"):
            raise ValueError(
                f"its tokenizer has language codes ({self.languages[0]}), but a "
                f"{type(tokenizer.tokenizer).__name__} cannot set the language; set tokenizer_class in its "
                "tokenizer_config.json"
            )

    @classmethod
    def from_pretrained(cls, name_or_path: str, dtype: torch.dtype = torch.float32) -> "OpenClipEncoder":
        """
        Weights, transforms and tokenizer. Code that lies beside a tokenizer is never run.

        Raises:
            ValueError: one of them cannot be opened; with its name.
        """
        name, tag = check_name(name_or_path)
        # Pure: in open_clip's mixed precision neither CoCa nor a text encoder of transformers runs.
        precision = "pure_bf16" if dtype is torch.bfloat16 else "fp32"
        try:
            with _quietly():
                model, transform = open_clip.create_model_from_pretrained(name, pretrained=tag, precision=precision)
                is_own = open_clip.get_model_config(name)["text_cfg"].get("hf_tokenizer_name")
                # Whatever the configuration says, which may come from anyone.
                tokenizer = open_clip.get_tokenizer(name, **({"trust_remote_code": False} if is_own else {}))
            check_vocabulary(getattr(tokenizer, "tokenizer", None))  # of transformers, where it has one
            return cls(model.eval(), transform, tokenizer, name, open_clip.get_input_dtype(precision) or torch.float32)
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # there is no end to what damaged files raise in the libraries that read them
            reason = one_line(str(error).strip().partition("\n")[0])
            known = why_not_whole(name_or_path, error)
            raise ValueError(known or f"{name_or_path} cannot be opened; is it whole? ({reason})") from error

    @property
    def fingerprint(self) -> str:
        tokenizer = f"{type(self.tokenizer).__name__} of "
        if self.name.startswith(FOLDER):  # wherever it lies
            settings = {name: getattr(value, "__name__", value) for name, value in vars(self.tokenizer).items()}
            tokenizer += str({name: settings.get(name) for name in TOKENIZER_SETTINGS})
            if isinstance(self.tokenizer, HFTokenizer):
                tokenizer += tokenizer_settings(self.tokenizer.tokenizer)
        else:
            tokenizer += self.name
        return weights_fingerprint(self.model.state_dict(), str(self.transform), tokenizer)

    @property
    def inputs(self) -> SimpleNamespace:
        """Side of the model's images, in pixels, where `ccrk.encoders.input_size` looks for it."""
        height, width = to_2tuple(self.model.visual.image_size)
        return SimpleNamespace(image_processor=SimpleNamespace(size={"shortest_edge": max(height, width)}))

    @property
    def needs_language(self) -> bool:
        """Whether its tokenizer puts a language code before each text, as NLLB's does: English unless it is set."""
        return bool(self.languages)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def caption_lengths(self, captions: Sequence[str]) -> list[int]:
        return [len(caption) for caption in captions]

    def are_cut(self, captions: Sequence[str]) -> list[bool]:
        """Whether each caption is longer than the context length; open_clip's tokenizers do not say."""
        # Where one token more fits, a caption that was cut reads otherwise.
        kept = self.tokenizer.context_length
        tokens = self.tokenizer(["", *captions], context_length=kept + 1)
        padding = tokens[0, -1]  # behind the empty caption
        is_longer = (tokens[1:, :kept] != self.tokenizer(list(captions))).any(dim=1) | (tokens[1:, kept] != padding)
        return is_longer.tolist()

    @torch.no_grad()
    def encode_images(self, images: list) -> dict[str, Tensor]:
        """`embeds` (B, dimension), L2-normalised."""
        pictures = torch.stack([self.transform(image) for image in images]).to(self.device, self.dtype)
        return {"embeds": F.normalize(self.model.encode_image(pictures).float(), dim=-1)}

    @torch.no_grad()
    def encode_captions(self, captions: list[str], language: str | None = None) -> dict[str, Tensor]:
        """
        `embeds` (N, dimension), L2-normalised.

        Args:
            language: of all captions; see `Encoder`.

        Raises:
            ValueError: the model needs a language, and `language` is None or one that it has no code for; or the
                tokenizer is another model's.
        """
        if self.needs_language:
            # transformers 5 overwrites what open_clip's own `set_language` sets.
            self.tokenizer.tokenizer.src_lang = self.code_of(language)
        tokens = self.tokenizer(captions)
        if (highest := int(tokens.max())) >= (known := getattr(self.model, "text", self.model).vocab_size):
            raise ValueError(
                f"{self.name.removeprefix(FOLDER)}: its tokenizer gives token {highest}, its model has {known}; "
                "restore its own"
            )
        return {"embeds": F.normalize(self.model.encode_text(tokens.to(self.device)).float(), dim=-1)}

    def code_of(self, language: str | None) -> str:
        """The model's own code of a language; ValueError as above."""
        if language is None:
            raise ValueError(
                f"{OPEN_CLIP}{self.name.removeprefix(FOLDER)} needs the language of each text; "
                "give --language, such as de"
            )
        if (code := language_code(language, self.languages)) is None:
            raise ValueError(
                f"{OPEN_CLIP}{self.name.removeprefix(FOLDER)} has no code for the language {language!r}; give one of "
                f"its {len(self.languages)} codes, such as {self.languages[0]}, or remove that language"
            )
        return code


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Inside, open_clip reports warnings and errors alone; it has no logger of its own."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.WARNING)
    try:
        yield
    finally:
        root.setLevel(level)


def check_name(name_or_path: str) -> tuple[str, str | None]:
    """
    What open_clip calls a model, and the tag of its weights.

    Raises:
        ValueError: it is neither a folder of open_clip nor a name and a tag that open_clip knows.
    """
    given = name_or_path.removeprefix(OPEN_CLIP)
    if (folder := Path(given)).is_dir():
        if not (folder / "open_clip_config.json").is_file():
            raise ValueError(f"{given} holds no open_clip_config.json; name a folder that open_clip has saved")
        return f"{FOLDER}{given}", None
    name, _, tag = given.rpartition("/")
    tags = open_clip.list_pretrained_tags_by_model(name)
    if not tags:
        raise ValueError(
            f"there is no folder {given}, and open_clip has no weights for {name or given!r}; "
            "give open_clip:NAME/PRETRAINED as open_clip.list_pretrained() names them"
        )
    if tag not in tags:
        raise ValueError(f"open_clip has no weights {tag!r} for {name}; choose one of {', '.join(tags)}")
    return name, tag
