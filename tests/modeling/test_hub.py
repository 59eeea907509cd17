"""Out to a Hub and back: the real client pushes, and a clean process opens what it finds there."""

import os
import re
import subprocess
import sys
import threading

import pytest
import torch
from builders import isolated
from conftest import ROOT
from local_hub import TOKEN, LocalHub

from ccrk import CCRKModel

PUSH = """
import sys
sys.path[:0] = [{root!r}, {tests!r}]
from huggingface_hub import constants  # read before the tests' conftest switches the network off
import datasets
from ccrk import CCRKForPreTraining, CCRKProcessor
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
from tiny import make_trainer

rows = datasets.load_from_disk("rows")
processor = CCRKProcessor.from_pretrained("start")
trainer = make_trainer(
    CCRKForPreTraining.from_pretrained("start"), processor, rows, "run",
    max_steps=2, eval_strategy="steps", eval_steps=2, hub_model_id="tester/trained",
)
trainer.train()
trainer.push_to_hub()

model = CCRKForPreTraining.from_pretrained("run").ccrk
model.push_to_hub("tester/by-hand")
processor.push_to_hub("tester/by-hand")
processor.push_to_hub("tester/by-hand")  # once more into a repository that exists

for wrong in (
    lambda: HfApi().create_repo("tester/by-hand"),
    lambda: model.push_to_hub("tester/other", token="hf_wrong"),
):
    try:
        wrong()
    except HfHubHTTPError as error:
        print("refused", error.response.status_code)
"""
PULL = """
import torch
from transformers import AutoModel, AutoProcessor
for name in {names!r}:
    model = AutoModel.from_pretrained(name, trust_remote_code=True).eval()
    processor = AutoProcessor.from_pretrained(name, trust_remote_code=True)
    with torch.no_grad():
        outputs = model(
            pixel_values=torch.linspace(-1, 1, 3 * 64 * 64).view(1, 3, 64, 64), **processor(text=["a red star", "星"])
        )
    torch.save((outputs.image_embeds, outputs.text_embeds), name.replace("/", "-") + ".pt")
"""


@pytest.fixture
def hub():
    server = LocalHub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def run(script: str, hub: LocalHub, folder, *flags: str, **environment) -> str:
    environment = {
        "HF_HOME": str(folder / "hf"),
        "HF_ENDPOINT": hub.endpoint,
        "HF_TOKEN": TOKEN,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "OMP_NUM_THREADS": "1",
        "PATH": os.environ["PATH"],
    } | environment
    finished = subprocess.run(
        [sys.executable, *flags, "-c", script],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    return finished.stdout


def embeddings(model, processor):
    with torch.no_grad():
        outputs = model.eval()(
            pixel_values=torch.linspace(-1, 1, 3 * 64 * 64).view(1, 3, 64, 64), **processor(text=["a red star", "星"])
        )
    return outputs.image_embeds, outputs.text_embeds


@pytest.mark.slow
def test_push_and_pull(hub, tiny_model, processor, shapes, tmp_path):
    tiny_model.save_pretrained(tmp_path / "start")
    processor.save_pretrained(tmp_path / "start")
    shapes.save_to_disk(tmp_path / "rows")
    hub.cut_uploads = 1  # the first large file stops half-way; the client repeats it
    printed = run(PUSH.format(root=str(ROOT), tests=str(ROOT / "tests")), hub, tmp_path)
    assert printed.count("refused 409") == 1 and printed.count("refused 401") == 1
    assert hub.cut_uploads == 0 and set(hub.repositories) == {"tester/trained", "tester/by-hand"}

    code = {f"{name}_ccrk.py" for name in ("configuration", "modeling", "objectives", "processing")}
    for name, own in (("tester/trained", {"README.md", "training_args.bin"}), ("tester/by-hand", set())):
        files = hub.repositories[name][-1]
        assert code | own | {"config.json", "model.safetensors", "tokenizer.json"} <= set(files)

    names = ["tester/trained", "tester/by-hand"]
    card = hub.repositories["tester/trained"][-1]["README.md"].decode()
    snippet = re.search(r"```python\n(.+?)```", card, re.DOTALL)[1]
    assert "tester/trained" in snippet
    clean = tmp_path / "elsewhere"
    clean.mkdir()
    printed = run(isolated(PULL.format(names=names) + snippet), hub, clean, "-I")
    assert "torch.Size([1, 16]) torch.Size([2, 16])" in printed
    expected = embeddings(CCRKModel.from_pretrained(tmp_path / "run"), processor)
    for name in names:
        found = torch.load(clean / f"{name.replace('/', '-')}.pt", weights_only=True)
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(expected, found, strict=True))

    # Without the network what was pulled opens again.
    hub.repositories.clear()
    run(isolated(PULL.format(names=names)), hub, clean, "-I", HF_HUB_OFFLINE="1")
