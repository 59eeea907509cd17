"""report.html of a comparison of languages without labels."""

import io
from html import escape
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from ccrk.retrieval.html import data_uri, draw_figure, html_table, write_page
from ccrk.search.consistency import MEASURES
from ccrk.search.store import Store, picture_id
from data_scripts.images import read_image

SHOWN = 5  # pictures of each language
THUMBNAIL = 96  # pixels
COLOR = "#3f7fc4"
STYLE = """<style>
.query { border-top: 1px solid var(--line); padding: .8rem 0; break-inside: avoid }
.query div { display: grid; grid-template-columns: 2.2rem minmax(8rem, 1fr) auto; gap: .6rem; align-items: center }
.query i { color: var(--soft); font-style: normal } .query span { display: flex; gap: .25rem }
.query img { width: 4rem; height: 3rem; object-fit: cover; border-radius: .25rem; background: var(--card) }
@media (max-width: 40rem) { .query div { grid-template-columns: 2.2rem 1fr } .query span { grid-column: 1 / -1 }
  .query img { width: 18% } }
</style>"""


def write_report(results: dict, store: Store, output_dir: Path) -> None:
    """Writes report.html, overlap.png and overlap_of_pairs.png.

    Args:
        results: the content of results.json.
        store: of the index, for the stored pictures.
    """
    everything, pivot = results["all"], results["pivot"]
    parts = [
        f"<h1>Do {len(results['languages'])} languages find the same pictures?</h1>",
        f'<p class="soft">{escape(results["model"])} · {results["pictures"]:,} pictures, {results["queries"]:,} '
        "queries · no labels · intervals are 95 % (bootstrap over queries)</p>",
        _translated(results),
        STYLE,
        '<div class="cards">',
        f"<div class=card><b>{everything['overlap@10']['mean']:.2f}</b>of the first ten in common, mean of all pairs "
        "of languages; 1 is best</div>",
        f"<div class=card><b>{everything['rbo']['mean']:.2f}</b>rank-biased overlap; 1 is best</div>",
        f"<div class=card><b>{everything['rank_drift']['mean']:,.1f}</b>ranks that a picture of the first ten moves; "
        "0 is best</div>",
        "</div>",
        f"<h2>Against {escape(pivot)}</h2><p>How alike each language searches to the pivot, on the same queries.</p>",
        '<div class="plots">',
        draw_figure(lambda: plot_overlap(results), "overlap", "Overlap of the first ten with the pivot", output_dir),
        draw_figure(
            lambda: plot_pairs(results), "overlap_of_pairs", "Overlap of the first ten, of all pairs", output_dir
        ),
        "</div>",
        _table(results["against_pivot"]),
        "<h2>Among all</h2><p>The mean of each language's pairs with the others.</p>",
        _table(results["among_all"]),
        "<h2>Where they differ most</h2>",
        _gallery(results, store),
    ]
    write_page(output_dir / "report.html", "Consistency of languages", parts)


def _translated(results: dict) -> str:
    if not (translated := results["translated"]):
        return ""
    counts = ", ".join(f"{language} {count:,}" for language, count in translated["queries"].items()) or "none"
    return (
        f'<p class="soft">Translated from {escape(results["pivot"])} by {escape(translated["model"])}, as queries.csv '
        f"has them: {escape(counts)}. What its mistakes cost is in the figures.</p>"
    )


def plot_overlap(results: dict) -> Figure:
    """Overlap at 10 with the pivot, with its interval, a row per language."""
    rows = results["against_pivot"]
    figure = Figure(figsize=(4.8, 0.9 + 0.34 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    for place, summary in enumerate(rows.values()):
        value = summary["overlap@10"]
        if value["mean"] is not None:
            low, high = (value[end] if value[end] is not None else value["mean"] for end in ("low", "high"))
            axes.errorbar(
                value["mean"], place, xerr=[[value["mean"] - low], [high - value["mean"]]], fmt="o", color=COLOR
            )
    axes.set(yticks=range(len(rows)), yticklabels=list(rows), xlabel="overlap@10", ylim=(len(rows) - 0.5, -0.5))
    axes.grid(axis="x", alpha=0.25)
    return figure


def plot_pairs(results: dict) -> Figure:
    """Language × language: mean overlap at 10."""
    languages = results["languages"]
    table = np.full((len(languages), len(languages)), np.nan)
    for pair in results["pairs"]:
        one, other = (languages.index(language) for language in pair["languages"])
        if pair["overlap@10"] is not None:
            table[one, other] = table[other, one] = pair["overlap@10"]
    side = max(4.8, 0.12 * len(languages))
    figure = Figure(figsize=(side, 0.9 * side), layout="constrained")
    axes = figure.add_subplot()
    colors = axes.imshow(table, cmap="YlGnBu", vmin=0, vmax=1)
    ticks = range(len(languages))
    axes.set(xticks=ticks, xticklabels=languages, yticks=ticks, yticklabels=languages)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    if len(languages) <= 16:
        for (i, j), value in np.ndenumerate(table):
            if not np.isnan(value):
                color = "white" if value > 0.55 else "#1c2128"
                axes.text(j, i, f"{value:.2f}", ha="center", va="center", color=color, fontsize=8)
    figure.colorbar(colors, ax=axes, shrink=0.8, label="overlap@10").outline.set_visible(False)
    return figure


def _table(rows: dict) -> str:
    lines = []
    for language, summary in rows.items():
        cells = ""
        for name in MEASURES:
            value = summary[name]
            bounds = "" if value["low"] is None else f"<small>{value['low']:,.2f} – {value['high']:,.2f}</small>"
            cells += f"<td>{'–' if value['mean'] is None else format(value['mean'], ',.2f')}{bounds}</td>"
        lines.append(f"<tr><td>{escape(language)}</td>{cells}<td>{summary['queries']:,}</td></tr>")
    return html_table(["", "overlap@10", "rank-biased overlap", "rank drift", "queries"], lines)


def _gallery(results: dict, store: Store) -> str:
    items = []
    for different in results["most_different"]:
        ids = {picture_id(path) for paths in different["pictures"].values() for path in paths[:SHOWN]}
        jpegs = store.jpegs(sorted(ids))
        lines = ""
        for language, paths in different["pictures"].items():
            pictures = "".join(_thumbnail(jpegs[picture_id(path)], path) for path in paths[:SHOWN])
            lines += (
                f'<div><i>{escape(language)}</i><q lang="{escape(language)}" dir="auto">'
                f"{escape(different['queries'][language])}</q><span>{pictures}</span></div>"
            )
        items.append(f'<div class="query"><p class="soft">overlap {different["overlap@10"]:.2f}</p>{lines}</div>')
    return "".join(items) or "<p>Nowhere: all languages find the same first ten.</p>"


def _thumbnail(jpeg: bytes, path: str) -> str:
    picture = read_image(io.BytesIO(jpeg), where=path)
    picture.thumbnail((2 * THUMBNAIL, THUMBNAIL), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=75)
    return f'<img src="{data_uri("image/jpeg", buffer.getvalue())}" alt="{escape(path)}" title="{escape(path)}">'
