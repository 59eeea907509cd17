"""Translating shards: what is added and what stays, bad rows, and what is left when the command is killed."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import torch
from builders import jpeg, write, write_json_lines
from conftest import ROOT
from PIL import Image
from tiny import tiny_translator
from transformers import M2M100Config, M2M100ForConditionalGeneration, NllbTokenizer

from data_scripts import translate

# Rows as they may be written: spaces, escapes, further members, captions in a list, a caption that comes twice.
LINES = [
    '{"caption": {"en": "a red star", "de": "ein roter Stern"}, "image_path": "a.jpg"}',
    '{"image":"aGk=","caption":{"en":"two small dogs \\u00e9 \\"x\\" }"},"n":1.50, "caption_2":{"en":"no"}}',
    '  { "caption" : [ {"en" : "a cat" } , {"de": "nur deutsch"}, {"en": "cats", "ko": "고양이"} ] , "z": [[], {}] } ',
    '{"caption": {"en": "first"}, "caption": {"fr": "é", "en": "the last one counts"}}',
    '{"caption": {"en": "done", "ko": "k", "sw": "s"}}',
]
BAD_LINES = [
    '{"caption": {"en": "cut',
    '["no object"]',
    '{"caption": {"de": "kein Englisch"}}',
    "",
    '{"caption": "x"}',
]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return tiny_translator(tmp_path_factory.mktemp("m2m100"), LINES)


@pytest.fixture
def shards(tmp_path) -> Path:
    """Three shards in two sets: all kinds of rows, many rows without a final newline, and Windows line ends."""
    contents = {
        "cc3m/part_0.data": "\n".join([*LINES, *BAD_LINES]) + "\n",
        "cc3m/part_1.data": "\n".join(f'{{"caption": {{"en": "{"dog " * (n % 7 + 1)}"}}}}' for n in range(40)),
        "sbu/part_0.data": "\r\n".join(LINES),
    }
    for name, text in contents.items():
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
    (tmp_path / "in/cc3m/readme.txt").write_text("no shard")
    return tmp_path / "in"


def call(shards, output, model, monkeypatch, *arguments) -> None:
    command = ["translate", shards, output, "--languages", "ko", "sw", "--model", model, "--max_bad_fraction", 0.5]
    monkeypatch.setattr(sys, "argv", [str(argument) for argument in (*command, "--batch_size", 8, *arguments)])
    translate.main()


def files(folder) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.slow
def test_adds_languages_and_keeps_every_other_byte(shards, model, tmp_path, monkeypatch, caplog):
    call(shards, tmp_path / "out", model, monkeypatch)
    assert set(files(tmp_path / "out")) == {
        *("cc3m/part_0.data", "cc3m/part_0.data.report.json", "cc3m/part_1.data", "cc3m/part_1.data.report.json"),
        *("sbu/part_0.data", "sbu/part_0.data.report.json", "translate.json"),
    }
    for shard in shards.rglob("*.data"):
        before = shard.read_bytes().split(b"\n")
        after = (tmp_path / "out" / shard.relative_to(shards)).read_bytes().split(b"\n")
        for old, new in zip(before, after, strict=True):
            if old.decode().strip() in {line.strip() for line in BAD_LINES}:
                assert new == old
                continue
            added = []
            was, row = json.loads(old)["caption"], json.loads(new)["caption"]
            for caption, original in zip(*((c if isinstance(c, list) else [c]) for c in (row, was)), strict=True):
                new_languages = [language for language in caption if language not in original]
                expected = [language for language in ("ko", "sw") if "en" in original and language not in original]
                assert new_languages == expected
                assert list(caption.items())[: len(original)] == list(original.items())
                added += [f', "{lang}": {json.dumps(caption[lang], ensure_ascii=False)}' for lang in new_languages]
            for member in added:  # taken out again, in the order of the line, they leave the line as it was
                assert caption_is_text(member) and new.count(member.encode())
                new = new.replace(member.encode(), b"", 1)
            assert new == old
    assert "54 rows, of which" in caplog.text
    for reason, count in {
        "line is no JSON,": 1,
        "line is a list, not a JSON object": 1,
        "no usable caption in en": 1,
    }.items():
        assert f"{count}  {reason}" in caplog.text
    assert f"{shards}/cc3m/part_0.data line 6" in caplog.text


def caption_is_text(member: str) -> bool:
    return bool(json.loads("{" + member[2:] + "}").popitem()[1])


@pytest.mark.slow
def test_translations_do_not_depend_on_their_batch(shards, model, tmp_path):
    """Each caption gets its own translation, whatever the order that batches are made in."""
    translator = translate.Translator(str(model), "en", ["ko", "sw"], 3, torch.device("cpu"))
    words = ["dog", "red", "star", "two", "cat", "small", "first", "last"]
    texts = [" ".join(words[start : start + length]) for start in range(4) for length in (1, 5, 3)]
    gaps = [translate.Gap(text, language, 0) for text in texts for language in ("sw", "ko")]
    progress = translate.tqdm(total=len(gaps), disable=True)
    together = translator(gaps, progress)
    alone = [translator([gap], progress)[0] for gap in gaps]
    assert together == alone and len(set(together)) >= 5
    assert not any("__ko__" in text or "__sw__" in text for text in together)


KILLED = """
import os, signal, sys
from data_scripts import translate
calls = 0
generate = translate.M2M100ForConditionalGeneration.generate
def killed(*arguments, **options):
    global calls
    calls += 1
    if calls == 6:
        os.kill(os.getpid(), signal.SIGKILL)
    return generate(*arguments, **options)
translate.M2M100ForConditionalGeneration.generate = killed
translate.main()
"""


@pytest.mark.slow
def test_killed_and_started_again(shards, model, tmp_path, monkeypatch):
    call(shards, tmp_path / "undisturbed", model, monkeypatch)
    command = [sys.executable, "-c", KILLED, shards, tmp_path / "out", "--languages", "ko", "sw", "--model", model]
    command += ["--max_bad_fraction", "0.5", "--batch_size", "8"]
    killed = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    assert set(files(tmp_path / "out")) == {"cc3m/part_0.data", "cc3m/part_0.data.report.json", "translate.json"}
    finished = (tmp_path / "out/cc3m/part_0.data").stat()

    # The next start dies while it writes a shard ...
    with monkeypatch.context() as patch:
        patch.setattr(translate.os, "fsync", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            call(shards, tmp_path / "out", model, patch)
    assert not (tmp_path / "out/cc3m/part_1.data").exists()
    # ... and the one after that finishes, without touching what was there.
    call(shards, tmp_path / "out", model, monkeypatch)
    assert files(tmp_path / "out") == files(tmp_path / "undisturbed")
    assert (tmp_path / "out/cc3m/part_0.data").stat() == finished


def test_an_empty_translation_leaves_the_language_out(shards, model, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(translate.M2M100Tokenizer, "batch_decode", lambda _, rows, **__: [" "] * len(rows))
    call(shards, tmp_path / "out", model, monkeypatch, "--max_bad_fraction", 1)
    assert (tmp_path / "out/cc3m/part_1.data").read_bytes() == (shards / "cc3m/part_1.data").read_bytes()
    assert "translation is empty" in caplog.text


def test_mistakes_end_in_one_line(shards, model, tmp_path, monkeypatch):
    def message(*arguments, output=tmp_path / "out", **options) -> str:
        with pytest.raises(SystemExit) as raised:
            call(options.get("source", shards), output, model, monkeypatch, *arguments)
        return str(raised.value)

    assert "does not know xx" in message("--languages", "ko", "xx", output=tmp_path / "a")
    assert "there is no part_*.data" in message(source=tmp_path / "nothing")
    assert "would be taken for untranslated" in message(output=shards / "out")
    assert "more than max_bad_fraction 0.01" in message("--max_bad_fraction", 0.01)
    assert "was begun with" in message("--languages", "ko")


def test_other_names_of_a_language_are_named(tmp_path, model, monkeypatch, caplog):
    """A row that has `ko` by another name gets a second one, and the log says so; a mark and blank lines are kept."""
    lines = "\ufeff" + "\r\n\r\n".join(['{"caption": {"en": "a cat", "KO": "고양이", "fr": "chat"}}'] * 3)
    (tmp_path / "in").mkdir()
    (tmp_path / "in/part_0.data").write_text(lines, newline="")
    call(tmp_path / "in", tmp_path / "out", model, monkeypatch)
    assert "3 rows, of which" in caplog.text
    assert "3  captions in languages not asked for: KO 3; KO is close to ko, which is asked for: rename" in caplog.text
    translated = (tmp_path / "out/part_0.data").read_bytes().decode()
    assert translated.startswith('\ufeff{"caption": {"en": "a cat", "KO": "고양이", "fr": "chat", "ko": ')
    assert translated.count("\r\n\r\n") == 2
    with pytest.raises(SystemExit, match="does not know ko_KR; ko is close to ko_KR; it knows"):
        call(tmp_path / "in", tmp_path / "other", model, monkeypatch, "--languages", "ko_KR")


def write_shard(folder: Path, lines: list[str]) -> Path:
    folder.mkdir(parents=True)
    (folder / "part_0.data").write_text("\n".join(lines), encoding="utf-8")
    return folder


def say(text: str, monkeypatch) -> None:
    """Every translation is this one."""
    monkeypatch.setattr(translate.M2M100Tokenizer, "batch_decode", lambda _, rows, **__: [text] * len(rows))


def test_the_limit_holds_when_the_command_is_repeated(shards, model, tmp_path, monkeypatch, caplog):
    say("x y", monkeypatch)
    for _ in range(2):
        with pytest.raises(SystemExit, match=r"4 bad among 54 rows, more than max_bad_fraction 0.01"):
            call(shards, tmp_path / "out", model, monkeypatch, "--max_bad_fraction", 0.01)
    monkeypatch.setattr(translate, "translate_shard", lambda *_: pytest.fail("nothing is translated again"))
    caplog.clear()
    call(shards, tmp_path / "out", model, monkeypatch)
    assert "54 rows, of which\n" in caplog.text and "1  no usable caption in en, first: " in caplog.text


def test_empty_captions_are_replaced_and_others_counted(model, tmp_path, monkeypatch, caplog):
    say("x y", monkeypatch)
    lines = [
        f'{{"caption": {{"ko": {value}, "en": "a cat", "n": 1.50}}}}'
        for value in ('""', "null", '" \\u3000"', '"?!"', "NaN", "5", '["k"]', '"k"')
    ]
    lines.append('{"caption": [{"en": "a", "ko" :null , "sw":"", "z": {"ko": null}}, {"ko": "", "en": ""}]}')
    call(write_shard(tmp_path / "in", lines), tmp_path / "out", model, monkeypatch)
    found = (tmp_path / "out/part_0.data").read_text(encoding="utf-8").split("\n")
    for line in found[:5]:
        assert line == '{"caption": {"ko": "x y", "en": "a cat", "n": 1.50, "sw": "x y"}}'
    assert [json.loads(line)["caption"]["ko"] for line in found[5:8]] == [5, ["k"], "k"]
    assert found[8] == '{"caption": [{"en": "a", "ko" :"x y" , "sw":"x y", "z": {"ko": null}}, {"ko": "", "en": ""}]}'
    for counted in ("caption is a number, not text", "caption is a list, not text", "caption of several without en"):
        assert f"1  {counted}" in caplog.text


@pytest.mark.parametrize("languages", [("ko", "ko"), ("ko", "en"), ("ko", "sw", "ko")])
def test_doubled_languages_are_refused(languages, shards, model, tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match=f"has {languages[-1]} twice; give each language once"):
        call(shards, tmp_path / "out", model, monkeypatch, "--languages", *languages)
    assert not (tmp_path / "out").exists()


def test_special_tokens_in_a_caption_are_text(model):
    translator = translate.Translator(str(model), "en", ["ko"], 3, torch.device("cpu"))
    special = set(translator.tokenizer.all_special_ids) - {translator.tokenizer.unk_token_id}
    for text in ("a </s> dog", "</s>", "__ko__ a dog", "<pad> <s> cats", "<mask>"):
        tokens = translator._tokens(text)
        assert len(tokens) > 2 and not special & {*tokens[1:-1]}, text
    assert translator._tokens("a dog") == translator.tokenizer("a dog")["input_ids"]


def test_what_is_cut_or_repeats_itself_is_counted_and_listed(model, tmp_path, monkeypatch, caplog):
    lines = ['{"caption": {"en": "a dog"}}', f'{{"caption": {{"en": "{"dog cat " * 200}"}}}}']
    write_shard(tmp_path / "in", lines)
    say("ein Hund ein Hund ein Hund ein Hund", monkeypatch)
    for _ in range(2):
        caplog.clear()
        call(tmp_path / "in", tmp_path / "out", model, monkeypatch, "--max_bad_fraction", 0.01)
        assert f"2  {translate.CUT}, first: {tmp_path}/in/part_0.data line 2" in caplog.text
        assert f"2  {translate.LOOP}, first: {tmp_path}/in/part_0.data line 1" in caplog.text
    doubtful = json.loads((tmp_path / "out/part_0.data.report.json").read_text(encoding="utf-8"))["doubtful"]
    reasons = [(entry["line"], entry["language"], entry["reason"]) for entry in doubtful]
    assert reasons == [
        *((1, language, translate.LOOP) for language in ("ko", "sw")),
        *((2, language, translate.CUT) for language in ("ko", "sw")),
    ]
    assert doubtful[0]["caption"] == "a dog" and doubtful[0]["translation"] == "ein Hund ein Hund ein Hund ein Hund"
    say("ein Hund", monkeypatch)  # of whatever tokens: the random model stops at 12
    call(tmp_path / "in", tmp_path / "short", model, monkeypatch)
    assert translate.STOPPED in caplog.text


@pytest.mark.parametrize(
    ("text", "source", "expected"),
    [
        ("ein Hund ein Hund ein Hund ein Hund", "a dog", True),
        ("Ein Mann, der in der Stadt in der Stadt in der Stadt in der Stadt ist", "a man in the city", True),
        ("一只狗一只狗一只狗一只狗", "a dog", True),
        ("狗狗狗狗狗狗狗狗狗狗狗狗", "a dog", True),
        ("dog dog dog dog dog", "Hund Hund Hund Hund", False),
        ("a dog, a dog and another dog", "ein Hund", False),
        ("ein Haus .................", "a house", False),
        ("1000000000000000 Hunde", "many dogs", False),
        ("hahaha", "a laughing man", False),
        ("", "a dog", False),
    ],
)
def test_loops(text, source, expected):
    assert translate.is_loop(text, source) == expected


def test_nllb_translates_by_tags(tmp_path, monkeypatch):
    """Its own codes and tags; the source's code stands before the text and the target's is forced."""
    words = [*"<s> <pad> </s> <unk>".split(), "▁", *"abcdefghijklmnopqrstuvwxyz"]
    tokenizer = NllbTokenizer(vocab={word: number for number, word in enumerate(words)}, merges=[])
    torch.manual_seed(0)
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    config = M2M100Config(vocab_size=len(tokenizer), max_position_embeddings=64, **sizes, **heads)
    network = M2M100ForConditionalGeneration(config)
    network.generation_config.update(max_length=8, num_beams=1)
    network.save_pretrained(tmp_path / "nllb")
    tokenizer.save_pretrained(tmp_path / "nllb")
    anything = ("--max_bad_fraction", 1)  # of a random model
    calls = []
    generate = M2M100ForConditionalGeneration.generate

    def watched(model, **inputs):
        calls.append((inputs["input_ids"][0].tolist(), inputs["forced_bos_token_id"]))
        return generate(model, **inputs)

    monkeypatch.setattr(M2M100ForConditionalGeneration, "generate", watched)
    write_shard(tmp_path / "in", ['{"caption": {"en": "a dog"}}'])
    call(
        tmp_path / "in",
        tmp_path / "out",
        tmp_path / "nllb",
        monkeypatch,
        "--languages",
        "zh-TW",
        "deu_Latn",
        *anything,
    )
    codes = tokenizer.convert_tokens_to_ids(["eng_Latn", "deu_Latn", "zho_Hant"])
    assert [(tokens[0], forced) for tokens, forced in calls] == [(codes[0], codes[1]), (codes[0], codes[2])]
    with pytest.raises(SystemExit, match="does not know xx; it knows ace_Arab, "):
        call(tmp_path / "in", tmp_path / "other", tmp_path / "nllb", monkeypatch, "--languages", "xx")


def test_a_table_gets_the_languages_that_its_rows_lack(model, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf-cache")
    say("x y", monkeypatch)
    entries = [
        {"en": ["a dog runs", "a dog"], "ko": "개", "de": "ein Hund"},
        {"en": ["a cat"], "ko": None, "de": "eine Katze"},
        {"en": None, "ko": None, "de": "ein Vogel"},
    ]
    for number in range(3):
        write(tmp_path / f"in/{number}.jpg", jpeg(60 * number))
    entries = [{"file_name": f"{number}.jpg", **entry} for number, entry in enumerate(entries)]
    path = write_json_lines(tmp_path / "in/metadata.jsonl", entries)
    for source in (path, tmp_path / "in"):
        out = tmp_path / f"out of {source.name}"
        call(source, out, model, monkeypatch)
        rows = datasets.load_dataset(str(out), cache_dir=str(tmp_path / "cache"))["train"]
        assert rows["captions"][:] == [
            {"en": ["a dog runs", "a dog"], "ko": ["개"], "de": ["ein Hund"], "sw": ["x y", "x y"]},
            {"en": ["a cat"], "ko": ["x y"], "de": ["eine Katze"], "sw": ["x y"]},
            {"en": [], "ko": [], "de": ["ein Vogel"], "sw": []},
        ]
        assert rows[1]["image"].getpixel((9, 9)) == Image.open(tmp_path / "in/1.jpg").getpixel((9, 9))
        monkeypatch.setattr(translate, "translate_table", lambda *_: pytest.fail("it is there already"))
        caplog.clear()
        call(source, out, model, monkeypatch)
        assert f"1  no usable caption in en, first: {source} train row 3" in caplog.text
        monkeypatch.undo()
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf-cache")
        say("x y", monkeypatch)
    with pytest.raises(SystemExit, match="has no captions in fr, only in en, ko, de; name one as --source"):
        call(path, tmp_path / "other", model, monkeypatch, "--source", "fr")
