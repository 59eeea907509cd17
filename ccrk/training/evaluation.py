"""What an evaluation during training is of: languages that its rows have captions in, and metrics by their names."""

from collections.abc import Sequence

import datasets

from data_scripts.captions import is_usable


def languages_to_evaluate(rows: datasets.Dataset, trained: Sequence[str]) -> list[str]:
    """The languages of training that the rows have captions in; of their own where they know none of those.

    Raises:
        ValueError: there is no usable caption.
    """
    in_dataset = list(rows.features["captions"])
    # A few-shot run in German is validated in English.
    languages = [language for language in trained if language in in_dataset] or in_dataset
    captions = rows["captions"][:]
    found = [language for language in languages if any(is_usable(text) for own in captions for text in own[language])]
    if not found:
        raise ValueError(
            f"the rows to evaluate on have no usable caption in {', '.join(languages)}; choose other languages, or "
            "set eval_strategy to no and remove validation_fraction"
        )
    return found


def metric_names(eval_dataset: datasets.Dataset | dict[str, datasets.Dataset], trained: Sequence[str]) -> list[str]:
    """What evaluations during training give, by the names that `metric_for_best_model` takes."""
    several = isinstance(eval_dataset, dict)
    names = []
    for name, rows in (eval_dataset if several else {"": eval_dataset}).items():
        languages = languages_to_evaluate(rows, trained)
        metrics = [*(f"recall_{language}" for language in languages), "mean_recall"]
        captioned = {language: set() for language in languages}
        for image_id, captions in zip(rows["image_id"][:], rows["captions"][:], strict=True):
            for language, images in captioned.items():
                if any(is_usable(caption) for caption in captions[language]):
                    images.add(image_id)
        if len(languages) > 1 and set.intersection(*captioned.values()):
            metrics.append("mrv")
        names += [f"{name}_{metric}" if several else metric for metric in [*metrics, "runtime"]]
    return names
