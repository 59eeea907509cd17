"""Benchmarks without tests of their own run to their end, in this process and small; figures mean nothing here."""

import importlib
import json
import math

import pytest
import torch

pytestmark = pytest.mark.slow

PACKAGES = {"search": ("lancedb", "sentence_transformers"), "families": ("sentence_transformers",)}


@pytest.fixture
def benchmark(monkeypatch):
    """Imports a benchmark by its name, with some of its constants replaced."""
    threads = torch.get_num_threads()

    def load(name: str, **constants):
        for package in PACKAGES.get(name, ()):
            pytest.importorskip(package)
        module = importlib.import_module(f"benchmarks.{name}")
        for constant, value in constants.items():
            monkeypatch.setattr(module, constant, value)
        return module

    yield load
    torch.set_num_threads(threads)


def numbers(value) -> list[float]:
    """All numbers of a JSON value."""
    if isinstance(value, dict | list):
        return [number for part in (value.values() if isinstance(value, dict) else value) for number in numbers(part)]
    return [value] if isinstance(value, int | float) else []


@pytest.mark.parametrize(
    "name, constants, arguments, expected",
    [
        ("rerank", {"SMALL": (64, 2, 224, 25, 8), "ROUNDS": 1}, ["--quick"], {"images": 8, "k_test": 2}),
        ("search", {"QUICK": (3, 300), "ROUNDS": 1}, ["--quick"], {"pictures": 3, "vectors": 300}),
        ("data_loading", {"SIZE": (300, 200)}, ["--generated", "2"], {"image_size": 224}),
        *(
            (
                "streaming_memory",
                {"FIRST_MEASURE": 100, "BATCH": 50, "ROWS_PER_SHARD": 200},
                ["--rows", "400", "--workers", "0", "--format", kind],
                {"rows": 400, "every_row_once": True},
            )
            for kind in ("shards", "parquet")
        ),
    ],
)
def test_it_writes_what_it_measured(name, constants, arguments, expected, benchmark, tmp_path):
    path = tmp_path / "result.json"
    try:
        benchmark(name, **constants).main(["--output", str(path), *arguments])
    except SystemExit as ended:
        assert not ended.code
    result = json.loads(path.read_text())
    assert {key: result[key] for key in expected} == expected
    assert all(map(math.isfinite, numbers(result)))


def test_a_step_in_chunks(benchmark):
    small = {"IMAGES": 4, "CAPTIONS": 2, "TOKENS": 8}
    assert benchmark("chunked_step", **small).peak_mebibytes(2) >= 0


def test_each_family_of_dual_encoders(benchmark, tmp_path, capsys):
    families = benchmark("families", BATCH=4, compare_elsewhere=lambda *_: ("CLIPModel", 0.0))
    families.main(["--output", str(tmp_path / "result.json"), "--families", "CLIP", "--quick"])
    found = json.loads((tmp_path / "result.json").read_text())["families"]["CLIP"]
    assert set(found["recall"]) == {"untrained", "one", "all"} and "| CLIP, R@5 | 4 |" in capsys.readouterr().out


def test_too_few_rows_are_refused(benchmark, tmp_path, capsys):
    with pytest.raises(SystemExit):
        benchmark("streaming_memory").main(["--output", str(tmp_path / "result.json"), "--rows", "20000"])
    assert "use more than 100,000" in capsys.readouterr().err
