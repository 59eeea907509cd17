"""Writes a data set as Parquet files with the images inside, for `datasets.load_dataset(OUT)` or on the Hub.

    python -m data_scripts.export multi30k OUT --data_dir multi30k --image_dir flickr30k-images
    python -m data_scripts.export pretraining OUT --splits train --data_dir shards --config preset=2m
    python -m data_scripts.export shapes OUT --splits train test --config num_train=100 --push_to_hub USER/NAME

Images keep the bytes of their files. Whether data may be passed on is for its publisher to say: Flickr30k's and most
web images may not.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
from datasets.table import embed_table_storage

import data_scripts
from data_scripts.cli import log_to_screen, one_line_errors
from data_scripts.files import check_output_folder, written_whole
from data_scripts.options import DATASETS, add_data_arguments, data_options

ROWS_PER_FILE = 5000  # photographs of 100 kB make half a gigabyte


def check_output(folder: Path, splits: Sequence[str]) -> None:
    """
    Raises:
        ValueError: there are files of one of the splits already.
        OSError: nothing can be written to the folder.
    """
    check_output_folder(folder)
    for split in splits:
        if any(folder.glob(f"{split}-*.parquet")):
            raise ValueError(f"{folder} holds files of {split} already; remove them or choose another folder")


def export(dataset: datasets.Dataset, split: str, folder: Path) -> list[Path]:
    """Writes one split as `{split}-00000-of-0000N.parquet`, where `datasets.load_dataset(folder)` finds it.

    Raises:
        ValueError: there are files of this split already.
        OSError: a file cannot be written.
    """
    check_output(folder, [split])
    count = max(1, -(-len(dataset) // ROWS_PER_FILE))
    files = [folder / f"{split}-{number:05d}-of-{count:05d}.parquet" for number in range(count)]
    for number, file in enumerate(files):
        rows = dataset.shard(count, number, contiguous=True).with_format("arrow")
        rows = rows.map(embed_table_storage, batched=True, batch_size=100, keep_in_memory=True)
        with written_whole(file) as unfinished:
            rows.to_parquet(unfinished)
    return files


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m data_scripts.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", help=f"{', '.join(data_scripts.CARDS)}; {DATASETS}")
    parser.add_argument("output", type=Path, metavar="OUT", help="folder for the Parquet files")
    add_data_arguments(parser)
    parser.add_argument("--splits", nargs="+", default=["train", "validation", "test"], help="all three by default")
    parser.add_argument(
        "--config",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="further options of the data set, such as preset=2m",
    )
    parser.add_argument("--push_to_hub", metavar="REPO", help="upload to this data set repository as well")
    arguments = parser.parse_args(argv)
    if wrong := [option for option in arguments.config if "=" not in option]:
        parser.error(f"--config takes NAME=VALUE, not {' '.join(wrong)}")
    named = (option.split("=", 1) for option in arguments.config)
    arguments.dataset_config = {name: _value(text) for name, text in named} | arguments.dataset_config
    return arguments


def _value(text: str) -> Any:
    """A number, `true`, `null`, a JSON object or list; or else the text itself."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def main(argv: Sequence[str] | None = None) -> None:
    log_to_screen()
    arguments = parse_arguments(argv)

    def options(split: str) -> dict[str, Any]:
        return data_scripts.merge_options(
            arguments.dataset_config,
            split=split,
            **data_options(arguments),
        )

    with one_line_errors():
        for split in arguments.splits:  # a mistake in the arguments of the last comes up before the first is written
            data_scripts.make_builder(arguments.name, **options(split))
        check_output(arguments.output, arguments.splits)
        for split in arguments.splits:
            dataset = data_scripts.load(arguments.name, **options(split))
            for file in export(dataset, split, arguments.output):
                print(file)
            if arguments.push_to_hub is not None:
                dataset.push_to_hub(arguments.push_to_hub, split=split)


if __name__ == "__main__":
    main()
