"""Reading, decoding and encoding pictures: in threads of this process, or by Ray on many machines."""

import logging
import os
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from ccrk.encoders import Encoder, input_size
from ccrk.search.pictures import STORED_SIDE, Item, Prepared, prepare
from ccrk.search.store import STATES
from data_scripts.cli import how_to_install

BATCH_SIZE = 64


class Encoded(NamedTuple):
    """What became of a picture: it is encoded; or its contents are known, or it is damaged."""

    item: Item
    digest: str | None  # of the contents
    columns: dict[str, Any] | None = None  # of the index: `vector`, `jpeg`, and `states` where they are kept
    reason: str | None = None


# Items, and digests of contents that are known already → each item, in any order.
Machines = Callable[[Sequence[Item], Collection[str]], Iterable[Encoded]]


def stored_side(encoder: Encoder) -> int:
    """Pixels that the shorter side of a picture keeps, for the model and in the index."""
    return max(STORED_SIDE, input_size(encoder.inputs.image_processor))


def encode(encoder: Encoder, batch: Sequence[Prepared]) -> list[Encoded]:
    """Pictures by the model; image states with them where it gives any.

    Raises:
        ValueError: an embedding is not finite, or image states are not in half precision.
    """
    encoded = encoder.encode_images([prepared.picture for prepared in batch])
    columns = {"vector": encoded["embeds"].float().cpu()}
    if STATES in encoded:
        columns[STATES] = encoded[STATES].half().flatten(1).cpu()
    for name, values in columns.items():
        finite = torch.isfinite(values).all(dim=1) & (values != 0).any(dim=1)
        if not finite.all():
            path = batch[int(finite.int().argmin())].item.path
            if name == STATES:
                raise ValueError(f"the image states of {path} do not fit half precision; remove --keep_states")
            raise ValueError(
                f"the embedding of {path} is not finite, or zero; look for the overflow in the model, or use fp32"
            )
    rows = [{"jpeg": prepared.jpeg} for prepared in batch]
    for name, values in columns.items():
        for row, value in zip(rows, values.numpy(), strict=True):
            row[name] = value.tobytes() if name == STATES else value
    return [Encoded(prepared.item, prepared.digest, row) for prepared, row in zip(batch, rows, strict=True)]


def _as_it_is(prepared: Prepared) -> Encoded:
    return Encoded(prepared.item, prepared.digest, reason=prepared.reason)


class OneMachine:
    """Threads read and decode, some batches ahead of the model.

    Args:
        batch_size: pictures encoded at a time. Three times as many, decoded, are held at most.
        workers: threads; one for each core by default.
    """

    def __init__(self, encoder: Encoder, batch_size: int = BATCH_SIZE, workers: int | None = None):
        self.encoder, self.batch_size, self.workers = encoder, batch_size, workers or os.cpu_count() or 1

    def __call__(self, items: Sequence[Item], known: Collection[str]) -> Iterator[Encoded]:
        batch: list[Prepared] = []
        for prepared in self._prepared(items, known):
            if prepared.picture is None:
                yield _as_it_is(prepared)
                continue
            batch.append(prepared)
            if len(batch) == self.batch_size:
                yield from encode(self.encoder, batch)
                batch.clear()
        if batch:
            yield from encode(self.encoder, batch)

    def _prepared(self, items: Sequence[Item], known: Collection[str]) -> Iterator[Prepared]:
        side = stored_side(self.encoder)
        waiting: deque = deque()
        pool = ThreadPoolExecutor(self.workers)
        try:
            for item in items:
                waiting.append(pool.submit(prepare, item, known, side))
                if len(waiting) > 2 * self.batch_size:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


class ManyMachines:
    """Ray Data: tasks on all machines read and decode, and an actor for each GPU encodes.

    The rows come back to this process, which alone writes the index: what has arrived is kept whatever ends, and Ray
    repeats the batches of a worker that is lost. Every machine has to see the source and the model by the same names.

    Args:
        address: of a cluster; "auto" for the one that this machine is of, "local" for one made of this machine alone.
        open_encoder: opens the model, in each actor.
        side: see `stored_side`.
        batch_size: pictures encoded at a time.
        encoders: actors; by default one for each GPU of the cluster, or for each two of its cores where it has none.

    Raises:
        ValueError: Ray is not installed, or there is no cluster.
    """

    def __init__(
        self,
        address: str,
        open_encoder: Callable[[], Encoder],
        side: int,
        batch_size: int = BATCH_SIZE,
        encoders: int | None = None,
    ):
        try:
            # Nothing is told to Ray's makers unless somebody asks for it.
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            import ray
            import ray.data

            logging.getLogger("ray").setLevel(logging.ERROR)
        except ImportError as error:
            raise ValueError(f"--ray needs the package ray; {how_to_install('ray')}") from error
        if not ray.is_initialized():
            try:
                ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise ValueError(
                    f"this machine is of no Ray cluster at {address}; start one with ray start --head, or join one "
                    "with ray start --address"
                ) from error
        self.open_encoder, self.side, self.batch_size, self.encoders = open_encoder, side, batch_size, encoders

    def __call__(self, items: Sequence[Item], known: Collection[str]) -> Iterator[Encoded]:
        import ray

        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = context.print_on_execution_start = False
        batches = [items[start : start + self.batch_size] for start in range(0, len(items), self.batch_size)]
        if not batches:
            return
        gpus, cores = (int(ray.cluster_resources().get(name, 0)) for name in ("GPU", "CPU"))
        encoders = min(self.encoders or gpus or max(1, cores // 2), len(batches))
        # Packed here: Ray would look into each list for a table. Nothing is unpacked but what this run has packed.
        rows = [{"number": number, "batch": ray.cloudpickle.dumps(batch)} for number, batch in enumerate(batches)]
        prepared = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
            _Prepare,
            fn_constructor_args=(ray.put(frozenset(known)), self.side),
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=max(1, cores - encoders)),
        )
        encoded = prepared.map(
            _Encode,
            fn_constructor_args=(self.open_encoder,),
            compute=ray.data.ActorPoolStrategy(size=encoders),
            num_gpus=1 if gpus else 0,
        )
        try:
            for row in encoded.iter_rows():
                batch = batches[row["number"]]
                for item, rest in zip(batch, ray.cloudpickle.loads(row["batch"]), strict=True):
                    yield Encoded(item, *rest)
        except ray.exceptions.RayError as error:
            raise ValueError(
                f"Ray gave up: {str(error).strip().splitlines()[-1]}; run the same command to continue"
            ) from error


class _Prepare:
    """A batch's items, read and decoded."""

    def __init__(self, known, side: int):
        import ray

        self.known, self.side = ray.get(known), side

    def __call__(self, row: dict) -> dict:
        import ray

        batch = [prepare(item, self.known, self.side) for item in ray.cloudpickle.loads(row["batch"])]
        # What reads them is not needed again, and may hold a data set.
        batch = [replace(prepared, item=prepared.item._replace(read=None)) for prepared in batch]
        return row | {"batch": ray.cloudpickle.dumps(batch)}


class _Encode:
    """What becomes of a batch's items, in their order."""

    def __init__(self, open_encoder: Callable[[], Encoder]):
        self.encoder = open_encoder()

    def __call__(self, row: dict) -> dict:
        import ray

        batch = ray.cloudpickle.loads(row["batch"])
        pictures = [prepared for prepared in batch if prepared.picture is not None]
        found = iter(encode(self.encoder, pictures) if pictures else [])
        encoded = [_as_it_is(prepared) if prepared.picture is None else next(found) for prepared in batch]
        return row | {"batch": ray.cloudpickle.dumps([tuple(each)[1:] for each in encoded])}
