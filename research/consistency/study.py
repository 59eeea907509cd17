"""Does 1-to-K rank more consistently? The same model, images and steps, trained in the styles that the paper compares.

    python research/consistency/study.py --output_dir outputs/study                 four styles, three seeds
    python research/consistency/study.py --output_dir outputs/study --parts languages finetuning ablations
    python research/consistency/study.py --output_dir outputs/study --only 1-to-K --seeds 0
    python research/consistency/study.py --output_dir outputs/photographs-study --dataset multi30k \\
        --data_dir multi30k --image_dir flickr30k-images                              real photographs, four languages
    python research/consistency/report.py outputs/study docs                        the document, from the results

Runs are shared out over processes, one per GPU, or per core without one. Each adds a line to `results.csv` and its
points to `curves.csv`; runs that are there already are not repeated. All ranking is by cosine, the space that the
contrastive objective shapes.

The embedded data has translation errors in train (`data_scripts.shapes.MISTRANSLATED`) and none in test. Of the
photographs none are held out, since the few hundred that are freely at hand teach nothing about others: they are
ranked among themselves before they are learnt by heart.
"""

import argparse
import csv
import functools
import itertools
import json
import os
import platform
import random
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import datasets
import torch
import transformers
import yaml
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from tqdm.auto import tqdm
from transformers import PrinterCallback, TrainerCallback

import data_scripts
from ccrk import CCRKConfig, CCRKForImageTextRetrieval, CCRKForPreTraining, CCRKProcessor
from ccrk.arguments import ModelArguments
from ccrk.build import build_processor
from ccrk.encoders import CCRKEncoder, Embeddings
from ccrk.retrieval.evaluate import evaluate_retrieval
from ccrk.retrieval.results import RetrievalResult
from ccrk.training.arguments import CCRKTrainingArguments
from ccrk.training.collator import CCRKCollator, seeded
from ccrk.training.losses import OneToKLoss
from ccrk.training.trainer import CCRKTrainer
from data_scripts.cli import one_line_errors
from data_scripts.shapes import MISTRANSLATED
from objectives_ccrk import contrastive_loss

ROOT = Path(__file__).parents[2]
RECIPES = {"shapes": "shapes_pretrain.yaml", "multi30k": "multi30k_photographs.yaml"}
TRANSLATION_NOISE = 1.0
NUM_VALIDATION = 200  # rows that learning curves are drawn on, at most as many as are tested
POINTS_OF_A_CURVE = 8


@dataclass(frozen=True)
class Condition:
    """
    One row of the study.

    Args:
        name: unique.
        style: `"1-to-K"`, all captions of an image at once; `"1-to-1"`, one of a random language (cross-modal style);
            `"pivot"`, English with the image and one random other language with English, never with the image
            (cross-lingual style).
        reduction: of the contrastive loss.
        pairs_from: share of the steps after which matching and masked LM come in beside it; None: never.
        length: its steps, as a multiple of the study's.
        equal_compute_to: a condition whose counted operations it may use up, instead of as many steps.
        languages: trained on; all of the data's by default. The first is the pivot's.
        missing: share of captions left out at random.
        config: other fields of CCRKConfig; batch_size: images per step; queue: images of earlier batches that are
            negatives as well (`negatives_queue`); learning_rate: as a multiple of the recipe's.
        start_from: a condition whose model is fine-tuned by the retrieval head; shots: on that many rows alone.
        agreement_weight: of the agreement loss; agreement_languages: what takes part in it alone.
        averaged: share of the weights at the end in a mean with those at the start, which the curve does not show.
    """

    name: str
    style: str = "1-to-K"
    reduction: str = "published"
    pairs_from: float | None = None
    length: float = 1.0
    equal_compute_to: str | None = None
    languages: tuple[str, ...] | None = None
    missing: float = 0.0
    config: dict = field(default_factory=dict)
    batch_size: int = 64
    queue: int = 0
    learning_rate: float = 1.0
    start_from: str | None = None
    shots: int | None = None
    agreement_weight: float = 0.0
    agreement_languages: tuple[str, ...] = ()
    averaged: float = 1.0


# Share of the steps after which matching and masked LM come in. The paper's encoders are pre-trained; from scratch the
# two would hold the contrastive loss for long where it tells landscapes apart ("pairs from the first step" shows it).
PAIRS_FROM = 0.5
LONGER = "1-to-1, three times the steps"
STYLES = [
    Condition("1-to-K"),
    Condition("1-to-K, symmetric", reduction="symmetric"),
    Condition("1-to-1", style="1-to-1"),
    Condition("1-to-1, equal compute", style="1-to-1", equal_compute_to="1-to-K"),
    Condition(LONGER, style="1-to-1", length=3.0),  # until it finds about as much as 1-to-K
    Condition("pivot", style="pivot"),
]


def with_pairs(condition: Condition) -> Condition:
    compute = condition.equal_compute_to
    return replace(
        condition,
        name=f"{condition.name} + pairs",
        pairs_from=PAIRS_FROM,
        equal_compute_to=compute and f"{compute} + pairs",
    )


def fine_tuned(start: str) -> list[Condition]:
    """As the paper goes on: English, and from there 100 rows of another language, at its ratios of learning rates."""
    options = {"style": "1-to-1", "pairs_from": 0.0, "length": 1 / 6}
    english = f"{start}, then English"
    return [
        Condition(english, languages=("en",), learning_rate=0.3, start_from=start, **options),
        Condition(
            f"{english}, then 100 German",
            languages=("de",),
            learning_rate=0.1,
            start_from=english,
            shots=100,
            **options,
        ),
    ]


def without_forgetting(start: str) -> list[Condition]:
    """Fine-tuning on English so that the other languages might keep up; and on all, with earlier negatives."""
    options = {"pairs_from": 0.0, "length": 1 / 6, "learning_rate": 0.3, "start_from": start}
    others = tuple(language for language in MISTRANSLATED if language != "en")
    alone = f"{start}, then English"
    return [
        Condition(f"{start}, then all languages", **options),
        *(Condition(f"{start}, then all languages, queue of {n}", queue=n, **options) for n in (128, 512)),
        *(
            Condition(
                f"{alone}, with agreement {weight}",
                languages=("en",),
                agreement_languages=others,
                agreement_weight=weight,
                **options,
            )
            for weight in (1, 3, 10)
        ),
        *(
            Condition(f"{alone}, averaged {share:g}", languages=("en",), averaged=share, **options)
            for share in (0.5, 0.75)
        ),
    ]


PARTS: dict[str, list[Condition]] = {
    "styles": STYLES + [with_pairs(condition) for condition in STYLES if condition.name != LONGER],
    "languages": [
        Condition("K = 2", languages=("en", "de")),
        Condition("K = 4", languages=("en", "de", "fr", "cs")),
        Condition("K = 6", languages=("en", "de", "fr", "cs", "zh", "ja")),
    ],
    "finetuning": [
        with_pairs(next(condition for condition in STYLES if condition.name == LONGER)),
        *(
            condition
            for start in ("1-to-K + pairs", f"{LONGER} + pairs", "pivot + pairs")
            for condition in fine_tuned(start)
        ),
        *without_forgetting("1-to-K + pairs"),
    ],
    "ablations": [
        Condition("temperature starts at 0.03", config={"temperature_init_value": 0.03}),
        Condition("temperature starts at 0.2", config={"temperature_init_value": 0.2}),
        Condition("30 % of captions missing", missing=0.3),
        Condition("batch 32, twice the steps", batch_size=32, length=2.0),
        Condition("batch 128, half the steps", batch_size=128, length=0.5),
        Condition("queue of 128", queue=128),
        Condition("projection 32", config={"projection_dim": 32}),
        Condition("projection 256", config={"projection_dim": 256}),
        Condition("pairs from the first step", pairs_from=0.0),
        Condition("positives drawn evenly", pairs_from=PAIRS_FROM, config={"matching_positive_sampling": 0}),
        Condition("positives drawn by logit", pairs_from=PAIRS_FROM, config={"matching_positive_sampling": 2}),
    ],
}
CONDITIONS = {condition.name: condition for part in PARTS.values() for condition in part}


@dataclass
class StudyCollator(CCRKCollator):
    """Rows as the condition has them, before they become a batch."""

    condition: Condition = field(kw_only=True)

    def __call__(self, rows: list[dict]) -> dict:
        return super().__call__([{**row, "captions": self._captions(row)} for row in rows])

    def _captions(self, row: dict) -> dict[str, list[str]]:
        captions, image_id = row["captions"], row["image_id"]
        if self.condition.style == "pivot":
            pivot, *others = captions
            with seeded(f"study {self.seed} {int(self.epoch)} {image_id}"):
                return {"pivot": captions[pivot], "other": captions[random.choice(others)]}
        if self.condition.missing:
            with seeded(f"missing {self.seed} {image_id}"):  # in every epoch the same ones
                present = [language for language in captions if random.random() >= self.condition.missing]
                present = present or [random.choice(list(captions))]
            return {language: captions[language] if language in present else [] for language in captions}
        return captions


class PivotLoss(OneToKLoss):
    """Images against the pivot's captions, and these against those of the other language."""

    def contrastive(self, found: Embeddings, inputs: dict[str, Tensor]) -> Tensor:
        pivot, others = found.text[:, :1], found.text[:, 1:]
        contrast = functools.partial(
            contrastive_loss,
            temperature=found.temperature,
            image_ids=inputs["image_ids"],
            reduction=self.reduction,
        )
        return contrast(found.image, pivot) + contrast(pivot[:, 0], others)


class StudyEncoder(CCRKEncoder):
    """Brings matching and masked LM in when the condition says so; of the pivot style they see its captions alone."""

    def __init__(self, trainer: CCRKTrainer, condition: Condition):
        super().__init__(trainer.model, trainer.processing_class, k_test=0)
        self.condition, self.trainer = condition, trainer

    def embed(self, model: torch.nn.Module, inputs: dict[str, Tensor]) -> Embeddings:
        begin = self.condition.pairs_from
        if begin is None or self.trainer.state.global_step < begin * self.trainer.args.max_steps:
            return self.embed_alone(inputs)
        if self.condition.style == "pivot":
            present = inputs["caption_mask"]
            is_pivot = torch.arange(present.shape[1], device=present.device) == 0
            inputs = inputs | {"caption_mask": present & is_pivot}
        return super().embed(model, inputs)


class CurveCallback(TrainerCallback):
    """Mean recall and MRV on validation rows, some times in a run; `seconds` is what that took."""

    def __init__(self, processor: CCRKProcessor, rows: datasets.Dataset, steps: int):
        self.processor, self.rows, self.every = processor, rows, max(1, steps // POINTS_OF_A_CURVE)
        self.points: list[dict] = []
        self.seconds = 0.0

    def on_step_end(self, args, state, control, model, **kwargs):
        if state.global_step % self.every:
            return
        started = time.perf_counter()
        result = rank(model, self.processor, self.rows)
        recall = [row["mean"] for row in result.recall().values()]
        mrv = result.mrv()["mean"]["std"]
        self.points.append({"step": state.global_step, "recall": sum(recall) / len(recall), "mrv": mrv})
        model.train()
        self.seconds += time.perf_counter() - started


def rank(model, processor: CCRKProcessor, rows: datasets.Dataset) -> RetrievalResult:
    encoder = CCRKEncoder(model.eval(), processor, k_test=0)
    return evaluate_retrieval(encoder, rows, list(rows.features["captions"]), batch_size=64)


@dataclass(frozen=True)
class Study:
    """What all runs of a study share; given to every process."""

    dataset: str
    data_dir: Path | None
    image_dir: Path | None
    output_dir: Path
    steps: int
    num_train: int
    num_test: int
    threads: int

    def recipe(self) -> dict:
        return yaml.safe_load((ROOT / "configs" / RECIPES[self.dataset]).read_text())

    @functools.cached_property
    def splits(self) -> dict[str, datasets.Dataset]:
        """Rows to train on, to draw learning curves on, and to test on."""
        if self.dataset == "shapes":
            sizes = {"num_train": self.num_train, "num_test": self.num_test}
            sizes["num_validation"] = min(NUM_VALIDATION, self.num_test)
            options = sizes | {"translation_noise": TRANSLATION_NOISE}
            return {s: data_scripts.load("shapes", split=s, **options) for s in ("train", "validation", "test")}
        rows = data_scripts.load(self.dataset, split="train", data_dir=self.data_dir, image_dir=self.image_dir)
        test = rows.select(range(min(self.num_test, len(rows))))
        return {"train": rows, "validation": test.select(range(min(NUM_VALIDATION, len(test)))), "test": test}

    @property
    def processor_dir(self) -> Path:
        return self.output_dir / "processor"

    def prepare(self) -> None:
        """Makes data and tokenizer once, before processes need them."""
        recipe = self.recipe()
        model = ModelArguments(config=recipe["config"], image_size=recipe["image_size"])
        build_processor(model, self.splits["train"]).save_pretrained(self.processor_dir)

    def build(self, condition: Condition, seed: int, steps: int) -> CCRKTrainer:
        processor = CCRKProcessor.from_pretrained(self.processor_dir)
        rows = self.splits["train"]
        if condition.shots is not None:
            rows = rows.select(range(condition.shots))
        languages = [*(condition.languages or rows.features["captions"]), *condition.agreement_languages]
        if condition.style == "pivot":  # English first
            languages.sort(key=lambda language: language != "en")
        rows = rows.map(
            lambda captions: {"captions": {language: captions[language] for language in languages}},
            input_columns="captions",
            features=datasets.Features(
                {
                    **rows.features,
                    "captions": {language: rows.features["captions"][language] for language in languages},
                }
            ),
        )
        transformers.set_seed(seed)
        recipe = self.recipe()
        if condition.start_from is not None:
            model = CCRKForImageTextRetrieval.from_pretrained(self.model_dir(condition.start_from, seed))
        else:
            config = recipe["config"] | condition.config
            config["text_config"] = config["text_config"] | {"vocab_size": len(processor.tokenizer)}
            config["vision_config"] = config["vision_config"] | {"image_size": recipe["image_size"]}
            model = CCRKForPreTraining(CCRKConfig(**config, mask_token_id=processor.tokenizer.mask_token_id))
        model.config.contrastive_reduction = condition.reduction
        trainer = CCRKTrainer(
            model=model,
            args=CCRKTrainingArguments(
                output_dir=str(self.output_dir / "trainer"),
                per_device_train_batch_size=min(condition.batch_size, len(rows)),
                max_steps=steps,
                learning_rate=condition.learning_rate * recipe["learning_rate"],
                new_parameter_lr_scale=1.0,
                warmup_steps=0.05,
                logging_steps=steps,
                save_strategy="no",
                report_to="none",
                seed=seed,
                agreement_weight=condition.agreement_weight,
                agreement_start=None if condition.start_from is None else 0.0,  # a model that finds pictures
                negatives_queue=condition.queue,
                disable_tqdm=True,
                dataloader_pin_memory=torch.cuda.is_available(),
            ),
            data_collator=StudyCollator(
                processor,
                ("pivot", "other") if condition.style == "pivot" else languages,
                one_language=condition.style == "1-to-1",
                seed=seed,
                agreement_only=len(condition.agreement_languages),
                condition=condition,
            ),
            train_dataset=rows.cast_column("image", datasets.Image(decode=False)),
            processing_class=processor,
            loss=PivotLoss if condition.style == "pivot" else OneToKLoss,
        )
        trainer.encoder = StudyEncoder(trainer, condition)
        trainer.remove_callback(PrinterCallback)
        return trainer

    def model_dir(self, name: str, seed: int) -> Path:
        return self.output_dir / "models" / f"{file_name(name)}-{seed}"

    def operations(self, condition: Condition, seed: int) -> tuple[float, int]:
        """Floating-point operations of a training step, the mean of a run, and its captions; of a first batch."""
        if condition.pairs_from:
            before, captions = self.operations(replace(condition, pairs_from=None), seed)
            after, _ = self.operations(replace(condition, pairs_from=0.0), seed)
            return condition.pairs_from * before + (1 - condition.pairs_from) * after, captions
        trainer = self.build(condition, seed, steps=1)
        batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
        captions = int(batch["caption_mask"].sum())
        trainer.model.set_attn_implementation("eager")  # SDPA on a CPU is not counted
        with FlopCounterMode(display=False) as counter:
            trainer.compute_loss(trainer.model.train(), batch).backward()
        return float(counter.get_total_flops()), captions

    def run(self, condition: Condition, seed: int) -> tuple[dict, list[dict]]:
        """Trains and tests: a line of results.csv and the points of the run's curve. The ranks go to a file."""
        torch.set_num_threads(self.threads)
        # Of one seed, so that all have equally many steps; but fine-tuning may have just this one to start from.
        counted = 0 if condition.start_from is None else seed
        flop, captions = self.operations(condition, counted)
        steps = max(1, round(condition.length * self.steps))
        if condition.equal_compute_to is not None:
            steps = round(steps * self.operations(CONDITIONS[condition.equal_compute_to], counted)[0] / flop)
        trainer = self.build(condition, seed, steps)
        curve = CurveCallback(trainer.processing_class, self.splits["validation"], steps)
        trainer.add_callback(curve)
        started = time.perf_counter()
        start = {name: weights.detach().clone() for name, weights in trainer.model.named_parameters()}
        trainer.train()
        seconds = time.perf_counter() - started - curve.seconds
        for name, weights in trainer.model.named_parameters():
            weights.data = start[name].lerp(weights.data, condition.averaged)
        if any(other.start_from == condition.name for other in CONDITIONS.values()):
            trainer.model.save_pretrained(self.model_dir(condition.name, seed))
        result = rank(trainer.model, trainer.processing_class, self.splits["test"])
        (self.output_dir / "ranks").mkdir(exist_ok=True)
        result.rank_table().to_parquet(self.output_dir / "ranks" / f"{file_name(condition.name)}-{seed}.parquet")
        recall = {language: row["mean"] for language, row in result.recall().items()}
        values = torch.tensor(list(recall.values()), dtype=torch.float64)
        mrv = result.mrv()["mean"]
        line = {
            "condition": condition.name,
            "seed": seed,
            "dataset": self.dataset,
            "steps": steps,
            "mean_recall": round(values.mean().item(), 3),
            "recall_spread": round(values.std(unbiased=False).item(), 3),
            "mrv_std": round(mrv["std"], 4),
            "mrv_variance": round(mrv["variance"], 4),
            "images_per_second": round(steps * trainer.args.per_device_train_batch_size / seconds, 1),
            "captions_per_step": captions,
            "gflop_per_step": round(flop / 1e9, 1),
            "seconds": round(seconds, 1),
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
            "threads": self.threads,
            "torch": torch.__version__,
            **{f"recall_{language}": round(value, 3) for language, value in sorted(recall.items())},
        }
        return line, [{"condition": condition.name, "seed": seed, **point} for point in curve.points]


def ancestors(name: str) -> int:
    """How many conditions must have run before this one."""
    start = CONDITIONS[name].start_from
    return 0 if start is None else 1 + ancestors(start)


def file_name(name: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in name)


_study: Study  # of a worker process


def _start_worker(study: Study, devices: Sequence[int], number) -> None:
    global _study
    with number.get_lock():
        own, number.value = number.value, number.value + 1
    if devices:  # before CUDA is first asked
        os.environ["CUDA_VISIBLE_DEVICES"] = str(devices[own % len(devices)])
    transformers.utils.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    _study = study


def _run(name: str, seed: int) -> tuple[dict, list[dict]]:
    return _study.run(CONDITIONS[name], seed)


def append(path: Path, lines: Iterable[dict]) -> None:
    lines = list(lines)
    if not lines:
        return
    is_new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(lines[0]), lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerows(lines)


def finished(path: Path) -> set[tuple[str, int]]:
    if not path.exists():
        return set()
    with path.open(newline="", encoding="utf-8") as file:
        return {(line["condition"], int(line["seed"])) for line in csv.DictReader(file)}


def as_json(condition: Condition) -> dict:
    """Its fields, as JSON has them: tuples are lists."""
    return json.loads(json.dumps(asdict(condition)))


def check_same_study(study: Study, names: Sequence[str]) -> None:
    """Runs of another size, or of a condition that has changed its meaning, must not stand in one table."""
    path = study.output_dir / "study.json"
    settings = {name: getattr(study, name) for name in ("dataset", "steps", "num_train", "num_test")}
    found = json.loads(path.read_text()) if path.exists() else {"settings": settings, "conditions": {}}
    conditions = {name: as_json(CONDITIONS[name]) for name in names}
    there = {name: as_json(Condition(**found["conditions"][name])) for name in names if name in found["conditions"]}
    changed = [name for name in there if there[name] != conditions[name]]
    if found["settings"] != settings or changed:
        what = f"of other conditions called {', '.join(changed)}" if changed else f"of {found['settings']}"
        raise ValueError(f"{study.output_dir} holds a study {what}; name another folder")
    path.write_text(json.dumps({"settings": settings, "conditions": found["conditions"] | conditions}, indent=1))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=["styles"])
    parser.add_argument("--only", nargs="+", metavar="CONDITION", help="these conditions instead of whole parts")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--dataset", choices=RECIPES, default="shapes")
    parser.add_argument("--data_dir", type=Path)
    parser.add_argument("--image_dir", type=Path)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--num_train", type=int, default=12000, help="rows of shapes")
    parser.add_argument("--num_test", type=int, default=500, help="rows to rank")
    parser.add_argument("--jobs", type=int, help="processes at a time; the number of GPUs, or of cores without one")
    arguments = parser.parse_args(argv)
    devices = list(range(torch.cuda.device_count()))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    jobs = arguments.jobs or len(devices) or cores
    with one_line_errors():
        if unknown := sorted(set(arguments.only or ()) - set(CONDITIONS)):
            raise ValueError(f"unknown condition {', '.join(unknown)}; there are: {'; '.join(CONDITIONS)}")
        study = Study(
            dataset=arguments.dataset,
            data_dir=arguments.data_dir,
            image_dir=arguments.image_dir,
            output_dir=arguments.output_dir,
            steps=arguments.steps,
            num_train=arguments.num_train,
            num_test=arguments.num_test,
            threads=max(1, cores // jobs),
        )
        names = arguments.only or [condition.name for part in arguments.parts for condition in PARTS[part]]
        study.output_dir.mkdir(parents=True, exist_ok=True)
        check_same_study(study, names)
        if not study.processor_dir.exists():
            study.prepare()
        results = study.output_dir / "results.csv"
        wanted = [(name, seed) for seed in arguments.seeds for name in names]
        wanted = [run for run in wanted if run not in finished(results)]
        available = finished(results) | set(wanted)
        for name, seed in wanted:
            condition = CONDITIONS[name]
            if condition.start_from is not None and (condition.start_from, seed) not in available:
                raise ValueError(
                    f"{name!r} starts from {condition.start_from!r} with seed {seed}; run that first, or with it"
                )
            asked = {*(condition.languages or ()), *condition.agreement_languages}
            if missing := sorted(asked - set(study.splits["train"].features["captions"])):
                raise ValueError(f"{name!r} trains on {', '.join(missing)}, which {study.dataset} does not have")

    context = get_context("spawn")
    number = context.Value("i", 0)
    failed = []
    with ProcessPoolExecutor(jobs, context, _start_worker, (study, devices, number)) as pool:
        wanted.sort(key=lambda run: ancestors(run[0]))
        # Fine-tuning waits for the models that it starts from.
        for _, runs in itertools.groupby(wanted, key=lambda run: ancestors(run[0])):
            futures = {pool.submit(_run, *run): run for run in runs}
            for future in tqdm(as_completed(futures), total=len(futures), desc="runs", disable=None):
                if error := future.exception():  # the others go on, and this one is tried again by the same command
                    failed.append("{}, seed {}".format(*futures[future]))
                    tqdm.write(f"{failed[-1]}: {type(error).__name__}: {error}")
                    continue
                line, points = future.result()
                append(results, [line])
                append(study.output_dir / "curves.csv", points)
                tqdm.write(
                    f"{line['condition']}, seed {line['seed']}: recall {line['mean_recall']}, MRV {line['mrv_std']}"
                )
    if failed:
        sys.exit(f"error: {len(failed)} run{'s' * (len(failed) > 1)} failed: {'; '.join(failed)}")


if __name__ == "__main__":
    main()
