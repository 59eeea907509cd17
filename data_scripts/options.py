"""What every command line that reads a data set takes, and how it becomes arguments of `data_scripts.load`."""

import argparse
from collections.abc import Sequence
from typing import Any

from data_scripts.text import json_object

DATASETS = "a folder of pictures with metadata, a table, tars, or a data set on the Hub"


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that say what a data set is read from, beside its name and split."""
    parser.add_argument("--data_dir", help="folder of its annotations")
    parser.add_argument("--image_dir", help="folder of its photographs")
    parser.add_argument("--languages", nargs="+", help="such as: en de; all by default, of coco en alone")
    parser.add_argument("--caption_columns", nargs="+", metavar="LANGUAGE=COLUMN[,COLUMN]", help="columns of a table")
    parser.add_argument("--image_column", metavar="COLUMN", help="of its pictures: paths, bytes or base64")
    parser.add_argument("--image_id_column", metavar="COLUMN", help="of a name that equal pictures share")
    parser.add_argument("--validation_fraction", type=float, metavar="F", help="share of its training pictures")
    parser.add_argument(
        "--dataset_config", type=json_object, default={}, metavar="JSON", help="further options: '{\"task\": 2}'"
    )


def data_options(arguments: Any) -> dict[str, Any]:
    """The options of `load` that are given; `arguments` has them as attributes.

    Raises:
        ValueError: as `parse_caption_columns` does.
    """
    names = ("data_dir", "image_dir", "languages", "image_column", "image_id_column", "validation_fraction")
    options = {name: value for name in names if (value := getattr(arguments, name)) is not None}
    if arguments.caption_columns:
        options["caption_columns"] = parse_caption_columns(arguments.caption_columns)
    return options


def parse_caption_columns(entries: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """`["de=COL1,COL2", …]` as language → names of columns. Raises ValueError where it is not that."""
    if wrong := [entry for entry in entries if not all(entry.partition("="))]:
        raise ValueError(f"caption_columns takes LANGUAGE=COLUMN such as de=caption_de, not {wrong[0]!r}")
    return {language: tuple(names.split(",")) for language, names in (entry.split("=", 1) for entry in entries)}
