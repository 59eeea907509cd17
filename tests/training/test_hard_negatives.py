"""Hard negatives: which are found, which are false, and batches that hold them together."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from test_dual_encoders import arguments, make_clip
from tiny import call, tokenizer
from torch.nn import functional as F

import data_scripts
import train_retrieval
from ccrk.training.hard_negatives import CANDIDATES, HardNegativeSampler, mine_hard_negatives
from data_scripts.problems import Problems
from data_scripts.rows import row_features


class ByColour:
    """Embeds a picture as its mean colour."""

    class inputs:
        class image_processor:
            size = {"height": 8, "width": 8}

    def encode_images(self, images):
        colours = torch.stack([torch.tensor(np.asarray(i.convert("RGB")).mean((0, 1))) for i in images]).float()
        return {"embeds": F.normalize(colours - 100, dim=-1)}


def make_rows(colours, ids=None, captions=None):
    rows = [
        {
            "image": Image.new("RGB", (8, 8), colour),
            "image_id": (ids or range(99))[place] if ids else str(place),
            "captions": {"en": [(captions or [f"a {c} thing" for c in range(99)])[place]], "de": []},
        }
        for place, colour in enumerate(colours)
    ]
    rows = data_scripts.datasets.Dataset.from_list(rows, features=row_features(["en", "de"]))
    return rows.cast_column("image", data_scripts.datasets.Image(decode=False))


RED, PINK, ORANGE, BLUE = (250, 0, 0), (250, 20, 20), (250, 60, 0), (0, 0, 250)


def mine(rows, number=1, problems=None):
    return mine_hard_negatives(ByColour(), rows, number, problems or Problems("images")).tolist()


def test_the_nearest_come_first():
    assert mine(make_rows([RED, PINK, ORANGE, BLUE])) == [[1, 2, 3], [0, 2, 3], [1, 0, 3], [0, 1, 2]]
    assert CANDIDATES == 4, "and no more than there are others"


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"ids": ["a", "a", "b", "c"]}, "one image in two rows"),
        ({"colours": [RED, RED, ORANGE, BLUE]}, "a copy under another name"),
        ({"captions": ["A red thing.", "a Red  thing", "an orange thing", "a blue thing"]}, "one caption"),
    ],
)
def test_false_negatives_are_left_out(changes, why):
    found = mine(make_rows(**{"colours": [RED, PINK, ORANGE, BLUE], **changes}))
    assert found[0] == [2, 3, -1] and found[1] == [2, 3, -1], why
    assert sorted(found[2]) == [0, 1, 3]


def test_a_caption_in_another_language_is_no_equal_one():
    rows = make_rows([RED, PINK, BLUE], captions=["rot", "rosa", "blau"])
    swapped = rows.map(
        lambda row: {"captions": {"en": [], "de": row["captions"]["en"]}} if row["image_id"] == "1" else {}
    )
    assert mine(swapped)[0] == [1, 2]


def test_pictures_that_cannot_be_read_take_no_part_and_are_counted():
    rows = make_rows([RED, PINK, ORANGE, BLUE])
    rows = rows.map(lambda row: {"image": {"bytes": b"no picture", "path": None}} if row["image_id"] == "1" else {})
    problems = Problems("images", max_bad_fraction=0.5)
    assert mine(rows, problems=problems) == [[2, 3, -1], [-1, -1, -1], [0, 3, -1], [0, 2, -1]]
    assert problems.total() == 1
    with pytest.raises(ValueError, match="images"):
        mine(rows, problems=Problems("images", max_bad_fraction=0.1))


class TestSampler:
    negatives = np.array([[(row + step) % 30 for step in (1, 2, 3, 4)] for row in range(30)])

    def test_every_row_comes_once_beside_its_negatives(self):
        sampler = HardNegativeSampler(self.negatives, 1, seed=0)
        order = list(sampler)
        assert sorted(order) == list(range(30)) and len(sampler) == 30
        places = {row: place for place, row in enumerate(order)}
        beside = [
            {order[place] for place in (places[row] - 1, places[row] + 1) if 0 <= place < 30} for row in range(30)
        ]
        met = sum(
            bool(beside[row] & {*self.negatives[row]} or row in self.negatives[list(beside[row])]) for row in range(30)
        )
        assert met >= 24, "by chance a quarter would"

    def test_the_order_follows_from_seed_and_epoch(self):
        def order(seed, epoch):
            sampler = HardNegativeSampler(self.negatives, 2, seed)
            sampler.set_epoch(epoch)
            return list(sampler)

        assert order(0, 0) == order(0, 0) != order(0, 1) and order(0, 0) != order(1, 0)

    def test_rows_without_any_are_there_as_well(self):
        assert sorted(HardNegativeSampler(np.full((5, 4), -1), 1, 0)) == list(range(5))


@pytest.fixture
def clip(processor, tmp_path):
    torch.manual_seed(0)
    for part in make_clip(tokenizer(processor)):
        part.save_pretrained(tmp_path / "clip")
    return tmp_path / "clip"


@pytest.mark.slow
def test_a_run_goes_on_with_the_batches_that_it_would_have_had(clip, tmp_path, monkeypatch):
    def train(out, *others, **options):
        options = {"learning_rate": 1e-3, "save_steps": 4, "max_steps": 6} | options  # an epoch has three
        given = arguments(tmp_path, hard_negatives=3, **options, output_dir=tmp_path / out)
        call(train_retrieval, "--model_name_or_path", clip, *given, *others, monkeypatch=monkeypatch)
        return torch.load(tmp_path / out / "checkpoint-6" / "optimizer.pt")["state"]

    monkeypatch.setattr(HardNegativeSampler, "set_epoch", recorded := Recorder(HardNegativeSampler.set_epoch))
    whole = train("whole")
    assert recorded.epochs >= {0, 1}, "another order in each epoch"
    (tmp_path / "resumed").mkdir()
    (tmp_path / "whole" / "checkpoint-4").rename(tmp_path / "resumed" / "checkpoint-4")
    resumed = train("resumed", "--resume_from_checkpoint", "auto")
    assert all(torch.equal(resumed[key]["exp_avg"], state["exp_avg"]) for key, state in whole.items())
    settings = json.loads((tmp_path / "resumed" / "checkpoint-6" / "run_settings.json").read_text())
    assert settings["hard_negatives"] == 3


class Recorder:
    def __init__(self, set_epoch):
        self.set_epoch, self.epochs = set_epoch, set()

    def __get__(self, sampler, kind):
        return lambda epoch: (self.epochs.add(epoch), self.set_epoch(sampler, epoch))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hard_negatives": 8}, "hard_negatives is 8, but a batch has 8 images; take larger batches"),
        ({"hard_negatives": 0}, "hard_negatives is 0; it must be at least 1"),
        ({"hard_negatives": 1, "captions_per_image": "one"}, "hard_negatives takes rows that are images"),
        ({"hard_negatives": 1, "train_sampling_strategy": "sequential"}, "hard_negatives decides the order of rows"),
    ],
)
def test_mistakes_end_in_one_line(options, message, clip, tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match=message):
        given = ["--model_name_or_path", clip, *arguments(tmp_path, **options)]
        call(train_retrieval, *given, monkeypatch=monkeypatch)
