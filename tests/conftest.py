"""What the tests share: the reference fixture, a tiny model with its processor, and rows to train on."""

import gc
import json
import os
from pathlib import Path

# Before torch and the Hub's client are imported, which read them once: tests run in several processes on few cores,
# and never ask the network for anything.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"

import datasets
import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny import RECIPE, tiny_config

import data_scripts
from ccrk import CCRKForPreTraining, CCRKProcessor, normalize_caption
from ccrk.convert import convert, load_published
from ccrk.retrieval import report
from data_scripts.tokenizer import train_tokenizer
from processing_ccrk import published_image_processor

ROOT = Path(__file__).parent.parent
TINY_A = Path(__file__).parent / "fixtures" / "tiny_a"
# No tensor of the published file shows the number of text attention heads; tiny_a has 4.
TINY_A_CONFIG = {"text_config": {"num_attention_heads": 4}}


def pytest_collection_finish():
    """Modules stay: each training collects garbage, and would look at all that they hold."""
    gc.freeze()


@pytest.fixture(scope="session")
def expected() -> dict[str, torch.Tensor]:
    """Inputs and outputs of the published code, B = 3 images with K = 4 captions of 10 tokens."""
    return load_file(TINY_A / "expected.safetensors")


@pytest.fixture(scope="session")
def published() -> dict:
    return load_published(TINY_A / "ccrk_tiny_epoch_29.th")


@pytest.fixture
def reference_model(published) -> CCRKForPreTraining:
    return convert(published, TINY_A_CONFIG).eval()


@pytest.fixture(scope="session")
def normalisation_cases() -> list[dict]:
    return json.loads((TINY_A / "caption_normalisation.json").read_text())


@pytest.fixture(scope="session")
def shapes(tmp_path_factory) -> "data_scripts.datasets.Dataset":
    """48 training rows of the embedded data set, in three languages."""
    return data_scripts.load(
        "shapes",
        split="train",
        languages=["en", "de", "zh"],
        num_train=48,
        num_validation=8,
        num_test=8,
        cache_dir=str(tmp_path_factory.mktemp("shapes")),
    )


@pytest.fixture(scope="session")
def processor(shapes) -> CCRKProcessor:
    captions = [normalize_caption(c, 40) for row in shapes["captions"] for texts in row.values() for c in texts]
    return CCRKProcessor(published_image_processor(64), train_tokenizer(captions, 400))


@pytest.fixture
def tiny_model(processor) -> CCRKForPreTraining:
    torch.manual_seed(0)
    return CCRKForPreTraining(tiny_config(len(processor.tokenizer)))


@pytest.fixture
def recipe(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(RECIPE | {"output_dir": str(tmp_path / "pretrain")}))
    return path


@pytest.fixture(autouse=True)
def no_figures(request, monkeypatch):
    """A report's figures take a second to draw: they are drawn where a test is marked `figures`."""
    if "figures" not in request.keywords:
        monkeypatch.setattr(report, "draw_figure", lambda plot, name, caption, output_dir: "<figure></figure>")
