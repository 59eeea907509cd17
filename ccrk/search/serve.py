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
from starlette.datastructures import Headers
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ccrk.search.index import PictureIndex
from ccrk.search.query import Filter

MAX_K = 200
MAX_TEXT = 1_000  # characters of a query
MAX_UPLOAD = "20mb"
COOKIE = "ccrk_token"
# Neither the page nor what it shows can make a browser ask another machine for anything. Gradio's own scripts stand in
# the page, and it makes functions of its templates.
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' "
    "'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; frame-ancestors 'none'; "
    "base-uri 'self'; form-action 'self'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Guard:
    """Answers only who knows the token, and adds `HEADERS`.

    The token comes as `Authorization: Bearer TOKEN`, or once as `?token=TOKEN`, which is then kept as a cookie.

    Args:
        token: None lets everybody in.
    """

    def __init__(self, app: ASGIApp, token: str | None = None):
        self.app, self.token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message["headers"],
                    *((name.lower().encode(), value.encode()) for name, value in HEADERS.items()),
                ]
            await send(message)

        answer = self._refusal(scope) if self.token else None
        await (answer or self.app)(scope, receive, send_with_headers)

    def _refusal(self, scope: Scope) -> Response | None:
        """What to answer instead, if anything."""
        request = Request({**scope, "type": "http", "method": scope.get("method", "GET")})
        headers = Headers(scope=scope)
        given = headers.get("authorization", "").removeprefix("Bearer ") or request.cookies.get(COOKIE, "")
        if self._is_token(given):
            return None
        query = parse_qsl(scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True)
        if any(name == "token" and self._is_token(value) for name, value in query):
            rest = urlencode([pair for pair in query if pair[0] != "token"])
            answer = RedirectResponse(scope["path"] + ("?" + rest if rest else ""))
            answer.set_cookie(COOKIE, self.token, httponly=True, samesite="strict")
            return answer
        return PlainTextResponse("open the address with ?token=… that the server was started with", 401)

    def _is_token(self, text: str) -> bool:
        return hmac.compare_digest(text.encode(), self.token.encode())


def make_app(index: PictureIndex, token: str | None = None, hosts: list[str] | None = None) -> FastAPI:
    """The application, without the page.

    Args:
        token: that every request must bring; None for none.
        hosts: names by which requests may ask for this server; all by default. Another site's page could otherwise
            give its own name this machine's address, and read the answers.
    """
    app = FastAPI(title="CCRK search", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Guard, token=token)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts or ["*"])
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


def check_host(host: str, token: str | None) -> None:
    """Raises ValueError where others could reach the server and no token is asked of them."""
    if token is not None and len(token) < 8:
        raise ValueError("a --token of less than 8 characters is soon guessed; give a longer one")
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
    """Serves API and page until it is interrupted; see `make_app` and `check_host`."""
    from ccrk.search.page import mount_page

    check_host(host, token)
    getattr(index, "reranker" if index.can_rerank else "encoder")  # is opened before the first request
    app = make_app(index, token, ["localhost", "127.0.0.1", host] if is_loopback(host) else None)
    mount_page(app, index)
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}/"
    address += f"?{urlencode({'token': token})}" if token else ""
    print(address, flush=True)
    if open_page:
        threading.Timer(1, webbrowser.open, [address]).start()
    uvicorn.run(app, host=host, port=port, log_level="warning", access_log=False)
