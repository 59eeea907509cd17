"""The data set `shapes`: deterministic rows, disjoint splits, true pictures and grammatical captions."""

import dataclasses
import itertools
import math
import re
from collections.abc import Iterator

import numpy as np
import pytest

from data_scripts.shapes import (
    BACKGROUND_TINTS,
    HELD_OUT,
    MAX_ANGLE,
    MAX_SLANT,
    OUTLINES,
    RADIUS,
    TINTS,
    Shapes,
    _rgb,
    all_scenes,
    place,
    render,
    sample_scene,
)
from data_scripts.shapes_lexicon import (
    BACKGROUND_COLOURS,
    COLOURS,
    INVERSE,
    LANGUAGES,
    PATTERNS,
    SHAPES,
    Background,
    Item,
    Scene,
    describe,
)


def scene(figure: str, relation: str, ground: str, background: str = "grey plain") -> Scene:
    return Scene(Item(*figure.split()), relation, Item(*ground.split()), Background(*background.split()))


def normalise(caption: str) -> str:
    return " ".join(re.sub(r"[,.'!?\"()*#:;~\-/]", " ", caption.lower()).split())


class Script:
    """Stands in for a generator: draws what it is told, then zeros, and notes how many options each draw had."""

    def __init__(self, draws: list[int]):
        self.draws, self.options = draws, []

    def integers(self, options: int) -> int:
        self.options.append(options)
        return self.draws[len(self.options) - 1] if len(self.options) <= len(self.draws) else 0


def wordings(scene: Scene, language: str) -> Iterator[str]:
    """Every caption that `describe` can give the scene."""
    draws = []
    while True:
        script = Script(draws)
        yield describe(scene, language, script)
        draws = draws + [0] * (len(script.options) - len(draws))
        while draws and draws[-1] + 1 == script.options[len(draws) - 1]:
            draws.pop()
        if not draws:
            return
        draws[-1] += 1


def rows(tmp_path, split: str, **options) -> list[dict]:
    return list(Shapes(cache_dir=str(tmp_path), split=split, **options).as_streaming_dataset(split=split))


def assert_same_rows(some: list[dict], others: list[dict]) -> None:
    for row, other in zip(some, others, strict=True):
        assert row["image_id"] == other["image_id"]
        assert np.array_equal(row["image"], other["image"])
        for language in row["captions"].keys() & other["captions"].keys():
            assert row["captions"][language] == other["captions"][language]


# --------------------------------------------------------------------------------------------------------- rows


def test_prepared_data_set_has_the_row_format(tmp_path):
    builder = Shapes(cache_dir=str(tmp_path), split="test", num_test=2, image_size=48)
    builder.download_and_prepare()
    prepared = builder.as_dataset()
    assert {split: len(data) for split, data in prepared.items()} == {"test": 2}
    row = prepared["test"][1]
    assert row["image_id"] == "test-00001"
    assert row["image"].size == (48, 48) and row["image"].mode == "RGB"
    assert tuple(row["captions"]) == LANGUAGES
    assert all(len(captions) == 1 for captions in row["captions"].values())


def test_rows_depend_on_nothing_but_seed_split_and_index(tmp_path):
    reference = rows(tmp_path, "train", num_train=8)
    assert_same_rows(reference, rows(tmp_path, "train", num_train=8))
    assert_same_rows(reference, rows(tmp_path, "train", num_train=20, num_test=3)[:8])
    assert_same_rows(reference, rows(tmp_path, "train", num_train=8, languages=("tr", "de")))
    assert not np.array_equal(reference[0]["image"], rows(tmp_path, "train", num_train=1, seed=1)[0]["image"])


def test_captions_tell_the_scene_of_the_row(tmp_path):
    for index, row in enumerate(rows(tmp_path, "test", num_test=4)):
        for language, (caption,) in row["captions"].items():
            assert caption in wordings(sample_scene(0, "test", index), language)


def test_wordings_of_one_row_are_independent(tmp_path):
    # Were they tied, rows that share the template of one language would share that of the other.
    captions = [row["captions"] for row in rows(tmp_path, "test", num_test=200, languages=("en", "fr"))]
    english = [caption["en"][0].startswith("We see") for caption in captions]
    french = [caption["fr"][0].startswith("On voit") for caption in captions]
    assert abs(np.corrcoef(english, french)[0, 1]) < 0.25


def test_unknown_language_is_named_with_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match=r"^shapes has no captions in 'xx': .*zh, en, de, fr, ja, cs, id, es, ru, tr"):
        Shapes(cache_dir=str(tmp_path), languages=("de", "xx"))
    with pytest.raises(ValueError, match="'xx'"):
        describe(sample_scene(0, "test", 0), "xx", np.random.default_rng(0))


def test_too_many_held_out_rows_are_refused(tmp_path):
    with pytest.raises(ValueError, match="num_test=2001: ask for at most 2000"):
        Shapes(cache_dir=str(tmp_path), num_test=2001)


# ------------------------------------------------------------------------------------------------------- splits


def test_scene_space():
    scenes = all_scenes()
    assert len(set(scenes)) == len(scenes) == 161_280
    assert all(each == each.canonical() == each.mirrored().canonical() for each in scenes)


@pytest.mark.parametrize("seed", [0, 1])
def test_splits_share_no_scene(seed):
    test = [sample_scene(seed, "test", index) for index in range(HELD_OUT)]
    validation = [sample_scene(seed, "validation", index) for index in range(HELD_OUT)]
    train = {sample_scene(seed, "train", index) for index in range(len(all_scenes()))}
    assert len(set(test)) == len(set(validation)) == HELD_OUT
    assert len(train) == len(all_scenes()) - 2 * HELD_OUT
    assert not train & set(test) and not train & set(validation) and not set(test) & set(validation)


def test_test_captions_are_unique_in_every_language(tmp_path):
    data = Shapes(cache_dir=str(tmp_path), split="test").as_streaming_dataset(split="test").remove_columns("image")
    captions = [row["captions"] for row in data]
    assert len(captions) == 500
    for language in LANGUAGES:
        assert len({normalise(caption[language][0]) for caption in captions}) == 500


# ------------------------------------------------------------------------------------------------------ picture


def test_objects_are_inside_apart_and_as_the_relation_says():
    for number, each in enumerate(all_scenes()[::300]):
        figure, ground = place(each, np.random.default_rng(number))
        for placement in (figure, ground):
            assert placement.radius <= min(placement.x, placement.y, 1 - placement.x, 1 - placement.y)
            assert abs(placement.angle) <= MAX_ANGLE
            assert RADIUS[0] <= placement.radius <= RADIUS[1]
        across, down = ground.x - figure.x, ground.y - figure.y
        assert math.hypot(across, down) > figure.radius + ground.radius
        along, aside = (across, down) if each.relation == "left of" else (down, across)
        assert along > 0 and abs(aside) <= MAX_SLANT * along * (1 + 1e-9)


def test_outlines_lie_in_the_unit_circle():
    assert tuple(OUTLINES) == SHAPES
    for outlines in OUTLINES.values():
        assert all(np.linalg.norm(outline, axis=1).max() <= 1 + 1e-9 for outline in outlines)


def test_pixels_lie_where_place_says():
    for number, shape in enumerate(SHAPES):
        drawn = scene(f"red {shape}", "left of", f"blue {shape}")
        pixels = np.asarray(render(drawn, np.random.default_rng(number), 64), dtype=float) / 255
        spots = place(drawn, np.random.default_rng(number))
        for channel, other, spot in ((0, 2, spots[0]), (2, 0, spots[1])):
            ys, xs = np.nonzero(pixels[..., channel] - pixels[..., other] > 0.4)
            distances = np.hypot((xs + 0.5) / 64 - spot.x, (ys + 0.5) / 64 - spot.y)
            assert len(xs) > 20 and distances.max() < spot.radius + 1 / 64
            assert math.hypot((xs.mean() + 0.5) / 64 - spot.x, (ys.mean() + 0.5) / 64 - spot.y) < spot.radius / 4


@pytest.mark.parametrize("colour", COLOURS)
def test_colours_and_background_can_be_told_apart(colour):
    nominal = np.stack([_rgb(*(centre for centre, _ in TINTS[known])) for known in COLOURS])
    for number in range(30):
        drawn = scene(f"{colour} circle", "above", "black ring")
        pixels = np.asarray(render(drawn, np.random.default_rng(number), 64), dtype=float) / 255
        spot, around = place(drawn, np.random.default_rng(number))
        inside = pixels[int(64 * spot.y), int(64 * spot.x)]
        assert COLOURS[np.linalg.norm(nominal - inside, axis=1).argmin()] == colour
        background = pixels[int(64 * around.y), int(64 * around.x)]  # seen through the ring
        assert np.linalg.norm(background - inside) > 0.25


@pytest.mark.parametrize("colour", BACKGROUND_COLOURS)
def test_backgrounds_can_be_told_apart(colour):
    nominal = np.stack([_rgb(*(centre for centre, _ in BACKGROUND_TINTS[known])) for known in BACKGROUND_COLOURS])
    for number, pattern in itertools.product(range(10), PATTERNS):
        drawn = scene("black ring", "above", "black ring", f"{colour} {pattern}")
        pixels = np.asarray(render(drawn, np.random.default_rng(number), 64), dtype=float) / 255
        edge = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])  # no object reaches it
        assert BACKGROUND_COLOURS[np.linalg.norm(nominal - edge.mean(axis=0), axis=1).argmin()] == colour
        brightness = edge.mean(axis=1)
        assert (brightness.std() / brightness.mean() > 0.04) == (pattern != "plain")


def test_renderings_of_a_scene_vary_and_mirroring_does_not_matter():
    drawn = sample_scene(0, "test", 0)
    first, again, other, mirrored = (
        np.asarray(render(each, np.random.default_rng(seed)))
        for each, seed in ((drawn, 0), (drawn, 0), (drawn, 1), (drawn.mirrored(), 0))
    )
    assert np.array_equal(first, again) and np.array_equal(first, mirrored)
    assert not np.array_equal(first, other)
    places = place(drawn, np.random.default_rng(0))
    assert place(drawn.mirrored(), np.random.default_rng(0)) == places[::-1]


# ----------------------------------------------------------------------------------------------------- captions

STAR_LEFT_OF_CIRCLE = scene("red star", "left of", "blue circle", "grey plain")
HEART_ABOVE_CROSS = scene("white heart", "above", "purple cross", "pink stripes")
RING_BELOW_DIAMOND = scene("blue ring", "below", "orange diamond", "brown dots")
SQUARE_RIGHT_OF_STAR = scene("black square", "right of", "white star", "turquoise checks")
TRIANGLE_ABOVE_HEART = scene("green triangle", "above", "yellow heart", "beige stripes")

CORRECT = {
    "zh": [
        (STAR_LEFT_OF_CIRCLE, "灰色背景上，一颗红色的星星在一个蓝色圆形的左边。"),
        (STAR_LEFT_OF_CIRCLE, "灰色纯色的背景上，红色星星的右侧有一个蓝色的圆形。"),
        (HEART_ABOVE_CROSS, "粉色条纹背景上，一个紫色十字，它的上面是一颗白色的爱心。"),
        (RING_BELOW_DIAMOND, "棕色圆点背景上，可以看到一个橘色菱形的下方有一个蓝色圆环。"),
        (TRIANGLE_ABOVE_HEART, "米色条纹的背景上，在黄色爱心的上方可以看到一个绿色的三角形。"),
    ],
    "en": [
        (STAR_LEFT_OF_CIRCLE, "There is a red star left of a blue circle on plain grey."),
        (STAR_LEFT_OF_CIRCLE, "Right of the red star we see a blue circle on plain grey."),
        (HEART_ABOVE_CROSS, "A violet cross with a white heart above it on pink stripes."),
        (RING_BELOW_DIAMOND, "An orange diamond is over a blue ring on brown dots."),
        (RING_BELOW_DIAMOND, "Below the orange diamond there is a blue ring on brown dots."),
        (SQUARE_RIGHT_OF_STAR, "We see a white star left of a black square on turquoise checks."),
    ],
    "de": [
        (STAR_LEFT_OF_CIRCLE, "Man sieht einen roten Stern links von einem blauen Kreis auf grauem Grund."),
        (STAR_LEFT_OF_CIRCLE, "Links vom blauen Kreis befindet sich ein roter Stern auf grauem Grund."),
        (HEART_ABOVE_CROSS, "Ein weißes Herz ist oberhalb eines violetten Kreuzes auf rosa Streifen."),
        (HEART_ABOVE_CROSS, "Unter dem weißen Herzen sieht man ein lila Kreuz auf rosa Streifen."),
        (HEART_ABOVE_CROSS, "Ein violettes Kreuz unterhalb eines weißen Herzens auf rosa Streifen."),
        (RING_BELOW_DIAMOND, "Unterhalb der orangefarbenen Raute befindet sich ein blauer Ring auf braunen Punkten."),
        (RING_BELOW_DIAMOND, "Ein Bild mit einer orangefarbenen Raute über einem blauen Ring auf braunen Punkten."),
        (
            SQUARE_RIGHT_OF_STAR,
            "Rechts vom weißen Stern sieht man ein schwarzes Quadrat auf türkisfarbenen Karos.",
        ),
        (TRIANGLE_ABOVE_HEART, "Ein gelbes Herz befindet sich unter einem grünen Dreieck auf beigen Streifen."),
    ],
    "fr": [
        (STAR_LEFT_OF_CIRCLE, "Voici une étoile rouge à gauche d'un cercle bleu sur fond gris."),
        (STAR_LEFT_OF_CIRCLE, "À droite de l'étoile rouge se trouve un cercle bleu sur fond gris."),
        (HEART_ABOVE_CROSS, "Un cœur blanc est au-dessus d'une croix violette sur rayures roses."),
        (RING_BELOW_DIAMOND, "Sous le losange orange, on voit un anneau bleu sur pois bruns."),
        (RING_BELOW_DIAMOND, "Au-dessus de l'anneau bleu se trouve un losange orange sur pois bruns."),
        (SQUARE_RIGHT_OF_STAR, "Une étoile blanche à gauche d'un carré noir sur carreaux turquoise."),
        (TRIANGLE_ABOVE_HEART, "En dessous du triangle vert se trouve un cœur jaune sur rayures beiges."),
    ],
    "ja": [
        (STAR_LEFT_OF_CIRCLE, "灰色の無地の背景に、青い円の左に赤い星があります。"),
        (STAR_LEFT_OF_CIRCLE, "背景は灰色の無地で、青い円が赤い星の右側にあります。"),
        (HEART_ABOVE_CROSS, "ピンク色の縞模様の背景に、紫色の十字の上に白いハートがある絵。"),
        (RING_BELOW_DIAMOND, "茶色の水玉模様の背景に、オレンジ色のひし形と、その下にある青い輪。"),
        (SQUARE_RIGHT_OF_STAR, "背景は水色の市松模様で、白い星の右に黒い正方形が見えます。"),
        (TRIANGLE_ABOVE_HEART, "背景はベージュ色の縞模様で、緑の三角形の下に黄色いハートが見えます。"),
    ],
    "cs": [
        (STAR_LEFT_OF_CIRCLE, "Vlevo od modrého kruhu je červená hvězda na šedém pozadí."),
        (STAR_LEFT_OF_CIRCLE, "Napravo od červené hvězdy se nachází modrý kruh na šedém pozadí."),
        (STAR_LEFT_OF_CIRCLE, "Nalevo od modrého kruhu vidíme červenou hvězdu na šedém pozadí."),
        (HEART_ABOVE_CROSS, "Bílé srdce je nad fialovým křížem na růžových pruzích."),
        (HEART_ABOVE_CROSS, "Obrázek s bílým srdcem nad fialovým křížem na růžových pruzích."),
        (SQUARE_RIGHT_OF_STAR, "Obrázek s bílou hvězdou vlevo od černého čtverce na tyrkysových kostkách."),
        (RING_BELOW_DIAMOND, "Na obrázku je modrý prstenec pod oranžovým kosočtvercem na hnědých puntících."),
        (TRIANGLE_ABOVE_HEART, "Obrázek se zeleným trojúhelníkem nad žlutým srdcem na béžových pruzích."),
    ],
    "id": [
        (STAR_LEFT_OF_CIRCLE, "Ada sebuah bintang merah di sebelah kiri lingkaran biru berlatar kelabu polos."),
        (STAR_LEFT_OF_CIRCLE, "Di kanan bintang merah itu terlihat sebuah lingkaran biru berlatar kelabu polos."),
        (HEART_ABOVE_CROSS, "Sebuah hati putih di atas salib ungu berlatar merah muda bergaris."),
        (RING_BELOW_DIAMOND, "Gambar sebuah cincin biru di bawah wajik jingga berlatar cokelat berbintik."),
        (SQUARE_RIGHT_OF_STAR, "Sebuah persegi hitam berada di kanan bintang putih berlatar toska berpetak."),
    ],
    "es": [
        (STAR_LEFT_OF_CIRCLE, "Hay una estrella roja a la izquierda de un círculo azul sobre fondo gris."),
        (STAR_LEFT_OF_CIRCLE, "A la izquierda del círculo azul hay una estrella roja sobre fondo gris."),
        (HEART_ABOVE_CROSS, "Un corazón blanco está encima de una cruz morada sobre rayas rosas."),
        (HEART_ABOVE_CROSS, "Por debajo del corazón blanco aparece una cruz violeta sobre rayas rosas."),
        (RING_BELOW_DIAMOND, "Un anillo azul debajo de un rombo naranja sobre lunares marrones."),
        (SQUARE_RIGHT_OF_STAR, "A la derecha de la estrella blanca hay un cuadrado negro sobre cuadros turquesa."),
    ],
    "ru": [
        (STAR_LEFT_OF_CIRCLE, "Слева от синего круга находится красная звезда на сером фоне."),
        (STAR_LEFT_OF_CIRCLE, "Синий круг правее красной звезды на сером фоне."),
        (STAR_LEFT_OF_CIRCLE, "Картинка с красной звездой слева от синего круга на сером фоне."),
        (STAR_LEFT_OF_CIRCLE, "Слева от синего круга мы видим красную звезду на сером фоне."),
        (HEART_ABOVE_CROSS, "Над фиолетовым крестом видно белое сердце на фоне розовых полос."),
        (RING_BELOW_DIAMOND, "Под оранжевым ромбом видно синее кольцо на фоне коричневых точек."),
        (RING_BELOW_DIAMOND, "Оранжевый ромб находится над синим кольцом на фоне коричневых точек."),
        (
            SQUARE_RIGHT_OF_STAR,
            "На картинке нарисована белая звезда левее чёрного квадрата на фоне бирюзовых клеток.",
        ),
        (SQUARE_RIGHT_OF_STAR, "Справа от белой звезды виден чёрный квадрат на фоне бирюзовых клеток."),
    ],
    "tr": [
        (STAR_LEFT_OF_CIRCLE, "Gri düz zeminde mavi dairenin solunda kırmızı bir yıldız var."),
        (STAR_LEFT_OF_CIRCLE, "Gri düz zeminde mavi bir daire, kırmızı bir yıldızın sağında duruyor."),
        (HEART_ABOVE_CROSS, "Pembe çizgili resimde mor bir haçın üstünde beyaz bir kalp var."),
        (HEART_ABOVE_CROSS, "Pembe çizgili zeminde beyaz kalbin altında mor bir haç görülüyor."),
        (RING_BELOW_DIAMOND, "Kahverengi benekli zeminde turuncu eşkenar dörtgenin altında mavi bir halka görülüyor."),
        (TRIANGLE_ABOVE_HEART, "Bej çizgili zeminde yeşil bir üçgenin aşağısında sarı bir kalp bulunuyor."),
        (SQUARE_RIGHT_OF_STAR, "Turkuaz damalı zeminde siyah karenin sol tarafında beyaz bir yıldız var."),
    ],
}


@pytest.mark.parametrize("language", LANGUAGES)
def test_correct_sentences_are_among_the_wordings(language):
    for each, sentence in CORRECT[language]:
        assert sentence in set(wordings(each, language))


@pytest.mark.parametrize("language", LANGUAGES)
def test_captions_are_short_and_clean(language):
    for each in all_scenes()[::10000]:
        captions = list(wordings(each, language))
        assert len(set(captions)) >= 8
        for caption in captions:
            assert len(caption.split()) <= 20 and caption[-1] in ".。" and "  " not in caption
            assert caption[0] == caption[0].upper()


def neighbours(told: Scene) -> Iterator[Scene]:
    """The scene, and all that differ from it in the relation or in one attribute of an object or the background."""
    yield told
    for relation in INVERSE.keys() - {told.relation}:
        yield dataclasses.replace(told, relation=relation)
    of_items, of_background = (
        (("colour", COLOURS), ("shape", SHAPES)),
        (("colour", BACKGROUND_COLOURS), ("pattern", PATTERNS)),
    )
    for side, (attribute, values) in (
        *itertools.product(("figure", "ground"), of_items),
        *itertools.product(("background",), of_background),
    ):
        item = getattr(told, side)
        for value in values:
            if value != getattr(item, attribute):
                yield dataclasses.replace(told, **{side: dataclasses.replace(item, **{attribute: value})})


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_wording_fits_two_scenes(language):
    for told in (RING_BELOW_DIAMOND, SQUARE_RIGHT_OF_STAR):
        scenes = {each.canonical() for each in neighbours(told)}
        assert len(scenes) == 39
        fits = [{normalise(caption) for caption in wordings(each, language)} for each in scenes]
        assert len(set().union(*fits)) == sum(map(len, fits))


def test_captions_have_at_most_fourteen_words(tmp_path):
    """With <s> and </s> they then fit 16 tokens, two thirds of the work of the next multiple of eight."""
    for row in rows(tmp_path, "train", num_train=500):
        for language, (caption,) in row["captions"].items():
            assert len(normalise(caption).split()) <= 14, (language, caption)
