"""Embeddings of earlier batches, which are more negatives than a batch has (as in MoCo, He et al., 2020)."""

import torch
from torch import Tensor

from ccrk.encoding import Embeddings
from objectives_ccrk import Earlier


class EmbeddingQueue:
    """
    The last images that were trained on, of all processes, with their captions: in fp16, and without a gradient. They
    were encoded by the model as it was then, not by a slower copy of it.

    Args:
        size: images that it holds.
    """

    def __init__(self, size: int):
        self.size = size
        self.rows: Earlier | None = None

    @torch.no_grad()
    def push(self, found: Embeddings, inputs: dict[str, Tensor]) -> None:
        """Takes the embeddings of a batch, of all processes, in the place of the oldest."""
        image, text = found.image.half(), found.text.half()
        # What is not finite, of a step that is skipped, counts as missing; of an image with none, nothing is there.
        is_there = inputs["caption_mask"].bool() & image.isfinite().all(dim=-1)[:, None] & text.isfinite().all(dim=-1)
        new = Earlier(image.nan_to_num(0, 0, 0), text.nan_to_num(0, 0, 0), is_there, inputs["image_ids"])
        if self.rows is not None:
            new = Earlier(*(torch.cat(pair) for pair in zip(new, self.rows, strict=True)))
        self.rows = Earlier(*(tensor[: self.size].clone() for tensor in new))
