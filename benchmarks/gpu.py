"""Everything that a machine with a GPU can tell, in one command of at most nine minutes, without a network.

    python -m benchmarks.gpu                at published size; without a GPU small, for the code's sake
    python -m benchmarks.gpu --minutes 4    parts that would not fit are left out, and said

It needs PyTorch, transformers and accelerate. First come checks: outputs against the CPU, attention implementations
against one another, gradients, a step in chunks, what a step says that runs out of memory, going on from a checkpoint.
Then times, with random weights: steps of training and re-ranking against the published procedures, written out in
`benchmarks/train_step.py` and here; encoding; decoding of JPEG files, on the device as well; 1-to-K of a SigLIP of
base size against a caption at a time; the index where lancedb is installed. After each part `outputs/gpu.json` is
written and its rows are printed: a run that is cut short is worth what it has done. The exit status is 1 where a part
has failed.
"""

import argparse
import contextlib
import importlib.util
import io
import json
import platform
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import torch
import train_step
import transformers
from accelerate import Accelerator
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from transformers import SiglipConfig, SiglipModel

from ccrk import CCRKConfig, CCRKForImageTextRetrieval, CCRKForPreTraining
from ccrk.encoding import CCRKEncoder, EncodedCaptions
from ccrk.training.compilation import compile_encoders
from ccrk.training.gradient_cache import chunked_backward
from ccrk.training.losses import OneToKLoss
from ccrk.training.memory import memory_advice
from ccrk.training.optimizer import published_epsilon
from objectives_ccrk import sampling_keys, sigmoid_loss
from pictures_ccrk import read_image

RERANK_LENGTH = 80  # tokens that the published code pads captions to
NO_DROPOUT = train_step.NO_DROPOUT
TINY_VISION = {"image_size": 64, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4}
TINY_TEXT = {
    "vocab_size": 1000,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 130,
}
TINY = {"vision_config": TINY_VISION, "text_config": TINY_TEXT, "num_fusion_layers": 2, "projection_dim": 32}


@dataclass
class Sizes:
    """What is measured: the published model, or on a CPU a tiny one by the same code."""

    pretraining: dict = field(default_factory=dict)  # CCRKConfig's own: Swin-B at 224 px, 6 + 6 layers of XLM-R large
    retrieval: dict = field(default_factory=lambda: {"vision_config": {"image_size": 384, "window_size": 12}})
    siglip: dict = field(default_factory=dict)  # SiglipConfig's own: B/16 at 224 px
    batch: int = 64
    rerank: tuple[int, int] = (32, 128)  # images, and candidates of each
    matrix: int = 8192
    seconds: float = 4.0  # that a time is taken over
    least: int = 5  # steps, of which two are not counted


SMALL = Sizes(
    pretraining=TINY,
    retrieval=TINY,
    siglip={
        "vision_config": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
        | {"image_size": 32, "patch_size": 16},
        "text_config": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
        | {"vocab_size": 100, "projection_size": 32},
    },
    batch=4,
    rerank=(4, 6),
    matrix=256,
    seconds=0.0,
    least=3,
)


class Failed(AssertionError):
    """A check has not come out as it must."""


class Run:
    """The parts that were done, on disk and on the screen after each."""

    def __init__(self, output: Path, device: torch.device, sizes: Sizes, minutes: float):
        self.output, self.device, self.sizes = output, device, sizes
        self.ends_at = time.monotonic() + 60 * minutes
        self.results: dict[str, dict] = {"machine": machine(device)}
        self.rate = 0.0  # of bf16 products, FLOP/s

    def part(self, name: str, seconds: float, function: Callable[["Run"], dict]) -> None:
        """Does a part that takes about so many seconds on a GPU, where they are left."""
        started, left = time.monotonic(), self.ends_at - time.monotonic()
        if self.device.type == "cuda" and left < seconds:
            found = {"skipped": f"takes about {seconds:.0f} s, {max(left, 0):.0f} s are left"}
        else:
            try:
                found = function(self)
            except Failed as error:
                found = {"failed": str(error)}
            except Exception as error:  # one part's end must not be that of the others
                found = {"error": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}
        self.results[name] = found | {"seconds": round(time.monotonic() - started, 1)}
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.output.parent.mkdir(parents=True, exist_ok=True)
        self.output.write_text(json.dumps(self.results, indent=1) + "\n")
        for key, value in found.items():
            print(f"| {name} | {key} | {value if isinstance(value, str) else f'{value:,.4g}'} |", flush=True)

    def time(self, step: Callable[[], object]) -> float:
        """Median seconds of a step, after two that are not counted."""
        taken: list[float] = []
        ends_at = time.monotonic() + self.sizes.seconds
        while len(taken) < self.sizes.least or (time.monotonic() < ends_at and len(taken) < 50):
            self.wait()
            started = time.perf_counter()
            step()
            self.wait()
            taken.append(time.perf_counter() - started)
        return statistics.median(taken[2:])

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def peak(self, step: Callable[[], object]) -> float:
        """GiB that are allocated in a step at most; 0 on a CPU."""
        if self.device.type != "cuda":
            step()
            return 0.0
        torch.cuda.reset_peak_memory_stats(self.device)
        step()
        return torch.cuda.max_memory_allocated(self.device) / (1 << 30)

    def bf16(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16)


def machine(device: torch.device) -> dict:
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    if device.type != "cuda":
        return versions | {"device": f"CPU, {torch.get_num_threads()} threads"}
    properties = torch.cuda.get_device_properties(device)
    return versions | {"device": properties.name, "memory_gib": round(properties.total_memory / (1 << 30), 1)}


def matrix_rate(run: Run) -> dict:
    """What the device does of nothing but products of square matrices."""
    rates = {}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        a, b = (torch.randn(run.sizes.matrix, run.sizes.matrix, device=run.device, dtype=dtype) for _ in range(2))
        rates[dtype] = 2 * run.sizes.matrix**3 / run.time(lambda a=a, b=b: a @ b)
    run.rate = rates[torch.bfloat16]
    return {f"{str(dtype).removeprefix('torch.')} TFLOP/s": rate / 1e12 for dtype, rate in rates.items()}


# --- checks


def tiny_model(kind=CCRKForPreTraining):
    """Untrained embeddings all point the same way; larger weights make them differ."""
    torch.manual_seed(0)
    steady = {"vision_config": TINY_VISION | {"drop_path_rate": 0.0}, "text_config": TINY_TEXT | NO_DROPOUT}
    model = kind(CCRKConfig(**TINY | steady))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
    return model


def tiny_batch(model, device: torch.device, batch_size: int = 8) -> dict:
    batch = train_step.make_batch(model.config, num_captions=3, batch_size=batch_size)
    lengths = batch["attention_mask"].sum(dim=-1).tolist()
    batch["caption_mask"] = torch.ones(batch["input_ids"].shape[:2], dtype=torch.bool)
    return {name: value.to(device) for name, value in batch.items()} | {"caption_lengths": lengths}


def check(found: dict[str, tuple[float, float]]) -> dict:
    """Differences by name, of (difference, the most that it may be); Failed where one is more, or not a number."""
    if wrong := {name: (value, most) for name, (value, most) in found.items() if not value <= most}:
        raise Failed("; ".join(f"{name} {value:.2g}, at most {most:.2g}" for name, (value, most) in wrong.items()))
    return {name: value for name, (value, _) in found.items()}


@torch.no_grad()
def outputs_of(model, batch: dict, dtype: torch.dtype, attention: str) -> Tensor:
    """Cosines of all pairs, and match scores of own pairs, in one row; in fp32 on the CPU."""
    model = model.eval().to(batch["input_ids"].device, dtype)
    model.set_attn_implementation(attention)
    outputs = model.ccrk(batch["input_ids"], batch["pixel_values"], batch["attention_mask"])
    mask = batch["attention_mask"][:, 0]
    scores = model.match(outputs.image_states, outputs.text_states.unflatten(0, (-1, 3))[:, 0], mask)
    cosines = outputs.image_embeds.float() @ outputs.text_embeds.float().flatten(0, 1).t()
    return torch.cat([cosines.flatten(), scores.float().flatten()]).cpu()


def check_outputs(run: Run) -> dict:
    batch = tiny_batch(tiny_model(), torch.device("cpu"))
    there = tiny_batch(tiny_model(), run.device)
    expected = outputs_of(tiny_model(), batch, torch.float32, "eager")
    found = {}
    attentions = ["eager", "sdpa"]
    if run.device.type == "cuda" and transformers.utils.is_flash_attn_2_available():
        attentions.append("flash_attention_2")
    for dtype, most in ((torch.float32, 2e-3), (torch.bfloat16, 0.15), (torch.float16, 0.05)):
        for attention in attentions:
            if attention == "flash_attention_2" and dtype == torch.float32:
                continue
            difference = (outputs_of(tiny_model(), there, dtype, attention) - expected).abs().max().item()
            found[f"{str(dtype).removeprefix('torch.')}, {attention}"] = difference, most * expected.abs().max().item()
    return check(found)


def gradients_of(model, batch: dict, step: Callable, keys: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    step(model, batch, keys)["loss"].backward()
    return {name: p.grad.float().cpu() for name, p in model.named_parameters() if p.grad is not None}


def difference(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest of all parameters, relative to each one's norm; of those whose gradient is more than rounding."""
    scale = max(gradient.norm().item() for gradient in expected.values())
    return max(
        ((found[name] - gradient).norm() / gradient.norm()).item()
        for name, gradient in expected.items()
        if gradient.norm() > 1e-5 * scale
    )


def check_gradients(run: Run) -> dict:
    """Of the step, against the CPU's and against the published procedure; and how often the step waits."""
    cpu, there = tiny_model().train(), tiny_model().train().to(run.device)
    batch, moved = tiny_batch(cpu, torch.device("cpu")), tiny_batch(cpu, run.device)
    keys = sampling_keys(batch["image_ids"], 0, 0)
    expected = gradients_of(cpu, batch, train_step.ours, keys)
    found = gradients_of(there, moved, train_step.ours, keys.to(run.device))
    there.set_attn_implementation("eager")
    plain = {name: value for name, value in moved.items() if not name.startswith("caption_")}
    published = gradients_of(there, plain, train_step.published, keys.to(run.device))
    checked = check({"CPU": (difference(found, expected), 2e-2), "published": (difference(found, published), 2e-2)})
    if run.device.type != "cuda":
        return checked
    there.set_attn_implementation("sdpa")
    run.wait()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            gradients = train_step.ours(there, moved, keys.to(run.device))
            gradients["loss"].backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    waits = sum("synchronizing" in str(warning.message) for warning in caught)
    return checked | check({"waits of a step": (waits, 1)})


def check_chunks(run: Run) -> dict:
    """The contrastive gradient of chunks of 3 against that of the whole batch of 8."""
    accelerator = Accelerator(cpu=run.device.type == "cpu")
    model = tiny_model(CCRKForImageTextRetrieval).train().to(run.device)
    encoder, loss, batch = CCRKEncoder(model, None), OneToKLoss(accelerator), tiny_batch(model, run.device)
    loss.shares = lambda found: {}  # matching draws its negatives within a chunk
    batch["sampling_keys"] = sampling_keys(batch["image_ids"], 0, 0)

    def gradients(chunk_size: int) -> dict[str, Tensor]:
        model.zero_grad()
        chunked_backward(model, encoder, loss, batch, chunk_size, accelerator, contextlib.nullcontext)
        return {name: p.grad.float().cpu() for name, p in model.named_parameters() if p.grad is not None}

    whole = loss.of_embeddings(encoder.embed(model, batch), batch)["contrastive_loss"]
    model.zero_grad()
    whole.backward()
    expected = {name: p.grad.float().cpu() for name, p in model.named_parameters() if p.grad is not None}
    return check({"chunks of 3": (difference(gradients(3), expected), 1e-2)})


def check_memory(run: Run) -> dict:
    """What a step says that does not fit; on a GPU it is one that does not."""
    model = tiny_model().train().to(run.device)
    batch = tiny_batch(model, run.device, batch_size=8 if run.device.type == "cpu" else 512)
    if run.device.type == "cuda":
        held = torch.cuda.memory_reserved(run.device)
        total = torch.cuda.get_device_properties(run.device).total_memory
        torch.cuda.set_per_process_memory_fraction((held + (64 << 20)) / total, run.device)
        try:
            train_step.ours(model, batch, sampling_keys(batch["image_ids"], 0, 0))["loss"].backward()
            raise Failed("a step of 512 images fits into 64 MiB")
        except torch.OutOfMemoryError:
            model.zero_grad()
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0, run.device)
    advice = memory_advice(CCRKEncoder(model, None), model, batch)
    if "--contrastive_chunk_size" not in advice:
        raise Failed(advice)
    return {"says": advice}


def check_resume(run: Run) -> dict:
    """Weights after four steps, against two steps, a checkpoint on disk, and two more."""

    def train(model, optimizer, steps: range) -> None:
        for step in steps:
            batch = tiny_batch(model, run.device)
            model.zero_grad()
            train_step.ours(model, batch, sampling_keys(batch["image_ids"], 0, step))["loss"].backward()
            optimizer.step()

    def start(model):
        optimizer = torch.optim.AdamW(model.train().to(run.device).parameters(), 1e-3)
        optimizer.register_step_pre_hook(published_epsilon)
        return model, optimizer

    model, optimizer = start(tiny_model())
    train(model, optimizer, range(2))
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        torch.save(optimizer.state_dict(), f"{folder}/optimizer.pt")
        train(model, optimizer, range(2, 4))
        resumed, optimizer = start(CCRKForPreTraining.from_pretrained(folder))
        optimizer.load_state_dict(torch.load(f"{folder}/optimizer.pt", weights_only=True))
    train(resumed, optimizer, range(2, 4))
    pairs = zip(model.parameters(), resumed.parameters(), strict=True)
    most = 0.0 if run.device.type == "cpu" else 1e-3  # some sums on a GPU have no order
    return check({"weights": (max((a - b).abs().max().item() for a, b in pairs), most)})


# --- times


def pretraining_model(run: Run) -> CCRKForPreTraining:
    torch.manual_seed(0)
    with run.device:
        return CCRKForPreTraining(CCRKConfig(**run.sizes.pretraining)).train()


def operations(step: Callable, model, batch: dict, keys: Tensor) -> int:
    with torch.autocast(batch["input_ids"].device.type, torch.bfloat16):
        return train_step.count_operations(step, model, batch, keys)


def step_times(num_captions: int, compiled: bool) -> Callable[[Run], dict]:
    """Forward and backward in bf16, of ours and of the published procedure; compiled, of ours alone."""

    def measure(run: Run) -> dict:
        model = pretraining_model(run)
        padded = train_step.make_batch(model.config, num_captions, run.sizes.batch)
        lengths = padded["attention_mask"].sum(dim=-1).tolist()
        padded = {name: value.to(run.device) for name, value in padded.items()}
        batches = {"published": padded, "ours": padded | {"caption_lengths": lengths}}
        keys, found, rates = sampling_keys(padded["image_ids"], 0, 0), {}, {}
        steps = {name: step for name, step in train_step.STEPS.items() if name == "ours" or not compiled}
        for name, (step, attention) in steps.items():
            flop = operations(step, model, batches[name], keys)
            model.set_attn_implementation(attention)
            if compiled:
                compile_encoders(model, "inductor" if run.device.type == "cuda" else "eager", None)

            def forward_and_backward(step=step, batch=batches[name]):
                model.zero_grad()
                with run.bf16():
                    loss = step(model, batch, keys)["loss"]
                loss.backward()

            rates[name] = run.sizes.batch / run.time(forward_and_backward)
            found[f"{name}, images/s"] = rates[name]
            found[f"{name}, GiB"] = run.peak(forward_and_backward)
            achieved = flop * rates[name] / run.sizes.batch
            found[f"{name}, TFLOP/s"] = achieved / 1e12
            if run.rate:
                found[f"{name}, share of the matrix rate"] = achieved / run.rate
        if not compiled:
            found["ratio"] = rates["ours"] / rates["published"]
        return found

    return measure


@torch.no_grad()
def rerank_times(run: Run) -> dict:
    """Pairs per second of image → text, each image with its candidates; the published way is in fp32."""
    torch.manual_seed(0)
    with run.device:
        model = CCRKForImageTextRetrieval(CCRKConfig(**run.sizes.retrieval)).eval()
    num_images, candidates = run.sizes.rerank
    num_captions, generator = 2 * candidates, torch.Generator().manual_seed(0)
    width, text_width = model.ccrk.vision_projection.in_features, model.config.text_config.hidden_size
    vision = model.config.vision_config
    tokens = (vision.image_size // vision.patch_size // 2 ** (len(vision.depths) - 1)) ** 2 + 1
    images = torch.randn(num_images, tokens, width, generator=generator).to(run.device)
    text = torch.randn(num_captions, RERANK_LENGTH, text_width, generator=generator).to(run.device)
    lengths = (18 + 5 * torch.randn(num_captions, generator=generator)).round().clamp(6, 40).long()
    mask = (torch.arange(RERANK_LENGTH) < lengths[:, None]).long().to(run.device)
    chosen = torch.stack([torch.randperm(num_captions, generator=generator)[:candidates] for _ in range(num_images)])
    pairs = np.stack([np.repeat(np.arange(num_images), candidates), chosen.flatten().numpy()], axis=1)

    def published() -> Tensor:
        found = []
        for image, captions in enumerate(chosen.to(run.device)):
            states = images[image].expand(candidates, -1, -1)
            found.append(model.match(states, text[captions], mask[captions])[:, 1].float().cpu())
        return torch.cat(found)

    def ours() -> Tensor:
        states = model.ccrk.fusion_encoder.prepare_captions(text.to(model.dtype), mask)
        captions = EncodedCaptions(None, states[mask.bool()], lengths.cumsum(0) - lengths, lengths)
        return torch.from_numpy(CCRKEncoder(model, None, candidates).score_pairs(images, captions, pairs))

    model.set_attn_implementation("eager")
    expected, rates = published(), {"published": len(pairs) / run.time(published)}
    model.set_attn_implementation("sdpa")
    differences = {}
    for dtype in (torch.float32, torch.bfloat16):
        model.to(dtype)
        name = f"ours, {str(dtype).removeprefix('torch.')}"
        differences[name] = (ours() - expected).abs().max().item()
        rates[name] = len(pairs) / run.time(ours)
    return (
        {f"{name}, pairs/s": rate for name, rate in rates.items()}
        | {f"{name}, ratio": rates[name] / rates["published"] for name in differences}
        | {f"{name}, scores differ by": value for name, value in differences.items()}
    )


@torch.no_grad()
def encoding_times(run: Run) -> dict:
    model = pretraining_model(run).eval().to(torch.bfloat16)
    batch = {k: v.to(run.device) for k, v in train_step.make_batch(model.config, 1, run.sizes.batch).items()}
    images = run.time(lambda: model.ccrk.get_image_features(batch["pixel_values"]))
    captions = run.time(lambda: model.ccrk.get_text_features(batch["input_ids"][:, 0], batch["attention_mask"][:, 0]))
    return {"images/s": run.sizes.batch / images, "captions/s": run.sizes.batch / captions}


def decoding_times(run: Run) -> dict:
    """JPEG files to squares of the model's size: by Pillow in a worker, as here, and by torchvision on the device."""
    if importlib.util.find_spec("torchvision") is None:
        return {"skipped": "torchvision is not installed"}
    from torchvision.io import decode_jpeg
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.functional import resize

    size = CCRKConfig(**run.sizes.pretraining).vision_config.image_size
    files = []
    for seed in range(run.sizes.batch):
        noise = np.random.default_rng(seed)
        octaves = [noise.normal(size=(480 >> k, 640 >> k, 3)).repeat(1 << k, 0).repeat(1 << k, 1) for k in range(6)]
        pixels = (128 + 20 * sum(octaves)).clip(0, 255).astype(np.uint8)  # as much detail at every scale
        Image.fromarray(pixels).save(file := io.BytesIO(), "JPEG", quality=90)
        files.append(file.getvalue())

    def in_a_worker(reduced: bool = True) -> Tensor:
        decoded = [read_image(file, target_size=size if reduced else None) for file in files]
        pictures = [picture.resize((size, size), Image.Resampling.BICUBIC) for picture in decoded]
        return torch.from_numpy(np.stack(pictures)).to(run.device).permute(0, 3, 1, 2)

    def on_the_device() -> Tensor:
        encoded = [torch.frombuffer(bytearray(file), dtype=torch.uint8) for file in files]
        decoded = decode_jpeg(encoded, device=run.device)
        return torch.stack(
            [resize(picture, [size, size], InterpolationMode.BICUBIC, antialias=True) for picture in decoded]
        )

    differ = [
        (in_a_worker(reduced).int() - on_the_device().int()).abs().float().mean().item() for reduced in (True, False)
    ]
    worker, device = (len(files) / run.time(decode) for decode in (in_a_worker, on_the_device))
    return {
        "a worker, images/s": worker,
        "torchvision on the device, images/s": device,
        "workers that are as fast": device / worker,
        "levels of 255 they differ by": differ[0],
        "levels, where the worker decodes all pixels": differ[1],
    }


def siglip_times(run: Run) -> dict:
    """A step of ten captions an image: every image encoded once, against ten steps of one caption an image."""
    torch.manual_seed(0)
    with run.device:
        model = SiglipModel(SiglipConfig(**run.sizes.siglip)).train()
    vision, text = model.config.vision_config, model.config.text_config
    images = torch.randn(run.sizes.batch, 3, vision.image_size, vision.image_size, device=run.device)
    shape = (run.sizes.batch, 10, text.max_position_embeddings)
    captions = torch.randint(text.vocab_size, shape, device=run.device)

    def step(captions: Tensor) -> None:
        model.zero_grad()
        with run.bf16():
            outputs = model(pixel_values=images, input_ids=captions.flatten(0, 1))
            embeds = [F.normalize(e.float(), dim=-1) for e in (outputs.image_embeds, outputs.text_embeds)]
            embeds[1] = embeds[1].unflatten(0, captions.shape[:2])
            loss = sigmoid_loss(*embeds, torch.exp(-model.logit_scale), model.logit_bias)
        loss.backward()

    at_once = run.time(lambda: step(captions))
    one_by_one = run.time(lambda: [step(captions[:, k : k + 1]) for k in range(10)])
    return {
        "1-to-10, images/s": run.sizes.batch / at_once,
        "a caption at a time, images/s": run.sizes.batch / one_by_one,
        "ratio": one_by_one / at_once,
        "1-to-10, GiB": run.peak(lambda: step(captions)),
    }


def index_times(run: Run) -> dict:
    for package in ("lancedb", "datasets", "sentence_transformers"):
        if importlib.util.find_spec(package) is None:
            return {"skipped": f"{package} is not installed"}
    import search

    with tempfile.TemporaryDirectory() as folder:
        search.main(["--output", f"{folder}/search.json", "--quick"])
        found = json.loads(Path(f"{folder}/search.json").read_text())
    return {name: found[name] for name in ("index_ratio", "query_ms", "recall")}


# Name, seconds on a GPU, function: what matters most first.
PARTS: list[tuple[str, float, Callable[[Run], dict]]] = [
    ("matrix products", 20, matrix_rate),
    ("check: outputs", 20, check_outputs),
    ("check: gradients", 15, check_gradients),
    ("check: chunks", 10, check_chunks),
    ("check: memory", 15, check_memory),
    ("check: resume", 15, check_resume),
    ("step, K = 10", 60, step_times(10, compiled=False)),
    ("re-ranking", 40, rerank_times),
    ("encoding", 20, encoding_times),
    ("decoding", 15, decoding_times),
    ("step, K = 4", 50, step_times(4, compiled=False)),
    ("SigLIP-B", 40, siglip_times),
    ("step, K = 10, compiled", 150, step_times(10, compiled=True)),
    ("step, K = 4, compiled", 130, step_times(4, compiled=True)),
    ("index", 150, index_times),
]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("outputs/gpu.json"), help="JSON file to write")
    parser.add_argument("--minutes", type=float, default=8.5, help="after which no part is begun that would not end")
    parser.add_argument("--cpu", action="store_true", help="small, on the CPU, whatever there is")
    arguments = parser.parse_args(argv)
    has_gpu = torch.cuda.is_available() and not arguments.cpu
    device = torch.device("cuda" if has_gpu else "cpu")
    run = Run(arguments.output, device, Sizes() if has_gpu else SMALL, arguments.minutes)
    print(f"{run.results['machine']}\n\n| part | what | value |\n|---|---|---|")
    for name, seconds, function in PARTS:
        if has_gpu or name != "index":
            run.part(name, seconds, function)
    wrong = [name for name, found in run.results.items() if found.keys() & {"failed", "error"}]
    print(f"\n{len(wrong)} of {len(run.results) - 1} parts went wrong{': ' + ', '.join(wrong) if wrong else ''}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
