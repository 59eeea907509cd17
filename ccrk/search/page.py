"""The page: a query in one language or several side by side, or a picture, and what is found."""

import math
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before it is imported: nothing of this leaves the machine
# Gradio's statistics of events, which the page does not show, fail on a session's name that is not Unicode.
os.environ["GRADIO_ANALYTICS_CACHE_FREQUENCY"] = str(sys.maxsize)

import gradio as gr
import numpy as np
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from ccrk.encoders import needs_language
from ccrk.search.consistency import DEPTH, fused
from ccrk.search.index import PictureIndex
from ccrk.search.query import Found
from ccrk.search.serve import MAX_K, MAX_TEXT, MAX_UPLOAD, picture_url
from data_scripts.captions import is_usable
from data_scripts.cli import one_line
from data_scripts.images import BadImage

# Uploads lie where no other user of the machine can read or write, and are deleted when the process ends.
UPLOADS = tempfile.TemporaryDirectory(prefix="ccrk-uploads-")
os.environ["GRADIO_TEMP_DIR"] = UPLOADS.name

MAX_UPLOADS = 200  # images kept at a time
KEPT_SECONDS = 600  # how long each is kept

MAX_LANGUAGES = 12
SHOWN = 24

STYLE = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
SCRIPT = (Path(__file__).parent / "page.js").read_text(encoding="utf-8")
# What the page asks Gradio for. Gradio has fifty routes more, which fetch addresses, run code and serve files.
PATHS = re.compile(
    r"/|/(assets|static)/(?!.*\.\.)[ -~]{1,200}|/(theme\.css|favicon\.ico)"
    r"|/gradio_api/(info|upload|upload_progress|queue/join|queue/data)"
)
FILE, UPLOAD, EVENTS = "/gradio_api/file=", "/gradio_api/upload", "/gradio_api/queue/data"
FONTS = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}  # none is downloaded


class Page(gr.Blocks):
    """The page, which opens no file but those that were uploaded to it.

    Gradio itself opens, copies, serves or downloads whatever file or address stands in an event's inputs, of whatever
    kind the component is.
    """

    async def preprocess_data(self, block_fn: Any, inputs: list, *args, **options) -> list:
        inputs = [self._plain(value) for value in inputs]
        try:
            return await super().preprocess_data(block_fn, inputs, *args, **options)
        except (gr.Error, TypeError, ValueError) as error:  # in place of Gradio's traceback
            raise gr.Error("This request is malformed.", print_exception=False) from error

    def _plain(self, value: Any) -> Any:
        """A text, a number, or the path of an upload; gr.Error for all else."""
        if isinstance(value, str):
            return value.encode(errors="replace").decode()  # JSON may hold halves of characters, which no answer can
        if value is None or isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
            return value
        path = value.get("path") if isinstance(value, dict) else None
        if not self.is_upload(path):
            raise gr.Error("This file was not uploaded here.", print_exception=False)
        return {"path": path, "meta": {"_type": "gradio.FileData"}}

    def is_upload(self, path: Any) -> bool:
        return isinstance(path, str) and path in self.upload_file_set


class PathsOfPage:
    """Lets requests through to Gradio that the page makes; 404 for all others, 429 for too many uploads."""

    def __init__(self, app: ASGIApp, page: Page):
        self.app, self.page = app, page
        self.arriving = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "/")  # there is none at the start and the end of the server's life
        if path == UPLOAD:
            await self._upload(scope, receive, send)
            return
        is_upload = path.startswith(FILE) and self.page.is_upload(path.removeprefix(FILE))
        known = is_upload or (PATHS.fullmatch(path) and (path != EVENTS or self._is_session(scope)))
        await (self.app if known else PlainTextResponse("Not Found", 404))(scope, receive, send)

    async def _upload(self, scope: Scope, receive: Receive, send: Send) -> None:
        kept = sum(map(os.path.exists, list(self.page.upload_file_set)))
        if kept + self.arriving >= MAX_UPLOADS:
            answer = PlainTextResponse("too many images were uploaded; wait ten minutes", 429)
            await answer(scope, receive, send)
            return
        self.arriving += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self.arriving -= 1
            # Gradio forgets the files of an upload that was broken off. It deletes them with those that it knows.
            self.page.upload_file_set.update(map(str, Path(UPLOADS.name).glob("tmp*")))

    def _is_session(self, scope: Scope) -> bool:
        """Whether someone awaits events; Gradio would answer 200 and then log a traceback."""
        return Request(scope).query_params.get("session_hash") in self.page._queue.pending_messages_per_session


def mount_page(app: FastAPI, index: PictureIndex) -> None:
    """Adds the page to an application of `ccrk.search.serve.make_app`."""

    thresholds = index.store.thresholds()

    def search(text: str, others: str, k: float, rerank: bool, language: str | None) -> Iterator[str]:
        """What is found, as it comes: by cosine, and then re-ranked."""
        queries = [line.strip() for line in [text or "", *(others or "").splitlines()] if line.strip()]
        if not queries:
            yield _message("Type what is to be seen in the picture, in any language.")
            return
        if len(queries) > MAX_LANGUAGES or any(len(query) > MAX_TEXT for query in queries):
            yield _message(f"At most {MAX_LANGUAGES} queries of {MAX_TEXT:,} characters.")
            return
        if wrong := [query for query in queries if not is_usable(query)]:
            yield _message(f"There are no words in {wrong[0]!r}.")
            return
        if needs_language(index.encoder) and (not language or len(queries) > 1):
            yield _message(
                "This model needs the language of each query: use query --language, or /api/search?language="
            )
            return
        k = min(int(k), MAX_K)
        for depth in (0, max(k, DEPTH)) if rerank and index.can_rerank else (0,):
            try:
                with app.state.lock:
                    found = [index.search(query, max(k, DEPTH), depth, language=language) for query in queries]
            except ValueError as error:  # of a damaged index, or a language that the model does not know
                yield _message(str(error))
                return
            if len(queries) == 1:
                yield one_column(queries[0], found[0][:k], None if depth else thresholds.get(language))
            else:
                yield side_by_side(queries, found, k)

    def by_picture(upload: dict | None, k: float) -> str:
        if upload is None:
            return ""
        try:
            image = Path(upload["path"]).read_bytes()
        except FileNotFoundError:
            return _message("This image was uploaded too long ago. Drop it again.")
        try:
            with app.state.lock:
                found = index.search(image, min(int(k), MAX_K))
        except BadImage as error:
            return _message(f"This cannot be read as a picture: {error.reason}.")
        except ValueError as error:  # of a damaged index
            return _message(str(error))
        return one_column("The picture that was given", found)

    def more_like_this(k: float, event: gr.EventData) -> str:
        name = str(event._data.get("id", "")) if isinstance(event._data, dict) else ""
        try:
            with app.state.lock:
                vector = index.store.vector(name)
                found = index.nearest(vector, min(int(k), MAX_K)) if vector is not None else []
        except ValueError as error:  # of a damaged index
            return _message(str(error))
        if not found:
            return _message("This picture is no longer in the index.")
        path = next((picture.path for picture in found if picture.id == name), "the picture")
        return one_column(f"More like {path}", found)

    with Page(title="Search", analytics_enabled=False, delete_cache=(60, KEPT_SECONDS)) as page:
        gr.HTML(f"<h1>Search</h1><p>{index.store.pictures.count_rows():,} pictures</p>", elem_id="heading")
        with gr.Row(elem_id="box"):
            text = gr.Textbox(
                label="What is to be seen, in any language",
                placeholder="a dog on a beach",
                max_length=MAX_TEXT,
                elem_id="query",
                autofocus=True,
                scale=4,
            )
            button = gr.Button("Search", variant="primary", scale=0, min_width=110)
        with gr.Accordion("The same in other languages, or by a picture", open=False, elem_id="more"):
            with gr.Row():
                others = gr.Textbox(
                    label="The same query in other languages, one a line",
                    lines=4,
                    max_length=MAX_LANGUAGES * MAX_TEXT,
                    elem_id="others",
                )
                picture = gr.Image(
                    label="A picture",
                    sources=["upload", "clipboard"],
                    height=180,
                    elem_id="picture",
                )
            with gr.Row():
                k = gr.Slider(1, MAX_K, SHOWN, step=1, label="Pictures")
                language = gr.Dropdown(
                    list(thresholds),
                    value=None,
                    label="Language of the query, to mark what is likely",
                    visible=bool(thresholds),
                    elem_id="language",
                )
                rerank = gr.Checkbox(label="Re-rank by the fusion encoder", visible=index.can_rerank)
        results = gr.HTML(elem_id="results", js_on_load=SCRIPT, apply_default_css=False)
        options = {"outputs": results, "show_progress": "minimal", "api_visibility": "private"}
        gr.on([text.submit, button.click], search, [text, others, k, rerank, language], **options)
        picture.change(by_picture, [picture, k], preprocess=False, **options)  # Gradio itself decodes nothing
        results.click(more_like_this, k, **options)

    gr.mount_gradio_app(
        app,
        page.queue(max_size=64),
        path="/",
        max_file_size=MAX_UPLOAD,
        show_error=False,  # whose texts name folders of this machine
        theme=gr.themes.Base(**FONTS),
        css=STYLE,
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        mcp_server=False,
    )
    page.has_launched = True  # which `launch` would say; Gradio checks no path before
    gradio = app.routes[-1].app
    gradio.add_middleware(PathsOfPage, page=page)
    gradio.add_exception_handler(KeyError, _no_such_part)
    for kind in (RequestValidationError, TypeError, ValueError, ClientDisconnect):
        gradio.add_exception_handler(kind, _malformed)


def _no_such_part(request: Request, error: Exception) -> PlainTextResponse:
    """In place of Gradio's traceback: a request names an event or a part that the page does not have."""
    return PlainTextResponse("Not Found", 404)


def _malformed(request: Request, error: Exception) -> PlainTextResponse:
    """In place of Gradio's traceback, and of an answer that repeats the request, which fails for NaN."""
    return PlainTextResponse("the request is malformed", 422)


def one_column(title: str, found: Sequence[Found], least: float | None = None) -> str:
    """The pictures of one query, best first.

    Args:
        least: the score from which one is likely, where that is known.
    """
    cards = ""
    for picture in found:
        is_likely = least is None or picture.score >= least
        mark = "" if is_likely else "<span>not likely</span>"
        cards += _card(picture, f"<b>{picture.rank}</b><span>{picture.score:.3f}</span>{mark}", is_likely)
    nothing = least is not None and not any(picture.score >= least for picture in found)
    note = "<p>Nothing here is likely to be it.</p>" * nothing
    return _region(f'<h2 dir="auto">{escape(one_line(title))}</h2>{note}<ol class="grid">{cards}</ol>')


def side_by_side(queries: Sequence[str], found: Sequence[Sequence[Found]], k: int) -> str:
    """A column for each query, and before them their fused order; each picture with its rank in every one.

    Args:
        found: of each query the first `DEPTH` pictures at least, if there are as many.
    """
    names = [str(number) for number in range(1, len(queries) + 1)]
    ranks = [{picture.id: picture.rank for picture in column} for column in found]
    pictures = {picture.id: picture for column in found for picture in column}
    ids = sorted(pictures, key=lambda name: pictures[name].path)
    place = {name: number for number, name in enumerate(ids)}
    order = fused([np.array([place[picture.id] for picture in column]) for column in found])
    together = [pictures[ids[number]] for number in order[:k].tolist()]
    columns = [("All together", "", together)]
    columns += [(query, name, column[:k]) for query, name, column in zip(queries, names, found, strict=True)]

    def of_picture(picture: Found, rank: int) -> str:
        own = [column.get(picture.id) for column in ranks]
        beyond = max(len(column) for column in ranks)
        shown = "".join(
            f"<span><i>{name}</i> {value if value is not None else f'&gt;{beyond}'}</span>"
            for name, value in zip(names, own, strict=True)
        )
        known = [value if value is not None else beyond + 1 for value in own]
        at_least = "≥" if None in own else ""
        return (
            f'<b>{rank}</b><span class="ranks" aria-label="rank in each query">{shown}</span>'
            f"<span>drift {at_least}{max(known) - min(known)}</span>"
        )

    sections = ""
    for query, name, column in columns:
        cards = "".join(_card(picture, of_picture(picture, rank)) for rank, picture in enumerate(column, start=1))
        number = f"<i>{name}</i> " if name else ""
        sections += (
            f'<section><h2>{number}<span dir="auto">{escape(one_line(query))}</span></h2>'
            f'<ol class="grid">{cards}</ol></section>'
        )
    return _region(f'<div class="columns" tabindex="0" role="group" aria-label="queries">{sections}</div>')


def _card(picture: Found, notes: str, is_likely: bool = True) -> str:
    path = escape(one_line(picture.path))
    kind = "likely" if is_likely else "unlikely"
    label = f'title="More like {path}" aria-label="More like {path}"'
    return (
        f'<li class="{kind}"><button type="button" data-id="{escape(picture.id)}" {label}>'
        f'<img src="{escape(picture_url(picture.id))}" alt="{path}" loading="lazy"></button>'
        f'<div class="notes">{notes}</div><div class="path" dir="auto" title="{path}">{path}</div></li>'
    )


def _region(contents: str) -> str:
    return f'<div class="found" role="region" aria-label="results" aria-live="polite">{contents}</div>'


def _message(text: str) -> str:
    return _region(f'<p dir="auto">{escape(one_line(text))}</p>')
