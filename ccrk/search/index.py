"""`PictureIndex`: pictures that are found by words in any language, or by other pictures."""

import logging
import os
from collections.abc import Callable, Sequence
from functools import cached_property, partial

import datasets
import pyarrow as pa
import torch
from PIL import Image
from torch import Tensor

import data_scripts
from ccrk.encoders import CCRKEncoder, Encoder, kind_of_encoder, load_encoder, make_encoder
from ccrk.search.machines import BATCH_SIZE, ManyMachines, OneMachine, stored_side
from ccrk.search.query import Filter, Found, Query, combine, encode_again, nearest, ranked, rerank_found
from ccrk.search.store import Store
from ccrk.search.update import Changes, update

logger = logging.getLogger(__name__)

BLANK = Image.new("RGB", (64, 64))  # to see what a model returns


class PictureIndex:
    """An index on disk, and the model that its vectors are of.

    ```python
    index = PictureIndex("photos.index", model="outputs/demo/finetune")
    index.update("photos")
    for found in index.search("ein Hund am Strand", k=5):
        print(found.rank, found.score, found.path)
    ```

    Args:
        location: a folder, or the URL of an object store that Lance knows.
        model: folder or Hub id of a CCRK or a dual encoder. By default the one that the index was made with.
        bf16: weights of a new index's model in bf16.
        keep_states: a new index keeps what the model's fusion encoder sees of each picture, in half precision, so
            that re-ranking encodes no picture.

    Raises:
        ValueError: there is no index and no model to make one with, or the index is of another model, or of one
            without a fusion encoder, or was made without the states that it is to keep.
    """

    def __init__(
        self, location: str | os.PathLike, model: str | None = None, bf16: bool = False, keep_states: bool = False
    ):
        self.location = os.fspath(location)
        self.store: Store | None = None
        if Store.exists(self.location):
            self.store = Store(self.location)
            settings = self.store.settings
            self.model, self.bf16 = model or settings["model"], settings["dtype"] == "bf16"
            if model is not None:
                self._check_fingerprint(self.encoder)
            if keep_states and not self.store.states_shape:
                raise ValueError(f"{self.location} was made without states; remove --keep_states, or make another")
        elif model is None:
            self.store = Store(self.location)  # which says why not
        else:
            self.model, self.bf16 = model, bf16
        self.keep_states = keep_states or (self.store is not None and self.store.states_shape is not None)

    @cached_property
    def encoder(self) -> Encoder:
        """The model, for vectors alone. It is opened when it is first needed."""
        self._check_model()
        encoder = load_encoder(self.model, 0, self.bf16)
        if self.store is not None:
            self._check_fingerprint(encoder)
        return encoder

    @cached_property
    def can_rerank(self) -> bool:
        """Whether the model has a fusion encoder."""
        self._check_model()
        return kind_of_encoder(self.model) is CCRKEncoder

    @cached_property
    def reranker(self) -> CCRKEncoder:
        """The model with its fusion encoder; ValueError where it has none."""
        if not self.can_rerank:
            raise ValueError(f"{self.model} has no fusion encoder to re-rank with; remove --rerank, --keep_states")
        encoder = load_encoder(self.model, 1, self.bf16)
        self.encoder = make_encoder(encoder.model, encoder.processor)  # the same weights, for vectors alone
        if self.store is not None:
            self._check_fingerprint(self.encoder)
            if self.store.states_shape:
                (shape,) = {tuple(states.shape) for states in encoder.encode_images([BLANK])["states"]}
                if shape != self.store.states_shape:
                    raise ValueError(
                        f"{self.location} is damaged: it keeps states of shape {self.store.states_shape}, and its "
                        f"model has {shape}; make another index"
                    )
        return encoder

    def _check_model(self) -> None:
        """Raises ValueError where the folder of the index's own model does not exist."""
        if self.store is not None and self.model == self.store.settings["model"]:
            if os.path.isabs(self.model) and not os.path.isdir(self.model):
                raise ValueError(
                    f"{self.location} was made with {self.model}, which is gone; give its new place with --model"
                )

    def _check_fingerprint(self, encoder: Encoder) -> None:
        if encoder.fingerprint != self.store.settings["fingerprint"]:
            raise ValueError(
                f"{self.location} was made with {self.store.settings['model']} as it was then, and {self.model} is "
                "another model; search by that one, or make another index"
            )

    def update(
        self,
        source: str | os.PathLike,
        load: Callable[[], datasets.Dataset] | None = None,
        batch_size: int = BATCH_SIZE,
        workers: int | None = None,
        ray: str | None = None,
        allow_deletions: bool = False,
    ) -> Changes:
        """Makes the index one of the source's pictures as they are now. After a run that was killed it goes on.

        Args:
            source: a folder of pictures, at any depth, or the name of a data set.
            load: its rows where it is a data set; by default those of its split "test".
            batch_size: pictures encoded at a time.
            workers: threads that read and decode; one for each core by default.
            ray: address of a cluster that does all this instead; see `ccrk.search.machines.ManyMachines`.
            allow_deletions: delete what the source no longer has even where that is a whole folder, or more than a
                tenth of the index.

        Raises:
            ValueError: see `ccrk.search.update.update`; or another process is writing to the index.
        """
        source = os.fspath(source)
        encoder = self.reranker if self.keep_states else self.encoder
        with Store.locked(self.location):
            if self.store is None:
                settings = {"model": os.path.abspath(self.model) if os.path.isdir(self.model) else self.model}
                settings |= {"fingerprint": self.encoder.fingerprint, "dtype": "bf16" if self.bf16 else "fp32"}
                (embed,), *states = encoder.encode_images([BLANK]).values()
                self.store = Store.create(
                    self.location, settings, len(embed), tuple(states[0].shape[1:]) if states else None
                )
            load = load or (lambda: data_scripts.load(source, split="test"))
            if ray is None:
                machines = OneMachine(encoder, batch_size, workers)
            else:
                open_encoder = partial(_open, self.model, self.bf16, self.keep_states, self.encoder.fingerprint)
                machines = ManyMachines(ray, open_encoder, stored_side(encoder), batch_size)
            changes = update(self.store, source, load, machines, allow_deletions)
            vars(self).pop("contents", None)
            if self.store.is_approximate:
                logger.info("the approximate search finds %.3f of the exact ten best", self.store.recall())
            return changes

    def search(self, query: Query, k: int = 20, rerank: int = 0, chosen: Filter = Filter(), **others) -> list[Found]:
        """The `k` pictures that suit a query best.

        Args:
            query: text, or a picture: a `pathlib.Path`, the bytes of a file, a PIL image.
            rerank: so many candidates, `k` at least, are scored again by the model's fusion encoder.
            chosen: which pictures to look among.
            others: `add` and `subtract`, further queries, and the `language` of texts where the model needs it; see
                `ccrk.search.query.combine`.

        Raises:
            ValueError: the query holds nothing, or `rerank` is asked for where there are no words to score by, or of
                a model without a fusion encoder.
        """
        if rerank and not (isinstance(query, str) and not any(others.get(name) for name in ("add", "subtract"))):
            raise ValueError(
                "re-ranking compares pictures with one text; remove it for pictures, sums and differences"
            )
        reranker = self.reranker if rerank else None
        found = self.nearest(combine(self.encoder, query, **others), max(k, rerank), chosen)
        if rerank:
            found = rerank_found(reranker, query, found, self._image_states)
        return found[:k]

    def _image_states(self, ids: Sequence[str]) -> dict[str, Tensor]:
        if self.store.states_shape:
            return self.store.states_of(ids)
        return encode_again(self.reranker, self.store.jpegs(ids))

    def nearest(self, vector: Tensor, k: int, chosen: Filter = Filter()) -> list[Found]:
        """The `k` pictures whose vectors are closest to one, (P,) and L2-normalised."""
        self.refresh()
        if len(vector) != self.store.width:
            raise ValueError(
                f"{self.location} has vectors of {self.store.width} numbers, and the query's has {len(vector)}; make "
                "another index with this model"
            )
        if self.store.is_approximate:
            return ranked(Found(**row, rank=0) for row in self.store.nearest(vector.numpy(), k, chosen.sql()))
        return nearest(self.contents[0], self.scores(vector), k, chosen)

    def scores(self, vector: Tensor) -> Tensor:
        """Cosine of every picture of `contents`, (N,)."""
        # By NumPy: torch's product of a matrix and one vector takes three times as long as reading the memory does.
        return torch.from_numpy(self.contents[1].numpy() @ vector.numpy())

    @cached_property
    def contents(self) -> tuple[pa.Table, Tensor]:
        """`id`, `path` and `mtime_ns` of every picture, and the vectors (N, P): 1 GB for a million of width 256."""
        return self.store.vectors()

    def refresh(self) -> None:
        """Takes notice of what another process has written to the index."""
        if self.store.refresh():
            vars(self).pop("contents", None)


def _open(model: str, bf16: bool, keep_states: bool, fingerprint: str) -> Encoder:
    """The model on another machine; ValueError where it is another one there."""
    encoder = load_encoder(model, int(keep_states), bf16)
    alone = make_encoder(encoder.model, encoder.processor) if keep_states else encoder
    if alone.fingerprint != fingerprint:
        raise ValueError(f"{model} is another model there than here; give all machines the same one")
    return encoder
