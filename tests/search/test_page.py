"""What the page lets through to Gradio: events, uploads and files, ordinary and hostile."""

import json
import os
import re
import socket
import time
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
from search_builders import picture

from ccrk.search.store import picture_id

pytest_plugins = ["served"]


@pytest.fixture(scope="module")
def hostile(index, tmp_path_factory):
    """What nobody outside may read → something that its contents hold."""
    folder = tmp_path_factory.mktemp("outside")
    text, image, fifo = folder / "secret.txt", picture(folder / "image.png", (1, 2, 3)), folder / "fifo"
    text.write_text("this is private")
    os.mkfifo(fifo)
    os.symlink(text, folder / "link.png")
    relative = os.path.relpath(text)
    return {
        **dict.fromkeys([str(text), relative, f"{folder}/../{folder.name}/secret.txt", f"file://{text}"], b"private"),
        **dict.fromkeys([str(folder / "link.png"), f"{index.location}/../../{folder.name}/secret.txt"], b"private"),
        str(image): image.read_bytes()[:40],
        "/proc/self/environ": b"PATH=",
        "/proc/self/cmdline": b"pytest",
        "/etc/passwd": b"root:",
        **dict.fromkeys([str(fifo), "/dev/zero", "/dev/stdin", str(folder), ".", ""], b"never read"),
        "http://127.0.0.1:9/a.png": b"never asked",
        "https://example.org/a.png": b"never asked",
    }


def routes_of(routes, before: str = ""):
    """Every (method, path) of an application and of what is mounted in it."""
    for route in routes:
        inner = getattr(route, "routes", None) or getattr(getattr(route, "original_router", None), "routes", None)
        if inner:
            yield from routes_of(inner, before + getattr(route, "path", ""))
        else:
            yield from ((method, before + route.path) for method in sorted(route.methods or ["GET"]))


def first_bytes(http: httpx.Client, method: str, url: str, **options) -> tuple[int, bytes]:
    """Status and beginning of an answer, which may have no end."""
    with http.stream(method, url, **options) as answer:
        return answer.status_code, next(answer.iter_bytes(), b"")


JSON = {"Content-Type": "application/json"}


def event(http: httpx.Client, function: int, data: list, about: dict | None = None) -> tuple[str, str]:
    """How an event of the page ended ("True", "False", or the status of its refusal), and what it brought."""
    session = f"s{time.monotonic_ns()}"
    body = {"data": data, "fn_index": function, "session_hash": session, "event_data": about}
    joined = http.post("gradio_api/queue/join", content=json.dumps(body), headers=JSON)
    if joined.status_code != 200:
        assert 400 <= joined.status_code < 500, joined.text
        return str(joined.status_code), joined.text
    with http.stream("GET", f"gradio_api/queue/data?session_hash={session}") as answer:
        for line in answer.iter_lines():
            if "process_completed" in line:
                return str(json.loads(line.removeprefix("data:"))["success"]), line
    raise AssertionError("the event has no end")


@pytest.mark.slow
def test_no_route_opens_a_path_of_the_disk(http, app, hostile, capfd):
    routes = sorted(set(routes_of(app.routes)))
    assert ("GET", "/gradio_api/file={path_or_url:path}") in routes and len(routes) > 50
    for method, template in routes:
        for path in hostile if "{" in template else list(hostile)[:1]:
            inside = re.sub(r"\{[^}]*\}", lambda _, path=path: quote(path, safe="/:"), template)
            named = {
                "path": path,
                "url": path,
                "deep_link": path,
                "page": path,
                "session_hash": "x",
                "upload_id": path,
            }
            body = {} if method in ("GET", "HEAD") else {"json": {"data": [named], **named}}
            status, beginning = first_bytes(http, method, inside, params=named, **body)
            assert status < 500, (method, template, path)
            assert hostile[path] not in beginning, (method, template, path)
    assert http.get("api/search?q=red").status_code == 200
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.slow
def test_no_event_opens_a_path_of_the_disk(http, hostile, capfd):
    ordinary = {0: ["red", "", 3, False, None], 1: [None, 3], 2: [3]}

    def refused(path: str, function: int, place: int, kind) -> None:
        data = ordinary[function]
        success, brought = event(http, function, [*data[:place], kind, *data[place + 1 :]])
        assert success == "False", (path, kind, brought)
        assert hostile[path].decode("latin-1") not in brought
        assert "/tmp" not in brought

    for path in hostile:
        file = {"path": path, "url": path, "orig_name": "a.png", "meta": {"_type": "gradio.FileData"}}
        refused(path, 1, 0, file)
    text = next(iter(hostile))
    file = {"path": text, "url": text, "orig_name": "a.svg", "meta": {"_type": "gradio.FileData"}}
    pixels = {**file, "url": "data:image/png;base64,AAAA"}
    for kind in ({**file, "is_stream": True}, pixels, {"path": text}, [file], {"a": {"b": file}}, {"path": [text]}):
        refused(text, 1, 0, kind)
    for function, data in ordinary.items():
        for place in range(len(data)):
            refused(text, function, place, file)
    assert event(http, 0, ordinary[0])[0] == "True"
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.slow
def test_malformed_events_are_refused(http, capfd):
    for function in (-1, 7, 10**30, None, "x", [1]):
        assert event(http, function, [])[0] in ("400", "404", "422")
    wrong = (b"", b"{", b"[" * 100_000, b"\xff\xfe", b'{"data": NaN}', b"null", b'{"data": {"path": "/etc/passwd"}}')
    for content in wrong:
        headers = {"Content-Type": "application/json"}
        answer = http.post("gradio_api/queue/join", content=content, headers=headers)
        assert 400 <= answer.status_code < 500, content[:20]
    for path in ("?page=x", "?deep_link=../../x", "?deep_link=%00", "gradio_api/queue/data", "picture/%00", "%ff"):
        assert http.get(path).status_code < 500
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("wrong", ["x", "\ud800", "\0", [], [1], {}, {"a": 1}, True, -1, 10**40, float("nan"), None])
def test_events_of_wrong_values_leave_no_traceback(http, wrong, capfd):
    for function, data in {0: ["red", "", 3, False, None], 1: [None, 3], 2: [3]}.items():
        for place in range(len(data)):
            event(http, function, [*data[:place], wrong, *data[place + 1 :]])
        for others in ([], data[:-1], [wrong]):
            event(http, function, others)
    body = {"data": ["red", "", 3, False, None], "fn_index": 0, "session_hash": wrong}
    http.post("gradio_api/queue/join", content=json.dumps(body), headers=JSON)
    assert event(http, 0, ["red", "", 3, False, None])[0] == "True"
    written = capfd.readouterr().err
    assert "Traceback" not in written and "exception was never retrieved" not in written


PART = b'--x\r\nContent-Disposition: form-data; name="files"'


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind, contents",
    [
        ("multipart/form-data; boundary=x", PART + b"\r\n\r\nabc\r\n--x--\r\n"),
        ("multipart/form-data; boundary=x", PART + b"; filename*=utf-8''%ff%fe.png\r\n\r\nabc\r\n--x--\r\n"),
        ("multipart/form-data; boundary=" + "x" * 500, b"--x"),
        ("multipart/form-data; boundary=", b"--x"),
        ("multipart/form-data", b"--x"),
        ("multipart/form-data; boundary=x", b"no part"),
        ("text/plain", b"abc"),
    ],
)
def test_malformed_uploads_are_refused(http, kind, contents, capfd):
    answer = http.post("gradio_api/upload", content=contents, headers={"Content-Type": kind})
    assert 400 <= answer.status_code < 500
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.slow
def test_what_is_not_there_leaves_no_traceback(http, capfd):
    for path in ("static/", "assets/", "picture/", "gradio_api/file=", "gradio_api/queue/data?session_hash="):
        for name in ("a" * 300, "a/" * 3000, "é" * 200, "unknown", "%ed%a0%80", "a%0a"):
            assert http.get(path + name).status_code == 404, (path, name)
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.slow
def test_an_upload_that_is_broken_off_is_deleted(http, app, address, capfd):
    from gradio.route_utils import delete_files_created_by_app

    from ccrk.search.page import UPLOADS

    page = app.routes[-1].app.get_blocks()
    with socket.create_connection((http.base_url.host, http.base_url.port)) as connection:
        start = f"POST /gradio_api/upload HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(PART) + 9_000_000}\r\n"
        start += "Content-Type: multipart/form-data; boundary=x\r\n\r\n"
        connection.sendall(start.encode() + PART + b'; filename="a.png"\r\n\r\n' + b"x" * 100_000)
        while not (files := list(Path(UPLOADS.name).glob("tmp*"))):
            time.sleep(0.05)
    while not {str(file) for file in files} <= page.upload_file_set:
        time.sleep(0.05)
    delete_files_created_by_app(page, age=None)  # as it does each minute with those of more than ten
    assert not any(file.exists() for file in files)
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.slow
def test_uploads_do_not_fill_the_disk(http, app, monkeypatch):
    kept = sum(map(os.path.exists, app.routes[-1].app.get_blocks().upload_file_set))
    monkeypatch.setattr("ccrk.search.page.MAX_UPLOADS", kept + 2)
    answers = [http.post("gradio_api/upload", files={"files": (f"{i}.png", b"upload %d" % i)}) for i in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert "wait ten minutes" in answers[2].text


@pytest.mark.slow
def test_an_upload_is_searched_by_and_shown_again(http, tmp_path, capfd):
    def upload(name: str, contents: bytes) -> dict:
        (path,) = http.post("gradio_api/upload", files={"files": (name, contents)}).json()
        return {"path": path, "meta": {"_type": "gradio.FileData"}}

    contents = picture(tmp_path / "blue.png", (0, 0, 250)).read_bytes()
    given = upload("ein Bild?#%.png", contents)
    success, brought = event(http, 1, [given, 3])
    assert success == "True" and 'title=\\"More like blue/' in brought
    assert http.get(f"gradio_api/file={quote(given['path'])}").content == contents
    assert http.get(f"gradio_api/file={quote(given['path'])}/../../secret").status_code == 404
    for name, damaged in (
        *(("a.png", b"not an image"), ("a.jpg", b""), ("a.svg", b"<svg/>"), ("a.gif", b"GIF89a"), ("a.txt", b"x")),
        *(("a.png", contents[:40]), ("a.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")),
    ):
        success, brought = event(http, 1, [upload(name, damaged), 3])
        assert success == "True" and "This cannot be read as a picture: " in brought
        assert "/tmp" not in brought
    os.unlink(given["path"])
    assert "uploaded too long ago" in event(http, 1, [given, 3])[1]
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.slow
def test_the_page_says_what_is_wrong_with_an_index(http, index, monkeypatch, tmp_path, capfd):
    def damaged(*_) -> None:
        raise ValueError("a vector is missing")

    contents = picture(tmp_path / "blue.png", (0, 0, 250)).read_bytes()
    (path,) = http.post("gradio_api/upload", files={"files": ("blue.png", contents)}).json()
    given = {"path": path, "meta": {"_type": "gradio.FileData"}}
    monkeypatch.setattr(index, "nearest", damaged)
    ways = ((0, ["red", "", 3, False, None]), (1, [given, 3]), (2, [3], {"id": picture_id("red/0.png")}))
    for function, *rest in ways:
        success, brought = event(http, function, *rest)
        assert success == "True" and ">a vector is missing<" in brought, brought
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.slow
def test_gradio_opens_nothing_else(address, index):
    answer = httpx.post(f"{address}gradio_api/upload", files={"files": ("a.jpg", b"x" * 21_000_000)})
    assert answer.status_code == 413
    outside = Path(index.location).parent / "secret.jpg"
    for path in ("/etc/passwd", outside, f"{index.location}/../secret.jpg", __file__):
        assert httpx.get(f"{address}gradio_api/file={path}").status_code in (403, 404)
    assert httpx.get(f"{address}gradio_api/proxy=https://example.org/a.jpg").status_code >= 400
    assert httpx.get(f"{address}gradio_api/info").json() == {"named_endpoints": {}, "unnamed_endpoints": {}}
