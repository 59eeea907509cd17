"""What makes languages agree beyond finding more? 1-to-K with the agreement loss, at several weights.

    python research/agreement/study.py photographs --vision_model V --text_model T --captions TABLE \\
        --photographs FOLDER --output_dir outputs/agreement
    python research/agreement/study.py shapes --output_dir outputs/agreement
    python research/agreement/report.py outputs/agreement docs

`photographs` trains projections behind two frozen towers (research/photographs/towers.py: the same photographs, and
the same ones unseen); `shapes` trains the small model of research/consistency/study.py from scratch, with and without
translation errors. Each run adds its line to results.jsonl and its ranks to a file; one that is there is not repeated.
"""

import argparse
import functools
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import torch
import transformers
from torch import Tensor
from torch.nn import functional as F

import data_scripts
from ccrk.processes import progress
from ccrk.retrieval.instances import usable_captions
from ccrk.retrieval.ranking import by_cosine, rank_language
from ccrk.retrieval.results import RetrievalResult, mrv_table
from ccrk.suspects import find_suspects
from ccrk.towers import SentenceTransformerEncoder, SentenceTransformerPair
from ccrk.training.losses import OneToKLoss
from ccrk.training.trainer import CCRKTrainer
from data_scripts.cli import one_line_errors, set_up_logging
from data_scripts.files import check_output_folder, written_whole
from research.consistency import study as consistency
from research.photographs import towers
from research.photographs.towers import SEEN, UNSEEN, Photographs, Setting, load_split, recall_at

# Learning rate and dropout are what 1-to-K chose in research/photographs, steps and batch half of it: many short runs.
# The same for all weights, so that they differ in nothing else.
SETTING = Setting(steps=400, learning_rate=1e-3, dropout=0.3)
BATCH = 128


@dataclass(frozen=True)
class Condition:
    """
    One row of the study.

    Args:
        weight: of the agreement loss.
        length: steps, as a multiple of the others'.
        one_language: a step sees one caption of an image, in a random language.
        half: half of the training photographs are withheld.
        text_alone: the captions of those that are withheld take part in agreement.
        residual: of the projections, see `join_towers`.
    """

    weight: float = 0.0
    length: int = 1
    one_language: bool = False
    half: bool = False
    text_alone: bool = False
    residual: bool = False


CONDITIONS = {
    "weight 0": Condition(),
    "weight 10": Condition(10),
    "weight 30": Condition(30),
    "one random language, three times the steps": Condition(length=3, one_language=True),
    "weight 3": Condition(3),
    "half, weight 0": Condition(half=True),
    "half, weight 3, the others' captions": Condition(3, half=True, text_alone=True),
    "residual, weight 0": Condition(residual=True),
    "residual, weight 5": Condition(5, residual=True),
    "residual, weight 15": Condition(15, residual=True),
    "residual, weight 30": Condition(30, residual=True),
    "residual, one random language, three times the steps": Condition(length=3, one_language=True, residual=True),
}
BASE = "weight 0"
SHAPES = ("1-to-K", "1-to-K + pairs", "K = 2", "K = 4")  # of research/consistency


@dataclass
class WithTextAlone(Photographs):
    """Photographs whose batches go on, behind their own rows, with rows of captions that have no photograph."""

    alone: Tensor  # (M, K, E)

    def batches(self, seed: int) -> Iterator[dict[str, Tensor]]:
        generator = torch.Generator().manual_seed(seed)
        for batch in super().batches(seed):
            drawn = torch.randint(len(self.alone), (BATCH,), generator=generator)
            yield batch | {"text_embeds": torch.cat([batch["text_embeds"], self.alone[drawn]])}


def train(pair: SentenceTransformerPair, condition: Condition, training: Photographs, seed: int) -> None:
    """By `towers.train`, as the condition has it."""
    if condition.half:
        drawn = torch.randperm(len(training.rows), generator=torch.Generator().manual_seed(0)).tolist()
        kept, withheld = training.select(drawn[::2]), training.select(drawn[1::2])
        alone = torch.stack(
            [
                torch.stack([withheld.caption[row[language][0]] for language in SEEN])
                for row in withheld.rows["captions"]
            ]
        )
        training = WithTextAlone(kept.rows, kept.image, kept.caption, alone) if condition.text_alone else kept
    _, chosen = towers.STYLES["1-to-1: one random language" if condition.one_language else towers.OURS]
    towers.STYLES["agreement"] = functools.partial(OneToKLoss, agreement_weight=condition.weight), chosen
    setting = replace(SETTING, steps=condition.length * SETTING.steps, residual=condition.residual)
    towers.train(pair, "agreement", setting, training, seed)


@torch.no_grad()
def without_training(pair: SentenceTransformerPair, chooses: Photographs, ranked: Photographs) -> dict[str, dict]:
    """What costs no training: a query's translations averaged; captions centred by the mean of their language."""
    pair.eval()
    images = pair.encode("image", {"image_embeds": ranked.image})

    def encoded(photographs: Photographs, language: str) -> Tensor:
        texts = usable_captions(photographs.rows, language).texts
        return pair.encode("text", {"text_embeds": torch.stack([photographs.caption[text] for text in texts])})

    centred, averaged = RetrievalResult(), RetrievalResult()
    for language in SEEN + UNSEEN:
        found, captions = usable_captions(ranked.rows, language), encoded(ranked, language)
        own = F.normalize(captions - encoded(chooses, language).mean(dim=0), dim=-1)
        centred.ranks[language], _ = rank_language(found, by_cosine(images, own))
    together = F.normalize(sum(encoded(ranked, language) for language in SEEN), dim=-1)
    for language in SEEN:
        averaged.ranks[language], _ = rank_language(
            usable_captions(ranked.rows, language), by_cosine(images, together)
        )
    return {"captions centred by language": figures(centred), "translations averaged": figures(averaged)}


def figures(result: RetrievalResult) -> dict:
    """Recall in percent and MRV, over the languages of training and over those that the projections never met."""
    found = {}
    for name, languages in (("seen", SEEN), ("never trained", UNSEEN), ("all", SEEN + UNSEEN)):
        if not (own := {language: result.ranks[language] for language in languages if language in result.ranks}):
            continue
        recalls = {f"R@{k}": recall_at(result, k, list(own)) for k in (1, 5, 10)}
        found[name] = recalls | {"mrv": mrv_table(own)["mean"]["std"]}
    return found


def ranks_file(folder: Path, line: dict) -> Path:
    """Where the ranks of a line of results.jsonl are."""
    name = "-".join(str(line[name]) for name in ("data", "condition", "seed"))
    return folder / "ranks" / f"{consistency.file_name(name)}.parquet"


class Results:
    """Lines of results.jsonl, and ranks/ beside it."""

    def __init__(self, folder: Path):
        self.folder, self.path = folder, folder / "results.jsonl"
        (folder / "ranks").mkdir(parents=True, exist_ok=True)
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.is_file() else []
        self.lines = [json.loads(line) for line in lines]

    def has(self, **wanted) -> bool:
        wanted = json.loads(json.dumps(wanted))
        return any(all(line.get(name) == value for name, value in wanted.items()) for line in self.lines)

    def add(self, result: RetrievalResult, **line) -> None:
        with written_whole(ranks_file(self.folder, line)) as unfinished:
            result.rank_table().to_parquet(unfinished)
        self.lines.append(line)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def run_photographs(arguments: argparse.Namespace, results: Results) -> None:
    towers.BATCH = BATCH
    pairs = towers.pairs_of(arguments)
    split = load_split(arguments, SentenceTransformerEncoder(pairs[False].eval()))
    runs = [(name, seed) for seed in arguments.seeds for name in arguments.only or CONDITIONS]
    for name, seed in progress(runs, "photographs"):
        key = {"data": "photographs", "condition": name, "seed": seed}
        if results.has(**key):
            continue
        pair, started = pairs[CONDITIONS[name].residual], time.process_time()
        train(pair, CONDITIONS[name], split.training, seed)
        seconds = time.process_time() - started
        ranked = split.ranked.evaluate(pair)
        line = key | {"chooses": figures(split.chooses.evaluate(pair)), "ranked": figures(ranked)}
        line |= {"setting": asdict(SETTING) | asdict(CONDITIONS[name]), "cpu_seconds": round(seconds, 1)}
        if name == BASE:
            line["without training"] = without_training(pair, split.chooses, split.ranked)
        results.add(ranked, **line)


class StopAt(transformers.TrainerCallback):
    """Saves a checkpoint at a step, and ends the run there."""

    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            control.should_save = control.should_training_stop = True


def shapes_name(condition: str, noise: float, weight: float, trust: float) -> str:
    """What a run on the shapes is called: 1-to-K and trust 1, which most have, go without saying."""
    named = f"errors {noise:g}, weight {weight:g}" + (f", trust {trust:g}" if trust != 1 else "")
    return named if condition == "1-to-K" else f"{condition}, {named}"


def shapes_trainer(study: consistency.Study, condition: consistency.Condition, seed: int, folder: Path) -> CCRKTrainer:
    trainer = study.build(condition, seed, study.steps)
    trainer.args.output_dir = str(folder)
    return trainer


def run_shapes(arguments: argparse.Namespace, results: Results) -> None:
    """The steps before agreement comes in are those of all weights: they are trained once."""
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    runs = itertools.product(arguments.seeds, arguments.errors, arguments.conditions, arguments.weights)
    for seed, noise, name, weight in progress(list(runs), "shapes"):
        key = {"data": "shapes", "condition": shapes_name(name, noise, weight, arguments.trust), "seed": seed}
        if results.has(**key):
            continue
        consistency.TRANSLATION_NOISE = noise
        study = consistency.Study(
            dataset="shapes", data_dir=None, image_dir=None, output_dir=arguments.output_dir / f"shapes-{noise:g}",
            steps=arguments.steps, num_train=12000, num_test=500, threads=1,
        )  # fmt: skip
        if not study.processor_dir.exists():
            study.prepare()
        condition = consistency.CONDITIONS[name]
        folder = study.output_dir / f"before-{consistency.file_name(name)}-{seed}"

        build = functools.partial(shapes_trainer, study, condition, seed, folder)
        trainer = build()
        first = round(trainer.args.agreement_start * study.steps)
        before = folder / f"checkpoint-{first}"
        if not before.exists():
            trainer.add_callback(StopAt(first))
            trainer.train()
        trainer = build()
        trainer.loss.agreement_weight, trainer.loss.agreement_trust = weight, arguments.trust
        started = time.process_time()
        trainer.train(resume_from_checkpoint=str(before))
        line = {"errors": noise, "weight": weight, "cpu_seconds": round(time.process_time() - started, 1)}
        ranked = consistency.rank(trainer.model, trainer.processing_class, study.splits["test"])
        own = {language: ranked.ranks[language] for language in condition.languages or ranked.ranks}
        recall = [ranked.recall()[language]["mean"] for language in own]
        line["ranked"] = {"recall": sum(recall) / len(recall), "mrv": mrv_table(own)["mean"]["std"]}
        if name == "1-to-K" and noise and not weight:
            model = study.output_dir / f"model-{seed}"
            trainer.model.save_pretrained(model)
            trainer.processing_class.save_pretrained(model)
            line["suspects"] = suspects_found(model, noise)
        results.add(ranked, **key, **line)


def suspects_found(model: Path, noise: float, rows: int = 1000) -> dict:
    """How many of the captions that are least like the others of their picture are wrong, in the data of training."""
    dirty, right = (
        data_scripts.load("shapes", split="train", num_train=rows, translation_noise=share) for share in (noise, 0.0)
    )
    suspects, _ = find_suspects(dirty, str(model))
    right = right["captions"][:]
    is_wrong = [suspect["caption"] not in right[suspect["row"]][suspect["language"]] for suspect in suspects]
    planted = sum(is_wrong)
    return {"planted": planted, "precision": {n: 100 * float(np.mean(is_wrong[:n])) for n in (planted // 2, planted)}}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)

    def command(name: str, run: Callable[[argparse.Namespace, Results], None]) -> argparse.ArgumentParser:
        own = commands.add_parser(name)
        own.add_argument("--output_dir", required=True, type=Path)
        own.set_defaults(run=run)
        return own

    photographs = command("photographs", run_photographs)
    towers.add_arguments(photographs)
    photographs.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    photographs.add_argument("--only", nargs="+", choices=CONDITIONS, metavar="CONDITION", help="all by default")
    shapes = command("shapes", run_shapes)
    shapes.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    shapes.add_argument("--errors", nargs="+", type=float, default=[1, 0], help="as in research/consistency; 0: none")
    shapes.add_argument("--weights", nargs="+", type=float, default=[0, 1, 3, 10])
    shapes.add_argument(
        "--conditions", nargs="+", choices=SHAPES, default=["1-to-K"], metavar="CONDITION", help=", ".join(SHAPES)
    )
    shapes.add_argument("--trust", type=float, default=1.0, help="power by which captions are trusted")
    shapes.add_argument("--steps", type=int, default=500)
    arguments = parser.parse_args(argv)
    set_up_logging()
    with one_line_errors():
        check_output_folder(arguments.output_dir)
        arguments.run(arguments, Results(arguments.output_dir))
    print(f"written to {arguments.output_dir}")


if __name__ == "__main__":
    main()
