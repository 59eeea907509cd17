"""1-to-K: one loss for every encoder, over the embeddings of all processes, beside the losses that it brings."""

import inspect

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ccrk.encoding import Embeddings
from ccrk.processes import gather_with_gradient
from ccrk.training.arguments import CCRKTrainingArguments
from ccrk.training.queue import EmbeddingQueue
from modeling_ccrk import CCRKPairModel
from objectives_ccrk import agreement_loss, contrastive_loss, sigmoid_loss


class OneToKLoss:
    """
    Every image against all captions of the batch, and every caption against all images.

    A trainer makes it, or a subclass that is its `loss`, by `from_arguments`.

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

    @classmethod
    def from_arguments(
        cls, accelerator: Accelerator, args: CCRKTrainingArguments, model: nn.Module, agreement_only: int = 0
    ) -> "OneToKLoss":
        """The loss that a trainer's arguments and its model ask for, with all of their options.

        Raises:
            ValueError: the arguments do not go together, or not with the model.
        """
        has_bias = getattr(model, "logit_bias", None) is not None
        kind = args.contrastive_loss or ("sigmoid" if has_bias else "softmax")
        if kind == "sigmoid" and not has_bias:
            raise ValueError(f"contrastive_loss is sigmoid, but a {type(model).__name__} has no bias; remove it")
        if args.negatives_queue and kind == "sigmoid":
            raise ValueError("negatives_queue is for contrastive_loss softmax, not sigmoid; remove it")
        if agreement_only and not args.agreement_weight:
            raise ValueError(
                f"agreement_only is {agreement_only}, but agreement_weight {args.agreement_weight:g}; set the weight"
            )
        return cls(
            accelerator,
            kind,
            model.config.contrastive_reduction if isinstance(model, CCRKPairModel) else "symmetric",
            args.agreement_weight,
            EmbeddingQueue(args.negatives_queue) if args.negatives_queue else None,
            agreement_only,
            args.agreement_trust,
        )

    def check_replacement(self, loss: "OneToKLoss") -> None:
        """Raises ValueError where a loss that takes the place of this one lost an option that this one has."""
        lost = []
        for name, parameter in inspect.signature(OneToKLoss).parameters.items():
            own, other = getattr(self, name), getattr(loss, name)
            if other == parameter.default != own:
                lost.append(name if name == "queue" else f"{name} {own}")
        if lost:
            name = type(loss).__name__
            raise ValueError(
                f"the arguments ask for {', '.join(lost)}, which this {name} was made without; "
                f"use CCRKTrainer(..., loss={name}), which gives it every option"
            )

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
