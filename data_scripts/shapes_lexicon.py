"""Scenes of two objects in a landscape, and how ten languages put them into words.

Every language has tables of word forms and one function that builds a sentence by the grammar of that language:
gender, case, agreement, articles and word order are its own, nothing is glued word by word. The function draws
a template and, where the language has them, synonyms; whatever it draws, the sentence names both objects with
colour and shape, the relation between them and the setting, so two different scenes never share a caption.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from data_scripts.captions import close_tags

COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "white", "black")
SHAPES = ("circle", "square", "triangle", "star", "heart", "cross", "ring", "diamond")
SITES = ("beach", "meadow", "snow", "sea", "road", "field")  # what is below the horizon
SKIES = ("morning", "noon", "evening", "night", "fog")  # and above it

# Each relation with the one that says the same from the other object's side.
INVERSE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
CANONICAL_RELATIONS = ("left of", "above")


@dataclass(frozen=True)
class Item:
    """One object: a value of `COLOURS` and of `SHAPES`."""

    colour: str
    shape: str


@dataclass(frozen=True)
class Setting:
    """The landscape behind both objects: a value of `SITES` and of `SKIES`."""

    site: str
    sky: str


@dataclass(frozen=True)
class Scene:
    """`figure` stands in `relation` (a key of `INVERSE`) to `ground`: the red star left of the blue circle."""

    figure: Item
    relation: str
    ground: Item
    setting: Setting

    def mirrored(self) -> Scene:
        """The same scene told from the other object's side: "A left of B" becomes "B right of A"."""
        return Scene(self.ground, INVERSE[self.relation], self.figure, self.setting)

    def canonical(self) -> Scene:
        """The one of the two ways to tell the scene whose relation is "left of" or "above"."""
        return self if self.relation in CANONICAL_RELATIONS else self.mirrored()


def describe(scene: Scene, language: str, rng: np.random.Generator) -> str:
    """One caption of the scene, its side, template and synonyms drawn from `rng`.

    Raises ValueError for a language that is not in `LANGUAGES`.
    """
    check_languages([language])

    def pick(options: Sequence):
        return options[rng.integers(len(options))] if len(options) > 1 else options[0]

    told = pick((scene, scene.mirrored()))
    sentence = GRAMMARS[language](told.figure, told.relation, told.ground, told.setting, pick)
    # No Turkish template opens with an "i", whose capital would be "İ".
    return sentence[0].upper() + sentence[1:]


def check_languages(languages: Sequence[str]) -> None:
    """Raises ValueError, naming the known languages, when one of `languages` is not in `LANGUAGES`."""
    unknown = [language for language in languages if language not in GRAMMARS]
    if unknown:
        raise ValueError(
            f"shapes has no captions in {', '.join(map(repr, unknown))}: "
            f"choose `languages` from {', '.join(LANGUAGES)}, or add a grammar to shapes_lexicon.GRAMMARS"
            f"{close_tags(unknown, LANGUAGES)}"
        )


# ---------------------------------------------------------------------------------------------------- Chinese
# No inflection. A noun is counted with its measure word. 的 after the colour is dropped where the ground's own 的
# follows. The setting opens the sentence.

ZH_COLOURS = {
    "red": ("红色",),
    "green": ("绿色",),
    "blue": ("蓝色",),
    "yellow": ("黄色",),
    "purple": ("紫色",),
    "orange": ("橙色", "橘色"),
    "white": ("白色",),
    "black": ("黑色",),
}
# shape: measure word, noun
ZH_SHAPES = {
    "circle": ("个", "圆形"),
    "square": ("个", "正方形"),
    "triangle": ("个", "三角形"),
    "star": ("颗", "星星"),
    "heart": ("颗", "爱心"),
    "cross": ("个", "十字"),
    "ring": ("个", "圆环"),
    "diamond": ("个", "菱形"),
}
ZH_SITES = {
    "beach": "沙滩",
    "meadow": "草地",
    "snow": "雪地",
    "sea": "海面",
    "road": "马路",
    "field": "田野",
}
ZH_SKIES = {
    "morning": "早晨",
    "noon": "中午",
    "evening": "傍晚",
    "night": "夜晚",
    "fog": "雾中",
}
ZH_RELATIONS = {
    "left of": ("左边", "左侧"),
    "right of": ("右边", "右侧"),
    "above": ("上面", "上方"),
    "below": ("下面", "下方"),
}


def chinese(figure: Item, relation: str, ground: Item, setting: Setting, pick: Callable) -> str:
    def phrase(item: Item, particle: str) -> tuple[str, str]:
        measure, noun = ZH_SHAPES[item.shape]
        bare = f"{pick(ZH_COLOURS[item.colour])}{particle}{noun}"
        return bare, f"一{measure}{bare}"

    _, a_figure = phrase(figure, pick(("的", "")))
    bare_ground, a_ground = phrase(ground, "")
    side = pick(ZH_RELATIONS[relation])
    return f"{ZH_SKIES[setting.sky]}的{ZH_SITES[setting.site]}上，" + pick(
        (
            f"{a_figure}在{a_ground}的{side}。",
            f"{a_figure}位于{a_ground}的{side}。",
            f"{bare_ground}的{side}有{a_figure}。",
            f"在{bare_ground}的{side}可以看到{a_figure}。",
            f"可以看到{a_ground}的{side}有{a_figure}。",
            f"{a_ground}，它的{side}是{a_figure}。",
        )
    )


# ---------------------------------------------------------------------------------------------------- English
# The indefinite article of "orange" is "an".

EN_COLOURS = {colour: (colour,) for colour in COLOURS} | {"purple": ("purple", "violet")}
EN_SITES = {
    "beach": "on the beach",
    "meadow": "in the meadow",
    "snow": "in the snow",
    "sea": "at sea",
    "road": "on the road",
    "field": "in the field",
}
EN_SKIES = {
    "morning": "in the morning",
    "noon": "at noon",
    "evening": "in the evening",
    "night": "at night",
    "fog": "in the fog",
}
EN_RELATIONS = {
    "left of": ("left of",),
    "right of": ("right of",),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
EN_FROM_IT = {"left of": "to its left", "right of": "to its right", "above": "above it", "below": "below it"}


def english(figure: Item, relation: str, ground: Item, setting: Setting, pick: Callable) -> str:
    def phrases(item: Item) -> tuple[str, str]:
        colour = pick(EN_COLOURS[item.colour])
        return f"{'an' if colour == 'orange' else 'a'} {colour} {item.shape}", f"the {colour} {item.shape}"

    a_figure, _ = phrases(figure)
    a_ground, the_ground = phrases(ground)
    where = pick(EN_RELATIONS[relation])
    scenery = f"{EN_SITES[setting.site]} {EN_SKIES[setting.sky]}"
    return pick(
        (
            f"there is {a_figure} {where} {a_ground} {scenery}.",
            f"{a_figure} is {where} {a_ground} {scenery}.",
            f"{a_figure} {where} {a_ground} {scenery}.",
            f"{where} {the_ground} there is {a_figure} {scenery}.",
            f"{where} {the_ground} we see {a_figure} {scenery}.",
            f"we see {a_figure} {where} {a_ground} {scenery}.",
            f"{a_ground} with {a_figure} {EN_FROM_IT[relation]} {scenery}.",
        )
    )


# ----------------------------------------------------------------------------------------------------- German
# Three genders and four cases; the adjective's ending depends on the article before it. "lila" and "rosa" never
# inflect, and "von dem" contracts to "vom".

DE_COLOURS = {
    "red": ("rot",),
    "green": ("grün",),
    "blue": ("blau",),
    "yellow": ("gelb",),
    "purple": ("lila", "violett"),
    "orange": ("orangefarben",),
    "white": ("weiß",),
    "black": ("schwarz",),
}
# shape: gender, nominative (and accusative), genitive, dative
DE_SHAPES = {
    "circle": ("m", "Kreis", "Kreises", "Kreis"),
    "square": ("n", "Quadrat", "Quadrats", "Quadrat"),
    "triangle": ("n", "Dreieck", "Dreiecks", "Dreieck"),
    "star": ("m", "Stern", "Sterns", "Stern"),
    "heart": ("n", "Herz", "Herzens", "Herzen"),
    "cross": ("n", "Kreuz", "Kreuzes", "Kreuz"),
    "ring": ("m", "Ring", "Rings", "Ring"),
    "diamond": ("f", "Raute", "Raute", "Raute"),
}
# gender and case: article, ending of the adjectives after it
DE_INDEFINITE = {
    "m": {"nom": ("ein", "er"), "gen": ("eines", "en"), "dat": ("einem", "en"), "acc": ("einen", "en")},
    "n": {"nom": ("ein", "es"), "gen": ("eines", "en"), "dat": ("einem", "en"), "acc": ("ein", "es")},
    "f": {"nom": ("eine", "e"), "gen": ("einer", "en"), "dat": ("einer", "en"), "acc": ("eine", "e")},
}
DE_DEFINITE = {
    "m": {"gen": ("des", "en"), "dat": ("dem", "en")},
    "n": {"gen": ("des", "en"), "dat": ("dem", "en")},
    "f": {"gen": ("der", "en"), "dat": ("der", "en")},
}
DE_SITES = {
    "beach": "am Strand",
    "meadow": "auf der Wiese",
    "snow": "im Schnee",
    "sea": "auf dem Meer",
    "road": "auf der Straße",
    "field": "auf dem Acker",
}
DE_SKIES = {
    "morning": "morgens",
    "noon": "mittags",
    "evening": "abends",
    "night": "nachts",
    "fog": "im Nebel",
}
# relation: preposition and the case it governs
DE_RELATIONS = {
    "left of": (("links von", "dat"), ("links neben", "dat")),
    "right of": (("rechts von", "dat"), ("rechts neben", "dat")),
    "above": (("über", "dat"), ("oberhalb", "gen")),
    "below": (("unter", "dat"), ("unterhalb", "gen")),
}


def german(figure: Item, relation: str, ground: Item, setting: Setting, pick: Callable) -> str:
    def phrase(item: Item, colour: str, case: str, articles: dict) -> str:
        gender, nominative, genitive, dative = DE_SHAPES[item.shape]
        noun = {"nom": nominative, "acc": nominative, "gen": genitive, "dat": dative}[case]
        article, ending = articles[gender][case]
        colour = colour if colour == "lila" else colour + ending
        return f"{article} {colour} {noun}"

    figure_colour, ground_colour = pick(DE_COLOURS[figure.colour]), pick(DE_COLOURS[ground.colour])
    nominative, accusative, dative = (
        phrase(figure, figure_colour, case, DE_INDEFINITE) for case in ("nom", "acc", "dat")
    )
    preposition, case = pick(DE_RELATIONS[relation])
    at_a = f"{preposition} {phrase(ground, ground_colour, case, DE_INDEFINITE)}"
    at_the = f"{preposition} {phrase(ground, ground_colour, case, DE_DEFINITE)}".replace("von dem ", "vom ")
    scenery = f"{DE_SKIES[setting.sky]} {DE_SITES[setting.site]}"
    return pick(
        (
            f"man sieht {accusative} {at_a} {scenery}.",
            f"{nominative} ist {at_a} {scenery}.",
            f"{nominative} befindet sich {at_a} {scenery}.",
            f"{nominative} {at_a} {scenery}.",
            f"{at_the} befindet sich {nominative} {scenery}.",
            f"{at_the} sieht man {accusative} {scenery}.",
            f"ein Bild mit {dative} {at_a} {scenery}.",
        )
    )


# ----------------------------------------------------------------------------------------------------- French
# The colour stands after the noun and agrees with it in gender; "orange" never inflects. Before a vowel the
# definite article is elided.

FR_COLOURS = {
    "red": {"m": "rouge", "f": "rouge"},
    "green": {"m": "vert", "f": "verte"},
    "blue": {"m": "bleu", "f": "bleue"},
    "yellow": {"m": "jaune", "f": "jaune"},
    "purple": {"m": "violet", "f": "violette"},
    "orange": {"m": "orange", "f": "orange"},
    "white": {"m": "blanc", "f": "blanche"},
    "black": {"m": "noir", "f": "noire"},
}
FR_SHAPES = {
    "circle": ("m", "cercle"),
    "square": ("m", "carré"),
    "triangle": ("m", "triangle"),
    "star": ("f", "étoile"),
    "heart": ("m", "cœur"),
    "cross": ("f", "croix"),
    "ring": ("m", "anneau"),
    "diamond": ("m", "losange"),
}
# Articles by gender, and before a vowel, alone and after "de".
FR_A, FR_THE = {"m": "un ", "f": "une "}, {"m": "le ", "f": "la ", "vowel": "l'"}
FR_OF_A, FR_OF_THE = {"m": "d'un ", "f": "d'une "}, {"m": "du ", "f": "de la ", "vowel": "de l'"}
FR_SITES = {
    "beach": "sur la plage",
    "meadow": "dans le pré",
    "snow": "dans la neige",
    "sea": "sur la mer",
    "road": "sur la route",
    "field": "dans le champ",
}
FR_SKIES = {
    "morning": "le matin",
    "noon": "à midi",
    "evening": "le soir",
    "night": "la nuit",
    "fog": "dans le brouillard",
}
# relation: adverb or preposition, then the articles it puts before the ground, indefinite and definite
FR_RELATIONS = {
    "left of": (("à gauche", FR_OF_A, FR_OF_THE),),
    "right of": (("à droite", FR_OF_A, FR_OF_THE),),
    "above": (("au-dessus", FR_OF_A, FR_OF_THE),),
    "below": (("au-dessous", FR_OF_A, FR_OF_THE), ("en dessous", FR_OF_A, FR_OF_THE), ("sous", FR_A, FR_THE)),
}


def french(figure: Item, relation: str, ground: Item, setting: Setting, pick: Callable) -> str:
    def phrase(item: Item, articles: dict[str, str]) -> str:
        gender, noun = FR_SHAPES[item.shape]
        article = articles.get("vowel", articles[gender]) if noun[0] in "aé" else articles[gender]
        return f"{article}{noun} {FR_COLOURS[item.colour][gender]}"

    adverb, indefinite, definite = pick(FR_RELATIONS[relation])
    a_figure = phrase(figure, FR_A)
    at_a = f"{adverb} {phrase(ground, indefinite)}"
    at_the = f"{adverb} {phrase(ground, definite)}"
    scenery = f"{FR_SITES[setting.site]} {FR_SKIES[setting.sky]}"
    return pick(
        (
            f"voici {a_figure} {at_a} {scenery}.",
            f"{a_figure} se trouve {at_a} {scenery}.",
            f"{a_figure} est {at_a} {scenery}.",
            f"{a_figure} {at_a} {scenery}.",
            f"{at_the} se trouve {a_figure} {scenery}.",
            f"{at_the}, on voit {a_figure} {scenery}.",
            f"on voit {a_figure} {at_a} {scenery}.",
        )
    )


# --------------------------------------------------------------------------------------------------- Japanese
# Colours are い-adjectives where the language has one, nouns with の elsewhere. The ground always comes with の.

JA_COLOURS = {
    "red": ("赤い",),
    "green": ("緑の", "緑色の"),
    "blue": ("青い",),
    "yellow": ("黄色い", "黄色の"),
    "purple": ("紫の", "紫色の"),
    "orange": ("オレンジ色の",),
    "white": ("白い",),
    "black": ("黒い",),
}
JA_SHAPES = {
    "circle": "円",
    "square": "正方形",
    "triangle": "三角形",
    "star": "星",
    "heart": "ハート",
    "cross": "十字",
    "ring": "輪",
    "diamond": "ひし形",
}
JA_SITES = {
    "beach": "砂浜",
    "meadow": "草原",
    "snow": "雪原",
    "sea": "海",
    "road": "道",
    "field": "畑",
}
JA_SKIES = {
    "morning": "朝",
    "noon": "昼",
    "evening": "夕方",
    "night": "夜",
    "fog": "霧",
}
JA_RELATIONS = {
    "left of": ("左", "左側"),
    "right of": ("右", "右側"),
    "above": ("上", "上方"),
    "below": ("下", "下方"),
}


def japanese(figure: Item, relation: str, ground: Item, setting: Setting, pick: Callable) -> str:
    def noun(item: Item) -> str:
        return f"{pick(JA_COLOURS[item.colour])}{JA_SHAPES[item.shape]}"

    the_figure, the_ground = noun(figure), noun(ground)
    side = pick(JA_RELATIONS[relation])
    scenery = f"{JA_SKIES[setting.sky]}の{JA_SITES[setting.site]}"
    return pick(
        (
            f"{scenery}。{the_ground}の{side}に{the_figure}があります。",
            f"{scenery}。{the_figure}が{the_ground}の{side}にあります。",
            f"{scenery}で、{the_ground}の{side}に{the_figure}が見えます。",
            f"{the_ground}の{side}に{the_figure}がある{scenery}。",
            f"{scenery}と、{the_ground}の{side}にある{the_figure}。",
            f"{scenery}に、{the_ground}と、その{side}にある{the_figure}。",
        )
    )


# ------------------------------------------------------------------------------------------------------ Czech
# Three genders; every adjective used here is of the hard declension. The preposition governs the case; "s" becomes
# "se" before z and ž.

CS_COLOURS = {
    "red": "červen",
    "green": "zelen",
    "blue": "modr",
    "yellow": "žlut",
    "purple": "fialov",
    "orange": "oranžov",
    "white": "bíl",
    "black": "čern",
}
# shape: gender, then the cases
CS_SHAPES = {
    "circle": ("m", {"nom": "kruh", "gen": "kruhu", "acc": "kruh", "ins": "kruhem"}),
    "square": ("m", {"nom": "čtverec", "gen": "čtverce", "acc": "čtverec", "ins": "čtvercem"}),
    "triangle": ("m", {"nom": "trojúhelník", "gen": "trojúhelníku", "acc": "trojúhelník", "ins": "trojúhelníkem"}),
    "star": ("f", {"nom": "hvězda", "gen": "hvězdy", "acc": "hvězdu", "ins": "hvězdou"}),
    "heart": ("n", {"nom": "srdce", "gen": "srdce", "acc": "srdce", "ins": "srdcem"}),
    "cross": ("m", {"nom": "kříž", "gen": "kříže", "acc": "kříž", "ins": "křížem"}),
    "ring": ("m", {"nom": "prstenec", "gen": "prstence", "acc": "prstenec", "ins": "prstencem"}),
    "diamond": ("m", {"nom": "kosočtverec", "gen": "kosočtverce", "acc": "kosočtverec", "ins": "kosočtvercem"}),
}
CS_ENDINGS = {
    "m": {"nom": "ý", "gen": "ého", "acc": "ý", "ins": "ým"},
    "f": {"nom": "á", "gen": "é", "acc": "ou", "ins": "ou"},
    "n": {"nom": "é", "gen": "ého", "acc": "é", "ins": "ým"},
}
CS_SITES = {
    "beach": "na pláži",
    "meadow": "na louce",
    "snow": "ve sněhu",
    "sea": "na moři",
    "road": "na silnici",
    "field": "na poli",
}
CS_SKIES = {
    "morning": "ráno",
    "noon": "v poledne",
    "evening": "večer",
    "night": "v noci",
    "fog": "v mlze",
}
CS_RELATIONS = {
    "left of": (("vlevo od", "gen"), ("nalevo od", "gen")),
    "right of": (("vpravo od", "gen"), ("napravo od", "gen")),
    "above": (("nad", "ins"),),
    "below": (("pod", "ins"),),
}


def czech(figure: Item, relation: str, ground: Item, setting: Setting, pick: Callable) -> str:
    def phrase(item: Item, case: str) -> str:
        gender, noun = CS_SHAPES[item.shape]
        ending = CS_ENDINGS[gender][case]
        return f"{CS_COLOURS[item.colour]}{ending} {noun[case]}"

    nominative, accusative, instrumental = (phrase(figure, case) for case in ("nom", "acc", "ins"))
    preposition, case = pick(CS_RELATIONS[relation])
    where = f"{preposition} {phrase(ground, case)}"
    scenery = f"{CS_SKIES[setting.sky]} {CS_SITES[setting.site]}"
    with_figure = f"{'se' if instrumental[0] in 'zž' else 's'} {instrumental}"
    return pick(
        (
            f"{where} je {nominative} {scenery}.",
            f"{where} se nachází {nominative} {scenery}.",
            f"{where} vidíme {accusative} {scenery}.",
            f"{nominative} je {where} {scenery}.",
            f"{nominative} {where} {scenery}.",
            f"na obrázku je {nominative} {where} {scenery}.",
            f"obrázek {with_figure} {where} {scenery}.",
        )
    )


# ------------------------------------------------------------------------------------------------- Indonesian
# The colour follows the noun, and nothing inflects. The figure takes "sebuah", the ground of an
# inverted sentence "itu".

ID_COLOURS = {
    "red": ("merah",),
    "green": ("hijau",),
    "blue": ("biru",),
    "yellow": ("kuning",),
    "purple": ("ungu",),
    "orange": ("oranye", "jingga"),
    "white": ("putih",),
    "black": ("hitam",),
}
ID_SHAPES = {
    "circle": "lingkaran",
    "square": "persegi",
    "triangle": "segitiga",
    "star": "bintang",
    "heart": "hati",
    "cross": "salib",
    "ring": "cincin",
    "diamond": "wajik",
}
ID_SITES = {
    "beach": "di pantai",
    "meadow": "di padang rumput",
    "snow": "di salju",
    "sea": "di laut",
    "road": "di jalan",
    "field": "di ladang",
}
ID_SKIES = {
    "morning": "pagi hari",
    "noon": "siang hari",
    "evening": "senja hari",
    "night": "malam hari",
    "fog": "berkabut",
}
ID_RELATIONS = {
    "left of": ("di sebelah kiri", "di kiri"),
    "right of": ("di sebelah kanan", "di kanan"),
    "above": ("di atas",),
    "below": ("di bawah",),
}


def indonesian(figure: Item, relation: str, ground: Item, setting: Setting, pick: Callable) -> str:
    a_figure = f"sebuah {ID_SHAPES[figure.shape]} {pick(ID_COLOURS[figure.colour])}"
    a_ground = f"{ID_SHAPES[ground.shape]} {pick(ID_COLOURS[ground.colour])}"
    the_ground = f"{a_ground} itu"
    where = pick(ID_RELATIONS[relation])
    scenery = f"{ID_SITES[setting.site]} {ID_SKIES[setting.sky]}"
    return pick(
        (
            f"ada {a_figure} {where} {a_ground} {scenery}.",
            f"{a_figure} berada {where} {a_ground} {scenery}.",
            f"{a_figure} {where} {a_ground} {scenery}.",
            f"{where} {the_ground} ada {a_figure} {scenery}.",
            f"{where} {the_ground} terlihat {a_figure} {scenery}.",
            f"gambar {a_figure} {where} {a_ground} {scenery}.",
        )
    )


# ---------------------------------------------------------------------------------------------------- Spanish
# The colour follows the noun and agrees with it; "naranja" and "violeta" do not change with gender.

ES_COLOURS = {
    "red": ({"m": "rojo", "f": "roja"},),
    "green": ({"m": "verde", "f": "verde"},),
    "blue": ({"m": "azul", "f": "azul"},),
    "yellow": ({"m": "amarillo", "f": "amarilla"},),
    "purple": ({"m": "morado", "f": "morada"}, {"m": "violeta", "f": "violeta"}),
    "orange": ({"m": "naranja", "f": "naranja"}, {"m": "anaranjado", "f": "anaranjada"}),
    "white": ({"m": "blanco", "f": "blanca"},),
    "black": ({"m": "negro", "f": "negra"},),
}
ES_SHAPES = {
    "circle": ("m", "círculo"),
    "square": ("m", "cuadrado"),
    "triangle": ("m", "triángulo"),
    "star": ("f", "estrella"),
    "heart": ("m", "corazón"),
    "cross": ("f", "cruz"),
    "ring": ("m", "anillo"),
    "diamond": ("m", "rombo"),
}
ES_SITES = {
    "beach": "en la playa",
    "meadow": "en el prado",
    "snow": "en la nieve",
    "sea": "en el mar",
    "road": "en la carretera",
    "field": "en el campo",
}
ES_SKIES = {
    "morning": "por la mañana",
    "noon": "a mediodía",
    "evening": "al atardecer",
    "night": "de noche",
    "fog": "con niebla",
}
ES_RELATIONS = {
    "left of": ("a la izquierda",),
    "right of": ("a la derecha",),
    "above": ("encima", "por encima"),
    "below": ("debajo", "por debajo"),
}


def spanish(figure: Item, relation: str, ground: Item, setting: Setting, pick: Callable) -> str:
    def phrases(item: Item) -> tuple[str, str]:
        gender, noun = ES_SHAPES[item.shape]
        words = f"{noun} {pick(ES_COLOURS[item.colour])[gender]}"
        return ("un " + words, "del " + words) if gender == "m" else ("una " + words, "de la " + words)

    adverb = pick(ES_RELATIONS[relation])
    a_figure, _ = phrases(figure)
    a_ground, of_the_ground = phrases(ground)
    at_a = f"{adverb} de {a_ground}"
    at_the = f"{adverb} {of_the_ground}"
    scenery = f"{ES_SITES[setting.site]} {ES_SKIES[setting.sky]}"
    return pick(
        (
            f"hay {a_figure} {at_a} {scenery}.",
            f"{a_figure} está {at_a} {scenery}.",
            f"{a_figure} {at_a} {scenery}.",
            f"{at_the} hay {a_figure} {scenery}.",
            f"{at_the} aparece {a_figure} {scenery}.",
            f"vemos {a_figure} {at_a} {scenery}.",
        )
    )


# ---------------------------------------------------------------------------------------------------- Russian
# Three genders. Adjectives decline by the type of their stem: hard (красный) or soft (синий). Short participles
# agree with the figure.

RU_COLOURS = {
    "red": ("красн", "hard"),
    "green": ("зелён", "hard"),
    "blue": ("син", "soft"),
    "yellow": ("жёлт", "hard"),
    "purple": ("фиолетов", "hard"),
    "orange": ("оранжев", "hard"),
    "white": ("бел", "hard"),
    "black": ("чёрн", "hard"),
}
RU_SHAPES = {
    "circle": ("m", {"nom": "круг", "gen": "круга", "acc": "круг", "ins": "кругом"}),
    "square": ("m", {"nom": "квадрат", "gen": "квадрата", "acc": "квадрат", "ins": "квадратом"}),
    "triangle": ("m", {"nom": "треугольник", "gen": "треугольника", "acc": "треугольник", "ins": "треугольником"}),
    "star": ("f", {"nom": "звезда", "gen": "звезды", "acc": "звезду", "ins": "звездой"}),
    "heart": ("n", {"nom": "сердце", "gen": "сердца", "acc": "сердце", "ins": "сердцем"}),
    "cross": ("m", {"nom": "крест", "gen": "креста", "acc": "крест", "ins": "крестом"}),
    "ring": ("n", {"nom": "кольцо", "gen": "кольца", "acc": "кольцо", "ins": "кольцом"}),
    "diamond": ("m", {"nom": "ромб", "gen": "ромба", "acc": "ромб", "ins": "ромбом"}),
}
RU_CASES = ("nom", "gen", "acc", "ins")
# type of stem and gender: the endings of RU_CASES
RU_ENDINGS = {
    "hard": {"m": "ый ого ый ым", "f": "ая ой ую ой", "n": "ое ого ое ым"},
    "soft": {"m": "ий его ий им", "f": "яя ей юю ей", "n": "ее его ее им"},
}
RU_SITES = {
    "beach": "на пляже",
    "meadow": "на лугу",
    "snow": "на снегу",
    "sea": "в море",
    "road": "на дороге",
    "field": "в поле",
}
RU_SKIES = {
    "morning": "утром",
    "noon": "в полдень",
    "evening": "вечером",
    "night": "ночью",
    "fog": "в тумане",
}
RU_RELATIONS = {
    "left of": (("слева от", "gen"), ("левее", "gen")),
    "right of": (("справа от", "gen"), ("правее", "gen")),
    "above": (("над", "ins"),),
    "below": (("под", "ins"),),
}
RU_SEEN = {"m": "виден", "f": "видна", "n": "видно"}
RU_DRAWN = {"m": "нарисован", "f": "нарисована", "n": "нарисовано"}


def russian(figure: Item, relation: str, ground: Item, setting: Setting, pick: Callable) -> str:
    def phrase(item: Item, case: str) -> str:
        gender, noun = RU_SHAPES[item.shape]
        stem, kind = RU_COLOURS[item.colour]
        return f"{stem}{RU_ENDINGS[kind][gender].split()[RU_CASES.index(case)]} {noun[case]}"

    gender, _ = RU_SHAPES[figure.shape]
    nominative, accusative, instrumental = (phrase(figure, case) for case in ("nom", "acc", "ins"))
    preposition, case = pick(RU_RELATIONS[relation])
    where = f"{preposition} {phrase(ground, case)}"
    scenery = f"{RU_SKIES[setting.sky]} {RU_SITES[setting.site]}"
    return pick(
        (
            f"{where} находится {nominative} {scenery}.",
            f"{where} {RU_SEEN[gender]} {nominative} {scenery}.",
            f"{where} мы видим {accusative} {scenery}.",
            f"{nominative} находится {where} {scenery}.",
            f"{nominative} {where} {scenery}.",
            f"на картинке {RU_DRAWN[gender]} {nominative} {where} {scenery}.",
            f"картинка с {instrumental} {where} {scenery}.",
        )
    )


# ---------------------------------------------------------------------------------------------------- Turkish
# The setting comes first. The ground stands in the genitive and its side carries possessive and locative:
# "dairenin solunda". "bir" stands between adjectives and noun. The genitive follows vowel harmony (yıldızın,
# üçgenin), n after vowels.

TR_COLOURS = {
    "red": "kırmızı",
    "green": "yeşil",
    "blue": "mavi",
    "yellow": "sarı",
    "purple": "mor",
    "orange": "turuncu",
    "white": "beyaz",
    "black": "siyah",
}
# shape: nominative, genitive
TR_SHAPES = {
    "circle": ("daire", "dairenin"),
    "square": ("kare", "karenin"),
    "triangle": ("üçgen", "üçgenin"),
    "star": ("yıldız", "yıldızın"),
    "heart": ("kalp", "kalbin"),
    "cross": ("haç", "haçın"),
    "ring": ("halka", "halkanın"),
    "diamond": ("eşkenar dörtgen", "eşkenar dörtgenin"),
}
TR_SITES = {
    "beach": "kumsalda",
    "meadow": "çayırda",
    "snow": "karda",
    "sea": "denizde",
    "road": "yolda",
    "field": "tarlada",
}
TR_SKIES = {
    "morning": "sabah",
    "noon": "öğlen",
    "evening": "akşam",
    "night": "gece",
    "fog": "siste",
}
TR_RELATIONS = {
    "left of": ("solunda", "sol tarafında"),
    "right of": ("sağında", "sağ tarafında"),
    "above": ("üstünde", "yukarısında"),
    "below": ("altında", "aşağısında"),
}


def turkish(figure: Item, relation: str, ground: Item, setting: Setting, pick: Callable) -> str:
    a_figure = f"{TR_COLOURS[figure.colour]} bir {TR_SHAPES[figure.shape][0]}"
    colour, genitive = TR_COLOURS[ground.colour], TR_SHAPES[ground.shape][1]
    side = pick(TR_RELATIONS[relation])
    at_a = f"{colour} bir {genitive} {side}"
    at_the = f"{colour} {genitive} {side}"
    scenery = f"{TR_SKIES[setting.sky]} {TR_SITES[setting.site]}"
    return pick(
        (
            f"{scenery} {at_the} {a_figure} var.",
            f"{scenery} {at_the} {a_figure} görülüyor.",
            f"{scenery} {a_figure}, {at_a} duruyor.",
            f"{scenery} {at_a} {a_figure}.",
            f"resimde {scenery} {at_a} {a_figure} var.",
            f"{scenery} {at_a} {a_figure} bulunuyor.",
        )
    )


GRAMMARS = {
    "zh": chinese,
    "en": english,
    "de": german,
    "fr": french,
    "ja": japanese,
    "cs": czech,
    "id": indonesian,
    "es": spanish,
    "ru": russian,
    "tr": turkish,
}
LANGUAGES = tuple(GRAMMARS)
