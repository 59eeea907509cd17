"""Re-scoring by the fusion encoder: the published procedure against ours, on the same weights and candidates.

    python benchmarks/rerank.py --output rerank.json --quick            a small corpus, minutes on two cores
    python benchmarks/rerank.py --output rerank.json                    200 images and 200 captions
    python benchmarks/rerank.py --output rerank.json --published_size   384 px, widths 1024, k_test 128; for GPUs
    python benchmarks/rerank.py --output rerank.json --bf16             ours in bf16, the published one in fp32

The published procedure, as its code has it: captions padded to 80 tokens; a loop over all images and then over all
captions, each with its k_test candidates as a batch; so a pair that is a candidate both ways is scored twice; eager
attention; cross-attention keys and values made anew for every pair; all tokens through all layers. Ours is
`ccrk.retrieval`, called as `eval_mrv.py` calls it. The steps from one to the other are timed too, each with those
before it.

Weights and states are random: times and equality of scores do not depend on what a model has learnt. Both get the same
similarities, in which R@1 is above 0.9 and either most pairs are candidates in both directions, as with a good model,
or few are. The runs alternate, and `ratio` is that of the medians.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ccrk import CCRKConfig, CCRKForImageTextRetrieval
from ccrk.encoding import CCRKEncoder, EncodedCaptions
from ccrk.processes import Share
from ccrk.retrieval.evaluate import EncodedImages, score_pairs
from ccrk.retrieval.instances import IMAGE, UsableCaptions
from ccrk.retrieval.ranking import rank_language

PADDED_LENGTH = 80  # tokens, xFlickr&CO's and WIT's in the published code
MEAN_LENGTH = 18
TOLERANCE = 1e-4
ROUNDS = 3  # alternating
# Width and heads; image size; images, and as many captions; k_test.
SMALL, PUBLISHED = (384, 6, 224, 200, 32), (1024, 16, 384, 512, 128)


@dataclass
class Corpus:
    """Encoded images and captions, caption i being image i's, with their (images, captions) similarities."""

    image_states: Tensor  # (I, T, width)
    text_states: Tensor  # (I, PADDED_LENGTH, width)
    mask: Tensor  # (I, PADDED_LENGTH)
    similarities: Tensor  # (I, I)
    k_test: int

    def candidates(self) -> tuple[Tensor, Tensor]:
        """(I, k) captions of each image and (I, k) images of each caption."""
        return tuple(s.topk(self.k_test, dim=1).indices for s in (self.similarities, self.similarities.t()))

    def pairs(self) -> Tensor:
        """(P, 2) image and caption, those of both directions one after the other."""
        captions, images = self.candidates()
        each = torch.arange(len(images))[:, None].expand(-1, self.k_test)
        return torch.stack([torch.cat([each, images]).flatten(), torch.cat([captions, each]).flatten()], dim=1)


def make_corpus(model, size: int, k_test: int, alike: bool, device: str) -> Corpus:
    """A corpus whose two directions have most candidates in common (`alike`), or only as many as chance gives."""
    generator = torch.Generator().manual_seed(0)
    config = model.config
    tokens = (config.vision_config.image_size // config.vision_config.patch_size // 4) ** 2 + 1
    width = config.text_config.hidden_size
    lengths = (MEAN_LENGTH + 5 * torch.randn(size, generator=generator)).round().clamp(6, 40).long()
    if alike:
        angle = torch.rand(size, generator=generator) * 2 * torch.pi
        similarities = torch.cos(angle[:, None] - angle)
    else:
        # Hubs: every image has about the same best captions, and every caption about the same best images.
        hubs = torch.randn(2, size, generator=generator)
        similarities = hubs[0][:, None] + hubs[1] + 0.05 * torch.randn(size, size, generator=generator)
    similarities += 9 * torch.diag((torch.rand(size, generator=generator) < 0.94).float())
    return Corpus(
        torch.randn(size, tokens, width, generator=generator).to(device),
        torch.randn(size, PADDED_LENGTH, width, generator=generator).to(device),
        (torch.arange(PADDED_LENGTH) < lengths[:, None]).long().to(device),
        similarities,
        k_test,
    )


# Each of these scores all candidates of both directions, and returns the (I, I) match logits, NaN elsewhere.


@torch.no_grad()
def published(model, corpus: Corpus) -> Tensor:
    model.set_attn_implementation("eager")
    captions_of, images_of = corpus.candidates()
    scores = torch.full(corpus.similarities.shape, torch.nan)
    for image, captions in enumerate(captions_of):
        states = corpus.image_states[image].expand(len(captions), -1, -1)
        scores[image, captions] = model.match(states, corpus.text_states[captions], corpus.mask[captions])[:, 1].cpu()
    for caption, images in enumerate(images_of):
        text, mask = (t[caption].expand(len(images), *t.shape[1:]) for t in (corpus.text_states, corpus.mask))
        scores[images, caption] = model.match(corpus.image_states[images], text, mask)[:, 1].cpu()
    return scores


def trimmed_batches(model, corpus: Corpus, pairs: Tensor, scores: Tensor, project_once: bool = False) -> None:
    """Scores pairs in batches of captions of similar length, padded only to their longest."""
    lengths = corpus.mask.sum(dim=1).cpu()
    for batch in pairs[lengths[pairs[:, 1]].argsort(stable=True)].split(corpus.k_test):
        images, captions = batch.t()
        length = int(lengths[captions].max())
        image_states, index = corpus.image_states[images], None
        if project_once:
            images, index = images.unique(return_inverse=True)
            image_states = corpus.image_states[images]
        text, mask = corpus.text_states[captions, :length], corpus.mask[captions, :length]
        scores[batch[:, 0], captions] = model.match(image_states, text, mask, index)[:, 1].cpu()


@torch.no_grad()
def without_padding(model, corpus: Corpus) -> Tensor:
    model.set_attn_implementation("eager")
    scores = torch.full(corpus.similarities.shape, torch.nan)
    trimmed_batches(model, corpus, corpus.pairs(), scores)
    return scores


@torch.no_grad()
def each_pair_once(model, corpus: Corpus) -> Tensor:
    model.set_attn_implementation("eager")
    scores = torch.full(corpus.similarities.shape, torch.nan)
    trimmed_batches(model, corpus, corpus.pairs().unique(dim=0), scores)
    return scores


@torch.no_grad()
def keys_once_per_image(model, corpus: Corpus, attention: str = "eager") -> Tensor:
    model.set_attn_implementation(attention)
    scores = torch.full(corpus.similarities.shape, torch.nan)
    pairs = corpus.pairs().unique(dim=0)
    for of_image in pairs.split(pairs[:, 0].unique_consecutive(return_counts=True)[1].tolist()):
        trimmed_batches(model, corpus, of_image, scores, project_once=True)
    return scores


def sdpa(model, corpus: Corpus) -> Tensor:
    return keys_once_per_image(model, corpus, "sdpa")


@torch.no_grad()
def ours(model, corpus: Corpus) -> Tensor:
    model.set_attn_implementation("sdpa")
    size = len(corpus.mask)
    each = np.arange(size)
    lengths = corpus.mask.sum(dim=1)
    states = model.ccrk.fusion_encoder.prepare_captions(corpus.text_states.to(model.dtype), corpus.mask)
    tokens, lengths = states[corpus.mask.bool()], lengths.cpu()
    encoded = EncodedCaptions(None, tokens, lengths.cumsum(0) - lengths, lengths)
    images = EncodedImages(None, {0: corpus.image_states})
    scores = torch.full((size, size), torch.nan)

    def score(pairs: np.ndarray) -> np.ndarray:
        found = score_pairs(CCRKEncoder(model, None, corpus.k_test), images, encoded, Share(), pairs)
        scores[pairs[:, 0], pairs[:, 1]] = torch.from_numpy(found)
        return found

    def similarity(pool):
        return lambda rows: corpus.similarities[rows], lambda rows: corpus.similarities[:, rows].t()

    rows = pd.MultiIndex.from_arrays([each, np.zeros_like(each)], names=IMAGE)
    captions = UsableCaptions([""] * size, each, each, np.zeros_like(each), each, rows, 0)
    rank_language(captions, similarity, corpus.k_test, score)
    return scores


STEPS: dict[str, Callable[[CCRKForImageTextRetrieval, Corpus], Tensor]] = {
    "published": published,
    "+ batches of similar length, padded to their longest": without_padding,
    "+ each pair once for both directions": each_pair_once,
    "+ keys and values once per image": keys_once_per_image,
    "+ SDPA": sdpa,
    "+ no padding at all, first self-attention once per caption, last layer for token 0": ours,
}


def timed(step: Callable, model, corpus: Corpus) -> tuple[float, Tensor]:
    started = time.perf_counter()
    scores = step(model, corpus)  # ends on the CPU, so that a GPU is through
    return time.perf_counter() - started, scores


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--quick", action="store_true", help="64 images instead of 200; within 8 minutes on two cores")
    parser.add_argument("--published_size", action="store_true", help="384 px, widths 1024, k_test 128")
    parser.add_argument("--bf16", action="store_true", help="ours in bf16")
    arguments = parser.parse_args(argv)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    width, heads, image_size, size, k_test = PUBLISHED if arguments.published_size else SMALL
    if arguments.quick:
        size, k_test = size * 8 // 25, k_test * 8 // 25

    torch.manual_seed(0)
    config = CCRKConfig(
        vision_config={"image_size": image_size, "patch_size": 4, "embed_dim": width // 8, "depths": [1, 1, 1, 1]}
        | {"num_heads": [1, 2, 4, 8], "window_size": 7 if image_size == 224 else 12},
        text_config={"vocab_size": 1000, "hidden_size": width, "num_attention_heads": heads, "num_hidden_layers": 6}
        | {"intermediate_size": 4 * width, "max_position_embeddings": 100, "initializer_range": 0.05},
        num_fusion_layers=6,
    )
    model = CCRKForImageTextRetrieval(config).eval().to(device)
    reduced = CCRKForImageTextRetrieval(config).eval().to(device)
    reduced.load_state_dict(model.state_dict())
    if arguments.bf16:
        reduced.to(torch.bfloat16)

    results = {"machine": platform.processor() or platform.machine(), "device": device, "torch": torch.__version__}
    results |= {"threads": torch.get_num_threads(), "dtype_ours": str(reduced.dtype)[6:], "images": size}
    results |= {"captions": size, "k_test": k_test, "width": width, "image_size": image_size, "rounds": ROUNDS}
    for name, alike, steps in (("", True, STEPS), ("_little_overlap", False, {"published": published, "ours": ours})):
        corpus = make_corpus(model, size, k_test, alike, device)
        pairs = corpus.pairs()
        overlap = 2 * (1 - len(pairs.unique(dim=0)) / len(pairs))
        recall = (corpus.similarities.argmax(dim=1) == torch.arange(size)).float().mean().item()
        times: dict[str, list[float]] = {step: [] for step in steps}
        for _ in tqdm(range(ROUNDS), desc=f"{overlap:.0%} of the pairs in both directions", disable=None):
            reference = None
            for step, function in steps.items():
                seconds, scores = timed(function, reduced if function is ours else model, corpus)
                times[step].append(seconds)
                reference = scores if reference is None else reference
                assert torch.equal(scores.isnan(), reference.isnan()), f"{step}: other pairs were scored"
                difference = (scores - reference).nan_to_num().abs().max().item()
                assert arguments.bf16 or difference < TOLERANCE, f"{step}: scores differ by {difference}"
        medians = {step: statistics.median(seconds) for step, seconds in times.items()}
        first, *_, last = medians.values()
        results |= {f"overlap{name}": overlap, f"recall_at_1{name}": recall, f"ratio{name}": first / last}
        results |= {f"seconds{name}": times, f"max_abs_difference{name}": difference}
        print(f"{size} images, {size} captions, k_test {k_test}, {overlap:.0%} of the pairs in both directions")
        for step, seconds in medians.items():
            print(f"  {seconds:8.2f} s {first / seconds:6.1f}x  {step}")
        print(f"  scores differ by at most {difference:.1e}")

    results["seconds_as_the_corpus_grows"] = {
        factor: statistics.median(timed(ours, reduced, corpus)[0] for _ in range(ROUNDS))
        for factor in (1, 2, 4)
        for corpus in [make_corpus(reduced, factor * size, k_test, True, device)]
    }
    print("ours, the corpus 1, 2 and 4 times that size:", end="")
    print("".join(f" {seconds:.2f} s" for seconds in results["seconds_as_the_corpus_grows"].values()))
    arguments.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
