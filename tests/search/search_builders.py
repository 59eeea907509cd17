"""Pictures of one colour and an encoder that sees colours: what search does without a model of minutes."""

import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

import data_scripts
from ccrk.search.machines import OneMachine
from ccrk.search.store import Store
from ccrk.search.update import Changes, update

HOSTILE = "<img src=x onerror=alert(1)> ${alert(2)} {{this}}.png"
NAMES = {
    "red": (255, 0, 0),
    "rot": (255, 0, 0),
    "green": (0, 255, 0),
    "grün": (0, 255, 0),
    "blue": (0, 0, 255),
    "blau": (0, 0, 255),
    "أزرق": (0, 0, 255),
}


class Colors:
    """Embeds a picture as its colours in a grid of 2 × 2, and a word as a picture of that colour."""

    fingerprint = "colors"
    k_test = 0
    inputs = SimpleNamespace(image_processor=SimpleNamespace(size={"height": 32, "width": 32}))

    def __init__(self):
        self.encoded = 0

    def encode_images(self, images: list) -> dict[str, torch.Tensor]:
        self.encoded += len(images)
        pixels = np.stack(
            [np.asarray(image.resize((2, 2), Image.Resampling.BOX), dtype=np.float32) for image in images]
        )
        return {"embeds": F.normalize(torch.from_numpy(pixels).flatten(1) - 100, dim=-1)}

    def encode_captions(self, captions: list[str]) -> dict[str, torch.Tensor]:
        images = [Image.new("RGB", (32, 32), NAMES.get(caption.split()[0], (9, 9, 9))) for caption in captions]
        self.encoded -= len(images)
        return self.encode_images(images)


def picture(path: Path, color: tuple[int, int, int], size: tuple[int, int] = (48, 32)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)
    return path


def photographs(folder: Path, number: int, seed: int = 0) -> Path:
    """Pictures that all differ, in two folders."""
    generator = np.random.default_rng(seed)
    for i in range(number):
        colors = generator.integers(0, 256, (2, 2, 3), dtype=np.uint8)
        path = folder / ("a" if i % 2 else "b/c") / f"{seed}-{i:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(colors).resize((40, 40), Image.Resampling.NEAREST).save(path)
    return folder


def bring_up_to_date(source: Path | str, index: Path, encoder: Colors | None = None, **options) -> Changes:
    """`PictureIndex.update` without a model on disk."""
    with Store.locked(os.fspath(index)):
        if not Store.exists(os.fspath(index)):
            Store.create(os.fspath(index), {"model": "colors", "fingerprint": "colors", "dtype": "fp32"}, 12)
        load = options.pop("load", lambda: data_scripts.load(os.fspath(source), split="test"))
        allow_deletions = options.pop("allow_deletions", False)
        machines = options.pop("machines", None) or OneMachine(encoder or Colors(), **options)
        return update(Store(os.fspath(index)), os.fspath(source), load, machines, allow_deletions)


def contents(index: Path) -> dict[str, tuple]:
    """Path → everything that the index says of a picture; damaged ones as well."""
    store = Store(os.fspath(index))
    rows = {
        row["path"]: (row["id"], row["size"], row["mtime_ns"], row["digest"], tuple(row["vector"]), row["jpeg"])
        for row in store.pictures.to_arrow().to_pylist()
    }
    return rows | {f"damaged {row['path']}": tuple(row.values()) for row in store.damaged.to_arrow().to_pylist()}
