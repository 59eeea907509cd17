"""`shapes`: rendered scenes of two objects, captioned in ten languages, made from a seed without any download.

A scene is "a red star left of a blue circle on the beach at night". There are 241,920 of them; a permutation drawn
from the seed shares them out among the splits, so no scene of one split occurs in another. Rendering adds nuisance
(place, size, angle, tint, horizon, texture, noise) and captions vary in wording, so that neither can be looked up.
"""

import io
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

import datasets
import numpy as np
from PIL import Image, ImageDraw

from data_scripts.cli import no_split
from data_scripts.rows import row_features
from data_scripts.shapes_lexicon import (
    CANONICAL_RELATIONS,
    COLOURS,
    LANGUAGES,
    SHAPES,
    SITES,
    SKIES,
    Item,
    Scene,
    Setting,
    check_languages,
    describe,
)

SPLITS = ("train", "validation", "test")
# Scenes set aside for each of validation and test, whether asked for or not: were the share to follow the number of
# rows, asking for more test rows would move scenes out of train.
HELD_OUT = 2000

# Lengths are in units of the image side, angles in degrees.
RADIUS = (0.165, 0.22)
MARGIN = 0.015  # between an object and the edge
GAP = 0.03  # least distance between the two objects along the axis of their relation
MAX_SLANT = 0.5  # offset across that axis over distance along it: the relation stays plain to see
MAX_ANGLE = 12  # far from the 45 degrees that would turn a square on its corner
SUPERSAMPLING = 4

# Hue in degrees, saturation and value in 0..1, each with the half-width of its noise.
TINTS = {
    "red": ((0, 5), (0.90, 0.08), (0.86, 0.08)),
    "green": ((125, 12), (0.80, 0.12), (0.58, 0.08)),
    "blue": ((222, 8), (0.88, 0.08), (0.88, 0.10)),
    "yellow": ((56, 4), (0.88, 0.08), (0.96, 0.04)),
    "purple": ((284, 8), (0.72, 0.10), (0.66, 0.08)),
    "orange": ((29, 4), (0.94, 0.06), (0.96, 0.04)),
    "white": ((0, 180), (0.02, 0.02), (0.97, 0.03)),
    "black": ((0, 180), (0.10, 0.10), (0.07, 0.05)),
}
# Landscapes are paler or duller than the objects, and away from white and black.
SITE_TINTS = {
    "beach": ((45, 5), (0.38, 0.06), (0.82, 0.04)),
    "meadow": ((85, 8), (0.42, 0.06), (0.62, 0.05)),
    "snow": ((210, 8), (0.12, 0.03), (0.80, 0.02)),
    "sea": ((185, 6), (0.65, 0.08), (0.50, 0.05)),
    "road": ((0, 180), (0.02, 0.02), (0.34, 0.04)),
    "field": ((25, 5), (0.55, 0.06), (0.42, 0.04)),
}
SKY_TINTS = {
    "morning": ((325, 8), (0.28, 0.05), (0.91, 0.04)),
    "noon": ((205, 6), (0.45, 0.06), (0.94, 0.04)),
    "evening": ((14, 5), (0.46, 0.06), (0.80, 0.04)),
    "night": ((235, 8), (0.65, 0.06), (0.36, 0.03)),
    "fog": ((0, 180), (0.02, 0.02), (0.55, 0.04)),
}
HORIZON = (0.4, 0.6)  # its height
TEXTURE = 0.04  # largest deviation from the tint
NOISE = 0.012  # standard deviation of the sensor noise, in 0..1

# Share of a language's captions that `translation_noise=1` mistranslates: none in English, the source, and more the
# worse translation systems are at a language.
MISTRANSLATED = {
    "en": 0.0,
    "de": 0.1,
    "fr": 0.1,
    "es": 0.1,
    "cs": 0.2,
    "ru": 0.2,
    "zh": 0.2,
    "id": 0.3,
    "ja": 0.3,
    "tr": 0.4,
}
KEPT_OF_CUT_SHORT = 0.6  # of the words, or of the characters where there are no spaces


@lru_cache(maxsize=1)
def all_scenes() -> tuple[Scene, ...]:
    """Every canonical scene, in a fixed order. The two objects differ in shape or colour."""
    items = [Item(*values) for values in itertools.product(COLOURS, SHAPES)]
    settings = [Setting(*values) for values in itertools.product(SITES, SKIES)]
    return tuple(
        Scene(figure, relation, ground, setting)
        for setting, relation, figure, ground in itertools.product(settings, CANONICAL_RELATIONS, items, items)
        if figure != ground
    )


@lru_cache(maxsize=8)
def _scene_order(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(len(all_scenes()))


def sample_scene(seed: int, split: str, index: int) -> Scene:
    """The canonical scene of row `index` of a split: never one of another split, and new for every row.

    Train runs through its scenes again once they are exhausted. Raises IndexError where validation or test are, and
    KeyError for a split that is not in `SPLITS`.
    """
    order = _scene_order(seed)
    held_out = {"test": order[:HELD_OUT], "validation": order[HELD_OUT : 2 * HELD_OUT]}
    train = order[2 * HELD_OUT :]
    number = train[index % len(train)] if split == "train" else held_out[split][index]
    return all_scenes()[number]


@dataclass(frozen=True)
class Placement:
    """Where an object is drawn: the circle around it, in units of the image side, and its turn in degrees."""

    x: float
    y: float
    radius: float
    angle: float


def place(scene: Scene, rng: np.random.Generator) -> tuple[Placement, Placement]:
    """Draws places for figure and ground: within the image, apart from each other and true to the relation."""
    if scene != scene.canonical():
        figure, ground = place(scene.canonical(), rng)
        return ground, figure

    radii = rng.uniform(*RADIUS, 2)
    # Along the relation's axis the room that objects, margins and gap leave is dealt out at random ...
    room = 1 - 2 * MARGIN - GAP - 2 * sum(radii)
    before, up_to = np.sort(rng.uniform(0, room, 2))
    along = (MARGIN + before + radii[0], MARGIN + up_to + 2 * radii[0] + GAP + radii[1])
    # ... and across it both objects may be anywhere, as long as the line between them does not slant too much.
    slant = MAX_SLANT * (along[1] - along[0])
    lowest, highest = MARGIN + radii[1], 1 - MARGIN - radii[1]
    first = rng.uniform(MARGIN + radii[0], 1 - MARGIN - radii[0])
    across = (first, rng.uniform(max(lowest, first - slant), min(highest, first + slant)))

    angles = rng.uniform(-MAX_ANGLE, MAX_ANGLE, 2)
    xs, ys = (along, across) if scene.relation == "left of" else (across, along)
    figure, ground = (Placement(*values) for values in zip(xs, ys, radii, angles, strict=True))
    return figure, ground


def _polygon(*corners: tuple[float, float]) -> np.ndarray:
    """Corners as an array (corners, 2), scaled so that the farthest lies on the unit circle."""
    points = np.array(corners)
    return points / np.linalg.norm(points, axis=1).max()


def _circle(radius: float) -> np.ndarray:
    turns = np.linspace(0, 2 * math.pi, 40, endpoint=False)
    return radius * np.stack([np.cos(turns), np.sin(turns)], axis=1)


def _star() -> np.ndarray:
    turns = [math.pi * (corner / 5 - 0.5) for corner in range(10)]
    radii = [1 if corner % 2 == 0 else 0.42 for corner in range(10)]
    return _polygon(*((r * math.cos(t), r * math.sin(t)) for r, t in zip(radii, turns, strict=True)))


def _heart() -> np.ndarray:
    turns = np.linspace(0, 2 * math.pi, 40, endpoint=False)
    x = 16 * np.sin(turns) ** 3
    y = -(13 * np.cos(turns) - 5 * np.cos(2 * turns) - 2 * np.cos(3 * turns) - np.cos(4 * turns))
    return _polygon(*zip(x, y - (y.max() + y.min()) / 2, strict=True))


_ARM = 0.34  # half the width of the arms of a cross, over their length
# Outlines within the unit circle, y pointing down; a second one is a hole in the first.
OUTLINES = {
    "circle": (_circle(0.9),),
    "square": (_polygon((-1, -1), (1, -1), (1, 1), (-1, 1)),),
    "triangle": (_polygon(*((math.sin(t), -math.cos(t)) for t in (0, 2 * math.pi / 3, 4 * math.pi / 3))),),
    "star": (_star(),),
    "heart": (_heart(),),
    "cross": (
        _polygon(
            *((-_ARM, -1), (_ARM, -1), (_ARM, -_ARM), (1, -_ARM), (1, _ARM), (_ARM, _ARM)),
            *((_ARM, 1), (-_ARM, 1), (-_ARM, _ARM), (-1, _ARM), (-1, -_ARM), (-_ARM, -_ARM)),
        ),
    ),
    "ring": (_circle(0.95), _circle(0.52)),
    "diamond": (_polygon((0, -1), (0.6, 0), (0, 1), (-0.6, 0)),),
}


def _rgb(hue: float, saturation: float, value: float) -> np.ndarray:
    """Hue in degrees, saturation and value in 0..1, as float32 red, green and blue in 0..1."""
    sector = (np.array([5, 3, 1]) + hue / 60) % 6
    return (value - value * saturation * np.clip(np.minimum(sector, 4 - sector), 0, 1)).astype(np.float32)


def _tint(noisy: tuple[tuple[float, float], ...], rng: np.random.Generator) -> np.ndarray:
    return _rgb(*(rng.uniform(centre - spread, centre + spread) for centre, spread in noisy))


def _landscape(setting: Setting, rng: np.random.Generator, image_size: int) -> np.ndarray:
    """Sky over ground, both with a faint texture: float32 (image_size, image_size, 3), about 0..1."""
    sky, site = _tint(SKY_TINTS[setting.sky], rng), _tint(SITE_TINTS[setting.site], rng)
    height = np.linspace(1, 0, image_size)[:, None, None]
    cells = rng.uniform(-TEXTURE, TEXTURE, (6, 6)).astype(np.float32)
    texture = np.asarray(Image.fromarray(cells).resize((image_size, image_size), Image.Resampling.BICUBIC))
    return np.where(height > rng.uniform(*HORIZON), sky, site) + texture[..., None]


def _coverage(shape: str, placement: Placement, image_size: int) -> np.ndarray:
    """The share of each pixel that the object covers: float32 (image_size, image_size, 1) in 0..1."""
    side = image_size * SUPERSAMPLING
    mask = Image.new("L", (side, side))
    draw = ImageDraw.Draw(mask)
    turn = math.radians(placement.angle)
    rotation = np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
    for outline, fill in zip(OUTLINES[shape], (255, 0), strict=False):
        points = (placement.x, placement.y) + placement.radius * outline @ rotation
        draw.polygon((side * points).ravel().tolist(), fill=fill)
    return np.asarray(mask.reduce(SUPERSAMPLING), dtype=np.float32)[..., None] / 255


def render(scene: Scene, rng: np.random.Generator, image_size: int = 64) -> Image.Image:
    """An RGB picture of the scene, `image_size` pixels wide and high; all nuisance is drawn from `rng`.

    A scene and its mirrored form give the same picture. The objects lie where `place`, given the generator in the
    same state, says.
    """
    scene = scene.canonical()
    placements = place(scene, rng)
    pixels = _landscape(scene.setting, rng, image_size)
    for item, placement in zip((scene.figure, scene.ground), placements, strict=True):
        tint = _tint(TINTS[item.colour], rng)
        pixels += _coverage(item.shape, placement, image_size) * (tint - pixels)
    pixels += NOISE * rng.standard_normal(pixels.shape, dtype=np.float32)
    return Image.fromarray((255 * pixels.clip(0, 1) + 0.5).astype(np.uint8))


def mistranslate(scene: Scene, language: str, rng: np.random.Generator) -> str:
    """A caption with something wrong in it or, as often, with its end left out."""
    if rng.random() < 0.5:
        return describe(with_an_error(scene, rng), language, rng)
    caption = describe(scene, language, rng)
    separator = " " if " " in caption else ""
    parts = caption.split(" ") if separator else list(caption)
    return separator.join(parts[: round(KEPT_OF_CUT_SHORT * len(parts))])


def with_an_error(scene: Scene, rng: np.random.Generator) -> Scene:
    """The scene with another colour, shape, relation, site or sky."""

    def another(values: tuple[str, ...], value: str) -> str:
        others = [other for other in values if other != value]
        return others[rng.integers(len(others))]

    figure, ground, setting = scene.figure, scene.ground, scene.setting
    wrong = (
        lambda: replace(scene, figure=replace(figure, colour=another(COLOURS, figure.colour))),
        lambda: replace(scene, figure=replace(figure, shape=another(SHAPES, figure.shape))),
        lambda: replace(scene, ground=replace(ground, colour=another(COLOURS, ground.colour))),
        lambda: replace(scene, ground=replace(ground, shape=another(SHAPES, ground.shape))),
        lambda: replace(scene, relation=another(CANONICAL_RELATIONS, scene.relation)),
        lambda: replace(scene, setting=replace(setting, site=another(SITES, setting.site))),
        lambda: replace(scene, setting=replace(setting, sky=another(SKIES, setting.sky))),
    )
    return wrong[rng.integers(len(wrong))]()


@dataclass
class ShapesConfig(datasets.BuilderConfig):
    """Which rows to make.

    - `split`: "train", "validation" or "test"; only this one is made.
    - `seed`: other seeds give other scenes, pictures and wordings; and another partition, so never train on one seed
      and test on another.
    - `image_size`: side of the square pictures, in pixels.
    - `languages`: the caption languages, out of `LANGUAGES`.
    - `num_train`, `num_validation`, `num_test`: rows of each split. Rows do not depend on their number.
    - `translation_noise`: 0 to 2.5, how much of `MISTRANSLATED` applies to the captions of train, as if they came from
      a translation system; those of the other splits are always right.

    Raises ValueError for an unknown split or language, a noise out of range, or more held-out rows than there are
    scenes for them.
    """

    split: str = "train"
    seed: int = 0
    image_size: int = 64
    languages: tuple[str, ...] = LANGUAGES
    num_train: int = 8000
    num_validation: int = 200
    num_test: int = 500
    translation_noise: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        if self.split not in SPLITS:
            raise ValueError(no_split("shapes", self.split, SPLITS))
        check_languages(self.languages)
        for name in ("num_validation", "num_test"):
            if getattr(self, name) > HELD_OUT:
                raise ValueError(f"shapes has {name}={getattr(self, name)}: ask for at most {HELD_OUT}")
        if not 0 <= self.translation_noise <= 1 / max(MISTRANSLATED.values()):
            raise ValueError(
                f"shapes has translation_noise={self.translation_noise}: choose from 0 to "
                f"{1 / max(MISTRANSLATED.values())}, where every caption of one language is wrong"
            )


class Shapes(datasets.GeneratorBasedBuilder):
    """Rows with one picture and one caption per language; see `ShapesConfig` for the options.

    The wordings of one row are drawn independently of each other, in every language.
    """

    # The code is not part of the cache key: raise this whenever the rows change.
    VERSION = datasets.Version("1.15.0")
    BUILDER_CONFIG_CLASS = ShapesConfig
    config: ShapesConfig

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(description=__doc__, features=row_features(self.config.languages))

    def _split_generators(self, dl_manager) -> list[datasets.SplitGenerator]:
        return [datasets.SplitGenerator(name=self.config.split)]

    def _generate_examples(self) -> Iterator[tuple[int, dict]]:
        for index in range(getattr(self.config, f"num_{self.config.split}")):
            yield index, self._row(index)

    def _row(self, index: int) -> dict:
        def rng(stream: int) -> np.random.Generator:
            # A stream of its own for the picture and for each language: none depends on which others are drawn.
            key = (SPLITS.index(self.config.split), index, stream)
            return np.random.default_rng(np.random.SeedSequence(self.config.seed, spawn_key=key))

        scene = sample_scene(self.config.seed, self.config.split, index)
        png = io.BytesIO()
        render(scene, rng(0), self.config.image_size).save(png, "PNG", compress_level=1)
        return {
            "image": {"bytes": png.getvalue(), "path": None},
            "image_id": f"{self.config.split}-{index:05d}",
            "captions": {language: [self._caption(scene, language, rng)] for language in self.config.languages},
        }

    def _caption(self, scene: Scene, language: str, rng: Callable[[int], np.random.Generator]) -> str:
        stream = 1 + LANGUAGES.index(language)
        if self.config.split == "train" and self.config.translation_noise:
            error = rng(stream + len(LANGUAGES))  # apart from the wording, which is that of a run without noise
            if error.random() < self.config.translation_noise * MISTRANSLATED[language]:
                return mistranslate(scene, language, error)
        return describe(scene, language, rng(stream))
