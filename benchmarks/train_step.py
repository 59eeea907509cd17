"""Forward and backward of one pre-training step: the published procedure against ours, same weights and same draws.

    python benchmarks/train_step.py --output train_step.json            10 rounds with 10 and with 4 captions per image
    python benchmarks/train_step.py --output train_step.json --quick    3 rounds

The published procedure, as its code has it: every caption padded to 40 tokens; eager attention; hard negatives drawn
in a loop over rows, each waiting for its number; the fusion encoder three times (positives, negatives, masked
captions), with cross-attention keys and values made anew for every pair and all tokens through all layers; the LM head
on 12 places per caption, however few are masked. Ours is `CCRKForPreTraining`, called as the trainer calls it.

The model is the published one with narrower layers and a smaller vocabulary, for two cores. Both draw positives,
negatives and masks from the same numbers, so that losses must agree; dropout is off, for it could not be the same. The
steps alternate, and `ratio` is that of the medians. `flop_ratio` compares counted operations: what `ratio` would be if
all of them ran at one speed. The image encoder, where both do the same work, is timed alone, too. The top of the JSON
file is for 10 captions per image, `by_captions` for each number.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from tqdm.auto import tqdm

from ccrk import CCRKConfig, CCRKForPreTraining
from objectives_ccrk import (
    SAMPLING_EPSILON,
    contrastive_loss,
    cross_entropy,
    mask_captions,
    matching_numbers,
    sampling_keys,
)

PADDED_LENGTH = 40  # tokens, in the published pre-training
MEAN_LENGTH, SHORTEST, LONGEST = 15, 5, 34
TOLERANCE = 1e-5

BATCH_SIZE = 8
CAPTIONS = (10, 4)
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
VISION = {"image_size": 224, "embed_dim": 48, "depths": [2, 2, 18, 2], "num_heads": [3, 6, 12, 24], "window_size": 7}
TEXT = {"vocab_size": 32_000, "hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536}
TEXT |= {"num_hidden_layers": 6, "max_position_embeddings": 514}

Losses = dict[str, Tensor]


def make_batch(config: CCRKConfig, num_captions: int, batch_size: int | None = None) -> dict[str, Tensor]:
    """Captions as long as real ones: few are long, so most of what is padded to the longest is padding."""
    batch_size = BATCH_SIZE if batch_size is None else batch_size
    generator = torch.Generator().manual_seed(0)
    spread = 0.4 * torch.randn(batch_size, num_captions, generator=generator) - 0.08  # exp(.) has a mean of 1
    lengths = (MEAN_LENGTH * spread.exp()).round().clamp(SHORTEST, LONGEST).long()
    lengths[0, 0] = LONGEST
    input_ids = torch.randint(4, config.mask_token_id, (batch_size, num_captions, PADDED_LENGTH), generator=generator)
    attention_mask = torch.arange(PADDED_LENGTH) < lengths[:, :, None]
    size = config.vision_config.image_size
    return {
        "input_ids": input_ids.masked_fill(~attention_mask, config.text_config.pad_token_id),
        "attention_mask": attention_mask.long(),
        "pixel_values": torch.randn(batch_size, 3, size, size, generator=generator),
        "image_ids": torch.arange(batch_size),
    }


def draw_in_a_loop(logits: Tensor, excluded: Sequence[Sequence[int]], numbers: Tensor) -> Tensor:
    """One index per row by softmax, none of the row's `excluded`: row by row, as the published code does."""
    weights = logits.softmax(dim=1) + SAMPLING_EPSILON
    drawn = []
    for row, columns in enumerate(excluded):
        weights[row, columns] = 0
        drawn.append((weights[row] / -numbers[row].log()).argmax().item())
    return torch.tensor(drawn, device=logits.device)


def published(model: CCRKForPreTraining, batch: dict[str, Tensor], keys: Tensor) -> Losses:
    base, config = model.ccrk, model.config
    batch_size, num_captions = batch["input_ids"].shape[:2]
    captions, mask = batch["input_ids"].flatten(0, 1), batch["attention_mask"].flatten(0, 1)
    device = captions.device
    positions = torch.arange(PADDED_LENGTH, device=device)[None]

    def additive(mask: Tensor) -> Tensor:
        return (1.0 - mask[:, None, None].float()) * torch.finfo(torch.float32).min

    def encode(input_ids: Tensor, mask: Tensor) -> Tensor:
        return base.text_model(input_ids=input_ids, attention_mask=mask, position_ids=positions).last_hidden_state

    def fuse(image_states: Tensor, text_states: Tensor, mask: Tensor) -> Tensor:
        for layer in base.fusion_encoder.layers:
            text_states = layer(text_states, additive(mask), image_states)
        return text_states

    image = base.get_image_features(batch["pixel_values"])
    text_states = encode(captions, mask)
    image_embeds = torch.nn.functional.normalize(image.pooler_output, dim=-1)
    text_embeds = torch.nn.functional.normalize(base.text_projection(text_states[:, 0]), dim=-1)
    contrastive = contrastive_loss(
        image_embeds, text_embeds.unflatten(0, (batch_size, num_captions)), base.temperature
    )

    with torch.no_grad():
        logits = image_embeds @ text_embeds.t() / base.temperature
        numbers = matching_numbers(keys, num_captions)
        weights = logits.softmax(dim=1) + SAMPLING_EPSILON
        others = weights.max() + SAMPLING_EPSILON - weights
        own = torch.arange(batch_size * num_captions).view(batch_size, num_captions).tolist()
        chosen = torch.tensor(
            [
                columns[(others[row, columns] / -numbers.positive[row].log()).argmax().item()]
                for row, columns in enumerate(own)
            ],
            device=device,
        )
        negative_image = draw_in_a_loop(logits.t()[chosen], [[row] for row in range(batch_size)], numbers.image)
        negative_caption = draw_in_a_loop(logits, own, numbers.caption)

    image_states = image.last_hidden_state
    positive = fuse(image_states, text_states[chosen], mask[chosen])
    negative = fuse(
        torch.cat([image_states[negative_image], image_states]),
        torch.cat([text_states[chosen], text_states[negative_caption]]),
        torch.cat([mask[chosen], mask[negative_caption]]),
    )
    labels = torch.tensor([1] * batch_size + [0] * 2 * batch_size, device=device)
    matching = cross_entropy(model.matching_head(torch.cat([positive[:, 0], negative[:, 0]])), labels)

    masked = mask_captions(
        captions[chosen], mask[chosen], config.mask_token_id, config.text_config.vocab_size, keys=keys
    )
    fused = fuse(image_states, encode(masked.input_ids, mask[chosen]), mask[chosen])
    masked_states = fused.gather(1, masked.positions[:, :, None].expand(-1, -1, fused.shape[-1]))
    mlm = cross_entropy(model.lm_head(masked_states), masked.labels)
    return {"contrastive": contrastive, "matching": matching, "mlm": mlm, "loss": contrastive + matching + mlm}


def ours(model: CCRKForPreTraining, batch: dict[str, Tensor], keys: Tensor) -> Losses:
    outputs = model(**batch, sampling_keys=keys)
    return {
        "contrastive": outputs.contrastive_loss,
        "matching": outputs.matching_loss,
        "mlm": outputs.mlm_loss,
        "loss": outputs.loss,
    }


def image_encoder(model: CCRKForPreTraining, batch: dict[str, Tensor], keys: Tensor) -> Losses:
    return {"loss": model.ccrk.get_image_features(batch["pixel_values"]).last_hidden_state.mean()}


Step = Callable[[CCRKForPreTraining, dict[str, Tensor], Tensor], Losses]
# With the attention of each.
STEPS: dict[str, tuple[Step, str]] = {"published": (published, "eager"), "ours": (ours, "sdpa")}


def run(step: Step, model: CCRKForPreTraining, batch: dict[str, Tensor], keys: Tensor) -> tuple[float, dict]:
    """Seconds of forward and backward, and the losses."""
    model.zero_grad()
    started = time.perf_counter()
    losses = step(model, batch, keys)
    losses["loss"].backward()
    seconds = time.perf_counter() - started
    return seconds, {name: loss.item() for name, loss in losses.items()}


def count_operations(step: Step, model: CCRKForPreTraining, batch: dict[str, Tensor], keys: Tensor) -> int:
    model.set_attn_implementation("eager")  # its products are counted one by one; those of SDPA's CPU kernels are not
    with FlopCounterMode(display=False) as counter:
        run(step, model, batch, keys)
    return counter.get_total_flops()


def compare(model: CCRKForPreTraining, num_captions: int, rounds: int) -> dict:
    """Alternating steps, each round with draws of its own, after one round that is not timed."""
    padded = make_batch(model.config, num_captions)
    length = -(-LONGEST // 8) * 8  # as the processor pads
    trimmed = padded | {name: padded[name][:, :, :length] for name in ("input_ids", "attention_mask")}
    batches = {"published": padded, "ours": trimmed}
    seconds: dict[str, list[float]] = {name: [] for name in STEPS}
    image_seconds: dict[str, list[float]] = {name: [] for name in STEPS}
    difference = 0.0
    for index in tqdm(range(rounds + 1), desc=f"{num_captions} captions per image", disable=None):
        keys = sampling_keys(padded["image_ids"], seed=0, step=index)
        losses = {}
        for name, (step, attention) in STEPS.items():
            model.set_attn_implementation(attention)
            elapsed, losses[name] = run(step, model, batches[name], keys)
            image_elapsed, _ = run(image_encoder, model, padded, keys)
            if index > 0:
                seconds[name].append(elapsed)
                image_seconds[name].append(image_elapsed)
        for part, expected in losses["published"].items():
            relative = abs(losses["ours"][part] - expected) / abs(expected)
            assert relative < TOLERANCE, f"{part}: {losses['ours'][part]} instead of {expected}"
            difference = max(difference, relative)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    operations = {name: count_operations(step, model, batches[name], keys) for name, (step, _) in STEPS.items()}
    return {
        "ratio": medians["published"] / medians["ours"],
        "flop_ratio": operations["published"] / operations["ours"],
        "loss_difference": difference,
        "seconds": seconds,
        "seconds_of_image_encoder": image_seconds,
        "flop": operations,
        "mean_length": padded["attention_mask"].sum(dim=2).float().mean().item(),
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--quick", action="store_true", help="3 rounds instead of 10")
    arguments = parser.parse_args(argv)
    rounds = 3 if arguments.quick else 10

    torch.manual_seed(0)
    model = CCRKForPreTraining(
        CCRKConfig(vision_config=VISION | {"drop_path_rate": 0.0}, text_config=TEXT | NO_DROPOUT)
    )
    model.train()
    by_captions = {}
    for num_captions in CAPTIONS:
        by_captions[num_captions] = result = compare(model, num_captions, rounds)
        for name in STEPS:
            whole, image = (statistics.median(result[key][name]) for key in ("seconds", "seconds_of_image_encoder"))
            print(f"  {name}: {whole:.3f} s, of which the image encoder alone {image:.3f} s")
        print(f"  {result['ratio']:.2f}x; by counted operations {result['flop_ratio']:.2f}x")
        print(f"  losses differ by {result['loss_difference']:.1e}")
    top = {name: by_captions[CAPTIONS[0]][name] for name in ("ratio", "flop_ratio", "loss_difference")}
    results = {**top, "machine": platform.processor() or platform.machine(), "torch": torch.__version__}
    results |= {"threads": torch.get_num_threads(), "images": BATCH_SIZE, "rounds": rounds, "by_captions": by_captions}
    arguments.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
