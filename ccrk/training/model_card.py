"""The model card of a training run: what it learnt from, how well it retrieves, how to use it, where it ends."""

import re
from pathlib import Path

import transformers
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import PreTrainedModel, Trainer

from ccrk.encoders import CCRKEncoder, input_size
from data_scripts.caption_rows import CaptionRows
from data_scripts.cli import one_line

PAPER = "https://arxiv.org/abs/2406.18254"

TEMPLATE = Path(__file__).with_suffix(".md")


def model_card(trainer: Trainer, hub_id: str, **metadata) -> ModelCard:
    """
    Writes the card from what the trainer holds: data sets with counts, languages, arguments, and the evaluation
    of the weights that are saved: the last one, or the best.

    Args:
        trainer: a [`CCRKTrainer`] after training.
        hub_id: what the usage example opens.
        metadata: further fields of [`huggingface_hub.ModelCardData`], such as `license`; they have the last word.
    """
    arguments, inputs = trainer.args, trainer.encoder.inputs
    name = one_line(hub_id.split("/")[-1])
    languages = list(map(one_line, trainer.data_collator.languages))
    best = trainer.state.best_global_step if arguments.load_best_model_at_end else None  # whose weights are saved
    evaluation = next(
        (
            logs
            for logs in reversed(trainer.state.log_history)
            if "eval_mean_recall" in logs and best in (None, logs["step"])
        ),
        {},
    )
    model, is_ccrk = trainer.model, isinstance(trainer.encoder, CCRKEncoder)
    is_transformers = isinstance(model, PreTrainedModel)
    if not is_transformers:
        kind, encoders = "sentence transformer", model.towers()
        sources = [tower.name_or_path for tower in encoders]
    else:
        kind, encoders = "ccrk" if is_ccrk else "dual encoder", [model]
        # Without a name it is from encoders, or from scratch.
        parts = [] if model.name_or_path else [model.config.vision_config, model.config.text_config]
        sources = [part.name_or_path for part in parts or [model]]
    sources = [source for source in sources if source]
    data = {
        "language": languages,
        "library_name": "transformers" if is_transformers else "sentence-transformers",
        "pipeline_tag": "feature-extraction",
        "tags": [*(["ccrk"] if is_ccrk else []), "image-text-retrieval", "multilingual"],
        "base_model": [source for source in sources if not Path(source).exists()] or None,
        "model_name": name,
        "eval_results": _eval_results(trainer, evaluation) or None,
    }
    kept = f", of which step {best:,}, the best in evaluation, is kept" if best is not None else ""
    text_rows, only = (getattr(trainer.data_collator, name, None) for name in ("text_rows", "agreement_only"))
    alone = f", of which {_markdown(' '.join(languages[-only:]))} in agreement alone" if only else ""
    if text_rows is not None:
        alone += f"; captions of {len(text_rows):,} rows without a picture, in agreement"
    batch = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    training = [
        f"- Data: {_describe(trainer.train_dataset)}; languages {_markdown(' '.join(languages))}{alone}",
        f"- Started from: {_markdown(' and '.join(Path(source).name for source in sources)) or 'no checkpoint'}",
        f"- {trainer.state.global_step:,} steps of {batch} pictures{kept}, learning rate {arguments.learning_rate:g}, "
        f"weight decay {arguments.weight_decay:g}, seed {arguments.seed}; all arguments are in `training_args.bin`",
        f"- transformers {transformers.__version__}, torch {transformers.utils.get_torch_version()}",
    ]
    return ModelCard.from_template(
        ModelCardData(**(data | metadata)),
        str(TEMPLATE),
        kind=kind,
        name=_markdown(name),
        hub_id=repr(hub_id),
        paper=PAPER,
        parameters=f"{sum(parameter.numel() for parameter in model.parameters()):,}",
        languages=_markdown(", ".join(languages)),
        image_size=input_size(inputs.image_processor),
        architecture=" and ".join(type(encoder).__name__ for encoder in encoders),
        options=", ".join(f"{name}={value!r}" for name, value in getattr(inputs, "options", {}).items()),
        results=_results_table(trainer, evaluation),
        training="\n".join(training),
        max_words=getattr(inputs, "max_words", None),
        max_length=inputs.max_length,
    )


def _markdown(text: str) -> str:
    """A text on one line, its letters without a meaning in Markdown or HTML."""
    return re.sub(r"[\\`*_\[\]<>#|~&$]", r"\\\g<0>", one_line(text))


def _describe(dataset) -> str:
    unit = "pictures"
    if isinstance(dataset, CaptionRows):
        dataset, unit = dataset.images, f"pictures with {len(dataset):,} captions"
    parts = [_markdown(_name(dataset))]
    if (split := getattr(dataset, "split", None)) is not None:
        parts.append(f"split {_markdown(str(split))}")
    if hasattr(dataset, "__len__"):  # a stream does not know
        parts.append(f"{len(dataset):,} {unit}")
    return ", ".join(parts)


def _name(dataset) -> str:
    info = getattr(dataset, "info", None)  # a torch data set has none
    return one_line((info and info.dataset_name) or "unnamed")


def _recalls(evaluation: dict) -> dict[str, float]:
    start = "eval_recall_"
    return {one_line(key.removeprefix(start)): value for key, value in evaluation.items() if key.startswith(start)}


def _eval_results(trainer: Trainer, evaluation: dict) -> list[EvalResult]:
    if not evaluation:
        return []
    values = [("recall", f"Recall, {language}", value) for language, value in _recalls(evaluation).items()]
    values.append(("recall", "Recall, mean over languages", evaluation["eval_mean_recall"]))
    if "eval_mrv" in evaluation:
        values.append(("mrv", "Mean rank variance (standard deviation, ranks)", evaluation["eval_mrv"]))
    dataset = trainer.eval_dataset
    return [
        EvalResult(
            task_type="image-text-retrieval",
            task_name="Image-text retrieval",
            dataset_type=_name(dataset),
            dataset_name=_name(dataset),
            dataset_split=dataset.split and str(dataset.split),
            metric_type=kind,
            metric_name=metric,
            metric_value=value,
        )
        for kind, metric, value in values
    ]


def _results_table(trainer: Trainer, evaluation: dict) -> str:
    if not evaluation:
        return "Not evaluated in this run; `eval_mrv.py` of the repository does it."
    rows = [f"| {_markdown(language)} | {value:.2f} |" for language, value in _recalls(evaluation).items()]
    rows.append(f"| mean | {evaluation['eval_mean_recall']:.2f} |")
    k_test = trainer.args.eval_k_test
    lines = [
        f"On {_describe(trainer.eval_dataset)}, ranked by "
        f"{f'the matching head, {k_test} candidates per query' if k_test else 'cosine similarity'}:",
        "",
        "| language | recall, % (mean of R@1, 5, 10 in both directions) |",
        "|---|---:|",
        *rows,
    ]
    if "eval_mrv" in evaluation:
        lines += [
            "",
            f"Mean rank variance over the languages: {evaluation['eval_mrv']:.3f} ranks (standard deviation; lower is "
            "better).",
        ]
    return "\n".join(lines)
