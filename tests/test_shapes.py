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
    TINTS,
    Shapes,
    _rgb,
    all_scenes,
    place,
    render,
    sample_scene,
)
from data_scripts.shapes_lexicon import COLOURS, INVERSE, LANGUAGES, SHAPES, SIZES, Item, Scene, describe


def scene(figure: str, relation: str, ground: str) -> Scene:
    return Scene(Item(*figure.split()), relation, Item(*ground.split()))


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
    return list(Shapes(cache_dir=str(tmp_path), **options).as_streaming_dataset(split=split))


def assert_same_rows(some: list[dict], others: list[dict]) -> None:
    for row, other in zip(some, others, strict=True):
        assert row["image_id"] == other["image_id"]
        assert np.array_equal(row["image"], other["image"])
        for language in row["captions"].keys() & other["captions"].keys():
            assert row["captions"][language] == other["captions"][language]


# --------------------------------------------------------------------------------------------------------- rows


def test_prepared_data_set_has_the_row_format(tmp_path):
    builder = Shapes(cache_dir=str(tmp_path), num_train=12, num_validation=3, num_test=2, image_size=48)
    builder.download_and_prepare()
    prepared = builder.as_dataset()
    assert {split: len(data) for split, data in prepared.items()} == {"train": 12, "validation": 3, "test": 2}
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
    french = [caption["fr"][0].startswith("Une image avec") for caption in captions]
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
    assert len(set(scenes)) == len(scenes) == 32_256
    assert all(each == each.canonical() == each.mirrored().canonical() for each in scenes)


@pytest.mark.parametrize("seed", [0, 1])
def test_splits_share_no_scene(seed):
    test = [sample_scene(seed, "test", index) for index in range(HELD_OUT)]
    validation = [sample_scene(seed, "validation", index) for index in range(HELD_OUT)]
    train = {sample_scene(seed, "train", index) for index in range(50_000)}
    assert len(set(test)) == len(set(validation)) == HELD_OUT
    assert len(train) == len(all_scenes()) - 2 * HELD_OUT
    assert not train & set(test) and not train & set(validation) and not set(test) & set(validation)


def test_test_captions_are_unique_in_every_language(tmp_path):
    data = Shapes(cache_dir=str(tmp_path)).as_streaming_dataset(split="test").remove_columns("image")
    captions = [row["captions"] for row in data]
    assert len(captions) == 500
    for language in LANGUAGES:
        assert len({normalise(caption[language][0]) for caption in captions}) == 500


# ------------------------------------------------------------------------------------------------------ picture


def test_objects_are_inside_apart_and_as_the_relation_says():
    for number, each in enumerate(all_scenes()[::60]):
        figure, ground = place(each, np.random.default_rng(number))
        for item, placement in ((each.figure, figure), (each.ground, ground)):
            assert placement.radius <= min(placement.x, placement.y, 1 - placement.x, 1 - placement.y)
            assert abs(placement.angle) <= MAX_ANGLE
            assert (placement.radius < 0.16) == (item.size == "small")
        across, down = ground.x - figure.x, ground.y - figure.y
        assert math.hypot(across, down) > figure.radius + ground.radius
        along, aside = (across, down) if each.relation == "left of" else (down, across)
        assert along > 0 and abs(aside) <= MAX_SLANT * along * (1 + 1e-9)


def test_outlines_lie_in_the_unit_circle():
    assert tuple(OUTLINES) == SHAPES
    for outlines in OUTLINES.values():
        assert all(np.linalg.norm(outline, axis=1).max() <= 1 + 1e-9 for outline in outlines)


def test_pixels_lie_where_place_says():
    for number, (size, shape) in enumerate(itertools.product(SIZES, SHAPES)):
        drawn = scene(f"{size} red {shape}", "left of", f"large blue {shape}")
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
        drawn = scene(f"small {colour} circle", "above", "large black ring")
        pixels = np.asarray(render(drawn, np.random.default_rng(number), 64), dtype=float) / 255
        spot, around = place(drawn, np.random.default_rng(number))
        inside = pixels[int(64 * spot.y), int(64 * spot.x)]
        assert COLOURS[np.linalg.norm(nominal - inside, axis=1).argmin()] == colour
        background = pixels[int(64 * around.y), int(64 * around.x)]  # seen through the ring
        assert np.linalg.norm(background - inside) > 0.25


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

STAR_LEFT_OF_CIRCLE = scene("small red star", "left of", "large blue circle")
HEART_ABOVE_CROSS = scene("large white heart", "above", "small purple cross")
RING_BELOW_DIAMOND = scene("small blue ring", "below", "large orange diamond")
SQUARE_RIGHT_OF_STAR = scene("large black square", "right of", "small white star")
TRIANGLE_ABOVE_HEART = scene("small green triangle", "above", "large yellow heart")

CORRECT = {
    "zh": [
        (STAR_LEFT_OF_CIRCLE, "一颗红色的小星星在一个蓝色大圆形的左边。"),
        (STAR_LEFT_OF_CIRCLE, "红色小星星的右侧有一个蓝色的大圆形。"),
        (HEART_ABOVE_CROSS, "一个紫色小十字，它的上面是一颗白色的大爱心。"),
        (RING_BELOW_DIAMOND, "图中一个橘色大菱形的下方有一个蓝色小圆环。"),
        (TRIANGLE_ABOVE_HEART, "在黄色大爱心的上方可以看到一个绿色的小三角形。"),
    ],
    "en": [
        (STAR_LEFT_OF_CIRCLE, "There is a small red star to the left of a large blue circle."),
        (STAR_LEFT_OF_CIRCLE, "Right of the little red star we see a big blue circle."),
        (HEART_ABOVE_CROSS, "A small violet cross with a large white heart above it."),
        (RING_BELOW_DIAMOND, "A small blue ring is below a large orange diamond."),
        (SQUARE_RIGHT_OF_STAR, "We see a little white star left of a big black square."),
    ],
    "de": [
        (STAR_LEFT_OF_CIRCLE, "Man sieht einen kleinen roten Stern links von einem großen blauen Kreis."),
        (STAR_LEFT_OF_CIRCLE, "Links vom großen blauen Kreis befindet sich ein kleiner roter Stern."),
        (HEART_ABOVE_CROSS, "Ein großes weißes Herz ist oberhalb eines kleinen violetten Kreuzes."),
        (HEART_ABOVE_CROSS, "Unter dem großen weißen Herzen sieht man ein kleines lila Kreuz."),
        (HEART_ABOVE_CROSS, "Ein kleines violettes Kreuz unterhalb eines großen weißen Herzens."),
        (RING_BELOW_DIAMOND, "Unterhalb der großen orangefarbenen Raute befindet sich ein kleiner blauer Ring."),
        (RING_BELOW_DIAMOND, "Ein Bild mit einer großen orangefarbenen Raute über einem kleinen blauen Ring."),
        (SQUARE_RIGHT_OF_STAR, "Rechts neben dem kleinen weißen Stern sieht man ein großes schwarzes Quadrat."),
    ],
    "fr": [
        (STAR_LEFT_OF_CIRCLE, "Il y a une petite étoile rouge à gauche d'un grand cercle bleu."),
        (STAR_LEFT_OF_CIRCLE, "À droite de la petite étoile rouge se trouve un grand cercle bleu."),
        (HEART_ABOVE_CROSS, "Un grand cœur blanc est au-dessus d'une petite croix violette."),
        (RING_BELOW_DIAMOND, "Sous le grand losange orange, on voit un petit anneau bleu."),
        (SQUARE_RIGHT_OF_STAR, "Une petite étoile blanche à gauche d'un grand carré noir."),
        (TRIANGLE_ABOVE_HEART, "En dessous du petit triangle vert se trouve un grand cœur jaune."),
    ],
    "ja": [
        (STAR_LEFT_OF_CIRCLE, "大きな青い円の左に小さな赤い星があります。"),
        (STAR_LEFT_OF_CIRCLE, "大きい青い円が小さな赤い星の右側にあります。"),
        (HEART_ABOVE_CROSS, "小さい紫色の十字の上に大きい白いハートがある絵。"),
        (RING_BELOW_DIAMOND, "大きなオレンジ色のひし形と、その下にある小さな青い輪。"),
        (TRIANGLE_ABOVE_HEART, "小さな緑の三角形の下に大きな黄色いハートが見えます。"),
    ],
    "cs": [
        (STAR_LEFT_OF_CIRCLE, "Vlevo od velkého modrého kruhu je malá červená hvězda."),
        (STAR_LEFT_OF_CIRCLE, "Napravo od malé červené hvězdy se nachází velký modrý kruh."),
        (STAR_LEFT_OF_CIRCLE, "Nalevo od velkého modrého kruhu vidíme malou červenou hvězdu."),
        (HEART_ABOVE_CROSS, "Velké bílé srdce je nad malým fialovým křížem."),
        (HEART_ABOVE_CROSS, "Obrázek s velkým bílým srdcem nad malým fialovým křížem."),
        (SQUARE_RIGHT_OF_STAR, "Obrázek s malou bílou hvězdou vlevo od velkého černého čtverce."),
        (RING_BELOW_DIAMOND, "Na obrázku je malý modrý prstenec pod velkým oranžovým kosočtvercem."),
    ],
    "id": [
        (STAR_LEFT_OF_CIRCLE, "Ada sebuah bintang merah kecil di sebelah kiri sebuah lingkaran biru besar."),
        (STAR_LEFT_OF_CIRCLE, "Di kanan bintang merah yang kecil itu terlihat sebuah lingkaran besar berwarna biru."),
        (HEART_ABOVE_CROSS, "Sebuah hati putih besar di atas sebuah salib ungu kecil."),
        (RING_BELOW_DIAMOND, "Gambar sebuah cincin kecil berwarna biru di bawah sebuah wajik jingga besar."),
    ],
    "es": [
        (STAR_LEFT_OF_CIRCLE, "Hay una pequeña estrella roja a la izquierda de un gran círculo azul."),
        (STAR_LEFT_OF_CIRCLE, "A la izquierda del círculo azul grande hay una estrella roja pequeña."),
        (HEART_ABOVE_CROSS, "Un gran corazón blanco está encima de una cruz morada pequeña."),
        (HEART_ABOVE_CROSS, "Por debajo del corazón blanco grande se ve una pequeña cruz violeta."),
        (RING_BELOW_DIAMOND, "Un pequeño anillo azul debajo de un gran rombo naranja."),
        (SQUARE_RIGHT_OF_STAR, "A la derecha de la pequeña estrella blanca hay un gran cuadrado negro."),
    ],
    "ru": [
        (STAR_LEFT_OF_CIRCLE, "Слева от большого синего круга находится маленькая красная звезда."),
        (STAR_LEFT_OF_CIRCLE, "Большой синий круг правее маленькой красной звезды."),
        (STAR_LEFT_OF_CIRCLE, "Картинка с маленькой красной звездой слева от большого синего круга."),
        (STAR_LEFT_OF_CIRCLE, "Слева от большого синего круга мы видим маленькую красную звезду."),
        (HEART_ABOVE_CROSS, "Над маленьким фиолетовым крестом видно большое белое сердце."),
        (RING_BELOW_DIAMOND, "Под большим оранжевым ромбом видно маленькое синее кольцо."),
        (RING_BELOW_DIAMOND, "Большой оранжевый ромб находится над маленьким синим кольцом."),
        (SQUARE_RIGHT_OF_STAR, "На картинке нарисована маленькая белая звезда слева от большого чёрного квадрата."),
        (SQUARE_RIGHT_OF_STAR, "Справа от маленькой белой звезды виден большой чёрный квадрат."),
    ],
    "tr": [
        (STAR_LEFT_OF_CIRCLE, "Büyük mavi dairenin solunda küçük kırmızı bir yıldız var."),
        (STAR_LEFT_OF_CIRCLE, "Büyük mavi bir daire, küçük kırmızı bir yıldızın sağında duruyor."),
        (HEART_ABOVE_CROSS, "Resimde küçük mor bir haçın üstünde büyük beyaz bir kalp var."),
        (HEART_ABOVE_CROSS, "Büyük beyaz kalbin altında küçük mor bir haç görülüyor."),
        (RING_BELOW_DIAMOND, "Büyük turuncu eşkenar dörtgenin altında küçük mavi bir halka görülüyor."),
        (TRIANGLE_ABOVE_HEART, "Küçük yeşil bir üçgenin aşağısında büyük sarı bir kalp bulunuyor."),
        (SQUARE_RIGHT_OF_STAR, "Büyük siyah karenin sol tarafında küçük beyaz bir yıldız var."),
    ],
}


@pytest.mark.parametrize("language", LANGUAGES)
def test_correct_sentences_are_among_the_wordings(language):
    for each, sentence in CORRECT[language]:
        assert sentence in set(wordings(each, language))


@pytest.mark.parametrize("language", LANGUAGES)
def test_captions_are_short_and_clean(language):
    for each in all_scenes()[::2000]:
        captions = list(wordings(each, language))
        assert len(set(captions)) >= 8
        for caption in captions:
            assert len(caption.split()) <= 20 and caption[-1] in ".。" and "  " not in caption
            assert caption[0] == caption[0].upper()


def neighbours(told: Scene) -> Iterator[Scene]:
    """The scene, and all that differ from it in one attribute of one object or in the relation alone."""
    yield told
    for relation in INVERSE.keys() - {told.relation}:
        yield dataclasses.replace(told, relation=relation)
    for side, (attribute, values) in itertools.product(
        ("figure", "ground"), (("size", SIZES), ("colour", COLOURS), ("shape", SHAPES))
    ):
        item = getattr(told, side)
        for value in values:
            if value != getattr(item, attribute):
                yield dataclasses.replace(told, **{side: dataclasses.replace(item, **{attribute: value})})


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_wording_fits_two_scenes(language):
    for told in (RING_BELOW_DIAMOND, SQUARE_RIGHT_OF_STAR):
        scenes = {each.canonical() for each in neighbours(told)}
        assert len(scenes) == 34
        fits = [{normalise(caption) for caption in wordings(each, language)} for each in scenes]
        assert len(set().union(*fits)) == sum(map(len, fits))


def test_captions_have_at_most_fourteen_words(tmp_path):
    """With <s> and </s> they then fit 16 tokens, two thirds of the work of the next multiple of eight."""
    for row in rows(tmp_path, "train", num_train=500):
        for language, (caption,) in row["captions"].items():
            assert len(normalise(caption).split()) <= 14, (language, caption)
