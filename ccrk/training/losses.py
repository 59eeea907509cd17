"""1-to-K: one loss for every encoder, over the embeddings of all processes, beside the losses that it brings."""

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
        queue: of embeddings of earlier batches, which are negatives as well, of softmax alone.

    Where `asks_agreement` is False, as the trainer has it before `agreement_start`, there is none either.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        kind: str = "softmax",
        reduction: str = "symmetric",
        agreement_weight: float = 0.0,
        queue: EmbeddingQueue | None = None,
    ):
        self.accelerator, self.kind, self.reduction = accelerator, kind, reduction
        self.queue = queue
        self.agreement_weight, self.asks_agreement = agreement_weight, True

    def __call__(self, found: Embeddings, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """This process's share of each loss: the mean of the shares, which data parallelism takes, is the loss.

        Args:
            found: this process's embeddings.
            inputs: `caption_mask` (B, K), and `image_ids` (B,), equal for equal images.
        """
        return {**self.of_embeddings(found, inputs), **self.shares(found)}

    def of_embeddings(self, found: Embeddings, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """The losses of the whole batch's embeddings, the same on every process; each as it enters the sum."""
        found = found._replace(image=self.of_all(found.image), text=self.of_all(found.text))
        inputs = {name: self.accelerator.gather(inputs[name]) for name in ("caption_mask", "image_ids")}
        losses = {"contrastive_loss": self.contrastive(found, inputs)}
        if self.agreement_weight and self.asks_agreement:
            agreement = agreement_loss(found.image, found.text, found.temperature, **inputs)
            losses["agreement_loss"] = self.agreement_weight * agreement
        return losses

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
