"""Peak memory of one pre-training step in chunks, as a share of that of the whole batch: 64 images, 10 captions each.

    python benchmarks/chunked_step.py --output chunked_step.json

Each step runs in a process of its own, whose resident memory (CPU) is compared before the step and at its peak. The
model is small, for two cores: weights, gradients and the optimizer, which chunks do not save, weigh little in it.
"""

import argparse
import json
import multiprocessing
import resource
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch

from ccrk import CCRKConfig, CCRKForPreTraining
from ccrk.training.arguments import CCRKTrainingArguments
from ccrk.training.trainer import CCRKTrainer

IMAGES, CAPTIONS, TOKENS, IMAGE_SIZE = 64, 10, 24, 112
VISION = {"image_size": IMAGE_SIZE, "embed_dim": 24, "depths": [2, 2, 2], "num_heads": [1, 2, 4], "window_size": 7}
TEXT = {
    "vocab_size": 8000,
    "hidden_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 768,
    "max_position_embeddings": 64,
    "type_vocab_size": 1,
}


def peak_mebibytes(chunk_size: int | None) -> float:
    """What one step adds to this process's resident memory, at most."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = CCRKForPreTraining(CCRKConfig(vision_config=VISION, text_config=TEXT, num_fusion_layers=2))
    with tempfile.TemporaryDirectory() as folder:
        trainer = CCRKTrainer(
            model,
            CCRKTrainingArguments(
                output_dir=folder, use_cpu=True, report_to="none", contrastive_chunk_size=chunk_size
            ),
        )
    trainer.current_gradient_accumulation_steps = 1  # what the training loop sets before its first step
    batch = {
        "input_ids": torch.randint(4, TEXT["vocab_size"] - 1, (IMAGES, CAPTIONS, TOKENS)),
        "attention_mask": torch.ones(IMAGES, CAPTIONS, TOKENS, dtype=torch.long),
        "caption_mask": torch.ones(IMAGES, CAPTIONS, dtype=torch.bool),
        "pixel_values": torch.randn(IMAGES, 3, IMAGE_SIZE, IMAGE_SIZE),
        "image_ids": torch.arange(IMAGES),
    }
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    trainer.training_step(model, batch)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--chunk_sizes", type=int, nargs="+", default=[32, 16, 8])
    arguments = parser.parse_args(argv)
    # Spawned one by one: memory that an earlier step gave back must not hide what a later one needs.
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        whole = pool.apply(peak_mebibytes, (None,))
        chunked = {size: pool.apply(peak_mebibytes, (size,)) for size in arguments.chunk_sizes}
    print(f"whole batch: {whole:,.0f} MiB")
    for size, peak in chunked.items():
        print(f"chunks of {size}: {peak:,.0f} MiB, {100 * peak / whole:.1f} %")
    shares = {size: peak / whole for size, peak in chunked.items()}
    arguments.output.write_text(json.dumps({"whole_mebibytes": whole, "share_by_chunk_size": shares}, indent=2) + "\n")


if __name__ == "__main__":
    main()
