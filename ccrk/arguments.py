"""What a recipe (a YAML file and the command line) says of data, model and training."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, get_type_hints

import yaml
from transformers import HfArgumentParser
from transformers.hf_argparser import string_to_bool

import data_scripts
from ccrk import CCRKConfig
from ccrk.training.arguments import AT_LEAST_1, BELOW_1, UP_TO_1, CCRKTrainingArguments, check_ranges
from data_scripts.cli import did_you_mean, did_you_mean_path, mistake, one_line
from data_scripts.options import DATASETS
from data_scripts.problems import MAX_BAD_FRACTION
from data_scripts.text import json_object, read_text

# The arguments of transformers that --help shows; it has some 90 more (--help_all).
SHOWN_TRAINING_ARGUMENTS = {
    "output_dir",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "num_train_epochs",
    "max_steps",
    "learning_rate",
    "new_parameter_lr_scale",
    "warmup_steps",
    "weight_decay",
    "bf16",
    "contrastive_chunk_size",
    "activation_checkpointing",
    "seed",
    "logging_steps",
    "eval_strategy",
    "eval_steps",
    "eval_k_test",
    "save_strategy",
    "save_steps",
    "resume_from_checkpoint",
    "push_to_hub",
    "hub_model_id",
    "license",
    "report_to",
    "dataloader_num_workers",
}


@dataclass
class DataArguments:
    """What to train and evaluate on."""

    _argument_group_name = "data"

    dataset: str = field(
        default="shapes", metadata={"help": f"One of {', '.join(data_scripts.CARDS)}; or {DATASETS}."}
    )
    data_dir: str | None = field(default=None, metadata={"help": "Folder of the data set's annotations."})
    image_dir: str | None = field(default=None, metadata={"help": "Folder of its photographs."})
    languages: list[str] | None = field(
        default=None, metadata={"help": "Caption languages, such as: en de fr. All by default, of coco en alone."}
    )
    caption_columns: list[str] | None = field(
        default=None,
        metadata={"help": "LANGUAGE=COLUMN[,COLUMN] …: a table's columns of captions, where names do not tell them."},
    )
    image_column: str | None = field(default=None, metadata={"help": "A table's column of pictures."})
    image_id_column: str | None = field(
        default=None, metadata={"help": "A table's column of names that equal pictures share."}
    )
    validation_fraction: float | None = field(
        default=None, metadata={"help": "Share of a table's training pictures to validate on."}
    )
    dataset_config: dict | None = field(
        default=None,
        metadata={"help": "Further options of the data set: a mapping in the YAML file, JSON on the command line."},
    )
    streaming: bool = field(
        default=False,
        metadata={"help": "Read rows where they lie instead of copying them to a cache first; needs max_steps."},
    )
    few_shot: str | None = field(
        default=None, metadata={"help": "LANGUAGE,SHOTS such as de,100: train on that few rows (xflickrco)."}
    )
    max_bad_fraction: float | None = field(
        default=None,
        metadata={"help": f"Share of rows and images that may be bad, {MAX_BAD_FRACTION} unless given; more stop."},
    )
    captions_per_image: str | None = field(
        default=None,
        metadata={
            "help": "In a step. 'all': one in each language, 1-to-K, as in pre-training and by default where a dual "
            "encoder is trained; 'one': of any language, the published fine-tuning of CCRK.",
            "choices": ["one", "all"],
        },
    )
    rows: str | None = field(
        default=None,
        metadata={
            "help": "What an epoch goes through, where a step takes one caption of an image. 'captions': every "
            "caption with its image, as published, the default; 'images': every image, with one that is drawn.",
            "choices": ["captions", "images"],
        },
    )
    hard_negatives: int | None = field(
        default=None,
        metadata={
            "help": "Pictures most like a picture, by the model as it starts, that a batch is to have beside it (dual "
            "encoders)."
        },
    )
    agreement_languages: list[str] | None = field(
        default=None,
        metadata={
            "help": "Languages beside languages whose captions enter agreement alone, so that they keep up while "
            "others are fine-tuned; captions_per_image is then all."
        },
    )
    text_only_rows: bool = field(
        default=False,
        metadata={
            "help": "Captions of rows whose picture is missing take part in agreement: as many in a step as there "
            "are pictures (dual encoders)."
        },
    )
    max_train_rows: int | None = field(default=None, metadata={"help": "Train on the first N images only."})
    augmentation: str = field(
        default="none",
        metadata={
            "help": "'published' (random crop, flip, RandAugment) or 'none'. Flips make 'left' wrong: not for shapes.",
            "choices": ["none", "published"],
        },
    )
    crop_min_scale: float = field(
        default=0.2, metadata={"help": "Least share of a picture that a random crop keeps: 0.2, fine-tuning 0.5."}
    )


@dataclass
class ModelArguments:
    """
    Where the model comes from: a checkpoint; an image and a text encoder; or nothing but a configuration.

    Of two encoders `train_pretrain.py` makes a CCRK, and so does `train_retrieval.py` where there is a `config` or
    `layers`; without them it trains two towers.
    """

    _argument_group_name = "model"

    model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "Folder or Hub id of a CCRK checkpoint to go on from; in train_retrieval.py of any dual encoder "
            "of transformers (CLIP, SigLIP, …), or a SentenceTransformer that takes pictures and text."
        },
    )
    vision_model: str | None = field(
        default=None,
        metadata={
            "help": "Folder or Hub id of an image encoder to start from: a Swin of CCRK, or another of timm; in "
            "train_retrieval.py without config and layers any of transformers or timm, as one of two towers."
        },
    )
    text_model: str | None = field(
        default=None, metadata={"help": "The same of the text encoder: an XLM-R of CCRK, or any as the other tower."}
    )
    layers: str | None = field(
        default=None,
        metadata={
            "help": "Of the text encoder, for a CCRK: 'every_second', as published and by default, or 'all'. The "
            "first half of them are text layers, the others fusion layers: of 12, all give 6 and 6.",
            "choices": ["every_second", "all"],
        },
    )
    pooling: str | None = field(
        default=None,
        metadata={
            "help": "Pool the text tower's states: mean by default. A SentenceTransformer has its own.",
            "choices": ["first", "mean"],
        },
    )
    caption_prompt: str | None = field(
        default=None,
        metadata={"help": "Text before each caption, as 'query: ' for E5. A SentenceTransformer has its own."},
    )
    projection: str = field(
        default="linear",
        metadata={
            "help": "Projection of each of two towers: linear, or with a layer x + GELU(W x) first.",
            "choices": ["linear", "residual"],
        },
    )
    projection_dropout: float = field(
        default=0.0,
        metadata={"help": "Share that is dropped before the linear map behind each of two towers: 0.3 if frozen."},
    )
    config: dict | None = field(
        default=None,
        metadata={
            "help": "Fields of CCRKConfig: a mapping in the YAML file, JSON on the command line. Alone: from scratch, "
            "tokenizer included."
        },
    )
    image_size: int | None = field(default=None, metadata={"help": "Side of the model's input picture, in pixels."})
    freeze: list[str] | None = field(
        default=None,
        metadata={
            "help": "'image', 'text': these encoders, with projections of a checkpoint's own, stay as they are."
        },
    )
    cache_image_features: bool = field(
        default=False,
        metadata={
            "help": "With a frozen image encoder: encode each picture once, into a file in the cache of datasets; no "
            "step reads a picture again."
        },
    )
    cache_caption_features: bool = field(
        default=False, metadata={"help": "The same of captions, with a frozen text encoder."}
    )
    use_peft: bool = field(
        default=False,
        metadata={
            "help": "Train LoRA adapters, and nothing else, of a checkpoint: on text and fusion layers of CCRK, all "
            "linear layers of a dual encoder."
        },
    )
    lora_r: int = field(default=16, metadata={"help": "Rank of the LoRA adapters; their alpha is twice that."})
    max_words: int | None = field(
        default=None, metadata={"help": "Words that a caption keeps: 40, or the checkpoint's, unless given."}
    )
    max_length: int | None = field(
        default=None, metadata={"help": "Tokens that a caption keeps: 40, or the checkpoint's, unless given."}
    )


# What is neither None nor within these is refused.
DATA_RANGES = {
    "hard_negatives": AT_LEAST_1,
    "max_bad_fraction": UP_TO_1,
    "max_train_rows": AT_LEAST_1,
    "crop_min_scale": UP_TO_1,
}

MODEL_RANGES = {
    "image_size": (1, 4096),  # one picture of that is 200 MB
    "lora_r": AT_LEAST_1,
    "projection_dropout": BELOW_1,
    "max_words": AT_LEAST_1,
    "max_length": (2, None),
}


def recipe_file(name: str) -> Path:
    """A recipe of `configs/`: beside the package in this repository, within it where it is installed."""
    package = Path(__file__).parent
    return next(path for path in (package.parent / "configs" / name, package / "configs" / name) if path.exists())


def _check_recipe(path: Path) -> None:
    """ValueError where a recipe does not exist, with the nearest name of its folder or of this project's recipes."""
    if path.exists():
        return
    shipped = [os.path.relpath(recipe) for recipe in recipe_file("shapes_finetune.yaml").parent.glob("*.yaml")]
    nearest = did_you_mean_path(path) or did_you_mean(str(path), shipped)
    raise ValueError(f"recipe {path} does not exist{nearest or '; give a YAML file'}")


def _refuse(message: str) -> NoReturn:
    raise ValueError(message)


def _named(action: argparse.Action) -> Callable[[str], Any]:
    """The action's type function; its error names the nearest value that the action takes."""
    convert = action.type or str
    known = {str(value): value for value in action.choices or (("true", "false") if convert is string_to_bool else ())}

    def convert_or_suggest(text: Any) -> Any:
        if action.choices and str(text) not in known:
            raise argparse.ArgumentTypeError(
                f"{str(text)!r} is not one of {', '.join(known)}{did_you_mean(str(text), known)}"
            )
        try:
            return convert(text)
        except argparse.ArgumentTypeError as error:
            raise argparse.ArgumentTypeError(
                f"{str(error).rstrip('.')}{did_you_mean(str(text).lower(), known)}"
            ) from error

    return convert_or_suggest


def parse_recipe(
    description: str, default_recipe: Path, argv: Sequence[str] | None = None, **defaults
) -> tuple[DataArguments, ModelArguments, CCRKTrainingArguments]:
    """Reads `[RECIPE.yaml] [--argument value …]`; the command line has the last word.

    Args:
        description: shown by --help.
        default_recipe: read when no arguments are given at all.
        argv: the command line; that of the process by default.
        defaults: of this script, where they differ from the dataclasses'.

    Raises:
        ValueError: an unknown argument in the recipe, or a value that is none of an argument's choices.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = HfArgumentParser(
        (DataArguments, ModelArguments, CCRKTrainingArguments),
        description=description,
        formatter_class=partial(argparse.RawDescriptionHelpFormatter, max_help_position=34, width=119),
        usage="%(prog)s [RECIPE.yaml] [--argument value ...]",
        epilog=f"Without arguments: configs/{default_recipe.name}. Every other argument of "
        "transformers.TrainingArguments works too, or is refused; see --help_all.",
        allow_abbrev=False,
    )
    parser.error = _refuse
    for action in parser._actions:
        if action.type is dict or action.dest.endswith("_kwargs"):
            action.type = json_object
        elif action.choices or action.type is string_to_bool:
            action.type = _named(action)
    if "--help_all" in argv:
        argv = ["--help"]
    else:
        own = {name for part in (DataArguments, ModelArguments) for name in part.__dataclass_fields__}
        for action in parser._actions:
            action.option_strings = action.option_strings[:1]  # shown once; --with-hyphens works as well
            if action.dest not in own | SHOWN_TRAINING_ARGUMENTS | {"help"}:
                action.help = argparse.SUPPRESS
    recipe = default_recipe if not argv else None
    if argv and not argv[0].startswith("-"):
        recipe = Path(argv.pop(0))
        _check_recipe(recipe)
    values = dict(defaults)
    if recipe is not None:
        values |= read_yaml(recipe)
    # The first of each: with a second one, --no_…, some are switched off.
    known = {action.dest: action for action in reversed(parser._actions) if action.dest != "help"}
    if unknown := sorted(str(name) for name in values if name not in known):
        nearest = did_you_mean(unknown[0], known) or "; --help_all lists those that exist"
        raise ValueError(f"{recipe}: unknown argument {', '.join(unknown)}{nearest}")
    kinds = {name: kind for part in parser.dataclass_types for name, kind in get_type_hints(part).items()}
    for name, value in values.items():
        _check_value(recipe, known[name], kinds[name], value)
    parser.set_defaults(**values)
    source = " and ".join([str(recipe)] * (recipe is not None) + ["the command line"] * bool(argv))
    try:
        data, model, arguments, unknown = parser.parse_args_into_dataclasses(argv, True, look_for_args_file=False)
        check_ranges(data, DATA_RANGES)
        check_ranges(model, MODEL_RANGES)
        for part in ("text_config", "vision_config"):
            if not isinstance(fields := (model.config or {}).get(part, {}), dict):
                raise ValueError(f"config.{part} is {fields!r}, not a mapping")
        if model.image_size is not None and (vocab_size := vocab_size_from_scratch(model)) is not None:
            config_from_scratch(model, vocab_size)
    except Exception as error:  # there is no end to what values raise that transformers looks at
        raise ValueError(f"{source}: {one_line(mistake(error))}") from error
    if unknown:
        if not unknown[0].startswith("-"):
            raise ValueError(f"the command line: {unknown[0]} does not belong to an option; put the recipe first")
        nearest = did_you_mean(unknown[0].lstrip("-").partition("=")[0], known).replace("'", "'--", 1)
        raise ValueError(
            f"the command line: unknown argument {unknown[0]}{nearest or '; --help_all lists those that exist'}"
        )
    return data, model, arguments


def _check_value(recipe: Path | None, action: argparse.Action, kind: Any, value: Any) -> None:
    """ValueError where a recipe's value is none that the argument takes: argparse looks at the command line alone."""
    if action.choices and value not in (*action.choices, action.default):
        choices = list(map(str, action.choices))
        nearest = did_you_mean(str(value), choices)
        raise ValueError(f"{recipe}: {action.dest} is {value!r}; choose one of {', '.join(choices)}{nearest}")
    if isinstance(value, str) and value != action.default and action.type is not None:
        try:
            value = action.type(value)
        except (TypeError, ValueError, argparse.ArgumentTypeError) as error:
            raise ValueError(f"{recipe}: {action.dest} is {value!r} ({one_line(error)})") from error
    if not data_scripts.is_of(value, kind):
        expected = "a mapping" if action.type is json_object else f"of the kind {getattr(kind, '__name__', kind)}"
        raise ValueError(f"{recipe}: {action.dest} is {value!r}, not {expected}")
    parts = [value]
    for part in parts:
        if isinstance(part, dict):
            if names := [name for name in part if not isinstance(name, str)]:
                raise ValueError(f"{recipe}: {action.dest} has the name {names[0]!r}; put it in quotes")
            parts += part.values()


def read_yaml(path: Path) -> dict:
    """A YAML file's mapping; anything else is a ValueError that names the file."""
    try:
        content = yaml.safe_load(read_text(path, "is it a recipe?")) or {}
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a mapping of arguments to values, not a {type(content).__name__}")
    return content


def vocab_size_from_scratch(model: ModelArguments) -> int | None:
    if model.model_name_or_path or model.vision_model or model.text_model:
        return None
    return (model.config or {}).get("text_config", {}).get("vocab_size")


def config_from_scratch(model: ModelArguments, vocab_size: int, mask_token_id: int | None = None) -> CCRKConfig:
    """The configuration of a recipe that starts from nothing else.

    Raises:
        ValueError: a field does not exist, or no model can be made of it.
    """
    parts = {
        "text_config": model.config["text_config"] | {"vocab_size": vocab_size},
        "vision_config": {"image_size": model.image_size} | model.config.get("vision_config", {}),
    }
    if (size := parts["vision_config"]["image_size"]) != model.image_size:
        raise ValueError(
            f"image_size is {model.image_size}, but config.vision_config.image_size {size}; remove the latter"
        )
    config = CCRKConfig(**model.config | parts | {"mask_token_id": mask_token_id})
    for name, fields in [("config", model.config), *((f"config.{name}", fields) for name, fields in parts.items())]:
        made = config if name == "config" else getattr(config, name.removeprefix("config."))
        known = {*type(made).__dataclass_fields__, *made.attribute_map, "model_type"}
        if unknown := sorted(set(fields) - known):
            raise ValueError(
                f"{name} has no {', '.join(unknown)}; a {type(made).__name__} has {', '.join(sorted(known))}"
            )
    return config
