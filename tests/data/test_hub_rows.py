"""A data set of the Hub by its id, loaded and as a stream, with the real client and a server on loopback."""

import io
import os
import subprocess
import sys
import threading

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from builders import jpeg
from conftest import ROOT
from local_hub import LocalHub

SCRIPT = """
import data_scripts
rows = data_scripts.load("tester/photos", split="test", languages=["de", "en"])
print(len(rows), rows[1]["image_id"], rows[1]["captions"])
for options in ({"split": "test"}, {"split": "train", "validation_fraction": 0.5}):
    loaded = data_scripts.load("tester/photos", **options)
    stream = data_scripts.load("tester/photos", streaming=True, **options)
    print(stream.num_shards, len(loaded), list(stream) == list(loaded))
"""


def table(numbers: range) -> bytes:
    file = io.BytesIO()
    rows = [
        {
            "image": {"bytes": jpeg(number, (8, 8)), "path": None},
            "image_id": str(number),
            "caption_en": f"a {number}",
            "caption_de": f"ein {number}",
        }
        for number in numbers
    ]
    pq.write_table(pa.Table.from_pylist(rows), file)
    return file.getvalue()


@pytest.fixture
def hub():
    server = LocalHub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.slow
def test_loaded_and_streamed(hub, tmp_path):
    parts = {
        "train-00000-of-00002": range(10),
        "train-00001-of-00002": range(10, 20),
        "test-00000-of-00001": range(20, 25),
    }
    hub.repositories["tester/photos"] = [{f"data/{name}.parquet": table(numbers) for name, numbers in parts.items()}]
    environment = {
        "HF_HOME": str(tmp_path / "hf"),
        "HF_ENDPOINT": hub.endpoint,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "OMP_NUM_THREADS": "1",
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
    }
    finished = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=180
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    first, test, train = finished.stdout.splitlines()
    assert first == "5 21 {'de': ['ein 21'], 'en': ['a 21']}" and test == "1 5 True"
    shards, rows, equal = train.split()
    assert shards == "2" and 0 < int(rows) < 20 and equal == "True"
