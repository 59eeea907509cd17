"""The consistency study, small: what each style trains on, that a run repeats itself, and the document."""

import csv
import itertools
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ROOT
from tiny import RECIPE
from torch.utils.flop_counter import FlopCounterMode

from data_scripts.shapes import MISTRANSLATED, Shapes
from objectives_ccrk import contrastive_loss
from research.agreement import report as agreement_report
from research.consistency import report
from research.consistency.study import (
    CONDITIONS,
    PARTS,
    Study,
    StudyCollator,
    append,
    check_same_study,
    finished,
    main,
)

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("study")]  # one worker makes the runs that most tests read

TWICE = ("1-to-K", "1-to-1")  # with two seeds
ONCE = (  # with one
    "pivot + pairs",
    "1-to-K + pairs",
    "1-to-K + pairs, then English",
    "1-to-K + pairs, then English, then 100 German",
    "1-to-K + pairs, then English, with agreement 10",
    "1-to-K + pairs, then English, averaged 0.5",
    "K = 2",
    "positives drawn evenly",
)
SIZE = ["--steps", "2", "--num_train", "100", "--num_test", "24"]


class SmallStudy(Study):
    def recipe(self) -> dict:
        small = RECIPE["config"]
        no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        text = small["text_config"] | {"vocab_size": 1500} | no_dropout
        return super().recipe() | {"config": small | {"text_config": text}}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    study = SmallStudy("shapes", None, None, tmp_path_factory.mktemp("study"), 2, 100, 24, torch.get_num_threads())
    check_same_study(study, [*TWICE, *ONCE])
    study.prepare()
    return study


@pytest.fixture(scope="module")
def results(study):
    for name, seed in [*itertools.product(TWICE, (0, 1)), *itertools.product(ONCE, (0,))]:
        line, points = study.run(CONDITIONS[name], seed)
        append(study.output_dir / "results.csv", [line])
        append(study.output_dir / "curves.csv", points)
    with (study.output_dir / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_repeats_itself_to_the_last_digit(study, results):
    again, _ = study.run(CONDITIONS["pivot + pairs"], 0)
    first = next(line for line in results if line["condition"] == "pivot + pairs")
    timing = ("seconds", "images_per_second")
    assert {k: str(v) for k, v in again.items() if k not in timing} == {
        k: v for k, v in first.items() if k not in timing
    }


def test_styles_differ_in_captions_and_cost(results):
    per_step = {line["condition"]: int(line["captions_per_step"]) for line in results}
    expected = {"1-to-K": 640, "1-to-1": 64, "pivot + pairs": 128, "K = 2": 128, "1-to-K + pairs, then English": 64}
    assert per_step | expected == per_step
    cost = {line["condition"]: float(line["gflop_per_step"]) for line in results}
    assert cost["1-to-1"] < cost["K = 2"] < cost["1-to-K"] < cost["1-to-K + pairs"]


def test_pairs_come_in_after_their_share_of_the_steps(study):
    trainer = study.build(CONDITIONS["1-to-K + pairs"], 0, 4)
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    seen = []
    for step in range(4):
        trainer.state.global_step = step
        trainer._parts = {}
        trainer.compute_loss(trainer.model, dict(batch))
        seen.append("matching_loss" in trainer._parts and "mlm_loss" in trainer._parts)
    assert seen == [False, False, True, True]


def test_operations_are_those_of_all_attention(study):
    """Twice the captions are twice the operations of the text encoder, self-attention included."""
    (one, captions), (two, twice) = (
        study.operations(replace(CONDITIONS["K = 2"], languages=languages), 0)
        for languages in (("en", "de"), ("en", "de", "fr", "cs"))
    )
    assert twice == 2 * captions
    trainer = study.build(CONDITIONS["K = 2"], 0, 1)
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    with FlopCounterMode(display=False) as counter:  # by SDPA
        trainer.compute_loss(trainer.model.train(), batch).backward()
    assert counter.get_total_flops() < one < two


def test_the_pivot_never_shows_the_image_another_language(study):
    trainer = study.build(CONDITIONS["pivot"], 0, 1)
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    model, seen = trainer.model.eval(), {}
    model.ccrk.register_forward_hook(lambda module, inputs, outputs: seen.update(outputs))
    loss = trainer.compute_loss(model, batch)
    images, english, other = seen["image_embeds"], seen["text_embeds"][:, :1], seen["text_embeds"][:, 1:]
    assert other.shape[1] == 1
    temperature = model.ccrk.temperature
    expected = contrastive_loss(images, english, temperature) + contrastive_loss(english[:, 0], other, temperature)
    torch.testing.assert_close(loss, expected)
    # The first of the two is English, whatever order the data's languages come in.
    texts = [captions["en"] for captions in study.splits["train"]["captions"]]
    for row in trainer.train_dataset.select(range(5)):
        assert trainer.data_collator._captions(row)["pivot"] in texts


def test_fine_tuning_without_forgetting(study, results):
    before = next(line for line in results if line["condition"] == "1-to-K + pairs")
    averaged = CONDITIONS["1-to-K + pairs, then English, averaged 0.5"]
    line, _ = study.run(replace(averaged, name="all of it from before", averaged=0.0), 0)
    assert line["mean_recall"] == float(before["mean_recall"]) and line["mrv_std"] == float(before["mrv_std"])

    trainer = study.build(CONDITIONS["1-to-K + pairs, then English, with agreement 10"], 0, 1)
    languages, only = trainer.data_collator.languages, trainer.agreement_only
    assert languages[0] == "en" and only == len(languages) - 1 == 9 and trainer.args.agreement_start == 0
    page = agreement_report.fine_tuning(study.output_dir)
    assert "| before | 1 | " in page and "| then English, with agreement 10 | 1 | " in page


def test_captions_are_left_out_at_the_stated_share(study):
    condition = CONDITIONS["30 % of captions missing"]
    rows = [study.splits["train"][i] for i in range(96)]
    languages = list(rows[0]["captions"])
    processor = study.build(condition, 0, 1).processing_class
    collator = StudyCollator(processor, languages, condition=condition)
    present = collator(rows)["caption_mask"].float()
    assert abs(present.mean() - 0.7) < 0.05 and present.sum(dim=1).min() >= 1
    collator.epoch.fill_(1)  # what is missing is missing for good
    assert torch.equal(collator(rows)["caption_mask"].float(), present)
    everything = StudyCollator(processor, languages, condition=replace(condition, missing=0.0))
    assert everything(rows)["caption_mask"].all()


def test_translation_errors_come_at_their_rates(tmp_path):
    def captions(noise):
        builder = Shapes(cache_dir=str(tmp_path), num_train=600, translation_noise=noise)
        builder.download_and_prepare()
        return builder.as_dataset(split="train")["captions"]

    for language, rate in MISTRANSLATED.items():
        changed = np.mean([a[language] != b[language] for a, b in zip(captions(0.0), captions(1.0), strict=True)])
        assert changed == 0 if rate == 0 else 0.6 * rate < changed < 1.3 * rate, language
    with pytest.raises(ValueError, match=r"translation_noise=3.0: choose from 0 to 2\.5"):
        Shapes(cache_dir=str(tmp_path), translation_noise=3.0)


def test_document(study, results, tmp_path):
    report.main([str(study.output_dir), str(tmp_path)])
    text = (tmp_path / "consistency_study.md").read_text()
    assert "| 1-to-K | 2 | 2 |" in text and "| 1-to-K | 1-to-1 |" in text
    assert "| its recall at the end |" in text and text.count("| pivot + pairs | 1 | 2 |") == 1
    for figure in ("measures", "recall", "curves", "ranks"):
        assert (tmp_path / "consistency_study" / f"{figure}.png").stat().st_size > 5000
    for part in ("Fewer languages in training", "After fine-tuning on one language", "Other settings of 1-to-K"):
        assert f"## {part}" in text
    assert "| 1-to-K + pairs, then English | 1-to-K + pairs |" in text
    assert "| positives drawn evenly | 1-to-K + pairs |" in text
    assert text.count("| K = 2 | ") == 1 and "| 1-to-K (K = 10) | " in text
    # The table's figures are those of the runs.
    line = [float(row["mrv_std"]) for row in results if row["condition"] == "1-to-K"]
    row = next(row for row in text.splitlines() if row.startswith("| 1-to-K | 2 |"))
    assert f" {np.mean(line):.2f} (" in row


def test_document_of_photographs_has_a_place_and_a_command_of_its_own(study, results, tmp_path):
    folder = tmp_path / "study"
    shutil.copytree(study.output_dir, folder)
    settings = json.loads((folder / "study.json").read_text())
    settings["settings"]["dataset"] = "multi30k"
    (folder / "study.json").write_text(json.dumps(settings))
    lines = [line for line in (folder / "results.csv").read_text().splitlines() if "pairs" not in line]
    (folder / "results.csv").write_text("\n".join(lines))
    report.main([str(folder), str(tmp_path)])
    text = (tmp_path / "consistency_photographs.md").read_text()
    assert "The photographs that are ranked were trained on" in text and "make study" not in text
    assert "--dataset multi30k" in text and "--only 1-to-K 1-to-1 'K = 2'" in text
    assert (tmp_path / "consistency_photographs" / "results.csv").is_file()


def test_intervals_follow_the_ranks():
    ranks = np.ones((2, 40, 3, 2))
    assert report.measures(ranks).tolist() == [100, 0, 0, 0]
    ranks[:, :, 0] = 11  # one language misses everything
    recall, spread, mrv, variance = report.measures(ranks)
    assert recall == pytest.approx(200 / 3) and spread == pytest.approx(np.std([0, 100, 100]))
    assert mrv == pytest.approx(np.std([11, 1, 1])) and variance == pytest.approx(np.var([11, 1, 1]))
    assert report.decided(-1.5, np.array([-2.0, -1.0])) == "yes"
    assert report.decided(1.5, np.array([1.0, 2.0])) == "no"
    assert report.decided(0.1, np.array([-1.0, 1.0])) == "undecided"
    # Drawing anew adds noise to a spread; the interval takes it off again.
    low, high = report.interval(1.0, np.array([1.5, 1.75, 2.0]))
    assert low == pytest.approx(0.0, abs=0.02) and high == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "2-to-K"], "unknown condition 2-to-K"),
        (["--steps", "7"], "name another folder"),
        (
            [*SIZE, "--only", "pivot + pairs, then English"],
            r"starts from 'pivot \+ pairs' with seed 2; run that first",
        ),
    ],
)
def test_mistakes_are_named(study, arguments, message):
    with pytest.raises(SystemExit, match=message):
        main(["--output_dir", str(study.output_dir), "--seeds", "2", *arguments])


def test_a_condition_that_changed_its_meaning_is_refused(study, monkeypatch):
    monkeypatch.setitem(CONDITIONS, "1-to-1", replace(CONDITIONS["1-to-1"], length=2.0))
    with pytest.raises(SystemExit, match="other conditions called 1-to-1; name another folder"):
        main(["--output_dir", str(study.output_dir), *SIZE, "--only", "1-to-1"])


def test_a_run_that_fails_does_not_take_the_others_along(study, results, tmp_path):
    folder = tmp_path / "study"
    shutil.copytree(study.output_dir, folder, ignore=shutil.ignore_patterns("models"))  # that fine-tuning starts from
    only = ["--only", "pivot + pairs, then English", "pivot"]
    with pytest.raises(SystemExit, match=r"1 run failed: pivot \+ pairs, then English, seed 0"):
        main(["--output_dir", str(folder), *SIZE, "--jobs", "1", "--seeds", "0", *only])
    assert finished(folder / "results.csv") == finished(study.output_dir / "results.csv") | {("pivot", 0)}


def test_every_condition_has_a_name_of_its_own_and_starts_from_one():
    assert len(CONDITIONS) == sum(map(len, PARTS.values()))
    for condition in CONDITIONS.values():
        for other in (condition.equal_compute_to, condition.start_from):
            assert other is None or other in CONDITIONS
    assert (ROOT / "Makefile").read_text().count("research/consistency/study.py") == 1
