"""The server and its page: what it answers, what it refuses, and in a browser what people do with it."""

import asyncio
import os
import shutil
import signal
from urllib.parse import quote

import pytest
import uvicorn
from fastapi.testclient import TestClient
from search_builders import HOSTILE, Colors, bring_up_to_date, picture

from ccrk.search import PictureIndex
from ccrk.search.__main__ import main
from ccrk.search.page import mount_page
from ccrk.search.serve import check_host, make_app, serve
from ccrk.search.store import picture_id

pytest_plugins = ["served"]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


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
    for token in ("short", "", "1234567"):
        with pytest.raises(ValueError, match="less than 8 characters"):
            check_host("0.0.0.0", token)
    for token in (
        "schlüssel",
        "ключ ключ",
        "パスワードパスワード",
        "with\nlines",
        "a\ttab here",
        " before it",
        "after it ",
        " " * 8,
    ):
        with pytest.raises(ValueError, match="must consist of ASCII letters"):
            check_host("127.0.0.1", token)
        with pytest.raises(ValueError, match="must consist of ASCII letters"):
            make_app(index, token=token)

    client = TestClient(make_app(index, token="long enough"), follow_redirects=False)
    for path in ("/api/search?q=red", f"/picture/{picture_id('red/0.png')}.jpg", "/", "/config", "/?token=wrong"):
        assert client.get(path).status_code == 401
    for header in ("Bearer long enough", "bearer long enough", "BEARER  long enough"):
        assert client.get("/api/search?q=red", headers={"Authorization": header}).status_code == 200
    for header in ("Basic long enough", "Bearer", "", "long enough", "Bearer long enough,", b"Bearer \xff\xfe"):
        assert client.get("/api/search?q=red", headers={"Authorization": header}).status_code == 401
    for junk in ("token=%ff%fe", "token=%", "token=%00", "token=" + "a" * 5000, "%=&&==", "token=l\u00f6ng"):
        assert client.get(f"/?{junk}").status_code == 401
    for cookie in (b"ccrk_token=\xff", b"=;=;", b'ccrk_token="', b"ccrk_token=%00"):
        assert client.get("/", headers={"Cookie": cookie}).status_code == 401
    answer = client.get("/api/search?q=red&token=long%20enough")
    assert answer.headers["location"] == "/api/search?q=red"  # the token does not stay in the address
    assert "HttpOnly" in answer.headers["set-cookie"]
    assert client.get("/api/search?q=red").status_code == 200  # by the cookie
    assert client.get("/api/search?q=red", headers={"Authorization": "Basic eA=="}).status_code == 200
    elsewhere = client.get("http://testserver//evil.example.org/?token=long%20enough", headers={"Cookie": ""})
    assert elsewhere.headers["location"] == "/evil.example.org/"


NAVIGATION = {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}


@pytest.mark.parametrize("token", [None, "long enough"])
@pytest.mark.parametrize(
    "headers, status",
    [
        ({}, 200),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Sec-Fetch-Site": "none", **NAVIGATION}, 200),
        ({"Sec-Fetch-Site": "cross-site", **NAVIGATION}, 200),
        ({"Origin": "http://testserver"}, 200),
        ({"Origin": "https://TESTSERVER"}, 200),  # behind a proxy with TLS
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "a new word"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"}, 403),
        ({"Origin": "http://evil.example.org"}, 403),
        ({"Origin": "http://testserver:8080"}, 403),
        ({"Origin": "http://testserver.evil.example.org"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": ""}, 403),
        ({"Origin": "http://evil.example.org", "Sec-Fetch-Site": "cross-site", **NAVIGATION}, 403),
    ],
)
def test_pages_of_other_websites_learn_nothing(index, token, headers, status):
    client = TestClient(make_app(index, token), follow_redirects=False)
    cookies = {"Cookie": f"ccrk_token={token}"} if token else {}
    for path in ("/api/search?q=red", f"/picture/{picture_id('red/0.png')}.jpg", "/picture/unknown.jpg"):
        answer = client.get(path, headers=headers | cookies)
        assert answer.status_code == (404 if status == 200 and "unknown" in path else status)
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
    for method in ("HEAD", "POST", "OPTIONS", "PUT", "DELETE"):
        answer = client.request(method, "/api/search", headers=headers | cookies)
        is_link = method == "HEAD" and status == 200
        refused = status == 403 or (headers.get("Sec-Fetch-Site") == "cross-site" and not is_link)
        assert answer.status_code == (403 if refused else 405)


def test_the_link_in_a_mail_opens_the_page(index):
    app = make_app(index, token="long enough")
    mount_page(app, index)
    from_a_mail = {"Sec-Fetch-Site": "cross-site", **NAVIGATION}
    client = TestClient(app, headers=from_a_mail, follow_redirects=False)
    answer = client.get("/?token=long%20enough")
    assert answer.status_code == 307 and answer.headers["location"] == "/"
    assert "samesite=lax" in answer.headers["set-cookie"].lower()
    assert client.get("/").status_code == 200


@pytest.mark.parametrize(
    "headers, status",
    [
        ({"Content-Length": "15000000", "Origin": "http://evil.example.org"}, 403),
        ({"Content-Length": "15000000", "Sec-Fetch-Site": "cross-site", **NAVIGATION}, 403),
        ({"Content-Length": "15000000"}, 401),
        ({"Content-Length": str(21 * 1024**2), "Authorization": "Bearer long enough"}, 413),
        ({"Content-Length": "-1", "Authorization": "Bearer long enough"}, 400),
        ({"Transfer-Encoding": "chunked", "Authorization": "Bearer long enough"}, 411),
    ],
)
def test_what_is_refused_is_not_read(index, headers, status):
    async def receive():
        raise AssertionError("the body is read")

    async def send(message):
        sent.append(message)

    sent = []
    encoded = [(name.lower().encode(), value.encode()) for name, value in {"Host": "testserver", **headers}.items()]
    scope = {"type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": encoded}
    asyncio.run(make_app(index, token="long enough")(scope, receive, send))
    assert sent[0]["status"] == status


def test_another_site_cannot_ask_by_its_own_name(index):
    client = TestClient(make_app(index, hosts=["localhost", "127.0.0.1"]), base_url="http://evil.example.org")
    assert client.get("/api/search?q=red").status_code == 400


@pytest.mark.parametrize("host, name", [("::1", "[::1]"), ("127.0.0.1", "127.0.0.1"), ("localhost", "localhost")])
def test_the_printed_address_is_answered(index, host, name, monkeypatch, capsys):
    started = []
    monkeypatch.setattr(uvicorn, "run", lambda app, **options: started.append(app))
    serve(index, host)
    assert capsys.readouterr().out == f"http://{name}:7860/\n"
    assert TestClient(started[0]).get("/api/search?q=red", headers={"Host": f"{name}:7860"}).status_code == 200


def test_no_proxy_keeps_what_is_behind_the_token(index):
    client = TestClient(make_app(index, token="long enough"))
    headers = {"Authorization": "Bearer long enough"}
    for path in (
        "/api/search?q=red",
        "/api/search",
        "/picture/unknown.jpg",
        f"/picture/{picture_id('red/0.png')}.jpg",
    ):
        assert "private" in client.get(path, headers=headers).headers["cache-control"]
    assert client.get("/").headers["cache-control"] == "private"


def test_a_damaged_index_is_told_before_anybody_asks(tmp_path, monkeypatch):
    bring_up_to_date(picture(tmp_path / "photos" / "red.png", (255, 0, 0)).parent, tmp_path / "index")
    index = PictureIndex(tmp_path / "index")
    index.encoder, index.can_rerank = Colors(), False
    index.store.pictures.update(values={"vector": [2.0] * 12})
    monkeypatch.setattr(uvicorn, "run", lambda app, **options: pytest.fail("the index is served"))
    with pytest.raises(ValueError, match=r"the vector of 'red\.png' is not of length 1"):
        serve(index)


def test_sigterm_deletes_the_uploads(index, monkeypatch):
    def run(app, timeout_graceful_shutdown, **options):
        assert timeout_graceful_shutdown < 10
        signal.getsignal(signal.SIGTERM)(signal.SIGTERM, None)  # as uvicorn does at its end

    monkeypatch.setattr("ccrk.search.__main__.PictureIndex", lambda location, model: index)
    monkeypatch.setattr(uvicorn, "run", run)
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as ended:  # which deletes temporary folders, as the default does not
            main(["serve", index.location])
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ended.value.code == 128 + signal.SIGTERM


def test_serving_to_all_without_a_token_is_refused_in_one_line(index):
    with pytest.raises(SystemExit, match=r"on 0\.0\.0\.0 other machines reach the server; give --token"):
        main(["serve", index.location, "--host", "0.0.0.0"])


def test_a_missing_package_is_told_with_what_installs_it_from_a_checkout(index, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        SystemExit, match=r"needs the package gradio; run pip install -e '\.\[search\]' in the checkout"
    ):
        main(["serve", index.location])


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
