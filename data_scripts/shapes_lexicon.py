"""Scenes of two objects and how ten languages put them into words.

Every language has tables of word forms and one function that builds a sentence by the grammar of that language:
gender, case, agreement, articles and word order are its own, nothing is glued word by word. The function draws
a template and, where the language has them, synonyms; whatever it draws, the sentence names both objects with
size, colour and shape, and the relation between them, so two different scenes never share a caption.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

SIZES = ("small", "large")
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "white", "black")
SHAPES = ("circle", "square", "triangle", "star", "heart", "cross", "ring", "diamond")

# Each relation with the one that says the same from the other object's side.
INVERSE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
CANONICAL_RELATIONS = ("left of", "above")


@dataclass(frozen=True)
class Item:
    """One object: a value of `SIZES`, of `COLOURS` and of `SHAPES`."""

    size: str
    colour: str
    shape: str


@dataclass(frozen=True)
class Scene:
    """`figure` stands in `relation` (a key of `INVERSE`) to `ground`: the small red star left of the large circle."""

    figure: Item
    relation: str
    ground: Item

    def mirrored(self) -> Scene:
        """The same scene told from the other object's side: "A left of B" becomes "B right of A"."""
        return Scene(self.ground, INVERSE[self.relation], self.figure)

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
    sentence = GRAMMARS[language](told.figure, told.relation, told.ground, pick)
    # No Turkish template opens with an "i", whose capital would be "İ".
    return sentence[0].upper() + sentence[1:]


def check_languages(languages: Sequence[str]) -> None:
    """Raises ValueError, naming the known languages, when one of `languages` is not in `LANGUAGES`."""
    unknown = [language for language in languages if language not in GRAMMARS]
    if unknown:
        raise ValueError(
            f"shapes has no captions in {', '.join(map(repr, unknown))}: "
            f"choose `languages` from {', '.join(LANGUAGES)}, or add a grammar to shapes_lexicon.GRAMMARS"
        )


# ---------------------------------------------------------------------------------------------------- Chinese
# No inflection. A noun is counted with its measure word. The colour comes before the size, as 大红色 read
# together would be a shade of red. 的 after the colour is dropped where the ground's own 的 follows.

ZH_SIZES = {"small": "小", "large": "大"}
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
ZH_RELATIONS = {
    "left of": ("左边", "左侧"),
    "right of": ("右边", "右侧"),
    "above": ("上面", "上方"),
    "below": ("下面", "下方"),
}


def chinese(figure: Item, relation: str, ground: Item, pick: Callable) -> str:
    def phrase(item: Item, particle: str) -> tuple[str, str]:
        measure, noun = ZH_SHAPES[item.shape]
        bare = f"{pick(ZH_COLOURS[item.colour])}{particle}{ZH_SIZES[item.size]}{noun}"
        return bare, f"一{measure}{bare}"

    _, a_figure = phrase(figure, pick(("的", "")))
    bare_ground, a_ground = phrase(ground, "")
    side = pick(ZH_RELATIONS[relation])
    return pick(
        (
            f"{a_figure}在{a_ground}的{side}。",
            f"{a_figure}位于{a_ground}的{side}。",
            f"{bare_ground}的{side}有{a_figure}。",
            f"在{bare_ground}的{side}可以看到{a_figure}。",
            f"图中{a_ground}的{side}有{a_figure}。",
            f"{a_ground}，它的{side}是{a_figure}。",
        )
    )


# ---------------------------------------------------------------------------------------------------- English
# The size comes first, so that the indefinite article is always "a", before "orange" too.

EN_SIZES = {"small": ("small", "little"), "large": ("large", "big")}
EN_COLOURS = {colour: (colour,) for colour in COLOURS} | {"purple": ("purple", "violet")}
EN_RELATIONS = {
    "left of": ("to the left of", "left of"),
    "right of": ("to the right of", "right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
EN_FROM_IT = {"left of": "to its left", "right of": "to its right", "above": "above it", "below": "below it"}


def english(figure: Item, relation: str, ground: Item, pick: Callable) -> str:
    def noun(item: Item) -> str:
        return f"{pick(EN_SIZES[item.size])} {pick(EN_COLOURS[item.colour])} {item.shape}"

    a_figure, a_ground = noun(figure), noun(ground)
    where = pick(EN_RELATIONS[relation])
    return pick(
        (
            f"there is a {a_figure} {where} a {a_ground}.",
            f"a {a_figure} is {where} a {a_ground}.",
            f"a {a_figure} {where} a {a_ground}.",
            f"{where} the {a_ground} there is a {a_figure}.",
            f"{where} the {a_ground} we see a {a_figure}.",
            f"we see a {a_figure} {where} a {a_ground}.",
            f"a {a_ground} with a {a_figure} {EN_FROM_IT[relation]}.",
        )
    )


# ----------------------------------------------------------------------------------------------------- German
# Three genders and four cases; the adjective's ending depends on the article before it. "lila" never inflects,
# and "von dem" contracts to "vom".

DE_SIZES = {"small": "klein", "large": "groß"}
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
# relation: preposition and the case it governs
DE_RELATIONS = {
    "left of": (("links von", "dat"), ("links neben", "dat")),
    "right of": (("rechts von", "dat"), ("rechts neben", "dat")),
    "above": (("über", "dat"), ("oberhalb", "gen")),
    "below": (("unter", "dat"), ("unterhalb", "gen")),
}


def german(figure: Item, relation: str, ground: Item, pick: Callable) -> str:
    def phrase(item: Item, colour: str, case: str, articles: dict) -> str:
        gender, nominative, genitive, dative = DE_SHAPES[item.shape]
        noun = {"nom": nominative, "acc": nominative, "gen": genitive, "dat": dative}[case]
        article, ending = articles[gender][case]
        colour = colour if colour == "lila" else colour + ending
        return f"{article} {DE_SIZES[item.size]}{ending} {colour} {noun}"

    figure_colour, ground_colour = pick(DE_COLOURS[figure.colour]), pick(DE_COLOURS[ground.colour])
    nominative, accusative, dative = (
        phrase(figure, figure_colour, case, DE_INDEFINITE) for case in ("nom", "acc", "dat")
    )
    preposition, case = pick(DE_RELATIONS[relation])
    at_a = f"{preposition} {phrase(ground, ground_colour, case, DE_INDEFINITE)}"
    at_the = f"{preposition} {phrase(ground, ground_colour, case, DE_DEFINITE)}".replace("von dem ", "vom ")
    return pick(
        (
            f"man sieht {accusative} {at_a}.",
            f"{nominative} ist {at_a}.",
            f"{nominative} befindet sich {at_a}.",
            f"{nominative} {at_a}.",
            f"{at_the} befindet sich {nominative}.",
            f"{at_the} sieht man {accusative}.",
            f"ein Bild mit {dative} {at_a}.",
        )
    )


# ----------------------------------------------------------------------------------------------------- French
# The size stands before the noun and the colour after it; both agree in gender. "orange" never inflects.

FR_SIZES = {"small": {"m": "petit", "f": "petite"}, "large": {"m": "grand", "f": "grande"}}
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
# Articles by gender, alone and after "de".
FR_A, FR_THE = {"m": "un", "f": "une"}, {"m": "le", "f": "la"}
FR_OF_A, FR_OF_THE = {"m": "d'un", "f": "d'une"}, {"m": "du", "f": "de la"}
# relation: adverb or preposition, then the articles it puts before the ground, indefinite and definite
FR_RELATIONS = {
    "left of": (("à gauche", FR_OF_A, FR_OF_THE),),
    "right of": (("à droite", FR_OF_A, FR_OF_THE),),
    "above": (("au-dessus", FR_OF_A, FR_OF_THE),),
    "below": (("au-dessous", FR_OF_A, FR_OF_THE), ("en dessous", FR_OF_A, FR_OF_THE), ("sous", FR_A, FR_THE)),
}


def french(figure: Item, relation: str, ground: Item, pick: Callable) -> str:
    def phrase(item: Item, articles: dict[str, str]) -> str:
        gender, noun = FR_SHAPES[item.shape]
        return f"{articles[gender]} {FR_SIZES[item.size][gender]} {noun} {FR_COLOURS[item.colour][gender]}"

    adverb, indefinite, definite = pick(FR_RELATIONS[relation])
    a_figure = phrase(figure, FR_A)
    at_a = f"{adverb} {phrase(ground, indefinite)}"
    at_the = f"{adverb} {phrase(ground, definite)}"
    return pick(
        (
            f"il y a {a_figure} {at_a}.",
            f"{a_figure} se trouve {at_a}.",
            f"{a_figure} est {at_a}.",
            f"{a_figure} {at_a}.",
            f"{at_the} se trouve {a_figure}.",
            f"{at_the}, on voit {a_figure}.",
            f"une image avec {a_figure} {at_a}.",
        )
    )


# --------------------------------------------------------------------------------------------------- Japanese
# Colours are い-adjectives where the language has one, nouns with の elsewhere. The ground always comes with の.

JA_SIZES = {"small": ("小さな", "小さい"), "large": ("大きな", "大きい")}
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
JA_RELATIONS = {
    "left of": ("左", "左側"),
    "right of": ("右", "右側"),
    "above": ("上", "上方"),
    "below": ("下", "下方"),
}


def japanese(figure: Item, relation: str, ground: Item, pick: Callable) -> str:
    def noun(item: Item) -> str:
        return f"{pick(JA_SIZES[item.size])}{pick(JA_COLOURS[item.colour])}{JA_SHAPES[item.shape]}"

    the_figure, the_ground = noun(figure), noun(ground)
    side = pick(JA_RELATIONS[relation])
    return pick(
        (
            f"{the_ground}の{side}に{the_figure}があります。",
            f"{the_figure}が{the_ground}の{side}にあります。",
            f"{the_ground}の{side}に{the_figure}が見えます。",
            f"{the_ground}の{side}に{the_figure}がある絵。",
            f"{the_ground}の{side}にある{the_figure}。",
            f"{the_ground}と、その{side}にある{the_figure}。",
        )
    )


# ------------------------------------------------------------------------------------------------------ Czech
# Three genders; every adjective used here is of the hard declension. The preposition governs the case.

CS_SIZES = {"small": "mal", "large": "velk"}
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
CS_RELATIONS = {
    "left of": (("vlevo od", "gen"), ("nalevo od", "gen")),
    "right of": (("vpravo od", "gen"), ("napravo od", "gen")),
    "above": (("nad", "ins"),),
    "below": (("pod", "ins"),),
}


def czech(figure: Item, relation: str, ground: Item, pick: Callable) -> str:
    def phrase(item: Item, case: str) -> str:
        gender, noun = CS_SHAPES[item.shape]
        ending = CS_ENDINGS[gender][case]
        return f"{CS_SIZES[item.size]}{ending} {CS_COLOURS[item.colour]}{ending} {noun[case]}"

    nominative, accusative, instrumental = (phrase(figure, case) for case in ("nom", "acc", "ins"))
    preposition, case = pick(CS_RELATIONS[relation])
    where = f"{preposition} {phrase(ground, case)}"
    return pick(
        (
            f"{where} je {nominative}.",
            f"{where} se nachází {nominative}.",
            f"{where} vidíme {accusative}.",
            f"{nominative} je {where}.",
            f"{nominative} {where}.",
            f"na obrázku je {nominative} {where}.",
            f"obrázek s {instrumental} {where}.",
        )
    )


# ------------------------------------------------------------------------------------------------- Indonesian
# Adjectives follow the noun: "bintang merah kecil", or the colour last with "berwarna". A thing mentioned for
# the first time takes "sebuah"; the ground of an inverted sentence takes "itu", its size joined by "yang".

ID_SIZES = {"small": "kecil", "large": "besar"}
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
ID_RELATIONS = {
    "left of": ("di sebelah kiri", "di kiri"),
    "right of": ("di sebelah kanan", "di kanan"),
    "above": ("di atas",),
    "below": ("di bawah",),
}


def indonesian(figure: Item, relation: str, ground: Item, pick: Callable) -> str:
    def phrases(item: Item) -> tuple[str, str]:
        noun, colour, size = ID_SHAPES[item.shape], pick(ID_COLOURS[item.colour]), ID_SIZES[item.size]
        indefinite = pick((f"{noun} {colour} {size}", f"{noun} {size} berwarna {colour}"))
        return f"sebuah {indefinite}", f"{noun} {colour} yang {size} itu"

    a_figure, _ = phrases(figure)
    a_ground, the_ground = phrases(ground)
    where = pick(ID_RELATIONS[relation])
    return pick(
        (
            f"ada {a_figure} {where} {a_ground}.",
            f"{a_figure} berada {where} {a_ground}.",
            f"{a_figure} {where} {a_ground}.",
            f"{where} {the_ground} ada {a_figure}.",
            f"{where} {the_ground} terlihat {a_figure}.",
            f"gambar {a_figure} {where} {a_ground}.",
        )
    )


# ---------------------------------------------------------------------------------------------------- Spanish
# The colour follows the noun; the size stands before the noun ("gran" in the singular) or after the colour.
# "naranja" and "violeta" do not change with gender.

# size: before the noun, after it
ES_SIZES = {
    "small": ({"m": "pequeño", "f": "pequeña"}, {"m": "pequeño", "f": "pequeña"}),
    "large": ({"m": "gran", "f": "gran"}, {"m": "grande", "f": "grande"}),
}
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
ES_RELATIONS = {
    "left of": ("a la izquierda",),
    "right of": ("a la derecha",),
    "above": ("encima", "por encima"),
    "below": ("debajo", "por debajo"),
}


def spanish(figure: Item, relation: str, ground: Item, pick: Callable) -> str:
    def phrases(item: Item) -> tuple[str, str]:
        gender, noun = ES_SHAPES[item.shape]
        colour = pick(ES_COLOURS[item.colour])[gender]
        before, after = ES_SIZES[item.size]
        words = pick((f"{before[gender]} {noun} {colour}", f"{noun} {colour} {after[gender]}"))
        return ("un " + words, "del " + words) if gender == "m" else ("una " + words, "de la " + words)

    adverb = pick(ES_RELATIONS[relation])
    a_figure, _ = phrases(figure)
    a_ground, of_the_ground = phrases(ground)
    at_a = f"{adverb} de {a_ground}"
    at_the = f"{adverb} {of_the_ground}"
    return pick(
        (
            f"hay {a_figure} {at_a}.",
            f"{a_figure} está {at_a}.",
            f"{a_figure} {at_a}.",
            f"{at_the} hay {a_figure}.",
            f"{at_the} se ve {a_figure}.",
            f"se ve {a_figure} {at_a}.",
        )
    )


# ---------------------------------------------------------------------------------------------------- Russian
# Three genders. Adjectives decline by the type of their stem: hard (красный), soft (синий), after к
# (маленький), with stressed ending (большой). Short participles agree with the figure.

RU_SIZES = {"small": ("маленьк", "velar"), "large": ("больш", "stressed")}
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
    "velar": {"m": "ий ого ий им", "f": "ая ой ую ой", "n": "ое ого ое им"},
    "stressed": {"m": "ой ого ой им", "f": "ая ой ую ой", "n": "ое ого ое им"},
    "soft": {"m": "ий его ий им", "f": "яя ей юю ей", "n": "ее его ее им"},
}
RU_RELATIONS = {
    "left of": (("слева от", "gen"), ("левее", "gen")),
    "right of": (("справа от", "gen"), ("правее", "gen")),
    "above": (("над", "ins"),),
    "below": (("под", "ins"),),
}
RU_SEEN = {"m": "виден", "f": "видна", "n": "видно"}
RU_DRAWN = {"m": "нарисован", "f": "нарисована", "n": "нарисовано"}


def russian(figure: Item, relation: str, ground: Item, pick: Callable) -> str:
    def adjective(stem: str, kind: str, gender: str, case: str) -> str:
        return stem + RU_ENDINGS[kind][gender].split()[RU_CASES.index(case)]

    def phrase(item: Item, case: str) -> str:
        gender, noun = RU_SHAPES[item.shape]
        size = adjective(*RU_SIZES[item.size], gender, case)
        colour = adjective(*RU_COLOURS[item.colour], gender, case)
        return f"{size} {colour} {noun[case]}"

    gender, _ = RU_SHAPES[figure.shape]
    nominative, accusative, instrumental = (phrase(figure, case) for case in ("nom", "acc", "ins"))
    preposition, case = pick(RU_RELATIONS[relation])
    where = f"{preposition} {phrase(ground, case)}"
    return pick(
        (
            f"{where} находится {nominative}.",
            f"{where} {RU_SEEN[gender]} {nominative}.",
            f"{where} мы видим {accusative}.",
            f"{nominative} находится {where}.",
            f"{nominative} {where}.",
            f"на картинке {RU_DRAWN[gender]} {nominative} {where}.",
            f"картинка с {instrumental} {where}.",
        )
    )


# ---------------------------------------------------------------------------------------------------- Turkish
# The ground stands in the genitive and its side carries possessive and locative: "dairenin solunda". "bir"
# stands between adjectives and noun. The genitive follows vowel harmony (yıldızın, üçgenin), n after vowels.

TR_SIZES = {"small": "küçük", "large": "büyük"}
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
TR_RELATIONS = {
    "left of": ("solunda", "sol tarafında"),
    "right of": ("sağında", "sağ tarafında"),
    "above": ("üstünde", "yukarısında"),
    "below": ("altında", "aşağısında"),
}


def turkish(figure: Item, relation: str, ground: Item, pick: Callable) -> str:
    def adjectives(item: Item) -> str:
        return f"{TR_SIZES[item.size]} {TR_COLOURS[item.colour]}"

    a_figure = f"{adjectives(figure)} bir {TR_SHAPES[figure.shape][0]}"
    genitive = TR_SHAPES[ground.shape][1]
    side = pick(TR_RELATIONS[relation])
    at_a = f"{adjectives(ground)} bir {genitive} {side}"
    at_the = f"{adjectives(ground)} {genitive} {side}"
    return pick(
        (
            f"{at_the} {a_figure} var.",
            f"{at_the} {a_figure} görülüyor.",
            f"{a_figure}, {at_a} duruyor.",
            f"{at_a} {a_figure}.",
            f"resimde {at_a} {a_figure} var.",
            f"{at_a} {a_figure} bulunuyor.",
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
