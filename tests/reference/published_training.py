"""The published training step, written out: losses, learning rates and AdamW as the research code has them.

It shares the encoders with the product, and nothing of what trains them. With sampling and masks given it follows the
figures that the research code itself made; the product's trainer has to follow it.
"""

import re
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modeling_ccrk import CCRKPairModel

BETAS = (0.9, 0.98)
EPSILON = 1e-8
WEIGHT_DECAY = 0.01
# By name, as the research code has it: tables of relative position biases are not decayed either, but the matching
# head's layer normalisation (matching_head.1) and the temperature are.
NOT_DECAYED = re.compile("bias|layer_?norm|norm.weight", re.IGNORECASE)
NEW = ("temperature", "_projection.", "matching_head.", ".cross_attention.")


def losses(model: CCRKPairModel, batch: dict[str, Tensor]) -> list[Tensor]:
    """Contrastive and matching loss, and in pre-training masked LM, of one batch with its choices.

    Args:
        batch: `image` (B, 3, H, W); `input_ids`, `attention_mask` (B·K, L), image by image; `positive_caption`,
            `negative_caption` (B,) into these; `negative_image` (B,); and for masked LM `masked_input_ids` (B·K, L),
            `masked_pos`, `masked_labels` (B·K, M).
    """
    ccrk, mask = model.ccrk, batch["attention_mask"]
    num_images, num_captions = len(batch["image"]), len(mask)
    per_image = num_captions // num_images
    outputs = ccrk(
        batch["input_ids"].view(num_images, per_image, -1), batch["image"], mask.view(num_images, per_image, -1)
    )
    logits = outputs.image_embeds @ outputs.text_embeds.flatten(0, 1).t() / ccrk.temperature
    image_to_text = text_to_image = 0.0
    for caption in range(num_captions):
        image = caption // per_image
        image_to_text = image_to_text - logits[image].log_softmax(0)[caption] / num_images
        text_to_image = text_to_image - logits[:, caption].log_softmax(0)[image] / num_captions
    contrastive = (image_to_text + text_to_image) / 2 / per_image

    own, chosen = torch.arange(num_images), batch["positive_caption"]
    images = torch.cat([own, batch["negative_image"], own])
    captions = torch.cat([chosen, chosen, batch["negative_caption"]])
    labels = torch.tensor([1] * num_images + [0] * 2 * num_images)
    matching = F.cross_entropy(model.match(outputs.image_states, outputs.text_states, mask, images, captions), labels)
    if not hasattr(model, "lm_head"):
        return [contrastive, matching]

    states = ccrk.get_text_features(batch["masked_input_ids"][chosen], mask[chosen]).last_hidden_state
    fused = ccrk.fusion_encoder(outputs.image_states, states, mask[chosen], own)
    places = batch["masked_pos"][chosen][:, :, None].expand(-1, -1, fused.shape[-1])
    predicted = model.lm_head(fused.gather(1, places))
    return [contrastive, matching, F.cross_entropy(predicted.flatten(0, 1), batch["masked_labels"][chosen].flatten())]


def learning_rate(step: int, steps: int, peak: float, warmup_share: float) -> float:
    """Of the step, counted from 0: linear from 0 to the peak and back to 0."""
    warmup = int(steps * warmup_share)
    return peak * (step / warmup if step < warmup else (steps - step) / (steps - warmup))


@torch.no_grad()
def adamw(parameter: nn.Parameter, moments: list[Tensor], step: int, rate: float, decay: float) -> None:
    """One step, counted from 1: bias correction by the step size, epsilon added to the root, decay at the end."""
    for moment, beta, value in zip(moments, BETAS, (parameter.grad, parameter.grad**2), strict=True):
        moment.mul_(beta).add_(value, alpha=1 - beta)
    size = rate * (1 - BETAS[1] ** step) ** 0.5 / (1 - BETAS[0] ** step)
    parameter -= size * moments[0] / (moments[1].sqrt() + EPSILON)
    parameter -= rate * decay * parameter


def train(
    model: CCRKPairModel, batches: list[dict[str, Tensor]], peak: float, warmup_share: float, clip: float, scale: float
) -> Iterator[list[float]]:
    """Trains on the batches, and yields the losses of each step before it is taken.

    Args:
        clip: norm that the gradient is clipped to; 0 for none.
        scale: learning rate of the parameters that no encoder brings along, as a multiple of that of the others.
    """
    parameters = dict(model.named_parameters())
    moments = {name: [torch.zeros_like(parameter) for _ in BETAS] for name, parameter in parameters.items()}
    for step, batch in enumerate(batches):
        if clip:  # pre-training
            model.ccrk.temperature.data.clamp_(0.001, 0.5)
        parts = losses(model, batch)
        model.zero_grad()
        sum(parts).backward()
        if clip:
            nn.utils.clip_grad_norm_(parameters.values(), clip)
        for name, parameter in parameters.items():
            rate = learning_rate(step, len(batches), peak, warmup_share)
            rate *= scale if any(part in name for part in NEW) else 1.0
            adamw(parameter, moments[name], step + 1, rate, 0.0 if NOT_DECAYED.search(name) else WEIGHT_DECAY)
        yield [part.item() for part in parts]
