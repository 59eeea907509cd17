"""The objectives of CCRK as pure functions of tensors: contrastive, pair sampling, matching, masked LM.

Shapes: B images, each with up to K captions (one per language) of L tokens; P is the projection's width.
Captions are flattened image by image, so caption t of B·K belongs to image t // K. K is ragged in real data:
`caption_mask` (B, K) is False where a language is missing, and such a slot takes part in nothing.

Source of every number: CCRK (KDD 2024, arXiv 2406.18254), section 3, and the published research code.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

# Added to every sampling probability by the published code, so that no candidate is excluded by underflow.
SAMPLING_EPSILON = 1e-5
IGNORE = -100  # the label that cross-entropy leaves out


class MatchingPairs(NamedTuple):
    """3·B (image, caption) pairs: positives, then negative images, then negative captions."""

    image_index: Tensor  # (3B,) into the batch's images
    caption_index: Tensor  # (3B,) into the batch's B·K captions
    labels: Tensor  # (3B,) 1 match, 0 no match, -100 where no valid partner exists
    positive_caption: Tensor  # (B,) the caption chosen for each image, into the B·K captions


def similarity(image_embeds: Tensor, text_embeds: Tensor, temperature: Tensor) -> Tensor:
    """Cosine similarity of L2-normalised embeddings (B, P) and (N, P) over the temperature: (B, N) in fp32.

    Autocast is switched off: at a temperature of 0.07 bf16 would round away differences that decide a rank.
    """
    with torch.autocast(image_embeds.device.type, enabled=False):
        return image_embeds.float() @ text_embeds.float().t() / temperature.float()


def same_image(image_ids: Tensor | None, batch_size: int, device: torch.device) -> Tensor:
    """(B, B) mask, True where two rows show the same image. Without ids every row is an image of its own."""
    if image_ids is None:
        return torch.eye(batch_size, dtype=torch.bool, device=device)
    return image_ids[:, None] == image_ids[None, :]


class Earlier(NamedTuple):
    """M images of earlier batches with K captions each, as further negatives."""

    image: Tensor  # (M, P), L2-normalised
    text: Tensor  # (M, K, P), L2-normalised
    caption_mask: Tensor  # (M, K), False where a caption is missing; of an image without any nothing is used
    image_ids: Tensor  # (M,)


def contrastive_loss(
    image_embeds: Tensor,
    text_embeds: Tensor,
    temperature: Tensor,
    caption_mask: Tensor | None = None,
    image_ids: Tensor | None = None,
    reduction: str = "published",
    earlier: Earlier | None = None,
) -> Tensor:
    """1-to-K contrastive loss: every image against all captions of the batch and every caption against all images.

    Captions of equal images are positives of each other, never negatives; targets are shared evenly among the
    positives of a row. With K = 1 this is the fine-tuning loss of the published code, in either reduction.

    Args:
        image_embeds: (B, P), L2-normalised.
        text_embeds: (B, K, P), L2-normalised.
        temperature: one element.
        caption_mask: (B, K), False where a caption is missing. None: all are there.
        image_ids: (B,), equal for equal images. None: all images differ.
        reduction: `"symmetric"` is (image→text + text→image) / 2, each the mean over its rows of the mean
            -log p over the row's positives: the natural reading of the method. `"published"` divides the
            text→image term by K once more, as the published code does (its `need_divm: 0`), so there the
            images learn to find captions K times more strongly than the reverse. Where K is ragged, the mean
            number of captions per image stands for K. K × `"published"` is the published code's `need_divm: 1`.
        earlier: rows that are negatives of the batch's, but for those of equal images; needs `image_ids`.

    Returns: a scalar, fp32.
    """
    if reduction not in ("published", "symmetric"):
        raise ValueError(f"reduction {reduction!r} is not known: use 'published' or 'symmetric'")
    batch_size, num_captions = text_embeds.shape[:2]
    if caption_mask is None:
        caption_mask = torch.ones(batch_size, num_captions, dtype=torch.bool, device=text_embeds.device)
    present = caption_mask.flatten()
    logits = similarity(image_embeds, text_embeds.flatten(0, 1), temperature)
    equal = same_image(image_ids, batch_size, logits.device)
    positives = equal.repeat_interleave(num_captions, dim=1) & present

    lowest = torch.finfo(logits.dtype).min
    to_text, to_image = logits.masked_fill(~present, lowest), logits.t()
    if earlier is not None:
        equal = image_ids[:, None] == earlier.image_ids
        more_text = similarity(image_embeds, earlier.text.flatten(0, 1), temperature)
        hidden = equal.repeat_interleave(num_captions, dim=1) | ~earlier.caption_mask.flatten()
        to_text = torch.cat([to_text, more_text.masked_fill(hidden, lowest)], dim=1)
        more_images = similarity(text_embeds.flatten(0, 1), earlier.image, temperature)
        hidden = (equal | ~earlier.caption_mask.any(dim=1)).repeat_interleave(num_captions, dim=0)
        to_image = torch.cat([to_image, more_images.masked_fill(hidden, lowest)], dim=1)
    image_to_text = _mean_positive_nll(to_text, positives)
    text_to_image = _mean_positive_nll(to_image, positives.t())
    if reduction == "published":
        images = caption_mask.any(dim=1).sum().clamp(min=1)
        text_to_image = text_to_image * images / present.sum().clamp(min=1)
    return (image_to_text + text_to_image) / 2


def sigmoid_loss(
    image_embeds: Tensor,
    text_embeds: Tensor,
    temperature: Tensor,
    bias: Tensor,
    caption_mask: Tensor | None = None,
    image_ids: Tensor | None = None,
) -> Tensor:
    """1-to-K by sigmoid (SigLIP, Zhai et al., 2023): every pair of an image and a caption matches, or does not.

    Captions of equal images match each other's images. With K = 1 this is the loss of transformers' SigLIP: the sum
    over all pairs, divided by the number of captions.

    Args:
        bias: one element, added to cosine / temperature.
        others: see `contrastive_loss`.

    Returns: a scalar, fp32.
    """
    batch_size, num_captions = text_embeds.shape[:2]
    logits = similarity(image_embeds, text_embeds.flatten(0, 1), temperature) + bias.float()
    matches = same_image(image_ids, batch_size, logits.device).repeat_interleave(num_captions, dim=1)
    nll = -F.logsigmoid(torch.where(matches, logits, -logits))
    if caption_mask is None:
        return nll.sum() / nll.shape[1]
    present = caption_mask.flatten()
    return nll.masked_fill(~present, 0.0).sum() / present.sum().clamp(min=1)


def agreement_loss(
    image_embeds: Tensor,
    text_embeds: Tensor,
    temperature: Tensor,
    caption_mask: Tensor | None = None,
    image_ids: Tensor | None = None,
    trust: float = 1.0,
) -> Tensor:
    """How far the captions of a row, each in a language of its own, are from ranking the batch's images alike.

    A caption's distribution is its softmax over the images. The loss is the mean over rows with two captions or more
    of the mean over their captions of w·KL(a caption's distribution || the mean of them all, weighted by w).

    w says how far a caption is to be trusted, without a gradient: the probability that it gives its own image, or in a
    row without image the share of its distribution that is the others' too, to the power of `trust`. So a caption that
    says something else, such as a wrong translation, takes little part, and the others are not drawn to it; the less,
    the greater `trust` is, as do captions that are right and do not find their image yet. The temperature has no
    gradient, or flat distributions, which agree about nothing, would be the shortest way.

    Args:
        text_embeds: (N, K, P), L2-normalised; the first B rows are those of the images, further ones have none.
        caption_mask: (N, K).
        others: see `contrastive_loss`. Equal images are one.

    Returns: a scalar, fp32; 0 where no row has two captions.
    """
    batch_size, (num_rows, num_captions) = len(image_embeds), text_embeds.shape[:2]
    if caption_mask is None:
        caption_mask = torch.ones(num_rows, num_captions, dtype=torch.bool, device=text_embeds.device)
    own = same_image(image_ids, batch_size, text_embeds.device).int().argmax(dim=1)
    repeated = own != torch.arange(batch_size, device=own.device)  # the first of equal images stands for all of them
    logits = similarity(image_embeds, text_embeds.flatten(0, 1), temperature.detach()).t()
    logits = logits.masked_fill(repeated, torch.finfo(logits.dtype).min)
    log_p = logits.log_softmax(dim=1).unflatten(0, (num_rows, num_captions))
    p = log_p.exp() * caption_mask[..., None]

    with torch.no_grad():
        finds = p[:batch_size].gather(2, own[:, None, None].expand(-1, num_captions, 1)).squeeze(2)
        alone, counts = p[batch_size:], caption_mask[batch_size:].sum(dim=1)[:, None, None]
        others = (alone.sum(dim=1, keepdim=True) - alone) / (counts - 1).clamp(min=1)
        weight = torch.cat([finds, torch.minimum(alone, others).sum(dim=2)]) ** trust
        share = weight / weight.sum(dim=1, keepdim=True).clamp(min=torch.finfo(p.dtype).tiny)
    mean = (share[..., None] * p).sum(dim=1, keepdim=True).clamp(min=torch.finfo(p.dtype).tiny)
    divergence = (p * (log_p - mean.log())).sum(dim=2)
    count = caption_mask.sum(dim=1)
    per_row = (weight * divergence).sum(dim=1) / count.clamp(min=1)
    counts = count > 1
    return per_row.masked_fill(~counts, 0.0).sum() / counts.sum().clamp(min=1)


def _mean_positive_nll(logits: Tensor, positives: Tensor) -> Tensor:
    """
    Mean over the rows that have a positive of the mean -log softmax of its positives, which are among the first
    logits: of further ones `positives` has no columns.
    """
    count = positives.sum(dim=1)
    log_softmax = logits.log_softmax(dim=1)[:, : positives.shape[1]]
    nll = -log_softmax.masked_fill(~positives, 0.0).sum(dim=1) / count.clamp(min=1)
    return nll.sum() / (count > 0).sum().clamp(min=1)


def positive_caption_weights(logits_per_image: Tensor, caption_mask: Tensor, strategy: int) -> Tensor:
    """Weights (B, K) with which one of an image's own captions is drawn as its positive.

    Args:
        logits_per_image: (B, B·K), cosine / temperature.
        caption_mask: (B, K); missing captions get weight 0.
        strategy: 0 uniform; 1 (published default) the probability that image→text softmax leaves uncovered,
            so the worst aligned language is drawn most; 2 the same on the logits.
    """
    if strategy not in (0, 1, 2):
        raise ValueError(f"positive_caption_sampling {strategy!r} is not known: use 0, 1 or 2")
    batch_size, num_captions = caption_mask.shape
    if strategy == 0:
        return caption_mask.float()
    missing = ~caption_mask.flatten()
    logits = logits_per_image.float()
    scores = logits
    if strategy == 1:
        scores = logits.masked_fill(missing, torch.finfo(logits.dtype).min).softmax(dim=1) + SAMPLING_EPSILON
    best = scores.masked_fill(missing, torch.finfo(scores.dtype).min).max()
    rows = torch.arange(batch_size, device=logits.device)
    own = scores.view(batch_size, batch_size, num_captions)[rows, rows]
    return (best + SAMPLING_EPSILON - own) * caption_mask


def negative_weights(logits: Tensor, excluded: Tensor) -> Tensor:
    """Weights, in the shape of `logits`, with which each row draws a negative: softmax + 1e-5, 0 where `excluded`."""
    return (logits.float().softmax(dim=1) + SAMPLING_EPSILON).masked_fill(excluded, 0.0)


def sampling_keys(image_ids: Tensor, seed: int, step: int) -> Tensor:
    """(B,) keys of what is drawn for each image in one step: the same wherever, and beside whatever, it is trained."""
    return _mix(_mix(image_ids + _mix(torch.full_like(image_ids, seed))) + step)


def uniform(keys: Tensor, draw: int) -> Tensor:
    """A number in (0, 1) for each of the int64 keys, in their shape, fp32; different for every `draw`.

    A hash, not a generator's next number: neither the order of the rows nor the padding beside them changes it.
    """
    bits = _mix(keys + _mix(torch.full_like(keys, draw))) & 0x7FFFFF
    return (bits.float() + 0.5) / 2**23  # exact in fp32: never 0 or 1


def _mix(value: Tensor) -> Tensor:
    """The finaliser of SplitMix64 (Steele et al., 2014) on int64: products wrap, shifts keep the sign."""
    value = (value ^ ((value >> 30) & ((1 << 34) - 1))) * -0x40A7B892E31B1A47
    value = (value ^ ((value >> 27) & ((1 << 37) - 1))) * -0x6B2FB644ECCEEE15
    return value ^ ((value >> 31) & ((1 << 33) - 1))


def _fresh_keys(batch_size: int, device: torch.device) -> Tensor:
    return torch.randint(1 << 62, (batch_size,), device=device)


class MatchingNumbers(NamedTuple):
    """Uniform numbers in (0, 1) that matching draws with: a row sees one for each candidate."""

    positive: Tensor  # (B, K) for its own captions
    image: Tensor  # (B, B)
    caption: Tensor  # (B, B·K)


def matching_numbers(keys: Tensor, num_captions: int) -> MatchingNumbers:
    """The numbers that follow from the keys (B,) of a batch, see `sampling_keys`."""
    caption_keys = keys[:, None] + torch.arange(1, num_captions + 1, device=keys.device)
    row_keys = _mix(keys)[:, None]
    return MatchingNumbers(
        positive=uniform(caption_keys, 0),
        image=uniform(row_keys + keys, 1),
        caption=uniform(row_keys + caption_keys.flatten(), 2),
    )


def sample(weights: Tensor, numbers: Tensor) -> Tensor:
    """One index per row, drawn with probability proportional to its weight.

    The smallest of exponential variables with these rates is distributed so; unlike `torch.multinomial` it neither
    fails on a row of zeros (the answer is then meaningless, and the caller's to leave out) nor waits for the device.

    Args:
        weights: (B, C), not negative.
        numbers: (B, C), uniform in (0, 1).
    """
    return (weights / -numbers.log()).argmax(dim=1)


@torch.no_grad()
def sample_matching_pairs(
    logits_per_image: Tensor,
    caption_mask: Tensor,
    image_ids: Tensor | None = None,
    strategy: int = 1,
    keys: Tensor | None = None,
) -> MatchingPairs:
    """Draws for each image of the batch a positive caption, a hard negative image and a hard negative caption.

    An image without a caption, or without anything in the batch that is not itself (a batch of one image), keeps its
    place in the pairs with label -100: the shapes are fixed, and the loss leaves it out.

    Args:
        logits_per_image: (B, B·K) of the local batch, cosine / temperature.
        caption_mask: (B, K).
        image_ids: (B,), equal images are never negatives of each other.
        strategy: see `positive_caption_weights`.
        keys: (B,), see `sampling_keys`; what is drawn depends on them and the logits. None: fresh ones.
    """
    batch_size, num_captions = caption_mask.shape
    device = logits_per_image.device
    numbers = matching_numbers(_fresh_keys(batch_size, device) if keys is None else keys, num_captions)
    images = torch.arange(batch_size, device=device)
    present = caption_mask.flatten()
    equal = same_image(image_ids, batch_size, device)

    own_weights = positive_caption_weights(logits_per_image, caption_mask, strategy)
    own = sample(own_weights, numbers.positive)
    positive_caption = images * num_captions + own

    # For the chosen caption an image of another row; for the image a caption of another row, in any language.
    image_weights = negative_weights(logits_per_image.t()[positive_caption], excluded=equal)
    other_captions = ~equal.repeat_interleave(num_captions, dim=1) & present
    hidden = logits_per_image.masked_fill(~present, torch.finfo(logits_per_image.dtype).min)
    caption_weights = negative_weights(hidden, excluded=~other_captions)

    valid = caption_mask.any(dim=1)
    positive_label = torch.where(valid, 1, IGNORE)
    negative_image_label = torch.where(valid & ~equal.all(dim=1), 0, IGNORE)
    negative_caption_label = torch.where(valid & other_captions.any(dim=1), 0, IGNORE)
    return MatchingPairs(
        image_index=torch.cat([images, sample(image_weights, numbers.image), images]),
        caption_index=torch.cat([positive_caption, positive_caption, sample(caption_weights, numbers.caption)]),
        labels=torch.cat([positive_label, negative_image_label, negative_caption_label]),
        positive_caption=positive_caption,
    )


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy in fp32 over the labels that are not -100; 0 where all are, so that it never is NaN.

    Args:
        logits: (..., C).
        labels: (...).
    """
    total = F.cross_entropy(logits.flatten(0, -2).float(), labels.flatten(), ignore_index=IGNORE, reduction="sum")
    return total / (labels != IGNORE).sum().clamp(min=1)


class MaskedCaptions(NamedTuple):
    """Captions prepared for masked language modelling."""

    input_ids: Tensor  # (B, L) with masked, random and kept tokens in place
    positions: Tensor  # (B, M) of the chosen tokens, 0 where unused
    labels: Tensor  # (B, M) their original ids, -100 where unused


@torch.no_grad()
def mask_captions(
    input_ids: Tensor,
    attention_mask: Tensor,
    mask_token_id: int,
    vocab_size: int,
    probability: float = 0.4,
    max_tokens: int = 12,
    ngram_probability: float = 0.2,
    max_ngram: int = 3,
    keys: Tensor | None = None,
) -> MaskedCaptions:
    """Chooses `probability` of each caption's tokens, at least 1 and at most `max_tokens`, never token 0.

    Spans start in random order; a span is an n-gram of 2 to `max_ngram` tokens with `ngram_probability`, else a single
    token; the last span may be cut short by the limit. Of the chosen tokens 80 % become the mask token, 10 % a token
    drawn from the whole vocabulary, 10 % stay.

    Args:
        input_ids, attention_mask: (B, L), padded on the right.
        keys: (B,), see `sampling_keys`; what is drawn depends on them alone, not on L. None: fresh ones.

    Returns: `MaskedCaptions` with M = min(`max_tokens`, L - 1), fixed for a given L.
    """
    batch_size, length = input_ids.shape
    device = input_ids.device

    keys = _fresh_keys(batch_size, device) if keys is None else keys
    keys = keys[:, None] + torch.arange(1, length + 1, device=device)

    maskable = attention_mask.bool().clone()
    maskable[:, 0] = False
    # A span that starts at position p puts its place in the random order on all the tokens it covers; a token takes
    # the earliest of the spans over it. Tokens in that order are the spans one after the other.
    order = uniform(keys, 3).masked_fill(~maskable, 2.0)
    is_ngram = uniform(keys, 4) < ngram_probability
    span = torch.where(is_ngram, 2 + (uniform(keys, 5) * (max_ngram - 1)).long(), 1)
    priority = order.clone()
    for offset in range(1, max_ngram):
        reaches = span[:, :-offset] > offset
        earlier = order[:, :-offset].masked_fill(~reaches, 2.0)
        priority[:, offset:] = torch.minimum(priority[:, offset:], earlier)
    priority = priority.masked_fill(~maskable, 2.0)

    limit = min(max_tokens, length - 1)
    positions = priority.argsort(dim=1, stable=True)[:, :limit]
    wanted = (attention_mask.sum(dim=1) * probability).round().clamp(1, limit)
    chosen = (torch.arange(limit, device=device) < wanted[:, None]) & maskable.gather(1, positions)
    positions = positions.masked_fill(~chosen, 0)

    original = input_ids.gather(1, positions)
    fate = uniform(keys[:, :limit], 6)
    random_ids = (uniform(keys[:, :limit], 7) * vocab_size).long()
    replaced = torch.where(fate < 0.8, mask_token_id, torch.where(fate < 0.9, random_ids, original))
    # Unused slots all point at token 0: they write back what is there.
    replaced = torch.where(chosen, replaced, original)
    return MaskedCaptions(
        input_ids=input_ids.scatter(1, positions, replaced),
        positions=positions,
        labels=original.masked_fill(~chosen, IGNORE),
    )
