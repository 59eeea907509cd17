"""Evaluates a CCRK model: recall per language, and mean rank variance (MRV) between languages.

    python eval_mrv.py --model outputs/demo/finetune --task shapes --output_dir outputs/demo
    python eval_mrv.py --model DIR_OR_ID --task multi30k --data_dir multi30k --image_dir photographs --output_dir OUT

Writes results.json, ranks.parquet (instance, language, direction, rank) and, with matplotlib installed, report.png.
"""

import argparse
import importlib.util
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import datasets
import torch

import data_scripts
from ccrk import CCRKConfig, CCRKForImageTextRetrieval, CCRKProcessor
from recipe_ccrk import one_line_errors, set_up_logging
from retrieval_ccrk import RetrievalResult, evaluate_retrieval

# Candidates re-scored per query: the paper's for its data sets, in proportion for 500 scenes.
K_TEST = {"shapes": 16, "multi30k": 128, "coco": 256, "xflickrco": 128, "wit": 128}
COLUMNS = ("IR@1", "IR@5", "IR@10", "TR@1", "TR@5", "TR@10", "mean")


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or Hub id of a CCRK checkpoint")
    parser.add_argument("--task", required=True, choices=sorted(data_scripts.BUILDERS), help="data set to evaluate on")
    parser.add_argument("--data_dir", help="folder of the data set's annotations")
    parser.add_argument("--image_dir", help="folder of its photographs")
    parser.add_argument("--languages", nargs="+", help="such as: en de; all that the data set has by default")
    parser.add_argument("--split", default="test", help="train, validation or test (default)")
    parser.add_argument("--max_rows", type=int, help="evaluate on the first N images only")
    parser.add_argument("--k_test", type=int, help=f"candidates re-scored per query, by default {K_TEST}")
    parser.add_argument("--no_rerank", action="store_true", help="rank by cosine alone")
    parser.add_argument("--batch_size", type=int, default=64, help="images encoded at a time")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder to write to")
    arguments = parser.parse_args(argv)
    if arguments.k_test is not None and arguments.k_test < 0:
        parser.error("--k_test is the number of candidates per query: 0 or more")
    if arguments.max_rows is not None and arguments.max_rows < 1:
        parser.error("--max_rows must be at least 1")
    return arguments


def load_model(name_or_path: str, needs_matching_head: bool) -> tuple[CCRKForImageTextRetrieval, CCRKProcessor]:
    """The model in evaluation mode, and its processor. Re-ranking by a head that was never trained is refused."""
    CCRKConfig.from_pretrained(name_or_path)  # says so where this is no CCRK checkpoint
    processor = CCRKProcessor.from_pretrained(name_or_path)
    model, info = CCRKForImageTextRetrieval.from_pretrained(name_or_path, output_loading_info=True)
    if needs_matching_head and any(name.startswith("matching_head") for name in info["missing_keys"]):
        raise ValueError(f"{name_or_path} has no matching head; rank with --no_rerank, or fine-tune it first")
    return model.eval(), processor


def results_dictionary(result: RetrievalResult, arguments: argparse.Namespace, k_test: int) -> dict:
    """The content of results.json: recall in percent, ranks counted from 1."""
    return {
        "task": arguments.task,
        "split": arguments.split,
        "model": arguments.model,
        "k_test": k_test,
        "languages": list(result.ranks),
        "recall": result.recall(),
        "mrv": result.mrv(),
        "counts": {
            "images": len(result.image_ids),
            "captions": {language: len(ranks.captions) for language, ranks in result.ranks.items()},
            "captions_left_out": result.left_out,
        },
    }


def format_table(results: dict) -> str:
    """Recall per language, their mean, and MRV, as text."""
    lines = ["      " + "".join(f"{column:>8}" for column in COLUMNS)]
    for language, row in results["recall"].items():
        lines.append(f"{language:<6}" + "".join(f"{row[column]:8.1f}" for column in COLUMNS))
    means = {
        column: sum(row[column] for row in results["recall"].values()) / len(results["recall"]) for column in COLUMNS
    }
    lines.append("mean  " + "".join(f"{means[column]:8.1f}" for column in COLUMNS))
    if results["mrv"] is not None:
        lines.append(
            f"MRV over {' '.join(results['mrv']['languages'])} (0: every instance ranks alike in all of them)"
        )
        for direction in ("IR", "TR", "mean"):
            spread = results["mrv"][direction]
            lines.append(f"  {direction:<5} std {spread['std']:.3f}   variance {spread['variance']:.3f}")
    return "\n".join(lines)


def draw_report(results: dict, result: RetrievalResult, path: Path) -> None:
    """Recall at 1 per language beside the mean absolute rank difference of each pair of languages."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    languages = results["languages"]
    figure, (bars, heat) = plt.subplots(1, 2, figsize=(5 + 0.6 * len(languages), 4.2), layout="constrained")
    positions = np.arange(len(languages))
    for offset, column, label in ((-0.2, "IR@1", "text → image"), (0.2, "TR@1", "image → text")):
        bars.bar(positions + offset, [results["recall"][lang][column] for lang in languages], 0.4, label=label)
    bars.set(
        xticks=positions, xticklabels=languages, ylim=(0, 100), ylabel="recall@1 (%)", title="Recall per language"
    )
    bars.legend(frameon=False)

    difference = np.zeros((len(languages), len(languages)))
    by_caption = [dict(zip(ranks.captions, ranks.text_to_image, strict=True)) for ranks in result.ranks.values()]
    for i, first in enumerate(by_caption):
        for j, second in enumerate(by_caption):
            shared = first.keys() & second.keys()
            difference[i, j] = np.mean([abs(first[key] - second[key]) for key in shared]) if shared else np.nan
    image = heat.imshow(difference, cmap="magma_r")
    heat.set(xticks=positions, xticklabels=languages, yticks=positions, yticklabels=languages)
    heat.set_title("Mean rank difference, text → image")
    figure.colorbar(image, ax=heat, shrink=0.8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> None:
    set_up_logging()
    arguments = parse_arguments(argv)
    k_test = 0 if arguments.no_rerank else K_TEST[arguments.task] if arguments.k_test is None else arguments.k_test
    with one_line_errors():
        dataset = data_scripts.load(
            arguments.task,
            split=arguments.split,
            languages=arguments.languages,
            data_dir=arguments.data_dir,
            image_dir=arguments.image_dir,
        )
        if arguments.max_rows is not None:
            dataset = dataset.select(range(min(arguments.max_rows, len(dataset))))
        model, processor = load_model(arguments.model, needs_matching_head=k_test > 0)
        model.to("cuda" if torch.cuda.is_available() else "cpu")
        result = evaluate_retrieval(
            model, processor, dataset, list(dataset.features["captions"]), k_test, arguments.batch_size
        )
    results = results_dictionary(result, arguments, k_test)
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    (arguments.output_dir / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    datasets.disable_progress_bars()
    result.rank_table().to_parquet(arguments.output_dir / "ranks.parquet")
    if importlib.util.find_spec("matplotlib"):
        draw_report(results, result, arguments.output_dir / "report.png")
    print(format_table(results))
    print(f"written to {arguments.output_dir}", file=sys.stderr)


if __name__ == "__main__":
    main()
