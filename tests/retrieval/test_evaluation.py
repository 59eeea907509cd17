"""eval_mrv.py from end to end on a few pictures: other models, several models, folds, comparison, report, mistakes."""

import base64
import io
import json
import re
import tracemalloc
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
import transformers
from builders import damaged, full_disk
from PIL import Image
from tiny import make_rows, make_spread_model

import ccrk.retrieval.evaluate
import data_scripts
import eval_mrv
from ccrk.encoders import CCRKEncoder, DualEncoder
from ccrk.retrieval.arrays import evaluate_arrays
from ccrk.retrieval.evaluate import evaluate_retrieval
from ccrk.retrieval.intervals import read_ranks
from data_scripts.cards import CARDS
from data_scripts.rows import row_features
from metrics.recall_at_k.recall_at_k import best_ranks

LANGUAGES = ("en", "de")


@pytest.fixture
def rows(monkeypatch):
    rows = make_rows([[4], [3], [5], [2], [6], [3]], languages=LANGUAGES)
    monkeypatch.setattr(data_scripts, "load", lambda task, languages=None, **_: rows)
    return rows


@pytest.fixture
def model_dir(processor, tmp_path):
    make_spread_model(len(processor.tokenizer)).save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def run(output_dir, *arguments) -> dict:
    eval_mrv.main([*map(str, arguments), "--output_dir", str(output_dir)])
    return json.loads((output_dir / "results.json").read_text())


def arrays_file(path, rows, seed=0, **changes):
    generator = np.random.default_rng(seed)
    arrays = {"images": generator.normal(size=(6, 5))}
    arrays |= {f"captions_{language}": generator.normal(size=(6, 5)) for language in LANGUAGES}
    np.savez(path, **{name: array for name, array in (arrays | changes).items() if array is not None})
    return path


class TestOtherModels:
    def test_embeddings(self, rows, tmp_path):
        path = arrays_file(tmp_path / "a.npz", rows)
        results = run(tmp_path / "out", "--model", path, "--task", "shapes")
        assert results["k_test"] == 0 and results["languages"] == ["en", "de"]
        arrays = np.load(path)
        unit = {name: arrays[name] / np.linalg.norm(arrays[name], axis=1, keepdims=True) for name in arrays}
        ranks = read_ranks(tmp_path / "out" / "ranks.parquet")
        for language in LANGUAGES:
            cosine = unit["images"] @ unit[f"captions_{language}"].T
            assert ranks[language]["TR"].tolist() == best_ranks(cosine, [[i] for i in range(6)]).tolist()
            assert ranks[language]["IR"].tolist() == best_ranks(cosine.T, [[i] for i in range(6)]).tolist()

    def test_scores(self, rows, tmp_path):
        scores = {f"scores_{language}": np.random.default_rng(3).integers(0, 3, (6, 6)) for language in LANGUAGES}
        np.savez(tmp_path / "a.npz", **scores)
        run(tmp_path / "out", "--model", tmp_path / "a.npz", "--task", "shapes")
        ranks = read_ranks(tmp_path / "out" / "ranks.parquet")
        assert ranks["de"]["TR"].tolist() == best_ranks(scores["scores_de"], [[i] for i in range(6)]).tolist()
        assert ranks["de"]["IR"].tolist() == best_ranks(scores["scores_de"].T, [[i] for i in range(6)]).tolist()

    @pytest.mark.slow
    def test_clip(self, rows, processor, tmp_path):
        from transformers import CLIPConfig, CLIPModel, CLIPProcessor

        sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        tokens = {"vocab_size": len(processor.tokenizer), "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
        vision = sizes | {"image_size": 64, "patch_size": 16}
        torch.manual_seed(0)
        CLIPModel(CLIPConfig(text_config=sizes | tokens, vision_config=vision)).save_pretrained(tmp_path / "clip")
        CLIPProcessor(processor.image_processor, processor.tokenizer).save_pretrained(tmp_path / "clip")
        results = run(tmp_path / "out", "--model", tmp_path / "clip", "--task", "shapes")
        assert results["k_test"] == 0 and results["mrv"]["languages"] == ["en", "de"]
        again = run(tmp_path / "again", "--model", tmp_path / "clip", "--task", "shapes", "--batch_size", 2)
        assert again["recall"] == results["recall"]

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("family", "of_vision", "of_images"),
        [
            ("Siglip", {"image_size": 64}, {"size": {"height": 64, "width": 64}}),
            ("Siglip2", {"num_patches": 16}, {"patch_size": 16, "max_num_patches": 16}),
        ],
        ids=["fixed resolution", "native resolution"],
    )
    def test_siglip(self, family, of_vision, of_images, rows, processor, tmp_path):
        sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        text = sizes | {"vocab_size": len(processor.tokenizer), "max_position_embeddings": 24, "projection_size": 16}
        made = {
            name: getattr(transformers, family + name) for name in ("Config", "Model", "ImageProcessor", "Processor")
        }
        torch.manual_seed(0)
        config = made["Config"](text_config=text, vision_config=sizes | {"patch_size": 16} | of_vision)
        made["Model"](config).save_pretrained(tmp_path / "siglip")
        made["Processor"](made["ImageProcessor"](**of_images), processor.tokenizer).save_pretrained(
            tmp_path / "siglip"
        )
        results = run(tmp_path / "out", "--model", tmp_path / "siglip", "--task", "shapes")
        again = run(tmp_path / "again", "--model", tmp_path / "siglip", "--task", "shapes", "--batch_size", 2)
        assert again["recall"] == results["recall"]

        encoder = DualEncoder.from_pretrained(tmp_path / "siglip")
        captions = ["a red star", "star " * 40]  # one is padded to the length that the model has, the other cut
        padded = encoder.processor.tokenizer(captions, padding="max_length", max_length=24, truncation=True)
        with torch.no_grad():
            expected = encoder.model.get_text_features(torch.tensor(padded["input_ids"])).pooler_output
        found = encoder.encode_captions(captions)["embeds"]
        torch.testing.assert_close(found, torch.nn.functional.normalize(expected, dim=-1))
        wide, high = Image.effect_noise((90, 40), 60), Image.effect_noise((40, 90), 60)
        one_by_one = torch.cat([encoder.encode_images([image])["embeds"] for image in (wide, high)])
        torch.testing.assert_close(encoder.encode_images([wide, high])["embeds"], one_by_one)

    @pytest.mark.slow
    def test_one_model_per_language(self, rows, model_dir, tmp_path):
        path = arrays_file(tmp_path / "a.npz", rows)
        mixed = run(tmp_path / "mixed", "--model", model_dir, "--model_for", f"de={path}", "--task", "shapes")
        assert mixed["model_for"] == {"de": str(path)} and mixed["languages"] == ["en", "de"] and mixed["k_test"] == 16
        arrays = run(tmp_path / "arrays", "--model", path, "--task", "shapes")
        ours = run(tmp_path / "ours", "--model", model_dir, "--task", "shapes")
        assert mixed["recall"] == {"en": ours["recall"]["en"], "de": arrays["recall"]["de"]}

    @pytest.mark.slow
    def test_bf16(self, rows, model_dir, tmp_path):
        results = run(tmp_path / "out", "--model", model_dir, "--task", "shapes", "--bf16", "--k_test", 3)
        assert results["k_test"] == 3


class TestTasks:
    def test_folds_of_coco(self, rows, monkeypatch, tmp_path):
        monkeypatch.setitem(CARDS, "coco", replace(CARDS["coco"], folds={"en": 3, "ja": 3}))
        results = run(tmp_path / "out", "--model", arrays_file(tmp_path / "a.npz", rows), "--task", "coco")
        assert results["recall_in_folds"]["en"]["IR@5"] == 100 > results["recall"]["en"]["IR@5"]
        assert results["folds"] == 3 and list(results["recall_in_folds"]) == ["en"], "Chinese is published as a whole"
        assert results["mrv"] is None and "no instances align" in results["no_mrv_because"]
        page = (tmp_path / "out" / "report.html").read_text()
        assert "No mean rank variance" in page and "Recall in 3 folds" in page

    @pytest.mark.slow
    def test_ten_pictures_of_one_name_and_one_of_many_spellings(self, tmp_path):
        """Every caption is nearest to the next picture, in one language; the same rows in the other give an MRV."""
        names = [f"class {number}/001.jpg" for number in range(10)]
        for name in names:
            (tmp_path / "photos" / name).parent.mkdir(parents=True)
            Image.new("RGB", (16, 16)).save(tmp_path / "photos" / name)
        for language, beginning in (("en", ""), ("de", "./photos/")):
            entries = [{"image": beginning + name, "caption": ["a"], "image_id": i} for i, name in enumerate(names)]
            (tmp_path / f"test_2016_flickr.{language}.json").write_text(json.dumps(entries))
        scores = np.eye(10)
        np.savez(tmp_path / "s.npz", scores_en=np.roll(scores, 1, axis=1), scores_de=scores)
        data = ("--data_dir", tmp_path, "--image_dir", tmp_path / "photos", "--languages", "en", "de")
        results = run(tmp_path / "out", "--model", tmp_path / "s.npz", "--task", "multi30k", *data)
        assert results["recall"]["en"]["IR@1"] == results["recall"]["en"]["TR@1"] == 0
        assert results["recall"]["de"]["mean"] == 100 and results["counts"]["images"] == 10
        assert results["mrv"]["IR"]["std"] == pytest.approx((10 - 1) / 2), "rank 10, all others tied, against rank 1"

    def test_languages_with_pictures_of_their_own(self, monkeypatch, tmp_path):
        rows = [dict(row) for row in make_rows([[4], [3], [5], [2], [6], [3]], languages=LANGUAGES)]
        for row, language in zip(rows, ["en", "de", "en", "en", "de", "en"], strict=True):
            row["captions"] = row["captions"] | {language: []}
        rows = data_scripts.datasets.Dataset.from_list(rows, features=make_rows([[1]], LANGUAGES).features)
        monkeypatch.setattr(data_scripts, "load", lambda task, **_: rows)
        generator = np.random.default_rng(0)
        np.savez(
            tmp_path / "a.npz",
            images=generator.normal(size=(6, 4)),
            captions_en=generator.normal(size=(2, 4)),
            captions_de=generator.normal(size=(4, 4)),
        )
        for task in ("wit", "shapes"):
            results = run(tmp_path / task, "--model", tmp_path / "a.npz", "--task", task)
            assert results["mrv"] is None
            assert results["counts"]["captions"] == {"en": 2, "de": 4} and results["counts"]["images"] == 6
            assert results["recall"]["en"]["IR@5"] == 100, "two pictures are searched, not six"
        assert results["no_mrv_because"] == "no instance has a caption in all of en, de"


@pytest.mark.slow
@pytest.mark.figures
def test_the_report_is_one_file_and_escapes_what_it_shows(rows, monkeypatch, tmp_path):
    hostile = [dict(row, captions=row["captions"] | {"de": ["<script>alert(1)</script>"]}) for row in rows]
    hostile = data_scripts.datasets.Dataset.from_list(hostile, features=rows.features)
    monkeypatch.setattr(data_scripts, "load", lambda task, **_: hostile)
    path = arrays_file(tmp_path / "a.npz", rows)
    run(tmp_path / "out", "--model", path, "--task", "multi30k")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<script" not in page and "&lt;script&gt;" in page
    assert not re.findall(r'(?:src|srcset|href)="(?!data:)', page)
    assert "CCR10-E (quoted)" in page and page.count('class="item"') > 1
    for name in ("recall", "rank_difference", "rank_spread"):
        assert (tmp_path / "out" / f"{name}.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.slow
def test_the_report_shows_transparent_pictures_on_white(rows, monkeypatch, tmp_path):
    buffer = io.BytesIO()
    Image.new("RGBA", (64, 64), (0, 0, 0, 0)).save(buffer, "PNG")
    rows = [dict(row, image={"bytes": buffer.getvalue(), "path": None}) for row in rows]
    rows = data_scripts.datasets.Dataset.from_list(rows, features=make_rows([[1]], LANGUAGES).features)
    monkeypatch.setattr(data_scripts, "load", lambda task, **_: rows)
    run(tmp_path / "out", "--model", arrays_file(tmp_path / "a.npz", rows), "--task", "shapes")
    picture = re.search('data:image/jpeg;base64,([^"]+)', (tmp_path / "out" / "report.html").read_text())[1]
    assert Image.open(io.BytesIO(base64.b64decode(picture))).getpixel((0, 0)) == (255, 255, 255)


def test_every_option_of_a_data_set(rows, monkeypatch, tmp_path):
    given = {}
    monkeypatch.setattr(data_scripts, "load", lambda _, **options: (given.update(options), rows)[1])
    arguments = ["--model", arrays_file(tmp_path / "a.npz", rows), "--dataset", "multi30k"]
    results = run(
        tmp_path / "out", *arguments, "--max_bad_fraction", "0.5", "--dataset_config", '{"task": 2, "cache_dir": null}'
    )
    assert (given["task"], given["max_bad_fraction"], given["cache_dir"]) == (2, 0.5, None)
    assert results["dataset_config"]["task"] == 2 and results["mrv"] is None, "five independent captions do not align"


@pytest.mark.parametrize("value", ["{", "[1]", "task=2", "3", ""])
def test_options_that_are_no_json_object(value, tmp_path, capsys):
    with pytest.raises(SystemExit):
        eval_mrv.main(["--model", "m", "--task", "coco", "--output_dir", str(tmp_path), "--dataset_config", value])
    assert "--dataset_config" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mrv_languages", "en", "fr"], "error: --mrv_languages names fr, evaluated are en, de"),
        (["--mrv_languages", "en", "en"], "error: --mrv_languages names a language twice: en en; name each once"),
        (["--task", "wit", "--mrv_languages", "en", "de"], "no instances align; leave --mrv_languages out"),
    ],
)
def test_languages_of_mrv_are_checked_before_scoring(arguments, message, rows, monkeypatch, tmp_path):
    monkeypatch.setattr(eval_mrv, "evaluate_models", lambda *_: pytest.fail("scored before it was checked"))
    with pytest.raises(SystemExit, match=message):
        run(tmp_path / "out", "--model", "unused", "--task", "shapes", *arguments)


@pytest.mark.parametrize(
    ("arguments", "arrays", "message"),
    [
        (["--model_for", "fr=x"], {}, "--model_for names fr, but the languages are en, de"),
        (["--compare", "nowhere.parquet"], {}, r"nowhere\.parquet"),
        ([], {"captions_de": None}, "has no array 'captions_de', only images, captions_en; see --help"),
        ([], {"captions_de": np.zeros((5, 5))}, r"captions_de has shape \(5, 5\), but the data asks for \(6, None\)"),
        ([], {"scores_en": np.full((6, 6), np.nan)}, "scores_en holds NaN in row 0"),
        ([], {"images": np.array([{}] * 6)}, "allow_pickle=False"),
    ],
)
def test_mistakes_end_in_one_line(arguments, arrays, message, rows, tmp_path):
    model = arrays_file(tmp_path / "a.npz", rows, **arrays)
    with pytest.raises(SystemExit, match=message) as raised:
        run(tmp_path / "out", "--model", model, "--task", "shapes", *arguments)
    assert str(raised.value).startswith("error: ") and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "damage",
    [lambda contents: contents[:-40], lambda contents: b"", lambda contents: contents.replace(b"NUMPY", b"numpy")],
)
def test_a_damaged_npz(damage, rows, tmp_path):
    path = arrays_file(tmp_path / "a.npz", rows)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(SystemExit, match=r"error: .*a\.npz is damaged \(.*\); write it again with numpy\.savez"):
        run(tmp_path / "out", "--model", path, "--task", "shapes")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max_rows", 0], "--max_rows must be at least 1"),
        (["--batch_size", 0], "--batch_size must be at least 1"),
    ],
)
def test_arguments_are_checked_first(arguments, message, rows, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run(tmp_path / "out", "--model", "unused", "--task", "shapes", *arguments)
    assert message in capsys.readouterr().err


def test_an_empty_split(rows, monkeypatch, tmp_path):
    monkeypatch.setattr(data_scripts, "load", lambda task, **_: rows.select([]))
    with pytest.raises(SystemExit, match="shapes has no rows in its test split; choose another --split"):
        run(tmp_path / "out", "--model", arrays_file(tmp_path / "a.npz", rows), "--task", "shapes")


@pytest.mark.slow
def test_an_interrupted_run_leaves_what_it_encoded(rows, model_dir, monkeypatch, tmp_path):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("ccrk.retrieval.evaluate.rank_language", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "out", "--model", model_dir, "--task", "shapes")
    names = {path.name.split("-")[0] for path in (tmp_path / "out" / "encoded").rglob("*.safetensors")}
    assert names == {"images", "captions"}
    monkeypatch.undo()
    monkeypatch.setattr(data_scripts, "load", lambda task, **_: rows)
    monkeypatch.setattr("ccrk.encoders.CCRKEncoder.encode_images", interrupted)
    assert run(tmp_path / "out", "--model", model_dir, "--task", "shapes")["counts"]["images"] == 6
    assert not (tmp_path / "out" / "encoded").exists()


def bomb(path, name, shape, size):
    """A compressed array whose header says `shape`, of `size` zeros."""
    header = io.BytesIO()
    fields = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, fields)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as file, file.open(f"{name}.npy", "w") as entry:
        entry.write(header.getvalue() + bytes(size))


class TestArraysOfOthers:
    @pytest.mark.parametrize(
        ("shape", "size", "message"),
        [
            ((6, 4_000_000), 96_000_000, "captions_en is 4000000 wide; an embedding has 1 to 16384 numbers"),
            ((4_000_000, 6), 96_000_000, r"has shape \(4000000, 6\), but the data asks for \(6, None\)"),
            ((6, 5), 96_000_000, "is damaged .captions_en is not as long as it says"),
            ((6, 5), 3, "is damaged .captions_en is not as long as it says"),
            ((6, 0), 0, "captions_en is 0 wide"),
            ((6, -1), 0, r"is damaged|0 wide|-1 wide"),
        ],
    )
    def test_no_more_is_read_than_the_data_asks_for(self, shape, size, message, rows, tmp_path):
        path = arrays_file(tmp_path / "a.npz", rows, captions_en=None)
        bomb(path, "captions_en", shape, size)
        tracemalloc.start()
        with pytest.raises(ValueError, match=message):
            evaluate_arrays(path, rows, LANGUAGES)
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
        tracemalloc.stop()

    @pytest.mark.parametrize(
        ("array", "message"),
        [
            (np.full((6, 5), "a"), "images holds <U1; give numbers"),
            (np.ones((6, 5), complex), "images holds complex128; give numbers"),
            (np.ones((6, 5), "M8[s]"), "images holds datetime64"),
            (np.ones((6, 5), [("a", "f4")]), "images holds"),
            (np.ones((6, 5, 1)), r"images has shape \(6, 5, 1\)"),
            (np.array(3.0), r"images has shape \(\)"),
            (np.full((6, 5), np.inf), "images holds infinity in row 0"),
        ],
    )
    def test_types(self, array, message, rows, tmp_path):
        with pytest.raises(ValueError, match=message):
            evaluate_arrays(arrays_file(tmp_path / "a.npz", rows, images=array), rows, LANGUAGES)

    def test_any_damage_is_one_line(self, rows, tmp_path):
        path = arrays_file(tmp_path / "a.npz", rows)
        contents, whole = path.read_bytes(), evaluate_arrays(path, rows, LANGUAGES).rank_table()
        refused = 0
        for seed in range(80):
            path.write_bytes(damaged(contents, seed))
            try:
                table = evaluate_arrays(path, rows, LANGUAGES).rank_table()
            except ValueError as error:
                refused += str(path) in str(error)
            else:
                pd.testing.assert_frame_equal(table, whole)
        assert refused > 60

    def test_are_looked_at_before_another_model_is_run(self, rows, model_dir, monkeypatch, tmp_path):
        monkeypatch.setattr(
            ccrk.retrieval.evaluate, "load_encoder", lambda *_: pytest.fail("run before all was looked at")
        )
        path = arrays_file(tmp_path / "a.npz", rows, captions_de=np.ones((5, 5)))
        for model, message in ((path, r"captions_de has shape \(5, 5\)"), ("outputs/typo", "there is no folder")):
            with pytest.raises(SystemExit, match=message):
                run(tmp_path / "out", "--model", model_dir, "--model_for", f"de={model}", "--task", "shapes")


def spoil_block(path, damage: str) -> None:
    contents = path.read_bytes()
    if damage == "cut":
        path.write_bytes(contents[:-9])
    elif damage == "no block":
        path.write_bytes(b"\x00\x01 no block")
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "numbers turned":
        path.write_bytes(contents[:-9] + bytes(byte ^ 64 for byte in contents[-9:]))
    else:
        with safetensors.safe_open(path, "pt") as file:
            block, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()
        changed = {"fewer rows": block["embeds"][1:], "other type": block["embeds"].half()}
        block = {} if damage == "no tensors" else block | {"embeds": changed[damage]}
        safetensors.torch.save_file(block, path, metadata)


class TestEncodedBlocks:
    def interrupt(self, monkeypatch, output_dir, model):
        def interrupted(*_, **__):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr("ccrk.retrieval.evaluate.rank_language", interrupted)
            with pytest.raises(KeyboardInterrupt):
                run(output_dir, "--model", model, "--task", "shapes")
        return sorted((output_dir / "encoded").rglob("*.safetensors"))

    @pytest.mark.slow
    def test_a_damaged_one_is_encoded_anew(self, rows, processor, tmp_path, caplog):
        encoder = CCRKEncoder(make_spread_model(len(processor.tokenizer)), processor, k_test=4)

        def evaluate():
            return evaluate_retrieval(encoder, rows, LANGUAGES, cache_dir=tmp_path).rank_table()

        expected, blocks = evaluate(), sorted(tmp_path.iterdir())
        assert len(blocks) == 3 and not caplog.records
        for damage in ("cut", "no block", "empty", "numbers turned", "fewer rows", "other type", "no tensors"):
            for path in blocks:
                spoil_block(path, damage)
            pd.testing.assert_frame_equal(evaluate(), expected)
            assert [record.args[0] for record in caplog.records] == [blocks[2], *blocks[:2]], damage
            assert all("cannot be used" in record.getMessage() for record in caplog.records)
            caplog.clear()
            pd.testing.assert_frame_equal(evaluate(), expected)
            assert not caplog.records, "they are whole again"

    @pytest.mark.slow
    def test_an_evaluation_deletes_its_own_alone(self, rows, model_dir, processor, monkeypatch, tmp_path):
        other = make_spread_model(len(processor.tokenizer))
        other.ccrk.text_projection.weight.data.neg_()
        other.save_pretrained(tmp_path / "other")
        processor.save_pretrained(tmp_path / "other")
        blocks = self.interrupt(monkeypatch, tmp_path / "out", tmp_path / "other")
        run(tmp_path / "out", "--model", model_dir, "--task", "shapes")
        assert sorted((tmp_path / "out" / "encoded").rglob("*")) == sorted({blocks[0].parent, *blocks})
        run(tmp_path / "out", "--model", tmp_path / "other", "--task", "shapes")
        assert not (tmp_path / "out" / "encoded").exists()


class TestOutput:
    def test_the_folder_is_looked_at_before_the_work(self, rows, monkeypatch, tmp_path):
        monkeypatch.setattr(data_scripts, "load", lambda *_, **__: pytest.fail("read before it was looked at"))
        (tmp_path / "file").write_text("")
        for folder in (tmp_path / "file", tmp_path / "file" / "out", Path("/proc/out")):
            with pytest.raises(SystemExit, match=f"nothing can be written to {folder}"):
                eval_mrv.main(["--model", "m", "--task", "shapes", "--output_dir", str(folder)])

    @pytest.mark.figures
    @pytest.mark.parametrize(
        ("room", "name", "left"),
        [
            (5_000, r"images-64-0000000\.safetensors", set()),
            (9, r"ranks\.parquet", set()),
            (20_000, r"rank_difference\.png", {"ranks.parquet", "results.json", "recall.png"}),
        ],
    )
    def test_a_full_disk_is_one_line_and_leaves_no_half_file(self, room, name, left, rows, model_dir, tmp_path):
        model = model_dir if "images" in name else arrays_file(tmp_path / "a.npz", rows)
        (tmp_path / "out").mkdir()
        with full_disk(room), pytest.raises(SystemExit) as error:
            eval_mrv.main(["--model", str(model), "--task", "shapes", "--output_dir", str(tmp_path / "out")])
        assert re.match(rf"error: .*{name} could not be written \(.*\); make room", str(error.value)), error.value
        assert "\n" not in str(error.value)
        assert {path.name for path in (tmp_path / "out").rglob("*") if path.is_file()} == left

    @pytest.mark.parametrize("name", ["ranks.parquet", "report.html"])
    def test_a_file_that_cannot_be_written(self, name, rows, tmp_path):
        (tmp_path / "out" / name).mkdir(parents=True)
        with pytest.raises(SystemExit, match=f"error: .*{name} could not be written"):
            run(tmp_path / "out", "--model", arrays_file(tmp_path / "a.npz", rows), "--task", "shapes")
        assert not list((tmp_path / "out").glob("*.unfinished"))


@pytest.mark.slow
@pytest.mark.figures
def test_nothing_of_names_is_obeyed(rows, monkeypatch, tmp_path, capsys):
    """A `$` begins no formula, ESC no command, and a quote ends no attribute, wherever a name is shown."""
    strange = ("a$_{", '"><script>\x1b[31m$\\frac')
    hostile = [
        dict(row, image_id=f'{i}" onerror="x$', captions=dict(zip(strange, row["captions"].values(), strict=True)))
        for i, row in enumerate(rows)
    ]
    hostile = data_scripts.datasets.Dataset.from_list(hostile, features=row_features(strange))
    monkeypatch.setattr(data_scripts, "load", lambda task, **_: hostile)
    generator = np.random.default_rng(0)
    arrays = {f"scores_{language}": generator.normal(size=(6, 6)) for language in strange}
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as file:
        for name, array in arrays.items():
            with file.open(f"{name}.npy", "w") as entry:
                np.save(entry, array)
    run(tmp_path / "out", "--model", tmp_path / "a.npz", "--task", "shapes", "--split", "<b>")
    printed = capsys.readouterr().out
    assert r"\x1b[31m" in printed and all(line.isprintable() for line in printed.splitlines())
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<script" not in page and "<b>," not in page and '" onerror' not in page
    assert (tmp_path / "out" / "rank_difference.png").exists()
