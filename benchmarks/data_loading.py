"""Images per second from a JPEG file to the model's input: decoded at reduced scale, beside the plain full decode.

    python benchmarks/data_loading.py --image_dir flickr30k-images --output data_loading.json

Two sets: the photographs of a folder, if one is given, and JPEG files of 1500 × 1000 pixels generated on the spot.
All ways read the same files and end in the same image processor (bicubic resize to a square): `plain`, `ours`, and
`ours_to_crop`, which leaves pixels to spare for the random crops of training. They take turns, so that a busy machine
slows all, and medians are compared; `ratio` is `ours` to `plain`. `difference` is between their results on a scale of
255 levels: mean over all pixels, and the worst mean of one image.
"""

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import PIL
import torch
from PIL import Image
from torchvision.datasets.folder import pil_loader
from tqdm.auto import tqdm

from ccrk.training.collator import CROP_MARGIN
from data_scripts.images import read_image
from processing_ccrk import published_image_processor

SIZE = (1500, 1000)  # width and height of generated images
# Levels of 255 by which an image may differ on average. JPEG at quality 90 changes these pictures by more.
TOLERANCE = 2.0


def generate(folder: Path, count: int) -> list[Path]:
    """JPEG files of noise whose amplitude falls with frequency, as in photographs: about 1.6 bits a pixel.

    Each is put together from a few planes of noise, which have no borders, shifted at random.
    """
    width, height = SIZE
    rng = np.random.default_rng(0)
    frequency = np.hypot(*np.meshgrid(np.fft.rfftfreq(width), np.fft.fftfreq(height)))
    frequency[0, 0] = np.inf
    noise = []
    for contrast in (50, 15, 15):  # brightness, and less of colour
        phases = np.exp(2j * np.pi * rng.random((8, *frequency.shape)))
        planes = np.fft.irfft2(phases / frequency**1.5, s=(height, width))
        noise.append((128 + contrast * planes / planes.std()).clip(0, 255).astype(np.uint8))
    paths = [folder / f"{number:04}.jpg" for number in range(count)]
    for path in tqdm(paths, desc="generating images", leave=False, disable=None):
        planes = [np.roll(rng.choice(of_channel), rng.integers(SIZE), axis=(1, 0)) for of_channel in noise]
        Image.merge("YCbCr", [Image.fromarray(plane) for plane in planes]).save(path, quality=90)
    return paths


def bits_per_pixel(path: Path) -> float:
    image = read_image(path)
    return 8 * path.stat().st_size / (image.width * image.height)


def measure(paths: Sequence[Path], image_size: int, repeats: int) -> dict:
    """Times all ways over all of the files, in turns of 50 files; see the module's docstring."""
    processor = published_image_processor(image_size)
    to_levels = 255 * torch.tensor(processor.image_std).view(3, 1, 1)

    def load(path: Path, read: Callable[[Path], Image.Image]) -> torch.Tensor:
        return processor(images=[read(path)], return_tensors="pt")["pixel_values"][0]

    ways = {
        "plain": pil_loader,  # as the published one does: all pixels, then RGB
        "ours": lambda path: read_image(path, image_size),
        "ours_to_crop": lambda path: read_image(path, CROP_MARGIN * image_size),
    }
    differences = [
        ((load(path, ways["plain"]) - load(path, ways["ours"])).abs() * to_levels).mean().item()
        for path in tqdm(paths[:200], desc="comparing", leave=False, disable=None)
    ]
    chunks = [paths[start : start + 50] for start in range(0, len(paths), 50)] * repeats
    seconds = {name: [] for name in ways}
    for number, chunk in enumerate(tqdm(chunks, desc="timing", leave=False, disable=None)):
        for name in list(ways) if number % 2 else reversed(ways):
            started = time.perf_counter()
            for path in chunk:
                load(path, ways[name])
            seconds[name].append((time.perf_counter() - started) / len(chunk))
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    return {
        "images": len(paths),
        "bits_per_pixel": round(statistics.mean(map(bits_per_pixel, paths[:200])), 2),
        "images_per_second": {name: round(1 / median, 1) for name, median in medians.items()},
        "ratio": round(medians["plain"] / medians["ours"], 2),
        "difference": {"mean": round(statistics.mean(differences), 3), "worst_image": round(max(differences), 3)},
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image_dir", type=Path, help="folder of real photographs (*.jpg)")
    parser.add_argument("--image_size", type=int, default=224, help="side of the model's input, in pixels")
    parser.add_argument("--generated", type=int, default=2000, help="how many images of 1500 × 1000 to generate")
    parser.add_argument("--repeats", type=int, default=1, help="passes over each set")
    parser.add_argument("--output", type=Path, help="JSON file to write the results to as well")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)  # one data loader worker
    results = {
        "image_size": arguments.image_size,
        "machine": f"{platform.machine()}, one thread, Pillow {PIL.__version__}",
        "tolerance": TOLERANCE,
        "sets": {},
    }
    if arguments.image_dir is not None:
        photographs = sorted(arguments.image_dir.glob("*.jpg"))
        if not photographs:
            parser.error(f"there is no *.jpg in {arguments.image_dir}")
        results["sets"]["photographs"] = measure(photographs, arguments.image_size, arguments.repeats)
    with tempfile.TemporaryDirectory() as folder:
        generated = generate(Path(folder), arguments.generated)
        results["sets"]["generated {}x{}".format(*SIZE)] = measure(generated, arguments.image_size, arguments.repeats)
    text = json.dumps(results, indent=2)
    print(text)
    if arguments.output is not None:
        arguments.output.write_text(text + "\n")
    for name, result in results["sets"].items():
        if result["difference"]["worst_image"] > TOLERANCE:
            raise SystemExit(f"{name}: an image differs by more than {TOLERANCE} levels")


if __name__ == "__main__":
    main()
