"""Queries: by text and picture, sums and differences, filters, re-ranking, and the command line."""

import json
import os
import re
import shutil
import unicodedata
from pathlib import Path
from types import SimpleNamespace

import lancedb
import numpy as np
import pyarrow as pa
import pytest
import torch
import transformers
from builders import write
from conftest import ROOT
from fastapi.testclient import TestClient
from lancedb.embeddings import EmbeddingFunctionConfig, get_registry
from PIL import Image
from search_builders import Colors, bring_up_to_date, photographs, picture
from tiny import tiny_config, tokenizer

from ccrk import CCRKForImageTextRetrieval
from ccrk.search import PictureIndex
from ccrk.search.__main__ import main
from ccrk.search.query import Filter, as_query, encode_again, rerank_found
from ccrk.search.serve import make_app
from ccrk.search.store import Store

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


@pytest.fixture
def colors(tmp_path):
    """An index of three colours in two folders."""
    for name, color in {"warm/red.png": RED, "cold/blue.png": BLUE, "cold/it's/green.png": GREEN}.items():
        picture(tmp_path / "photos" / name, color)
        os.utime(tmp_path / "photos" / name, (0, 86400 * len(name)))
    bring_up_to_date(tmp_path / "photos", tmp_path / "index")
    index = PictureIndex(tmp_path / "index")
    index.encoder = Colors()
    return index


@pytest.fixture(scope="session")
def checkpoint(processor, tmp_path_factory):
    """A tiny CCRK with a fusion encoder, on disk."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    CCRKForImageTextRetrieval(tiny_config(len(processor.tokenizer))).save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def paths(found) -> list[str]:
    assert [picture.rank for picture in found] == list(range(1, len(found) + 1))
    assert [picture.score for picture in found] == sorted((picture.score for picture in found), reverse=True)
    return [picture.path for picture in found]


def test_by_text_and_by_picture(colors):
    assert paths(colors.search("red", k=1)) == paths(colors.search("rot", k=1)) == ["warm/red.png"]
    assert colors.search("red", k=1)[0].score == pytest.approx(1)
    assert paths(colors.search(Image.new("RGB", (20, 20), BLUE)))[0] == "cold/blue.png"
    assert len(colors.search("red", k=99)) == 3
    with pytest.raises(ValueError, match="the query is empty"):
        colors.search(" . ")


def test_sums_and_differences(colors):
    assert set(paths(colors.search("red", k=2, add=["blue"]))) == {"warm/red.png", "cold/blue.png"}
    assert paths(colors.search("red", add=["blue"], subtract=["red"]))[0] == "cold/blue.png"
    with pytest.raises(ValueError, match="leaves nothing"):
        colors.search("red", subtract=["rot"])


@pytest.mark.parametrize("is_approximate", [False, True])
def test_filters(colors, is_approximate):
    colors.store.is_approximate = is_approximate  # Lance compares all where it has no index
    colors.store.refresh = lambda: False
    assert set(paths(colors.search("red", chosen=Filter.of("cold/")))) == {"cold/blue.png", "cold/it's/green.png"}
    assert paths(colors.search("red", chosen=Filter.of("cold/it's"))) == ["cold/it's/green.png"]
    assert paths(colors.search("red", chosen=Filter.of("col"))) == []
    # Of 12, 13 and 19 days after 1970 began.
    assert paths(colors.search("red", chosen=Filter.of(since="1970-01-16"))) == ["cold/it's/green.png"]
    assert paths(colors.search("red", chosen=Filter.of("cold", until="1970-01-16"))) == ["cold/blue.png"]
    with pytest.raises(ValueError, match="'tomorrow' is not a date such as"):
        Filter.of(since="tomorrow")


def test_what_another_process_writes_is_found(colors, tmp_path):
    colors.search("green")
    picture(tmp_path / "photos/new.png", (0, 250, 0))
    bring_up_to_date(tmp_path / "photos", tmp_path / "index")
    assert paths(colors.search("green", k=2)) == ["cold/it's/green.png", "new.png"]


@pytest.mark.slow
def test_approximate_search_finds_what_exact_search_finds(tmp_path):
    generator = np.random.default_rng(0)
    centres = generator.standard_normal((100, 96))  # pictures come in kinds
    vectors = (centres[np.arange(3000) % 100] + generator.standard_normal((3000, 96))).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    store = Store.create(str(tmp_path / "index"), {"model": "none", "fingerprint": "none", "dtype": "fp32"}, 96)
    rows = [
        {"path": f"{i}.jpg", "size": 1, "mtime_ns": i, "digest": f"{i}", "vector": v} for i, v in enumerate(vectors)
    ]
    store.write([row | {"jpeg": b""} for row in rows])
    store.tidy(exact_up_to=2000)
    assert store.is_approximate
    assert store.recall() > 0.9
    exact = (vectors @ vectors[7]).argsort()[::-1][:5]
    found = PictureIndex(tmp_path / "index").nearest(torch.from_numpy(vectors[7]), 5)
    assert [int(picture.path.removesuffix(".jpg")) for picture in found][:2] == exact[:2].tolist()
    assert found[0].score == pytest.approx(1, abs=1e-5)


def test_reranking_is_by_the_match_logits_of_the_stored_pictures(checkpoint, processor, tmp_path):
    folder = photographs(tmp_path / "photos", 8)
    index = PictureIndex(tmp_path / "index", checkpoint)
    index.update(folder)
    found = index.search("ein roter Kreis", k=3, rerank=8)
    model = CCRKForImageTextRetrieval.from_pretrained(checkpoint).eval()
    jpegs = index.store.jpegs([picture.id for picture in index.search("ein roter Kreis")])
    inputs = processor(images=list(jpegs.values()), text=["ein roter Kreis"])
    with torch.no_grad():
        outputs = model.ccrk(**inputs)
        logits = model.match(
            outputs.image_states,
            outputs.text_states,
            inputs["attention_mask"],
            image_index=torch.arange(8),
            caption_index=torch.zeros(8, dtype=torch.long),
        )[:, 1]
    expected = dict(zip(jpegs, logits.tolist(), strict=True))
    assert [picture.id for picture in found] == sorted(expected, key=expected.get, reverse=True)[:3]
    assert [picture.score for picture in found] == pytest.approx(sorted(expected.values(), reverse=True)[:3], abs=1e-4)
    paths(found)
    with pytest.raises(ValueError, match="re-ranking compares pictures with one text"):
        index.search(Image.new("RGB", (64, 64)), rerank=3)


def test_states_that_are_kept_rerank_as_the_pictures_do(checkpoint, tmp_path, monkeypatch):
    folder = photographs(tmp_path / "photos", 8)
    main(["index", str(folder), str(tmp_path / "index"), "--model", checkpoint, "--keep_states"])
    index = PictureIndex(tmp_path / "index")
    files = {picture.id: (folder / picture.path).read_bytes() for picture in index.search("ein roter Kreis")}
    states = encode_again(index.reranker, files)
    expected = rerank_found(index.reranker, "ein roter Kreis", index.search("ein roter Kreis"), lambda _: states)

    shutil.copy(folder / "a/0-001.png", folder / "copy.png")
    assert index.update(folder).copied == 1  # its states as well
    monkeypatch.setattr(index.reranker, "encode_images", lambda _: pytest.fail("a picture is encoded"))
    found = index.search("ein roter Kreis", rerank=9)
    assert "copy.png" in paths(found)
    scores = {picture.path: picture.score for picture in found if picture.path != "copy.png"}
    half = 1e-5  # what half precision changes, of scores that lie a hundred times as far apart
    assert expected[0].score - expected[-1].score > 100 * half
    assert scores == pytest.approx({picture.path: picture.score for picture in expected}, abs=half)
    assert list(scores) == [picture.path for picture in expected]

    PictureIndex(tmp_path / "plain", checkpoint).update(folder)
    with pytest.raises(ValueError, match="was made without states; remove --keep_states"):
        PictureIndex(tmp_path / "plain", keep_states=True)


def test_vectors_are_those_of_the_whole_pictures(checkpoint, tmp_path):
    """Decoding at a reduced scale changes next to nothing."""
    gradient = np.linspace(0, 255, 900, dtype=np.uint8)
    pixels = np.stack([np.tile(gradient, (700, 1)), np.tile(gradient[:700, None], (1, 900))] * 2, axis=2)[..., :3]
    for ending in ("jpg", "png"):
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.fromarray(np.ascontiguousarray(pixels)).save(tmp_path / f"photos/large.{ending}")
    index = PictureIndex(tmp_path / "index", checkpoint)
    index.update(tmp_path / "photos")
    assert all(picture.score > 0.999 for picture in index.search(tmp_path / "photos/large.png"))


def run(*arguments, capsys) -> list[dict]:
    main([str(argument) for argument in arguments])
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_the_command_line(checkpoint, tmp_path, capsys):
    folder = photographs(tmp_path / "photos", 6)
    index = tmp_path / "index"
    main(["index", str(folder), str(index), "--model", checkpoint])
    assert "6 new" in capsys.readouterr().out
    results = run("query", index, "ein Hund", folder / "a/0-001.png", "--k", 4, "--json", capsys=capsys)
    assert [set(result) for result in results] == [{"query", "results", "milliseconds"}] * 2
    assert results[0]["query"] == "ein Hund"
    assert [set(found) for found in results[0]["results"]] == [{"path", "score", "rank"}] * 4
    assert results[1]["results"][0]["path"] == "a/0-001.png"
    (result,) = run("query", index, "a dog", "--k", 2, "--rerank", 5, "--folder", "a", "--json", capsys=capsys)
    assert all(found["path"].startswith("a/") for found in result["results"])


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["query", "nowhere", "a dog"], "there is no index nowhere; make it with"),
        (["query", "INDEX", "missing.jpg"], "there is no image missing.jpg"),
        (["query", "INDEX", "a dog", "--since", "soon"], "'soon' is not a date"),
        (["index", "EMPTY", "INDEX"], "holds no images that can be indexed"),
        (["index", "nothing", "INDEX"], "there is no data set, file or folder 'nothing'"),
        (["index", "PHOTOS", "new"], "there is no index new; make it with --model MODEL, a folder or Hub id"),
        (
            ["index", "PHOTOS", "INDX"],
            "there is no index INDX; did you mean 'INDEX'? Otherwise, make it with --model MODEL",
        ),
        (["index", "INDEX", "PHOTOS"], "INDEX is an index; give the source of the images first"),
        (["query", "INDX", "a dog"], "there is no index INDX; did you mean 'INDEX'?"),
        (
            ["query", "INDEX", "PHOTOS/a/0-001.jgp"],
            "there is no image PHOTOS/a/0-001.jgp; did you mean '0-001.png'?",
        ),
        (["query", "INDEX", "a dog", "--add", "PHOTOS/a/0-01.png"], "0-01.png; did you mean '0-001.png'?"),
        (
            ["query", "INDEX", "a dog", "--language", "fr"],
            "has no thresholds, which --language needs; remove it, or make",
        ),
        (["query", "INDEX", "a dog", "--folder", "../b"], "'../b' is not a folder of the source; give one such as"),
        (["index", "PHOTOS", "INDEX", "--model", "OTHER"], "is another model; search by that one, or make another"),
    ],
)
def test_mistakes_are_told_in_one_line(checkpoint, processor, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    PictureIndex("INDEX", checkpoint).update(photographs(tmp_path / "PHOTOS", 2))
    (tmp_path / "EMPTY").mkdir()
    if "OTHER" in arguments:
        shutil.copytree(checkpoint, "OTHER")
        CCRKForImageTextRetrieval(tiny_config(len(processor.tokenizer))).save_pretrained("OTHER")
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert message in str(end.value)
    assert "\n" not in str(end.value)


def test_the_blocks_of_the_document_run(checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    photographs(tmp_path / "photos", 7)
    shutil.copytree(checkpoint, "outputs/demo/finetune")
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/search.md").read_text(), re.DOTALL)
    for block in blocks:
        exec(compile(block, "docs/search.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("7 new") and [line.split()[0] for line in lines[1:6]] == list("12345")
    assert lines[6:] == ["photos/a/0-001.png"]


def test_a_table_of_lancedb_gets_the_vectors_of_the_index(checkpoint, tmp_path):
    folder = photographs(tmp_path / "photos", 3)
    index = PictureIndex(tmp_path / "index", checkpoint)
    index.update(folder)
    function = get_registry().get("ccrk").create(name=checkpoint, batch_size=2)
    files = [folder / path for path in index.contents[0]["path"].to_pylist()]
    sources = [str(files[0]), files[1].read_bytes(), "ein Hund", Image.open(files[2]), "un chien"]
    vectors = torch.from_numpy(np.stack(function.compute_source_embeddings(sources)))
    assert torch.allclose(vectors[[0, 1, 3]], index.contents[1], atol=1e-5)
    texts = index.encoder.encode_captions(["ein Hund", "un chien"])["embeds"]
    assert torch.allclose(vectors[[2, 4]], texts, atol=1e-5)

    table = lancedb.connect(tmp_path / "database").create_table(
        "rows",
        pa.table({"file": [str(file) for file in files]}),
        embedding_functions=[EmbeddingFunctionConfig(vector_column="vector", source_column="file", function=function)],
    )
    table = lancedb.connect(tmp_path / "database").open_table("rows")  # opens the model by its name
    expected = [str(folder / found.path) for found in index.search("ein Hund")]
    assert [row["file"] for row in table.search("ein Hund").to_list()] == expected
    for query, message in ((" . ", "the query is empty"), (str(folder / "gone.jpg"), "there is no image")):
        with pytest.raises(ValueError, match=message):
            function.compute_query_embeddings(query)


def test_a_file_that_is_no_picture_is_no_query(checkpoint, tmp_path):
    PictureIndex(tmp_path / "index", checkpoint).update(photographs(tmp_path / "photos", 2))
    with pytest.raises(SystemExit, match="not an image"):
        main(["query", str(tmp_path / "index"), str(write(tmp_path / "notes.txt", "a dog"))])


def test_another_dual_encoder_searches_as_well(processor, tmp_path):
    words = tokenizer(processor)
    layers = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {"vocab_size": len(words), "max_position_embeddings": 16, "eos_token_id": words.eos_token_id}
    vision = {"image_size": 32, "patch_size": 8}
    config = transformers.CLIPConfig(text_config=layers | text, vision_config=layers | vision, projection_dim=8)
    transformers.CLIPModel(config).save_pretrained(tmp_path / "model")
    images = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    transformers.CLIPProcessor(images, words).save_pretrained(tmp_path / "model")

    index = PictureIndex(tmp_path / "index", str(tmp_path / "model"))
    index.update(photographs(tmp_path / "photos", 5))
    assert paths(index.search(tmp_path / "photos/a/0-001.png"))[0] == "a/0-001.png"
    assert len(paths(index.search("un chien", k=4))) == 4
    with pytest.raises(ValueError, match="has no fusion encoder to re-rank with"):
        index.search("un chien", rerank=3)
    with pytest.raises(ValueError, match="remove --rerank, --keep_states"):
        PictureIndex(tmp_path / "another", index.model, keep_states=True).update(tmp_path / "photos")


@pytest.mark.parametrize(
    "value, message", [(np.nan, r"score of '.*' is not finite"), (None, "has no states"), ("jpeg", "stored image")]
)
def test_hostile_states_and_stored_pictures_are_refused(checkpoint, tmp_path, value, message):
    keep_states = value != "jpeg"
    index = PictureIndex(tmp_path / "index", checkpoint, keep_states=keep_states)
    index.update(photographs(tmp_path / "photos", 3))
    rows = index.store.pictures.to_arrow()
    name = "states" if keep_states else "jpeg"
    kept = rows[name].to_pylist()
    content = (
        None if value is None else np.full(len(kept[0]) // 2, value, np.float16).tobytes() if keep_states else b""
    )
    column = pa.array([content, *kept[1:]], rows.schema.field(name).type)
    rows = rows.set_column(rows.schema.get_field_index(name), name, column).replace_schema_metadata()
    index.store.pictures.merge_insert("id").when_matched_update_all().execute(rows)
    with pytest.raises(ValueError, match=message):
        index.search("ein Hund", rerank=3)


def test_states_of_another_model_are_refused(checkpoint, tmp_path):
    made = PictureIndex(tmp_path / "index", checkpoint)
    made.update(photographs(tmp_path / "photos", 3))
    Store.create(str(tmp_path / "hostile"), made.store.settings, made.store.width, states=(3, 5))
    with pytest.raises(ValueError, match=r"keeps states of shape \(3, 5\), and its model has"):
        PictureIndex(tmp_path / "hostile").search("ein Hund", rerank=3)


@pytest.mark.parametrize("is_approximate", [False, True])
def test_times_beyond_what_an_index_holds(tmp_path, is_approximate):
    years = {
        "1066.png": -(2**62) * 3,
        "1969.png": -1,
        "2024.png": 1717156800 * 10**9,
        "2286.png": 9_970_000_000 * 10**9,
    }
    for name in years:
        picture(tmp_path / "photos" / name, (9, len(name), 99))
    stat = os.stat

    def dated(path, **options):
        status = stat(path, **options)
        if (name := os.path.basename(os.fspath(path))) not in years:
            return status
        fields = {key: getattr(status, key) for key in ("st_size", "st_mode", "st_ino", "st_dev")}
        return SimpleNamespace(**fields, st_mtime_ns=years[name], st_mtime=years[name] / 1e9)

    with pytest.MonkeyPatch.context() as patch:  # few file systems hold them
        patch.setattr(Path, "stat", lambda self, **options: dated(self, **options))
        assert bring_up_to_date(tmp_path / "photos", tmp_path / "index").new == 4
        assert bring_up_to_date(tmp_path / "photos", tmp_path / "index").unchanged == 4
    index = PictureIndex(tmp_path / "index")
    index.encoder = Colors()
    index.store.is_approximate, index.store.refresh = is_approximate, lambda: False

    def found(**dates) -> list[str]:
        return sorted(paths(index.search("red", chosen=Filter.of(**dates))))

    names = sorted(years)
    assert found(since="0001-01-01") == found(until="9999-12-31") == names
    assert found(since="0001-01-01T00:00+14:00", until="9999-12-31T23:59:59-12:00") == names
    assert found(since="2300-01-01") == found(since="9999-12-31") == ["2286.png"]
    assert found(until="0001-01-01") == found(until="1066-10-14") == ["1066.png"]
    assert found(since="1900-01-01", until="2200-01-01") == ["1969.png", "2024.png"]
    assert found(since="2024-05-31T12:00+00:00", until="2024-05-31T12:00:00Z") == ["2024.png"]
    assert found(since="2024-05-31T14:00:01+02:00", until="2024-06-30") == []


def test_a_file_dated_2286_is_indexed(tmp_path):
    picture(tmp_path / "photos/one.png", RED)
    os.utime(tmp_path / "photos/one.png", (0, 9_970_000_000))
    assert bring_up_to_date(tmp_path / "photos", tmp_path / "index").new == 1
    assert bring_up_to_date(tmp_path / "photos", tmp_path / "index").unchanged == 1


@pytest.mark.parametrize(
    "date",
    [
        "0000-01-01",
        "10000-01-01",
        "2024-02-30",
        "2024-13-01",
        "-2024-01-01",
        "1e9",
        "inf",
        "\x00",
        "٢٠٢٤",
        "2024-05-31+99",
    ],
)
def test_what_is_not_a_date_is_told(colors, date):
    for name in ("since", "until"):
        with pytest.raises(ValueError, match="is not a date such as 2024-05-31"):
            Filter.of(**{name: date})
        answer = TestClient(make_app(colors)).get("/api/search", params={"q": "red", name: date})
        assert answer.status_code == 400 and "is not a date" in answer.json()["detail"]


@pytest.mark.parametrize(
    "date", ["2300-01-01", "9999-12-31", "0001-01-01", "1677-09-21", "2262-04-12", "9999-12-31T23:59:59Z"]
)
def test_far_dates_are_dates_to_the_server(colors, date):
    for name in ("since", "until"):
        assert TestClient(make_app(colors)).get("/api/search", params={"q": "red", name: date}).status_code == 200


@pytest.mark.parametrize("is_approximate", [False, True])
@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_folder_is_found_however_it_is_written(tmp_path, form, is_approximate):
    name = unicodedata.normalize(form, "été")
    picture(tmp_path / f"photos/2024/{name}/one.png", RED)
    picture(tmp_path / "photos/2024/other/two.png", BLUE)
    bring_up_to_date(tmp_path / "photos", tmp_path / "index")
    index = PictureIndex(tmp_path / "index")
    index.encoder = Colors()
    index.store.is_approximate, index.store.refresh = is_approximate, lambda: False
    for written in (
        f"2024/{name}",
        f"2024/{name}/",
        f"./2024/{name}",
        f"/2024//{name}",
        f"2024\\{name}\\",
        f"2024/./{name}/.",
    ):
        for of in ("NFC", "NFD"):
            chosen = Filter.of(unicodedata.normalize(of, written))
            assert [found.path for found in index.search("red", chosen=chosen)] == ["2024/été/one.png"]
            answer = TestClient(make_app(index)).get("/api/search", params={"q": "red", "folder": chosen.folder})
            assert len(answer.json()["results"]) == 1
    for everything in ("", ".", "/", "./", "\\", None):
        assert len(index.search("red", chosen=Filter.of(everything))) == 2


@pytest.mark.parametrize(
    "folder", ["..", "a/../b", "C:/photos", "../../etc", "a\x00b", "a/" * 99, "a" * 5000, "\ud800"]
)
def test_what_is_not_a_folder_of_the_source_is_told(colors, folder):
    with pytest.raises(ValueError, match="is not a folder of the source"):
        Filter.of(folder)


def test_a_folder_that_is_not_there_is_told(colors, monkeypatch, caplog, capsys):
    monkeypatch.setattr(PictureIndex, "encoder", colors.encoder)
    main(["query", colors.location, "red", "--folder", "Cold", "--json"])
    assert json.loads(capsys.readouterr().out)["results"] == []
    assert "the index has no folder Cold; did you mean 'cold'?" in caplog.text
    caplog.clear()
    main(["query", colors.location, "red", "--folder", "cold", "--since", "2020-01-01", "--json"])
    assert not caplog.text


@pytest.mark.parametrize(
    "text",
    [
        "Mr. Brown",
        "Mr.Brown",
        "node.js",
        "example.com",
        "example.jp",
        "v2.0",
        "a photo named beach.jpg",
        "…",
        "U.S.",
        "a/b",
        "end.",
    ],
)
def test_a_dot_makes_no_file_of_a_text(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    picture(tmp_path / "dog.jpg", RED)
    assert as_query(text) == text


@pytest.mark.parametrize(
    "text, message",
    [
        ("beach.jgp", "there is no image beach.jgp; did you mean 'beach.jpg'"),
        ("BAECH.JPG", "did you mean 'beach.jpg'"),
        ("beach.jp", "did you mean 'beach.jpg'"),
        ("beach.jpge", "did you mean 'beach.jpg'"),
        ("my baech.jpg", "did you mean 'my beach.jpg'"),
        ("sub/tre.pgn", "there is no image sub/tre.pgn; did you mean 'tree.png'"),
        ("nothing.pgn", "there is no image nothing.pgn$"),
        ("*.jpeg", r"there is no image \*.jpeg"),
        ("nowhere/tree.png", "there is no image nowhere/tree.png$"),
    ],
)
def test_what_looks_like_a_picture_is_told(tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    for name in ("beach.jpg", "my beach.jpg", "sub/tree.png"):
        picture(tmp_path / name, RED)
    with pytest.raises(ValueError, match=message):
        as_query(text)


@pytest.mark.parametrize(
    "given, near", [("indx", "; did you mean 'index'?"), ("sevre", "; did you mean 'serve'?"), ("xyz", "")]
)
def test_an_unknown_command_is_told(capsys, given, near):
    with pytest.raises(SystemExit) as end:
        main([given, "photos"])
    assert end.value.code == 2
    message = f"unknown command {given!r}; choose one of index, query, serve, consistency, export{near}\n"
    assert capsys.readouterr().err.endswith(message)
