"""Bad input, counted by reason: nothing is dropped in silence, nothing ends a run before there is too much of it."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from data_scripts.captions import report_tags
from data_scripts.cli import InputError, one_line
from data_scripts.images import MISSING, BadImage

logger = logging.getLogger(__name__)

MAX_BAD_FRACTION = 0.05
# Sooner than this the share of bad rows says little: a stream may start with its one bad row.
ROWS_BEFORE_STOPPING = 1000
# Language tags that are told apart, should a file have a new one in every row.
MAX_TAGS = 1000


@dataclass
class Problems:
    """
    Counts what is wrong with a data set's rows while they are read, whether up front or while training.

    `rows` is counted up by whoever reads them; `bad` and `absent` count by reason and log the first of each kind;
    `check` ends a pass. Plain counters: pickle it from a worker or process, and `update` another one with it.

    Args:
        source: what is read, such as "multi30k train"; starts every message.
        max_bad_fraction: the share of rows that may be bad. Absent ones do not count: half a data set on disk is
            smaller, not broken.
        quiet: log nothing; for counts that another one takes over with `update`, or that nobody asked for.
        languages: that were asked for, where captions come with language tags; `tags` counts those in others.
    """

    source: str
    max_bad_fraction: float = MAX_BAD_FRACTION
    rows: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    absences: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)
    quiet: bool = False
    languages: Sequence[str] = ()
    tags: Counter[str] = field(default_factory=Counter)

    def bad(self, reason: str, where: str) -> None:
        """Counts one bad row.

        Args:
            reason: the kind, a few words that are the same for all of it.
            where: file and line (or row) of this one.

        Raises:
            InputError: `max_bad_fraction` of what has been read, and of `ROWS_BEFORE_STOPPING` rows, is exceeded.
        """
        self._count(self.counts, reason, where)
        self._stop_above(self.max_bad_fraction * max(self.rows, ROWS_BEFORE_STOPPING))

    def absent(self, reason: str, where: str) -> None:
        """Counts one row without something that need not be there, such as a photograph that was not downloaded."""
        self._count(self.absences, reason, where)

    def other_language(self, tag: str) -> None:
        """Counts a caption in a language that was not asked for."""
        self.tags[tag if tag in self.tags or len(self.tags) < MAX_TAGS else "others"] += 1

    def total(self) -> int:
        """Everything that was counted, bad or absent."""
        return self.counts.total() + self.absences.total()

    def add_image(self, error: BadImage, where: str) -> None:
        """Counts an image that cannot be used: missing ones as absent, others as bad.

        Raises:
            ValueError: as `bad` does.
        """
        (self.absent if error.reason == MISSING else self.bad)(error.reason, f"{error.where} ({where})")

    def _count(self, counter: Counter[str], reason: str, where: str) -> None:
        self._remember(reason, where)
        counter[reason] += 1

    def _remember(self, reason: str, where: str) -> None:
        if reason not in self.first:
            self.first[reason] = where = one_line(where)  # with names from files
            if not self.quiet:
                logger.warning("%s: %s: %s (the first; others are counted)", self.source, reason, where)

    def check(self) -> None:
        """Raises InputError, with the table, where more than `max_bad_fraction` of the rows are bad."""
        self._stop_above(self.max_bad_fraction * self.rows)

    def _stop_above(self, limit: float) -> None:
        # With a fraction of 1 all rows may be bad: a row of five empty captions then counts five times, and goes on.
        if (bad := self.counts.total()) > limit and self.max_bad_fraction < 1:
            raise InputError(
                f"{self.source}: {bad:,} bad among {self.rows:,} rows, more than max_bad_fraction "
                f"{self.max_bad_fraction:g}; fix the files named here, or raise it\n{self.table()}"
            )

    def update(self, other: "Problems") -> None:
        """Adds another worker's, process's or batch's counts.

        Raises:
            ValueError: as `bad` does.
        """
        self.rows += other.rows
        self.counts += other.counts
        self.absences += other.absences
        self.tags += other.tags
        for reason, where in other.first.items():
            self._remember(reason, where)
        if other.counts:
            self._stop_above(self.max_bad_fraction * max(self.rows, ROWS_BEFORE_STOPPING))

    def table(self) -> str:
        """
        One line per reason, most frequent first: how often, what, and the first of them. One more for all languages
        that were not asked for. Empty without any.
        """
        lines = []
        for counter in (self.counts, self.absences):
            for reason, count in counter.most_common():
                lines.append(f"{count:>11,}  {reason}, first: {self.first[reason]}")
        if self.tags:
            lines.append(f"{self.tags.total():>11,}  {report_tags(self.tags, self.languages)}")
        return "\n".join([f"{self.source}: {self.rows:,} rows, of which", *lines]) if lines else ""

    def report(self) -> None:
        """Logs the table, if there is anything in it."""
        if table := self.table():
            logger.warning(table)
