"""What reports are made of: one file without network, light or dark as its reader has it, that prints as well."""

import base64
import io
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from data_scripts.check import LITERAL_TEXT
from data_scripts.files import written_whole

WIDE = 6  # inches

STYLE = """
:root { color-scheme: light dark; --text: #1c2128; --soft: #59636e; --line: #d5dae0; --page: #fff; --card: #f5f7f9 }
@media (prefers-color-scheme: dark) {
  :root { --text: #e8ebee; --soft: #9aa5b1; --line: #353c45; --page: #14171b; --card: #1d2228 } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 62rem; padding: 1.5rem 1rem 4rem; background: var(--page); color: var(--text);
  font: 1rem/1.5 system-ui, sans-serif }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0 0 .3rem } h2 { font-size: 1.2rem; margin: 2.6rem 0 .4rem }
p { max-width: 44rem; margin: .4rem 0 1rem; overflow-wrap: anywhere }
.soft, figcaption { color: var(--soft); font-size: .9rem }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(10rem, 1fr)); gap: .8rem; margin: 1.2rem 0 }
.card { background: var(--card); border-radius: .6rem; padding: .8rem 1rem }
.card b { display: block; font-size: 1.7rem; line-height: 1.2; font-variant-numeric: tabular-nums }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr)); gap: 1.5rem }
figure { margin: 0; break-inside: avoid } figure img { width: 100%; max-width: 34rem; height: auto; display: block }
figure.wide { grid-column: 1 / -1 } figure.wide img { max-width: none }
.scroll { overflow-x: auto; margin-top: 1rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem }
th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap }
th:first-child, td:first-child { text-align: left } td small { color: var(--soft); display: block; font-size: .72rem }
.fits { width: 100% } .fits th, .fits td { white-space: normal; vertical-align: top; padding: .3rem .5rem }
.fits td:first-child { overflow-wrap: anywhere; min-width: 8rem } .fits small { white-space: nowrap }
@media (max-width: 44rem) {
  .fits thead { display: none } .fits, .fits tbody, .fits tr, .fits td { display: block }
  .fits tr { border-bottom: 2px solid var(--line); padding: .5rem 0 }
  .fits td { display: flex; justify-content: space-between; gap: .5rem; border: 0; padding: .15rem 0 }
  .fits td::before { content: attr(data-label); color: var(--soft) }
  .fits td:first-child { font-weight: 600; text-align: left } .fits td:first-child::before { content: none } }
tr.ours td { font-weight: 600 } tr.soft td { color: var(--soft) }
.note { background: var(--card); border-left: .25rem solid #d98324; border-radius: .3rem; padding: .5rem .8rem }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(18rem, 100%), 1fr)); gap: 1rem }
.item { border: 1px solid var(--line); border-radius: .6rem; overflow: hidden; break-inside: avoid }
.item img { width: 100%; height: 11rem; object-fit: contain; background: var(--card); display: block }
.item ul { list-style: none; margin: 0; padding: .6rem .8rem; font-size: .85rem }
.item li { display: grid; grid-template-columns: 2rem 1fr auto; gap: .4rem; padding: .1rem 0; overflow-wrap: anywhere }
.item i { color: var(--soft); font-style: normal } .item b { font-variant-numeric: tabular-nums }
@media print { :root { --text: #000; --soft: #444; --line: #bbb; --page: #fff; --card: #f3f3f3 } body { padding: 0 } }
"""


def write_page(path: Path, title: str, parts: Sequence[str]) -> None:
    """A page of parts that are HTML."""
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head><body>'
        + "\n".join(parts)
        + "</body></html>\n"
    )
    with written_whole(path) as unfinished:
        unfinished.write_text(page, encoding="utf-8", errors="backslashreplace")  # a name may be no Unicode


def draw_figure(plot: Callable[[], Figure], name: str, caption: str, output_dir: Path) -> str:
    """Draws a plot for light and for dark pages, and writes it as PNG; one that is wide takes the page's width."""
    sources = {}
    for theme, ink in (("light", "#1c2128"), ("dark", "#e8ebee")):
        settings = dict.fromkeys(
            ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), ink
        )
        spines = {"axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True}
        with matplotlib.rc_context(settings | spines | LITERAL_TEXT | {"axes.facecolor": "none"}):
            drawn = plot()
            buffer = io.BytesIO()
            drawn.savefig(buffer, format="svg", transparent=True)
            if theme == "light":
                with written_whole(output_dir / f"{name}.png") as path:
                    drawn.savefig(path, format="png", dpi=160, facecolor="white")
        sources[theme] = data_uri("image/svg+xml", buffer.getvalue())
    wide = ' class="wide"' if drawn.get_figwidth() > WIDE else ""
    return (
        f'<figure{wide}><picture><source media="screen and (prefers-color-scheme: dark)" srcset="{sources["dark"]}">'
        f'<img src="{sources["light"]}" alt="{escape(caption)}"></picture>'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def html_table(columns: Sequence[str], rows: Sequence[str], kind: str = "") -> str:
    """A table; of the kind `fits` one that wraps its cells, and on narrow pages shows each row as a list of them."""
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody>"
    return f'<div class="scroll"><table class="{kind}">{body}</table></div>'


def notes_box(notes: Sequence[str]) -> str:
    """A box for each sentence."""
    return "".join(f'<p class="note">{escape(note)}.</p>' for note in notes)


def data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
