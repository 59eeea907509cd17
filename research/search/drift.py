"""Does drift without labels tell what ranks with labels tell? A plot, and rank correlations.

    python research/search/drift.py NAME=CONSISTENCY,EVALUATION … --output_dir outputs/drift

Of each model CONSISTENCY is a folder of `python -m ccrk.search consistency`, EVALUATION one of `eval_mrv.py`, in the
same languages. Without labels a language's figure is its rank drift against the pivot; with labels the mean difference
between the ranks that a picture has by its caption in this language and by that in the pivot. Spearman's correlation
is of languages, in each model and in all, and of models, by `rank_std` and MRV of text to image.
"""

import argparse
import itertools
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from scipy.stats import spearmanr

from ccrk.retrieval.intervals import read_ranks
from ccrk.retrieval.results import mrv_table, shared_ranks
from data_scripts.cli import one_line_errors
from data_scripts.text import read_text


def labelled(evaluation: Path, languages: list[str]) -> tuple[dict[str, float], float]:
    """
    Of text-to-image ranks the mean difference between the first language and each other one, and MRV (standard
    deviation).
    """
    path = evaluation / "ranks.parquet"
    ranks = read_ranks(path)
    if lacking := [language for language in languages if language not in ranks]:
        raise ValueError(f"{path} has no ranks in {lacking[0]}; evaluate in {' '.join(languages)}")
    if (mrv := mrv_table(ranks, languages)) is None:
        raise ValueError(f"{path} has no picture with a caption in each of {' '.join(languages)}")
    table = shared_ranks(ranks, languages, "IR")
    pivot, *others = languages
    return {language: float((table[language] - table[pivot]).abs().mean()) for language in others}, mrv["IR"]["std"]


def compare(models: dict[str, tuple[Path, Path]]) -> dict:
    """What both measures say of each model's languages, and how far they order them alike."""
    found = {}
    for name, (consistency, evaluation) in models.items():
        without = json.loads(read_text(consistency / "results.json", "has ccrk.search consistency been run?"))
        differences, mrv = labelled(evaluation, [without["pivot"], *without["against_pivot"]])
        found[name] = {
            "drift": {language: own["rank_drift"]["mean"] for language, own in without["against_pivot"].items()},
            "labelled": differences,
            "overlap@10": without["all"]["overlap@10"]["mean"],
            "rank_std": without["all"]["rank_std"]["mean"],
            "mrv": mrv,
        }
    pairs = {
        name: np.array([list(own["drift"].values()), list(own["labelled"].values())]) for name, own in found.items()
    }
    spearman = {name: spearmanr(*values).statistic for name, values in pairs.items()}
    spearman["all languages"] = spearmanr(*np.concatenate(list(pairs.values()), axis=1)).statistic
    if len(found) > 2:
        whole = [[own[name] for own in found.values()] for name in ("rank_std", "mrv")]
        spearman["models"] = spearmanr(*whole).statistic
    return {"models": found, "spearman": spearman}


def plot(found: dict, path: Path) -> None:
    figure = Figure(figsize=(5.6, 4.2), layout="constrained")
    axes = figure.add_subplot(
        xscale="log",
        yscale="log",
        xlabel="rank drift against the pivot, without labels",
        ylabel="difference of ranks, with labels",
    )
    for (name, own), marker in zip(found["models"].items(), itertools.cycle("o^sDvP*X"), strict=False):
        axes.scatter(list(own["drift"].values()), list(own["labelled"].values()), s=24, marker=marker, label=name)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=110)


def model(text: str) -> tuple[str, tuple[Path, Path]]:
    name, _, folders = text.rpartition("=")
    consistency, separator, evaluation = folders.partition(",")
    if not (name and separator):
        raise argparse.ArgumentTypeError(f"{text} is not NAME=CONSISTENCY,EVALUATION")
    return name, (Path(consistency), Path(evaluation))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=model, metavar="NAME=CONSISTENCY,EVALUATION")
    parser.add_argument("--output_dir", type=Path, required=True, help="for drift.json and drift.png")
    arguments = parser.parse_args()
    models = dict(arguments.models)
    if len(models) < len(arguments.models):
        parser.error("two models have one NAME")
    with one_line_errors():
        found = compare(models)
        arguments.output_dir.mkdir(parents=True, exist_ok=True)
        (arguments.output_dir / "drift.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
        plot(found, arguments.output_dir / "drift.png")
    print("| model | `overlap@10` | `rank_std` | MRV, text → image | Spearman, languages |\n|---|---:|---:|---:|---:|")
    for name, own in found["models"].items():
        figures = f"{own['overlap@10']:.2f} | {own['rank_std']:.1f} | {own['mrv']:.1f} | {found['spearman'][name]:.2f}"
        print(f"| {name} | {figures} |")
    for what in ("all languages", "models"):
        if what in found["spearman"]:
            print(f"Spearman, {what}: {found['spearman'][what]:.2f}")


if __name__ == "__main__":
    main()
