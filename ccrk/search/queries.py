"""Tables of queries: a column for each language, in each row the same query."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from ccrk.processes import process_state
from data_scripts.captions import is_usable, meant_language
from data_scripts.formats import SeparatedValues
from data_scripts.problems import Problems
from data_scripts.spreadsheets import from_cell, write_csv
from data_scripts.translate import Gap, Translator

TRANSLATED_AT_A_TIME = 64

Queries = list[dict[str, str]]  # language → text, a row each


def read_queries(path: Path, languages: Sequence[str] | None = None) -> tuple[list[str], Queries, Problems]:
    """A table whose columns are languages and whose rows are one query each.

    Args:
        path: CSV, or TSV.
        languages: which columns; all by default.

    Returns: the languages, the rows without what is no usable text, and what was wrong in the file.

    Raises:
        ValueError: there is no such file or column, or no row.
    """
    if not path.is_file():
        raise ValueError(f"there is no file {path}; give a CSV whose columns are languages and whose rows are queries")
    problems = Problems(str(path), max_bad_fraction=1.0)
    rows, columns = [], []
    for record, _, where in SeparatedValues(path).records(problems):
        record = {from_cell(column): from_cell(text) for column, text in record.items()}
        columns = list(record)
        usable = {language: text for language, text in record.items() if is_usable(text)}
        for language in record.keys() - usable.keys():
            problems.absent(f"no usable query in {language}", where)
        rows.append(usable)
    if not rows:
        problems.report()
        raise ValueError(f"{path} has no queries; give a header of languages, and in each row below it the same query")
    languages = list(languages or columns)
    if unknown := [language for language in languages if language not in columns]:
        near = meant_language(unknown[0], columns)
        raise ValueError(f"{path} has no column {unknown[0]}, only {', '.join(columns)}{near}")
    return (
        languages,
        [{language: row[language] for language in languages if language in row} for row in rows],
        problems,
    )


def translate(queries: Queries, pivot: str, languages: Sequence[str], model: str) -> Counter[str]:
    """Fills, in place, what rows lack of some languages from what they have in another.

    Args:
        pivot: language to translate from; a row without it stays as it is.
        model: folder or Hub id of an M2M100.

    Returns: language → how many queries were translated to it.

    Raises:
        ValueError: the model does not know a language.
    """
    gaps = [
        Gap(row[pivot], language, number)
        for number, row in enumerate(queries)
        for language in languages
        if pivot in row and language not in row
    ]
    translator = Translator(model, pivot, languages, TRANSLATED_AT_A_TIME, process_state().device)
    with tqdm(total=len(gaps), unit=" queries", desc="translating", leave=False, delay=2, disable=None) as progress:
        translations = translator(gaps, progress)
    filled: Counter[str] = Counter()
    for gap, text in zip(gaps, translations, strict=True):
        if is_usable(text):
            queries[gap.position][gap.language] = text
            filled[gap.language] += 1
    return filled


def write_queries(queries: Queries, languages: Sequence[str], path: Path) -> None:
    """A table that `read_queries` reads."""
    write_csv(path, languages, queries)
