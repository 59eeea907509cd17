"""What of a data set is on disk: counts of rows, images and captions beside the published ones.

    python -m data_scripts.check multi30k --data_dir multi30k --image_dir flickr30k-images
    python -m data_scripts.check xflickrco --data_dir iglue --image_dir images --splits test --languages de en
    python -m data_scripts.check multi30k --data_dir multi30k --image_dir flickr30k-images --thumbnails 12

Captions that are least like the others of their picture, such as wrong translations, are found by a model:
`python -m ccrk.suspects`.

Every image is decoded. Images in two splits are named. The exit code is 1 where something is missing, bad, left out or
other than published, unless --allow-partial; 2 where nothing could be read.
"""

import argparse
import importlib.util
import logging
import re
import sys
import textwrap
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from unicodedata import east_asian_width

from PIL import Image

import data_scripts
from data_scripts.annotations import EMPTY_CAPTION, AnnotatedImages, Annotation
from data_scripts.cli import log_to_screen, one_line, printable
from data_scripts.files import check_output_folder, written_whole
from data_scripts.images import contents_digest, read_image
from data_scripts.options import DATASETS, add_data_arguments, data_options
from data_scripts.problems import Problems
from data_scripts.table import ANOTHER_ID, NO_CAPTION

logger = logging.getLogger(__name__)

# What is left out without a loss: a choice of languages, and further ids of an image that is there.
NOTHING_LOST = (NO_CAPTION, ANOTHER_ID)
# Sides of a thumbnail in pixels, and characters to a line below it.
THUMBNAIL = 320
LINE = 44

# Settings of matplotlib for texts of others: a `$` is a dollar, and no formula begins.
LITERAL_TEXT = {"text.parse_math": False, "text.usetex": False}


@dataclass
class Report:
    """Counts of one split, each with what was expected where that is known."""

    title: str
    images: dict[str, tuple[int, int | None]]
    captions: dict[str, tuple[int, int | None, int, int]]  # language → here, expected, of them empty, repeated
    problems: list[Problems]
    split: str
    names: dict[str | bytes, str]  # of the images that were found: contents or id → id

    @property
    def is_complete(self) -> bool:
        return not any(_differs(*counts[:2]) for counts in (*self.images.values(), *self.captions.values()))

    def __str__(self) -> str:
        lines = [self.title, f"{'':<18}{'here':>10}{'expected':>12}"]
        for name, counts in self.images.items():
            lines.append(f"{name:<18}" + _columns(*counts))
        lines.append(f"{'captions':<18}{'here':>10}{'expected':>12}{'empty':>10}{'repeated':>10}")
        for language, (here, expected, empty, repeated) in self.captions.items():
            lines.append(f"  {language:<16}" + _columns(here, expected, empty, repeated))
        tables = [problems.table() for problems in self.problems]
        return "\n".join(filter(None, [*lines, *tables]))


def _differs(here: int, expected: int | None) -> bool:
    return expected is not None and here != expected


def _columns(here: int, expected: int | None, *others: int) -> str:
    known = "" if expected is None else f"{expected:,}"
    numbers = f"{here:>10,}{known:>12}" + "".join(f"{other:>10,}" for other in others)
    return (numbers + ("  differs" if _differs(here, expected) else "")).rstrip()


def check(builder: AnnotatedImages) -> tuple[Report, list[tuple[Annotation, str | bytes]]]:
    """Counts one split, and gives the annotations whose images can be read, with those images.

    Images seen twice are files of equal contents; repeated captions are those that an earlier one of the language
    equals.
    """
    annotations, in_files = builder.read_annotations()
    in_images = Problems(f"{builder.config.source} images", max_bad_fraction=1.0, rows=len(annotations))
    found, names, digests = [], {}, set()
    for annotation, image in builder.check_images(annotations, in_images):
        if image is not None:
            found.append((annotation, image))
            digests.add(digest := contents_digest(builder.encoded(image)))
            names |= dict.fromkeys((digest, annotation.image_id), annotation.image_id)
    languages = builder.config.languages
    published = builder.config.published_counts()
    unreadable = sum(count for reason, count in in_files.counts.items() if not reason.startswith(EMPTY_CAPTION))
    left_out = sum(count for reason, count in in_files.absences.items() if reason not in NOTHING_LOST)
    images = {
        "rows": (len(annotations), published.get("rows")),
        "images found": (len(found), len(annotations)),
        "images missing": (in_images.absences.total(), 0),
        "images bad": (in_images.counts.total(), 0),
        "images seen twice": (len(found) - len(digests), None),
        "entries unreadable": (unreadable, 0),
        "entries left out": (left_out, 0),
    }
    captions = {}
    for language in languages:
        texts = [caption for annotation in annotations for caption in annotation.captions[language]]
        empty = in_files.counts[f"{EMPTY_CAPTION} in {language}"]
        expected = published.get(f"captions {language}")
        captions[language] = (len(texts) + empty, expected, empty, len(texts) - len(set(texts)))
    title = f"{builder.config.source} ({' '.join(languages)})"
    return Report(title, images, captions, [in_files, in_images], builder.config.split, names), found


def in_two_splits(reports: Sequence[Report]) -> list[str]:
    """A line for each two splits with images in common, by contents or id."""
    lines = []
    for number, one in enumerate(reports):
        for other in (report for report in reports[number + 1 :] if report.split != one.split):
            if both := {one.names[key]: other.names[key] for key in one.names.keys() & other.names.keys()}:
                name = min(both)
                lines.append(
                    f"{len(both):,} images of {one.split} are in {other.split} as well, such as {name} and "
                    f"{both[name]}; remove them from one"
                )
    return lines


def draw_contact_sheet(pictures: Sequence[tuple[Image.Image, str, dict[str, list[str]]]], path: Path) -> None:
    """A PNG of pictures, each with its name and its captions in every language below it.

    Args:
        pictures: picture, name, and for each language the captions.
        path: file to write.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib import font_manager

    # Each character is drawn in the first font that has it; letters that none has are counted.
    installed = {font.name for font in font_manager.fontManager.ttflist}
    fonts = ["DejaVu Sans", *sorted(name for name in installed if re.search("CJK|Gothic|Hei|Nanum|Arabic", name))]

    texts = []
    for _, name, captions in pictures:
        lines = [one_line(name)[-LINE:]]
        for language, of_language in captions.items():
            for caption in map(one_line, of_language):
                is_wide = any(east_asian_width(character) == "W" for character in caption)
                width = LINE // 2 + 3 if is_wide else LINE  # Chinese letters take the room of two
                lines += textwrap.wrap(caption, width, initial_indent=f"{language}  ", subsequent_indent="      ")
        texts.append("\n".join(lines))
    columns = min(4, len(pictures))
    rows = -(-len(pictures) // columns)
    text_height = 0.17 * max(text.count("\n") + 1 for text in texts)  # inches at 8 points
    with plt.rc_context({"font.family": fonts} | LITERAL_TEXT):
        figure, axes = plt.subplots(
            rows, columns, squeeze=False, figsize=(3.6 * columns, (2.8 + text_height) * rows), dpi=110
        )
        for axis in axes.flat:
            axis.axis("off")
        for axis, (picture, _, _), text in zip(axes.flat, pictures, texts, strict=False):
            axis.imshow(picture)
            axis.set_anchor("SW")
            axis.text(0, -0.03, text, transform=axis.transAxes, va="top", fontsize=8, linespacing=1.4)
        total = 2.8 + text_height
        figure.subplots_adjust(
            left=0.01, right=0.99, top=1 - 0.1 / (rows * total), bottom=text_height / (rows * total),
            wspace=0.08, hspace=text_height / 2.7,
        )  # fmt: skip
        with written_whole(path) as unfinished, warnings.catch_warnings(record=True) as caught:
            figure.savefig(unfinished, format="png")
        plt.close(figure)
    if lacking := {str(warning.message) for warning in caught if "missing from" in str(warning.message)}:
        logger.error("%d letters are drawn as boxes: no font installed here has them", len(lacking))


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m data_scripts.check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", help=f"{', '.join(data_scripts.CARDS)}; {DATASETS}")
    add_data_arguments(parser)
    parser.add_argument("--splits", nargs="+", help="all by default")
    parser.add_argument("--few_shot", help="LANGUAGE,SHOTS such as de,100: the train split of xflickrco")
    parser.add_argument("--task", type=int, help="of multi30k: 1 (default) or 2")
    parser.add_argument("--allow-partial", "--allow_partial", action="store_true", help="differences are no failure")
    parser.add_argument("--thumbnails", type=int, metavar="N", help="draw N rows of the first split with any")
    parser.add_argument("--output", type=Path, default=Path("contact_sheet.png"), help="where to draw them")
    return parser.parse_args(argv)


def _splits(arguments: argparse.Namespace) -> list[str]:
    if "few_shot" in arguments.dataset_config or arguments.few_shot:
        return ["train"]
    options = data_scripts.merge_options(arguments.dataset_config, **data_options(arguments), max_bad_fraction=1.0)
    return arguments.splits or data_scripts.splits_of(arguments.name, **options) or ["train"]


def _builders(arguments: argparse.Namespace, split: str) -> list[AnnotatedImages]:
    """The builder of a split; one for each language where languages have images of their own."""
    options = data_scripts.merge_options(
        arguments.dataset_config,
        split=split,
        **data_options(arguments),
        max_bad_fraction=1.0,  # all of it is to be seen
        few_shot=arguments.few_shot,
        task=arguments.task,
    )

    def make(languages: Sequence[str] | None) -> AnnotatedImages:
        return data_scripts.make_builder(arguments.name, **options | {"languages": languages})

    builder = make(options.get("languages"))
    if not isinstance(builder, AnnotatedImages):
        raise ValueError(f"{arguments.name} has no files to check: its rows are counted at every load")
    if not builder.config.languages_apart:
        return [builder]
    return [make([language]) for language in builder.config.languages]


def _check_sheet(path: Path) -> None:
    """Raises before the counting what would come up after it."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError("--thumbnails needs the package matplotlib; install it with pip install matplotlib")
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name a file with --output")
    check_output_folder(path.absolute().parent)


def main(argv: Sequence[str] | None = None) -> int:
    log_to_screen(logging.ERROR)  # what is wrong is in the tables
    arguments = parse_arguments(argv)
    complete, sheet, unused = True, None, {}
    try:
        if arguments.thumbnails:
            _check_sheet(arguments.output)
        reports = []
        for split in _splits(arguments):
            for builder in _builders(arguments, split):
                report, found = check(builder)
                reports.append(report)
                print(printable(report), end="\n\n", flush=True)
                complete &= report.is_complete
                unused |= dict.fromkeys(getattr(builder.config, "unused_columns", ()))
                if sheet is None and found:
                    sheet = (builder, found)
        for line in in_two_splits(reports):
            print(printable(line))
        if unused:
            print(printable(f"columns not used: {', '.join(unused)}"))
        if arguments.thumbnails and sheet is None:
            print("no row has an image to draw")
        elif arguments.thumbnails:
            builder, found = sheet
            chosen = found[:: max(1, len(found) // arguments.thumbnails)][: arguments.thumbnails]
            draw_contact_sheet(
                [
                    (read_image(builder.encoded(image), THUMBNAIL), annotation.image_id, annotation.captions)
                    for annotation, image in chosen
                ],
                arguments.output,
            )
            print(f"{len(chosen)} rows drawn in {arguments.output}")
    except (ValueError, OSError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    return 0 if complete or arguments.allow_partial else 1


if __name__ == "__main__":
    sys.exit(main())
