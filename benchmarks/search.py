"""Search: how fast pictures are indexed, and how fast and well a million of vectors is searched.

    python benchmarks/search.py --output search.json            1,000 pictures, 1,000,000 vectors
    python benchmarks/search.py --output search.json --quick    200 pictures, 50,000 vectors; minutes on two cores

Indexing: pictures of 1280 × 960 pixels, made of smooth noise, by a CCRK of random weights at 224 pixels. `index_ratio`
is the pictures/s of `PictureIndex.update`, all it does included, against a plain loop that decodes a batch with Pillow
and encodes it by the same model. `limit_ratio` is against the time of decoding alone plus that of encoding alone, each
on all cores, with nothing hashed, stored or written. `sentence_transformers_ratio` is of a CLIP of random weights that
both open, against a plain loop of sentence-transformers' `encode` on the same files. The runs alternate, and figures
are medians.

Searching: vectors of 256 numbers around random centres, as those of pictures are. `query_ms` is the median of exact
search, `approximate_ms` of Lance's index, whose `recall` is the share of the exact ten best that it finds.
"""

import argparse
import json
import platform
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from sentence_transformers import SentenceTransformer
from tqdm import tqdm
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

from ccrk import CCRKConfig, CCRKForImageTextRetrieval, CCRKProcessor
from ccrk.encoders import CCRKEncoder
from ccrk.search import PictureIndex
from ccrk.search.store import Store, picture_id
from data_scripts.images import read_image
from data_scripts.tokenizer import train_tokenizer
from processing_ccrk import published_image_processor

WIDTH = 256
BATCH = 64
ROUNDS = 3
QUICK, FULL = (200, 50_000), (1_000, 1_000_000)  # pictures, vectors


def make_pictures(folder: Path, number: int) -> list[Path]:
    """JPEG files of about 200 kB, of smooth noise at three scales."""
    generator = np.random.default_rng(0)
    paths = []
    for i in tqdm(range(number), desc="making pictures", disable=None):
        layers = [
            Image.fromarray(generator.integers(0, 256, (side * 3 // 4, side, 3), dtype=np.uint8)).resize((1280, 960))
            for side in (4, 40, 400)
        ]
        picture = Image.blend(Image.blend(layers[0], layers[1], 0.4), layers[2], 0.2)
        paths.append(folder / f"{i:05}.jpg")
        picture.save(paths[-1], quality=90)
    return paths


def make_model(folder: Path) -> None:
    torch.manual_seed(0)
    tokenizer = train_tokenizer(["a dog on a beach", "ein Hund am Strand"], 60, 40)
    config = CCRKConfig(
        vision_config={"image_size": 224, "patch_size": 4, "embed_dim": 32, "depths": [1, 1, 2, 1]}
        | {"num_heads": [1, 2, 4, 8], "window_size": 7},
        text_config={"vocab_size": len(tokenizer), "hidden_size": 256, "num_attention_heads": 4}
        | {"num_hidden_layers": 2, "intermediate_size": 512, "max_position_embeddings": 64},
        num_fusion_layers=2,
        projection_dim=WIDTH,
    )
    CCRKForImageTextRetrieval(config).save_pretrained(folder)
    CCRKProcessor(published_image_processor(224), tokenizer).save_pretrained(folder)


def seconds(function: Callable, *arguments) -> float:
    started = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - started


def plain_loop(encoder: CCRKEncoder, paths: Sequence[Path]) -> None:
    for start in range(0, len(paths), BATCH):
        encoder.encode_images([Image.open(path).convert("RGB") for path in paths[start : start + BATCH]])


def decode(paths: Sequence[Path]) -> list[Image.Image]:
    with ThreadPoolExecutor() as pool:
        return list(pool.map(lambda path: read_image(path, target_size=256), paths))


def encode(encoder: CCRKEncoder, pictures: Sequence[Image.Image]) -> None:
    for start in range(0, len(pictures), BATCH):
        encoder.encode_images(pictures[start : start + BATCH])


def make_clip(folder: Path) -> None:
    torch.manual_seed(0)
    tokenizer = train_tokenizer(["a dog on a beach", "ein Hund am Strand"], 60, 40)
    layers = {"hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 6, "num_attention_heads": 3}
    config = CLIPConfig(
        text_config=layers | {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id},
        vision_config=layers | {"image_size": 224, "patch_size": 16},
        projection_dim=WIDTH,
    )
    CLIPModel(config).save_pretrained(folder)
    CLIPProcessor(CLIPImageProcessor(), tokenizer).save_pretrained(folder)


def sentence_transformers_loop(model: SentenceTransformer, paths: Sequence[Path]) -> None:
    for start in range(0, len(paths), BATCH):
        pictures = [Image.open(path) for path in paths[start : start + BATCH]]
        model.encode(pictures, batch_size=BATCH, show_progress_bar=False)


def time_clip(folder: Path, paths: Sequence[Path]) -> dict:
    make_clip(folder / "clip")
    model = SentenceTransformer(str(folder / "clip"), device="cpu")
    times: dict[str, list[float]] = {"index": [], "sentence_transformers": []}
    for _ in tqdm(range(ROUNDS), desc="indexing by CLIP", disable=None):
        shutil.rmtree(folder / "clip_index", ignore_errors=True)
        index = PictureIndex(folder / "clip_index", str(folder / "clip"))
        assert index.encoder  # is opened before the clock starts
        times["index"].append(seconds(index.update, folder / "photos"))
        times["sentence_transformers"].append(seconds(sentence_transformers_loop, model, paths))
    medians = {name: statistics.median(taken) for name, taken in times.items()}
    return {
        "sentence_transformers_ratio": medians["sentence_transformers"] / medians["index"],
        "clip_pictures_per_second": {name: len(paths) / taken for name, taken in medians.items()},
    }


def time_indexing(folder: Path, paths: Sequence[Path]) -> dict:
    number = len(paths)
    make_model(folder / "model")
    times: dict[str, list[float]] = {name: [] for name in ("index", "plain_loop", "decode", "encode", "unchanged")}
    for _ in tqdm(range(ROUNDS), desc="indexing", disable=None):
        shutil.rmtree(folder / "index", ignore_errors=True)
        index = PictureIndex(folder / "index", str(folder / "model"))
        encoder = index.encoder
        times["index"].append(seconds(index.update, folder / "photos"))
        times["plain_loop"].append(seconds(plain_loop, encoder, paths))
        times["decode"].append(seconds(decode, paths))
        few = decode(paths[: min(number, 256)])
        times["encode"].append(seconds(encode, encoder, few) * number / len(few))
        times["unchanged"].append(seconds(index.update, folder / "photos"))
    medians = {name: statistics.median(taken) for name, taken in times.items()}
    return {
        "pictures": number,
        "index_ratio": medians["plain_loop"] / medians["index"],
        "limit_ratio": (medians["decode"] + medians["encode"]) / medians["index"],
        "pictures_per_second": {name: number / taken for name, taken in medians.items()},
        "seconds": times,
    }


def make_vectors(store: Store, number: int) -> None:
    generator = np.random.default_rng(0)
    centres = generator.standard_normal((max(10, number // 100), WIDTH), dtype=np.float32)
    schema = store.pictures.schema.remove_metadata()
    for start in tqdm(range(0, number, 20_000), desc="making vectors", disable=None):
        rows = min(20_000, number - start)
        vectors = centres[generator.integers(0, len(centres), rows)]
        vectors = vectors + generator.standard_normal((rows, WIDTH), dtype=np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        paths = [f"{i}.jpg" for i in range(start, start + rows)]
        columns = {
            "id": [picture_id(path) for path in paths],
            "path": paths,
            "size": [1] * rows,
            "mtime_ns": [1] * rows,
            "digest": paths,
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), WIDTH),
            "jpeg": [b""] * rows,
        }
        store.pictures.add(pa.table(columns).cast(schema))


def median_ms(index: PictureIndex, queries: torch.Tensor) -> float:
    index.nearest(queries[0], 20)  # loads what it needs
    return 1000 * statistics.median(seconds(index.nearest, query, 20) for query in queries)


def time_queries(folder: Path, number: int) -> dict:
    location = str(folder / "vectors")
    settings = {"model": "none", "fingerprint": "none", "dtype": "fp32"}
    make_vectors(Store.create(location, settings, WIDTH), number)
    index = PictureIndex(location)
    queries = index.contents[1][torch.randperm(number, generator=torch.Generator().manual_seed(0))[:50]].clone()
    results = {"vectors": number, "query_ms": median_ms(index, queries)}
    results["peak_memory_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    started = time.perf_counter()
    index.store.tidy(exact_up_to=0)
    results["approximate_build_seconds"] = time.perf_counter() - started
    index = PictureIndex(location)
    results["approximate_ms"] = median_ms(index, queries)
    results["recall"] = index.store.recall()
    return results


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--quick", action="store_true", help="fewer pictures and vectors")
    arguments = parser.parse_args(argv)
    pictures, vectors = QUICK if arguments.quick else FULL
    results = {"machine": platform.processor() or platform.machine(), "torch": torch.__version__}
    results |= {"threads": torch.get_num_threads(), "width": WIDTH}
    with tempfile.TemporaryDirectory() as folder:
        results |= time_queries(Path(folder), vectors)
        (Path(folder) / "photos").mkdir()
        paths = make_pictures(Path(folder) / "photos", pictures)
        results |= time_indexing(Path(folder), paths)
        results |= time_clip(Path(folder), paths)
    arguments.output.write_text(json.dumps(results, indent=2) + "\n")
    ratios = f"{results['index_ratio']:.2f} times a plain loop, {results['limit_ratio']:.2f} of the limit, "
    ratios += f"{results['sentence_transformers_ratio']:.2f} times sentence-transformers' encode"
    print(f"{pictures:,} pictures: {ratios}")
    print(
        f"{vectors:,} vectors: exact {results['query_ms']:.1f} ms, approximate {results['approximate_ms']:.1f} ms at "
        f"recall@10 {results['recall']:.3f}"
    )


if __name__ == "__main__":
    main()
