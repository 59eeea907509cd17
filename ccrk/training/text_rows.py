"""Rows of captions without a picture, which take part in agreement alone."""

import logging

import datasets

import data_scripts
from ccrk.arguments import DataArguments
from ccrk.encoders import CCRKEncoder, Encoder
from ccrk.training.arguments import CCRKTrainingArguments

logger = logging.getLogger(__name__)


def check_text_rows(data: DataArguments, arguments: CCRKTrainingArguments, kind: type[Encoder]) -> None:
    """Raises ValueError where rows without a picture could take part in nothing."""
    if not arguments.agreement_weight:
        raise ValueError("text_only_rows take part in agreement alone; set agreement_weight, or leave them out")
    if kind is CCRKEncoder:
        raise ValueError("text_only_rows applies only to dual encoders; remove it")
    if "text_only" not in data_scripts.options_of(data.dataset):
        raise ValueError(f"text_only_rows needs annotations of photographs, and {data.dataset} has none; remove it")
    if data.streaming:
        raise ValueError("text_only_rows takes rows that are all known before; remove streaming")
    if arguments.contrastive_chunk_size is not None:
        raise ValueError("text_only_rows and contrastive_chunk_size do not go together; remove one of them")


def text_rows(rows: datasets.Dataset) -> datasets.Dataset:
    """Without the column of pictures, which is empty; says how many there are."""
    logger.info("%s rows without a picture, with captions in two languages or more, take part in agreement", len(rows))
    return rows.remove_columns("image")
