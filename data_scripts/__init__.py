"""Data sets: one module each, one row format (`data_scripts.rows`), one way in (`load`)."""

import inspect
import os
import sys
import types
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

# Before all others, and by its path: to import it by name would open the models.
if "ccrk" not in sys.modules:
    own_modules = spec_from_file_location("own_modules", Path(__file__).parents[1] / "ccrk" / "own_modules.py")
    own_modules.loader.exec_module(module_from_spec(own_modules))

# Before torch is imported: its notes on classes of torchao are not for users.
os.environ.setdefault("TORCH_LOGS", "-torch.utils._pytree")

import datasets

from data_scripts.cards import CARDS, card_of


def load(
    name: str,
    *,
    split: str,
    languages: Sequence[str] | None = None,
    data_dir: str | os.PathLike | None = None,
    image_dir: str | os.PathLike | None = None,
    streaming: bool = False,
    cache_dir: str | os.PathLike | None = None,
    **config,
) -> datasets.Dataset | datasets.IterableDataset:
    """One split of a data set, one row per image (see `data_scripts.rows.row_features`).

    Args:
        name: a key of `data_scripts.cards.CARDS`; else a folder or file, or a data set of the Hub.
        split: a split of that data set, such as "train", "validation" or "test".
        languages: the caption languages wanted, in this order; all by default, of coco en alone.
        data_dir: the folder that the data set's annotations were downloaded to.
        image_dir: the folder of its photographs.
        streaming: read rows as they are asked for instead of writing an Arrow cache first: a
            `datasets.IterableDataset` with `shard`, `shuffle` and `state_dict`. Pre-training shards come as
            `data_scripts.shards.ShardRows`, a map-style data set.
        cache_dir: where the Arrow cache goes; the `datasets` library's own folder by default.
        **config: further fields of the data set's config class, such as `seed` of shapes.

    Raises:
        ValueError: an unknown name, split, language or argument, contents that do not fit together, or too
            many bad rows.
        FileNotFoundError: a folder or file that the data set needs is not there.
    """
    builder = make_builder(
        name,
        split=split,
        languages=languages,
        data_dir=data_dir,
        image_dir=image_dir,
        cache_dir=cache_dir,
        streaming=streaming,
        **config,
    )
    if streaming:
        return builder.as_streaming_dataset(split=split)
    try:
        builder.download_and_prepare()
    except datasets.exceptions.DatasetGenerationError as error:
        if isinstance(error.__cause__, ValueError | OSError):
            raise error.__cause__ from None  # a mistake in the data, which the wrapping only hides
        raise
    if not builder.info.splits[split].num_examples:
        raise ValueError(f"{name} has no rows in its split {split}")
    return builder.as_dataset(split=split)


def splits_of(name: str, **options) -> list[str]:
    """Which of train, validation and test a data set has; of a table all that its rows tell, none where they do not.

    Args:
        options: those of `load`, without the split.
    """
    if name in CARDS:
        module, builder_class = _builder_of(name)
        splits = getattr(builder_class.BUILDER_CONFIG_CLASS, "splits", None) or module.SPLITS
        return [split for split in ("train", "validation", "test") if split in splits]
    return make_builder(name, split=None, **options).config.found_splits


def make_builder(
    name: str,
    *,
    split: str | None,
    languages: Sequence[str] | None = None,
    data_dir: str | os.PathLike | None = None,
    image_dir: str | os.PathLike | None = None,
    cache_dir: str | os.PathLike | None = None,
    streaming: bool = False,
    **config,
) -> datasets.GeneratorBasedBuilder:
    """The builder that `load` asks for the rows; arguments and errors as there. A split of None, of a table: all."""
    if name not in CARDS and data_dir is not None:
        raise ValueError(f"{name} is no data set known here, and takes no data_dir; known are {', '.join(CARDS)}")
    if name not in CARDS and not any(letter in name for letter in "/*.") and not os.path.exists(name):
        from data_scripts.cli import did_you_mean  # which imports torch

        raise FileNotFoundError(
            f"there is no data set, file or folder {name!r}; one on the Hub is called OWNER/NAME, known are "
            f"{', '.join(CARDS)}{did_you_mean(name.lower(), [*CARDS, *os.listdir()])}"
        )
    module, builder_class = _builder_of(name)
    data_dir = data_dir if name in CARDS else name

    if languages is not None:
        codes = languages if is_of(languages, Sequence) and all(is_of(code, str) for code in languages) else ()
        if not codes or len(set(codes)) < len(codes):
            raise ValueError(f"{name}: languages is a list of different codes such as ['en', 'de'], not {languages!r}")
        config["languages"] = tuple(languages)
    folders = {"data_dir": data_dir, "image_dir": image_dir, "cache_dir": cache_dir}
    if wrong := [argument for argument, path in folders.items() if not is_of(path, str | os.PathLike | None)]:
        raise ValueError(f"{name}: {wrong[0]} is {folders[wrong[0]]!r}, not the path of a folder")
    config |= {argument: os.fspath(folders[argument]) for argument in ("data_dir", "image_dir") if folders[argument]}
    declared = _declared_fields(builder_class.BUILDER_CONFIG_CLASS)
    if unknown := config.keys() - declared:
        raise ValueError(f"{name} takes no {', '.join(sorted(unknown))}; it takes {', '.join(sorted(declared))}")
    kinds = get_type_hints(builder_class.BUILDER_CONFIG_CLASS)
    for argument, value in config.items():
        if not is_of(value, kinds[argument]):
            kind = getattr(kinds[argument], "__name__", str(kinds[argument]))
            raise ValueError(f"{name}: {argument} is {value!r}, not of the kind {kind}")
    if "streaming" in declared:  # it reads no rows up front
        config["streaming"] = streaming
    if "split" in declared:  # it prepares and checks only the split that is asked for
        config["split"] = split
    elif split not in module.SPLITS:
        from data_scripts.cli import no_split

        raise ValueError(no_split(name, split, module.SPLITS))
    return builder_class(cache_dir=cache_dir, **config)


def options_of(name: str) -> set[str]:
    """The options that a data set takes; of those of `load` the ones that it reads."""
    _, builder_class = _builder_of(name)
    return _declared_fields(builder_class.BUILDER_CONFIG_CLASS)


def _builder_of(name: str) -> tuple[types.ModuleType, type[datasets.GeneratorBasedBuilder]]:
    """The module of a data set, and its builder there."""
    module_name, class_name = card_of(name).builder.split(":")
    module = import_module(module_name)
    return module, getattr(module, class_name)


def merge_options(dataset_config: Mapping[str, Any], **given) -> dict[str, Any]:
    """Arguments of `load` but for the name: those that are given and not None, and the others, a data set's own.

    Raises:
        ValueError: one is in both.
    """
    given = {argument: value for argument, value in given.items() if value is not None}
    if twice := sorted(dataset_config.keys() & {"name", *given}):
        raise ValueError(f"{', '.join(twice)} is given twice, by its own argument and in dataset_config; give it once")
    return given | dict(dataset_config)


def is_of(value: object, kind: Any) -> bool:
    """Whether a value is of a field's type: a class, a union of such, a list of such, or a sequence."""
    if get_origin(kind) in (Union, types.UnionType):
        return any(is_of(value, member) for member in get_args(kind))
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if get_origin(kind) is list:
        return isinstance(value, list) and all(is_of(member, get_args(kind)[0]) for member in value)
    kind = get_origin(kind) or kind
    if isinstance(value, bool | str):  # which Python takes for an int and a sequence
        return kind in (bool, str) and isinstance(value, kind)
    return isinstance(value, int | float if kind is float else kind)


def _declared_fields(config_class: type[datasets.BuilderConfig]) -> set[str]:
    """The fields that a config class declares itself: `BuilderConfig` has a `data_dir` whether it is read or not."""
    own_classes = config_class.__mro__[: config_class.__mro__.index(datasets.BuilderConfig)]
    return {field for own_class in own_classes for field in inspect.get_annotations(own_class)}
