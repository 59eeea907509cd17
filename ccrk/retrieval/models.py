"""Several models on the same data, side by side: what a user chooses one by."""

import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

import numpy as np

from ccrk.retrieval.notes import notes_on_data, notes_on_model
from data_scripts.files import written_whole

COLUMNS = ("model", "parameters", "ms per query", "mean recall", "worst language", "spread", "MRV")

NOTE = (
    "Recall is the mean of IR and TR at 1, 5 and 10 in percent, over all languages; the worst language is that with "
    "the least of it, and spread its standard deviation over languages. MRV is the standard deviation of an "
    "instance's ranks over languages; 0 is best. Intervals are 95 % (bootstrap over images). A query is one caption, "
    "encoded and ranked against all pictures on this machine, re-scoring included: the median of {timed}."
)


def folders_of_models(models: Sequence[str], output_dir: Path) -> dict[str, Path]:
    """
    Where each model's results go: `output_dir` itself for a single one, else a folder in it that is called after the
    model's last part, with what is before that where two are called alike.

    Raises:
        ValueError: a model is named twice, or two of them cannot be told apart.
    """
    if twice := [model for place, model in enumerate(models) if model in models[:place]]:
        raise ValueError(f"--model names {twice[0]} twice; name each model once")
    if len(models) == 1:
        return {models[0]: output_dir}
    short = {model: _folder_name(Path(model).name.removesuffix(".npz")) for model in models}
    alike = [name.casefold() for name in short.values()]
    # Files of the table itself, and what is encoded, are in the same folder.
    names = {
        model: _folder_name(model) if alike.count(name.casefold()) > 1 or name in ("", "encoded") else name
        for model, name in short.items()
    }
    lower = [name.casefold() for name in names.values()]
    if clash := [model for model, name in names.items() if not name or lower.count(name.casefold()) > 1]:
        raise ValueError(f"--model: there is no folder name of its own for {clash[0]}; evaluate it by itself")
    return {model: output_dir / name for model, name in names.items()}


def _folder_name(model: str) -> str:
    """A name that leads out of no folder, and is valid on every disk."""
    return re.sub(r"[^\w.]+", "-", model).strip("-.")


def write_models(all_results: Mapping[str, dict], folders: Mapping[str, Path], output_dir: Path, timed: int) -> None:
    """
    `models.md`, and with matplotlib `models.html`, in `output_dir`: a row for each model, which leads to its report.

    Args:
        all_results: model → content of its results.json.
        folders: where that is.
        timed: queries that a time is the median of.
    """
    first = next(iter(all_results.values()))
    title = f"{first['task']}, {first['split']}: {len(all_results)} models"
    about = f"{first['counts']['images']:,} images in {', '.join(first['languages'])}"
    note = NOTE.format(timed=timed)
    rows = {model: table_row(results) for model, results in all_results.items()}
    links = {
        model: quote(f"{folder.relative_to(output_dir).as_posix()}/report.html") for model, folder in folders.items()
    }
    notes = notes_on_data(first)
    notes += [f"{model}: {note}" for model, results in all_results.items() for note in notes_on_model(results)]
    chance = chance_row(first)
    lines = [
        f"# {_markdown(title)}",
        "",
        _markdown(about),
        "",
        *(f"- Warning: {_markdown(note)}." for note in notes),
        *[""] * bool(notes),
        _markdown_row(COLUMNS),
        "|---|" + "---:|" * len(COLUMNS[1:]),
    ]
    lines += [_markdown_row([f"[{_markdown(model)}]({links[model]})", *row]) for model, row in rows.items()]
    lines.append(_markdown_row(["by chance", *chance]))
    with written_whole(output_dir / "models.md") as path:
        path.write_text("\n".join([*lines, "", note, ""]), encoding="utf-8", errors="backslashreplace")
    try:
        from ccrk.retrieval.html import html_table, notes_box, write_page
    except ImportError:  # there is no matplotlib, and no report to lead to
        return
    body = [_html_row(f'<a href="{links[model]}">{escape(model)}</a>', row) for model, row in rows.items()]
    body.append(_html_row("by chance", chance))
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="soft">{escape(about)}</p>',
        notes_box(notes),
        html_table(COLUMNS, body, "fits"),
        f'<p class="soft">{escape(note)}</p>',
    ]
    write_page(output_dir / "models.html", title, parts)


def table_row(results: dict) -> list[str]:
    """The cells of a model behind its name; a dash where there is nothing to tell."""
    means = {language: row["mean"] for language, row in results["recall"].items()}
    worst = min(means, key=means.get)
    parameters, milliseconds = results.get("parameters"), results.get("milliseconds_per_query")
    intervals = results["intervals"]
    mrv = "–"
    if results["mrv"]:
        mrv = with_interval(results["mrv"]["mean"]["std"], intervals["mrv"]["mean"]["std"], 2)
    return [
        "–" if parameters is None else f"{parameters / 1e6:,.1f} M",
        "–" if milliseconds is None else f"{milliseconds:,.1f}",
        with_interval(float(np.mean(list(means.values()))), intervals["mean_recall"], 1),
        f"{worst}: {with_interval(means[worst], intervals['recall'][worst]['mean'], 1)}",
        f"{np.std(list(means.values())):.1f}",
        mrv,
    ]


def chance_row(results: dict) -> list[str]:
    """The cells of a random order, in the columns of `table_row`."""
    mean = np.mean([row["mean"] for row in results["chance"].values()])
    return ["–", "–", f"{mean:.1f}", "–", "–", "–"]


def _html_row(name: str, cells: Sequence[str]) -> str:
    """A row whose intervals stand below their values; `name` is HTML."""
    values = [re.sub(r" \((.+)\)$", r"<small>\1</small>", escape(cell)) for cell in cells]
    labelled = zip(COLUMNS[1:], values, strict=True)
    found = "".join(f'<td data-label="{label}"><span>{value}</span></td>' for label, value in labelled)
    return f"<tr><td>{name}</td>{found}</tr>"


def with_interval(value: float, interval: Sequence[float], digits: int) -> str:
    low, high = interval
    return f"{value:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def _markdown(text: str) -> str:
    """A text whose characters are no marks of Markdown or HTML."""
    return re.sub(r"([\\`*_\[\]<>|&#])", r"\\\1", " ".join(text.split()))


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
