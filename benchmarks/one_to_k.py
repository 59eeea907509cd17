"""An epoch of 1-to-K over (image, 10 captions) against sentence-transformers over exploded (image, caption) rows.

    python benchmarks/one_to_k.py --output one_to_k.json            a quarter of an hour on two cores
    python benchmarks/one_to_k.py --output one_to_k.json --quick    fewer pictures, a minute

Theirs is `SentenceTransformerTrainer` with its `MultipleNegativesRankingLoss`, symmetric, in batches without
duplicates, as its documentation recommends: an anchor has one positive, so a picture with ten captions is ten rows and
is encoded ten times. Ours is `CCRKTrainer`: a row is a picture with its captions in ten languages. Both begin with the
same weights and train with the same optimizer, schedule, learning rate and images per batch; an epoch is every caption
once. On a batch with one caption per image the two losses must be equal.

`ratio` is that of an epoch's seconds, by the median step. Theirs takes ten times as many steps. Two comparisons are
therefore made on scenes that neither saw: after the same epochs, and after as many epochs of ours as take the time of
theirs. Two encoders are timed, since the cost of a picture decides (`benchmarks/dual_encoders.py`): the top of the
JSON file is the first's, `by_encoder` has all. From random weights and with so few pictures these are near chance,
whichever way they are trained; a third one, small, shows what is learnt (without --quick, or by --encoders).
"""

import argparse
import itertools
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import datasets
import torch
from dual_encoders import LEARNS, SIZES, captions_of, make_encoder, make_rows
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.base.modules import Normalize, Transformer
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from transformers import TrainerCallback

from ccrk.encoders import DualEncoder
from ccrk.retrieval.evaluate import evaluate_retrieval
from ccrk.training.arguments import CCRKTrainingArguments
from ccrk.training.collator import CCRKCollator
from ccrk.training.trainer import CCRKTrainer
from data_scripts.shapes_lexicon import LANGUAGES
from objectives_ccrk import contrastive_loss

SCALE = 20.0  # 1 / temperature: theirs stays there, ours is learnt from there on
LEARNING_RATE = 5e-4
TOLERANCE = 1e-5


@dataclass
class Plan:
    images: int
    batch_size: int
    epochs: int
    unseen: int  # scenes to measure on


# For each of `SIZES`, and for the encoder that learns.
FULL = (Plan(64, 16, 1, 100), Plan(256, 32, 1, 100), Plan(1024, 32, 3, 200))
QUICK = (Plan(8, 4, 1, 10), Plan(32, 8, 1, 50))


def settings(plan: Plan, epochs: int, folder: str) -> dict:
    """Arguments that both trainers get."""
    return {
        "output_dir": folder,
        "num_train_epochs": epochs,
        "per_device_train_batch_size": plan.batch_size,
        "learning_rate": LEARNING_RATE,
        "warmup_steps": 0.1,
        "lr_scheduler_type": "linear",
        "weight_decay": 0.01,
        "adam_beta2": 0.98,
        "max_grad_norm": 1.0,
        "dataloader_drop_last": True,
        "seed": 0,
        "save_strategy": "no",
        "report_to": "none",
        "logging_steps": 1_000_000,
    }


class Clock(TrainerCallback):
    """When steps end: what lies between two ends is a step with the loading of its batch, and nothing else."""

    def __init__(self):
        self.ends: list[float] = []

    def on_step_end(self, args, state, control, **_):
        self.ends.append(time.perf_counter())

    def steps(self) -> list[float]:
        """Seconds of each but the first."""
        return [end - start for start, end in itertools.pairwise(self.ends)]


def ours(encoder: DualEncoder, rows: datasets.Dataset, plan: Plan, epochs: int) -> Clock:
    with tempfile.TemporaryDirectory() as folder:
        trainer = CCRKTrainer(
            model=encoder.model,
            args=CCRKTrainingArguments(**settings(plan, epochs, folder), new_parameter_lr_scale=1.0),
            data_collator=CCRKCollator(encoder.inputs, LANGUAGES),
            train_dataset=rows,
            processing_class=encoder.processor,
        )
        trainer.add_callback(clock := Clock())
        trainer.train()
    return clock


def theirs(encoder: DualEncoder, rows: datasets.Dataset, plan: Plan, epochs: int) -> Clock:
    pictures = rows["image"][:]
    exploded = [(row, text) for row, texts in enumerate(rows["captions"]) for text in captions_in(texts)]
    pairs = datasets.Dataset.from_dict(
        {"anchor": [pictures[row] for row, _ in exploded], "positive": [text for _, text in exploded]}
    )
    pairs = pairs.cast_column("anchor", datasets.Image())
    with tempfile.TemporaryDirectory() as folder:
        for part in (encoder.model, encoder.processor):
            part.save_pretrained(folder)
        encode = {m: {"method": f"get_{m}_features", "method_output_name": "pooler_output"} for m in ("text", "image")}
        retriever = SentenceTransformer(
            modules=[
                Transformer(folder, modality_config=encode, module_output_name="sentence_embedding"),
                Normalize(),
            ],
            device=str(encoder.model.device),
        )
        trainer = SentenceTransformerTrainer(
            model=retriever,
            args=SentenceTransformerTrainingArguments(
                **settings(plan, epochs, folder), batch_sampler="no_duplicates_hashed"
            ),
            train_dataset=pairs,
            loss=symmetric_loss(retriever),
        )
        trainer.add_callback(clock := Clock())
        trainer.train()
    encoder.model.load_state_dict(retriever[0].model.state_dict())
    return clock


def captions_in(captions: dict[str, list[str]]) -> list[str]:
    return [text for texts in captions.values() for text in texts]


def symmetric_loss(retriever: SentenceTransformer | None) -> MultipleNegativesRankingLoss:
    """Image to text and text to image, each a softmax of its own, as CLIP is trained."""
    return MultipleNegativesRankingLoss(
        retriever, scale=SCALE, directions=("query_to_doc", "doc_to_query"), partition_mode="per_direction"
    )


def loss_difference(encoder: DualEncoder, rows: datasets.Dataset) -> float:
    """Of the two losses on a batch with one caption per image, where they are the same thing; relative."""
    batch = CCRKCollator(encoder.inputs, LANGUAGES[:1])(list(rows))
    with torch.no_grad():
        found = encoder.embed_alone({name: value.to(encoder.model.device) for name, value in batch.items()})
        one = contrastive_loss(found.image, found.text, found.temperature)
        other = symmetric_loss(None).compute_loss_from_embeddings([found.image, found.text[:, 0]], None)
    return (abs(one - other) / other).item()


def measure(encoder: DualEncoder, rows: datasets.Dataset) -> dict[str, float]:
    """Mean recall over languages and both directions in percent, and MRV in ranks."""
    encoder.model.eval()
    found = evaluate_retrieval(encoder, rows, LANGUAGES)
    recall = found.recall().values()
    return {"recall": sum(row["mean"] for row in recall) / len(recall), "mrv": found.mrv()["mean"]["std"]}


def compare(size: str, plan: Plan) -> dict:
    image_size = SIZES.get(size, {"image_size": 64})["image_size"]
    rows = make_rows("train", plan.images, image_size, LANGUAGES)
    unseen = make_rows("test", plan.unseen, image_size, LANGUAGES)
    encoder = make_encoder(size, captions_of(rows), SCALE)
    start = {name: tensor.clone() for name, tensor in encoder.model.state_dict().items()}
    difference = loss_difference(encoder, rows.select(range(plan.batch_size)))
    assert difference < TOLERANCE, f"the losses of a batch with one caption per image differ by {difference}"

    def run(train, epochs: int) -> dict:
        encoder.model.load_state_dict(start)
        encoder.model.train()
        clock = train(encoder, rows, plan, epochs)
        return {"seconds_of_steps": clock.steps(), "steps": len(clock.ends), "epochs": epochs} | measure(
            encoder, unseen
        )

    def seconds(*names: str) -> float:
        """Of an epoch, by the median step of these runs."""
        found = [result[name] for name in names]
        step = statistics.median(itertools.chain.from_iterable(run["seconds_of_steps"] for run in found))
        return step * found[0]["steps"] / found[0]["epochs"]

    result = {"ours": run(ours, plan.epochs), "theirs": run(theirs, plan.epochs)}
    expected = plan.images * plan.epochs // plan.batch_size
    steps = [run["steps"] for run in result.values()]
    assert steps == [expected, expected * len(LANGUAGES)], f"steps {steps}: not every caption was seen once per epoch"
    as_long = max(1, round(plan.epochs * seconds("theirs") / seconds("ours")))
    result["ours, as long as theirs"] = run(ours, as_long)
    of_epoch = {"ours": seconds("ours", "ours, as long as theirs"), "theirs": seconds("theirs")}
    ratio = of_epoch["theirs"] / of_epoch["ours"]
    print(f"{size}, {encoder.model.num_parameters() / 1e6:.1f} M parameters, {plan.images} images")
    print(f"  an epoch: ours {of_epoch['ours']:.1f} s, theirs {of_epoch['theirs']:.1f} s, {ratio:.1f}x")
    for name, found in result.items():
        told = f"{name}: {found['epochs']} epochs, {found['steps']} steps"
        print(f"  recall {found['recall']:5.1f} %  MRV {found['mrv']:5.2f}  {told}")
    return {
        "ratio": ratio,
        "seconds": of_epoch,
        "recall": {name: found["recall"] for name, found in result.items()},
        "mrv": {name: found["mrv"] for name, found in result.items()},
        "loss_difference": difference,
        "parameters": encoder.model.num_parameters(),
        "plan": vars(plan),
        "runs": result,
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--quick", action="store_true", help="fewer pictures, too few to learn from")
    encoders = [*SIZES, LEARNS]
    parser.add_argument("--encoders", nargs="+", choices=encoders, default=encoders, help="these alone")
    arguments = parser.parse_args(argv)

    plans = dict(zip(encoders, QUICK if arguments.quick else FULL, strict=False))
    plans = {size: plan for size, plan in plans.items() if size in arguments.encoders}
    if not plans:
        parser.error(f"--quick is over before {LEARNS} has learnt anything; remove one of them")
    by_encoder = {size: compare(size, plan) for size, plan in plans.items()}
    top = {name: next(iter(by_encoder.values()))[name] for name in ("ratio", "recall", "mrv", "loss_difference")}
    results = {**top, "machine": platform.processor() or platform.machine(), "torch": torch.__version__}
    results |= {"device": "cuda" if torch.cuda.is_available() else "cpu", "threads": torch.get_num_threads()}
    results |= {"captions_per_image": len(LANGUAGES), "by_encoder": by_encoder}
    arguments.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
