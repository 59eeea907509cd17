"""What is known of each named data set, once: loading, check, evaluation and report read it here."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Card:
    """
    What a data set's rows do not say themselves. Its counts stand beside its splits, in the builder's module.

    Args:
        builder: `module:class`; imported when the data set is asked for.
        k_test: candidates that an evaluation re-scores per query.
        mrv_languages: of MRV, where that is over fewer than all.
        not_aligned: captions in one language are not those in another, so that there is no MRV.
        folds: language → in how many equal parts of the images recall is published as well.
        published_columns: of the paper's tables: `IR@1` and `TR@1` over all languages, `MRV` as a standard deviation,
            or a language: its mean of R@1, 5 and 10 in both directions.
        published: model → its figures in these columns, percent and ranks (arXiv 2406.18254, tables 1 to 3).
    """

    builder: str
    k_test: int = 128
    mrv_languages: tuple[str, ...] | None = None
    not_aligned: bool = False
    folds: Mapping[str, int] = field(default_factory=dict)
    published_columns: tuple[str, ...] = ()
    published: Mapping[str, tuple[float | None, ...]] = field(default_factory=dict)


CARDS = {
    "shapes": Card("data_scripts.shapes:Shapes", k_test=16),  # in proportion, for 500 scenes
    "multi30k": Card(
        "data_scripts.multi30k:Multi30K",
        mrv_languages=("en", "de", "fr", "cs"),
        published_columns=("en", "de", "fr", "cs", "MRV"),
        published={
            "M3P": (87.4, 58.5, 46.0, 36.8, 15.38),
            "UC2": (87.2, 74.9, 74.0, 67.9, 6.16),
            "CCLM-3M": (90.4, 89.9, 89.4, 88.1, 3.18),
            "CCR6": (88.5, 87.1, 87.8, 85.7, 3.06),
            "CCR6-E": (90.8, 90.3, 91.0, 89.4, 1.28),
            "CCR10": (84.2, 82.5, 81.9, 80.8, 4.13),
            "CCR10-E": (91.4, 90.7, 91.3, 89.8, 2.53),
            "CCLM-3M, single-language": (90.4, 89.6, 90.0, 88.8, 2.41),
            "CCR10-E, single-language": (91.4, 90.6, 91.2, 90.2, 1.12),
        },
    ),
    "coco": Card(
        "data_scripts.coco:COCO",
        k_test=256,
        not_aligned=True,
        folds={"en": 5, "ja": 5},
        published_columns=("en", "zh", "ja"),
        published={
            "M3P": (88.6, 53.8, 56.0),
            "UC2": (88.1, 82.0, 71.7),
            "CCLM-3M": (92.3, 90.4, 87.3),
            "CCR6": (91.6, 89.6, 86.0),
            "CCR6-E": (92.5, 91.4, 89.4),
            "CCR10": (90.0, 88.0, 81.7),
            "CCR10-E": (92.5, 91.4, 89.3),
            "CCLM-3M, single-language": (92.3, 92.1, 92.4),
            "CCR10-E, single-language": (92.5, 92.5, 92.5),
        },
    ),
    "xflickrco": Card(
        "data_scripts.xflickrco:XFlickrCO",
        mrv_languages=("en", "de", "ja", "zh"),
        published_columns=("IR@1", "TR@1", "MRV"),
        published={
            "xUNITER": (14.04, 13.51, 50.60),
            "M3P": (12.91, 11.90, 54.58),
            "UC2": (20.31, 17.89, 21.52),
            "TD-MML": (21.30, 26.35, None),
            "CCLM-3M": (64.47, 62.74, 13.27),
            "CCR6": (29.16, 28.72, 15.02),
            "CCR6-E": (32.89, 33.06, 7.97),
            "CCR10": (55.45, 54.88, 18.96),
            "CCR10-E": (73.30, 72.64, 7.89),
            "CCLM-3M, few-shot": (65.31, 63.91, 12.93),
            "CCR10-E, few-shot": (73.74, 73.27, 7.62),
        },
    ),
    "wit": Card(
        "data_scripts.wit:WIT",
        not_aligned=True,
        published_columns=("IR@1", "TR@1"),
        published={
            "xUNITER": (8.72, 9.81),
            "M3P": (8.12, 9.98),
            "UC2": (7.83, 9.09),
            "TD-MML": (9.76, 10.61),
            "CCR6": (6.78, 8.73),
            "CCR6-E": (6.44, 8.34),
            "CCR10": (9.94, 11.73),
            "CCR10-E": (11.11, 12.62),
        },
    ),
    "flickr30k": Card("data_scripts.flickr30k:Flickr30K"),
    "xm3600": Card("data_scripts.xm3600:XM3600", not_aligned=True),
    "xtd10": Card("data_scripts.xtd:XTD10"),
    "xtd11": Card("data_scripts.xtd:XTD11"),
    "pretraining": Card("data_scripts.pretraining:Pretraining"),
}
# What any other name means: a folder or file, or a data set on the Hub.
ANY_TABLE = Card("data_scripts.table:AnyTable")


def card_of(name: str) -> Card:
    """The card of a named data set, or that of any table."""
    return CARDS.get(name, ANY_TABLE)
