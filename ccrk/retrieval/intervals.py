"""How far a result can be trusted: bootstrap intervals, and the paired comparison of two runs.

Images are what is drawn at random, each with all of its captions: captions of one image succeed or fail together.
"""

from collections.abc import Sequence
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ccrk.retrieval.instances import CAPTION, INDEX, Ranks, shared_ranks, usable_captions
from ccrk.retrieval.ranking import pools_of
from data_scripts.cli import one_line

RESAMPLES = 1_000

SIGN_FLIPS = 10_000

CUTOFFS = (1, 5, 10)

# Of the ranks of another run: 36 languages of 100,000 captions and images fit.
MAX_RANKS = 10_000_000

MAX_BYTES = 1 << 31

RANK_SCHEMA = pa.schema(
    dict.fromkeys(("image", "language", "direction"), pa.string())
    | dict.fromkeys(("repeat", "caption", "rank"), pa.float64())
)

_WEIGHTS_PER_CHUNK = 1 << 22


def recall_intervals(ranks: Ranks, seed: int = 0) -> dict[str, dict[str, list[float]]]:
    """95 % intervals of `recall_table`'s figures: `[low, high]` in percent (percentile bootstrap)."""
    intervals = {}
    for language in ranks:
        ir, tr = _resampled_means([_hits(ranks[language][direction]) for direction in ("IR", "TR")], seed)
        six = np.concatenate([ir, tr], axis=1)
        names = [f"{direction}@{k}" for direction in ("IR", "TR") for k in CUTOFFS]
        intervals[language] = dict(zip(names, map(_interval, six.T), strict=True)) | {
            "mean": _interval(six.mean(axis=1))
        }
    return intervals


def mean_recall_interval(ranks: Ranks, seed: int = 0) -> list[float]:
    """The 95 % interval of the mean over languages of `recall_table`'s `mean`: `[low, high]` in percent."""
    drawn = _resampled_means([_hits(of_direction) for of in ranks.values() for of_direction in of.values()], seed)
    return _interval(np.concatenate(drawn, axis=1).mean(axis=1))


def mrv_intervals(ranks: Ranks, languages: Sequence[str], seed: int = 0) -> dict[str, dict[str, list[float]]]:
    """95 % intervals of `mrv_table`'s figures: `[low, high]`, in ranks for `std`, in ranks squared for `variance`."""
    ir, tr = _resampled_means([_spreads(ranks, languages, direction) for direction in ("IR", "TR")], seed)
    return {
        direction: {name: _interval(means[:, column]) for column, name in enumerate(("std", "variance"))}
        for direction, means in (("IR", ir), ("TR", tr), ("mean", (ir + tr) / 2))
    }


def compare(ranks: Ranks, other: Ranks, mrv_languages: Sequence[str], seed: int = 0) -> dict:
    """This run minus the other, over the same instances.

    Returns: `recall`: for each language the `difference` of mean recall in percent, its 95 % interval `low` to `high`,
    and `p`, two-sided, of a sign-flip test over images; `mrv`: the same of mean MRV (std), or None, and where the
    other run lacks a language of it `no_mrv_because`.

    Raises:
        ValueError: no language, or not the same instances, in both.
    """
    languages = _languages_in_both(list(ranks), other)
    for language in languages:
        for direction in ("IR", "TR"):
            ours, theirs = ranks[language][direction].index, other[language][direction].index
            _check_instances(f"{language} {direction}", ours, theirs)
    tables = {
        language: [_hits(ranks[language][direction]) - _hits(other[language][direction]) for direction in ("IR", "TR")]
        for language in languages
    }
    result = {"recall": {language: _paired(difference, seed) for language, difference in tables.items()}, "mrv": None}
    if missing := [language for language in mrv_languages if language not in other]:
        result["no_mrv_because"] = f"the other run does not rank {', '.join(missing)}"
    elif len(mrv_languages) > 1:
        spread = [
            _spreads(ranks, mrv_languages, direction)[["std"]] - _spreads(other, mrv_languages, direction)[["std"]]
            for direction in ("IR", "TR")
        ]
        result["mrv"] = _paired(spread, seed)
    return result


def check_same_data(dataset: datasets.Dataset, other: Ranks) -> None:
    """Raises what `compare` would raise after all is scored, as far as the rows show it."""
    for language in _languages_in_both(list(dataset.features["captions"]), other):
        captions = usable_captions(dataset, language)
        index = captions.index(pools_of(captions)[0].caption_queries)
        _check_instances(f"{language} IR", index, other[language]["IR"].index)


def _languages_in_both(languages: Sequence[str], other: Ranks) -> list[str]:
    common = [language for language in languages if language in other]
    if not common:
        raise ValueError(
            f"the other run ranks {', '.join(other)}, this one {', '.join(languages)}: no language in common"
        )
    return common


def _check_instances(name: str, ours: pd.Index, theirs: pd.Index) -> None:
    if len(both := ours.intersection(theirs)) < max(len(ours), len(theirs)):
        raise ValueError(
            f"{name}: {len(ours)} instances here, {len(theirs)} in the other run, {len(both)} in both; compare runs "
            "on the same task, split and rows"
        )


def read_ranks(path: Path) -> Ranks:
    """A ranks.parquet as `eval_mrv.py` writes it.

    Raises:
        ValueError: no such file, or a damaged one; other columns or types; more than `MAX_RANKS` rows or `MAX_BYTES`,
            before they are read; ranks that are none, or twice for one instance.
    """
    table = _read_table(path)
    if unknown := sorted(set(table["direction"].dropna()) - {"IR", "TR"}):
        raise ValueError(f"{path} holds ranks of {unknown[0]!r} beside IR and TR; write it again with eval_mrv.py")
    table["caption"] = table["caption"].where(table["direction"] == "IR", 0.0)  # a TR rank is of all of its image's
    numbers = table[["repeat", "caption", "rank"]]
    if table.isna().any(axis=None) or (numbers < [0, 0, 1]).any(axis=None) or (numbers % 1 != 0).any(axis=None):
        raise ValueError(f"{path} holds ranks below 1 or none at all; write it again with eval_mrv.py")
    if table.duplicated([*CAPTION, "language", "direction"]).any():
        raise ValueError(f"{path} holds two ranks of one instance; write it again with eval_mrv.py")
    table = table.astype({"repeat": "int64", "caption": "int64"})
    ranks = {
        str(language): {
            direction: of_direction.set_index(INDEX[direction])["rank"]
            for direction, of_direction in of_language.groupby("direction")
        }
        for language, of_language in table.groupby("language", sort=False)
    }
    for language, directions in ranks.items():
        if missing := {"IR", "TR"} - set(directions):
            raise ValueError(
                f"{path} has no {' or '.join(sorted(missing))} ranks of {language}; write it again with eval_mrv.py"
            )
    return ranks


def _read_table(path: Path) -> pd.DataFrame:
    """The columns of `RANK_SCHEMA`; see `read_ranks`."""
    if not path.is_file():
        raise ValueError(f"there is no file {path}; give a ranks.parquet of eval_mrv.py")
    texts = [field.name for field in RANK_SCHEMA if field.type == pa.string()]
    try:
        if missing := set(RANK_SCHEMA.names) - set(pq.read_schema(path).names):
            raise ValueError(
                f"{path} lacks the columns {', '.join(sorted(missing))}; give a ranks.parquet that this version of "
                "eval_mrv.py wrote"
            )
        # As dictionaries: a text that is there a million times takes its room once.
        with pq.ParquetFile(path, read_dictionary=texts, page_checksum_verification=True) as file:
            kinds = {field.name: field.type for field in file.schema_arrow}
            for name in RANK_SCHEMA.names:
                if not (pa.types.is_dictionary if name in texts else _is_number)(kinds[name]):
                    raise ValueError(f"{path}: {name} holds {kinds[name]}; give a ranks.parquet of eval_mrv.py")
            rows = file.metadata.num_rows
            stored = sum(file.metadata.row_group(group).total_byte_size for group in range(file.num_row_groups))
            if rows > MAX_RANKS or stored > MAX_BYTES:
                raise ValueError(f"{path} has {rows:,} rows and {stored:,} bytes, over {MAX_RANKS:,} or {MAX_BYTES:,}")
            table = file.read(columns=RANK_SCHEMA.names)
            lengths = [pc.max(pc.binary_length(part.dictionary)).as_py() for n in texts for part in table[n].chunks]
            if rows * (longest := max((length or 0 for length in lengths), default=0)) > MAX_BYTES:
                raise ValueError(f"{path} has {rows:,} rows of up to {longest:,} bytes, over {MAX_BYTES:,} in all")
            return table.cast(RANK_SCHEMA).to_pandas(ignore_metadata=True)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged ({one_line(error)}); write it again with eval_mrv.py") from error


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind)


def _hits(ranks: pd.Series) -> pd.DataFrame:
    """100 where an instance is among the first k, else 0; a column for each k."""
    return pd.DataFrame({k: 100.0 * (ranks <= k) for k in CUTOFFS})


def _spreads(ranks: Ranks, languages: Sequence[str], direction: str) -> pd.DataFrame:
    """Standard deviation and variance of each instance's ranks over the languages."""
    table = shared_ranks(ranks, languages, direction)
    return pd.DataFrame({"std": table.std(axis=1, ddof=0), "variance": table.var(axis=1, ddof=0)})


def _sums_and_counts(tables: list[pd.DataFrame]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Of each table the (images, columns) sums and (images, 1) numbers of instances, the images of all tables."""
    grouped = [table.groupby(level="image", sort=False) for table in tables]
    images = pd.Index(pd.unique(np.concatenate([list(group.groups) for group in grouped])))
    sums = [group.sum().reindex(images, fill_value=0).to_numpy() for group in grouped]
    return sums, [group.size().reindex(images, fill_value=0).to_numpy()[:, None] for group in grouped]


def _resampled_means(tables: list[pd.DataFrame], seed: int) -> list[np.ndarray]:
    """The means of each table's columns, (RESAMPLES, columns), with the same images drawn for all tables."""
    # Not scipy's bootstrap: it gathers every drawn row, where a product with how often each image was drawn does.
    sums, counts = _sums_and_counts(tables)
    images = len(sums[0])
    generator = np.random.default_rng(seed)
    means: list[list[np.ndarray]] = [[] for _ in tables]
    chunk = max(1, _WEIGHTS_PER_CHUNK // images)
    for start in range(0, RESAMPLES, chunk):
        weights = generator.multinomial(images, np.full(images, 1 / images), min(chunk, RESAMPLES - start)).astype(
            float
        )
        for collected, total, count in zip(means, sums, counts, strict=True):
            # A draw without a single instance, possible where few images have any, says nothing.
            number = weights @ count
            collected.append(
                np.divide(
                    weights @ total, number, out=np.full((len(weights), total.shape[1]), np.nan), where=number > 0
                )
            )
    return [np.concatenate(collected) for collected in means]


def _paired(differences: list[pd.DataFrame], seed: int) -> dict[str, float]:
    resampled = _resampled_means(differences, seed)
    low, high = _interval(np.concatenate(resampled, axis=1).mean(axis=1))
    # Each image's share of the difference; under the null hypothesis its sign is chance. Not scipy's permutation_test:
    # it sorts where a product does, and takes 9 to 18 times as long for 240 to 25,000 images.
    sums, counts = _sums_and_counts(differences)
    shares = np.concatenate([total / count.sum() for total, count in zip(sums, counts, strict=True)], axis=1).mean(
        axis=1
    )
    difference = shares.sum()
    generator = np.random.default_rng(seed)
    chunk = max(1, _WEIGHTS_PER_CHUNK // len(shares))
    as_far = 0
    for start in range(0, SIGN_FLIPS, chunk):
        signs = generator.integers(0, 2, (min(chunk, SIGN_FLIPS - start), len(shares))) * 2.0 - 1
        as_far += int((np.abs(signs @ shares) >= abs(difference) - 1e-9).sum())
    return {"difference": float(difference), "low": low, "high": high, "p": (1 + as_far) / (1 + SIGN_FLIPS)}


def _interval(values: np.ndarray) -> list[float]:
    return [float(value) for value in np.nanpercentile(values, [2.5, 97.5])]
