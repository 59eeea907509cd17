"""Adds languages to pre-training shards, machine-translated from one of those that are there.

    python -m data_scripts.translate IN OUT --languages ko sw --model facebook/m2m100_1.2B
    accelerate launch --multi_gpu --num_processes 4 -m data_scripts.translate IN OUT …       the shards are shared out

OUT gets every `part_*.data` of IN, at the same place below it. Captions get the new languages behind those they have;
all other bytes stay as they are. A shard appears in OUT when it is finished, and the same command given again goes on
with those that are missing. What cannot be translated is copied and counted.
"""

import argparse
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path

import torch
from accelerate import PartialState
from tqdm import tqdm
from transformers import M2M100ForConditionalGeneration, M2M100Tokenizer

from data_scripts.captions import close_tags, is_close, is_usable
from data_scripts.cli import log_to_screen, one_line, one_line_errors
from data_scripts.files import check_output_folder, open_model, open_pretrained
from data_scripts.problems import Problems
from data_scripts.shards import BadRow, caption_objects, find_shards, parse_row
from data_scripts.text import is_blank_line, numbered_lines

TRANSLATOR = "facebook/m2m100_1.2B"
_decode = json.JSONDecoder().raw_decode
_skip_separators = re.compile(r"[ \t\n\r,:]*").match


@dataclass(frozen=True)
class Gap:
    """A translation that is missing: the text to translate, and the place that it goes to."""

    text: str
    language: str
    position: int  # in the line of a shard; or which row of a table


def find_gaps(line: bytes, source: str, languages: Sequence[str]) -> list[Gap]:
    """What the captions of a row lack, in the order of the positions.

    Raises:
        BadRow: the line is no row, or has no caption in the language to translate from.
    """
    parse_row(line)
    usable = [(caption, end) for caption, end in _captions(line.decode()) if is_usable(caption.get(source))]
    if not usable:
        raise BadRow(f"no usable caption in {source}")
    return [
        Gap(caption[source], language, end - 1)
        for caption, end in usable
        for language in languages
        if language not in caption
    ]


def fill_gaps(line: bytes, gaps: Sequence[Gap], translations: Sequence[str]) -> bytes:
    """The line with a translation in each gap; an empty one leaves its gap open."""
    text = line.decode() if gaps else ""
    for gap, translation in reversed(list(zip(gaps, translations, strict=True))):  # the positions in front stay right
        if translation:
            member = f", {json.dumps(gap.language)}: {json.dumps(translation, ensure_ascii=False)}"
            text = text[: gap.position] + member + text[gap.position :]
    return text.encode() if gaps else line


def _captions(line: str) -> list[tuple[dict, int]]:
    """Caption objects, each with the position behind it. The line is known to be right, so separators are skipped."""
    captions = []
    position = line.index("{") + 1
    while line[position := _skip_separators(line, position).end()] != "}":
        key, position = _decode(line, position)
        start = _skip_separators(line, position).end()
        value, position = _decode(line, start)
        if key == "caption":  # should there be two, the last one counts, as it does for json.loads
            captions = [(value, position)] if isinstance(value, dict) else _elements(line, start + 1)
    return captions


def _elements(line: str, position: int) -> list[tuple[dict, int]]:
    elements = []
    while line[position := _skip_separators(line, position).end()] != "]":
        value, position = _decode(line, position)
        elements.append((value, position))
    return elements


class Translator:
    """A multilingual M2M100 model that translates from one language.

    Args:
        model: folder or Hub id.
        source: code of the language to translate from.
        languages: codes of the languages to translate to.
        batch_size: texts at a time.
        device: where the model runs.

    Raises:
        ValueError: a language that the model does not know.
    """

    def __init__(self, model: str, source: str, languages: Sequence[str], batch_size: int, device: torch.device):
        self.tokenizer = open_pretrained(M2M100Tokenizer, model)
        known = self.tokenizer.lang_code_to_id
        if unknown := [language for language in (source, *languages) if language not in known]:
            close = close_tags(unknown, known)
            raise ValueError(f"{model} does not know {', '.join(unknown)}{close}; it knows {', '.join(known)}")
        self.tokenizer.src_lang = source
        translator, _ = open_model(M2M100ForConditionalGeneration, model, dtype="auto")
        self.model = translator.to(device).eval()
        self.batch_size = batch_size

    @torch.inference_mode()
    def __call__(self, gaps: Sequence[Gap], progress: tqdm) -> list[str]:
        """Translations in the order of `gaps`. A batch has one language, and texts of about one length."""
        tokens = [self.tokenizer(gap.text, truncation=True)["input_ids"] for gap in gaps]
        longest_first = sorted(range(len(gaps)), key=lambda number: (gaps[number].language, -len(tokens[number])))
        translations = [""] * len(gaps)
        for language, group in groupby(longest_first, key=lambda number: gaps[number].language):
            while batch := list(islice(group, self.batch_size)):
                inputs = self.tokenizer.pad({"input_ids": [tokens[number] for number in batch]}, return_tensors="pt")
                generated = self.model.generate(
                    **inputs.to(self.model.device), forced_bos_token_id=self.tokenizer.get_lang_id(language)
                )
                # The start token and the language's come first; not every tokenizer calls the latter special.
                texts = self.tokenizer.batch_decode(generated[:, 2:], skip_special_tokens=True)
                for number, text in zip(batch, texts, strict=True):
                    translations[number] = text.strip()
                progress.update(len(batch))
        return translations


def translate_shard(
    shard: Path, output: Path, translator: Translator, languages: Sequence[str], problems: Problems
) -> None:
    """Writes a shard with its captions in further languages to `output`, whole or not at all.

    Raises:
        ValueError: too many rows are bad; see `Problems`.
    """
    source = translator.tokenizer.src_lang
    gaps = []
    with open(shard, "rb") as lines:
        for number, line in numbered_lines(lines, shard):
            if is_blank_line(line):
                continue
            problems.rows += 1
            try:
                for tag in (tag for caption in caption_objects(parse_row(line)) for tag in caption):
                    if any(is_close(tag, language) for language in (source, *languages)):
                        problems.other_language(tag)
                gaps += find_gaps(line, source, languages)
            except BadRow as error:
                problems.bad(error.reason, f"{shard} line {number}")
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
            texts = list(islice(translations, len(gaps)))
            if not all(texts):
                problems.bad("translation is empty", f"{shard} line {number}")
            file.write(fill_gaps(line, gaps, texts))
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, output)


def run(arguments: argparse.Namespace) -> None:
    """Translates this process's share of the shards, but for those that are finished.

    Raises:
        ValueError: the arguments do not fit each other, the model, or what is in OUT.
        FileNotFoundError: IN has no shards.
    """
    if arguments.output.resolve().is_relative_to(arguments.input.resolve()):
        raise ValueError(
            f"{arguments.output} lies in {arguments.input}; its shards would be taken for untranslated ones"
        )
    shards = find_shards(arguments.input)
    check_output_folder(arguments.output)
    state = PartialState()
    settings = {name: getattr(arguments, name) for name in ("model", "source", "languages")}
    settings_file = arguments.output / "translate.json"
    if state.is_main_process and not settings_file.exists():
        arguments.output.mkdir(parents=True, exist_ok=True)
        settings_file.write_text(json.dumps(settings), encoding="utf-8")
    state.wait_for_everyone()
    if (earlier := json.loads(settings_file.read_text(encoding="utf-8"))) != settings:
        raise ValueError(f"{arguments.output} was begun with {earlier}; give the same, or another folder")

    translator = Translator(arguments.model, arguments.source, arguments.languages, arguments.batch_size, state.device)
    languages = (arguments.source, *arguments.languages)
    problems = Problems("translate", arguments.max_bad_fraction, languages=languages)
    with state.split_between_processes(shards) as share:
        for shard in tqdm(share, unit=" shards", position=1):
            output = arguments.output / shard.relative_to(arguments.input)
            if not output.exists():
                translate_shard(shard, output, translator, arguments.languages, problems)
    problems.check()
    problems.report()


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m data_scripts.translate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("input", type=Path, metavar="IN", help="folder with part_*.data at any depth")
    parser.add_argument("output", type=Path, metavar="OUT", help="folder for the translated shards")
    parser.add_argument("--languages", nargs="+", required=True, help="to add, by the model's codes")
    parser.add_argument("--model", default=TRANSLATOR, help="folder or Hub id of an M2M100")
    parser.add_argument("--source", default="en", help="language to translate from (default: en)")
    parser.add_argument("--batch_size", type=int, default=64, help="captions at a time (default: 64)")
    parser.add_argument("--max_bad_fraction", type=float, default=0.05, help="of the rows (default: 0.05)")
    log_to_screen()
    with one_line_errors():
        run(parser.parse_args())


if __name__ == "__main__":
    main()
