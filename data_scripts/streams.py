"""A stream to train on: every row once in each pass over all processes and workers, and a place to go on from."""

from collections.abc import Iterator
from dataclasses import dataclass

import datasets
import torch
from datasets.distributed import split_dataset_by_node

from data_scripts.cli import InputError
from data_scripts.sources import stream_rows

SHUFFLE_BUFFER = 1000  # rows, of each reader; the order of shards is drawn as well


@dataclass(eq=False)
class EndlessRows(torch.utils.data.IterableDataset):
    """
    The rows of a stream, pass after pass; each comes with its `pass`, a number from 0.

    Each worker of each process reads a share: whole shards, or where there are fewer shards than readers, every
    N-th row. No share ends, so processes with unlike shares go on together. What a reader gives follows from seed and
    share alone: a run goes on exactly where it was by passing over as many rows, undecoded.

    Args:
        rows: with pictures undecoded.
        batch_size: rows that the data loader takes at a time.
        process, processes: number of this process, and how many there are.
        seed: of the order of rows, which is another in each pass.
        start: batches that this process has had before.
    """

    rows: datasets.IterableDataset
    batch_size: int
    process: int = 0
    processes: int = 1
    seed: int = 0
    start: int = 0

    @property
    def features(self) -> datasets.Features:
        return self.rows.features

    @property
    def _fingerprint(self) -> str:
        return self.rows._fingerprint

    def __iter__(self) -> Iterator[dict]:
        """Raises InputError where this reader has no rows."""
        worker = torch.utils.data.get_worker_info()
        workers = 1 if worker is None else worker.num_workers
        # A data loader takes batches from its workers in turn, and begins with the first.
        turn = self.start % workers if worker is None else (worker.id + self.start) % workers
        to_skip = (self.start - turn + workers - 1) // workers * self.batch_size
        share = self._share(self.process * workers + turn, self.processes * workers)
        number = 0
        while True:
            share.set_epoch(number)
            count = 0
            for count, row in enumerate(stream_rows(share), start=1):
                if count > to_skip:
                    yield row | {"pass": number}
            if not count:
                raise InputError("a reader of the stream has no row; train with fewer workers or processes")
            number += 1 + max(0, to_skip // count - 1)
            to_skip = to_skip % count if to_skip >= count else 0

    def _share(self, reader: int, readers: int) -> datasets.IterableDataset:
        if self.rows.num_shards >= readers:
            share = self.rows.shard(readers, reader, contiguous=False)
        else:
            share = split_dataset_by_node(self.rows, reader, readers)
        return share.shuffle(self.seed, buffer_size=SHUFFLE_BUFFER)
