"""Adds languages to pre-training shards or a table, machine-translated from one of those that are there.

    python -m data_scripts.translate IN OUT --languages ko sw --model facebook/m2m100_1.2B
    accelerate launch --multi_gpu --num_processes 4 -m data_scripts.translate IN OUT …       the shards are shared out

OUT gets every `part_*.data` of IN, at the same place below it. Captions get the new languages behind those they have,
or in place of empty ones; all other bytes stay as they are. A shard appears in OUT when it is finished, and the same
command given again goes on with those that are missing. What cannot be translated is copied and counted.

Beside each shard, `part_*.data.report.json` counts what was wrong. It lists as "doubtful" captions and translations
that were cut to the model's length, and translations that repeat themselves.

Where IN is a table, as `--dataset` takes it, OUT gets its rows as `data_scripts.export` writes them, with the images
inside. Rows get the languages that they have no caption in. The report of a split is `OUT/.SPLIT.report.json`.
"""

import argparse
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from tqdm import tqdm
from transformers import AutoTokenizer, M2M100ForConditionalGeneration, M2M100Tokenizer

import data_scripts
from data_scripts.captions import caption_problem, close_tags, is_close, is_usable, language_code
from data_scripts.cli import log_to_screen, one_line, one_line_errors
from data_scripts.export import WITHOUT_SPLIT, export
from data_scripts.files import check_output_folder, open_model, open_pretrained, written_whole
from data_scripts.problems import Problems
from data_scripts.rows import is_missing, is_text
from data_scripts.shards import BadRow, caption_objects, find_shards, parse_row
from data_scripts.text import files_below, is_blank_line, numbered_lines

TRANSLATOR = "facebook/m2m100_1.2B"
CUT = "caption longer than the translator reads; its end is not translated"
STOPPED = "translation stopped at the translator's length"
LOOP = "translation repeats itself"
# Four times the same with a letter in it, in twelve characters or more.
_loops = re.compile(r"(\S.{0,80}?)(?:\s*\1){3,}", re.DOTALL).finditer
_letter = re.compile(r"[^\W\d_]").search
_nllb_code = re.compile("[a-z]{3}_[A-Z][a-z]{3}").fullmatch
_decode = json.JSONDecoder().raw_decode
_skip_separators = re.compile(r"[ \t\n\r,:]*").match


@dataclass(frozen=True)
class Gap:
    """A translation that is missing: the text to translate, and the place that it goes to."""

    text: str
    language: str
    position: int  # in the line of a shard; or which row of a table
    length: int = 0  # of what stands there in its place, such as `null`


class Translation(str):
    """A translated text, and as its `doubt` why it is to be looked at: `CUT`, `STOPPED`, `LOOP` or nothing."""

    doubt: str

    def __new__(cls, text: str, doubt: str = "") -> "Translation":
        translation = super().__new__(cls, text)
        translation.doubt = doubt
        return translation


def find_gaps(line: bytes, source: str, languages: Sequence[str]) -> list[Gap]:
    """List the captions that a row lacks, by position. A null or empty caption counts as lacking.

    Raises:
        BadRow: the line is no row, or has no caption in the language to translate from.
    """
    parse_row(line)
    text = line.decode()
    usable = [(members, end) for members, end in _captions(text) if source in members]
    usable = [(members, end) for members, end in usable if is_usable(members[source].value)]
    if not usable:
        raise BadRow(f"no usable caption in {source}")
    gaps = []
    for members, end in usable:
        for language in languages:
            found = members.get(language)
            if found is None:
                gaps.append(Gap(members[source].value, language, end - 1))
            elif is_missing(found.value) or (is_text(found.value) and not is_usable(found.value)):
                gaps.append(Gap(members[source].value, language, found.start, found.end - found.start))
    return sorted(gaps, key=attrgetter("position"))


def fill_gaps(line: bytes, gaps: Sequence[Gap], translations: Sequence[str]) -> bytes:
    """The line with a translation in each gap; an empty one leaves its gap open."""
    text = line.decode() if gaps else ""
    for gap, translation in reversed(list(zip(gaps, translations, strict=True))):  # the positions in front stay right
        if translation:
            value = json.dumps(translation, ensure_ascii=False)
            member = value if gap.length else f", {json.dumps(gap.language)}: {value}"
            text = text[: gap.position] + member + text[gap.position + gap.length :]
    return text.encode() if gaps else line


class _Member(NamedTuple):
    value: Any
    start: int  # of the value, in the line
    end: int


def _captions(line: str) -> list[tuple[dict[str, _Member], int]]:
    """The members of caption objects, each with the position behind it. The line is known to be right."""
    # Should a key come twice, the last one counts, as it does for json.loads.
    caption = dict(_members(line, line.index("{") + 1))["caption"]
    places = [caption] if isinstance(caption.value, dict) else _elements(line, caption.start + 1)
    return [(dict(_members(line, place.start + 1)), place.end) for place in places]


def _members(line: str, position: int) -> Iterator[tuple[str, _Member]]:
    """Of an object, from behind its brace on. Separators are skipped."""
    while line[position := _skip_separators(line, position).end()] != "}":
        key, position = _decode(line, position)
        start = _skip_separators(line, position).end()
        value, position = _decode(line, start)
        yield key, _Member(value, start, position)


def _elements(line: str, position: int) -> Iterator[_Member]:
    """Of a list, from behind its bracket on."""
    while line[start := _skip_separators(line, position).end()] != "]":
        value, position = _decode(line, start)
        yield _Member(value, start, position)


def is_loop(text: str, source: str = "") -> bool:
    """Whether a text says the same four times on end, where the text that it is translated from does not."""
    found = (match for match in _loops(text) if len(match[0]) >= 12 and _letter(match[1]))
    return any(found) and not (source and is_loop(source))


class Translator:
    """A multilingual M2M100 or NLLB model that translates from one language.

    Args:
        model: folder or Hub id.
        source: the language to translate from, by the code of M2M100; NLLB's `deu_Latn` is also found by `de`.
        languages: to translate to, likewise.
        batch_size: texts at a time.
        device: where the model runs.

    Raises:
        ValueError: a language that the model does not know.
    """

    def __init__(self, model: str, source: str, languages: Sequence[str], batch_size: int, device: torch.device):
        self.tokenizer = open_pretrained(AutoTokenizer, model)
        self.source = source
        self._ids = self._language_ids(model, (source, *languages))
        translator, _ = open_model(M2M100ForConditionalGeneration, model, dtype="auto")
        self.model = translator.to(device).eval()
        self.batch_size = batch_size
        self._longest = min(self.tokenizer.model_max_length, self.model.config.max_position_embeddings)  # tokens

    def _language_ids(self, model: str, languages: Sequence[str]) -> dict[str, int]:
        """The token of each language; the first is what is translated from."""
        if isinstance(self.tokenizer, M2M100Tokenizer):
            ids = self.tokenizer.lang_code_to_id
            codes = {language: language if language in ids else None for language in languages}
        else:
            tokens = filter(_nllb_code, self.tokenizer.all_special_tokens)
            ids = {code: self.tokenizer.convert_tokens_to_ids(code) for code in tokens}
            codes = {language: language_code(language, ids) for language in languages}
        if not ids:
            raise ValueError(f"{model} is neither an M2M100 nor an NLLB: its tokenizer has no languages; name another")
        if unknown := [language for language, code in codes.items() if code is None]:
            close = close_tags(unknown, ids)
            raise ValueError(f"{model} does not know {', '.join(unknown)}{close}; it knows {', '.join(ids)}")
        self.tokenizer.src_lang = codes[languages[0]]
        return {language: ids[code] for language, code in codes.items()}

    def _tokens(self, text: str, **options) -> list[int]:
        # What is written like a special token, such as `</s>`, is text.
        return self.tokenizer(text, split_special_tokens=True, verbose=False, **options)["input_ids"]

    @torch.inference_mode()
    def __call__(self, gaps: Sequence[Gap], progress: tqdm) -> list[Translation]:
        """Translations in the order of `gaps`. A batch has one language, and texts of about one length."""
        tokens = [self._tokens(gap.text) for gap in gaps]
        cut = {number for number, found in enumerate(tokens) if len(found) > self._longest}
        for number in cut:
            tokens[number] = self._tokens(gaps[number].text, truncation=True, max_length=self._longest)
        longest_first = sorted(range(len(gaps)), key=lambda number: (gaps[number].language, -len(tokens[number])))
        translations = [Translation("")] * len(gaps)
        for language, group in groupby(longest_first, key=lambda number: gaps[number].language):
            while batch := list(islice(group, self.batch_size)):
                inputs = self.tokenizer.pad({"input_ids": [tokens[number] for number in batch]}, return_tensors="pt")
                generated = self.model.generate(
                    **inputs.to(self.model.device), forced_bos_token_id=self._ids[language]
                )
                stopped = generated[:, -1] != self.model.config.pad_token_id
                stopped &= generated.shape[1] >= (self.model.generation_config.max_length or 20)
                # The start token and the language's come first; not every tokenizer calls the latter special.
                texts = self.tokenizer.batch_decode(generated[:, 2:], skip_special_tokens=True)
                for number, text, is_stopped in zip(batch, map(str.strip, texts), stopped.tolist(), strict=True):
                    is_repeated = is_loop(text, gaps[number].text)
                    doubts = [CUT] * (number in cut) + [LOOP] * is_repeated + [STOPPED] * is_stopped + [""]
                    translations[number] = Translation(text, doubts[0])
                progress.update(len(batch))
        return translations


def report_file(output: Path) -> Path:
    return output.with_name(f"{output.name}.report.json")


def translate_shard(
    shard: Path, output: Path, translator: Translator, languages: Sequence[str], problems: Problems
) -> None:
    """
    Writes a shard with its captions in further languages to `output`, whole or not at all, and before it
    `report_file(output)`: the counts of `problems`, and `doubtful` translations.

    Args:
        problems: without counts; those of the shard are added.

    Raises:
        ValueError: too many rows are bad; see `Problems`.
    """
    source, gaps, doubtful = translator.source, [], []
    with open(shard, "rb") as lines:
        for number, line in numbered_lines(lines, shard):
            if is_blank_line(line):
                continue
            problems.rows += 1
            where = f"{shard} line {number}"
            try:
                captions = caption_objects(parse_row(line))
                for tag in (tag for caption in captions for tag in caption):
                    if any(is_close(tag, language) for language in (source, *languages)):
                        problems.other_language(tag)
                gaps += find_gaps(line, source, languages)
                for caption in captions:  # of several, some may have no source
                    if not is_usable(caption.get(source)):
                        problems.absent(f"caption of several without {source}; not translated", where)
                    for value in map(caption.get, languages):
                        if not (is_missing(value) or is_text(value)):
                            problems.bad(caption_problem(value), where)
            except BadRow as error:
                problems.bad(error.reason, where)
    with tqdm(total=len(gaps), unit=" captions", desc=one_line(shard.name), leave=False) as progress:
        translations = iter(translator(gaps, progress))

    output.parent.mkdir(parents=True, exist_ok=True)
    unfinished = output.with_name(f"{output.name}.unfinished")
    # The lines are read again, not kept: with images inside, a shard may be larger than the memory.
    with open(shard, "rb") as lines, open(unfinished, "wb") as file:
        for number, line in numbered_lines(lines, shard):
            try:
                gaps = find_gaps(line, source, languages)
            except BadRow:  # counted above
                gaps = []
            found = list(islice(translations, len(gaps)))
            if not all(found):
                problems.bad("translation is empty", f"{shard} line {number}")
            doubtful += count_doubts(gaps, found, number, f"{shard} line {number}", problems)
            file.write(fill_gaps(line, gaps, found))
        file.flush()
        os.fsync(file.fileno())
    write_report(report_file(output), problems, doubtful)
    os.replace(unfinished, output)


def translate_table(
    dataset: datasets.Dataset, name: str, output: Path, translator: Translator, problems: Problems
) -> None:
    """Writes the rows of a split of a table to `output`, its folder and the name of its files, and a report.

    Args:
        name: of the table and its split, for messages.
        problems: without counts; asks for the source and then the languages to translate to.

    Raises:
        ValueError: no row has a caption to translate from, or too many rows are bad; see `Problems`.
    """
    source, *languages = problems.languages
    captions: list[dict[str, list[str]]] = dataset["captions"][:]
    if source not in dataset.features["captions"]:
        there = dataset.features["captions"]
        raise ValueError(f"{name} has no captions in {source}, only in {', '.join(there)}; name one as --source")
    problems.rows = len(captions)
    gaps, doubtful = [], []
    for number, row in enumerate(captions):
        if not row[source]:
            problems.absent(f"no usable caption in {source}", f"{name} row {number + 1}")
        lacking = [language for language in languages if not row.get(language)]
        gaps += [Gap(text, language, number) for language in lacking for text in row[source]]
        row |= {language: [] for language in lacking}
    with tqdm(total=len(gaps), unit=" captions", leave=False) as progress:
        translations = translator(gaps, progress)
    for gap, translation in zip(gaps, translations, strict=True):
        where = f"{name} row {gap.position + 1}"
        doubtful += count_doubts([gap], [translation], gap.position + 1, where, problems)
        if is_usable(translation):
            captions[gap.position][gap.language].append(translation)
        else:
            problems.bad("translation is empty", where)
    texts = datasets.List(datasets.Value("string"))
    feature = dict(dataset.features["captions"]) | dict.fromkeys(languages, texts)
    translated = dataset.remove_columns("captions").add_column("captions", captions, feature=feature)
    write_report(table_report(output), problems, doubtful)
    export(translated, output.name, output.parent)


def table_report(output: Path) -> Path:
    """Of a name that `datasets` passes over, since it would take it for a file of the split."""
    return output.with_name(f".{output.name}.report.json")


def count_doubts(
    gaps: Sequence[Gap], translations: Sequence[Translation], number: int, where: str, problems: Problems
) -> list[dict[str, Any]]:
    """Counts the doubtful translations of a line or row, and gives them as a report lists them."""
    doubtful = []
    for gap, translation in zip(gaps, translations, strict=True):
        if translation.doubt:
            problems.absent(translation.doubt, where)
            place = {"line": number, "language": gap.language, "reason": translation.doubt}
            doubtful.append(place | {"caption": gap.text, "translation": translation})
    return doubtful


def write_report(path: Path, problems: Problems, doubtful: list[dict[str, Any]]) -> None:
    counts = {name: getattr(problems, name) for name in ("rows", "counts", "absences", "first", "tags")}
    with written_whole(path) as unfinished:
        text = json.dumps(counts | {"doubtful": doubtful}, ensure_ascii=False, indent=1)
        unfinished.write_text(text, encoding="utf-8")


def read_report(path: Path) -> Problems:
    """What `translate_shard` or `translate_table` counted."""
    report = json.loads(path.read_text(encoding="utf-8"))
    counters = {name: Counter(report[name]) for name in ("counts", "absences", "tags")}
    return Problems("translate", 1.0, rows=report["rows"], first=report["first"], quiet=True, **counters)


def run(arguments: argparse.Namespace) -> None:
    """Translates this process's share of the shards, but for those that are finished.

    Raises:
        ValueError: the arguments do not fit each other, the model, or what is in OUT.
        FileNotFoundError: IN has no shards and is no table.
    """
    if arguments.output.resolve().is_relative_to(arguments.input.resolve()):
        raise ValueError(
            f"{arguments.output} lies in {arguments.input}; its shards would be taken for untranslated ones"
        )
    asked = (arguments.source, *arguments.languages)
    if twice := [language for language in dict.fromkeys(asked) if asked.count(language) > 1]:
        raise ValueError(f"--languages with the --source has {', '.join(twice)} twice; give each language once")
    is_table = arguments.input.exists() and not files_below(arguments.input, "part_*.data")
    shards = [] if is_table else find_shards(arguments.input)
    options = {"image_dir": arguments.image_dir, "max_bad_fraction": arguments.max_bad_fraction}
    splits = data_scripts.splits_of(str(arguments.input), **options) if is_table else []
    check_output_folder(arguments.output)
    state = PartialState()
    settings = {name: getattr(arguments, name) for name in ("model", "source", "languages")}
    settings_file = arguments.output / (".translate.json" if is_table else "translate.json")
    if state.is_main_process and not settings_file.exists():
        arguments.output.mkdir(parents=True, exist_ok=True)
        settings_file.write_text(json.dumps(settings), encoding="utf-8")
    state.wait_for_everyone()
    if (earlier := json.loads(settings_file.read_text(encoding="utf-8"))) != settings:
        raise ValueError(f"{arguments.output} was begun with {earlier}; give the same, or another folder")

    translator = Translator(arguments.model, arguments.source, arguments.languages, arguments.batch_size, state.device)
    limits = {"max_bad_fraction": arguments.max_bad_fraction, "languages": asked}
    problems = Problems("translate", **limits)
    with state.split_between_processes(shards) as share:
        for shard in tqdm(share, unit=" shards", position=1):
            output = arguments.output / shard.relative_to(arguments.input)
            if not (output.exists() and report_file(output).exists()):
                own = Problems("translate", **limits, quiet=True)
                translate_shard(shard, output, translator, arguments.languages, own)
            problems.update(read_report(report_file(output)))  # of an earlier run, too
    # As `export` does it: where the rows tell no split, all are read as train, and written so that they tell none.
    named = {split: split for split in splits} or {"train": WITHOUT_SPLIT} if is_table else {}
    for split, name in named.items() if state.is_main_process else ():
        output = arguments.output / name
        if not (table_report(output).exists() and any(arguments.output.glob(f"{name}-*-of-*"))):
            dataset = data_scripts.load(str(arguments.input), split=split, **options)
            own = Problems("translate", **limits, quiet=True)
            translate_table(dataset, f"{arguments.input} {split}", output, translator, own)
        problems.update(read_report(table_report(output)))
    of_all = Problems("translate", **limits, quiet=True)
    for of_process in gather_object([problems]):
        of_all.update(of_process)
    of_all.check()
    if state.is_main_process:
        of_all.report()


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m data_scripts.translate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("input", type=Path, metavar="IN", help="folder with part_*.data at any depth, or a table")
    parser.add_argument("output", type=Path, metavar="OUT", help="folder for the translated shards or rows")
    parser.add_argument(
        "--languages", nargs="+", required=True, help="to add; M2M100's codes, or for NLLB tags such as de"
    )
    parser.add_argument("--model", default=TRANSLATOR, help="folder or Hub id of an M2M100 or NLLB")
    parser.add_argument("--source", default="en", help="language to translate from (default: en)")
    parser.add_argument("--image_dir", help="folder of the images of a table, where they are not beside it")
    parser.add_argument("--batch_size", type=int, default=64, help="captions at a time (default: 64)")
    parser.add_argument("--max_bad_fraction", type=float, default=0.05, help="of the rows (default: 0.05)")
    log_to_screen()
    with one_line_errors():
        run(parser.parse_args())


if __name__ == "__main__":
    main()
