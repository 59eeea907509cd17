"""Captions that are least like the others of their picture: mistranslations, captions of another picture.

    python -m ccrk.suspects multi30k --data_dir multi30k --image_dir flickr30k-images --model M --output_dir suspects

M is a model that knows the languages: one that was trained on these captions will do, errors and all. The output
folder gets `suspects.csv`, the least alike first, and with matplotlib `suspects.png`, the first of them with their
pictures. Captions that equal one of another language, such as untranslated copies, are the end of `suspects.csv`;
`copy_of` names that language. Which captions are wrong is for a reader to say.
"""

import argparse
import importlib.util
import logging
from collections.abc import Sequence
from pathlib import Path

import datasets
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

import data_scripts
from ccrk.encoders import load_encoder
from ccrk.retrieval.evaluate import encode_captions
from ccrk.retrieval.instances import usable_captions
from data_scripts.check import THUMBNAIL, draw_contact_sheet
from data_scripts.cli import one_line_errors, printable, set_up_logging
from data_scripts.files import check_output_folder
from data_scripts.images import BadImage, read_image
from data_scripts.options import DATASETS, add_data_arguments, data_options
from data_scripts.spreadsheets import write_csv
from processing_ccrk import normalize_caption

logger = logging.getLogger(__name__)

# Of a caption's likeness to the others, in the mean that it is held against: wrong ones hardly count there.
SHARPNESS = 4


def likeness(embeds: Tensor, rows: Tensor) -> Tensor:
    """
    Cosine of each caption to the mean of the others of its row, in which each counts by its own cosine to the others,
    to the power of `SHARPNESS`.

    Args:
        embeds: (N, P), L2-normalised.
        rows: (N,), from 0.

    Returns: (N,), NaN for a caption that is alone in its row.
    """

    def others(weighted: Tensor) -> Tensor:
        total = weighted.new_zeros(int(rows.max()) + 1, weighted.shape[1]).index_add(0, rows, weighted)
        return F.normalize(total[rows] - weighted, dim=1)

    trust = (embeds * others(embeds)).sum(dim=1, keepdim=True).clamp(min=0) ** SHARPNESS
    found = (embeds * others(trust * embeds)).sum(dim=1)
    return found.masked_fill(rows.bincount()[rows] < 2, torch.nan)


def find_suspects(dataset: datasets.Dataset, model: str, bf16: bool = False) -> tuple[list[dict], dict[str, float]]:
    """
    The captions that have others beside them in their row: `likeness`, `language`, `image_id`, `caption`, `row`,
    `other`, the one of the others that counts most, and `copy_of`, an earlier language with an equal caption in this
    row. The least alike come first, copies last. And the mean likeness of each language.

    Raises:
        ValueError: no row has two usable captions, or the model cannot be opened.
    """
    encoder = load_encoder(model, 0, bf16)
    embeds, captions = [], []
    for language in dataset.features["captions"]:
        found = usable_captions(dataset, language)
        embeds.append(encode_captions(encoder, found.texts, language).embeds)
        captions += [(language, text, row) for text, row in zip(found.texts, found.rows.tolist(), strict=True)]
    rows = torch.tensor([row for *_, row in captions])
    alike = likeness(torch.cat(embeds), rows).numpy()
    first: dict[tuple[int, str], str] = {}  # language of the first caption of each row that reads so
    copies = [first.setdefault((row, _folded(text)), language) for language, text, row in captions]
    best: dict[int, list[int]] = {}  # of each row
    for place in np.argsort(-alike, kind="stable").tolist():
        best.setdefault(captions[place][2], []).append(place)
    ids, suspects = dataset["image_id"][:], []
    for place in np.argsort(alike, kind="stable")[: int((~np.isnan(alike)).sum())].tolist():  # NaN comes last
        language, text, row = captions[place]
        other = next(other for other in best[row] if other != place)
        suspects.append(
            {
                "likeness": round(float(alike[place]), 4),
                "language": language,
                "image_id": ids[row],
                "caption": text,
                "other": captions[other][1],
                "copy_of": "" if copies[place] == language else copies[place],
                "row": row,
            }
        )
    suspects.sort(key=lambda suspect: suspect["copy_of"] != "")
    if not suspects:
        raise ValueError("no row has two captions to compare; give --languages of which a picture has several")
    means = {
        language: float(np.mean([suspect["likeness"] for suspect in suspects if suspect["language"] == language]))
        for language in dict.fromkeys(suspect["language"] for suspect in suspects)
    }
    return suspects, means


def _folded(text: str) -> str:
    """A form that is equal for captions which differ in case, white space and punctuation alone."""
    return normalize_caption(text, max_words=len(text))


def draw(suspects: Sequence[dict], dataset: datasets.Dataset, path: Path) -> None:
    """A contact sheet of suspects, each with its caption and the other that it is least unlike."""
    images = dataset.select_columns(["image"]).cast_column("image", datasets.Image(decode=False))
    pictures = []
    for suspect in suspects:
        try:
            picture = read_image(images[suspect["row"]]["image"], THUMBNAIL)
        except BadImage as error:
            logger.warning("%s is not drawn: %s", suspect["image_id"], error)
            continue
        captions = {f"{suspect['language']}?": [suspect["caption"]], "other": [suspect["other"]]}
        pictures.append((picture, f"{suspect['likeness']:.2f}  {suspect['image_id']}", captions))
    if pictures:
        draw_contact_sheet(pictures, path)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m ccrk.suspects", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset", help=f"{', '.join(data_scripts.CARDS)}; {DATASETS}")
    add_data_arguments(parser)
    parser.add_argument("--split", default="train", help="default: train")
    parser.add_argument("--model", required=True, help="folder or Hub id of CCRK or a dual encoder")
    parser.add_argument("--bf16", action="store_true", help="weights of the model in bf16")
    parser.add_argument("--thumbnails", type=int, default=24, metavar="N", help="draw the first N (default: 24)")
    parser.add_argument("--output_dir", required=True, type=Path)
    arguments = parser.parse_args(argv)
    set_up_logging()
    with one_line_errors():
        check_output_folder(arguments.output_dir)
        options = data_scripts.merge_options(
            arguments.dataset_config, split=arguments.split, **data_options(arguments), streaming=False
        )
        dataset = data_scripts.load(arguments.dataset, **options)
        suspects, means = find_suspects(dataset, arguments.model, arguments.bf16)
        path = arguments.output_dir / "suspects.csv"
        write_csv(path, [name for name in suspects[0] if name != "row"], suspects)
        if arguments.thumbnails > 0 and importlib.util.find_spec("matplotlib"):
            draw(suspects[: arguments.thumbnails], dataset, arguments.output_dir / "suspects.png")
    print(printable(f"{'language':<10}{'mean likeness':>14}{'of the first 5 %':>18}{'copies':>10}"))
    first = [suspect["language"] for suspect in suspects[: max(1, len(suspects) // 20)]]
    copies = [suspect["language"] for suspect in suspects if suspect["copy_of"]]
    for language, mean in means.items():
        counts = f"{first.count(language):>18,}{copies.count(language):>10,}"
        print(printable(f"{language:<10}{mean:>14.3f}{counts}"))
    print(printable(f"{len(suspects):,} captions, the least alike first, in {path}"))


if __name__ == "__main__":
    main()
