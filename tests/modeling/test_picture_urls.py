"""Pictures behind URLs."""

import contextlib
import http.server
import threading
import time
import urllib.parse

import pytest
import torch
from pictures import PNG, photograph

import pictures_ccrk


class Hostile(http.server.BaseHTTPRequestHandler):
    """Answers as slowly, as long or as roundabout as the path says."""

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        kind, _, rest = self.path.removeprefix("/").partition("/")
        with contextlib.suppress(OSError):
            getattr(self, kind)(urllib.parse.unquote(rest))

    def start(self, status=200, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def picture(self, rest):
        self.start()
        self.wfile.write(PNG)

    def redirect(self, rest):
        self.start(302, Location=rest or "/redirect/")

    def slow_body(self, rest):
        self.start()
        self.drip()

    def slow_headers(self, rest):
        self.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
        self.drip()

    def drip(self):
        for _ in range(200):
            self.wfile.write(b"a")
            time.sleep(0.05)

    def endless(self, rest):
        self.start()
        while True:
            self.wfile.write(bytes(1 << 16))


@pytest.fixture
def server(monkeypatch):
    """127.0.0.1 is as good as public in these tests; 127.0.0.2 is not."""
    public = pictures_ccrk.is_public
    monkeypatch.setattr(pictures_ccrk, "is_public", lambda address: address == "127.0.0.1" or public(address))
    listener = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hostile)
    threading.Thread(target=listener.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{listener.server_port}"
    listener.shutdown()
    listener.server_close()


def test_a_picture_behind_redirects(processor, server):
    expected = processor(images=photograph())["pixel_values"]
    for url in ("picture", "redirect//picture", f"redirect/http://{server}/redirect//picture/ä b?c=%20d&e"):
        assert torch.equal(processor(images=f"HTTP://{server}/{url}")["pixel_values"], expected)


@pytest.mark.parametrize("kind", ["slow_body", "slow_headers"])
def test_a_url_may_take_so_long_in_all(processor, server, monkeypatch, kind):
    monkeypatch.setattr(pictures_ccrk, "URL_SECONDS", 0.5)
    started = time.monotonic()
    with pytest.raises(
        ValueError, match=rf"/{kind} cannot be read as a picture: it did not arrive within 0\.5 seconds"
    ):
        processor(images=f"http://{server}/{kind}")
    assert time.monotonic() - started < 3


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://{}/endless", "it has more than 1,000,000 bytes"),
        ("http://{}/redirect/", "more than 5 redirects"),
        ("http://{}/redirect/file%3A%2F%2F%2Fetc%2Fpasswd", "no http or https URL"),
        ("http://{}/redirect/http%3A%2F%2F127.0.0.2%2Fa.jpg", "on a private network"),
        ("http://{}/nothing", "Remote end closed connection|Connection reset"),
        ("http://user:secret@127.0.0.2:80/a.jpg", "on a private network"),
        ("http://2130706434/a.jpg", "on a private network"),
        ("http://[::ffff:127.0.0.2]/a.jpg", "on a private network"),
        ("http://[::1]/a.jpg", "on a private network"),
        ("https://127.0.0.2/a.jpg", "on a private network"),
        ("http:///a.jpg", "no http or https URL"),
        ("http://[/a.jpg", "Invalid IPv6 URL"),
        ("http://{}:x/a.jpg", "Port could not be cast"),
    ],
)
def test_a_url_leads_where_anybody_may_go(processor, server, monkeypatch, url, reason):
    monkeypatch.setattr(pictures_ccrk, "MAX_BYTES", 1_000_000)
    with pytest.raises(ValueError, match=rf"^http.* cannot be read as a picture: .*({reason})") as raised:
        processor(images=[url.format(server)])
    assert "secret" not in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.215.14", True),
        ("2606:2800:21f:cb07:6820:80da:af6b:8b2c", True),
        ("::ffff:93.184.215.14", True),
        ("64:ff9b::5db8:d70e", True),
        ("127.0.0.1", False),
        ("0.0.0.0", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::1", False),
        ("::", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("ff02::1", False),
        ("::ffff:10.1.2.3", False),
        ("2002:7f00:1::", False),
        ("64:ff9b::a01:203", False),
    ],
)
def test_public_addresses(address, public):
    assert pictures_ccrk.is_public(address) == public
