"""report.html: one file without network that shows a result, and its plots as PNG."""

import io
from collections.abc import Sequence
from html import escape
from pathlib import Path

import datasets
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from ccrk.retrieval.html import data_uri, draw_figure, html_table, notes_box, write_page
from ccrk.retrieval.instances import Ranks, image_index, shared_ranks
from ccrk.retrieval.notes import notes_on_data, notes_on_model
from data_scripts.cards import card_of
from data_scripts.images import read_image

GALLERY_SIZE = 12

MANY_LANGUAGES = 16

THUMBNAIL = 240  # pixels

COLORS = {"IR": "#3f7fc4", "TR": "#d98324"}  # text → image, image → text; both stand out on white and on black

DIRECTIONS = {"IR": "text → image", "TR": "image → text"}


def write_report(results: dict, ranks: Ranks, dataset: datasets.Dataset, output_dir: Path) -> None:
    """Writes report.html, recall.png and, with MRV, rank_difference.png and rank_spread.png.

    Args:
        results: the content of results.json.
        ranks: of the same run.
        dataset: the rows that were evaluated, for the pictures and captions of the gallery.
    """
    languages = results["languages"]
    mrv_languages = results["mrv"]["languages"] if results["mrv"] else []
    counts = results["counts"]
    captions = sum(counts["captions"].values())
    rescored = f"the best {results['k_test']} re-scored" if results["k_test"] else "cosine alone"
    parts = [
        f"<h1>{escape(results['task'])}, {escape(results['split'])}: {len(languages)} "
        f"language{'s' if len(languages) > 1 else ''}</h1>",
        f'<p class="soft">{escape(results["model"])} · {counts["images"]:,} images, {captions:,} captions · {rescored}'
        " · intervals are 95 % (bootstrap over images)</p>",
        notes_box(notes_on_data(results) + notes_on_model(results)),
        _cards(results),
        "<h2>Recall</h2><p>How often the right one comes first, among the first five, or ten. IR finds the image of "
        "a caption, TR a caption of an image.</p>",
        '<div class="plots">',
        draw_figure(lambda: plot_recall(results), "recall", "Recall at 1 per language", output_dir),
        "</div>",
        _recall_table(results["recall"], results["intervals"]["recall"], results["chance"]),
    ]
    if "recall_in_folds" in results:
        parts += [f"<h2>Recall in {results['folds']} folds: the mean over equal parts of the images</h2>"]
        parts += [_recall_table(results["recall_in_folds"], {}, results["chance_in_folds"])]
    parts.append("<h2>Consistency</h2>")
    if mrv_languages:
        parts += [
            "<p>The rank of one and the same instance, asked for in different languages. Recall hides this: two "
            f"languages may fail equally often, on different images. Over {escape(', '.join(mrv_languages))}.</p>",
            '<div class="plots">',
            draw_figure(
                lambda: plot_differences(ranks, languages),
                "rank_difference",
                "Mean absolute difference of an instance's rank, in ranks, over both directions",
                output_dir,
            ),
            draw_figure(
                lambda: plot_spread(ranks, mrv_languages),
                "rank_spread",
                "How far ranks spread: the standard deviation of an instance's ranks over the languages",
                output_dir,
            ),
            "</div>",
            "<h2>Where the rank drifts most</h2><p>The captions whose image moves furthest from language to language: "
            "its rank is on the right, 1 is best.</p>",
            _gallery(ranks, mrv_languages, dataset),
        ]
    else:
        parts.append(f"<p>No mean rank variance: {escape(results['no_mrv_because'])}.</p>")
    if "comparison" in results:
        parts.append(_comparison(results["comparison"]))
    if card_of(results["task"]).published:
        parts.append(_published(results))
    title = f"{results['task']} {results['split']}: recall and MRV"
    write_page(output_dir / "report.html", title, parts)


def plot_recall(results: dict) -> Figure:
    """R@1 of both directions with its interval, a row per language."""
    languages = results["languages"]
    figure = Figure(
        figsize=(4.8, 0.9 + (0.34 if len(languages) <= MANY_LANGUAGES else 0.17) * len(languages)),
        layout="constrained",
    )
    axes = figure.add_subplot()
    for offset, direction in ((-0.14, "IR"), (0.14, "TR")):
        values = np.array([results["recall"][language][f"{direction}@1"] for language in languages])
        bounds = np.array([results["intervals"]["recall"][language][f"{direction}@1"] for language in languages])
        axes.errorbar(
            values,
            np.arange(len(languages)) + offset,
            xerr=np.abs(bounds.T - values),
            fmt="o",
            color=COLORS[direction],
            label=DIRECTIONS[direction],
        )
    axes.set(
        yticks=range(len(languages)),
        yticklabels=languages,
        xlabel="recall at 1 (%)",
        ylim=(len(languages) - 0.5, -0.5),
    )
    axes.grid(axis="x", alpha=0.25)
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    return figure


def plot_differences(ranks: Ranks, languages: Sequence[str]) -> Figure:
    """Language × language: mean absolute rank difference of shared instances, averaged over both directions."""
    table = np.full((len(languages), len(languages)), np.nan)
    for i, first in enumerate(languages):
        for j, second in enumerate(languages):
            pairs = [shared_ranks(ranks, (first, second), direction).to_numpy() for direction in ("IR", "TR")]
            if i != j and all(len(pair) for pair in pairs):
                table[i, j] = np.mean([np.abs(pair[:, 0] - pair[:, 1]).mean() for pair in pairs])
    are_many = len(languages) > MANY_LANGUAGES  # there is no room for numbers, and little for names
    side = max(4.8, 0.12 * len(languages))
    figure = Figure(figsize=(side, 0.9 * side), layout="constrained")
    axes = figure.add_subplot()
    colors = axes.imshow(table, cmap="YlGnBu")
    ticks = range(len(languages))
    axes.set(xticks=ticks, xticklabels=languages, yticks=ticks, yticklabels=languages)
    axes.tick_params(length=0, labelsize=7 if are_many else None)
    axes.tick_params(axis="x", rotation=90 if are_many else 0)
    axes.spines[:].set_visible(False)
    for (i, j), value in np.ndenumerate(table):
        if not (np.isnan(value) or are_many):
            color = "white" if colors.norm(value) > 0.55 else "#1c2128"
            axes.text(j, i, f"{value:.3g}", ha="center", va="center", color=color, fontsize=8)
    bar = figure.colorbar(colors, ax=axes, shrink=0.8, label="ranks")
    bar.outline.set_visible(False)
    return figure


def plot_spread(ranks: Ranks, languages: Sequence[str]) -> Figure:
    """Share of instances by the standard deviation of their ranks."""
    edges = [0, 1e-9, 0.5, 1, 2, 5, 10, 20, np.inf]
    names = ["0", "≤ ½", "≤ 1", "≤ 2", "≤ 5", "≤ 10", "≤ 20", "> 20"]
    figure = Figure(figsize=(4.8, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for offset, direction in ((-0.2, "IR"), (0.2, "TR")):
        spread = shared_ranks(ranks, languages, direction).std(axis=1, ddof=0)
        share = 100 * np.histogram(spread, bins=edges)[0] / len(spread)
        axes.bar(np.arange(len(names)) + offset, share, 0.38, color=COLORS[direction], label=DIRECTIONS[direction])
    axes.set(xticks=range(len(names)), xticklabels=names, xlabel="standard deviation (ranks)", ylabel="instances (%)")
    axes.grid(axis="y", alpha=0.25)
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    return figure


def _cards(results: dict) -> str:
    cards = []
    for column, label in (("IR@1", "recall at 1, text → image"), ("TR@1", "recall at 1, image → text")):
        mean = np.mean([row[column] for row in results["recall"].values()])
        cards.append(f"<div class=card><b>{mean:.1f} %</b>{label}, mean of languages</div>")
    if results["mrv"]:
        low, high = results["intervals"]["mrv"]["mean"]["std"]
        cards.append(
            f"<div class=card><b>{results['mrv']['mean']['std']:.2f}</b>MRV, standard deviation in ranks "
            f"({low:.2f} to {high:.2f}); 0 is best</div>"
        )
    return f'<div class="cards">{"".join(cards)}</div>'


def _recall_table(recall: dict, intervals: dict, chance: dict) -> str:
    columns = list(next(iter(recall.values())))
    rows = []
    for language, row in recall.items():
        cells = ""
        for column in columns:
            bounds = intervals.get(language, {}).get(column)
            small = f"<small>{bounds[0]:.1f} – {bounds[1]:.1f}</small>" if bounds else ""
            cells += f"<td>{row[column]:.1f}{small}</td>"
        rows.append(f"<tr><td>{escape(language)}</td>{cells}</tr>")
    for kind, name, table in (("ours", "mean", recall), ("soft", "chance", chance)):
        means = "".join(f"<td>{np.mean([row[column] for row in table.values()]):.1f}</td>" for column in columns)
        rows.append(f'<tr class="{kind}"><td>{name}</td>{means}</tr>')
    return html_table(["", *columns], rows)


def _gallery(ranks: Ranks, languages: Sequence[str], dataset: datasets.Dataset) -> str:
    table = shared_ranks(ranks, languages, "IR")
    spread = table.std(axis=1, ddof=0)
    dataset = dataset.cast_column("image", datasets.Image(decode=False))
    row_of = {image: row for row, image in enumerate(image_index(dataset))}
    items = []
    for instance in spread[spread > 0].sort_values(ascending=False, kind="stable").index[:GALLERY_SIZE]:
        *image, place = instance
        row = dataset[row_of[tuple(image)]]
        shown = table.loc[instance]
        if len(shown) > MANY_LANGUAGES:  # the best and the worst of them
            shown = shown.sort_values(kind="stable").iloc[[0, 1, 2, 3, -4, -3, -2, -1]]
        lines = "".join(
            f"<li><i>{escape(language)}</i><span>{escape(row['captions'][language][place])}</span><b>{rank:,}</b></li>"
            for language, rank in shown.items()
        )
        picture = data_uri("image/jpeg", _thumbnail(read_image(row["image"])))
        items.append(f'<div class="item"><img src="{picture}" alt="{escape(image[0])}"><ul>{lines}</ul></div>')
    return f'<div class="gallery">{"".join(items)}</div>' if items else "<p>None does: all ranks are equal.</p>"


def _comparison(comparison: dict) -> str:
    rows = [
        f"<tr><td>{escape(name)}</td><td>{row['difference']:+.2f}</td><td>{row['low']:+.2f} to {row['high']:+.2f}</td>"
        f"<td>{row['p']:.4f}</td></tr>"
        for name, row in (comparison["recall"] | ({"MRV": comparison["mrv"]} if comparison["mrv"] else {})).items()
    ]
    reason = comparison.get("no_mrv_because")
    return (
        f"<h2>Against another run</h2><p>This run minus {escape(comparison['other'])}, on the same instances: mean "
        "recall in points, MRV in ranks. p is that of a sign-flip test over images.</p>"
        + html_table(["", "difference", "95 % interval", "p"], rows)
        + (f"<p>No MRV: {escape(reason)}.</p>" if reason else "")
    )


def _published(results: dict) -> str:
    """The paper's rows, with this result in the same columns where it has them."""
    card = card_of(results["task"])
    recall = results.get("recall_in_folds", results["recall"])
    ours = []
    for column in card.published_columns:
        if column == "MRV":
            ours.append(results["mrv"]["mean"]["std"] if results["mrv"] else None)
        elif "@" in column:
            ours.append(float(np.mean([row[column] for row in recall.values()])))
        else:
            ours.append(recall[column]["mean"] if column in recall else None)

    def row(name: str, values: Sequence[float | None], kind: str = "") -> str:
        cells = "".join(f"<td>{'–' if value is None else f'{value:.2f}'}</td>" for value in values)
        return f'<tr class="{kind}"><td>{escape(name)}</td>{cells}</tr>'

    rows = [row(f"this run ({', '.join(results['languages'])})", ours, "ours")]
    rows += [row(f"{name} (quoted)", values) for name, values in card.published.items()]
    return (
        "<h2>Beside the paper</h2><p>Rows marked as quoted are copied from arXiv 2406.18254, not measured here. "
        "They compare only where task, split and languages are the same.</p>"
        + html_table(["", *card.published_columns], rows)
    )


def _thumbnail(image: Image.Image) -> bytes:
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=80)
    return buffer.getvalue()
