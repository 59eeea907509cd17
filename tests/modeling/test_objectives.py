"""The objectives against naive loops, and their behaviour where data is ragged, doubled or alone."""

import math

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from objectives_ccrk import (
    IGNORE,
    agreement_loss,
    contrastive_loss,
    cross_entropy,
    mask_captions,
    positive_caption_weights,
    sample,
    sample_matching_pairs,
    sampling_keys,
    uniform,
)

TEMPERATURE = torch.tensor([0.1])


def embeddings(batch_size: int, num_captions: int, width: int = 8, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    images = F.normalize(torch.randn(batch_size, width, generator=generator), dim=-1)
    texts = F.normalize(torch.randn(batch_size, num_captions, width, generator=generator), dim=-1)
    return images, texts


def naive_contrastive_loss(images, texts, present, ids, published: bool) -> float:
    """Loops over images and captions, with the definitions of the docstring and nothing else."""
    captions = [(b, k) for b in range(len(images)) for k in range(texts.shape[1]) if present[b][k]]

    def score(b, caption):
        return float(images[b] @ texts[caption[0], caption[1]]) / float(TEMPERATURE)

    image_terms = []
    for b in range(len(images)):
        positives = [c for c in captions if ids[c[0]] == ids[b]]
        if positives:
            total = math.log(sum(math.exp(score(b, c)) for c in captions))
            image_terms.append(sum(total - score(b, c) for c in positives) / len(positives))
    text_terms = []
    for caption in captions:
        positives = [b for b in range(len(images)) if ids[b] == ids[caption[0]]]
        total = math.log(sum(math.exp(score(b, caption)) for b in range(len(images))))
        text_terms.append(sum(total - score(b, caption) for b in positives) / len(positives))
    image_to_text = sum(image_terms) / len(image_terms)
    text_to_image = sum(text_terms) / len(text_terms)
    if published:
        owners = {b for b, _ in captions}
        text_to_image /= len(captions) / len(owners)
    return (image_to_text + text_to_image) / 2


@pytest.mark.parametrize("reduction", ["published", "symmetric"])
@pytest.mark.parametrize("num_captions", [1, 3])
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("doubled", [False, True])
def test_contrastive_loss_equals_the_naive_one(reduction, num_captions, ragged, doubled):
    batch_size = 5
    images, texts = embeddings(batch_size, num_captions)
    mask = torch.ones(batch_size, num_captions, dtype=torch.bool)
    if ragged:
        mask[0, 0] = mask[3, -1] = False  # with one caption per image, rows 0 and 3 have none at all
    ids = torch.tensor([0, 1, 2, 1, 4] if doubled else [0, 1, 2, 3, 4])
    loss = contrastive_loss(images, texts, TEMPERATURE, mask, ids, reduction)
    naive = naive_contrastive_loss(images, texts, mask, ids, published=reduction == "published")
    assert loss.item() == pytest.approx(naive, rel=1e-5)


def test_missing_captions_take_part_in_nothing():
    images, texts = embeddings(4, 3)
    mask = torch.ones(4, 3, dtype=torch.bool)
    mask[1, 2] = False
    texts.requires_grad_()
    loss = contrastive_loss(images, texts, TEMPERATURE, mask)
    loss.backward()
    assert texts.grad[1, 2].abs().sum() == 0 < texts.grad[1, 1].abs().sum()
    changed = texts.detach().clone()
    changed[1, 2] = -changed[1, 2]
    assert_close(contrastive_loss(images, changed, TEMPERATURE, mask), loss.detach())


def test_a_batch_without_any_caption_has_a_finite_loss():
    images, texts = embeddings(2, 2)
    nothing = torch.zeros(2, 2, dtype=torch.bool)
    assert contrastive_loss(images, texts, TEMPERATURE, nothing).item() == 0
    pairs = sample_matching_pairs(torch.randn(2, 4), nothing)
    assert (pairs.labels == IGNORE).all()
    assert cross_entropy(torch.randn(6, 2), pairs.labels).item() == 0


def test_reductions_differ_by_the_weight_of_text_to_image_only():
    images, texts = embeddings(4, 3)
    published = contrastive_loss(images, texts, TEMPERATURE)
    symmetric = contrastive_loss(images, texts, TEMPERATURE, reduction="symmetric")
    logits = images @ texts.flatten(0, 1).t() / TEMPERATURE
    text_to_image = F.cross_entropy(logits.t(), torch.arange(4).repeat_interleave(3))
    assert_close(symmetric - published, text_to_image / 2 * (1 - 1 / 3))


def naive_agreement_loss(images, texts, present, ids, trust) -> float:
    """Loops over images and captions, with the definitions of the docstring and nothing else."""
    first = [b for b in range(len(ids)) if ids[b] not in ids[:b]]

    def distribution(b, k):
        scores = [math.exp(float(images[j] @ texts[b, k]) / float(TEMPERATURE)) for j in first]
        return [score / sum(scores) for score in scores]

    terms = []
    for b, own in enumerate(present):
        given = [distribution(b, k) for k in range(len(own)) if own[k]]
        if len(given) < 2:
            continue
        if b < len(ids):
            weights = [p[first.index(ids.index(ids[b]))] for p in given]
        else:  # there is no image
            others = [
                [sum(q[j] for q in given if q is not p) / (len(given) - 1) for j in range(len(first))] for p in given
            ]
            weights = [sum(map(min, zip(p, other, strict=True))) for p, other in zip(given, others, strict=True)]
        weights = [weight**trust for weight in weights]
        mean = [sum(w * p[j] for w, p in zip(weights, given, strict=True)) / sum(weights) for j in range(len(first))]
        divergences = [sum(pj * math.log(pj / mj) for pj, mj in zip(p, mean, strict=True)) for p in given]
        terms.append(sum(w * d for w, d in zip(weights, divergences, strict=True)) / len(given))
    return sum(terms) / len(terms)


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize(
    ("doubled", "num_alone", "trust"), [(False, 0, 1), (True, 0, 2), (False, 2, 1), (False, 2, 4)]
)
def test_agreement_loss_equals_the_naive_one(ragged, doubled, num_alone, trust):
    images, texts = embeddings(5 + num_alone, 3)
    images = images[:5]
    mask = torch.ones(5 + num_alone, 3, dtype=torch.bool)
    if ragged:
        mask[-1, 0] = False
        mask[0, 1] = mask[2, :2] = mask[3] = False
    ids = [0, 1, 2, 1, 4] if doubled else [0, 1, 2, 3, 4]
    if doubled:
        images[3] = images[1]
    loss = agreement_loss(images, texts, TEMPERATURE, mask, torch.tensor(ids), trust)
    assert loss.item() == pytest.approx(naive_agreement_loss(images, texts, mask.tolist(), ids, trust), rel=1e-4)
    assert loss > 0


def test_gradients_of_agreement_leave_out_temperature_and_missing_captions():
    images, texts = (tensor.requires_grad_() for tensor in embeddings(4, 3))
    temperature = TEMPERATURE.clone().requires_grad_()
    mask = torch.ones(4, 3, dtype=torch.bool)
    mask[1, 2] = False
    agreement_loss(images, texts, temperature, mask).backward()
    assert temperature.grad is None and texts.grad[1, 2].abs().sum() == 0 < texts.grad[1, 1].abs().sum()
    assert images.grad.abs().sum() > 0 and texts.grad.isfinite().all()


def test_agreement_asks_nothing_where_captions_agree_or_are_alone():
    images, texts = embeddings(4, 3)
    same = texts[:, :1].expand(-1, 3, -1)
    assert agreement_loss(images, same, TEMPERATURE).item() == pytest.approx(0, abs=1e-6)
    assert agreement_loss(images, texts[:, :1], TEMPERATURE).item() == 0
    alone = torch.zeros(4, 3, dtype=torch.bool)
    alone[:3, 0] = True
    texts.requires_grad_()
    loss = agreement_loss(images, texts, TEMPERATURE, alone)
    loss.backward()
    assert loss.item() == 0 == texts.grad.abs().sum()


def test_a_caption_that_says_something_else_hardly_moves_the_others():
    """Three captions find the first of two images; a fourth finds the second with as much certainty."""
    images = torch.eye(4)[:2]
    texts = F.normalize(torch.tensor([[1.0, 0.1, 0, 0], [1, 0.2, 0, 0], [1, 0, 0.2, 0], [0, 1, 0, 0]]), dim=-1)
    texts = torch.stack([texts, texts]).requires_grad_()
    with_it, without = torch.ones(2, 4, dtype=torch.bool), torch.ones(2, 4, dtype=torch.bool)
    with_it[1] = without[1] = False
    without[0, 3] = False

    def gradient(mask):
        (found,) = torch.autograd.grad(agreement_loss(images, texts, TEMPERATURE, mask), texts)
        return found[0, :3] * mask[0].sum()  # it is a mean over the captions

    assert_close(gradient(with_it), gradient(without), rtol=0, atol=1e-3)


def test_unknown_names_are_refused():
    images, texts = embeddings(2, 2)
    with pytest.raises(ValueError, match="use 'published' or 'symmetric'"):
        contrastive_loss(images, texts, TEMPERATURE, reduction="mean")
    with pytest.raises(ValueError, match="use 0, 1 or 2"):
        positive_caption_weights(torch.zeros(2, 4), torch.ones(2, 2, dtype=torch.bool), strategy=3)


@pytest.mark.parametrize("strategy", [0, 1, 2])
def test_positive_caption_is_the_worst_aligned_most_often(strategy):
    logits = torch.zeros(2, 6)
    logits[0, :3] = torch.tensor([3.0, 1.0, 2.0])
    mask = torch.ones(2, 3, dtype=torch.bool)
    mask[1, 0] = False
    weights = positive_caption_weights(logits, mask, strategy)
    assert (weights >= 0).all() and weights[1, 0] == 0
    order = weights[0].argsort().tolist()
    assert strategy == 0 or order == [0, 2, 1]
    assert strategy > 0 or weights[0].tolist() == [1, 1, 1]


def test_sample_follows_the_weights():
    torch.manual_seed(0)
    weights = torch.tensor([0.0, 1.0, 2.0, 5.0])
    drawn = sample(weights.expand(40_000, 4), torch.rand(40_000, 4)).bincount(minlength=4) / 40_000
    assert_close(drawn, weights / 8, atol=0.01, rtol=0)


def test_numbers_are_uniform_and_independent_of_each_other():
    keys = sampling_keys(torch.arange(100_000), seed=1, step=2)
    first, second, other_step = (
        uniform(keys, 0),
        uniform(keys, 1),
        uniform(sampling_keys(torch.arange(100_000), seed=1, step=3), 0),
    )
    for numbers in (first, second, other_step):
        assert 0 < numbers.min() and numbers.max() < 1
        assert_close(numbers.histc(10, 0, 1) / 100_000, torch.full((10,), 0.1), atol=0.005, rtol=0)
    assert torch.stack([first, second, other_step, first.roll(1)]).corrcoef().fill_diagonal_(0).abs().max() < 0.02


def test_what_is_drawn_follows_the_image_and_not_its_place():
    """The same local batch in another order, on any process, gives the same pairs and the same masked tokens."""
    torch.manual_seed(0)
    batch_size, num_captions, order = 6, 3, torch.tensor([4, 2, 0, 5, 1, 3])
    logits = torch.randn(batch_size, batch_size, num_captions)
    mask = torch.rand(batch_size, num_captions) < 0.8
    ids = torch.arange(50, 50 + batch_size)

    def draw(order):
        turned = logits[order][:, order].flatten(1)
        pairs = sample_matching_pairs(turned, mask[order], ids[order], keys=sampling_keys(ids[order], 7, 11))
        images = ids[order][pairs.image_index]
        captions = ids[order][pairs.caption_index // num_captions] * num_captions + pairs.caption_index % num_captions
        return {tuple(pair) for pair in zip(images.tolist(), captions.tolist(), pairs.labels.tolist(), strict=True)}

    assert draw(order) == draw(torch.arange(batch_size))

    tokens = torch.randint(3, 90, (batch_size, 20))
    keys = sampling_keys(ids, 7, 11)
    short = mask_captions(tokens[:, :14], torch.ones(batch_size, 14), 99, 100, keys=keys)
    padding = (torch.arange(20) < 14).long().expand(batch_size, 20)
    long = mask_captions(tokens, padding, 99, 100, keys=keys)
    assert torch.equal(short.input_ids, long.input_ids[:, :14]) and torch.equal(short.positions, long.positions)


@pytest.mark.slow
def test_hard_negatives_come_from_the_softmax_and_never_from_the_same_image():
    torch.manual_seed(0)
    batch_size, num_captions = 4, 2
    logits = torch.randn(batch_size, batch_size * num_captions) * 2
    mask = torch.ones(batch_size, num_captions, dtype=torch.bool)
    mask[2, 1] = False  # caption 5
    ids = torch.tensor([7, 8, 7, 9])
    counts = torch.zeros(batch_size * num_captions)
    draws = 4000
    for _ in range(draws):
        pairs = sample_matching_pairs(logits, mask, ids)
        image, caption = pairs.image_index.view(3, batch_size), pairs.caption_index.view(3, batch_size)
        assert pairs.labels.tolist() == [1] * 4 + [0] * 8
        assert (caption[0] // num_captions == torch.arange(4)).all() and (caption != 5).all()
        assert (ids[image[1]] != ids).all() and (caption[1] == caption[0]).all()
        assert (ids[caption[2] // num_captions] != ids).all() and (image[2] == torch.arange(4)).all()
        counts[caption[2, 1]] += 1
    visible = logits[1].clone()
    visible[5] = -1e9
    weights = visible.softmax(0) + 1e-5
    weights[[2, 3, 5]] = 0
    assert_close(counts / draws, weights / weights.sum(), atol=0.03, rtol=0)


@pytest.mark.parametrize("ids", [None, [1, 1, 1]])
def test_without_a_valid_negative_its_pairs_are_left_out(ids):
    batch_size = 1 if ids is None else 3
    mask = torch.ones(batch_size, 2, dtype=torch.bool)
    image_ids = None if ids is None else torch.tensor(ids)
    pairs = sample_matching_pairs(torch.randn(batch_size, 2 * batch_size), mask, image_ids)
    assert pairs.labels.tolist() == [1] * batch_size + [IGNORE] * 2 * batch_size
    assert torch.isfinite(cross_entropy(torch.randn(3 * batch_size, 2), pairs.labels))


def test_sampling_under_autocast_stays_in_fp32():
    logits = torch.randn(4, 8)
    with torch.autocast("cpu", torch.bfloat16):
        images, texts = embeddings(4, 2)
        inside = contrastive_loss(images, texts, TEMPERATURE)
    assert inside.dtype == torch.float32
    assert_close(inside, contrastive_loss(images, texts, TEMPERATURE))
    weights = positive_caption_weights(logits.bfloat16(), torch.ones(4, 2, dtype=torch.bool), 1)
    assert weights.dtype == torch.float32


class TestMaskCaptions:
    MASK, VOCABULARY = 99, 100

    def captions(self, lengths):
        length = max(lengths)
        ids = torch.arange(3, 3 + length).repeat(len(lengths), 1)
        attention = torch.arange(length)[None] < torch.tensor(lengths)[:, None]
        return ids.masked_fill(~attention, 1), attention.long()

    def test_counts_positions_and_labels(self):
        torch.manual_seed(0)
        lengths = [2, 5, 10, 30, 40]
        ids, attention = self.captions(lengths)
        masked = mask_captions(ids, attention, self.MASK, self.VOCABULARY)
        chosen = masked.labels != IGNORE
        # 40 %, at least 1, at most 12
        assert chosen.sum(dim=1).tolist() == [1, 2, 4, 12, 12]
        for row, length in enumerate(lengths):
            positions = masked.positions[row, chosen[row]].tolist()
            assert len(set(positions)) == len(positions) and all(0 < p < length for p in positions)
            assert masked.labels[row, chosen[row]].tolist() == ids[row, positions].tolist()
            untouched = [p for p in range(ids.shape[1]) if p not in positions]
            assert masked.input_ids[row, untouched].tolist() == ids[row, untouched].tolist()
        assert masked.positions[~chosen].sum() == 0

    def test_shares_of_masked_random_and_kept_tokens(self):
        torch.manual_seed(0)
        ids, attention = self.captions([30] * 3000)
        masked = mask_captions(ids, attention, self.MASK, self.VOCABULARY)
        new = masked.input_ids.gather(1, masked.positions)
        as_mask = (new == self.MASK).float().mean().item()
        kept = (new == masked.labels).float().mean().item()
        # One random token in a hundred is the mask, and one the original.
        assert as_mask == pytest.approx(0.8 + 0.001, abs=0.01)
        assert kept == pytest.approx(0.1 + 0.001, abs=0.01)

    def test_every_position_is_chosen_equally_often(self):
        torch.manual_seed(0)
        ids, attention = self.captions([12] * 20_000)
        masked = mask_captions(ids, attention, self.MASK, self.VOCABULARY, ngram_probability=0.0)
        counts = masked.positions[masked.labels != IGNORE].bincount(minlength=12) / 20_000
        assert counts[0] == 0
        assert_close(counts[1:], torch.full((11,), 5 / 11), atol=0.02, rtol=0)

    def test_ngrams_are_neighbours(self):
        torch.manual_seed(0)
        ids, attention = self.captions([30] * 500)

        def neighbours(probability):
            masked = mask_captions(
                ids, attention, self.MASK, self.VOCABULARY, probability=0.1, ngram_probability=probability
            )
            # probability 0.1 of 30 tokens: three tokens, one trigram, or a bigram and another
            positions = masked.positions[:, :3].sort(dim=1).values
            return (positions.diff(dim=1) == 1).any(dim=1).float().mean().item()

        assert neighbours(1.0) == 1.0
        assert neighbours(0.0) < 0.3

    def test_a_caption_of_special_tokens_only(self):
        ids, attention = self.captions([2, 2])
        masked = mask_captions(ids, attention, self.MASK, self.VOCABULARY)
        assert masked.positions.tolist() == [[1], [1]] and (masked.labels != IGNORE).all()
