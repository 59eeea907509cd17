"""One evaluation in the 36 languages of Crossmodal-3600: MTEB's loop against ours, same rows and same dual encoder.

    python benchmarks/many_languages.py --output many_languages.json            a quarter of an hour on two cores
    python benchmarks/many_languages.py --output many_languages.json --quick    fewer pictures, a minute

MTEB's are its own two tasks of this data set, text to image and image to text, as `mteb.evaluate` runs them: for each
task and language all pictures and all captions are encoded. With `mteb.models.CachedEmbeddingWrapper`, which it offers
and does not use by itself, each is encoded once per task, and read and hashed for each language. Ours is what
`eval_mrv.py` does: pictures and captions are encoded once, and beside recall there are MRV and intervals.

Both call the same encoder, for captions by the same function, so that only the loops differ, and recall at 1, 5 and 10
must be equal in all languages and both directions. Weights are random: times do not depend on what a model has learnt.
The pictures are the embedded data set's, which has ten languages: the 36 take turns with them, each with a wording of
its own. Two encoders are timed, since the cost of a picture decides (`benchmarks/dual_encoders.py`): the top of the
JSON file is the first's, where a picture costs as much as some sixty captions; `by_encoder` has both.
"""

import argparse
import json
import logging
import platform
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import datasets
import mteb
import torch
from dual_encoders import SIZES, captions_of, make_encoder, make_rows
from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData
from mteb.models import CachedEmbeddingWrapper, ModelMeta
from mteb.models.abs_encoder import AbsEncoder
from mteb.tasks.retrieval.multilingual.xm3600_t2i_retrieval import XM3600I2TRetrieval, XM3600T2IRetrieval
from tqdm.auto import tqdm

from ccrk.encoders import DualEncoder
from ccrk.retrieval.evaluate import encode_captions, evaluate_retrieval
from ccrk.retrieval.results import make_results
from data_scripts.xm3600 import LANGUAGES

BATCH_SIZE = 64
TASKS = {"IR": XM3600T2IRetrieval, "TR": XM3600I2TRetrieval}
# Pictures for each of `SIZES`, and how often everything is timed.
FULL, QUICK = ((40, 500), 3), ((4, 12), 1)
TOLERANCE = 1e-3  # MTEB rounds to five digits

Recall = dict[tuple[str, str], float]  # language and "IR@1" … "TR@10", percent


class ForMTEB(AbsEncoder):
    """The same encoder as MTEB calls one."""

    def __init__(self, encoder: DualEncoder):
        self.model = encoder
        self.mteb_model_meta = ModelMeta.create_empty({"modalities": ["image", "text"]})

    def encode(self, inputs, *, task_metadata, prompt_type=None, **_) -> torch.Tensor:
        if task_metadata.get_modalities(prompt_type) == ["image"]:
            return torch.cat([self.model.encode_images(batch["image"])["embeds"].cpu() for batch in inputs])
        return encode_captions(self.model, [text for batch in inputs for text in batch["text"]]).embeds


def make_tasks(rows: datasets.Dataset) -> list[mteb.AbsTask]:
    """MTEB's tasks of Crossmodal-3600, with these rows in place of those that they would download."""
    ids, languages = rows["image_id"][:], list(rows.features["captions"])
    images = datasets.Dataset.from_dict({"id": ids, "image": rows["image"][:]})
    images = images.cast_column("image", datasets.Image())
    right = {image: {image: 1} for image in ids}
    tasks = []
    for direction, kind in TASKS.items():
        task = kind().filter_languages(languages=None, hf_subsets=languages)
        task.dataset, task.data_loaded = {}, True
        for language in languages:
            texts = [captions[language][0] for captions in rows["captions"]]
            captions = datasets.Dataset.from_dict({"id": ids, "text": texts})
            queries, corpus = (captions, images) if direction == "IR" else (images, captions)
            split = RetrievalSplitData(queries=queries, corpus=corpus, relevant_docs=right, top_ranked=None)
            task.dataset[language] = {"test": split}
        tasks.append(task)
    return tasks


def ours(encoder: DualEncoder, rows: datasets.Dataset, tasks: list[mteb.AbsTask]) -> Recall:
    languages = list(rows.features["captions"])
    found = evaluate_retrieval(encoder, rows, languages, BATCH_SIZE)
    results = make_results(found, task="rows", split="test", model="", k_test=0, mrv_languages=languages)
    return {
        (language, name): value
        for language, row in results["recall"].items()
        for name, value in row.items()
        if name != "mean"
    }


def theirs(model, tasks: list[mteb.AbsTask]) -> Recall:
    encode = {"batch_size": BATCH_SIZE, "show_progress_bar": False}
    results = mteb.evaluate(model, tasks, cache=None, co2_tracker=False, show_progress_bar=False, encode_kwargs=encode)
    return {
        (row["hf_subset"], f"{direction}@{k}"): 100 * row[f"hit_rate_at_{k}"]
        for direction, result in zip(TASKS, results.task_results, strict=True)
        for row in result.scores["test"]
        for k in (1, 5, 10)
    }


def mteb_loop(encoder: DualEncoder, rows: datasets.Dataset, tasks: list[mteb.AbsTask]) -> Recall:
    return theirs(ForMTEB(encoder), tasks)


def mteb_with_cache(encoder: DualEncoder, rows: datasets.Dataset, tasks: list[mteb.AbsTask]) -> Recall:
    with tempfile.TemporaryDirectory() as folder:
        return theirs(CachedEmbeddingWrapper(ForMTEB(encoder), folder), tasks)


WAYS: dict[str, Callable[[DualEncoder, datasets.Dataset, list[mteb.AbsTask]], Recall]] = {
    "MTEB's loop": mteb_loop,
    "MTEB's loop with its cache": mteb_with_cache,
    "ours": ours,
}


def compare(size: str, number: int, rounds: int) -> dict:
    """The ways take turns, after each has evaluated two pictures in one language."""
    image_size = SIZES[size]["image_size"]
    rows, few = make_rows("test", number, image_size, LANGUAGES), make_rows("test", 2, image_size, LANGUAGES[:1])
    encoder = make_encoder(size, captions_of(rows))
    tasks = make_tasks(rows)
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    difference = 0.0
    for way in WAYS.values():
        way(encoder, few, make_tasks(few))
    for _ in tqdm(range(rounds), desc=f"{size}, {number} pictures", disable=None):
        recall = {}
        for name, way in WAYS.items():
            started = time.perf_counter()
            recall[name] = way(encoder, rows, tasks)
            seconds[name].append(time.perf_counter() - started)
        for name, expected in recall.items():
            assert recall["ours"].keys() == expected.keys(), f"{name}: other languages or figures"
            found = max(abs(recall["ours"][key] - expected[key]) for key in expected)
            assert found < TOLERANCE, f"recall differs from that of {name} by {found}"
            difference = max(difference, found)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    return {
        "ratio": medians["MTEB's loop"] / medians["ours"],
        "ratio_with_cache": medians["MTEB's loop with its cache"] / medians["ours"],
        "recall_difference": difference,
        "recall_at_10": statistics.mean(value for (_, name), value in recall["ours"].items() if name.endswith("@10")),
        "images": number,
        "parameters": encoder.model.num_parameters(),
        "seconds": seconds,
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--quick", action="store_true", help="fewer pictures, each way once")
    arguments = parser.parse_args(argv)
    datasets.disable_progress_bars()  # one for each language and step
    logging.getLogger("mteb").setLevel(logging.ERROR)  # that its cache is new
    warnings.filterwarnings("ignore", module="mteb")
    numbers, rounds = QUICK if arguments.quick else FULL

    by_encoder = {}
    for size, number in zip(SIZES, numbers, strict=True):
        by_encoder[size] = result = compare(size, number, rounds)
        print(f"{size}, {number} pictures, {len(LANGUAGES)} languages")
        for name, times in result["seconds"].items():
            print(f"  {statistics.median(times):8.2f} s  {name}")
        print(f"  {result['ratio']:.1f}x, {result['ratio_with_cache']:.1f}x with its cache; recall is equal")
    top = {name: by_encoder[next(iter(SIZES))][name] for name in ("ratio", "ratio_with_cache")}
    top["recall_difference"] = max(result["recall_difference"] for result in by_encoder.values())
    results = {**top, "machine": platform.processor() or platform.machine(), "torch": torch.__version__}
    results |= {"device": "cuda" if torch.cuda.is_available() else "cpu", "threads": torch.get_num_threads()}
    results |= {"languages": len(LANGUAGES), "rounds": rounds, "by_encoder": by_encoder}
    arguments.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
