"""Writes docs/photographs_towers.md from what `towers.py` found.

python research/photographs/report.py outputs/towers docs
"""

import argparse
import json
from pathlib import Path

from ccrk.retrieval.intervals import RESAMPLES

SEEN, UNSEEN = ["en", "de", "fr", "cs"], ["pt", "zh", "ar"]

PAGE = """# Two frozen towers on photographs

An image encoder ({vision}) and a text encoder ({text}), neither of which knows the other. Behind each is a linear
projection, trained on {training:,} photographs of Multi30K's training part with a caption in en, de, fr and cs each.
For each style {choosing} validation photographs chose steps, learning rate and dropout. The {ranked} others, of
validation and test, are ranked here; nothing before has seen them. Chance is {chance_1:.1f} % at rank 1 and
{chance_5:.1f} % at 5.

Recall is the mean of image and text retrieval and of the languages, in percent, over {seeds} seeds, whose lowest and
highest are in brackets. MRV is over the four languages, with the 95 % interval of {resamples:,} draws of photographs.
Time is that of training on two CPU cores, once the towers have encoded everything.

| style | R@1 | R@5 | R@5, languages never trained | MRV std | seconds | steps, rate, dropout |
|---|---:|---:|---:|---:|---:|---|
{styles}

By language, R@5:

| style | {languages} |
|---|{rule}|
{by_language}

1-to-K minus each, over the same photographs and seeds, with 95 % intervals; recall is the mean of R@1, 5 and 10:

| minus | recall en | de | fr | cs | MRV std |
|---|---:|---:|---:|---:|---:|
{differences}

{verdict}

Not trained here: the towers themselves, in part or by LoRA, and the CCRK model on top of them.

## Again

The towers are a `timm_wrapper` and a transformers folder; the table has a column `split`, and for each language one
`caption_LANGUAGE`.

```bash
python research/photographs/towers.py --vision_model V --text_model T --captions metadata.jsonl \\
    --photographs flickr30k-images --output_dir outputs/towers
python research/photographs/report.py outputs/towers docs
```

The same by the product's own command, without the choice:

```bash
accelerate launch train_retrieval.py --vision_model V --text_model T --caption_prompt "query: " --freeze image text \\
    --cache_image_features true --cache_caption_features true --projection_dropout 0.3 --learning_rate 1e-3 \\
    --dataset metadata.jsonl --image_dir flickr30k-images --languages en de fr cs \\
    --caption_columns en=caption_en de=caption_de fr=caption_fr cs=caption_cs \\
    --per_device_train_batch_size 256 --max_steps 400 --output_dir outputs/towers-model
```
"""


def over_seeds(values: list[float]) -> str:
    return f"{sum(values) / len(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def difference(found: dict) -> str:
    return f"{found['difference']:+.2f} ({found['low']:+.2f} to {found['high']:+.2f})"


def page(found: dict) -> str:
    styles = found["styles"]
    rows, by_language, differences = [], [], []
    for style, own in styles.items():
        low, high = own["mrv_interval"]
        chosen = own["setting"]
        rows.append(
            f"| {style} | {over_seeds(own['R@1']['seen'])} | {over_seeds(own['R@5']['seen'])} | "
            f"{over_seeds(own['R@5']['never trained'])} | {own['mrv']:.2f} ({low:.2f} to {high:.2f}) | "
            f"{own['seconds']:.0f} | {chosen['steps']}, {chosen['learning_rate']:g}, {chosen['dropout']:g} |"
        )
        means = [sum(own["R@5"][name]) / len(own["R@5"][name]) for name in SEEN + UNSEEN]
        by_language.append(f"| {style} | {' | '.join(f'{mean:.1f}' for mean in means)} |")
        if minus := own["1-to-K minus this"]:
            recalls = " | ".join(difference(minus["recall"][language]) for language in SEEN)
            differences.append(f"| {style} | {recalls} | {difference(minus['mrv'])} |")
    against = {style: own["1-to-K minus this"]["mrv"] for style, own in styles.items() if own["1-to-K minus this"]}
    better = [style for style, mrv in against.items() if mrv["high"] < 0]
    worse = [style for style, mrv in against.items() if mrv["low"] > 0]
    unclear = [style for style in against if style not in (*better, *worse)]
    verdict = [
        f"MRV of 1-to-K is {what}: {'; '.join(names)}."
        for what, names in (
            ("lower, by an interval that leaves out 0, than of", better),
            ("higher than of", worse),
            ("not told apart from that of", unclear),
        )
        if names
    ]
    photographs = found["photographs"]
    return PAGE.format(
        vision=found["towers"][0],
        text=found["towers"][1],
        **photographs,
        chance_1=100 / photographs["ranked"],
        chance_5=500 / photographs["ranked"],
        seeds=len(next(iter(styles.values()))["R@1"]["seen"]),
        resamples=RESAMPLES,
        styles="\n".join(rows),
        languages=" | ".join(SEEN + UNSEEN),
        rule="|".join("---:" for _ in SEEN + UNSEEN),
        by_language="\n".join(by_language),
        differences="\n".join(differences),
        verdict="\n".join(verdict),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output_dir", type=Path, help="where towers.py wrote results.json")
    parser.add_argument("docs", type=Path, help="where the document goes")
    arguments = parser.parse_args()
    found = json.loads((arguments.output_dir / "results.json").read_text(encoding="utf-8"))
    (arguments.docs / "photographs_towers.md").write_text(page(found), encoding="utf-8")


if __name__ == "__main__":
    main()
