"""The server and its page: what it answers, what it refuses, and in a browser what people do with it."""

import os
import shutil
import socket
import threading
import time
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
import uvicorn
from builders import write
from fastapi.testclient import TestClient
from search_builders import Colors, bring_up_to_date, picture

from ccrk.search import PictureIndex
from ccrk.search.__main__ import main
from ccrk.search.page import mount_page
from ccrk.search.serve import check_host, make_app
from ccrk.search.store import picture_id

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
HOSTILE = "<img src=x onerror=alert(1)> ${alert(2)} {{this}}.png"


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    folder = tmp_path_factory.mktemp("search")
    names = {f"{name}/{number}.png": (number, name) for number in range(8) for name in ("red", "green", "blue")}
    for path, (number, name) in names.items():
        color = {"red": (255 - number, 0, 0), "green": (0, 255 - number, 0), "blue": (0, 0, 255 - number)}[name]
        picture(folder / "photos" / path, color, size=(40 + number, 40))
    picture(folder / "photos" / HOSTILE, (128, 128, 0))
    write(folder / "secret.jpg", "not in the index")
    bring_up_to_date(folder / "photos", folder / "index")
    index = PictureIndex(folder / "index")
    index.encoder, index.can_rerank = Colors(), False
    index.store.write_thresholds([{"language": "de", "threshold": 0.9, "error": 0.1, "queries": 9}])
    return index


@pytest.fixture
def client(index):
    return TestClient(make_app(index))


def test_the_api_answers_as_the_command_does(client):
    answer = client.get("/api/search", params={"q": "rot", "k": 3})
    assert answer.status_code == 200
    contents = answer.json()
    assert contents["query"] == "rot"
    assert [found["rank"] for found in contents["results"]] == [1, 2, 3]
    assert all(found["path"].startswith("red/") for found in contents["results"])
    stored = client.get(contents["results"][0]["picture"])
    assert stored.headers["content-type"] == "image/jpeg"
    assert stored.content.startswith(b"\xff\xd8\xff")
    below = client.get("/api/search?q=rot&k=2&folder=blue").json()["results"]
    assert all(found["path"].startswith("blue/") for found in below)


@pytest.mark.parametrize(
    "query, status",
    [
        *(("q=red&k=0", 422), ("q=red&k=201", 422), ("q=red&k=x", 422), ("k=3", 422), ("q=", 422), ("q=...", 400)),
        *(("q=" + "a" * 1001, 422), ("q=red&since=soon", 400), ("q=red&rerank=5", 400), ("q=red&k=200", 200)),
    ],
)
def test_requests_are_bounded(client, query, status):
    assert client.get(f"/api/search?{query}").status_code == status


@pytest.mark.parametrize(
    "name",
    [
        *("../secret.jpg", "..%2fsecret.jpg", "%2e%2e/%2e%2e/secret.jpg", "/etc/passwd", "' OR '1'='1", "0" * 32),
        *(quote(HOSTILE, safe=""), "red/0.png", ""),
    ],
)
def test_pictures_are_served_from_the_index_alone(client, name):
    assert client.get(f"/picture/{name}").status_code == 404


def test_other_machines_need_the_token(index):
    check_host("127.0.0.1", None)
    check_host("0.0.0.0", "long enough")
    for host in ("0.0.0.0", "192.168.1.7", "photos.example.org", "::"):
        with pytest.raises(ValueError, match="give --token"):
            check_host(host, None)
    with pytest.raises(ValueError, match="less than 8 characters"):
        check_host("0.0.0.0", "short")

    client = TestClient(make_app(index, token="long enough"), follow_redirects=False)
    for path in ("/api/search?q=red", f"/picture/{picture_id('red/0.png')}.jpg", "/", "/config", "/?token=wrong"):
        assert client.get(path).status_code == 401
    headers = {"Authorization": "Bearer long enough"}
    assert client.get("/api/search?q=red", headers=headers).status_code == 200
    answer = client.get("/api/search?q=red&token=long%20enough")
    assert answer.headers["location"] == "/api/search?q=red"  # the token does not stay in the address
    assert "HttpOnly" in answer.headers["set-cookie"]
    assert client.get("/api/search?q=red").status_code == 200  # by the cookie


def test_another_site_cannot_ask_by_its_own_name(index):
    client = TestClient(make_app(index, hosts=["localhost", "127.0.0.1"]), base_url="http://evil.example.org")
    assert client.get("/api/search?q=red").status_code == 400


def test_serving_to_all_without_a_token_is_refused_in_one_line(index):
    with pytest.raises(SystemExit, match=r"on 0\.0\.0\.0 other machines reach the server; give --token"):
        main(["serve", index.location, "--host", "0.0.0.0"])


@pytest.fixture(scope="module")
def address(index):
    """The page, served."""
    app = make_app(index, hosts=["127.0.0.1"])
    mount_page(app, index)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{port}/"
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on this machine")
    with playwright.sync_playwright() as started:
        yield started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"] if os.getuid() == 0 else [])


@pytest.fixture
def page(browser, address):
    """A tab, with the addresses that it has asked for and what went wrong in it."""
    context = browser.new_context(viewport={"width": 400, "height": 800})
    page = context.new_page()
    page.asked, page.wrong = [], []
    page.on("request", lambda request: page.asked.append(request.url))
    page.on("pageerror", lambda error: page.wrong.append(str(error)))
    page.on("dialog", lambda dialog: (page.wrong.append("a dialog"), dialog.dismiss()))
    page.goto(address)
    page.wait_for_selector("#query textarea, #query input")
    yield page
    outside = [url for url in page.asked if not url.startswith((address, "data:", "blob:"))]
    context.close()
    assert not outside
    assert not page.wrong


def first_path(page, title: str) -> str:
    page.wait_for_selector(f'#results h2:has-text("{title}")')
    return page.locator("#results .path").first.inner_text()


@pytest.mark.slow
def test_type_and_go_on_by_keyboard(page):
    page.keyboard.type("rot")  # the box has the focus
    page.keyboard.press("Enter")
    assert first_path(page, "rot").startswith("red/")
    assert page.locator("#results [data-id]").count() == 24
    page.locator("#results [data-id]").first.focus()
    page.keyboard.press("ArrowRight")
    chosen = page.evaluate("document.activeElement.title")
    page.keyboard.press("Enter")
    assert first_path(page, chosen) == chosen.removeprefix("More like ")
    page.locator("#results [data-id]").first.focus()
    page.keyboard.press("/")
    page.keyboard.press("Control+A")
    page.keyboard.type("grün")
    page.keyboard.press("Enter")
    assert first_path(page, "grün").startswith("green/")
    assert page.evaluate("document.documentElement.scrollWidth") == 400  # a phone does not scroll sideways


@pytest.mark.slow
def test_several_languages_side_by_side(page):
    page.locator("#more button").first.click()
    page.fill("#others textarea", "grün\nأزرق")
    page.fill("#query textarea, #query input", "red")
    page.keyboard.press("Enter")
    assert first_path(page, "All together")
    assert page.locator("#results section h2").all_inner_texts()[1:] == ["1 red", "2 grün", "3 أزرق"]
    column = page.locator("#results section").nth(2)
    assert column.locator(".path").first.inner_text().startswith("green/")
    assert column.locator(".ranks").first.locator("span").nth(1).inner_text() == "2 1"
    ranks = [int(text.split()[1]) for text in column.locator(".ranks").first.locator("span").all_inner_texts()]
    assert column.locator(".notes").first.inner_text().endswith(f"drift {max(ranks) - min(ranks)}")
    arabic = page.locator("#results section h2 span").nth(3)
    assert arabic.evaluate("e => getComputedStyle(e).direction") == "rtl"


@pytest.mark.slow
def test_what_is_not_likely_is_marked_on_the_page(page):
    page.locator("#more button").first.click()
    page.click("#language input")
    page.click("[role=option]:has-text('de')")
    for query, note in (("rot", 0), ("xyz", 1)):
        page.fill("#query textarea, #query input", query)
        page.keyboard.press("Enter")
        first_path(page, query)
        assert page.locator("#results p:has-text('Nothing here is likely')").count() == note
        assert page.locator("#results .unlikely").count() == (24 if note else 16)


@pytest.mark.slow
def test_a_picture_dropped_in(page, tmp_path):
    page.locator("#more button").first.click()
    page.set_input_files("#picture input[type=file]", picture(tmp_path / "blue.png", (0, 0, 250)))
    assert first_path(page, "The picture that was given").startswith("blue/")
    assert page.locator("#results .grid li").count() == 24


@pytest.mark.slow
def test_names_of_files_are_shown_and_not_obeyed(page):
    page.fill("#query textarea, #query input", "<b>hello</b>")
    page.keyboard.press("Enter")
    page.wait_for_selector("#results h2:has-text('<b>hello</b>')")
    page.evaluate("document.querySelector('#query textarea, #query input').focus()")
    page.locator("#results .path", has_text=HOSTILE).wait_for()
    page.fill("#query textarea, #query input", "...")
    page.keyboard.press("Enter")
    page.wait_for_selector("#results p:has-text('There are no words in')")


@pytest.mark.slow
def test_gradio_opens_nothing_else(address, index):
    answer = httpx.post(f"{address}gradio_api/upload", files={"files": ("a.jpg", b"x" * 21_000_000)})
    assert answer.status_code == 413
    outside = Path(index.location).parent / "secret.jpg"
    for path in ("/etc/passwd", outside, f"{index.location}/../secret.jpg", __file__):
        assert httpx.get(f"{address}gradio_api/file={path}").status_code in (403, 404)
    assert httpx.get(f"{address}gradio_api/proxy=https://example.org/a.jpg").status_code >= 400
    assert httpx.get(f"{address}gradio_api/info").json() == {"named_endpoints": {}, "unnamed_endpoints": {}}
