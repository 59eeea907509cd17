"""Whether the captions of a data set suit what is to be trained: told before training begins."""

import logging

import datasets

from ccrk.arguments import DataArguments
from ccrk.encoders import PairInputs
from data_scripts.captions import is_usable
from data_scripts.files import without_warnings

logger = logging.getLogger(__name__)

LOOKED_AT = 2000  # rows whose captions are measured


def check_captions(data: DataArguments, dataset: datasets.Dataset) -> None:
    """Raises ValueError where 1-to-K is asked for of captions of which each picture has one."""
    if data.captions_per_image != "all":
        return
    languages = list(dataset.features["captions"])
    if len(languages) == 1:
        raise ValueError(
            f"captions_per_image is all, but of one language, {languages[0]}; name several, or leave it out"
        )
    if not any(sum(any(map(is_usable, own)) for own in row.values()) > 1 for row in dataset["captions"]):
        raise ValueError(
            "captions_per_image is all, but no row has captions in two languages; put those of a picture into one "
            "row, name the column that equal pictures share (image_id_column), or leave it out"
        )


def warn_of_long_captions(dataset: datasets.Dataset, inputs: PairInputs) -> None:
    """Says how many captions the model will see the beginning of; of the first LOOKED_AT rows."""
    rows = dataset.select(range(min(LOOKED_AT, len(dataset))))["captions"]
    captions = [caption for row in rows for own in row.values() for caption in own if is_usable(caption)]
    with without_warnings():  # of the tokenizer, one for each
        lengths = [len(tokens) for tokens in inputs.tokenizer(captions)["input_ids"]]
    if too_long := sum(length > inputs.max_length for length in lengths):
        logger.warning(
            "%s of %s captions are longer than the %d tokens that the model takes, and are cut; shorten them",
            f"{too_long:,}",
            f"{len(captions):,}",
            inputs.max_length,
        )
