"""The data set `shapes`: deterministic rows, disjoint splits, true pictures and grammatical captions."""

import dataclasses
import itertools
import math
import re
from collections.abc import Iterator

import numpy as np
import pytest

from data_scripts.shapes import (
    HELD_OUT,
    MAX_ANGLE,
    MAX_SLANT,
    OUTLINES,
    RADIUS,
    SITE_TINTS,
    SKY_TINTS,
    TINTS,
    Shapes,
    _rgb,
    all_scenes,
    place,
    render,
    sample_scene,
)
from data_scripts.shapes_lexicon import (
    COLOURS,
    INVERSE,
    LANGUAGES,
    SHAPES,
    SITES,
    SKIES,
    Item,
    Scene,
    Setting,
    describe,
)


def scene(figure: str, relation: str, ground: str, setting: str = "beach night") -> Scene:
    return Scene(Item(*figure.split()), relation, Item(*ground.split()), Setting(*setting.split()))


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


@pytest.mark.slow
def test_scene_space():
    scenes = all_scenes()
    assert len(set(scenes)) == len(scenes) == 241_920
    assert all(each == each.canonical() == each.mirrored().canonical() for each in scenes)


@pytest.mark.parametrize("seed", [0, 1])
def test_splits_share_no_scene(seed):
    test = [sample_scene(seed, "test", index) for index in range(HELD_OUT)]
    validation = [sample_scene(seed, "validation", index) for index in range(HELD_OUT)]
    train = {sample_scene(seed, "train", index) for index in range(len(all_scenes()))}
    assert len(set(test)) == len(set(validation)) == HELD_OUT
    assert len(train) == len(all_scenes()) - 2 * HELD_OUT
    assert not train & set(test) and not train & set(validation) and not set(test) & set(validation)


@pytest.mark.slow
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


def nearest(tints: dict, pixel: np.ndarray) -> str:
    return min(tints, key=lambda name: np.linalg.norm(_rgb(*(centre for centre, _ in tints[name])) - pixel))


@pytest.mark.parametrize("setting", [f"{site} {sky}" for site, sky in itertools.product(SITES, SKIES)])
def test_colours_can_be_told_apart_from_each_other_and_from_the_landscape(setting):
    site, sky = setting.split()
    for number, colour in enumerate(COLOURS):
        drawn = scene(f"{colour} circle", "above", "black ring", setting)
        pixels = np.asarray(render(drawn, np.random.default_rng(number), 64), dtype=float) / 255
        spot, around = place(drawn, np.random.default_rng(number))
        inside = pixels[int(64 * spot.y), int(64 * spot.x)]
        assert nearest(TINTS, inside) == colour
        for x, y in ((spot.x, spot.y - spot.radius - 1 / 64), (around.x, around.y)):  # above it, and within the ring
            assert np.linalg.norm(pixels[int(64 * y), int(64 * x)] - inside) > 0.2
        # No object reaches the corners.
        assert nearest(SKY_TINTS, pixels[:4, [0, -1]].mean(axis=(0, 1))) == sky
        assert nearest(SITE_TINTS, pixels[-4:, [0, -1]].mean(axis=(0, 1))) == site


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

STAR_LEFT_OF_CIRCLE = scene("red star", "left of", "blue circle", "beach night")
HEART_ABOVE_CROSS = scene("white heart", "above", "purple cross", "meadow morning")
RING_BELOW_DIAMOND = scene("blue ring", "below", "orange diamond", "snow noon")
SQUARE_RIGHT_OF_STAR = scene("black square", "right of", "white star", "sea evening")
TRIANGLE_ABOVE_HEART = scene("green triangle", "above", "yellow heart", "road fog")

CORRECT = {
    "zh": [
        (STAR_LEFT_OF_CIRCLE, "夜晚的沙滩上，一颗红色的星星在一个蓝色圆形的左边。"),
        (STAR_LEFT_OF_CIRCLE, "夜晚的沙滩上，红色星星的右侧有一个蓝色的圆形。"),
        (HEART_ABOVE_CROSS, "早晨的草地上，一个紫色十字，它的上面是一颗白色的爱心。"),
        (RING_BELOW_DIAMOND, "中午的雪地上，可以看到一个橘色菱形的下方有一个蓝色圆环。"),
        (TRIANGLE_ABOVE_HEART, "雾中的马路上，在黄色爱心的上方可以看到一个绿色的三角形。"),
    ],
    "en": [
        (STAR_LEFT_OF_CIRCLE, "There is a red star left of a blue circle on the beach at night."),
        (STAR_LEFT_OF_CIRCLE, "Right of the red star we see a blue circle on the beach at night."),
        (HEART_ABOVE_CROSS, "A violet cross with a white heart above it in the meadow in the morning."),
        (RING_BELOW_DIAMOND, "An orange diamond is over a blue ring in the snow at noon."),
        (RING_BELOW_DIAMOND, "Below the orange diamond there is a blue ring in the snow at noon."),
        (SQUARE_RIGHT_OF_STAR, "We see a white star left of a black square at sea in the evening."),
    ],
    "de": [
        (STAR_LEFT_OF_CIRCLE, "Man sieht einen roten Stern links von einem blauen Kreis nachts am Strand."),
        (STAR_LEFT_OF_CIRCLE, "Links vom blauen Kreis befindet sich ein roter Stern nachts am Strand."),
        (HEART_ABOVE_CROSS, "Ein weißes Herz ist oberhalb eines violetten Kreuzes morgens auf der Wiese."),
        (HEART_ABOVE_CROSS, "Unter dem weißen Herzen sieht man ein lila Kreuz morgens auf der Wiese."),
        (HEART_ABOVE_CROSS, "Ein violettes Kreuz unterhalb eines weißen Herzens morgens auf der Wiese."),
        (RING_BELOW_DIAMOND, "Unterhalb der orangefarbenen Raute befindet sich ein blauer Ring mittags im Schnee."),
        (RING_BELOW_DIAMOND, "Ein Bild mit einer orangefarbenen Raute über einem blauen Ring mittags im Schnee."),
        (
            SQUARE_RIGHT_OF_STAR,
            "Rechts vom weißen Stern sieht man ein schwarzes Quadrat abends auf dem Meer.",
        ),
        (TRIANGLE_ABOVE_HEART, "Ein gelbes Herz befindet sich unter einem grünen Dreieck im Nebel auf der Straße."),
    ],
    "fr": [
        (STAR_LEFT_OF_CIRCLE, "Voici une étoile rouge à gauche d'un cercle bleu sur la plage la nuit."),
        (STAR_LEFT_OF_CIRCLE, "À droite de l'étoile rouge se trouve un cercle bleu sur la plage la nuit."),
        (HEART_ABOVE_CROSS, "Un cœur blanc est au-dessus d'une croix violette dans le pré le matin."),
        (RING_BELOW_DIAMOND, "Sous le losange orange, on voit un anneau bleu dans la neige à midi."),
        (RING_BELOW_DIAMOND, "Au-dessus de l'anneau bleu se trouve un losange orange dans la neige à midi."),
        (SQUARE_RIGHT_OF_STAR, "Une étoile blanche à gauche d'un carré noir sur la mer le soir."),
        (TRIANGLE_ABOVE_HEART, "En dessous du triangle vert se trouve un cœur jaune sur la route dans le brouillard."),
    ],
    "ja": [
        (STAR_LEFT_OF_CIRCLE, "夜の砂浜。青い円の左に赤い星があります。"),
        (STAR_LEFT_OF_CIRCLE, "夜の砂浜。青い円が赤い星の右側にあります。"),
        (HEART_ABOVE_CROSS, "紫色の十字の上に白いハートがある朝の草原。"),
        (RING_BELOW_DIAMOND, "昼の雪原に、オレンジ色のひし形と、その下にある青い輪。"),
        (SQUARE_RIGHT_OF_STAR, "夕方の海で、白い星の右に黒い正方形が見えます。"),
        (TRIANGLE_ABOVE_HEART, "霧の道と、緑の三角形の下にある黄色いハート。"),
    ],
    "cs": [
        (STAR_LEFT_OF_CIRCLE, "Vlevo od modrého kruhu je červená hvězda v noci na pláži."),
        (STAR_LEFT_OF_CIRCLE, "Napravo od červené hvězdy se nachází modrý kruh v noci na pláži."),
        (STAR_LEFT_OF_CIRCLE, "Nalevo od modrého kruhu vidíme červenou hvězdu v noci na pláži."),
        (HEART_ABOVE_CROSS, "Bílé srdce je nad fialovým křížem ráno na louce."),
        (HEART_ABOVE_CROSS, "Obrázek s bílým srdcem nad fialovým křížem ráno na louce."),
        (SQUARE_RIGHT_OF_STAR, "Obrázek s bílou hvězdou vlevo od černého čtverce večer na moři."),
        (RING_BELOW_DIAMOND, "Na obrázku je modrý prstenec pod oranžovým kosočtvercem v poledne ve sněhu."),
        (TRIANGLE_ABOVE_HEART, "Obrázek se zeleným trojúhelníkem nad žlutým srdcem v mlze na silnici."),
    ],
    "id": [
        (STAR_LEFT_OF_CIRCLE, "Ada sebuah bintang merah di sebelah kiri lingkaran biru di pantai malam hari."),
        (STAR_LEFT_OF_CIRCLE, "Di kanan bintang merah itu terlihat sebuah lingkaran biru di pantai malam hari."),
        (HEART_ABOVE_CROSS, "Sebuah hati putih di atas salib ungu di padang rumput pagi hari."),
        (RING_BELOW_DIAMOND, "Gambar sebuah cincin biru di bawah wajik jingga di salju siang hari."),
        (SQUARE_RIGHT_OF_STAR, "Sebuah persegi hitam berada di kanan bintang putih di laut senja hari."),
    ],
    "es": [
        (STAR_LEFT_OF_CIRCLE, "Hay una estrella roja a la izquierda de un círculo azul en la playa de noche."),
        (STAR_LEFT_OF_CIRCLE, "A la izquierda del círculo azul hay una estrella roja en la playa de noche."),
        (HEART_ABOVE_CROSS, "Un corazón blanco está encima de una cruz morada en el prado por la mañana."),
        (HEART_ABOVE_CROSS, "Por debajo del corazón blanco aparece una cruz violeta en el prado por la mañana."),
        (RING_BELOW_DIAMOND, "Un anillo azul debajo de un rombo naranja en la nieve a mediodía."),
        (SQUARE_RIGHT_OF_STAR, "A la derecha de la estrella blanca hay un cuadrado negro en el mar al atardecer."),
    ],
    "ru": [
        (STAR_LEFT_OF_CIRCLE, "Слева от синего круга находится красная звезда ночью на пляже."),
        (STAR_LEFT_OF_CIRCLE, "Синий круг правее красной звезды ночью на пляже."),
        (STAR_LEFT_OF_CIRCLE, "Картинка с красной звездой слева от синего круга ночью на пляже."),
        (STAR_LEFT_OF_CIRCLE, "Слева от синего круга мы видим красную звезду ночью на пляже."),
        (HEART_ABOVE_CROSS, "Над фиолетовым крестом видно белое сердце утром на лугу."),
        (RING_BELOW_DIAMOND, "Под оранжевым ромбом видно синее кольцо в полдень на снегу."),
        (RING_BELOW_DIAMOND, "Оранжевый ромб находится над синим кольцом в полдень на снегу."),
        (
            SQUARE_RIGHT_OF_STAR,
            "На картинке нарисована белая звезда левее чёрного квадрата вечером в море.",
        ),
        (SQUARE_RIGHT_OF_STAR, "Справа от белой звезды виден чёрный квадрат вечером в море."),
    ],
    "tr": [
        (STAR_LEFT_OF_CIRCLE, "Gece kumsalda mavi dairenin solunda kırmızı bir yıldız var."),
        (STAR_LEFT_OF_CIRCLE, "Gece kumsalda mavi bir daire, kırmızı bir yıldızın sağında duruyor."),
        (HEART_ABOVE_CROSS, "Resimde sabah çayırda mor bir haçın üstünde beyaz bir kalp var."),
        (HEART_ABOVE_CROSS, "Sabah çayırda beyaz kalbin altında mor bir haç görülüyor."),
        (RING_BELOW_DIAMOND, "Öğlen karda turuncu eşkenar dörtgenin altında mavi bir halka görülüyor."),
        (TRIANGLE_ABOVE_HEART, "Siste yolda yeşil bir üçgenin aşağısında sarı bir kalp bulunuyor."),
        (SQUARE_RIGHT_OF_STAR, "Akşam denizde siyah karenin sol tarafında beyaz bir yıldız var."),
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
    """The scene, and all that differ from it in the relation or in one attribute of an object or the setting."""
    yield told
    for relation in INVERSE.keys() - {told.relation}:
        yield dataclasses.replace(told, relation=relation)
    of_items, of_setting = (
        (("colour", COLOURS), ("shape", SHAPES)),
        (("site", SITES), ("sky", SKIES)),
    )
    for side, (attribute, values) in (
        *itertools.product(("figure", "ground"), of_items),
        *itertools.product(("setting",), of_setting),
    ):
        item = getattr(told, side)
        for value in values:
            if value != getattr(item, attribute):
                yield dataclasses.replace(told, **{side: dataclasses.replace(item, **{attribute: value})})


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_wording_fits_two_scenes(language):
    for told in (RING_BELOW_DIAMOND, SQUARE_RIGHT_OF_STAR):
        scenes = {each.canonical() for each in neighbours(told)}
        assert len(scenes) == 41
        fits = [{normalise(caption) for caption in wordings(each, language)} for each in scenes]
        assert len(set().union(*fits)) == sum(map(len, fits))
