"""The server of an index: `GET /api/search`, the stored pictures and the page; nothing else of the machine."""

import hmac
import ipaddress
import threading
import time
import webbrowser
from typing import Annotated
from urllib.parse import parse_qsl, urlencode

import uvicorn
from fastapi import FastAPI, HTTPException, Query, Response
from starlette.datastructures import MutableHeaders
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketClose

from ccrk.search.index import PictureIndex
from ccrk.search.query import Filter

MAX_K = 200
MAX_TEXT = 1_000  # characters of a query
MAX_UPLOAD = 20 * 1024**2  # bytes of an image
MAX_BODY = MAX_UPLOAD + 64 * 1024  # with the form around it
MIN_TOKEN = 8  # characters
COOKIE = "ccrk_token"
# Neither the page nor what it shows can make a browser ask another machine for anything, and no other site can embed
# or watch what is here. Gradio's own scripts stand in the page, and it makes functions of its templates.
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' "
    "'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; frame-ancestors 'none'; "
    "base-uri 'self'; form-action 'self'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Guard:
    """Answers requests of this site's own pages, of people and of programs that know the token; adds `HEADERS`.

    Requests that another website's page makes are refused, except for opening a link. The token comes as
    `Authorization: Bearer TOKEN`, or once as `?token=TOKEN`, which is then kept as a cookie. All this is decided
    before a byte of the body is read.

    Args:
        token: None lets everybody in.
    """

    def __init__(self, app: ASGIApp, token: str | None = None):
        self.app, self.token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] == "websocket":
            await WebSocketClose()(scope, receive, send)  # neither the API nor the page has one
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(HEADERS)
                headers.setdefault("Cache-Control", "private")  # no proxy keeps what is behind a token
            await send(message)

        request = Request(scope)
        answer = refuse_other_sites(request) or self._ask_for_token(request) or refuse_large_body(request)
        await (answer or self.app)(scope, receive, send_with_headers)

    def _ask_for_token(self, request: Request) -> Response | None:
        """What to answer instead, if anything."""
        if self.token is None:
            return None
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self._is_token(given.strip()):
            return None
        if self._is_token(request.cookies.get(COOKIE, "")):
            return None
        query = parse_qsl(request.url.query, keep_blank_values=True)
        if any(name == "token" and self._is_token(value) for name, value in query):
            rest = urlencode([pair for pair in query if pair[0] != "token"])
            # Two slashes at the beginning would name another machine.
            answer = RedirectResponse("/" + request.scope["path"].lstrip("/") + ("?" + rest if rest else ""))
            # Not "strict", which holds the cookie back when the link was opened from a mail or a chat: the browser
            # takes the redirect for a request of that other site. `refuse_other_sites` does what "strict" would.
            answer.set_cookie(COOKIE, self.token, httponly=True, samesite="lax")
            return answer
        return PlainTextResponse("open the address with ?token=… that the server was started with", 401)

    def _is_token(self, text: str) -> bool:
        return hmac.compare_digest(text.encode(), self.token.encode())


def refuse_other_sites(request: Request) -> Response | None:
    """An answer to what the page of another website asks for: images, forms, scripts, frames; None for all else.

    Browsers name the site that asks; other programs do not. A link or an address that a person opens is let through,
    wherever it comes from. Other ports of this machine are other sites.
    """
    headers = request.headers
    site = headers.get("sec-fetch-site", "none")
    is_link = (
        request.method in ("GET", "HEAD")
        and headers.get("sec-fetch-mode") == "navigate"
        and headers.get("sec-fetch-dest") == "document"
    )
    origin = headers.get("origin")
    is_own = origin is None or origin.partition("://")[2].lower() == headers.get("host", "").lower()
    if (site in ("same-origin", "none") or is_link) and is_own:
        return None
    return PlainTextResponse("requests from other websites are refused; open the address of this server itself", 403)


def refuse_large_body(request: Request) -> Response | None:
    """An answer to a body above `MAX_BODY`, or of unknown size; None for all else."""
    if "transfer-encoding" in request.headers:
        return PlainTextResponse("give the Content-Length", 411)
    length = request.headers.get("content-length", "0")
    if not length.isdecimal():
        return PlainTextResponse("the Content-Length is not a number", 400)
    if int(length) > MAX_BODY:
        return PlainTextResponse(f"more than {MAX_UPLOAD // 1024**2} MB", 413)
    return None


def make_app(index: PictureIndex, token: str | None = None, hosts: list[str] | None = None) -> FastAPI:
    """The application, without the page.

    Args:
        token: that every request must bring; None for none.
        hosts: names by which requests may ask for this server; all by default. Another site's page could otherwise
            give its own name this machine's address, and read the answers.

    Raises:
        ValueError: see `check_token`.
    """
    check_token(token)
    app = FastAPI(title="CCRK search", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts or ["*"])
    app.add_middleware(Guard, token=token)
    lock = app.state.lock = threading.Lock()  # one search at a time: each takes all cores

    @app.get("/api/search")
    def search(
        q: Annotated[str, Query(min_length=1, max_length=MAX_TEXT)],
        k: Annotated[int, Query(ge=1, le=MAX_K)] = 20,
        rerank: Annotated[int, Query(ge=0, le=MAX_K)] = 0,
        folder: Annotated[str | None, Query(max_length=MAX_TEXT)] = None,
        since: Annotated[str | None, Query(max_length=40)] = None,
        until: Annotated[str | None, Query(max_length=40)] = None,
        language: Annotated[str | None, Query(max_length=40)] = None,
    ) -> dict:
        started = time.perf_counter()
        try:
            with lock:
                found = index.search(q, k, rerank, Filter.of(folder, since, until), language=language)
        except ValueError as error:
            raise HTTPException(400, str(error)) from error
        results = [
            {
                "path": picture.path,
                "score": picture.score,
                "rank": picture.rank,
                "picture": picture_url(picture.id),
            }
            for picture in found
        ]
        return {"query": q, "results": results, "milliseconds": round(1000 * (time.perf_counter() - started), 1)}

    @app.get("/picture/{name}")
    def stored_picture(name: str) -> Response:
        jpegs = index.store.jpegs([name.removesuffix(".jpg")])
        if not jpegs:
            raise HTTPException(404, "no such picture is in the index")
        (jpeg,) = jpegs.values()
        return Response(jpeg, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600"})

    return app


def picture_url(name: str) -> str:
    return f"/picture/{name}.jpg"


def check_token(token: str | None) -> None:
    """Raises ValueError for a token that is soon guessed, or that neither a header nor a cookie can hold."""
    if token is None:
        return
    if len(token) < MIN_TOKEN:
        raise ValueError(f"a --token of less than {MIN_TOKEN} characters is soon guessed; give a longer one")
    if not (token.isascii() and token.isprintable() and token == token.strip()):
        raise ValueError(
            "--token must consist of ASCII letters, digits and signs, without a space at either end; make one with "
            "python -c 'import secrets; print(secrets.token_urlsafe())'"
        )


def check_host(host: str, token: str | None) -> None:
    """Raises ValueError where others could reach the server and no token is asked of them; see also `check_token`."""
    check_token(token)
    if token is None and not is_loopback(host):
        raise ValueError(f"on {host} other machines reach the server; give --token, which they must know")


def is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def serve(
    index: PictureIndex,
    host: str = "127.0.0.1",
    port: int = 7860,
    token: str | None = None,
    open_page: bool = False,
) -> None:
    """Serves API and page until it is interrupted.

    Raises:
        ValueError: see `make_app` and `check_host`; or the index is damaged.
    """
    from ccrk.search.page import mount_page

    check_host(host, token)
    model = "reranker" if index.can_rerank else "encoder"
    for part in (model,) if index.store.is_approximate else (model, "contents"):
        getattr(index, part)  # is opened and checked before the first request
    name = f"[{host}]" if ":" in host else host  # as it stands in addresses
    app = make_app(index, token, ["localhost", "127.0.0.1", name] if is_loopback(host) else None)
    mount_page(app, index)
    address = f"http://{name}:{port}/"
    address += f"?{urlencode({'token': token})}" if token else ""
    print(address, flush=True)
    if open_page:
        threading.Timer(1, webbrowser.open, [address]).start()
    # Whoever sends an upload slowly could otherwise keep the server from ending.
    uvicorn.run(app, host=host, port=port, log_level="warning", access_log=False, timeout_graceful_shutdown=2)
