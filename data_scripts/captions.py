"""What a caption is, and what its language is called: one answer for data sets, training and evaluation."""

import re
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from html import unescape
from html.entities import html5

from data_scripts.cli import did_you_mean
from data_scripts.rows import is_missing, is_text
from processing_ccrk import normalize_caption

EMPTY = "caption is empty"
MAX_NAMED = 20  # language tags in a message

# ISO 639-1, then what people write instead: ISO 639-3 (of its members, where it is a group of languages), the
# bibliographic code, deprecated ones, country codes, and the English name.
_CODES = """
af afr afrikaans | am amh amharic | ar ara arb arabic | az aze azj azerbaijani | be bel belarusian
bg bul bulgarian | bn ben bengali bangla | bs bos bosnian | ca cat catalan | cs ces cze cz czech | cy cym wel welsh
da dan dk danish | de deu ger german | el ell gre gr greek | en eng english | es spa spanish castilian
et est ekk estonian | eu eus baq basque | fa fas per pes persian farsi | fi fin finnish | fr fra fre french
ga gle irish | gl glg galician | gu guj gujarati | ha hau hausa | he heb iw hebrew | hi hin hindi
hr hrv scr croatian | ht hat haitian | hu hun hungarian | hy hye arm armenian | id ind in indonesian | ig ibo igbo
is isl ice icelandic | it ita italian | ja jpn jp japanese | jv jav jw javanese | ka kat geo georgian
kk kaz kazakh | km khm khmer | kn kan kannada | ko kor kr korean | lb ltz luxembourgish | ln lin lingala
lo lao | lt lit lithuanian | lv lav lvs latvian | mg mlg plt malagasy | mk mkd mac macedonian
ml mal malayalam | mn mon khk mongolian | mr mar marathi | ms msa may zsm malay | my mya bur burmese
ne nep npi nepali | nl nld dut dutch flemish | no nor nob nb nno nn norwegian | or ori ory odia | pa pan punjabi
pl pol polish | ps pus pbt pashto | pt por portuguese | ro ron rum mo romanian moldovan | ru rus russian
sd snd sindhi | si sin sinhala | sk slk slo slovak | sl slv slovenian | so som somali | sq sqi alb als albanian
sr srp scc serbian | su sun sundanese | sv swe swedish | sw swa swh swahili | ta tam tamil | te tel telugu
th tha thai | tl tgl fil tagalog filipino | tr tur turkish | uk ukr ua ukrainian | ur urd urdu
uz uzb uzn uzbek | vi vie vn vietnamese | wo wol wolof | xh xho xhosa | yi yid ydd ji yiddish | yo yor yoruba
zh zho chi cmn yue cn chinese mandarin cantonese | zu zul zulu
ak aka | as asm | ay aym ayr | ba bak | bm bam | bo bod tib | dz dzo | ee ewe | eo epo | ff ful fuv | fj fij | fo fao
gd gla | gn grn | kg kon | ki kik | ks kas | ku kur kmr | ky kir | lg lug | li lim | mi mri mao | mt mlt | ny nya
oc oci | om orm gaz | qu que quy quz | rn run | rw kin | sa san | sc srd | sg sag | sm smo | sn sna | ss ssw | st sot
tg tgk | ti tir | tk tuk | tn tsn | ts tso | tt tat | tw twi | ug uig
"""
_CODE_OF = {alias: code for code, *aliases in map(str.split, re.split(r"[|\n]", _CODES.strip())) for alias in aliases}


def code_of(word: str) -> str | None:
    """The code of a language for its name or another code: `de` for `German`, `ja` for `jp`; None for other words."""
    return _CODE_OF.get(word.lower())


def what_is(value: object) -> str:
    """A JSON value's kind, in words for messages."""
    if is_missing(value):
        return "null" if value is None else "NaN"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "text" if is_text(value) else "half a surrogate pair"
    return {list: "a list", dict: "an object"}.get(type(value), f"a {type(value).__name__}")


def caption_problem(caption: object) -> str | None:
    """Why this is no caption, or None where it is one: text of which the published normalisation leaves anything.

    The same for every data set and every model, so that all train on, rank and count the same captions.
    """
    if not is_text(caption):
        return f"caption is {what_is(caption)}, not text"
    try:
        normalize_caption(caption, max_words=1)
    except ValueError:
        return EMPTY
    return None


# With its semicolon: `AT&T` and `?a=1&lt=2` are text.
_ENTITY = re.compile(r"&(#[0-9]{1,7};|#[xX][0-9a-fA-F]{1,6};|[A-Za-z][A-Za-z0-9]{1,31};)")


def without_entities(text: str) -> str:
    """A text of a web page as it reads: `&amp;`, `&#39;` and, escaped twice, `&amp;#39;` are characters."""

    def character(entity: re.Match[str]) -> str:
        # By itself, `unescape` also takes the beginning of a word that is no entity: `&notes;`.
        is_known = entity[1].startswith("#") or entity[1] in html5
        return unescape(entity[0]) if is_known else entity[0]

    while (plain := _ENTITY.sub(character, text)) != text:
        text = plain
    return text


def is_usable(caption: object) -> bool:
    return caption_problem(caption) is None


def folded_tag(tag: str) -> str:
    """A form that is equal for tags which differ in case and separators alone: `zh_TW`, `zh-tw`."""
    return tag.strip().replace("_", "-").lower()


def is_close(tag: str, language: str) -> bool:
    """Whether two language tags differ and still mean one language: `zh-CN`, `ZH`, `cmn`, `cn` and `Chinese`."""
    return tag != language and _primary(tag) == _primary(language)


def meant_language(tag: str, languages: Iterable[str]) -> str:
    """As `did_you_mean`, of language tags: `english` and `en-US` are near to `en`."""
    near = next((language for language in languages if is_close(tag, language)), None)
    return f"; did you mean {near!r}?" if near else did_you_mean(tag, languages)


@lru_cache(maxsize=1024)
def _primary(tag: str) -> str:
    """The language of a tag, without script, region or number, by its two letters where those are known."""
    parts = re.findall("[a-z]+", tag.lower())
    # A longer word that is no language stands before the tag proper: `caption_en`.
    language = next((part for part in parts if part in _CODE_OF or len(part) <= 3), parts[0] if parts else tag)
    return _CODE_OF.get(language, language)


# Of languages that have several codes: what a tag without a script means.
_MEANT = {"no": "nob", "nor": "nob", "nb": "nob", "norwegian": "nob", "nn": "nno", "cantonese": "yue"}
_TRADITIONAL = {"tw", "hk", "mo"}  # regions


def language_code(language: str, codes: Iterable[str]) -> str | None:
    """
    Which of a model's codes, such as `deu_Latn`, `de_DE` or `de`, means a language; None where none does.

    Args:
        language: a tag such as `de`, `zh-TW`, `deu`, or one of the codes. A code in another script does not mean it.
    """
    codes = list(codes)
    if language in codes:
        return language
    parts = re.split("[-_]", language.lower())
    parts[0] = _MEANT.get(parts[0], parts[0])
    if _primary(language) == "zh" and parts[0] != "yue":
        scripts = {"hans", "hant"} & {*parts} or {"hant" if _TRADITIONAL & {*parts} else "hans"}
        parts = ["zho", *scripts, *parts[1:]]
    script = next((part for part in parts[1:] if len(part) == 4 and part.isalpha()), None)
    best, most = None, -1
    for code in codes:
        own = code.lower().split("_")
        is_other_script = script and len(own[-1]) == 4 and own[-1] != script
        if _primary(code) == _primary(language) and not is_other_script and len({*own} & {*parts}) > most:
            best, most = code, len({*own} & {*parts})
    return best


def close_tags(languages: Iterable[str], tags: Iterable[str]) -> str:
    """The end of a sentence that says which of `tags` are close to one of `languages`; empty where none is."""
    tags = list(tags)
    pairs = [(tag, language) for language in languages for tag in tags if is_close(tag, language)]
    return "".join(f"; {_shown(tag)} is close to {_shown(language)}" for tag, language in pairs)


def report_tags(tags: Counter[str], languages: Iterable[str]) -> str:
    """Names the tags of captions in languages that were not asked for, and the cure where one is close to `languages`.

    Args:
        tags: how often each occurs.
        languages: that were asked for.
    """
    if not tags:
        return "there are none in languages not asked for"
    names = [f"{_shown(tag)} {count:,}" for tag, count in tags.most_common(MAX_NAMED)]
    if len(tags) > MAX_NAMED:
        names.append(f"{len(tags) - MAX_NAMED:,} more")
    close = close_tags(languages, tags)
    cure = ", which is asked for: rename it in the files, or ask for it by that name" if close else ""
    return f"captions in languages not asked for: {', '.join(names)}{close}{cure}"


def _shown(tag: str) -> str:
    """A tag as a message can hold it, whatever a file says."""
    return tag if re.fullmatch(r"[\w-]{1,35}", tag) else ascii(tag[:35])
