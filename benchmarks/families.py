"""What 1-to-K makes of each family of dual encoders, beside as many steps with one caption per image.

    python benchmarks/families.py --output families.json            half an hour on two cores
    python benchmarks/families.py --output families.json --quick    four steps of each, a minute

Tiny CLIP, SigLIP, SigLIP 2 (native resolution), VisionTextDualEncoder and SentenceTransformer with random weights are
trained by `train_retrieval.py` on the embedded data in ten languages: with all captions of an image in a step
(`--captions_per_image all`), and with one, drawn from all languages. Both have the same batches, steps and learning
rate, chosen for each family where the two are far apart (docs/towers.md tells of others); a step by all captions sees
ten times as many of them, and takes longer: seconds are told. Recall is that of unseen scenes. What 1-to-K has saved
is then opened by its own class in a process that knows nothing of this project, and its embeddings there are compared
with those here.
"""

import argparse
import json
import math
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent))

import datasets
import numpy as np
import torch
import transformers

import data_scripts
from ccrk import CCRKForImageTextRetrieval
from ccrk.arguments import parse_recipe, recipe_file
from ccrk.build import build_trainer, run
from ccrk.encoders import Encoder, load_encoder
from ccrk.retrieval.evaluate import evaluate_retrieval
from ccrk.towers import join_towers
from data_scripts.shapes_lexicon import LANGUAGES
from data_scripts.tokenizer import train_tokenizer

ROOT = Path(__file__).resolve().parent.parent
SIDE, PATCH, LENGTH = 64, 8, 48
BATCH = 32
SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = SIZES | {"image_size": SIDE, "patch_size": PATCH}
TEXT = SIZES | {"max_position_embeddings": LENGTH}
COMPARED = 8  # pictures and captions whose embeddings are compared

Parts = tuple[transformers.PreTrainedModel, object]


def clip(words) -> Parts:
    text = TEXT | {"vocab_size": len(words), "eos_token_id": words.eos_token_id}
    config = transformers.CLIPConfig(text_config=text, vision_config=VISION, projection_dim=64)
    images = transformers.CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    return transformers.CLIPModel(config), transformers.CLIPProcessor(images, words)


def siglip(words) -> Parts:
    text = TEXT | {"vocab_size": len(words), "projection_size": SIZES["hidden_size"]}
    images = transformers.SiglipImageProcessor(size={"height": SIDE, "width": SIDE})
    config = transformers.SiglipConfig(text_config=text, vision_config=VISION)
    return transformers.SiglipModel(config), transformers.SiglipProcessor(images, words)


def siglip2(words) -> Parts:
    text = TEXT | {"vocab_size": len(words), "projection_size": SIZES["hidden_size"]}
    # Its processor takes 256 patches of 16 pixels from every picture, whatever the image processor says.
    config = transformers.Siglip2Config(text_config=text, vision_config=SIZES | {"patch_size": 16})
    return transformers.Siglip2Model(config), transformers.Siglip2Processor(
        transformers.Siglip2ImageProcessor(), words
    )


def towers(words) -> tuple[transformers.ViTModel, transformers.XLMRobertaModel, transformers.ViTImageProcessor]:
    wide = {"initializer_range": 0.08}  # narrow layers of the usual 0.02 make nearly equal embeddings of everything
    text = SIZES | wide | {"vocab_size": len(words), "max_position_embeddings": LENGTH + 2}
    return (
        transformers.ViTModel(transformers.ViTConfig(**VISION | wide), add_pooling_layer=False),
        transformers.XLMRobertaModel(transformers.XLMRobertaConfig(**text), add_pooling_layer=False),
        transformers.ViTImageProcessor(size={"height": SIDE, "width": SIDE}),
    )


def vision_text_dual_encoder(words) -> Parts:
    vision, text, images = towers(words)
    config = transformers.VisionTextDualEncoderConfig.from_vision_text_configs(
        vision.config, text.config, projection_dim=64
    )
    model = transformers.VisionTextDualEncoderModel(config)
    return model, transformers.VisionTextDualEncoderProcessor(images, words)


def sentence_transformer(words, folder: Path) -> None:
    vision, text, images = towers(words)
    for part in (vision, images):
        part.save_pretrained(folder / "image")
    for part in (text, words):
        part.save_pretrained(folder / "text")
    join_towers(str(folder / "image"), str(folder / "text")).save_pretrained(str(folder), create_model_card=False)


class Family(NamedTuple):
    """How a family is made, and how it is trained: until 1-to-K has learnt something, and not to the end."""

    make: Callable
    steps: int = 80
    learning_rate: float = 1e-3


FAMILIES = {
    "CLIP": Family(clip),
    # By the sigmoid loss, which begins with a bias of -10, they take longer to leave chance.
    "SigLIP": Family(siglip, 150, 3e-3),
    "SigLIP 2": Family(siglip2, 300),
    "VisionTextDualEncoder": Family(vision_text_dual_encoder),
    "SentenceTransformer": Family(sentence_transformer),
}


def make_tokenizer(captions: list[str]) -> transformers.PreTrainedTokenizerFast:
    """A new one for each family: what saves a processor marks its tokenizer."""
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=train_tokenizer(captions, 1500).backend_tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        model_max_length=LENGTH,
    )


def save(family: str, words, folder: Path) -> None:
    """A model with random weights, the same for the same family."""
    torch.manual_seed(0)
    if family == "SentenceTransformer":
        sentence_transformer(words, folder)
        return
    model, processor = FAMILIES[family].make(words)
    if hasattr(model, "logit_bias"):  # as SigLIP's training began
        model.logit_scale.data.fill_(math.log(10))
        model.logit_bias.data.fill_(-10)
    for part in (model, processor):
        part.save_pretrained(folder)


def train(
    model: Path, captions_per_image: str, steps: int, learning_rate: float, sizes: dict, output_dir: Path
) -> float:
    """By what `train_retrieval.py` does; seconds of a step."""
    values = {
        "model_name_or_path": model,
        "dataset": "shapes",
        "dataset_config": json.dumps(sizes),
        "captions_per_image": captions_per_image,
        "rows": None if captions_per_image == "all" else "images",  # an image with one that is drawn
        "per_device_train_batch_size": BATCH,
        "max_steps": steps,
        "learning_rate": learning_rate,
        "new_parameter_lr_scale": 1.0,
        "warmup_steps": 0.1,
        "save_strategy": "no",
        "report_to": "none",
        "logging_steps": max(1, steps // 4),
        "output_dir": output_dir,
    }
    argv = [str(part) for name, value in values.items() if value is not None for part in (f"--{name}", value)]
    trainer = build_trainer(*parse_recipe("", recipe_file("shapes_finetune.yaml"), argv), CCRKForImageTextRetrieval)
    started = time.perf_counter()
    run(trainer)
    return (time.perf_counter() - started) / steps


def recall(encoder: Encoder, rows: datasets.Dataset) -> dict[str, float]:
    """At 1 and 5, and the `mean` over 1, 5 and 10: of languages and directions, in percent."""
    found = list(evaluate_retrieval(encoder, rows, LANGUAGES).recall().values())
    at = {f"R@{k}": [row[f"{direction}@{k}"] for row in found for direction in ("IR", "TR")] for k in (1, 5)}
    return {name: float(np.mean(own)) for name, own in (at | {"mean": [row["mean"] for row in found]}).items()}


ELSEWHERE = """
import sys
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in str(finder).lower()]
sys.path = [path for path in sys.path if path != sys.argv[2]]
import importlib.util, json, pathlib
import numpy, torch
from PIL import Image
assert importlib.util.find_spec("ccrk") is None and importlib.util.find_spec("modeling_ccrk") is None
folder, captions = sys.argv[1], json.load(open(sys.argv[4]))
pictures = [Image.open(path) for path in sys.argv[5:]]
if (pathlib.Path(folder) / "modules.json").exists():
    from sentence_transformers import SentenceTransformer
    model = SentenceTransformer(folder, device="cpu")
    name, images, texts = type(model).__name__, model.encode(pictures), model.encode(captions)
else:
    from transformers import AutoModel, AutoProcessor
    model, processor = AutoModel.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
    options = {"padding": True}
    if "Siglip" in type(model).__name__:  # as it was trained
        length = model.config.text_config.max_position_embeddings
        options = {"padding": "max_length", "max_length": length, "return_attention_mask": False}
    with torch.no_grad():
        images = model.get_image_features(**processor(images=pictures, return_tensors="pt")).pooler_output
        texts = model.get_text_features(**processor(text=captions, return_tensors="pt", **options)).pooler_output
    name = type(model).__name__
    images, texts = (torch.nn.functional.normalize(found, dim=-1).numpy() for found in (images, texts))
numpy.savez(sys.argv[3], images=images, texts=texts, name=name)
"""


def compare_elsewhere(model: Path, encoder: Encoder, rows: datasets.Dataset, folder: Path) -> tuple[str, float]:
    """The class that opens a model by itself, and how far its embeddings there are from those here."""
    pictures = rows["image"][:COMPARED]
    captions = [row[language][0] for row, language in zip(rows["captions"][:COMPARED], LANGUAGES, strict=False)]
    (folder / "captions.json").write_text(json.dumps(captions))
    paths = [folder / f"{number}.png" for number in range(len(pictures))]
    for path, picture in zip(paths, pictures, strict=True):
        picture.save(path)
    given = [model, ROOT, folder / "found.npz", folder / "captions.json", *paths]
    subprocess.run([sys.executable, "-I", "-c", ELSEWHERE, *map(str, given)], check=True, cwd=folder)
    found = np.load(folder / "found.npz")
    ours = {"images": encoder.encode_images(pictures), "texts": encoder.encode_captions(captions)}
    return str(found["name"]), max(float(np.abs(found[n] - own["embeds"].numpy()).max()) for n, own in ours.items())


def measure(family: str, captions: list[str], steps: int, sizes: dict) -> dict:
    rows = data_scripts.load("shapes", split="test", **sizes)
    with tempfile.TemporaryDirectory() as folder:
        start = Path(folder) / "start"
        save(family, make_tokenizer(captions), start)
        result: dict = {
            "steps": steps,
            "recall": {"untrained": recall(load_encoder(str(start), 0, False), rows)},
            "seconds": {},
        }
        for number in ("one", "all"):
            trained = Path(folder) / number
            result["seconds"][number] = train(start, number, steps, FAMILIES[family].learning_rate, sizes, trained)
            encoder = load_encoder(str(trained), 0, False)
            result["recall"][number] = recall(encoder, rows)
        result["opened_by"], result["difference"] = compare_elsewhere(trained, encoder, rows, Path(folder))
    return result | {"ratio": {k: value / result["recall"]["one"][k] for k, value in result["recall"]["all"].items()}}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write, after each family")
    parser.add_argument("--families", nargs="+", choices=list(FAMILIES), default=list(FAMILIES))
    parser.add_argument("--steps", type=int, help="of each family; by default its own")
    parser.add_argument("--quick", action="store_true", help="four steps, from which nothing is learnt")
    arguments = parser.parse_args(argv)
    sizes = {"num_train": 64 if arguments.quick else 4000, "num_test": 20 if arguments.quick else 200}
    captions = [
        text
        for row in data_scripts.load("shapes", split="train", num_train=min(1000, sizes["num_train"]))["captions"]
        for texts in row.values()
        for text in texts
    ]
    results = {**sizes, "machine": platform.processor() or platform.machine(), "families": {}}
    print("| | steps | untrained | one | 1-to-K | ratio | seconds of a step: one, 1-to-K | opened by | difference |")
    for family in arguments.families:
        steps = 4 if arguments.quick else arguments.steps or FAMILIES[family].steps
        results["families"][family] = found = measure(family, captions, steps, sizes)
        arguments.output.write_text(json.dumps(results, indent=2) + "\n")
        for k in ("R@1", "R@5"):
            recalls = " | ".join(f"{found['recall'][name][k]:.1f}" for name in ("untrained", "one", "all"))
            seconds = f"{found['seconds']['one']:.2f}, {found['seconds']['all']:.2f}"
            told = f"{seconds} | {found['opened_by']} | {found['difference']:.0e}"
            print(f"| {family}, {k} | {steps} | {recalls} | {found['ratio'][k]:.1f} | {told} |", flush=True)


if __name__ == "__main__":
    main()
