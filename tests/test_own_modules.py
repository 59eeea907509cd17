"""A folder with files of our modules' names, as a downloaded checkpoint is, runs none of them."""

import configparser
import os
import subprocess
import sys

import pytest
from conftest import ROOT

from ccrk.own_modules import NAMES

# Of others' names too: what is started as a module of ours looks for nothing in the current folder.
OTHERS = ["torch", "transformers", "datasets", "PIL", "numpy"]


def test_all_top_level_modules_are_named():
    options = configparser.ConfigParser()
    options.read(ROOT / "setup.cfg", encoding="utf-8")
    packages = {name.partition(".")[0] for name in options["options"]["packages"].split()}
    assert {*NAMES, "ccrk"} == packages | set(options["options"]["py_modules"].split())


@pytest.fixture
def checkpoint(tmp_path):
    (tmp_path / "metrics").mkdir()
    for name in (*NAMES, "metrics/__init__"):
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('{name} of the current folder ran')")
    return tmp_path


def run(folder, *arguments: str) -> str:
    # As installed, not as a checkout that the environment names.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("module", ["ccrk.suspects", "data_scripts.check"])
def test_a_module_that_is_started_runs_nothing_of_the_current_folder(checkpoint, module):
    for name in OTHERS:
        (checkpoint / f"{name}.py").write_text(f"raise SystemExit('{name} of the current folder ran')")
    if module.startswith("data_scripts"):
        (checkpoint / "data_scripts.py").unlink()  # which is what is asked for then
    assert "usage: " in run(checkpoint, "-m", module, "--help")


@pytest.mark.slow
def test_ours_are_imported_from_where_they_are_installed(checkpoint):
    (checkpoint / "mine.py").write_text("")
    names = ", ".join(NAMES)
    (checkpoint / "started.py").write_text(
        f"import ccrk, mine, {names}\nprint(*(module.__file__ for module in ({names})), sep='\\n')"
    )
    places = run(checkpoint, "started.py").splitlines()
    assert [place for place in places if not place.startswith(f"{ROOT}{os.sep}")] == []
