"""Hard negatives: pictures that the model takes for one another, mined by its own embeddings, share a batch."""

import logging
from collections.abc import Iterator, Sequence

import datasets
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler

from ccrk.encoders import CCRKEncoder, Encoder, input_size
from ccrk.processes import Share, progress
from ccrk.training.trainer import CCRKTrainer
from data_scripts.captions import is_usable
from data_scripts.images import BadImage, read_image
from data_scripts.problems import Problems

logger = logging.getLogger(__name__)

IMAGES_PER_BLOCK = 64  # encoded at a time
ROWS_PER_BLOCK = 1024  # of similarities that are held: 4 kB for each row and thousand of rows
# For each negative that is asked for: rows that come late in an epoch find the first ones taken.
CANDIDATES = 4
SAME_PICTURE = 1e-5  # how far from 1 the cosine of a picture and a copy of it may be


def mine_hard_negatives(
    encoder: Encoder, rows: datasets.Dataset, number: int, problems: Problems, share: Share = Share()
) -> np.ndarray:
    """
    For each row the most similar others by the embeddings of their pictures, nearest first.

    False negatives are left out: rows of the same `image_id`, copies of the picture under another name, and rows that
    share a caption in a language, but for case, punctuation and spaces. A paraphrase is not seen.

    Args:
        encoder: its model in evaluation mode.
        rows: of `data_scripts.rows`, with undecoded pictures.
        number: negatives that a batch is to have for a row; `CANDIDATES` times as many are found.
        problems: counts pictures that cannot be read; their rows neither have nor are negatives.
        share: of the encoding; every process that takes part must call.

    Returns: (rows, number x CANDIDATES) indices of rows, -1 behind the last.
    """
    embeds = _embed(encoder, rows, problems, share)
    found = np.full((len(rows), min(CANDIDATES * number, len(rows) - 1)), -1)
    ids, captions = rows["image_id"][:], [_keys(of_row) for of_row in rows["captions"]]
    for start in progress(range(0, len(rows), ROWS_PER_BLOCK), "mining hard negatives"):
        similarity = embeds[start : start + ROWS_PER_BLOCK] @ embeds.T
        # Copies, each itself among them, and what could not be read.
        similarity[(similarity > 1 - SAME_PICTURE) | similarity.isnan()] = -torch.inf
        # As many again, for some are false.
        best = similarity.topk(min(2 * found.shape[1] + 8, len(rows)), dim=1)
        for row, (values, others) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True), start):
            true = [
                other
                for value, other in zip(values, others, strict=True)
                if value > -torch.inf and ids[other] != ids[row] and captions[other].isdisjoint(captions[row])
            ][: found.shape[1]]
            found[row, : len(true)] = true
    return found


def _embed(encoder: Encoder, rows: datasets.Dataset, problems: Problems, share: Share) -> Tensor:
    """(rows, P) in fp32 on the CPU, NaN where a picture cannot be read."""
    size = input_size(encoder.inputs.image_processor)
    blocks, bad = {}, {}
    for start in progress(share.of(range(0, len(rows), IMAGES_PER_BLOCK)), "encoding training images"):
        block = rows[start : start + IMAGES_PER_BLOCK]
        images = {}
        for place, (image, image_id) in enumerate(zip(block["image"], block["image_id"], strict=True)):
            try:
                images[place] = read_image(image, size)
            except BadImage as error:
                bad[start + place] = error, f"image_id {image_id}"
        blocks[start] = torch.full((len(block["image"]), 0), torch.nan)
        if images:
            embeds = encoder.encode_images(list(images.values()))["embeds"].float().cpu()
            blocks[start] = torch.full((len(block["image"]), embeds.shape[1]), torch.nan)
            blocks[start][list(images)] = embeds
    problems.rows += len(rows)
    for error, where in share.gather(bad).values():
        problems.add_image(error, where)
    problems.check()
    blocks = share.gather(blocks)
    width = max(block.shape[1] for block in blocks.values())
    return torch.cat([b if b.shape[1] else torch.full((len(b), width), torch.nan) for b in blocks.values()])


def _keys(captions: dict[str, Sequence[str | None]]) -> set[tuple[str, str]]:
    """What near-equal captions of a language have in common: letters and digits, whatever their case."""
    return {
        (language, "".join(filter(str.isalnum, caption.casefold())))
        for language, texts in captions.items()
        for caption in texts
        if is_usable(caption)
    }


class HardNegativeSampler(Sampler[int]):
    """
    Every row once an epoch, in groups that lie side by side: a row, and the nearest of its negatives that no group has
    yet. Batches are cut from that order, so a group is torn apart only where a batch ends within it.

    The order follows from the seed and the epoch: all processes have the same, and so has a run that goes on.

    Args:
        negatives: see `mine_hard_negatives`.
        number: of them in a group.
    """

    def __init__(self, negatives: np.ndarray, number: int, seed: int):
        self.negatives, self.number, self.seed, self.epoch = negatives, number, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.negatives)

    def __iter__(self) -> Iterator[int]:
        generator = np.random.default_rng((self.seed, self.epoch))
        is_free = np.ones(len(self), dtype=bool)
        groups = []
        for row in generator.permutation(len(self)):
            if is_free[row]:
                is_free[row] = False
                others = self.negatives[row][self.negatives[row] >= 0]
                others = others[is_free[others]][: self.number]
                is_free[others] = False
                groups.append([int(row), *others.tolist()])
        generator.shuffle(groups)  # those that came late are small
        return (row for group in groups for row in group)


def hard_negative_sampler(trainer: CCRKTrainer, number: int) -> HardNegativeSampler:
    """
    The order of rows in which each meets `number` hard negatives, mined by the model as it is.

    Raises:
        ValueError: they have no place in such a model's batches, or there are none.
    """
    arguments, rows = trainer.args, trainer.train_dataset
    if isinstance(trainer.encoder, CCRKEncoder):
        raise ValueError(
            "hard_negatives applies only to dual encoders: CCRK draws those of its matching loss; remove it"
        )
    if not isinstance(rows, datasets.Dataset):
        raise ValueError(
            "hard_negatives takes rows that are images, all known before; remove streaming and rows, or give "
            "captions_per_image all"
        )
    if arguments.train_sampling_strategy != "random":
        raise ValueError("hard_negatives decides the order of rows; remove train_sampling_strategy")
    if (batch := arguments.per_device_train_batch_size * arguments.world_size) <= number:
        raise ValueError(f"hard_negatives is {number}, but a batch has {batch} images; take larger batches")
    trainer.encoder.model.eval()
    problems = Problems("training images", trainer.problems.max_bad_fraction)
    negatives = mine_hard_negatives(trainer.encoder, rows, number, problems, Share.of_this_process())
    without = int((negatives[:, 0] < 0).sum()) if negatives.size else len(rows)
    if without == len(rows):
        raise ValueError("hard_negatives finds none: to the model all pictures are equal, or all captions are")
    logger.info("hard negatives: %d of %d rows have some", len(rows) - without, len(rows))
    return HardNegativeSampler(
        negatives, number, arguments.seed if arguments.data_seed is None else arguments.data_seed
    )
