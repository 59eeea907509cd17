"""Two frozen towers on real photographs, trained by 1-to-K and in the styles that it replaces.

    python research/photographs/towers.py --vision_model V --text_model T --captions TABLE --photographs FOLDER \\
        --output_dir outputs/towers
    python research/photographs/report.py outputs/towers docs

TABLE holds captions and a `split` column, FOLDER its photographs (docs/data.md). What is behind the towers is trained
on the split `train`. Half of the validation photographs, drawn by their names, chooses for each style among SETTINGS;
the other half and the test photographs are ranked. The towers see each picture and caption once. Results are written
style by style, and a run that was interrupted goes on with the next one.
"""

import argparse
import dataclasses
import hashlib
import itertools
import json
import logging
import math
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import datasets
import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from sentence_transformers.base.modules import Dense
from sentence_transformers.sentence_transformer.modules import Dropout
from torch import Tensor
from transformers import PreTrainedModel

import data_scripts
from ccrk.processes import progress
from ccrk.retrieval.instances import Ranks, usable_captions
from ccrk.retrieval.intervals import compare, mrv_intervals, read_ranks
from ccrk.retrieval.ranking import by_cosine, rank_language
from ccrk.retrieval.results import RetrievalResult, mrv_table
from ccrk.towers import SentenceTransformerEncoder, SentenceTransformerPair, join_towers
from ccrk.training.features import caption_features, image_features
from ccrk.training.losses import OneToKLoss
from data_scripts.captions import is_usable
from data_scripts.cli import one_line_errors, set_up_logging
from data_scripts.files import check_output_folder, written_whole
from data_scripts.problems import Problems
from research.consistency.study import PivotLoss

logger = logging.getLogger("towers")

SEEN = ["en", "de", "fr", "cs"]
UNSEEN = ["pt", "zh", "ar"]  # by the projections; the text tower knows them
BATCH = 256
SEEDS = 3


@dataclasses.dataclass(frozen=True)
class Setting:
    """What may be chosen."""

    steps: int
    learning_rate: float
    dropout: float  # before the projections
    residual: bool = False  # a layer stands before each of them, see `join_towers`


SETTINGS = [Setting(*values) for values in itertools.product((400, 800), (1e-3,), (0.3,), (False, True))]

# Style → its loss, and which captions (of the K of each image) a step of it sees.
OURS = "1-to-K"  # the first: others are compared with it
STYLES = {
    OURS: (OneToKLoss, lambda text: text),
    "1-to-1: one random language": (
        OneToKLoss,
        lambda text: text[torch.arange(len(text)), torch.randint(text.shape[1], (len(text),))][:, None],
    ),
    "English alone": (OneToKLoss, lambda text: text[:, :1]),
    "pivot: others meet English": (PivotLoss, lambda text: text),
}


@dataclasses.dataclass
class Photographs:
    """N rows, with what the towers make of them."""

    rows: datasets.Dataset
    image: Tensor  # (N, D)
    caption: dict[str, Tensor]  # caption → (E,)

    @classmethod
    def of(cls, rows: datasets.Dataset, encoder: SentenceTransformerEncoder, folder: Path) -> "Photographs":
        problems = Problems("photographs")
        image = image_features(encoder, rows, folder, problems).of(rows["image_id"])
        problems.check()
        texts = sorted({text for row in rows["captions"] for own in row.values() for text in own if is_usable(text)})
        return cls(rows, image, dict(zip(texts, caption_features(encoder, rows, folder).of(texts), strict=True)))

    def select(self, chosen: list[int]) -> "Photographs":
        return Photographs(self.rows.select(chosen), self.image[chosen], self.caption)

    def join(self, others: "Photographs") -> "Photographs":
        rows = datasets.concatenate_datasets([self.rows, others.rows])
        return Photographs(rows, torch.cat([self.image, others.image]), self.caption | others.caption)

    @torch.no_grad()
    def evaluate(self, pair: SentenceTransformerPair) -> RetrievalResult:
        """Ranks in all languages, by cosine."""
        pair.eval()
        images, result = pair.encode("image", {"image_embeds": self.image}), RetrievalResult()
        for language in self.rows.features["captions"]:
            found = usable_captions(self.rows, language)
            features = torch.stack([self.caption[text] for text in found.texts])
            captions = pair.encode("text", {"text_embeds": features})
            result.ranks[language], _ = rank_language(found, by_cosine(images, captions))
        return result

    def batches(self, seed: int) -> Iterator[dict[str, Tensor]]:
        """Of BATCH images with a caption in each language, epoch by epoch, for ever."""
        text = torch.stack(
            [torch.stack([self.caption[row[language][0]] for language in SEEN]) for row in self.rows["captions"]]
        )
        generator = torch.Generator().manual_seed(seed)
        while True:
            for chosen in torch.randperm(len(text), generator=generator).split(BATCH):
                if len(chosen) == BATCH:
                    yield {"image_embeds": self.image[chosen], "text_embeds": text[chosen], "image_ids": chosen}


def train(pair: SentenceTransformerPair, style: str, setting: Setting, photographs: Photographs, seed: int) -> None:
    """Trains what is behind the towers, and the temperature, from new ones."""
    torch.manual_seed(seed)
    projections = [module for module in pair.modules() if isinstance(module, Dense)]
    for projection in projections:
        projection.linear.reset_parameters()
    for module in pair.modules():
        if isinstance(module, Dropout):
            module.dropout_layer.p = setting.dropout
    pair.logit_scale.data.fill_(math.log(1 / 0.07))
    trained = [pair.logit_scale, *(parameter for module in projections for parameter in module.parameters())]
    make_loss, chosen = STYLES[style]
    encoder, loss = SentenceTransformerEncoder(pair), make_loss(Accelerator(cpu=True))
    optimizer = torch.optim.AdamW(trained, lr=setting.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, setting.learning_rate, setting.steps, pct_start=0.1, anneal_strategy="linear", cycle_momentum=False
    )
    pair.train()  # the towers take no part: batches hold what they gave
    for batch in itertools.islice(photographs.batches(seed), setting.steps):
        batch["text_embeds"] = chosen(batch["text_embeds"])
        batch["caption_mask"] = torch.ones(batch["text_embeds"].shape[:2], dtype=torch.bool)
        total = sum(loss(encoder.embed(pair, batch), batch).values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        schedule.step()


def pooled(results: list[RetrievalResult]) -> Ranks:
    """The ranks of several seeds as one: an image is drawn, in an interval, with its ranks of all seeds."""
    ranks: Ranks = {}
    for seed, result in enumerate(results):
        for language, directions in result.ranks.items():
            for direction, own in directions.items():
                levels = own.index.to_frame(index=False)
                levels["repeat"] += 1000 * seed
                own = pd.Series(own.to_numpy(), pd.MultiIndex.from_frame(levels))
                before = ranks.setdefault(language, {}).get(direction)
                ranks[language][direction] = own if before is None else pd.concat([before, own])
    return ranks


def recall_at(result: RetrievalResult, k: int, languages: Sequence[str]) -> float:
    """Mean of IR@k and TR@k, and of languages, in percent."""
    table = result.recall()
    return float(
        np.mean([table[language][f"{direction}@{k}"] for language in languages for direction in ("IR", "TR")])
    )


def figures(results: list[RetrievalResult]) -> dict:
    """What a style's seeds come to; MRV over the languages of training, with its interval."""
    ranks = {language: own for language, own in pooled(results).items() if language in SEEN}
    groups = {"seen": SEEN, "never trained": UNSEEN} | {language: [language] for language in SEEN + UNSEEN}
    return {
        f"R@{k}": {name: [recall_at(result, k, own) for result in results] for name, own in groups.items()}
        for k in (1, 5)
    } | {"mrv": mrv_table(ranks)["mean"]["std"], "mrv_interval": mrv_intervals(ranks, SEEN)["mean"]["std"]}


@dataclasses.dataclass
class Split:
    """What each part of the photographs is for."""

    training: Photographs
    chooses: Photographs  # among SETTINGS
    ranked: Photographs


def load_split(arguments: argparse.Namespace, encoder: SentenceTransformerEncoder) -> Split:
    """The photographs, encoded by the towers once; see the top."""
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "features"

    def load(split: str, languages: list[str]) -> Photographs:
        columns = {language: (f"caption_{language}",) for language in languages}
        options = {"image_dir": arguments.photographs, "languages": languages, "caption_columns": columns}
        return Photographs.of(data_scripts.load(arguments.captions, split=split, **options), encoder, folder)

    training = load("train", SEEN)
    validation, test = load("validation", SEEN + UNSEEN), load(arguments.test_split, SEEN + UNSEEN)
    ids = validation.rows["image_id"]
    drawn = sorted(range(len(ids)), key=lambda row: hashlib.blake2b(ids[row].encode()).digest())
    half = len(ids) // 2
    return Split(training, validation.select(drawn[:half]), validation.select(drawn[half:]).join(test))


def write_table(split: Split, path: Path) -> None:
    """The photographs as a table whose `split` is what they are for here: for `train_retrieval.py`, `eval_mrv.py`."""
    with written_whole(path) as unfinished, unfinished.open("w", encoding="utf-8") as file:
        for name, part in (("train", split.training), ("validation", split.chooses), ("test", split.ranked)):
            for row in part.rows.select_columns(["image_id", "captions"]):
                captions = {f"caption_{language}": row["captions"].get(language, []) for language in SEEN + UNSEEN}
                line = {"file_name": row["image_id"], "split": name} | captions
                file.write(json.dumps(line, ensure_ascii=False) + "\n")


def pairs_of(arguments: argparse.Namespace) -> dict[bool, SentenceTransformerPair]:
    """The towers with what stands behind them, by `Setting.residual`."""
    options = {"prompt": arguments.caption_prompt, "dropout": SETTINGS[0].dropout}
    return {
        residual: SentenceTransformerPair(
            join_towers(arguments.vision_model, arguments.text_model, **options, residual=residual)
        )
        for residual in (False, True)
    }


def run_style(
    pairs: dict[bool, SentenceTransformerPair], style: str, split: Split
) -> tuple[Setting, list[RetrievalResult], float]:
    """The setting that was chosen, the ranks of each seed by it, and a core's seconds of a training run."""
    seconds = []

    def trained(setting: Setting, seed: int) -> tuple[float, RetrievalResult]:
        pair, started = pairs[setting.residual], time.process_time()
        train(pair, style, setting, split.training, seed)
        seconds.append(time.process_time() - started)
        return recall_at(split.chooses.evaluate(pair), 5, SEEN), split.ranked.evaluate(pair)

    tried = {setting: trained(setting, 0) for setting in progress(SETTINGS, f"{style}: choosing")}
    chosen = max(tried, key=lambda setting: tried[setting][0])
    logger.info("%s: R@5 %.1f on the photographs that choose, by %s", style, tried[chosen][0], chosen)
    seconds[:] = [seconds[list(tried).index(chosen)]]
    results = [tried[chosen][1]]
    results += [trained(chosen, seed)[1] for seed in progress(range(1, SEEDS), f"{style}: seeds")]
    return chosen, results, float(np.mean(seconds))


def described(tower: PreTrainedModel) -> str:
    name = getattr(tower.config, "architecture", tower.config.model_type)  # timm's own
    return f"{name}, {tower.num_parameters() / 1e6:.1f} M parameters"


def run(arguments: argparse.Namespace) -> None:
    """
    Writes results.json, and the ranks of 1-to-K, after each style; one whose results are there is not run again.

    Raises:
        ValueError: what is there is of other towers, photographs or settings.
    """
    pairs = pairs_of(arguments)
    encoder = SentenceTransformerEncoder(pairs[False].eval())
    split = load_split(arguments, encoder)
    write_table(split, arguments.output_dir / "photographs.jsonl")
    about = {
        "towers": [described(encoder.model.path(modality)[0].model) for modality in ("image", "text")],
        "features": [encoder.features_fingerprint(modality) for modality in ("image", "text")],
        "photographs": {
            "training": len(split.training.rows),
            "choosing": len(split.chooses.rows),
            "ranked": len(split.ranked.rows),
        },
        "settings": [dataclasses.asdict(setting) for setting in SETTINGS],
    }
    path, ranks_of_ours = arguments.output_dir / "results.json", arguments.output_dir / "ranks.parquet"
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else about | {"styles": {}}
    if any(found.get(name) != value for name, value in about.items()):
        raise ValueError(f"{path} is of other towers, photographs or settings; name another --output_dir")
    for style in STYLES:
        if style in found["styles"]:
            continue
        chosen, results, seconds = run_style(pairs, style, split)
        ranks = pooled(results)
        if style == OURS:
            with written_whole(ranks_of_ours) as unfinished:
                RetrievalResult(ranks).rank_table().to_parquet(unfinished)
        found["styles"][style] = (
            figures(results)
            | {"setting": dataclasses.asdict(chosen), "seconds": seconds}
            | {"1-to-K minus this": None if style == OURS else compare(read_ranks(ranks_of_ours), ranks, SEEN)}
        )
        with written_whole(path) as unfinished:
            unfinished.write_text(json.dumps(found, indent=1), encoding="utf-8")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Towers, captions and photographs."""
    parser.add_argument("--vision_model", required=True, help="folder or Hub id of the image tower")
    parser.add_argument("--text_model", required=True, help="folder or Hub id of the text tower")
    parser.add_argument("--caption_prompt", default="query: ", help="before each caption")
    parser.add_argument("--captions", required=True, help="table with a column caption_LANGUAGE for each language")
    parser.add_argument("--photographs", required=True, help="folder of its photographs")
    parser.add_argument("--test_split", default="test_2016_flickr", help="the split to rank beside half of validation")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--output_dir", required=True, type=Path)
    arguments = parser.parse_args()
    set_up_logging()
    with one_line_errors():
        check_output_folder(arguments.output_dir)
        run(arguments)
    print(f"written to {arguments.output_dir}")


if __name__ == "__main__":
    main()
