"""What training and indexing cost on 1, 8 and 64 GPUs, by counted operations and stated rates.

    python benchmarks/cost.py                prints docs/scale.md but for its measurements
    python benchmarks/cost.py --measure      and bytes and images/s of 1, 2 and 4 CPU processes

Operations are counted on the meta device at published size, so that nothing is computed. Rates are stated, not
measured.
"""

import argparse
import os
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from accelerate import Accelerator
from torch.nn.parallel import DistributedDataParallel
from torch.utils.flop_counter import FlopCounterMode
from transformers import SiglipConfig, SiglipModel

from ccrk import CCRKConfig, CCRKForPreTraining
from ccrk.encoding import CCRKEncoder
from ccrk.training.losses import OneToKLoss
from objectives_ccrk import sampling_keys

# Of one H100 (SXM), as its data sheet states them; what share of them training reaches is a guess, for `make gpu` to
# replace. Bytes/s per GPU and direction: NVLink within a machine of eight GPUs, 400 Gbit/s between machines.
PEAK, SHARE = 989e12, 0.35
WITHIN, BETWEEN = 450e9, 50e9
DECODED = 200  # pictures of 500 px that a core decodes, resizes and normalises in a second; a guess as well
CAPTION, MASKED = 16, 6  # tokens of a caption on average, and of them masked
GPUS = (1, 8, 64)


def forward_operations(function: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        function()
    return counter.get_total_flops()


@dataclass
class Step:
    """Of pre-training: per image, forward operations of each part; and the model's size."""

    image: int
    text: int  # of K captions and the masked one
    fusion: int  # three pairs and the masked caption
    head: int  # the LM head on masked tokens
    parameters: int
    projection: int
    captions: int

    @property
    def operations(self) -> int:
        """Of forward and backward, which takes twice as many."""
        return 3 * (self.image + self.text + self.fusion + self.head)

    def gathered(self, batch: int) -> int:
        """Bytes of one process's embeddings, in fp32."""
        return 4 * batch * (1 + self.captions) * self.projection

    def sent(self, batch: int, processes: int) -> float:
        """
        Bytes that each process sends in a step: gradients summed over a ring; embeddings to all others, and the
        gradients of theirs back.
        """
        others = processes - 1
        return 2 * others / processes * 4 * self.parameters + 2 * others * self.gathered(batch)

    def logits(self, batch: int, processes: int) -> float:
        """Bytes of the similarities of all images and captions in fp32, which every process holds."""
        return 4.0 * (batch * processes) ** 2 * self.captions

    def contrastive(self, batch: int, processes: int) -> float:
        """Operations of these similarities, forward and backward, which every process does."""
        return 6.0 * (batch * processes) ** 2 * self.captions * self.projection


def count_step(config: CCRKConfig, captions: int) -> Step:
    with torch.device("meta"):
        model = CCRKForPreTraining(config).eval()
        model.set_attn_implementation("eager")  # whose products are counted one by one
        size = config.vision_config.image_size
        picture = torch.empty(1, 3, size, size)
        tokens = torch.ones(captions + 1, CAPTION, dtype=torch.long)
        image_states = model.ccrk.get_image_features(picture).last_hidden_state
        text_states = torch.empty(4, CAPTION, config.text_config.hidden_size)
        index = torch.zeros(4, dtype=torch.long)
        masked = torch.empty(MASKED, config.text_config.hidden_size)
        return Step(
            image=forward_operations(lambda: model.ccrk.get_image_features(picture)),
            text=forward_operations(lambda: model.ccrk.get_text_features(tokens)),
            fusion=forward_operations(lambda: model.ccrk.fusion_encoder(image_states, text_states, None, index)),
            head=forward_operations(lambda: model.lm_head(masked)),
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            projection=config.projection_dim,
            captions=captions,
        )


def count_siglip() -> tuple[int, int, int]:
    """Of SigLIP 2 B/16 at 224 px: forward operations of a picture and a caption, and parameters of the text tower."""
    with torch.device("meta"):
        config = SiglipConfig(text_config={"vocab_size": 256_000})
        model = SiglipModel._from_config(config, attn_implementation="eager").eval()
        picture = torch.empty(1, 3, 224, 224)
        caption = torch.ones(1, 64, dtype=torch.long)
        return (
            forward_operations(lambda: model.get_image_features(picture)),
            forward_operations(lambda: model.get_text_features(caption)),
            sum(parameter.numel() for parameter in model.text_model.parameters()),
        )


def step_seconds(step: Step, batch: int, processes: int) -> dict[str, float]:
    """Seconds of a step: of computing, and of sending what backward does not hide."""
    bandwidth = WITHIN if processes <= 8 else BETWEEN
    compute = batch * step.operations / (PEAK * SHARE)
    contrastive = step.contrastive(batch, processes) / (PEAK * SHARE)
    gather = 2 * (processes - 1) * step.gathered(batch) / bandwidth
    gradients = step.sent(batch, processes) / bandwidth - gather
    shown = max(0.0, gradients - compute * 2 / 3)  # the rest is sent while backward computes
    return {"compute": compute, "contrastive": contrastive, "gather": gather, "gradients": shown}


def hours(seconds: float) -> str:
    return f"{seconds / 3600:,.1f} h" if seconds >= 360 else f"{seconds:,.0f} s"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def document() -> str:
    step = count_step(CCRKConfig(), captions=10)
    batch, samples = 64, 3_000_000 * 30
    parts = {"image encoder": step.image, "text encoder, 11 captions": step.text, "fusion, 4 captions": step.fusion}
    parts["LM head"] = step.head
    pretraining, memory = [], []
    for gpus in GPUS:
        seconds = step_seconds(step, batch, gpus)
        whole = sum(seconds.values())
        steps = samples / (batch * gpus)
        pretraining.append(
            [
                str(gpus),
                f"{batch * gpus:,}",
                f"{steps:,.0f}",
                *(f"{1000 * value:,.1f} ms" for value in seconds.values()),
                hours(steps * whole),
                f"{step.sent(batch, gpus) / 1e9:.2f} GB",
            ]
        )
    for gpus in (1, 8, 64, 256, 512):
        seconds = step_seconds(step, batch, gpus)
        memory.append(
            [
                str(gpus),
                f"{gpus * step.gathered(batch) / 1e6:,.0f} MB",
                f"{step.logits(batch, gpus) / 1e9:,.2f} GB",
                f"{1000 * seconds['gather']:,.1f} ms",
                f"{1000 * seconds['contrastive']:,.1f} ms",
                f"{100 * seconds['compute'] / sum(seconds.values()):.0f} %",
            ]
        )
    picture, caption, text_parameters = count_siglip()
    pictures, epochs = 1_000_000, 3
    cached = pictures * picture
    retrofit = epochs * pictures * 10 * 3 * caption
    hundred_million = 100_000_000
    rate = PEAK * SHARE
    retrofits = [
        [
            str(gpus),
            hours(cached / rate / gpus),
            hours(retrofit / rate / gpus),
            f"{epochs * pictures / 256 / gpus:,.0f}",
        ]
        for gpus in GPUS
    ]
    per_gpu = rate / step.image
    indexing = [
        [
            str(gpus),
            hours(hundred_million / per_gpu / gpus),
            f"{per_gpu * gpus / DECODED:,.0f}",
            hours(hundred_million / (16 * gpus * DECODED)),
        ]
        for gpus in GPUS
    ]
    pictures_per_second = batch / step_seconds(step, batch, 1)["compute"]
    head = [
        "GPUs",
        "batch",
        "steps",
        "compute",
        "similarities",
        "gather",
        "gradients",
        "in all",
        "sent per step and GPU",
    ]
    scaling = ["GPUs", "embeddings gathered", "similarities, one copy", "gather", "similarities", "share of the model"]
    counted = [[name, f"{value / 1e9:,.1f}"] for name, value in parts.items()]
    return f"""# What it costs on 1, 8 and 64 GPUs

By count, not by stopwatch: nothing here was run on a GPU. `python benchmarks/cost.py` prints this page; with
`--measure` it also runs the check at its end. Operations are counted by PyTorch on the meta device at
published size; a multiplication with its addition is two. Rates are stated: an H100's {PEAK / 1e12:.0f}
TFLOP/s in bf16, of which training is taken to reach {100 * SHARE:.0f} %, a guess; {WITHIN / 1e9:.0f} GB/s per
GPU and direction within a machine of eight, {BETWEEN / 1e9:.0f} GB/s between machines. `make gpu` measures the
share on the GPU that you have.

## The formula

N processes, B images each, K captions, embeddings of P numbers, W weights, F operations per image, R operations per
second, S bytes per second:

    step  =  B F / R  +  6 (N B)² K P / R  +  2 (N - 1) · 4 B (1 + K) P / S
             +  what of 2 (N - 1) / N · 4 W / S backward does not hide
    F     =  3 (image + text + fusion + LM head): forward, and twice that backward

The second term is the similarity of all images and all captions, which every process computes whole; the third sends
embeddings to all processes, and the gradients of theirs back; the last sums gradients over a ring. Weights,
gradients and AdamW take 16 bytes a weight: {16 * step.parameters / 1e9:.1f} GB for {step.parameters / 1e6:.0f}
M weights, or a share of that under ZeRO-3 and FSDP2.

## Pre-training: 3 M pictures, ten languages, 30 epochs

{table(["part", "GFLOP forward, per image"], counted)}
{step.operations / 1e12:.2f} TFLOP per image, forward and backward, with captions of {CAPTION} tokens;
{samples * step.operations:.2e} FLOP in all.

{table(head, pretraining)}
A GPU takes {pictures_per_second:,.0f} pictures a second, for which {pictures_per_second / DECODED:,.1f} cores
decode, at {DECODED} pictures a second each (a guess; `benchmarks/data_loading.py` measures it).

## Where it stops scaling

With 64 images a process and ten captions:

{table(scaling, memory)}
The loss holds several copies of the similarities in fp32, and so memory ends it before time does. Beyond, each process
should compute its own rows and columns alone, which this project does not do. A machine's eight GPUs could sum their
gradients before they send them to others; the formula has one ring through all.

## Retrofitting SigLIP 2 B/16 with cached features

{pictures / 1e6:.0f} M pictures with ten captions of 64 tokens, {epochs} epochs, the image encoder frozen: pictures are
encoded once ({picture / 1e9:.0f} GFLOP each), their features, {pictures * 768 * 4 / 1e9:.1f} GB, are kept, and
steps train the text encoder alone ({caption / 1e9:.1f} GFLOP forward a caption; {text_parameters / 1e6:.0f} M
weights, most of them the vocabulary).

{table(["GPUs", "encoding pictures once", "training", "steps of 256 images a GPU"], retrofits)}
Captions are most of it, {30 * caption / 1e9:.0f} GFLOP an image: without the cache each epoch would encode the picture
again, for another {picture / 1e9:.0f}.

## Indexing 100 M pictures

Swin-B at 224 px, {step.image / 1e9:.1f} GFLOP a picture; vectors of {4 * step.projection} bytes,
{hundred_million * 4 * step.projection / 1e9:.0f} GB.

{table(["GPUs", "encoding", "cores that decode as fast", "decoding on 16 cores a GPU"], indexing)}
Decoding decides, not the GPU.
"""


# --- the check: bytes that processes really send


def bytes_sent() -> int:
    """Of this process's TCP connections that are open, as the kernel counts them."""
    total = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            if not os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(name))) as connection:
                info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 136)
        except OSError:  # no TCP, or closed meanwhile
            continue
        total += int.from_bytes(info[120:128], sys.byteorder)  # tcpi_bytes_acked
    return total


SMALL = {
    "vision_config": {"image_size": 64, "embed_dim": 24, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4},
    "text_config": {"vocab_size": 800, "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    | {"intermediate_size": 128, "max_position_embeddings": 40},
    "num_fusion_layers": 1,
    "projection_dim": 256,
}
BATCH, CAPTIONS = 8, 10


def measure_process(rank: int, processes: int, port: int, steps: int, found) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True)
    model = CCRKForPreTraining(CCRKConfig(**SMALL)).train()
    encoder, loss = CCRKEncoder(model, None), OneToKLoss(accelerator)
    wrapped = DistributedDataParallel(model) if processes > 1 else model
    shape = (BATCH, CAPTIONS, CAPTION)
    batch = {
        "input_ids": torch.randint(4, 700, shape),
        "attention_mask": torch.ones(shape, dtype=torch.long),
        "caption_mask": torch.ones(shape[:2], dtype=torch.bool),
        "pixel_values": torch.randn(BATCH, 3, 64, 64),
        "image_ids": torch.arange(BATCH) + BATCH * rank,
        "caption_lengths": [[CAPTION] * CAPTIONS] * BATCH,
    }
    batch["sampling_keys"] = sampling_keys(batch["image_ids"], 0, 0)

    def step() -> None:
        model.zero_grad()
        torch.stack(list(loss(encoder.embed(wrapped, batch), batch).values())).sum().backward()

    for _ in range(2):
        step()
    sent, started = bytes_sent(), time.perf_counter()
    for _ in range(steps):
        step()
    seconds = (time.perf_counter() - started) / steps
    found.put((rank, (bytes_sent() - sent) / steps, BATCH / seconds))
    if processes > 1:
        torch.distributed.barrier()  # the others count too, while connections are open
        torch.distributed.destroy_process_group()


def measure(processes: int, steps: int) -> tuple[float, float]:
    """Bytes that a process sends in a step, and its images/s; means over processes."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    context = torch.multiprocessing.get_context("spawn")
    found = context.SimpleQueue()
    run = partial(torch.multiprocessing.spawn, args=(processes, port, steps, found), nprocs=processes)
    run(measure_process)
    results = [found.get() for _ in range(processes)]
    return tuple(sum(values) / processes for values in list(zip(*results, strict=True))[1:])


def check(steps: int = 10, counts: Sequence[int] = (1, 2, 4)) -> str:
    step = count_step(CCRKConfig(**SMALL), CAPTIONS)
    rows, alone, cores = [], None, os.cpu_count() or 1
    for processes in counts:
        sent, rate = measure(processes, steps)
        alone = alone or rate
        expected, expected_rate = step.sent(BATCH, processes), alone * min(1, cores / processes)
        rows.append(
            [
                str(processes),
                f"{expected / 1e6:.2f} MB",
                f"{sent / 1e6:.2f} MB",
                f"{100 * (sent / expected - 1):+.0f} %" if expected else "",
                f"{expected_rate:.1f}",
                f"{rate:.1f}",
            ]
        )
    head = [
        "processes",
        "sent per step, by formula",
        "sent",
        "difference",
        "images/s each, by formula",
        "images/s each",
    ]
    return f"""## Measured

{steps} steps of {BATCH} images with {CAPTIONS} captions by a model of {step.parameters / 1e6:.2f} M weights, gloo, one
thread a process, {cores} cores. Bytes are the kernel's count of what each process has sent over TCP; by
formula, processes share the cores and nothing else.

{table(head, rows)}"""


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true", help="run 1, 2 and 4 processes on this machine's CPU, too")
    arguments = parser.parse_args(argv)
    print(document())
    if arguments.measure:
        print(check())


if __name__ == "__main__":
    main()
