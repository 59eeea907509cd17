"""Warnings that come before the figures: a sentence each, the same on the screen, in tables and in reports."""

from collections.abc import Mapping

SMALL_POOL = 100  # images; below, chance and single images decide too much


def notes_on_data(results: Mapping) -> list[str]:
    """Sentences on the images and captions of an evaluation, whatever the model; `results` as in results.json."""
    images, any_copy = results["counts"]["images"], "any_copy" in results
    found = [equal_note(results.get("equal_images", 0), images, any_copy), distractor_note(results["counts"])]
    if pools := results["counts"].get("images_per_language"):
        found.append(pool_note(min(pools.values()), max(row["IR@10"] for row in results["chance"].values())))
    return [note for note in found if note]


def notes_on_model(results: Mapping) -> list[str]:
    """Sentences on what the model reads, and what it has seen before."""
    found = trained_on_notes(results["trained_on"]) if "trained_on" in results else []
    if "cut_captions" in results:
        found.append(cut_note(results["cut_captions"], results["counts"]["captions"]))
    return [note for note in found if note]


def trained_on_notes(overlap: Mapping) -> list[str]:
    """Of `ccrk.trained_on.overlap`: whether the model has seen images of the evaluation, and where that is unknown."""
    found = []
    if overlap["images"]:
        seen = [run for run in overlap["runs"] if run["overlap"]]
        about = "about " if any(run["sampled"] < run["images"] for run in seen) else ""
        found.append(
            f"The model was trained on {about}{overlap['images']:,} of these {overlap['of']:,} images "
            f"({_names(seen)}): its figures do not hold for new images"
        )
    if unknown := [run for run in overlap["runs"] if run["overlap"] is None]:
        found.append(
            f"The model was trained on images that were not recorded ({_names(unknown)}): they may be among these"
        )
    return found


def _names(runs: list[Mapping]) -> str:
    names = []
    for run in runs:
        parts = [run["data"], run["split"] or ""]
        if run["validation_fraction"]:
            parts.append(f"with validation_fraction {run['validation_fraction']:g}")
        names.append(" ".join(filter(None, parts)))
    return ", ".join(dict.fromkeys(names))


def cut_note(cut: Mapping[str, int], captions: Mapping[str, int]) -> str | None:
    """Of language → captions that the model reads the beginning of, and language → all of them."""
    counts = [f"{language} {number:,} of {captions[language]:,}" for language, number in cut.items() if number]
    return f"Captions longer than the model reads are cut: {', '.join(counts)}; shorten them" if counts else None


def equal_note(equal: int, images: int, any_copy: bool) -> str | None:
    """Of images that have a copy under another name."""
    if not equal:
        return None
    start = f"{equal:,} of {images:,} images have a copy of equal contents under another name, and "
    return start + ("any copy counts as right" if any_copy else "only one name counts as right; --any_copy counts any")


def distractor_note(counts: Mapping) -> str | None:
    """Of images and captions that are ranked against, though they have no counterpart."""
    images = [
        f"{language} {number:,} of {counts['images_per_language'][language]:,}"
        for language, number in counts.get("distractor_images", {}).items()
        if number
    ]
    captions = [
        f"{language} {number:,} of {counts['captions'][language]:,}"
        for language, number in counts.get("distractor_captions", {}).items()
        if number
    ]
    parts = [f"images without a caption ({', '.join(images)})"] * bool(images)
    parts += [f"captions without an image ({', '.join(captions)})"] * bool(captions)
    return f"Ranked against as well: {' and '.join(parts)}" if parts else None


def pool_note(images: int, chance: float) -> str | None:
    """Of a pool's images and its recall at 10 by chance, in percent."""
    if images >= SMALL_POOL:
        return None
    return f"Only {images} images: R@10 is {chance:.0f} % by chance; evaluate {SMALL_POOL} or more"
