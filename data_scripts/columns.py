"""Which columns of a table are pictures, names and captions: found by their names and values, or given."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from data_scripts.captions import code_of
from data_scripts.cells import written_list
from data_scripts.rows import is_missing, is_text, split_of

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
# ISO 639-3: the languages of FLORES-200 and of CLDR's annotations, and the bibliographic codes of ISO 639-2. They
# count in names of columns only, since files may be called `cat` or `new`.
_ISO_639_3 = frozenset(
    (
        "ace acm acq aeb afr ajp aka alb als amh apc ara arb arg arm ars ary arz asm ava aym ayr aze azb azj bak bam "
        "ban baq bel bem ben bew bgn bjn blo bod bos bre bug bul bur cat ccp ces che chi chu chv cjk ckt cor crh csb "
        "cym cze dan deu dik dut dyu dzo ell eng epo est eus ewe fao fas fij fin fon fra fre frr fry fuv gaz geo ger "
        "gla gle glg glv gre grn guc guj hak hat hau heb hin hne hrv hun hye ibo ice ido iii ilo ina ind isl ita jav "
        "jpn kac kal kam kan kas kat kaz kbp kea khk khm kik kin kir kmb kmr knc kon kor kur lad lao lat lav lim lin "
        "lit lld lmo ltg ltz lua lug luo lus lvs mac mag mal mao mar may min mkd mlg mlt mnw mon mos mri msa mya nan "
        "nav nep new nld nno nob nor npi nso nus nya oci ori ory oss pag pan pap pbt per pes plt pnb pol por prs pus "
        "que quc quy rhg roh ron rum run rus sag sah san scc scr shn sin slk slo slv sme smo sna snd som sot spa sqi "
        "srd srp ssw sun swa swe swh syr tah tam taq tat tel tet tgk tgl tha tib tir tpi tsn tso tuk tum tur twi tyv "
        "tzm udm uig ukr umb urd uzb uzn ven vie wel wln wol wuu xal xho ydd yid yor yrl yrk yuw zgh zho zsm zul"
    ).split()
)
# Codes that are also names of columns with other contents.
_WORDS = frozenset(
    "aka als ban bug cat che cor est fin geo hat ice id ind lat lim lit mac mag mar may min mon new pan per pol por "
    "que run san sin sun tel".split()
)
_SCRIPTS = (
    "arab|armn|beng|cakm|cans|cher|copt|cyrl|deva|ethi|geor|grek|gujr|guru|hang|hani|hans|hant|hebr|hira|jpan|kana|"
    "khmr|knda|kore|laoo|latn|mlym|mong|mtei|mymr|nkoo|olck|orya|rohg|sinh|sund|syrc|taml|telu|tfng|thaa|thai|tibt|yiii"
)
_TAG = rf"(?P<tag>(?P<language>[A-Za-z]{{2,3}})(?P<script>[-_](?i:{_SCRIPTS}))?(?:[-_](?:[A-Za-z]{{2}}|[0-9]{{3}}))?)"
# `caption_de`, `captions.de`, `text-de`; `de_caption`, and `de.txt` in a tar; `de`.
_CAPTION_COLUMNS = [
    re.compile(rf"(?:captions?|texts?)[_.\- ]{_TAG}"),
    re.compile(rf"{_TAG}[_.\- ](?:captions?|te?xts?)"),
    re.compile(_TAG),
]
_NEARLY_CAPTION_COLUMNS = [re.compile(rf".*[_.\- ]{_TAG}"), re.compile(rf"{_TAG}[_.\- ].*")]  # `title_en`, `en_title`
PLAIN_CAPTIONS = ("captions", "caption", "text", "texts", "sentences", "sentence", "txt")
LANGUAGE_COLUMNS = ("language", "lang", "locale")
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
        "image_name",
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
    warning: str = ""  # names the columns that are left out although their names may be languages

    def used(self) -> set[str]:
        of_captions = {column for columns in self.captions.values() for column in columns}
        others = {self.image, self.image_id, self.split, self.mapping, self.language, self.text}
        return (of_captions | others) - {None}

    def read(self, record: Mapping[str, Any]) -> Iterator[tuple[Any, list[Any]]]:
        """Each language of a record with what stands in place of its captions."""
        if self.mapping is not None:
            mapping = record.get(self.mapping)
            for language, value in mapping.items() if isinstance(mapping, Mapping) else ():
                yield language, read_captions(value)
        elif self.language is not None:
            yield record.get(self.language), read_captions(record.get(self.text))
        else:
            for language, columns in self.captions.items():
                yield language, [caption for column in columns for caption in read_captions(record.get(column))]


def read_captions(value: Any) -> list[Any]:
    """What stands for captions in a cell: a string, a list of them, or such a list as text (`written_list`)."""
    if is_missing(value):
        return []
    if isinstance(value, str):
        members = written_list(value)
        return [value] if members is None else members
    return list(value) if isinstance(value, list | tuple) else [value]


def language_of_name(stem: str) -> str | None:
    """The language of a table that is called by it alone: `de`, `captions.de`, `de.test`, and not `my_photos`."""
    tag, is_language = _tag_of(".".join(word for word in stem.split(".") if split_of(word) is None))
    return tag if is_language and tag is not None and tag.lower() not in _WORDS else None


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
    of_images = [image] if image else [name for name in columns if name.removesuffix("s") in _IMAGE_COLUMNS]
    if lists := [name for name in of_images if _holds_lists(name, samples)]:
        raise ValueError(
            f"{source}: column {lists[0]} holds lists of images; write a row for each image. {_listed(columns)}"
        )
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
    for name in PLAIN_CAPTIONS:
        if columns.get(name) == "mapping":
            return Columns(**common, mapping=name)
    plain = next((name for name in PLAIN_CAPTIONS if name in texts), None)
    long_form = next((name for name in LANGUAGE_COLUMNS if columns.get(name) == "text"), None)
    if plain is not None and long_form is not None:
        return Columns(**common, language=long_form, text=plain)
    if plain is not None and language is not None:
        return Columns(**common, captions={language: (plain,)})
    taken, left_out = _by_language(columns, samples, texts)
    if taken:
        return Columns(**common, captions=_columns_of_tags(taken), warning=_warning(taken, left_out))
    of_one = f", such as --caption_columns en={plain}" if plain else ""
    raise ValueError(
        f"{source}: no column is called by a language, such as de or caption_de; say which hold captions by "
        f"--caption_columns{of_one or ' LANGUAGE=COLUMN'}. {_listed(columns)}"
    )


_PICTURE_KINDS = ("text", "bytes", "picture", "mixed")


def _kind(name: str, samples: Sequence[Mapping[str, Any]]) -> str:
    """What the values of a column are, in a word."""
    values = [sample[name] for sample in samples if not is_missing(sample.get(name))]
    if not values:
        return "empty"
    of_texts = [
        value
        for value in values
        if isinstance(value, list) and all(isinstance(t, str) or is_missing(t) for t in value)
    ]
    texts = [value for value in values if isinstance(value, str)]
    if len(texts) + len(of_texts) > len(values) / 2:  # others are counted when they are read
        return "text" if texts else "list of texts"
    if texts or of_texts:
        return "mixed"
    if all(isinstance(value, Mapping) for value in values):
        return "picture" if all(set(value) <= {"bytes", "path"} for value in values) else "mapping"
    return "bytes" if all(isinstance(value, bytes) for value in values) else type(values[0]).__name__


def _holds_lists(name: str, samples: Sequence[Mapping[str, Any]]) -> bool:
    """Whether most values of a column are lists, or such as text."""
    values = [sample[name] for sample in samples if sample.get(name) is not None]
    lists = [value for value in values if isinstance(value, list) or (is_text(value) and written_list(value[:10_000]))]
    return len(lists) > len(values) / 2


def _listed(columns: Mapping[str, str]) -> str:
    return f"Its columns: {', '.join(f'{name} ({kind})' for name, kind in columns.items()) or 'none'}"


def _by_language(
    columns: Mapping[str, str], samples: Sequence[Mapping[str, Any]], texts: set[str]
) -> tuple[dict[str, str], dict[str, str]]:
    """The columns of captions with their language tags, and those left out although their names may be languages."""
    taken: dict[str, str] = {}
    words: dict[str, str] = {}  # which are captions only beside other languages
    left_out: dict[str, str] = {}
    for name, kind in columns.items():
        tag, is_language = _tag_of(name)
        if tag is None:
            continue
        if is_language and tag.lower() not in _WORDS:
            if name in texts:
                taken[name] = tag
            elif kind in ("empty", "list", "mapping", "mixed"):
                left_out[name] = tag
        elif name in texts:
            contents = _contents(name, samples)
            if is_language and contents == "captions":
                words[name] = tag
            elif contents == "captions" or (is_language and contents == "words"):
                left_out[name] = tag
    if taken:
        taken = {name: (taken | words)[name] for name in columns if name in taken or name in words}
    return taken, left_out


def _tag_of(name: str) -> tuple[str | None, bool]:
    """A language tag in a column's name, and whether the name is that of a language's captions or only nearly so."""
    if name in PLAIN_CAPTIONS:
        return None, False
    for pattern in _CAPTION_COLUMNS:
        if match := pattern.fullmatch(name):
            code = match["language"].lower()
            if code in LANGUAGES or code in _ISO_639_3 or (len(code) == 3 and match["script"]):
                return match["tag"], True
            if len(code) == 3 or code_of(code):
                return code_of(code) or match["tag"], False
    for pattern in _NEARLY_CAPTION_COLUMNS:
        if (match := pattern.fullmatch(name)) and match["language"].lower() in LANGUAGES:
            return match["tag"], False
    return next((code_of(word) for word in re.findall(r"[A-Za-z]{4,}", name) if code_of(word)), None), False


def _contents(name: str, samples: Sequence[Mapping[str, Any]]) -> str:
    """What most texts of a column are: captions, names of files or rows, or words that may be either."""
    values = [text for sample in samples for text in read_captions(sample.get(name)) if is_text(text)]
    names = sum(map(_is_name, values))
    if sum(map(_is_caption, values)) > names:
        return "captions"
    return "names" if names > len(values) / 2 else "words"


def _is_name(text: str) -> bool:
    """Whether a text looks like the name of a file or a row, or a number: without letters, or one word with more."""
    if not any(map(str.isalpha, text)):
        return True
    return len(text.split()) == 1 and bool(
        re.search(r"[/\\_]|\.\w{2,4}$|[0-9]" if text.isascii() else r"[/\\_]", text)
    )


def _is_caption(text: str) -> bool:
    """Whether a text looks like nothing but a caption: of several words, or in another script without digits."""
    words = re.findall(r"(?<!\S)[^\W\d_]+", text)
    return len(words) > 1 or (not _is_name(text) and not re.search(r"[A-Za-z0-9]", text))


def _columns_of_tags(tags: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Language tag → columns, from column → tag."""
    return {tag: tuple(name for name in tags if tags[name] == tag) for tag in dict.fromkeys(tags.values())}


def _warning(taken: Mapping[str, str], left_out: Mapping[str, str]) -> str:
    """Names the columns that are left out, and the option that reads them."""
    if not left_out:
        return ""
    columns = _columns_of_tags({**taken, **left_out})
    given = " ".join(f"{tag}={','.join(names)}" for tag, names in columns.items())
    named = ", ".join(left_out)
    return (
        f"columns left out although their names may be languages: {named}; to read them, use --caption_columns {given}"
    )
