"""Writes a data set as Parquet files with the images inside, for `datasets.load_dataset(OUT)` or on the Hub.

    python -m data_scripts.export multi30k OUT --data_dir multi30k --image_dir flickr30k-images
    python -m data_scripts.export pretraining OUT --splits train --data_dir shards --config preset=2m
    python -m data_scripts.export shapes OUT --splits train test --config num_train=100 --push_to_hub USER/NAME

Images keep the bytes of their files. Whether data may be passed on is for its publisher to say: Flickr30k's and most
web images may not.
"""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import datasets
import yaml
from datasets.table import embed_table_storage

import data_scripts

ROWS_PER_FILE = 5000  # photographs of 100 kB make half a gigabyte


def export(dataset: datasets.Dataset, split: str, folder: Path) -> list[Path]:
    """Writes one split as `{split}-00000-of-0000N.parquet`, where `datasets.load_dataset(folder)` finds it.

    Raises:
        ValueError: there are files of this split already.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.glob(f"{split}-*.parquet")):
        raise ValueError(f"{folder} holds files of {split} already; remove them or choose another folder")
    count = max(1, -(-len(dataset) // ROWS_PER_FILE))
    files = [folder / f"{split}-{number:05d}-of-{count:05d}.parquet" for number in range(count)]
    for number, file in enumerate(files):
        rows = dataset.shard(count, number, contiguous=True).with_format("arrow")
        rows = rows.map(embed_table_storage, batched=True, batch_size=100, keep_in_memory=True)
        unfinished = file.with_suffix(".unfinished")
        rows.to_parquet(unfinished)
        os.replace(unfinished, file)
    return files


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m data_scripts.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", choices=sorted(data_scripts.BUILDERS), help="data set")
    parser.add_argument("output", type=Path, metavar="OUT", help="folder for the Parquet files")
    parser.add_argument("--data_dir", help="folder of its annotations")
    parser.add_argument("--image_dir", help="folder of its images")
    parser.add_argument("--splits", nargs="+", default=["train", "validation", "test"], help="all three by default")
    parser.add_argument("--languages", nargs="+", help="such as: en de; all by default, of coco en alone")
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
    return arguments


def main(argv: Sequence[str] | None = None) -> None:
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    arguments = parse_arguments(argv)
    config = {name: yaml.safe_load(value) for name, value in (option.split("=", 1) for option in arguments.config)}
    try:
        for split in arguments.splits:
            dataset = data_scripts.load(
                arguments.name,
                split=split,
                languages=arguments.languages,
                data_dir=arguments.data_dir,
                image_dir=arguments.image_dir,
                **config,
            )
            for file in export(dataset, split, arguments.output):
                print(file)
            if arguments.push_to_hub is not None:
                dataset.push_to_hub(arguments.push_to_hub, split=split)
    except datasets.exceptions.DatasetGenerationError as error:
        sys.exit(f"error: {error.__cause__ or error}")  # it wraps what went wrong in words about itself
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
