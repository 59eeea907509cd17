"""Brings an index up to date with its source: what is new or changed is encoded, what is gone is taken out."""

import collections
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import datasets
from tqdm import tqdm

from ccrk.search.machines import Encoded, Machines
from ccrk.search.pictures import PASSING, Item, Source, digest_of, endings, names, open_source
from ccrk.search.store import FileState, Store
from data_scripts.cli import one_line
from data_scripts.formats import is_url
from data_scripts.images import BadImage

logger = logging.getLogger(__name__)

ROWS_PER_COMMIT = 512
# What may go from an index without `allow_deletions`: a tenth of it, or fewer than five images, which somebody deletes
# by hand. Of files that have changed since they were indexed, so many are compared by their contents.
DELETED_SHARE = 0.1
FEW = 5
COMPARED = 100


@dataclass
class Changes:
    """What a run found and did, in pictures."""

    unchanged: int = 0
    new: int = 0
    changed: int = 0
    copied: int = 0  # contents that were in the index already: renamed, touched, or there twice
    deleted: int = 0
    damaged: Counter[str] = field(default_factory=Counter)  # by reason, those known from earlier runs as well
    first: dict[str, str] = field(default_factory=dict)  # reason → the first such path
    others: Counter[str] = field(default_factory=Counter)  # files of other kinds, by ending
    seconds: float = 0.0

    def bad(self, reason: str, path: str) -> None:
        self.damaged[reason] += 1
        self.first.setdefault(reason, path)

    def __str__(self) -> str:
        encoded = self.new + self.changed
        lines = [
            f"{self.new:,} new, {self.changed:,} changed, {self.copied:,} of known contents, "
            f"{self.deleted:,} deleted, {self.unchanged:,} unchanged"
            + f"; {encoded / max(self.seconds, 1e-9):,.1f} pictures/s"
            * bool(encoded)
        ]
        lines += [
            f"{count:>11,}  {reason}, first: {one_line(self.first[reason])}"
            for reason, count in self.damaged.most_common()
        ]
        if self.others:
            lines.append(f"{self.others.total():>11,}  files of other kinds: {endings(self.others)}")
        return "\n".join(lines)


def update(
    store: Store,
    source: str,
    load: Callable[[], datasets.Dataset],
    machines: Machines,
    allow_deletions: bool = False,
) -> Changes:
    """Makes the index one of the source's pictures as they are now; whoever calls holds the store's lock.

    Args:
        source: see `open_source`, as `load`.
        machines: which read, decode and encode.
        allow_deletions: go on where `_check_losses` would refuse.

    Raises:
        ValueError: the source holds no picture, or is another than the index is of, or lacks too many of the index's
            pictures, all before anything is written; or an embedding is not finite.
    """
    started = time.perf_counter()
    found = open_source(source, load)
    store.refresh()
    states, damaged, reasons = store.files(store.pictures), store.files(store.damaged), store.reasons()
    name = os.path.abspath(source) if os.path.exists(source) else source.rstrip("/") if is_url(source) else source
    _check_source(store, name, found, states, allow_deletions)
    changes = Changes(others=found.others)
    for path, reason in found.bad.items():
        changes.bad(reason, path)

    todo = []
    for item in found.items:
        state = states.get(item.path) or damaged.get(item.path)
        if item.mtime_ns is not None and state and (state.size, state.mtime_ns) == (item.size, item.mtime_ns):
            if item.path in states:
                changes.unchanged += 1
            else:
                changes.bad(reasons[state.digest], item.path)
        else:
            todo.append(item)
    there = {item.path for item in found.items}
    gone, gone_damaged = (
        [path for path in known if path not in there and not path.startswith(found.unlisted)]
        for known in (states, damaged)
    )
    if not allow_deletions:
        _check_losses(store, name, states, gone, todo)
    where = {state.digest: path for path, state in states.items()}
    run = _Run(store, machines, changes, states, damaged, where, reasons)
    with tqdm(total=len(todo), desc="indexing", unit=" pictures", disable=None if todo else True) as progress:
        lost = run.take(todo, progress)
        if lost:  # their contents were in a row that has got others in this very run
            run.where = {}
            run.take(lost, progress)

    found.check()
    store.delete(gone, store.pictures)
    store.delete(gone_damaged, store.damaged)
    changes.deleted = len(gone)
    store.source = name
    if todo or gone:
        store.tidy()
    changes.seconds = time.perf_counter() - started
    return changes


def _check_source(store: Store, name: str, found: Source, states: dict, allow_deletions: bool) -> None:
    if not found.items:
        reasons = [f"{names(list(found.bad))}: {next(iter(found.bad.values()))}"] if found.bad else []
        reasons += [f"files of other kinds: {endings(found.others)}"] if found.others else []
        cure = "; is its disk mounted? The index is left as it was" if states else ""
        raise ValueError(
            f"{name} holds no images that can be indexed" + f" ({'; '.join(reasons)})" * bool(reasons) + cure
        )
    is_another = states and store.source not in (None, name)
    if is_another and not allow_deletions and not any(item.path in states for item in found.items):
        raise ValueError(
            f"{store.location} is an index of {store.source}, and {name} has none of its images; use another index"
            ", or add --allow_deletions"
        )


def _check_losses(
    store: Store, name: str, states: dict[str, FileState], gone: Sequence[str], todo: Sequence[Item]
) -> None:
    """Refuses a source that lacks much of what the index holds: the source may be another disk, or partly unmounted.

    An image is lost where its file is gone or empty. Where most files of known names hold other contents, the images
    of those files are lost as well. An image that the source holds under another name is not lost.

    Args:
        gone: paths in the index that the source no longer has.
        todo: files that are new or have changed.

    Raises:
        ValueError: more than a tenth of the index would be lost, or all of a folder. Fewer than five images may
            always go where the source is the same as in the last run.
    """
    changed = [item for item in todo if item.path in states]
    is_replaced = _are_others(changed, states, len(states) - len(gone))
    suspects = [*gone, *(item.path for item in changed if is_replaced or item.size == 0)]
    few = 1 if store.source not in (None, name) else FEW
    if not _losses(suspects, states, few):
        return
    # Read twice, where much has been moved: what is refused has to leave the index as it was.
    sizes = {states[path].size for path in suspects}
    kept = {digest for _, digest in _digests([item for item in todo if item.size in sizes])}
    kept |= {states[path].digest for path in states.keys() - set(suspects) - {item.path for item in changed}}
    lost = [path for path in suspects if states[path].digest not in kept]
    if losses := _losses(lost, states, few):
        is_of = f"{store.location} is an index of {store.source}, and " if few == 1 else ""
        raise ValueError(
            f"{is_of}{name} lacks {losses}; is its disk mounted, and is it the right one? Nothing was changed. To "
            "delete these images from the index, add --allow_deletions"
        )


def _losses(lost: Sequence[str], states: dict[str, FileState], few: int) -> str:
    """Describes losses that are too large; empty where they are not."""
    if len(lost) < few:
        return ""
    in_folder = Counter(folder for path in lost for folder in _folders(path))
    had = Counter(folder for path in states for folder in _folders(path) if folder in in_folder)
    whole = [folder for folder, count in in_folder.items() if count >= FEW and count == had[folder]]
    if not whole and len(lost) <= DELETED_SHARE * len(states):
        return ""
    folder = min(whole, key=lambda folder: (folder.count("/"), folder), default=None)
    first = f"all {had[folder]:,} of its folder {folder}" if folder is not None else lost[0]
    return f"{len(lost):,} of the {len(states):,} images of the index ({one_line(first)})"


def _folders(path: str) -> Iterator[str]:
    """The folders below the source that an image lies in, the innermost first."""
    while path := path.rpartition("/")[0]:
        yield path


def _are_others(changed: Sequence[Item], states: dict[str, FileState], known: int) -> bool:
    """Whether most files of known names hold something else than the index has of them.

    Args:
        changed: files of known names that may have changed.
        known: number of files that the index knows and that are not gone.
    """
    if 2 * len(changed) <= known:
        return False
    compared = changed[:: max(1, len(changed) // COMPARED)][:COMPARED]
    of_size = [item for item in compared if item.size == states[item.path].size]
    same = sum(digest == states[item.path].digest for item, digest in _digests(of_size))
    return 2 * len(changed) * (1 - same / len(compared)) > known


def _digests(items: Sequence[Item]) -> Iterator[tuple[Item, str]]:
    """Of contents; files that cannot be read are left out."""

    def digest(item: Item) -> str | None:
        try:
            return digest_of(item.read())
        except BadImage:
            return None  # counted when it is to be indexed

    with ThreadPoolExecutor() as pool:
        digests = zip(items, pool.map(digest, items), strict=True)
        yield from ((item, found) for item, found in digests if found is not None)


@dataclass
class _Run:
    """What passes between the machines and the store."""

    store: Store
    machines: Machines
    changes: Changes
    states: dict[str, FileState]  # path → what the index has of it
    damaged_states: dict[str, FileState]
    where: dict[str, str]  # digest → path of a picture of that content
    reasons: dict[str, str]  # digest → why pictures of that content are damaged

    def take(self, items: Sequence[Item], progress: tqdm) -> list[Item]:
        """Indexes items. Returns those whose contents were known when they were read, and no longer when written."""
        lost: list[Item] = []
        to_copy: list[Encoded] = []
        rows: list[dict] = []
        damaged: list[dict] = []

        def commit() -> None:
            lost.extend(self._copy(to_copy, rows))
            self._write(rows, damaged)
            for waiting in (rows, to_copy, damaged):
                waiting.clear()

        for encoded in self.machines(items, collections.ChainMap(self.where, self.reasons)):
            progress.update()
            item, known = encoded.item, encoded.item.path in self.states
            reason = encoded.reason or self.reasons.get(encoded.digest)
            if reason is not None:
                self.changes.bad(reason, item.path)
                if reason not in PASSING:
                    damaged.append(_row(encoded) | {"reason": reason})
            elif encoded.columns is not None:
                self.changes.changed += known
                self.changes.new += not known
                rows.append(_row(encoded) | encoded.columns)
            elif item.mtime_ns is None and known and self.states[item.path].digest == encoded.digest:
                self.changes.unchanged += 1  # of a data set, where only the contents tell
            else:
                to_copy.append(encoded)
            if len(rows) + len(to_copy) + len(damaged) >= ROWS_PER_COMMIT:
                commit()
        commit()
        return lost

    def _copy(self, batch: Sequence[Encoded], rows: list[dict]) -> list[Item]:
        """Adds the rows of pictures whose contents are in the index; returns the items for which they are not."""
        if not batch:
            return []
        found = self.store.copies(sorted({self.where[encoded.digest] for encoded in batch}))
        for encoded in batch:
            if copy := found.get(encoded.digest):
                self.changes.copied += 1
                rows.append(_row(encoded) | copy)
        return [encoded.item for encoded in batch if encoded.digest not in found]

    def _write(self, rows: Sequence[dict], damaged: Sequence[dict]) -> None:
        self.store.write(rows)
        self.store.write(damaged, damaged=True)
        # What was of the other kind before. A run that is killed here does it when it is started again.
        mended = [row["path"] for row in rows if row["path"] in self.damaged_states]
        broken = [row["path"] for row in damaged if row["path"] in self.states]
        self.store.delete(mended, self.store.damaged)
        self.store.delete(broken, self.store.pictures)
        self.where |= {row["digest"]: row["path"] for row in rows}


def _row(encoded: Encoded) -> dict:
    item = encoded.item
    return {"path": item.path, "size": item.size, "mtime_ns": item.mtime_ns, "digest": encoded.digest}
