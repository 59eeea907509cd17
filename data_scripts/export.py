"""Writes a data set as files with the images inside, which `--dataset OUT` and `datasets.load_dataset(OUT)` read back.

    python -m data_scripts.export photos OUT
    python -m data_scripts.export photos OUT --format tar
    python -m data_scripts.export multi30k OUT --data_dir multi30k --image_dir flickr30k-images
    python -m data_scripts.export pretraining OUT --splits train --data_dir shards --config preset=2m
    python -m data_scripts.export shapes OUT --splits train test --config num_train=100 --push_to_hub USER/NAME

Images keep the bytes of their files. In tars all have one ending, which is `.jpg` where theirs differ. `datasets`
makes a column of each ending, and decodes by the bytes. OUT/README.md tells it the columns of tars.

Whether data may be passed on is for its publisher to say: Flickr30k's and most web images may not.
"""

import argparse
import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
from datasets.info import DatasetInfosDict
from datasets.table import embed_table_storage

import data_scripts
from data_scripts.cli import log_to_screen, one_line_errors
from data_scripts.files import check_output_folder, written_whole
from data_scripts.formats import PICTURES
from data_scripts.options import DATASETS, add_data_arguments, data_options

ROWS_PER_FILE = 5000  # photographs of 100 kB make half a gigabyte
WITHOUT_SPLIT = "data"  # in place of a split in the files' names, where the rows tell none


def check_output(folder: Path, splits: Sequence[str]) -> None:
    """
    Raises:
        ValueError: there are files of one of the splits already.
        OSError: nothing can be written to the folder.
    """
    check_output_folder(folder)
    for split in splits:
        if any(folder.glob(f"{split}-*-of-*")):
            raise ValueError(f"{folder} holds files of {split} already; remove them or choose another folder")


def export(dataset: datasets.Dataset, split: str, folder: Path, format: str = "parquet") -> list[Path]:
    """Writes one split as `{split}-00000-of-0000N.parquet` or `.tar`, where `datasets.load_dataset(folder)` finds it.

    Raises:
        ValueError: there are files of this split already.
        OSError: a file cannot be written.
    """
    check_output(folder, [split])
    options = {"ending": image_ending(dataset, folder)} if format == "tar" else {}
    count = max(1, -(-len(dataset) // ROWS_PER_FILE))
    files = [folder / f"{split}-{number:05d}-of-{count:05d}.{format}" for number in range(count)]
    for number, file in enumerate(files):
        rows = dataset.shard(count, number, contiguous=True)
        with written_whole(file) as unfinished:
            FORMATS[format](rows, unfinished, **options)
    if format == "tar":
        _write_tar_features(dataset.features, folder, **options)
    return files


def _write_parquet(rows: datasets.Dataset, path: Path) -> None:
    rows = rows.with_format("arrow").map(embed_table_storage, batched=True, batch_size=100, keep_in_memory=True)
    rows.to_parquet(path)


def _write_tar(rows: datasets.Dataset, path: Path, ending: str) -> None:
    """WebDataset: of each row its picture, where it has one, and all else as JSON."""
    with tarfile.open(path, "w") as archive:
        for number, row in enumerate(rows.cast_column("image", datasets.Image(decode=False))):
            image = row.pop("image")
            parts = {f"{number:08d}.json": json.dumps(row, ensure_ascii=False).encode()}
            if image is not None:
                parts = {f"{number:08d}.{ending}": image["bytes"] or Path(image["path"]).read_bytes()} | parts
            for name, contents in parts.items():
                member = tarfile.TarInfo(name)
                member.size = len(contents)
                archive.addfile(member, io.BytesIO(contents))


def image_ending(rows: datasets.Dataset, folder: Path) -> str:
    """How images are called in tars: as in the folder already, or by the one ending that they have, or `jpg`."""
    told = DatasetInfosDict.from_directory(folder).get("default")
    for name, feature in ((told and told.features) or {}).items():
        if isinstance(feature, datasets.Image):
            return name
    images = rows.select_columns(["image"]).cast_column("image", datasets.Image(decode=False))
    endings = {_ending(row["image"]) for row in images if row["image"] is not None}
    return endings.pop() if len(endings) == 1 else "jpg"


def _ending(image: dict) -> str:
    ending = Path(image["path"] or "").suffix.lower()
    if ending in PICTURES:
        return ending.removeprefix(".").replace("jpeg", "jpg")
    return "png" if (image["bytes"] or b"").startswith(b"\x89PNG") else "jpg"


def _write_tar_features(features: datasets.Features, folder: Path, ending: str) -> None:
    """The columns of tars, in README.md: `datasets` takes them from five rows, which may all lack some language."""
    in_json = {name: feature for name, feature in features.items() if name != "image"}
    keys = {name: datasets.Value("string") for name in ("__key__", "__url__")}
    columns = datasets.Features({ending: datasets.Image(), "json": in_json, **keys})
    DatasetInfosDict({"default": datasets.DatasetInfo(features=columns)}).write_to_directory(folder)


FORMATS = {"parquet": _write_parquet, "tar": _write_tar}


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m data_scripts.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", help=f"{', '.join(data_scripts.CARDS)}; {DATASETS}")
    parser.add_argument("output", type=Path, metavar="OUT", help="folder for the files")
    add_data_arguments(parser)
    parser.add_argument("--format", choices=FORMATS, default="parquet", help="tar: WebDataset; parquet by default")
    parser.add_argument("--splits", nargs="+", help="all by default")
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

    def options(**given) -> dict[str, Any]:
        return data_scripts.merge_options(arguments.dataset_config, **data_options(arguments), **given)

    with one_line_errors():
        # Where the rows tell no split all are read as train, and written so that they tell none again.
        splits = arguments.splits or data_scripts.splits_of(arguments.name, **options())
        named = {split: split for split in splits} or {"train": WITHOUT_SPLIT}
        for split in named:  # a mistake in the arguments of the last comes up before the first is written
            data_scripts.make_builder(arguments.name, **options(split=split))
        check_output(arguments.output, list(named.values()))
        for split, name in named.items():
            dataset = data_scripts.load(arguments.name, **options(split=split))
            for file in export(dataset, name, arguments.output, arguments.format):
                print(file)
            if arguments.push_to_hub is not None:
                dataset.push_to_hub(arguments.push_to_hub, split=split)


if __name__ == "__main__":
    main()
