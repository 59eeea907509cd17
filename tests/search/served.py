"""An index of colours, and the page that serves it."""

import socket
import threading
import time

import httpx
import pytest
import uvicorn
from builders import write
from search_builders import HOSTILE, Colors, bring_up_to_date, picture

from ccrk.search import PictureIndex
from ccrk.search.page import mount_page
from ccrk.search.serve import make_app


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


@pytest.fixture(scope="module")
def app(index):
    app = make_app(index, hosts=["127.0.0.1"])
    mount_page(app, index)
    return app


@pytest.fixture(scope="module")
def address(app):
    """The page, served."""
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
def http(address):
    with httpx.Client(base_url=address, timeout=10) as client:
        yield client
