"""The model card of a training run: what it learnt from, how well it retrieves, how to use it, where it ends."""

import logging
import re
from collections.abc import Sequence
from pathlib import Path

import datasets
import transformers
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.repocard import metadata_load
from transformers import PreTrainedModel, Trainer

from ccrk.encoders import CCRKEncoder, input_size, optional_file
from ccrk.trained_on import is_public
from data_scripts.caption_rows import CaptionRows
from data_scripts.cli import one_line

logger = logging.getLogger(__name__)

PAPER = "https://arxiv.org/abs/2406.18254"

TEMPLATE = Path(__file__).with_suffix(".md")


def model_card(trainer: Trainer, hub_id: str, **metadata) -> ModelCard:
    """
    Writes the card from what the trainer holds: data sets with counts, languages, arguments, and the evaluation
    of the weights that are saved. Languages, data sets and base model of the checkpoint that training started from
    are read from its own card.

    Args:
        trainer: a [`CCRKTrainer`] after training.
        hub_id: what the usage example opens.
        metadata: further fields of [`huggingface_hub.ModelCardData`]; they have the last word.
    """
    arguments, inputs = trainer.args, trainer.encoder.inputs
    name = one_line(hub_id.split("/")[-1])
    trained = list(map(one_line, trainer.data_collator.languages))
    evaluations = evaluations_of_saved_weights(trainer)
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
    on_hub = [source for source in sources if not Path(source).exists()]
    parents = [_front_matter(source) for source in sources]
    languages = _with_parents(parents, "language", trained)
    data = {
        "language": languages,
        "license": arguments.license,
        "datasets": _with_parents(parents, "datasets", _datasets(trainer)) or None,
        "metrics": ["recall", "mrv"],
        "library_name": "transformers" if is_transformers else "sentence-transformers",
        "pipeline_tag": "feature-extraction",
        "tags": [*(["ccrk"] if is_ccrk else []), "image-text-retrieval", "multilingual"],
        "base_model": on_hub or _with_parents(parents, "base_model") or None,
        "model_name": name,
        "eval_results": [result for found in evaluations for result in _eval_results(trainer, *found)] or None,
    }
    best, last = _saved_step(trainer), trainer.state.global_step
    kept = f", of which step {best:,}, the best in evaluation, is kept" if best != last else ""
    text_rows, only = (getattr(trainer.data_collator, name, None) for name in ("text_rows", "agreement_only"))
    alone = f", of which {_markdown(' '.join(trained[-only:]))} in agreement alone" if only else ""
    if text_rows is not None:
        alone += f"; captions of {len(text_rows):,} rows without a picture, in agreement"
    batch = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    training = [
        f"- Data: {_describe(trainer, trainer.train_dataset)}; languages {_markdown(' '.join(trained))}{alone}",
        f"- Started from: {_markdown(' and '.join(Path(source).name for source in sources)) or 'no checkpoint'}",
        f"- {last:,} steps of {batch} pictures{kept}, learning rate {arguments.learning_rate:g}, "
        f"weight decay {arguments.weight_decay:g}, seed {arguments.seed}; all arguments are in `training_args.bin`",
        f"- transformers {transformers.__version__}, torch {transformers.utils.get_torch_version()}",
    ]
    data |= metadata
    return ModelCard.from_template(
        ModelCardData(**data),
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
        results="\n\n".join(_results_table(trainer, *found) for found in evaluations),
        license=_markdown(data["license"] or ""),
        training="\n".join(training),
        max_words=getattr(inputs, "max_words", None),
        max_length=inputs.max_length,
    )


def _markdown(text: str) -> str:
    """A text on one line, its letters without a meaning in Markdown or HTML."""
    return re.sub(r"[\\`*_\[\]<>#|~&$]", r"\\\g<0>", one_line(text))


def _front_matter(source: str) -> dict:
    """The metadata of a checkpoint's card; empty without a card that can be read."""
    try:
        path = optional_file(source, "README.md")
        return (path and metadata_load(path)) or {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        logger.warning("model card: the card of %s cannot be read (%s)", source, one_line(error))
        return {}


def _with_parents(parents: Sequence[dict], field: str, own: Sequence[str] = ()) -> list[str]:
    """The values that cards have for a field, and `own` behind them; each once."""
    values = [parent.get(field) for parent in parents]
    lists = [value if isinstance(value, list) else [value] for value in values]
    known = [one_line(value) for given in lists for value in given if isinstance(value, str)]
    return list(dict.fromkeys([*known, *own]))


def _describe(trainer: Trainer, dataset) -> str:
    unit = "pictures"
    if isinstance(dataset, CaptionRows):
        dataset, unit = dataset.images, f"pictures with {len(dataset):,} captions"
    parts = [_markdown(_name(trainer, dataset))]
    if (split := getattr(dataset, "split", None)) is not None:
        parts.append(f"split {_markdown(str(split))}")
    if hasattr(dataset, "__len__"):  # a stream does not know
        parts.append(f"{len(dataset):,} {unit}")
    return ", ".join(parts)


def _name(trainer: Trainer, dataset) -> str:
    """What a recipe calls its data set, of a path the last part alone; else what `datasets` calls it."""
    if given := trainer.recipe.get("dataset"):
        given = given if is_public(given) else Path(given).resolve().name
        preset = (trainer.recipe.get("dataset_config") or {}).get("preset")
        return one_line(given) + (f" {preset}" if preset else "")
    info = getattr(dataset, "info", None)  # a torch data set has none
    return one_line((info and info.dataset_name) or "unnamed")


def _datasets(trainer: Trainer) -> list[str]:
    """The data set trained on, where others know it by the same name."""
    given = trainer.recipe.get("dataset")
    return [one_line(given)] if given and is_public(given) else []


def _saved_step(trainer: Trainer) -> int:
    """The step whose weights are saved: the best in evaluation where that was asked for, or the last."""
    best = trainer.state.best_global_step if trainer.args.load_best_model_at_end else None
    return trainer.state.global_step if best is None else best


def evaluations_of_saved_weights(trainer: Trainer) -> list[tuple[datasets.Dataset, str, dict[str, float]]]:
    """Each evaluation of the weights that are saved: its data set, what its metrics begin with, and the metrics."""
    logs = {}
    for log in trainer.state.log_history:
        if log["step"] == _saved_step(trainer):
            logs |= log
    rows = trainer.eval_dataset
    parts = {f"eval_{name}": part for name, part in rows.items()} if isinstance(rows, dict) else {"eval": rows}
    return [(part, prefix, logs) for prefix, part in parts.items() if f"{prefix}_mean_recall" in logs]


def _recalls(prefix: str, evaluation: dict) -> dict[str, float]:
    start = f"{prefix}_recall_"
    return {one_line(key.removeprefix(start)): value for key, value in evaluation.items() if key.startswith(start)}


def _eval_results(trainer: Trainer, dataset, prefix: str, evaluation: dict) -> list[EvalResult]:
    recalls = _recalls(prefix, evaluation).items()
    values = [("recall", f"Recall, {language}", value) for language, value in recalls]
    values.append(("recall", "Recall, mean over languages", evaluation[f"{prefix}_mean_recall"]))
    if f"{prefix}_mrv" in evaluation:
        values.append(("mrv", "Mean rank variance (standard deviation, ranks)", evaluation[f"{prefix}_mrv"]))
    return [
        EvalResult(
            task_type="image-text-retrieval",
            task_name="Image-text retrieval",
            dataset_type=_name(trainer, dataset),
            dataset_name=_name(trainer, dataset),
            dataset_split=dataset.split and str(dataset.split),
            metric_type=kind,
            metric_name=metric,
            metric_value=value,
        )
        for kind, metric, value in values
    ]


def _results_table(trainer: Trainer, dataset, prefix: str, evaluation: dict) -> str:
    rows = [f"| {_markdown(language)} | {value:.2f} |" for language, value in _recalls(prefix, evaluation).items()]
    rows.append(f"| mean | {evaluation[f'{prefix}_mean_recall']:.2f} |")
    k_test = trainer.args.eval_k_test
    lines = [
        f"On {_describe(trainer, dataset)}, ranked by "
        f"{f'the matching head, {k_test} candidates per query' if k_test else 'cosine similarity'}:",
        "",
        "| language | recall, % (mean of R@1, 5, 10 in both directions) |",
        "|---|---:|",
        *rows,
    ]
    if f"{prefix}_mrv" in evaluation:
        lines += [
            "",
            f"Mean rank variance over the languages: {evaluation[f'{prefix}_mrv']:.3f} ranks (standard deviation; "
            "lower is better).",
        ]
    return "\n".join(lines)
