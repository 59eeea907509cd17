"""Writes docs/agreement_study.md and its figure from what `study.py` found so far.

python research/agreement/report.py outputs/agreement docs
"""

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from ccrk.retrieval.intervals import RESAMPLES, compare, read_ranks
from ccrk.retrieval.results import RetrievalResult
from data_scripts.files import written_whole
from research.agreement.study import BASE, BATCH, SEEN, SETTING, UNSEEN, ranks_file
from research.consistency import report as consistency_report
from research.consistency.study import without_forgetting
from research.photographs import towers

HERE = Path(__file__).parent
START = "1-to-K + pairs"  # of research/consistency: the model that is fine-tuned

SUSPECTS = """`python -m ccrk.suspects`, with the model that was trained on these captions at weight 0, on 1,000 rows
of them: how many of the captions least like the others of their picture are wrong; {}."""


def over_seeds(values: list[float], digits: int = 1) -> str:
    spread = f" ({min(values):.{digits}f} to {max(values):.{digits}f})" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{spread}"


def difference(found: dict) -> str:
    return f"{found['difference']:+.2f} ({found['low']:+.2f} to {found['high']:+.2f})"


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def pooled_ranks(folder: Path, lines: list[dict]):
    return towers.pooled([RetrievalResult(read_ranks(ranks_file(folder, line))) for line in lines])


def against(folder: Path, lines: list[dict], base: list[dict], languages: list[str]) -> dict:
    """MRV minus the base's, over the same photographs and seeds."""
    seeds = {line["seed"] for line in lines} & {line["seed"] for line in base}
    ours, theirs = ([line for line in own if line["seed"] in seeds] for own in (lines, base))
    ranks = pooled_ranks(folder, ours), pooled_ranks(folder, theirs)
    ours, theirs = ({language: own[language] for language in languages} for own in ranks)
    return compare(ours, theirs, languages)["mrv"]


def bases_of(name: str, runs: dict[str, list[dict]]) -> list[str]:
    """The conditions that one is held against."""
    of_its_kind = next((f"{kind}, {BASE}" for kind in ("half", "residual") if name.startswith(kind)), BASE)
    bases = [of_its_kind] if name.startswith("half") else [of_its_kind, BASE]
    return [base for base in dict.fromkeys(bases) if base in runs and base != name]


def photographs(folder: Path, runs: dict[str, list[dict]]) -> str:
    rows, minus = [], []
    for name, lines in runs.items():

        def of(group: str, figure: str, lines: list[dict] = lines) -> list[float]:
            return [line["ranked"][group][figure] for line in lines]

        rows.append(
            [
                name,
                str(len(lines)),
                over_seeds(of("seen", "R@1")),
                over_seeds(of("seen", "R@5")),
                over_seeds(of("seen", "mrv"), 2),
                over_seeds(of("never trained", "R@5")),
                over_seeds(of("never trained", "mrv"), 2),
            ]
        )
        minus += [[f"{name}, minus {base}", *minus_base(folder, lines, runs[base])] for base in bases_of(name, runs)]
    head = ["", "seeds", "R@1", "R@5", "MRV", "R@5, never trained", "MRV, never trained"]
    of_minus = ["", "R@5", "MRV", "in percent", "R@5, never trained", "MRV", "in percent"]
    return f"{table(head, rows)}\n\n{table(of_minus, minus)}"


def minus_base(folder: Path, lines: list[dict], base: list[dict]) -> list[str]:
    """Differences of recall and MRV, over the seeds that both have."""
    by_seed = {line["seed"]: line for line in base}
    pairs = [(line, by_seed[line["seed"]]) for line in lines if line["seed"] in by_seed]
    cells = []
    for group, languages in (("seen", SEEN), ("never trained", UNSEEN)):
        found = against(folder, lines, base, languages)
        before = np.mean([theirs["ranked"][group]["mrv"] for _, theirs in pairs])
        cells += [
            over_seeds([ours["ranked"][group]["R@5"] - theirs["ranked"][group]["R@5"] for ours, theirs in pairs]),
            difference(found),
            f"{100 * found['difference'] / before:+.0f} %",
        ]
    return cells


def without_training(base: list[dict]) -> str:
    rows = []
    as_is = [line["ranked"] for line in base]
    for name, found in [
        ("each query by itself", as_is),
        *((name, [line["without training"][name] for line in base]) for name in base[0]["without training"]),
    ]:
        cells = []
        for group in ("seen", "never trained"):
            for figure, digits in (("R@1", 1), ("R@5", 1), ("mrv", 2)):
                values = [one[group][figure] for one in found if group in one]
                cells.append(over_seeds(values, digits) if values else "–")
        rows.append([name, *cells])
    head = ["", "R@1", "R@5", "MRV", "R@1, never trained", "R@5", "MRV"]
    return table(head, rows)


def shapes(runs: dict[str, list[dict]]) -> str:
    rows = []
    for name, lines in sorted(runs.items(), key=lambda run: (run[0].split("errors")[0], *order(run[1][0]))):
        unweighted = runs.get(f"{name.partition('weight')[0]}weight 0", [])
        before = {line["seed"]: line["ranked"] for line in unweighted}
        pairs = [(line["ranked"], before[line["seed"]]) for line in lines if line["seed"] in before]
        cells = ["", ""]
        if pairs and lines is not unweighted:
            cells = [f"{np.mean([ours['recall'] - theirs['recall'] for ours, theirs in pairs]):+.1f}"]
            cells += [f"{100 * np.mean([ours['mrv'] / theirs['mrv'] - 1 for ours, theirs in pairs]):+.0f} %"]
        figures = [[line["ranked"][figure] for line in lines] for figure in ("recall", "mrv")]
        rows.append([name, str(len(lines)), over_seeds(figures[0]), over_seeds(figures[1], 2), *cells])
    lines = [line for own in runs.values() for line in own if "suspects" in line]
    told = [
        f"seed {line['seed']}: of {line['suspects']['planted']:,} wrong captions, "
        + ", ".join(f"{share:.1f} % of the first {int(n):,}" for n, share in line["suspects"]["precision"].items())
        for line in lines
    ]
    head = ["", "seeds", "mean recall", "MRV", "recall, minus weight 0", "MRV, in percent"]
    return table(head, rows) + "\n\n" + SUSPECTS.format("; ".join(told) or "not run")


def order(line: dict) -> tuple[float, float]:
    return -line["errors"], line["weight"]


def fine_tuning(study: Path) -> str:
    """From a folder of research/consistency/study.py: fine-tuned on English, and what that does to the others."""
    report = consistency_report.Report(study, study)
    bases = START, f"{START}, then English"
    ways = [condition.name for condition in without_forgetting(START) if condition.queue == 0]
    names = report.present([*bases, *ways])
    if lacking := [name for name in bases if name not in names]:
        raise ValueError(f"{study} has no run of {lacking[0]!r}; run it, or remove --finetuning")

    def mrv_minus(name: str, other: str) -> str:
        seeds = report.seeds(name, other)
        if name == other or not seeds:
            return ""
        (value, drawn), (base, of_base) = (consistency_report.resampled(study, own, seeds) for own in (name, other))
        return consistency_report.with_interval(value[2] - base[2], drawn[:, 2] - of_base[:, 2], 2, "+")

    rows = []
    for name in names:
        own = report.results[report.results["condition"] == name]
        others = own[[f"recall_{language}" for language in report.languages if language != "en"]].mean(axis=1)
        cells = [
            over_seeds(own["recall_en"].tolist()),
            over_seeds(others.tolist()),
            over_seeds(own["mrv_std"].tolist(), 2),
        ]
        cells += [mrv_minus(name, other) for other in bases]
        rows.append([name.removeprefix(f"{START}, ") if name != START else "before", str(len(own)), *cells])
    head = [
        "",
        "seeds",
        "recall, English",
        f"the {len(report.languages) - 1} others",
        "MRV",
        "MRV, minus before",
        "minus then English",
    ]
    return table(head, rows)


def draw(runs: dict[str, list[dict]], path: Path) -> None:
    """MRV against recall: what is lower at the same height from the left is more consistent at equal recall."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 5), layout="constrained")
    for axis, (group, title) in zip(
        axes, (("seen", ", ".join(SEEN)), ("never trained", f"{', '.join(UNSEEN)}, never trained")), strict=True
    ):
        axis.set_prop_cycle(color=plt.colormaps["tab20"].colors)
        for name, lines in runs.items():
            recall, mrv = ([line["ranked"][group][what] for line in lines] for what in ("R@5", "mrv"))
            axis.errorbar(
                np.mean(recall), np.mean(mrv), np.std(mrv), np.std(recall), "s" if name.startswith("half") else "o",
                label=name, capsize=2,
            )  # fmt: skip
        for kind, weights in (("", (0, 3, 10, 30)), ("residual, ", (0, 5, 15, 30))):
            own = [runs[name] for weight in weights if (name := f"{kind}weight {weight}") in runs]
            mean = [np.mean([[o["ranked"][group][w] for w in ("R@5", "mrv")] for o in lines], 0) for lines in own]
            if mean:
                axis.plot(*np.array(mean).T, color="grey", linewidth=0.8, zorder=0)
        axis.set(title=title, xlabel="R@5, percent", ylabel="MRV, ranks")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output_dir", type=Path, help="where study.py wrote results.jsonl")
    parser.add_argument("docs", type=Path, help="where the document goes")
    parser.add_argument(
        "--finetuning", type=Path, help="output_dir of research/consistency/study.py --parts finetuning"
    )
    arguments = parser.parse_args()
    found: dict[str, dict[str, list[dict]]] = defaultdict(lambda: defaultdict(list))
    lines = (arguments.output_dir / "results.jsonl").read_text(encoding="utf-8").splitlines()
    for line in map(json.loads, lines):
        found[line["data"]][line["condition"]].append(line)
    folder = arguments.docs / "agreement_study"
    folder.mkdir(parents=True, exist_ok=True)
    pd.json_normalize([json.loads(line) for line in lines]).round(4).to_csv(folder / "results.csv", index=False)
    draw(found["photographs"], folder / "curves.png")
    page = (HERE / "report.md").read_text(encoding="utf-8").format(
        photographs=photographs(arguments.output_dir, found["photographs"]),
        without_training=without_training(found["photographs"][BASE]),
        shapes=shapes(found["shapes"]) if found["shapes"] else "Not run.",
        finetuning=fine_tuning(arguments.finetuning) if arguments.finetuning else "Not run.",
        resamples=f"{RESAMPLES:,}",
        steps=SETTING.steps,
        batch=BATCH,
        learning_rate=f"{SETTING.learning_rate:g}",
        dropout=f"{SETTING.dropout:g}",
    )  # fmt: skip
    with written_whole(arguments.docs / "agreement_study.md") as unfinished:
        unfinished.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
