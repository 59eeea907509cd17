"""The study of two towers on photographs, small: what it writes, that it goes on, and the document."""

import json

import datasets
import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tiny import WORDS, call, tokenizer

from research.agreement import report as agreement_report
from research.agreement import study as agreement
from research.photographs import report, towers

SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture
def arguments(processor, tmp_path, monkeypatch) -> list:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(towers, "SETTINGS", [towers.Setting(2, 1e-3, dropout) for dropout in (0.0, 0.3)])
    monkeypatch.setattr(towers, "SEEDS", 2)
    monkeypatch.setattr(towers, "BATCH", 4)
    torch.manual_seed(0)
    words = tokenizer(processor)
    config = transformers.XLMRobertaConfig(**SIZES, vocab_size=len(words), max_position_embeddings=18)
    transformers.XLMRobertaModel(config, add_pooling_layer=False).save_pretrained(tmp_path / "text")
    words.save_pretrained(tmp_path / "text")
    vision = transformers.ViTModel(transformers.ViTConfig(**SIZES, image_size=32, patch_size=16))
    vision.save_pretrained(tmp_path / "image")
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "image")

    generator, lines = np.random.default_rng(0), []
    for number in range(18):
        name, split = f"{number}.png", "train" if number < 8 else "val" if number < 14 else "test_2016_flickr"
        Image.fromarray(generator.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(tmp_path / name)
        captions = {
            f"caption_{language}": [" ".join(generator.choice(WORDS, 4))] for language in towers.SEEN + towers.UNSEEN
        }
        lines.append(json.dumps({"file_name": name, "split": split} | captions))
    (tmp_path / "captions.jsonl").write_text("\n".join(lines))
    files = {"vision_model": "image", "text_model": "text", "captions": "captions.jsonl", "photographs": "."}
    given = [part for name, file in files.items() for part in (f"--{name}", tmp_path / file)]
    return [*given, "--output_dir", tmp_path / "out"]


@pytest.mark.slow
def test_results_are_written_as_they_come_and_not_found_twice(arguments, tmp_path, monkeypatch):
    trained, ends_at, train = [], ["English alone"], towers.train

    def recorded(pair, style, *others):
        if style in ends_at:
            raise KeyboardInterrupt
        trained.append(style)
        train(pair, style, *others)

    monkeypatch.setattr(towers, "train", recorded)
    with pytest.raises(KeyboardInterrupt):
        call(towers, *arguments, monkeypatch=monkeypatch)
    path = tmp_path / "out" / "results.json"
    first = json.loads(path.read_text())
    assert list(first["styles"]) == list(towers.STYLES)[:2]

    trained.clear()
    ends_at.clear()
    call(towers, *arguments, monkeypatch=monkeypatch)
    found = json.loads(path.read_text())
    assert list(found["styles"]) == list(towers.STYLES) and set(trained) == set(list(towers.STYLES)[2:])
    assert found["photographs"] == {"training": 8, "choosing": 3, "ranked": 7}
    for style, own in first["styles"].items():
        assert found["styles"][style] == own
    english = found["styles"]["English alone"]
    assert len(english["R@5"]["seen"]) == 2 and english["1-to-K minus this"]["mrv"]["p"] <= 1
    document = report.page(found, {})
    assert "The 7 others, of" in document and "| English alone | " in document

    table = [json.loads(line) for line in (tmp_path / "out" / "photographs.jsonl").read_text().splitlines()]
    assert [sum(row["split"] == name for row in table) for name in ("train", "validation", "test")] == [8, 3, 7]
    assert all(row["caption_de"] for row in table) and table[-1]["caption_zh"] and not table[0]["caption_zh"]

    monkeypatch.setattr(towers, "SETTINGS", towers.SETTINGS[:1])
    with pytest.raises(SystemExit, match="of other towers, photographs or settings; name another --output_dir"):
        call(towers, *arguments, monkeypatch=monkeypatch)


@pytest.mark.slow
def test_the_study_of_agreement_goes_on_and_is_reported(arguments, tmp_path, monkeypatch):
    monkeypatch.setattr(agreement, "SETTING", towers.Setting(2, 1e-3, 0.3))
    monkeypatch.setattr(agreement, "BATCH", 4)
    names = ["weight 0", "weight 30", "half, weight 0", "half, weight 3, the others' captions"]
    command = ["photographs", *map(str, arguments)]
    agreement.main([*command, "--only", *names[:1], "--seeds", "0"])
    path = tmp_path / "out" / "results.jsonl"
    (first,) = path.read_text().splitlines()
    agreement.main([*command, "--only", *names, "--seeds", "0", "1"])
    lines = path.read_text().splitlines()
    assert lines[0] == first and len(lines) == 8
    losses = [json.loads(line)["ranked"]["seen"]["mrv"] for line in lines[:4]]
    assert len(set(losses)) > 1  # conditions differ

    monkeypatch.chdir(tmp_path)
    call(agreement_report, tmp_path / "out", tmp_path / "docs", monkeypatch=monkeypatch)
    page = (tmp_path / "docs" / "agreement_study.md").read_text()
    assert all(f"| {name} | 2 |" in page for name in names) and "translations averaged" in page
    assert (tmp_path / "docs" / "agreement_study" / "curves.png").is_file()
