"""Writes docs/photographs_towers.md, with its figure, from what `towers.py` found.

    python research/photographs/report.py outputs/towers docs
    python research/photographs/report.py outputs/towers docs --models outputs/towers-models    and models beside it

The latter is a folder of `eval_mrv.py --model A B C` on the photographs that `towers.py` ranked.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from ccrk.retrieval.intervals import RESAMPLES
from ccrk.retrieval.models import with_interval
from data_scripts.cli import one_line_errors
from data_scripts.text import read_text

SEEN, UNSEEN = ["en", "de", "fr", "cs"], ["pt", "zh", "ar"]

PAGE = """# Two frozen towers on photographs

An image encoder ({vision})
and a text encoder ({text}), neither of which knows the other. Behind each is a
projection, trained on {training:,} photographs of Multi30K's training part with a caption in {seen_languages}
each. For each style {choosing} validation photographs chose the steps, 400 or 800, and whether the projection is
linear or has a layer x + GELU(W x) before it (`--projection residual`). The {ranked} others, of validation and test,
are ranked here and took no part in that choice. Chance is {chance_1:.1f} % at rank 1 and {chance_5:.1f} % at 5.

Recall is the mean of image and text retrieval and of the languages, in percent, over {seeds} seeds, whose lowest and
highest are in brackets. MRV is over the languages of training, with the 95 % interval of {resamples:,} draws of
photographs. Time is a core's, of training, once the towers have encoded everything.

| style | R@1 | R@5 | R@5, languages never trained | MRV std | seconds | steps, rate, dropout, projection |
|---|---:|---:|---:|---:|---:|---|
{styles}

![R@5 of each language](photographs_towers/recall.png)

By language, R@5:

| style | {languages} |
|---|{rule}|
{by_language}

1-to-K minus each, over the same photographs and seeds, with 95 % intervals; recall is the mean of R@1, 5 and 10:

| minus | {recall_languages} | MRV std |
|---|{seen_rule}|---:|
{differences}

{verdict}
{models}
## Again

The towers are a `timm_wrapper` and a transformers folder; the table has a column `split`, and for each language one
`caption_LANGUAGE`.

```bash
python research/photographs/towers.py --vision_model V --text_model T --captions metadata.jsonl \\
    --photographs flickr30k-images --output_dir outputs/towers
python research/photographs/report.py outputs/towers docs
```

The same by the product's own commands, on the split that was written there; then LoRA in the text tower from there
on, and a CCRK on both towers, the text tower as an XLM-R (`P`: the first command's options of pictures and captions):

```bash
accelerate launch train_retrieval.py --vision_model V --text_model T --caption_prompt "query: " --freeze image text \\
    --cache_image_features true --cache_caption_features true --projection {projection} --projection_dropout 0.3 \\
    --learning_rate 1e-3 --dataset outputs/towers/photographs.jsonl --image_dir flickr30k-images \\
    --languages {seen_options} --caption_columns {seen_columns} \\
    --per_device_train_batch_size 256 --max_steps {steps} --output_dir outputs/frozen
accelerate launch train_retrieval.py --model_name_or_path outputs/frozen --use_peft true --lora_r 16 --freeze image \\
    --cache_image_features true --bf16 true --learning_rate 3e-4 P --per_device_train_batch_size 64 \\
    --max_steps 200 --output_dir outputs/lora    # and with --agreement_weight 15 --agreement_start 0
accelerate launch train_retrieval.py --vision_model V --text_model T --layers all --image_size 224 --freeze image \\
    --captions_per_image all --learning_rate 5e-4 P --per_device_train_batch_size 16 --max_steps 300 \\
    --output_dir outputs/ccrk
python eval_mrv.py --model outputs/frozen --task outputs/towers/photographs.jsonl --image_dir flickr30k-images \\
    --languages {all_options} --mrv_languages {seen_options} \\
    --caption_columns {seen_columns} \\
    {unseen_columns} --output_dir outputs/towers-models
```

Figures: [results.json](photographs_towers/results.json).
"""

MODELS = """
## Models

Each by `train_retrieval.py`, seed 42, and measured by `eval_mrv.py` on the same photographs. All but the first were
given what a core does in half an hour. For a CCRK, whose text encoder is cut in two and learns anew, that is far from
enough; for LoRA it is enough to rank more alike (`eval_mrv.py --compare` has the differences of MRV, with intervals).
With a second seed LoRA came to R@5 71.6, MRV 2.63, with agreement to 71.1, 2.36.

| model | R@1 | R@5 | R@5, languages never trained | MRV std | million parameters |
|---|---:|---:|---:|---:|---:|
{rows}
"""


def over_seeds(values: list[float]) -> str:
    return f"{mean(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def difference(found: dict) -> str:
    return f"{found['difference']:+.2f} ({found['low']:+.2f} to {found['high']:+.2f})"


def projection(setting: dict) -> str:
    return "residual" if setting["residual"] else "linear"


def columns(languages: list[str]) -> str:
    return " ".join(f"{language}=caption_{language}" for language in languages)


def page(found: dict, models: dict[str, dict]) -> str:
    """The document.

    Args:
        found: results.json of `towers.py`.
        models: name → results.json of `eval_mrv.py`.
    """
    styles = found["styles"]
    rows, by_language, differences = [], [], []
    for style, own in styles.items():
        chosen = own["setting"]
        rows.append(
            f"| {style} | {over_seeds(own['R@1']['seen'])} | {over_seeds(own['R@5']['seen'])} | "
            f"{over_seeds(own['R@5']['never trained'])} | {with_interval(own['mrv'], own['mrv_interval'], 2)} | "
            f"{own['seconds']:.0f} | {chosen['steps']}, {chosen['learning_rate']:g}, {chosen['dropout']:g}, "
            f"{projection(chosen)} |"
        )
        means = [mean(own["R@5"][name]) for name in SEEN + UNSEEN]
        by_language.append(f"| {style} | {' | '.join(f'{value:.1f}' for value in means)} |")
        if minus := own["1-to-K minus this"]:
            recalls = " | ".join(difference(minus["recall"][language]) for language in SEEN)
            differences.append(f"| {style} | {recalls} | {difference(minus['mrv'])} |")
    return PAGE.format(
        vision=found["towers"][0],
        text=found["towers"][1],
        **found["photographs"],
        chance_1=100 / found["photographs"]["ranked"],
        chance_5=500 / found["photographs"]["ranked"],
        seeds=len(next(iter(styles.values()))["R@1"]["seen"]),
        resamples=RESAMPLES,
        styles="\n".join(rows),
        languages=" | ".join(SEEN + UNSEEN),
        rule="|".join("---:" for _ in SEEN + UNSEEN),
        by_language="\n".join(by_language),
        recall_languages=" | ".join(f"recall {language}" for language in SEEN),
        seen_rule="|".join("---:" for _ in SEEN),
        differences="\n".join(differences),
        verdict="\n".join(verdict(styles)),
        models=MODELS.format(rows="\n".join(map(model_row, models, models.values()))) if models else "",
        seen_languages=", ".join(SEEN),
        seen_options=" ".join(SEEN),
        all_options=" ".join(SEEN + UNSEEN),
        seen_columns=columns(SEEN),
        unseen_columns=columns(UNSEEN),
        projection=projection(chosen := next(iter(styles.values()))["setting"]),
        steps=chosen["steps"],
    )


def verdict(styles: dict[str, dict]) -> list[str]:
    against = {style: own["1-to-K minus this"]["mrv"] for style, own in styles.items() if own["1-to-K minus this"]}
    better = [style for style, mrv in against.items() if mrv["high"] < 0]
    worse = [style for style, mrv in against.items() if mrv["low"] > 0]
    unclear = [style for style in against if style not in (*better, *worse)]
    return [
        f"MRV of 1-to-K is {what}: {'; '.join(names)}."
        for what, names in (
            ("lower, by an interval that leaves out 0, than of", better),
            ("higher than of", worse),
            ("not told apart from that of", unclear),
        )
        if names
    ]


def model_row(name: str, results: dict) -> str:
    """A model as `eval_mrv.py` found it; recall as `towers.py` takes its mean."""

    def recall(k: int, languages: list[str]) -> float:
        return mean(
            [results["recall"][language][f"{direction}@{k}"] for language in languages for direction in ("IR", "TR")]
        )

    mrv = with_interval(results["mrv"]["mean"]["std"], results["intervals"]["mrv"]["mean"]["std"], 2)
    return (
        f"| {name} | {recall(1, SEEN):.1f} | {recall(5, SEEN):.1f} | {recall(5, UNSEEN):.1f} | {mrv} | "
        f"{results['parameters'] / 1e6:.0f} |"
    )


def plot(found: dict, path: Path) -> None:
    """R@5 of each language and style, with the range of its seeds."""
    figure, axis = plt.subplots(figsize=(9, 3.6), layout="constrained")
    names, width = SEEN + UNSEEN, 0.8 / len(found["styles"])
    for number, (style, own) in enumerate(found["styles"].items()):
        values = [own["R@5"][name] for name in names]
        means = [mean(seeds) for seeds in values]
        ranges = [[m - min(seeds) for m, seeds in zip(means, values, strict=True)]]
        ranges += [[max(seeds) - m for m, seeds in zip(means, values, strict=True)]]
        places = [place + (number - (len(found["styles"]) - 1) / 2) * width for place in range(len(names))]
        axis.bar(places, means, width, yerr=ranges, label=style, error_kw={"linewidth": 1})
    axis.axvline(len(SEEN) - 0.5, color="grey", linewidth=0.8, linestyle=":")
    axis.set_xticks(range(len(names)), [*SEEN, *(f"{name}\n(never trained)" for name in UNSEEN)])
    axis.set_ylabel("R@5 in percent")
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, 1.15), ncols=len(found["styles"]), frameon=False, fontsize=9)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output_dir", type=Path, help="where towers.py wrote results.json")
    parser.add_argument("docs", type=Path, help="where the document goes")
    parser.add_argument("--models", type=Path, help="where eval_mrv.py wrote results of models, each into a folder")
    arguments = parser.parse_args()
    with one_line_errors():
        found = json.loads(read_text(arguments.output_dir / "results.json", "has towers.py been run?"))
        folders = sorted(path.parent for path in arguments.models.glob("*/results.json")) if arguments.models else []
        models = {folder.name: json.loads((folder / "results.json").read_text(encoding="utf-8")) for folder in folders}
        figures = arguments.docs / "photographs_towers"
        figures.mkdir(parents=True, exist_ok=True)
        plot(found, figures / "recall.png")
        shutil.copy(arguments.output_dir / "results.json", figures)
        (arguments.docs / "photographs_towers.md").write_text(page(found, models), encoding="utf-8")


if __name__ == "__main__":
    main()
