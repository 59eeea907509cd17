"""Writes the document of a consistency study from its results: tables with intervals, plots, and what they decide.

    python research/consistency/report.py outputs/study docs

writes docs/consistency_study.md, of a study of photographs docs/consistency_photographs.md, and beside it a folder of
that name with the figures, and the results as CSV.

Intervals are 95 % basic bootstraps that draw seeds and test scenes anew, both with replacement, 1,000 times. A
difference draws the same seeds and scenes for both of its sides. (Basic, not percentile: the spread over languages
grows with every noise, that of drawing anew as well, and a basic interval takes that off again.)
"""

import argparse
import itertools
import json
import shlex
import shutil
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import matplotlib

matplotlib.use("Agg")

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt

from ccrk.retrieval.intervals import CUTOFFS, RESAMPLES, read_ranks
from data_scripts.cli import one_line_errors
from data_scripts.shapes import MISTRANSLATED
from research.consistency.study import (
    CONDITIONS,
    LONGER,
    NUM_VALIDATION,
    PAIRS_FROM,
    PARTS,
    STYLES,
    TRANSLATION_NOISE,
    file_name,
)

DIGITS = (1, 2, 2, 1)  # of mean recall, its spread, and MRV as std and variance
# The claim: these rank more consistently than those.
PROPOSED = ("1-to-K", "1-to-K, symmetric")
RIVALS = ("1-to-1", "1-to-1, equal compute", LONGER, "pivot")


def measures(ranks: np.ndarray) -> np.ndarray:
    """
    Mean recall and its spread (standard deviation) over languages in percent, MRV as std and variance.

    Args:
        ranks: (seeds, scenes, languages, 2), from 1, of text→image and image→text.

    Returns: (4,), each the mean over seeds.
    """
    recall = 100 * np.mean([ranks <= k for k in CUTOFFS], axis=0).mean(axis=(1, 3))  # (seeds, languages)
    return np.array(
        [
            recall.mean(),
            recall.std(axis=1).mean(),
            ranks.std(axis=2).mean(),
            ranks.var(axis=2).mean(),
        ]
    )


@cache
def draws(seeds: int, scenes: int) -> list[tuple[np.ndarray, np.ndarray]]:
    generator = np.random.default_rng(0)
    return [(generator.integers(seeds, size=seeds), generator.integers(scenes, size=scenes)) for _ in range(RESAMPLES)]


@cache
def resampled(
    study: Path, name: str, seeds: tuple[int, ...], languages: tuple[str, ...] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(4,) measures and (RESAMPLES, 4) of the draws; the same draws for every condition of these seeds."""
    ranks = load_ranks(study, name, seeds, languages)
    return measures(ranks), np.stack(
        [measures(ranks[own][:, scenes]) for own, scenes in draws(len(seeds), ranks.shape[1])]
    )


def load_ranks(study: Path, name: str, seeds: Sequence[int], languages: Sequence[str] | None = None) -> np.ndarray:
    """(seeds, scenes, languages, 2); scenes in one order for all conditions, by name if none are given."""
    tables = []
    for seed in seeds:
        ranks = read_ranks(study / "ranks" / f"{file_name(name)}-{seed}.parquet")
        columns = []
        for language in languages or sorted(ranks):
            text_to_image = ranks[language]["IR"].copy()
            text_to_image.index = text_to_image.index.droplevel("caption")
            both = pd.concat([text_to_image, ranks[language]["TR"]], axis=1, join="inner").sort_index()
            columns.append(both.to_numpy())
        tables.append(np.stack(columns, axis=1))
    return np.stack(tables).astype(np.float32)


def interval(value: float, draws: np.ndarray) -> tuple[float, float]:
    """Basic 95 % bootstrap interval."""
    low, high = np.percentile(draws, [2.5, 97.5])
    return 2 * value - high, 2 * value - low


def with_interval(value: float, draws: np.ndarray, digits: int, sign: str = "") -> str:
    low, high = interval(value, draws)
    if not sign:  # a measure: none can be below 0, though a basic interval of a small one may reach there
        low = max(low, 0.0)
    return f"{value:{sign}.{digits}f} ({low:{sign}.{digits}f} to {high:{sign}.{digits}f})"


def decided(value: float, draws: np.ndarray) -> str:
    """Whether a difference of MRV says that the first ranks more consistently."""
    low, high = interval(value, draws)
    if low <= 0 <= high:
        return "undecided"
    return "yes" if high < 0 else "no"


class Report:
    """The document's parts, each from the results that are there."""

    def __init__(self, study: Path, output_dir: Path):
        self.study, self.output_dir = study, output_dir
        self.results = pd.read_csv(study / "results.csv")
        self.curves = pd.read_csv(study / "curves.csv")
        self.settings = json.loads((study / "study.json").read_text())["settings"]
        self.is_shapes = self.settings["dataset"] == "shapes"
        self.name = "consistency_study" if self.is_shapes else "consistency_photographs"
        self.languages = [
            column.removeprefix("recall_")
            for column in self.results
            if column.startswith("recall_") and column != "recall_spread"
        ]

    def seeds(self, *names: str) -> tuple[int, ...]:
        """Those that all of the conditions were run with."""
        own = [set(self.results.loc[self.results["condition"] == name, "seed"].astype(int)) for name in names]
        return tuple(sorted(set.intersection(*own)))

    def present(self, names: Sequence[str]) -> list[str]:
        return [name for name in names if self.seeds(name)]

    def table(self, names: Sequence[str]) -> list[str]:
        lines = [
            "| condition | seeds | steps | mean recall | spread over languages | MRV std | MRV variance | images/s "
            "| captions per step | GFLOP per step |",
            "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
        ]
        for name in self.present(names):
            own = self.results[self.results["condition"] == name]
            values, drawn = resampled(self.study, name, self.seeds(name))
            figures = [with_interval(values[i], drawn[:, i], digits) for i, digits in enumerate(DIGITS)]
            lines.append(
                f"| {name} | {len(own)} | {own['steps'].iloc[0]:,} | {' | '.join(figures)} "
                f"| {own['images_per_second'].median():.0f} | {own['captions_per_step'].iloc[0]:,} "
                f"| {own['gflop_per_step'].iloc[0]:.0f} |"
            )
        return lines

    def differences(self, ours: Sequence[str], others: Sequence[str]) -> tuple[list[str], list[str]]:
        """Lines of the table of each of ours minus each of the others, and what the differences of MRV decide."""
        lines = [
            "| | minus | mean recall | spread over languages | MRV std | ranks more consistently? |",
            "|---|---|---:|---:|---:|---|",
        ]
        verdicts = []
        for own in self.present(ours):
            for other in self.present(others):
                if not (seeds := self.seeds(own, other)):
                    continue
                (value, drawn), (their_value, their_drawn) = (resampled(self.study, n, seeds) for n in (own, other))
                difference, spread = value - their_value, drawn - their_drawn
                figures = [with_interval(difference[i], spread[:, i], DIGITS[i], "+") for i in range(3)]
                verdicts.append(decided(difference[2], spread[:, 2]))
                lines.append(f"| {own} | {other} | {' | '.join(figures)} | {verdicts[-1]} |")
        return lines, verdicts

    def plot(self, name: str, figure: plt.Figure) -> str:
        figure.savefig(self.output_dir / self.name / f"{name}.png", dpi=110, bbox_inches="tight")
        plt.close(figure)
        return f"{self.name}/{name}.png"

    def plot_measures(self, names: Sequence[str]) -> str:
        names = self.present(names)
        figure, axes = plt.subplots(1, 3, figsize=(11, 0.42 * len(names) + 1.2), sharey=True, layout="constrained")
        for axis, column, title in zip(
            axes,
            (0, 1, 2),
            ("mean recall (%)", "spread of recall over languages (points)", "MRV (std, ranks)"),
            strict=True,
        ):
            for row, name in enumerate(names):
                value, drawn = resampled(self.study, name, self.seeds(name))
                low, high = interval(value[column], drawn[:, column])
                colour = "tab:blue" if name.startswith(PROPOSED[0]) else "tab:orange"
                axis.plot([max(low, 0.0), high], [row, row], color=colour, linewidth=2)
                axis.plot(value[column], row, "o", color=colour)
            axis.set_title(title, fontsize=10)
            axis.grid(axis="x", alpha=0.3)
        axes[0].set_yticks(range(len(names)), names)
        axes[0].invert_yaxis()
        return self.plot("measures", figure)

    def plot_recall(self, names: Sequence[str]) -> str:
        names = self.present(names)
        columns = [f"recall_{language}" for language in self.languages]
        figure, axis = plt.subplots(figsize=(9, 4), layout="constrained")
        for name in names:
            means = self.results.loc[self.results["condition"] == name, columns].mean()
            axis.plot(range(len(columns)), means, "o-", label=name, alpha=0.8)
        axis.set_xticks(range(len(columns)), self.languages)
        axis.set_ylabel("mean recall (%)")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
        return self.plot("recall", figure)

    def plot_curves(self, names: Sequence[str]) -> str:
        figure, axes = plt.subplots(1, 3, figsize=(14, 3.6), layout="constrained")
        for name in self.present(names):
            curve = self.curve(name)
            for axis, column in zip(axes, ("recall", "mrv"), strict=False):
                axis.plot(curve.index, curve[column], "o-", label=name, alpha=0.8)
            axes[2].plot(curve["recall"], curve["mrv"], "o-", label=name, alpha=0.8)
        for axis, title, label in zip(
            axes,
            ("mean recall (%)", "MRV (std, ranks)", "MRV at each recall"),
            ("step", "step", "mean recall (%)"),
            strict=True,
        ):
            axis.set_title(title, fontsize=10)
            axis.set_xlabel(label)
            axis.grid(alpha=0.3)
        for axis in axes[1:]:
            axis.set_yscale("log")
        axes[2].legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
        return self.plot("curves", figure)

    def curve(self, name: str) -> pd.DataFrame:
        """Validation's recall and mrv by step, means over seeds."""
        return self.curves[self.curves["condition"] == name].groupby("step")[["recall", "mrv"]].mean()

    def at_equal_recall(self, suffix: str) -> list[str]:
        """MRV of 1-to-K where its learning curve passes through the recall that each rival ends with, by seed."""
        lines = [
            "| | its recall at the end | its MRV | MRV of 1-to-K at that recall | 1-to-K minus this, by seed |",
            "|---|---:|---:|---:|---|",
        ]
        ours = PROPOSED[0] + suffix
        for rival in self.present([name + suffix for name in RIVALS]):
            ends, reached = [], []
            for seed in self.seeds(ours, rival):
                own, other = (
                    self.curves[(self.curves["condition"] == name) & (self.curves["seed"] == seed)].sort_values("step")
                    for name in (ours, rival)
                )
                ends.append(end := other.iloc[-1])
                # The first stretch of the curve that the rival's recall lies in: a curve need not rise all the way.
                for (_, before), (_, after) in itertools.pairwise(own.iterrows()):
                    if before["recall"] <= end["recall"] <= after["recall"]:
                        share = (end["recall"] - before["recall"]) / ((after["recall"] - before["recall"]) or 1)
                        reached.append(before["mrv"] + share * (after["mrv"] - before["mrv"]))
                        break
                else:
                    reached.append(np.nan)
            recall, mrv = (np.mean([end[column] for end in ends]) for column in ("recall", "mrv"))
            at_recall = "not on its curve" if np.isnan(reached).all() else f"{np.nanmean(reached):.2f}"
            differences = [own - end["mrv"] for own, end in zip(reached, ends, strict=True)]
            by_seed = ", ".join("–" if np.isnan(value) else f"{value:+.2f}" for value in differences)
            lines.append(f"| {rival} | {recall:.1f} | {mrv:.2f} | {at_recall} | {by_seed} |")
        return lines

    def language_table(self) -> list[str]:
        """Recall of languages that a run has seen and of those that it has not; MRV where runs can be compared."""
        conditions = {condition.name: condition.languages for condition in PARTS["languages"]}
        fewest = min(conditions.values(), key=len)
        lines = [
            f"| condition | recall, {' and '.join(fewest)} | MRV std over {' and '.join(fewest)} "
            "| recall, its languages | MRV std over its languages | recall, unseen languages |",
            "|---|---:|---:|---:|---:|---:|",
        ]
        for name in self.present([*conditions, PROPOSED[0]]):
            seen = conditions.get(name) or tuple(self.languages)
            unseen = tuple(language for language in self.languages if language not in seen)
            figures = []
            for languages in (fewest, seen):
                values, drawn = resampled(self.study, name, self.seeds(name), languages)
                figures += [with_interval(values[i], drawn[:, i], DIGITS[i]) for i in (0, 2)]
            if unseen:
                values, drawn = resampled(self.study, name, self.seeds(name), unseen)
                figures.append(with_interval(values[0], drawn[:, 0], DIGITS[0]))
            else:
                figures.append("–")
            lines.append(f"| {name}{'' if unseen else f' (K = {len(seen)})'} | {' | '.join(figures)} |")
        return lines

    def plot_ranks(self, names: Sequence[str]) -> str:
        names = self.present(names)
        languages = sorted(
            read_ranks(self.study / "ranks" / f"{file_name(names[0])}-{self.seeds(names[0])[0]}.parquet")
        )
        others = [language for language in languages if language != "en"]
        figure, axes = plt.subplots(
            len(names),
            len(others),
            figsize=(1.5 * len(others), 1.6 * len(names)),
            squeeze=False,
            sharex=True,
            sharey=True,
            layout="constrained",
        )
        for row, name in zip(axes, names, strict=True):
            ranks = load_ranks(self.study, name, self.seeds(name)[:1])[0, :, :, 0]
            for axis, language in zip(row, others, strict=True):
                axis.loglog(
                    ranks[:, languages.index("en")],
                    ranks[:, languages.index(language)],
                    ".",
                    markersize=2,
                    alpha=0.4,
                )
                axis.set_title(language, fontsize=8)
            row[0].set_ylabel(name, fontsize=7)
        figure.supxlabel("rank of the picture for the English caption", fontsize=9)
        return self.plot("ranks", figure)

    def write(self) -> None:
        folder = self.output_dir / self.name
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("results", "curves"):
            shutil.copy(self.study / f"{name}.csv", folder)
        self.path.write_text("\n".join(self.lines()) + "\n", encoding="utf-8")

    @property
    def path(self) -> Path:
        return self.output_dir / f"{self.name}.md"

    def lines(self) -> list[str]:
        plain = [condition.name for condition in STYLES]
        pairs = [f"{name} + pairs" for name in plain]
        device = ", ".join(
            f"{name} ({threads} thread{'s' if threads > 1 else ''} per run, torch {version})"
            for name, threads, version in self.results[["device", "threads", "torch"]]
            .drop_duplicates()
            .itertuples(index=False)
        )
        lines = [
            f"# Does 1-to-K rank {'' if self.is_shapes else 'photographs '}more consistently?",
            "",
            "Written by `python research/consistency/report.py` from the results of the command at the end.",
            "",
            f"The same model, from scratch, on the same images, {self.settings['steps']:,} steps of 64 images, "
            f"seeds {', '.join(map(str, sorted(self.results['seed'].unique())))}; {self.settings['num_test']:,} "
            f"{'unseen scenes' if self.is_shapes else 'of the photographs'} ranked by cosine in "
            f"{len(self.languages)} languages. {device}; "
            f"{len(self.results)} runs took {self.results['seconds'].sum() / 60:.0f} minutes of training in all.",
            "",
            "- **1-to-K**: an image against its captions in all languages at once; the published reduction of the "
            "loss, or the symmetric one.",
            "- **1-to-1** (cross-modal style): an image against one caption of a random language per step; for as "
            "many steps, for as many counted operations as 1-to-K, or for three times the steps.",
            "- **pivot** (cross-lingual style): an image against its English caption, and that against one in a "
            "random other language, which never meets the image.",
            "- **+ pairs**: with matching and masked LM beside the contrastive loss, in the last "
            f"{100 * (1 - PAIRS_FROM):.0f} % of the steps.",
            "",
        ]
        if self.is_shapes:
            rates = ", ".join(f"{k} {100 * TRANSLATION_NOISE * rate:.0f} %" for k, rate in MISTRANSLATED.items())
            lines += [
                f"Captions are trained on as a translation system might have left them: wrong in one colour, shape, "
                f"relation or landscape, or cut short after three fifths, {rates}; wording and synonyms vary freely. "
                "Those that are tested are right.",
                "",
            ]
        else:
            lines += [
                "The photographs that are ranked were trained on: how alike languages rank what is being learnt, not "
                "how well that carries over to others.",
                "",
            ]
        lines += self.table([*plain, *pairs])
        lines += [
            "",
            "Recall is the mean of IR and TR at 1, 5 and 10; spread the standard deviation of that over languages; "
            "MRV in ranks. Intervals (95 %) draw seeds and test instances anew; of so few seeds they can be but a "
            "rough guide.",
            "",
            f"![The measures with their intervals]({self.plot_measures([*plain, *pairs])})",
            "",
            "## The claim",
            "",
            "The paper says that 1-to-K ranks an instance more alike in all languages than 1-to-1 and pivot styles "
            "do: then the differences of MRV below are negative.",
            "",
        ]
        count = {"yes": 0, "no": 0, "undecided": 0}
        for suffix, title in (("", "Contrastive loss alone"), (" + pairs", "With matching and masked LM")):
            table, verdicts = self.differences([n + suffix for n in PROPOSED], [n + suffix for n in RIVALS])
            if verdicts:
                lines += [f"{title}:", "", *table, ""]
            for verdict in verdicts:
                count[verdict] += 1
        speeds = []
        for suffix in ("", " + pairs"):
            if self.present([PROPOSED[0] + suffix]) and len(table := self.at_equal_recall(suffix)) > 2:
                speeds += [*table, ""]
        lines += [
            f"Of {sum(count.values())} comparisons, the interval of the difference in MRV speaks for the claim in "
            f"{count['yes']}, against it in {count['no']}, and holds 0 in {count['undecided']}.",
            "",
            f"![Recall of each language]({self.plot_recall(plain)})",
            "",
            "## Is it more than learning faster?",
            "",
            "A model that finds more also ranks more alike: what is first in all languages cannot drift. So the MRV "
            f"that a rival ends with, on {NUM_VALIDATION} validation instances, is held against that "
            "of 1-to-K where it passed through the same recall (its curve interpolated, for each seed; – where it did "
            "not come so far). Near 0, the difference above is one of speed.",
            "",
            *speeds,
            f"![Learning curves]({self.plot_curves(plain)})",
            "",
            f"Each point a test instance, seed {self.results['seed'].min()}; on the diagonal it ranks as in English:",
            "",
            f"![Ranks in each language against English]({self.plot_ranks(plain)})",
            "",
        ]
        titles = {
            "languages": "Fewer languages in training",
            "finetuning": "After fine-tuning on one language",
            "ablations": "Other settings of 1-to-K",
        }
        parts = [part for part in titles if self.present([condition.name for condition in PARTS[part]])]
        for part in parts:
            lines += [f"## {titles[part]}", "", *getattr(self, f"part_on_{part}")()]
        run = "python research/consistency/study.py --output_dir outputs"
        if self.is_shapes:
            commands = ["make study"]
            for part in parts:
                seeds = {seed for condition in PARTS[part] for seed in self.seeds(condition.name)}
                commands += [f"{run}/study --parts {part} --seeds {' '.join(map(str, sorted(seeds)))}"]
            commands += [
                "python research/consistency/report.py outputs/study docs   # writes this document",
                f'{run}/again --seeds 0 --only "1-to-K"   # one row',
            ]
        else:
            names = " ".join(shlex.quote(name) for name in CONDITIONS if self.seeds(name))
            commands = [
                f"{run}/photographs-study --dataset {self.settings['dataset']} \\",
                "    --data_dir multi30k --image_dir flickr30k-images \\",
                f"    --steps {self.settings['steps']} --only {names}",
                "python research/consistency/report.py outputs/photographs-study docs   # writes this document",
            ]
        lines += [
            "## Again",
            "",
            "```bash",
            *commands,
            "```",
            "",
            "A row comes out the same on the same machine with as many threads. Results: "
            f"[results.csv]({self.name}/results.csv), [curves.csv]({self.name}/curves.csv).",
        ]
        return lines

    def part_on_languages(self) -> list[str]:
        return [
            *self.language_table(),
            "",
            "All languages are tested, also those that a run has never seen: there it guesses.",
            "",
        ]

    def part_on_finetuning(self) -> list[str]:
        steps = [c for c in PARTS["finetuning"] if c.start_from and self.seeds(c.name)]
        in_order = dict.fromkeys(name for condition in steps for name in (condition.start_from, condition.name))
        return [
            "English by the retrieval head, contrastive and matching loss, and from there 100 rows of German: each "
            "a sixth of the steps, at the paper's ratios of learning rates (0.3 and 0.1 of pre-training's). With "
            "agreement: the other languages' captions of the same images take part in that loss alone, at the "
            "weight that is named. Averaged: so much of the weights at the end, the rest of those before. All "
            "languages: 1-to-K goes on; a queue has embeddings of that many earlier images as further negatives.",
            "",
            *self.table(list(in_order)),
            "",
            "What each changes:",
            "",
            *self.changes({condition.name: condition.start_from for condition in steps}),
            "",
        ]

    def part_on_ablations(self) -> list[str]:
        bases = {
            condition.name: PROPOSED[0] if condition.pairs_from is None else f"{PROPOSED[0]} + pairs"
            for condition in PARTS["ablations"]
        }
        in_order = [*dict.fromkeys(bases.values()), *bases]
        return [
            *self.table(in_order),
            "",
            "What each changes, over the seeds that both have; of a single one the interval is over scenes alone:",
            "",
            *self.changes(bases),
            "",
        ]

    def changes(self, bases: dict[str, str]) -> list[str]:
        """The table of differences of each condition from its own base."""
        tables = [self.differences([name], [base])[0] for name, base in bases.items()]
        head = 2
        return tables[0][:head] + [row for table in tables for row in table[head:]]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="output_dir of study.py")
    parser.add_argument("output_dir", type=Path)
    arguments = parser.parse_args(argv)
    with one_line_errors():
        if not (arguments.study / "results.csv").exists():
            raise ValueError(f"{arguments.study} holds no results.csv; run research/consistency/study.py first")
        report = Report(arguments.study, arguments.output_dir)
        report.write()
    print(f"written to {report.path}")


if __name__ == "__main__":
    main()
