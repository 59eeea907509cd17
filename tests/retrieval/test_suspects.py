"""`python -m ccrk.suspects`: captions that say something else than the others of their picture."""

import csv

import datasets
import pytest
import torch
from torch.nn import functional as F

from ccrk import suspects
from data_scripts.rows import row_features


def test_the_one_that_says_something_else_is_least_alike():
    generator = torch.Generator().manual_seed(0)
    meanings = torch.randn(20, 1, 16, generator=generator)
    embeds = F.normalize(meanings + 0.3 * torch.randn(20, 5, 16, generator=generator), dim=-1)
    wrong = torch.randint(5, (20,), generator=generator)
    embeds[torch.arange(20), wrong] = F.normalize(torch.randn(20, 16, generator=generator), dim=-1)
    found = suspects.likeness(embeds.flatten(0, 1), torch.arange(20).repeat_interleave(5))
    planted = torch.arange(20) * 5 + wrong
    assert set(found.argsort()[:20].tolist()) == set(planted.tolist())


def test_a_caption_alone_has_no_likeness():
    embeds = F.normalize(torch.randn(3, 4), dim=-1)
    found = suspects.likeness(embeds, torch.tensor([0, 2, 2]))
    assert found.isnan().tolist() == [True, False, False]
    assert found[1].item() == pytest.approx(float(embeds[1] @ embeds[2]) if embeds[1] @ embeds[2] > 0 else 0, abs=1e-6)


@pytest.fixture
def rows(tmp_path, monkeypatch, shapes):
    """Pictures of which the third has a caption of the first in German, and the last one no other caption."""
    images, captions = shapes["image"][:4], [dict(row) for row in shapes["captions"][:4]]
    captions = [{language: list(row[language]) for language in ("en", "de", "zh")} for row in captions]
    captions[2]["de"] = captions[0]["de"]
    captions[3] |= {"de": [], "zh": []}
    features = row_features(["en", "de", "zh"])
    found = {"image": images, "image_id": ["a.png", "b.png", "c.png", "d.png"], "captions": captions}
    dataset = datasets.Dataset.from_dict(found, features=datasets.Features({n: features[n] for n in found}))
    monkeypatch.setattr("data_scripts.load", lambda *_, **__: dataset)
    return dataset


class Encoder:
    """Reads the numbers of the rows from captions that are known."""

    k_test = 0

    def __init__(self, rows):
        self.rows = rows

    def caption_lengths(self, captions):
        return [len(caption) for caption in captions]

    def encode_captions(self, captions):
        known = [{text for texts in row.values() for text in texts} for row in self.rows["captions"]]
        places = [next(n for n, own in enumerate(known) if caption in own) for caption in captions]
        return {"embeds": F.one_hot(torch.tensor(places), 4).float()}


def test_the_command_writes_a_table_and_a_sheet(rows, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(suspects, "load_encoder", lambda *_: Encoder(rows))
    suspects.main(["x", "--model", "m", "--output_dir", str(tmp_path)])
    with (tmp_path / "suspects.csv").open(newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert len(table) == 9  # the last picture's is alone
    assert (table[0]["language"], table[0]["image_id"]) == ("de", "c.png")
    assert table[0]["caption"] == rows["captions"][0]["de"][0] and float(table[0]["likeness"]) < 0.1
    assert (tmp_path / "suspects.png").is_file() and "9 captions" in capsys.readouterr().out
    assert {entry["copy_of"] for entry in table} == {""}


def test_copies_of_another_language_are_listed(rows, monkeypatch):
    captions = [{language: list(row[language]) for language in row} for row in rows["captions"]]
    captions[0]["zh"] = [f"{captions[0]['de'][0].capitalize()} !"]
    captions[1]["en"] *= 2  # a caption that comes twice in its own language is no copy
    rows = rows.remove_columns("captions").add_column("captions", captions, feature=rows.features["captions"])
    monkeypatch.setattr(suspects, "load_encoder", lambda *_: Encoder(rows))
    found, _ = suspects.find_suspects(rows, "m")
    copies = [(entry["image_id"], entry["language"], entry["copy_of"]) for entry in found if entry["copy_of"]]
    assert copies == [("a.png", "zh", "de")] and found[-1]["copy_of"] == "de", "after the least alike"


def test_rows_with_one_caption_each_are_refused(rows, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("data_scripts.load", lambda *_, **__: rows.select([3]).map(
        lambda row: {"captions": {"en": row["captions"]["en"]}}, features=datasets.Features(
            {**rows.features, "captions": {"en": rows.features["captions"]["en"]}})))  # fmt: skip
    monkeypatch.setattr(suspects, "load_encoder", lambda *_: None)
    monkeypatch.setattr(suspects, "encode_captions", lambda *_: type("E", (), {"embeds": torch.ones(1, 4)}))
    with pytest.raises(SystemExit, match="no row has two captions"):
        suspects.main(["x", "--model", "m", "--output_dir", str(tmp_path)])
