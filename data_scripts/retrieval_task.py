"""MTEB's retrieval layout: a corpus, queries, and which of them belong together."""

import math
import os
from collections.abc import Iterator, Sequence
from typing import Any

from data_scripts.formats import Place, Table
from data_scripts.problems import Problems
from data_scripts.rows import id_text


class RetrievalTask(Table):
    """A split in MTEB's retrieval layout: images and captions in two tables, and their pairs in a third.

    A record is an image with `image`, `image_id`, `captions` by language, and `gallery`: the languages whose captions
    are ranked against it. A caption without an image is a record, too. Images and captions of no pair are kept.

    Args:
        parts: language → tables of the corpus, of the queries, and of the pairs (qrels).
    """

    def __init__(self, path: str | os.PathLike, split: str | None, parts: dict[str, dict[str, list[Table]]]):
        super().__init__(path, split)
        self.parts_by_language = parts

    @property
    def folder(self) -> str:
        return os.getcwd() if self.is_remote else os.path.abspath(self.path)

    def state(self) -> str:
        tables = [
            table for of_language in self.parts_by_language.values() for part in of_language.values() for table in part
        ]
        return "".join(table.state() for table in tables)

    def records(self, problems: Problems) -> Iterator[tuple[dict, Place, str]]:
        for language, part in self.parts_by_language.items():
            corpus, queries = (self._by_id(part[name], problems) for name in ("corpus", "queries"))
            images, texts, ids = corpus, queries, ("corpus-id", "query-id")
            if not any(has_image for *_, has_image in images.values()):
                images, texts, ids = texts, images, ids[::-1]
            captions: dict[str, list[str]] = {}
            is_asked = set()
            for table in part["qrels"]:
                for pair, _, where in table.records(problems):
                    image, text = (id_text(pair.get(name)) for name in ids)
                    if image not in images or text not in texts:
                        problems.bad("pair of an id that no table has", where)
                    elif (is_relevant := _is_relevant(pair.get("score", 1))) is None:
                        problems.bad("score is not a number", where)
                    elif is_relevant:
                        captions.setdefault(image, []).append(texts[text][0])
                        is_asked.add(text)
            for key, (_, place, where, _) in images.items():
                of_image = {"image_id": key, "captions": {language: captions.get(key, [])}, "gallery": [language]}
                yield self.read(place) | of_image, place, where
            for text, (caption, place, where, _) in texts.items():
                if text not in is_asked:
                    yield {"image": None, "captions": {language: [caption]}, "gallery": []}, place, where

    def _by_id(self, tables: Sequence[Table], problems: Problems) -> dict[str, tuple[Any, Place, str, bool]]:
        """Id → text, place, the same in words, and whether there is an image; a further one of an id is counted."""
        found: dict[str, tuple[Any, Place, str, bool]] = {}
        for table in tables:
            for record, position, where in table.records(Problems(self.path, 1.0, quiet=True)):
                key = id_text(record.get("id", record.get("_id")))
                if key is None:
                    problems.bad("entry without an id", where)
                elif key in found:
                    problems.bad(f"id of another entry; the first is kept, {found[key][2]}", where)
                else:
                    found[key] = (record.get("text"), Place(table, position), where, "image" in record)
        return found

    def read(self, position: Place) -> dict:
        return {"image": position.read().get("image")}


def _is_relevant(score: Any) -> bool | None:
    """Whether a pair's score is above 0; None where it is not a number."""
    try:
        score = float(score)
    except (TypeError, ValueError):
        return None
    return None if math.isnan(score) else score > 0
