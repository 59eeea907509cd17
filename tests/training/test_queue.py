"""Embeddings of earlier batches as negatives: against a loop, without equal images, without a gradient into them."""

import pytest
import torch
from tiny import make_trainer
from torch.nn import functional as F

from ccrk.encoding import Embeddings
from ccrk.training.queue import EmbeddingQueue
from objectives_ccrk import contrastive_loss

TEMPERATURE = torch.tensor([0.2])


def make_batch(seed: int, ids: list[int]) -> tuple[Embeddings, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    image, text = (
        F.normalize(torch.randn(*shape, 8, generator=generator), dim=-1).requires_grad_()
        for shape in ((len(ids),), (len(ids), 3))
    )
    mask = torch.ones(len(ids), 3, dtype=torch.bool)
    mask[1, 2] = False
    return Embeddings(image, text, TEMPERATURE), {"caption_mask": mask, "image_ids": torch.tensor(ids)}


def test_loss_and_gradient_are_those_of_a_loop():
    queue = EmbeddingQueue(6)
    for seed, ids in ((0, [1, 2, 3, 4]), (1, [5, 6, 7, 8])):
        queue.push(*make_batch(seed, ids))
    rows = queue.rows
    assert rows.image_ids.tolist() == [5, 6, 7, 8, 1, 2] and rows.image.dtype == rows.text.dtype == torch.float16
    assert not rows.image.requires_grad and not rows.text.requires_grad

    found, inputs = make_batch(2, [9, 5, 10, 11])  # 5 is in the queue, too
    loss = contrastive_loss(*found[:3], **inputs, reduction="symmetric", earlier=rows)
    gradients = torch.autograd.grad(loss, found[:2], retain_graph=True)

    to_text, to_image = [], []
    for i, own in enumerate(inputs["image_ids"].tolist()):
        is_other = rows.image_ids != own
        captions = found.text[inputs["caption_mask"]]
        negatives = rows.text[is_other][rows.caption_mask[is_other]].float()
        sums = torch.logsumexp(torch.cat([captions, negatives]) @ found.image[i] / TEMPERATURE, 0)
        for k in range(3):
            if not inputs["caption_mask"][i, k]:
                continue
            score = found.text[i, k] @ found.image[i] / TEMPERATURE
            to_text.append((sums - score) / inputs["caption_mask"][i].sum() / 4)
            images = torch.cat([found.image, rows.image[is_other].float()])
            to_image.append((torch.logsumexp(images @ found.text[i, k] / TEMPERATURE, 0) - score) / 11)
    expected = (sum(to_text) + sum(to_image)).squeeze() / 2
    torch.testing.assert_close(loss, expected)
    for gradient, other in zip(gradients, torch.autograd.grad(expected, found[:2]), strict=True):
        torch.testing.assert_close(gradient, other)


def test_equal_images_and_what_is_not_finite_are_no_negatives():
    found, inputs = make_batch(0, [1, 2, 3, 4])
    alone = contrastive_loss(*found[:3], **inputs)
    queue = EmbeddingQueue(8)
    queue.push(*make_batch(1, [1, 1, 1, 1]))
    ones, same = make_batch(0, [1, 1, 1, 1])
    with_queue = contrastive_loss(*ones[:3], **same, earlier=queue.rows)
    torch.testing.assert_close(with_queue, contrastive_loss(*ones[:3], **same))

    queue = EmbeddingQueue(8)
    broken, others = make_batch(1, [5, 6, 7, 8])
    queue.push(broken._replace(image=broken.image.detach() * torch.nan), others)
    torch.testing.assert_close(contrastive_loss(*found[:3], **inputs, earlier=queue.rows), alone)


@pytest.mark.slow
def test_training_fills_it(tiny_model, processor, shapes, tmp_path):
    trainer = make_trainer(tiny_model, processor, shapes, tmp_path, max_steps=3, negatives_queue=12)
    trainer.train()
    rows = trainer.loss.queue.rows
    assert len(rows.image) == 12 and len(set(rows.image_ids.tolist())) == 12
    losses = [log["contrastive_loss"] for log in trainer.state.log_history if "contrastive_loss" in log]
    assert losses[1] > losses[0]  # 8 images beside 8 more
    assert make_trainer(tiny_model, processor, shapes, tmp_path).loss.queue is None
    with pytest.raises(ValueError, match="negatives_queue is -1"):
        make_trainer(tiny_model, processor, shapes, tmp_path, negatives_queue=-1)
