"""Which columns of a table are pictures, names and captions: found by their names and values, or given."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from data_scripts.rows import is_text

# ISO 639-1; and those languages with three letters that data sets of many languages have under a name of their own.
_TWO_LETTERS = (
    "aa ab ae af ak am an ar as av ay az ba be bg bi bm bn bo br bs ca ce ch co cr cs cu cv cy da de dv dz ee "
    "el en eo es et eu fa ff fi fj fo fr fy ga gd gl gn gu gv ha he hi ho hr ht hu hy hz ia id ie ig ii ik io "
    "is it iu ja jv ka kg ki kj kk kl km kn ko kr ks ku kv kw ky la lb lg li ln lo lt lu lv mg mh mi mk ml mn "
    "mr ms mt my na nb nd ne ng nl nn no nr nv ny oc oj om or os pa pi pl ps pt qu rm rn ro ru rw sa sc sd se "
    "sg si sk sl sm sn so sq sr ss st su sv sw ta te tg th ti tk tl tn to tr ts tt tw ty ug uk ur uz ve vi vo "
    "wa wo xh yi yo za zh zu"
)
_THREE_LETTERS = (
    "ast bho ceb chr ckb cmn doi dsb fil fur gsw haw hsb kab kok lij mai mni nds pcm quz sat scn sco szl vec war yue"
)
LANGUAGES = frozenset(f"{_TWO_LETTERS} {_THREE_LETTERS}".split())
_SUBTAG = r"[A-Z][a-z]{3}|hans|hant|latn|cyrl|[A-Za-z]{2}|[0-9]{3}"  # script, region
_TAG = rf"(?P<tag>(?P<language>[A-Za-z]{{2,3}})(?:[-_](?:{_SUBTAG}))*)"
# `caption_de`, `captions.de`, `text-de`; `de_caption`, and `de.txt` in a tar; `de`.
_CAPTION_COLUMNS = [
    re.compile(rf"(?:captions?|texts?)[_.\- ]{_TAG}"),
    re.compile(rf"{_TAG}[_.\- ](?:captions?|te?xts?)"),
    re.compile(_TAG),
]
_PLAIN_CAPTIONS = ("captions", "caption", "text", "texts", "sentences", "sentence", "txt")
_LANGUAGE_COLUMNS = ("language", "lang", "locale")
_IMAGE_COLUMNS = (
    *(
        "image",
        "file_name",
        "image_path",
        "img_path",
        "filepath",
        "file_path",
        "path",
        "filename",
        "image_file",
        "img",
    ),
    *("img", "image_bytes", "image_base64", "binary", "jpg", "jpeg", "png", "webp", "picture", "photo"),
)
_ID_COLUMNS = ("image_id",)
_SPLIT_COLUMNS = ("split",)


@dataclass(frozen=True)
class Columns:
    """What a table's columns hold.

    Captions stand in one of three ways: in `captions`, columns of each language; in `mapping`, a column whose values
    map languages to captions; or in long form, `text` in the language that `language` names, a row for each caption.
    """

    image: str
    image_id: str | None = None
    split: str | None = None
    captions: dict[str, tuple[str, ...]] = field(default_factory=dict)
    mapping: str | None = None
    language: str | None = None
    text: str | None = None

    def used(self) -> set[str]:
        of_captions = {column for columns in self.captions.values() for column in columns}
        others = {self.image, self.image_id, self.split, self.mapping, self.language, self.text}
        return (of_captions | others) - {None}

    def read(self, record: Mapping[str, Any]) -> Iterator[tuple[str, list[Any]]]:
        """Each language of a record with what stands in place of its captions."""
        if self.mapping is not None:
            mapping = record.get(self.mapping)
            for language, value in mapping.items() if isinstance(mapping, Mapping) else ():
                yield language, read_captions(value)
        elif self.language is not None:
            if is_text(language := record.get(self.language)):
                yield language, read_captions(record.get(self.text))
        else:
            for language, columns in self.captions.items():
                yield language, [caption for column in columns for caption in read_captions(record.get(column))]


def read_captions(value: Any) -> list[Any]:
    """What stands for captions in a cell: a string, a list of them, or such a list in JSON."""
    if value is None:
        return []
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            parsed = json.loads(value)
        except (ValueError, RecursionError):
            parsed = None
        if isinstance(parsed, list) and all(isinstance(caption, str) for caption in parsed):
            value = parsed
    return list(value) if isinstance(value, list | tuple) else [value]


def find_columns(
    source: str,
    samples: Sequence[Mapping[str, Any]],
    caption_columns: Mapping[str, Sequence[str]] | None = None,
    image_column: str | None = None,
    image_id_column: str | None = None,
    language: str | None = None,
) -> Columns:
    """What the columns of a table hold, by its first records and by what the user says of them.

    Args:
        source: names the table in errors.
        samples: some records.
        caption_columns: language → columns. Without it, a column is a language's by its name: `de`, `caption_de`,
            `captions_de`, `text_de`, `de.txt`; or `captions` holds a mapping; or `language` stands beside `caption`.
        language: of the captions in a column whose name does not say it.
        image_column, image_id_column: of the picture (a path, bytes, base64, or `datasets.Image`), and of a name that
            equal pictures share.

    Raises:
        ValueError: a column that was given is not there, or nothing was found; with the columns and what to give.
    """
    columns = {name: _kind(name, samples) for sample in samples for name in sample}
    given = [column for of_language in (caption_columns or {}).values() for column in of_language]
    for column in [*given, *filter(None, (image_column, image_id_column))]:
        if column not in columns:
            raise ValueError(f"{source} has no column {column!r}; {_listed(columns)}")
    image = image_column or next((name for name in _IMAGE_COLUMNS if columns.get(name) in _PICTURE_KINDS), None)
    if image is None:
        raise ValueError(f"{source}: no column holds pictures; name it by --image_column. {_listed(columns)}")
    common = {
        "image": image,
        "image_id": image_id_column or next((name for name in _ID_COLUMNS if name in columns), None),
        "split": next((name for name in _SPLIT_COLUMNS if columns.get(name) == "text"), None),
    }
    if caption_columns:
        return Columns(**common, captions={tag: tuple(names) for tag, names in caption_columns.items()})
    texts = {name for name, kind in columns.items() if kind in ("text", "list of texts")} - set(common.values())
    for name in _PLAIN_CAPTIONS:
        if columns.get(name) == "mapping":
            return Columns(**common, mapping=name)
    plain = next((name for name in _PLAIN_CAPTIONS if name in texts), None)
    long_form = next((name for name in _LANGUAGE_COLUMNS if columns.get(name) == "text"), None)
    if plain is not None and long_form is not None:
        return Columns(**common, language=long_form, text=plain)
    if plain is not None and language is not None:
        return Columns(**common, captions={language: (plain,)})
    captions: dict[str, tuple[str, ...]] = {}
    for name in columns:
        if name in texts and (tag := _language_of(name, samples, texts)) is not None:
            captions[tag] = (*captions.get(tag, ()), name)
    if captions:
        return Columns(**common, captions=captions)
    of_one = f", such as --caption_columns en={plain}" if plain else ""
    raise ValueError(
        f"{source}: no column is called by a language, such as de or caption_de; say which hold captions by "
        f"--caption_columns{of_one or ' LANGUAGE=COLUMN'}. {_listed(columns)}"
    )


_PICTURE_KINDS = ("text", "bytes", "picture")


def _kind(name: str, samples: Sequence[Mapping[str, Any]]) -> str:
    """What the values of a column are, in a word."""
    values = [sample[name] for sample in samples if sample.get(name) is not None]
    if not values:
        return "empty"
    of_texts = [value for value in values if isinstance(value, list) and all(isinstance(text, str) for text in value)]
    texts = [value for value in values if isinstance(value, str)]
    if len(texts) + len(of_texts) > len(values) / 2:  # others are counted when they are read
        return "text" if texts else "list of texts"
    if all(isinstance(value, Mapping) for value in values):
        return "picture" if all(set(value) <= {"bytes", "path"} for value in values) else "mapping"
    return "bytes" if all(isinstance(value, bytes) for value in values) else type(values[0]).__name__


def _listed(columns: Mapping[str, str]) -> str:
    return f"Its columns: {', '.join(f'{name} ({kind})' for name, kind in columns.items()) or 'none'}"


def _language_of(name: str, samples: Sequence[Mapping[str, Any]], texts: set[str]) -> str | None:
    """The language whose captions a column of texts holds, by its name."""
    for pattern in _CAPTION_COLUMNS:
        match = pattern.fullmatch(name)
        if match is None or match["language"].lower() not in LANGUAGES:
            continue
        if match["tag"] == "id" and not _is_indonesian(name, samples, texts):
            return None
        return match["tag"]
    return None


def _is_indonesian(name: str, samples: Sequence[Mapping[str, Any]], texts: set[str]) -> bool:
    """Whether `id` is a language beside others, and not the row's name: names have digits, or no spaces at all."""
    values = [caption for sample in samples for caption in read_captions(sample.get(name)) if caption]
    beside = any(other != name and _language_of(other, samples, set()) for other in texts)
    return beside and not any(re.search(r"[\d/\\]", value) for value in values) and any(" " in v for v in values)
