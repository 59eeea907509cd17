"""Whether the captions of a data set suit what is to be trained: told before training begins."""

import logging

import datasets

from ccrk.arguments import DataArguments
from ccrk.encoders import Encoder
from ccrk.retrieval.notes import cut_note
from ccrk.training.arguments import CCRKTrainingArguments
from data_scripts.captions import is_usable

logger = logging.getLogger(__name__)

LOOKED_AT = 2000  # rows whose captions are measured


def check_captions(data: DataArguments, dataset: datasets.Dataset) -> None:
    """
    Before 1-to-K: a warning where each picture has captions in one language alone.

    Raises:
        ValueError: the same, where captions_per_image or agreement_languages ask for several.
    """
    languages = list(dataset.features["captions"])
    if len(languages) == 1:
        found, cure = f"there is one language, {languages[0]}", "name several"
    elif not any(sum(any(map(is_usable, own)) for own in row.values()) > 1 for row in dataset["captions"]):
        found = "no row has captions in two languages"
        cure = "put those of a picture into one row, or name the column that equal pictures share (image_id_column)"
    else:
        return
    for name, is_set in (
        ("captions_per_image is all", data.captions_per_image == "all"),
        ("agreement_languages are given", data.agreement_languages is not None),
    ):
        if is_set:
            raise ValueError(f"{name}, but {found}; {cure}, or leave {name.split()[0]} out")
    logger.warning("%s: a picture is trained with one caption, which is no 1-to-K; %s", found, cure)


def check_agreement(data: DataArguments, arguments: CCRKTrainingArguments, one_language: bool) -> None:
    """Raises ValueError where no captions would agree, or some were there for nothing."""
    if data.agreement_languages is None:
        if one_language and arguments.agreement_weight:
            raise ValueError("agreement_weight needs captions in several languages; set captions_per_image to all")
        return
    beside = data.agreement_languages
    if not beside or len(set(beside)) < len(beside):
        raise ValueError(f"agreement_languages is a list of different codes such as ['de', 'fr'], not {beside!r}")
    if not arguments.agreement_weight:
        raise ValueError("agreement_languages take part in agreement alone; set agreement_weight, or leave them out")
    if not data.languages:
        raise ValueError("agreement_languages stand beside those that are trained as ever; name these by languages")
    if twice := sorted(set(data.languages) & set(beside)):
        raise ValueError(f"{twice[0]} is among languages and agreement_languages; remove it from one of them")
    if one_language or data.rows == "captions":
        name = "captions_per_image is one" if one_language else "rows is captions"
        raise ValueError(f"{name}, but agreement_languages take all captions of a picture at once; remove one of them")


def warn_of_long_captions(dataset: datasets.Dataset, encoder: Encoder) -> None:
    """Says how many captions of each language the model reads the beginning of; of the first LOOKED_AT rows."""
    rows = dataset.select(range(min(LOOKED_AT, len(dataset))))["captions"]
    captions = {
        language: [caption for row in rows for caption in row[language] if is_usable(caption)]
        for language in dataset.features["captions"]
    }
    cut = {language: sum(encoder.are_cut(own)) for language, own in captions.items() if own}
    if note := cut_note(cut, {language: len(own) for language, own in captions.items()}):
        logger.warning(note)
