"""Languages that take part in agreement alone while others are fine-tuned."""

import json

import datasets
import pytest
import torch
import yaml
from accelerate import Accelerator
from tiny import RECIPE, assert_same_gradients, call, loss_and_gradients, make_trainer, tiny_config
from torch.nn import functional as F

import train_retrieval
from ccrk import CCRKForPreTraining
from ccrk.arguments import DataArguments
from ccrk.build import keep_usable_rows
from ccrk.encoders import Embeddings
from ccrk.training.captions import check_captions
from ccrk.training.collator import CCRKCollator
from ccrk.training.losses import OneToKLoss
from objectives_ccrk import agreement_loss, contrastive_loss


def test_contrast_sees_the_first_languages_and_agreement_all():
    generator = torch.Generator().manual_seed(0)
    image, text = (F.normalize(torch.randn(*size, 8, generator=generator), dim=-1) for size in ((4,), (4, 3)))
    mask, ids = torch.rand(4, 3, generator=generator) > 0.2, torch.tensor([1, 2, 2, 3])
    found, inputs = Embeddings(image, text, torch.tensor(0.2)), {"caption_mask": mask, "image_ids": ids}
    loss = OneToKLoss(Accelerator(cpu=True), agreement_weight=2.0, agreement_only=2)
    losses = loss(found, inputs)
    expected = contrastive_loss(image, text[:, :1], torch.tensor(0.2), mask[:, :1], ids, reduction="symmetric")
    torch.testing.assert_close(losses["contrastive_loss"], expected)
    torch.testing.assert_close(losses["agreement_loss"], 2 * agreement_loss(image, text, torch.tensor(0.2), mask, ids))
    assert loss.for_encoder(inputs)["caption_mask"].tolist() == [[own[0].item(), False, False] for own in mask]


@pytest.mark.parametrize("chunk_size", [None, 4])
def test_before_agreement_comes_in_they_are_as_if_not_there(chunk_size, processor, shapes, tmp_path):
    """Matching and masked LM, whose draws a caption more would change, among what is compared."""

    def gradients(languages, agreement_only):
        torch.manual_seed(0)
        model = CCRKForPreTraining(tiny_config(len(processor.tokenizer)))
        options = {"agreement_weight": 3.0, "agreement_start": 0.9, "contrastive_chunk_size": chunk_size}
        trainer = make_trainer(model, processor, shapes, tmp_path, languages, **options)
        trainer.state.max_steps = 4
        trainer.agreement_only = agreement_only
        return loss_and_gradients(trainer, shapes)

    found = gradients(("en", "de", "zh"), 1)
    assert_same_gradients(found, gradients(("en", "de"), 0), 1e-5, 1e-9)


@pytest.fixture
def fine_tune(tiny_model, processor, tmp_path, monkeypatch):
    """Fine-tuning on English, with German and Chinese beside it; returns where its output is."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    tiny_model.save_pretrained(tmp_path / "start")
    processor.save_pretrained(tmp_path / "start")

    def run(**others):
        values = {name: value for name, value in RECIPE.items() if name not in ("config", "image_size")}
        values |= {"model_name_or_path": str(tmp_path / "start"), "output_dir": str(tmp_path / "out")}
        values |= {"languages": ["en"], "agreement_languages": ["de", "zh"]}
        values |= {"agreement_weight": 3.0} | others
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(yaml.safe_dump({name: value for name, value in values.items() if value is not None}))
        call(train_retrieval, recipe, monkeypatch=monkeypatch)
        return tmp_path / "out"

    return run


@pytest.mark.slow
def test_fine_tuning_on_english(fine_tune):
    out = fine_tune(eval_strategy="steps", eval_steps=2, logging_steps=1, agreement_weight=1e5)  # of random weights
    logs = json.loads((out / "trainer_state.json").read_text())["log_history"]
    assert all(log["agreement_loss"] > 0 and log["matching_loss"] > 0 for log in logs if "loss" in log)
    [evaluation] = [log for log in logs if "eval_mrv" in log]
    assert {"eval_recall_en", "eval_recall_de", "eval_recall_zh"} <= evaluation.keys()
    arguments = torch.load(out / "training_args.bin", weights_only=False)
    assert arguments.agreement_start == 0.0 and evaluation["step"] == 2
    assert "languages en de zh, of which de zh in agreement alone" in (out / "README.md").read_text()


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"agreement_weight": None}, "agreement_languages take part in agreement alone; set agreement_weight"),
        ({"languages": None}, "agreement_languages stand beside those that are trained as ever; name these by"),
        ({"agreement_languages": ["en", "de"]}, "en is among languages and agreement_languages; remove it from one"),
        ({"captions_per_image": "one"}, "captions_per_image is one, but agreement_languages take all captions"),
        ({"rows": "captions"}, "rows is captions, but agreement_languages take all captions of a picture at once"),
        (
            {"agreement_languages": ["de", "de"]},
            r"agreement_languages is a list of different codes .*, not ..de., .de..",
        ),
        ({"agreement_languages": []}, "agreement_languages is a list of different codes"),
        ({"agreement_languages": ["xx"]}, "xx"),
    ],
)
def test_mistakes_end_in_one_line(others, message, fine_tune):
    with pytest.raises(SystemExit, match=message):
        fine_tune(**others)


def test_rows_without_a_caption_that_pictures_meet(shapes, caplog):
    captions = [
        {"en": ["a"], "de": ["b"]},
        {"en": [], "de": ["c"]},
        {"en": [" "], "de": ["d"]},
        {"en": ["e"], "de": []},
    ]
    rows = shapes.select(range(4)).remove_columns("captions").add_column("captions", captions)
    assert len(keep_usable_rows(rows, ["de"])) == 2 and "2 of 4 rows left out: no usable caption in en" in caplog.text
    with pytest.raises(ValueError, match="no row has a usable caption"):
        keep_usable_rows(rows.select([1, 2]), ["de"])
    data = DataArguments(agreement_languages=["de"])
    check_captions(data, rows)
    with pytest.raises(ValueError, match="agreement_languages are given, but no row has captions in two languages"):
        check_captions(data, rows.select([3]))


def test_an_aligned_row_draws_translations_that_have_a_caption_for_the_picture(processor, shapes):
    row = shapes[0] | {"captions": {"en": ["a dog"], "de": ["b", "c", "d", "e"]}, "aligned": True}
    for seed in range(10):
        collator = CCRKCollator(processor, ["en", "de"], seed=seed, agreement_only=1)
        assert collator([row])["caption_mask"].all()


@pytest.mark.parametrize(("only", "one_language"), [(2, False), (3, False), (1, True)])
def test_some_language_meets_pictures(only, one_language, processor):
    with pytest.raises(ValueError, match="leave one or more that pictures meet"):
        CCRKCollator(processor, ["en", "de"], one_language, agreement_only=only)
