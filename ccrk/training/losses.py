"""1-to-K: one loss for every encoder, over the embeddings of all processes, beside the losses that it brings."""

import torch
from accelerate import Accelerator
from torch import Tensor

from ccrk.encoding import Embeddings
from ccrk.processes import gather_with_gradient
from ccrk.training.queue import EmbeddingQueue
from objectives_ccrk import agreement_loss, contrastive_loss, sigmoid_loss


class OneToKLoss:
    """
    Every image against all captions of the batch, and every caption against all images.

    Args:
        accelerator: of the trainer, whose processes share the batch.
        kind: `softmax` (`objectives_ccrk.contrastive_loss`) or `sigmoid` (`objectives_ccrk.sigmoid_loss`).
        reduction: of the former.
        agreement_weight: of `objectives_ccrk.agreement_loss` beside it; 0: there is none.
        agreement_trust: its `trust`.
        queue: of embeddings of earlier batches, which are negatives as well, of softmax alone.
        agreement_only: of the K captions the last so many take part in agreement alone.

    The trainer sets `agreement_only` as its collator has it, and `asks_agreement`: False before `agreement_start`,
    when there is none either.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        kind: str = "softmax",
        reduction: str = "symmetric",
        agreement_weight: float = 0.0,
        queue: EmbeddingQueue | None = None,
        agreement_only: int = 0,
        agreement_trust: float = 1.0,
    ):
        self.accelerator, self.kind, self.reduction = accelerator, kind, reduction
        self.queue, self.agreement_only = queue, agreement_only
        self.agreement_weight, self.agreement_trust = agreement_weight, agreement_trust
        self.asks_agreement = True

    def __call__(self, found: Embeddings, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """This process's share of each loss: the mean of the shares, which data parallelism takes, is the loss.

        Args:
            found: this process's embeddings, of B images and N rows of captions: those behind the first B are of no
                image and take part in agreement alone.
            inputs: `caption_mask` (N, K), and `image_ids` (B,), equal for equal images.
        """
        return {**self.of_embeddings(found, inputs), **self.shares(found)}

    def of_embeddings(self, found: Embeddings, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """The losses of the whole batch's embeddings, the same on every process; each as it enters the sum."""
        ids, mask = inputs["image_ids"], inputs["caption_mask"]
        paired = found._replace(image=self.of_all(found.image), text=self.of_all(found.text[: len(ids)]))
        of_pairs = {
            "caption_mask": self.accelerator.gather(mask[: len(ids)]),
            "image_ids": self.accelerator.gather(ids),
        }
        contrasted = mask.shape[1] - self.agreement_only
        own = of_pairs | {"caption_mask": of_pairs["caption_mask"][:, :contrasted]}
        losses = {"contrastive_loss": self.contrastive(paired._replace(text=paired.text[:, :contrasted]), own)}
        if self.agreement_weight and self.asks_agreement:
            text = paired.text
            if len(mask) > len(ids):
                text = torch.cat([text, self.of_all(found.text[len(ids) :])])
                alone = self.accelerator.gather(mask[len(ids) :])
                of_pairs["caption_mask"] = torch.cat([of_pairs["caption_mask"], alone])
            trust = self.agreement_trust
            agreement = agreement_loss(paired.image, text, found.temperature, **of_pairs, trust=trust)
            losses["agreement_loss"] = self.agreement_weight * agreement
        return losses

    def for_encoder(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """A batch as the encoder is to see it, whose own losses take no caption that is there for agreement alone."""
        if not self.agreement_only:
            return inputs
        mask = inputs["caption_mask"].clone()
        mask[:, -self.agreement_only :] = False
        return inputs | {"caption_mask": mask}

    def contrastive(self, found: Embeddings, inputs: dict[str, Tensor]) -> Tensor:
        """The contrastive loss of the whole batch, whose embeddings and inputs are given."""
        if self.kind == "sigmoid":
            return sigmoid_loss(found.image, found.text, found.temperature, found.bias, **inputs)
        earlier = None if self.queue is None else self.queue.rows
        loss = contrastive_loss(
            found.image, found.text, found.temperature, **inputs, reduction=self.reduction, earlier=earlier
        )
        if self.queue is not None:
            self.queue.push(found, inputs)
        # Softmax does not see a bias; data parallelism waits for a gradient of it all the same.
        return loss if found.bias is None else loss + 0.0 * found.bias.sum()

    def of_all(self, embeds: Tensor) -> Tensor:
        """The embeddings of all processes, see `gather_with_gradient`."""
        return gather_with_gradient(embeds) if self.accelerator.num_processes > 1 else embeds

    def shares(self, found: Embeddings) -> dict[str, Tensor]:
        """This process's shares of the losses that the encoder computes of its own batch.

        Each weighs a mean over the process's items so that the mean over processes is the mean over all items.
        """
        shares = {}
        for name, (local_mean, count) in found.parts.items():
            mean_count = self.accelerator.reduce(count.float(), reduction="mean")
            shares[name] = local_mean * count / mean_count.clamp(min=1 / self.accelerator.num_processes)
        return shares
