"""What README and docs show runs: Python blocks as they stand, and of every command its script, options and recipe."""

import contextlib
import functools
import importlib
import inspect
import io
import json
import os
import re
import subprocess
import sys
import textwrap

import pytest
import torch
from accelerate.commands.launch import launch_command_parser
from conftest import ROOT

from ccrk import CCRKForImageTextRetrieval
from ccrk.encoders import load_encoder

DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^( *)```(python|bash)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
FENCED = re.compile(r"```.*?```", re.DOTALL)
# Shell functions in place of the programs that documents start: each puts down how it was called.
RECORDER = """
record() { "$PYTHON" -c 'import json, sys; print(json.dumps(sys.argv[1:]))' "$@"; }
for name in python accelerate torchrun make git head ray; do eval "$name() { record $name \\"\\$@\\"; }"; done
"""


def blocks(kind: str) -> list:
    return [
        pytest.param(path, block, id=f"{path.name}:{text[: found.start()].count(chr(10)) + 1}")
        for path in DOCUMENTS
        for text in [path.read_text()]
        for found in BLOCK.finditer(text)
        for _, language, block in [found.groups()]
        if language == kind
    ]


@pytest.fixture
def demo(tiny_model, processor, tmp_path, monkeypatch):
    """A folder in which the demo has left a small model, and the metrics lie."""
    CCRKForImageTextRetrieval(tiny_model.config).save_pretrained(tmp_path / "outputs/demo/finetune")
    processor.save_pretrained(tmp_path / "outputs/demo/finetune")
    (tmp_path / "metrics").symlink_to(ROOT / "metrics")
    monkeypatch.chdir(tmp_path)


def test_the_python_blocks_of_the_readme_run_one_after_the_other(demo):
    namespace = {}
    for parameters in blocks("python"):
        path, block = parameters.values
        if path.name == "README.md":
            exec(compile(block, parameters.id, "exec"), namespace)
    assert namespace["outputs"].logits_per_image.shape == (2, 3)
    assert namespace["recall"] == {"recall@1": 50.0} and namespace["mrv"]["std"] > 0


def test_weights_are_averaged_as_told(demo, tmp_path):
    before = CCRKForImageTextRetrieval.from_pretrained(tmp_path / "outputs/demo/finetune")
    after = [weights.detach().clone() for weights in before.parameters()]
    for weights in before.parameters():
        weights.data = weights.data + 1
    before.save_pretrained(tmp_path / "outputs/demo/pretrain")
    (block,) = (block for path, block in (own.values for own in blocks("python")) if path.name == "consistency.md")
    exec(compile(textwrap.dedent(block), "consistency.md", "exec"), {})
    averaged = load_encoder(str(tmp_path / "outputs/averaged"), k_test=0, bf16=False).model
    for weights, own in zip(averaged.parameters(), after, strict=True):
        torch.testing.assert_close(weights.data, own + 0.5)


@pytest.mark.parametrize(("path", "block"), blocks("python"))
def test_every_python_block_is_run(path, block):
    if path.name == "CONTRIBUTING.md" and "class MyLoss" not in block:  # which test_losses.py runs
        assert block.strip() in (ROOT / "data_scripts/cards.py").read_text()
    else:
        # By the tests above, by test_encode.py and by test_query.py.
        assert path.name in ("README.md", "CONTRIBUTING.md", "consistency.md", "checkpoints.md", "search.md")


def test_names_in_contributing_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    names = [
        "data_scripts",
        "data_scripts.cards",
        "data_scripts.annotations",
        "data_scripts.problems",
        "ccrk.encoders",
    ]
    names += ["data_scripts.xm3600", "ccrk.training.trainer", "ccrk.training.losses", "research.consistency.study"]
    modules = [importlib.import_module(name) for name in names]
    known = {name: value for module in modules for name, value in vars(module).items()}
    spans = re.findall(r"`([^`\n]+)`", FENCED.sub("", text))
    members = [found for span in spans if (found := re.fullmatch(r"([A-Z]\w+)\.(\w+)(?:\((.*)\))?", span))]
    assert len(members) >= 5
    for owner, name, arguments in (member.groups() for member in members):
        member = getattr(known[owner], name)
        if arguments is not None:
            assert ", ".join(list(inspect.signature(member).parameters)[1:]) == arguments, (owner, name)
    for span in spans:
        if re.fullmatch(r"[A-Z]\w+[a-z]\w*", span):
            assert span in known, span
        elif "/" in span and re.fullmatch(r"[\w/.]+", span):
            assert (ROOT / span).exists(), span
        elif found := re.fullmatch(r"class (\w+)\((\w+)\)", span):
            assert issubclass(known[found[1]], known[found[2]])
    described = {"embed", "encode_images", "encode_captions", "make_encoder", "load"}
    assert described <= set(spans) and all(hasattr(known["Encoder"], name) or name in known for name in described)


@functools.cache
def options_of(name: str, *command_of: str) -> set[str]:
    """Those in the help of a script or a module, or of a command of it."""
    printed, command = io.StringIO(), sys.argv
    sys.argv = [name, *command_of, "--help_all" if name.startswith("train_") else "--help"]
    try:
        with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
            module = importlib.import_module(name)
            (module if hasattr(module, "main") else importlib.import_module(f"{name}.__main__")).main()
    finally:
        sys.argv = command
    return set(re.findall(r"--\w+", printed.getvalue()))


def check_command(program: str, *arguments: str) -> None:
    """That a command's script, recipes and options exist."""
    if program == "make":
        assert re.search(rf"^{arguments[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), arguments
    if program not in ("python", "accelerate", "torchrun"):
        return
    for argument in arguments:
        if argument.startswith("configs/"):
            assert (ROOT / argument).is_file(), argument
    script = next(place for place, argument in enumerate(arguments) if argument.endswith(".py") or argument == "-m")
    name = arguments[script + 1] if arguments[script] == "-m" else arguments[script].removesuffix(".py")
    name, command = name.replace("/", "."), ()
    if name == "ccrk.search":
        name, command = "ccrk.search.__main__", arguments[script + 2 : script + 3]
    if name == "research.agreement.study":
        command = arguments[script + 1 : script + 2]
    options = {argument for argument in arguments[script + 1 :] if argument.startswith("--")}
    if options:
        assert options <= options_of(name, *command), name
    else:
        assert importlib.util.find_spec(name), name


@pytest.mark.parametrize(("path", "block"), blocks("bash"))
def test_commands_are_ones_that_exist(path, block):
    environment = {**os.environ, "PYTHON": sys.executable, "DATA": "data", "IMAGES": "images"}
    script = RECORDER + textwrap.dedent(block)
    finished = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True)
    assert finished.returncode == 0 and not finished.stderr, finished.stderr
    commands = [json.loads(line) for line in finished.stdout.splitlines()]
    assert commands or "DATA=" in block
    for command in commands:
        check_command(*command)


def test_options_that_stand_for_published_ones_exist():
    text = (ROOT / "docs/recipes.md").read_text()
    table = re.search(r"The options of the published code.*?\n\n(.*?)\n\n", text, re.DOTALL)[1].splitlines()[2:]
    published = {flag for row in table for flag in re.findall(r"--\w+", row.split("|")[1])}
    assert {"--bs", "--checkpoint", "--checkpoint_fmt", "--gmt", "--seed", "--fewshot", "--lr", "--epoch"} <= published
    scripts = ("train_pretrain", "train_retrieval", "eval_mrv", "convert_checkpoint")
    launcher = {option for action in launch_command_parser()._actions for option in action.option_strings}
    for row in table:
        named = [name for name in scripts if f"`{name}.py`" in row]
        known = [*map(options_of, named), *[launcher] * ("accelerate launch" in row)] or [
            options_of("train_retrieval")
        ]
        for option in re.findall(r"--\w+", row.split("|")[2]):
            assert option in set().union(*known, options_of("train_pretrain") if "pre-training" in row else ()), row


@functools.cache
def anchors(path) -> set[str]:
    """Of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", FENCED.sub("", path.read_text()), re.MULTILINE)
    words = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower() for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading).strip().replace(" ", "-") for heading in words}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCED.sub("", path.read_text())):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        found = path.parent / name if name else path
        assert found.exists(), target
        assert not anchor or anchor in anchors(found), target


@pytest.mark.slow
@pytest.mark.parametrize("module", ["eval_mrv", "ccrk.search"])  # others: tests/test_own_modules.py
def test_commands_begin_without_a_word_of_other_libraries(module):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    environment.pop("TORCH_LOGS", None)
    command = [sys.executable, "-m", module, "--help"]
    finished = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert finished.stdout.startswith("usage: ") and not finished.stderr
