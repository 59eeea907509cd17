"""The results of an evaluation: recall, MRV, and the files that hold them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from ccrk.retrieval.chance import CUT_OFFS, chance_recall
from ccrk.retrieval.instances import CAPTION, Ranks, UsableCaptions, shared_ranks
from ccrk.retrieval.intervals import mean_recall_interval, mrv_intervals, recall_intervals
from ccrk.retrieval.notes import notes_on_data, notes_on_model
from data_scripts.cards import card_of
from data_scripts.files import written_whole
from metrics.mrv.mrv import mean_rank_variance
from metrics.recall_at_k.recall_at_k import recall_at_k


@dataclass
class RetrievalResult:
    """Ranks per language of one evaluation, and what was left out of it."""

    ranks: Ranks = field(default_factory=dict)
    fold_ranks: Ranks = field(default_factory=dict)  # each within its fold; empty unless folds were asked for
    chance: dict[str, dict[str, float]] = field(default_factory=dict)  # recall of a random order, see `chance_recall`
    fold_chance: dict[str, dict[str, float]] = field(default_factory=dict)
    images: dict[str, pd.MultiIndex] = field(default_factory=dict)  # of each gallery, by `IMAGE`
    captions: dict[str, int] = field(default_factory=dict)  # all that are ranked
    left_out: dict[str, int] = field(default_factory=dict)  # captions that were empty after normalisation
    cut: dict[str, int] = field(default_factory=dict)  # captions that a model reads the beginning of; of an .npz none
    trained_on: dict | None = None  # see `ccrk.trained_on.overlap`; None where that is not recorded
    parameters: int | None = None  # of the model, where it is one and has weights
    milliseconds_per_query: float | None = None  # median time to encode and rank one caption, where it was taken

    def add(
        self, language: str, captions: UsableCaptions, ranked: tuple[dict[str, pd.Series], ...], folds: int
    ) -> None:
        """Takes what `rank_language` gives of a language."""
        self.images[language] = captions.images[captions.gallery]
        self.captions[language], self.left_out[language] = len(captions.texts), captions.left_out
        self.ranks[language], in_folds = ranked
        self.chance[language], chance_in_folds = chance_recall(captions, folds)
        if in_folds:
            self.fold_ranks[language], self.fold_chance[language] = in_folds, chance_in_folds

    def recall(self) -> dict[str, dict[str, float]]:
        return recall_table(self.ranks)

    def mrv(self) -> dict | None:
        return mrv_table(self.ranks)

    def rank_table(self) -> pd.DataFrame:
        """
        One row per instance, language and direction: `image`, its id, and `repeat`, 0 but for further rows of the same
        id; `caption`, its place among the row's captions in the language, missing for TR; `language`, `direction` and
        `rank`.
        """
        parts = [
            ranks.rename("rank").reset_index().assign(language=language, direction=direction)
            for language, directions in self.ranks.items()
            for direction, ranks in directions.items()
        ]
        table = pd.concat(parts, ignore_index=True).astype({"caption": "Int64"})
        return table[[*CAPTION, "language", "direction", "rank"]]


# The fields of a `RetrievalResult` that have an entry for each language.
BY_LANGUAGE = ("ranks", "fold_ranks", "chance", "fold_chance", "images", "captions", "left_out", "cut")


def recall_table(ranks: Ranks) -> dict[str, dict[str, float]]:
    """For each language `IR@k` and `TR@k` in percent for k of 1, 5, 10, and their `mean`."""
    table = {}
    for language, directions in ranks.items():
        row = {
            f"{direction}@{k}": recall_at_k(directions[direction].to_numpy(), k)[f"recall@{k}"]
            for direction in ("IR", "TR")
            for k in CUT_OFFS
        }
        table[language] = row | {"mean": float(np.mean(list(row.values())))}
    return table


def mrv_table(ranks: Ranks, languages: Sequence[str] | None = None) -> dict | None:
    """Mean rank variance over the instances that every language has; None for fewer than two, or without any."""
    languages = list(languages or ranks)
    tables = {direction: shared_ranks(ranks, languages, direction) for direction in ("IR", "TR")}
    if len(languages) < 2 or any(table.empty for table in tables.values()):
        return None
    result = {direction: mean_rank_variance(table.to_numpy()) for direction, table in tables.items()}
    result["mean"] = {name: (result["IR"][name] + result["TR"][name]) / 2 for name in ("std", "variance")}
    return {"languages": languages} | result


COLUMNS = ("IR@1", "IR@5", "IR@10", "TR@1", "TR@5", "TR@10", "mean")


def choose_mrv_languages(
    task: str,
    languages: Sequence[str],
    wanted: Sequence[str] | None = None,
    dataset_config: Mapping[str, object] | None = None,
) -> tuple[list[str], str | None]:
    """
    The languages of MRV, or none and the reason why.

    Args:
        task: name of the data set, whose card says where its captions do not align.
        languages: those that are evaluated.
        wanted: of these; by default those of the card, or all.
        dataset_config: the data set's own options; the captions of Multi30K's `task` 2 do not align.

    Raises:
        ValueError: a wanted language is not there, or twice, or the captions do not align.
    """
    card = card_of(task)
    if card.not_aligned or (dataset_config or {}).get("task") == 2:
        reason = f"the captions of {task} in one language are not those in another: no instances align"
        if wanted:
            raise ValueError(f"{reason}; leave --mrv_languages out")
        return [], reason
    chosen = list(wanted or [])
    if not chosen:
        chosen = [language for language in card.mrv_languages or languages if language in languages]
    if missing := [language for language in chosen if language not in languages]:
        raise ValueError(f"--mrv_languages names {', '.join(missing)}, evaluated are {', '.join(languages)}")
    if len(set(chosen)) < len(chosen):
        raise ValueError(f"--mrv_languages names a language twice: {' '.join(chosen)}; name each once")
    return (chosen, None) if len(chosen) > 1 else ([], "it compares two languages or more")


def make_results(
    result: RetrievalResult,
    *,
    task: str,
    split: str,
    model: str,
    k_test: int,
    mrv_languages: Sequence[str],
    no_mrv_because: str | None = None,
    model_for: Mapping[str, str] | None = None,
    dataset_config: Mapping[str, object] | None = None,
    caption_template: str = "{}",
    equal_images: int = 0,
    any_copy: bool = False,
) -> dict:
    """The content of results.json: recall in percent, ranks counted from 1, intervals as [low, high].

    Args:
        task, split, model, model_for, dataset_config, caption_template: told as they are.
        k_test: candidates that were re-scored per query.
        mrv_languages, no_mrv_because: see `choose_mrv_languages`.
        equal_images: images that have a copy under another name.
        any_copy: whether any of these counted as right.
    """
    mrv = mrv_table(result.ranks, mrv_languages) if mrv_languages else None
    intervals = {"recall": recall_intervals(result.ranks), "mean_recall": mean_recall_interval(result.ranks)}
    if mrv is not None:
        intervals["mrv"] = mrv_intervals(result.ranks, mrv_languages)
    results = {
        "task": task,
        "split": split,
        "model": model,
        "k_test": k_test,
        "languages": list(result.ranks),
        "recall": recall_table(result.ranks),
        "mrv": mrv,
        "counts": {
            "images": len(set().union(*result.images.values())),
            "captions": result.captions,
            "captions_left_out": result.left_out,
            "images_per_language": {language: len(images) for language, images in result.images.items()},
            # In the gallery and among the candidates, but no query: nobody asks for them.
            "distractor_images": {
                language: len(images) - len(result.ranks[language]["TR"]) for language, images in result.images.items()
            },
            "distractor_captions": {
                language: number - len(result.ranks[language]["IR"]) for language, number in result.captions.items()
            },
        },
        "intervals": intervals,
    }
    if mrv is None:
        results["no_mrv_because"] = no_mrv_because or f"no instance has a caption in all of {', '.join(mrv_languages)}"
    for name in ("parameters", "milliseconds_per_query"):
        if getattr(result, name) is not None:
            results[name] = getattr(result, name)
    results |= {"chance": result.chance, "equal_images": equal_images}
    if result.cut:
        results["cut_captions"] = result.cut
    if result.trained_on is not None:
        results["trained_on"] = result.trained_on
    if any_copy:
        results["any_copy"] = True
    if caption_template != "{}":
        results["caption_template"] = caption_template
    if model_for:
        results["model_for"] = dict(model_for)
    if dataset_config:
        results["dataset_config"] = dict(dataset_config)
    if result.fold_ranks:
        results["recall_in_folds"] = recall_table(result.fold_ranks)
        results["chance_in_folds"] = result.fold_chance
        results["folds"] = max(card_of(task).folds.values())
    return results


def write_results(results: dict, output_dir: Path) -> None:
    with written_whole(output_dir / "results.json") as path:
        path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def format_table(results: dict) -> str:
    """Warnings, recall per language, their mean and chance, MRV, and the comparison, as text."""
    lines = [f"warning: {note}" for note in notes_on_data(results) + notes_on_model(results)]
    lines.append("      " + "".join(f"{column:>8}" for column in COLUMNS))
    for title, name in (("", "recall"), ("in folds", "recall_in_folds")):
        table = results.get(name, {})
        if title and table:
            lines.append(title)
        for language, row in table.items():
            lines.append(f"{language:<6}" + "".join(f"{row[column]:8.1f}" for column in COLUMNS))
        if table:
            for label, own in (("mean", table), ("chance", results[name.replace("recall", "chance")])):
                means = (sum(row[column] for row in own.values()) / len(own) for column in COLUMNS)
                lines.append(f"{label:<6}" + "".join(f"{mean:8.1f}" for mean in means))
    if results["mrv"] is None:
        lines.append(f"no MRV: {results['no_mrv_because']}")
    else:
        languages = " ".join(results["mrv"]["languages"])
        lines.append(f"MRV over {languages} (0: every instance ranks alike in all of them)")
        for direction in ("IR", "TR", "mean"):
            spread, (low, high) = results["mrv"][direction], results["intervals"]["mrv"][direction]["std"]
            lines.append(
                f"  {direction:<5} std {spread['std']:.3f} (95 %: {low:.3f} to {high:.3f})   "
                f"variance {spread['variance']:.3f}"
            )
    if "comparison" in results:
        comparison = results["comparison"]
        lines.append(f"minus {comparison['other']}, mean recall with 95 % interval:")
        rows = comparison["recall"] | ({"MRV": comparison["mrv"]} if comparison["mrv"] else {})
        for name, row in rows.items():
            lines.append(
                f"  {name:<5}{row['difference']:+8.2f}  ({row['low']:+.2f} to {row['high']:+.2f})  p {row['p']:.4f}"
            )
        if "no_mrv_because" in comparison:
            lines.append(f"  no MRV: {comparison['no_mrv_because']}")
    return "\n".join(lines)
