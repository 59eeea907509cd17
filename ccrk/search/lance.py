"""`CCRKEmbeddings`: the models that search here, as an embedding function of LanceDB; docs/search.md shows it."""

from collections.abc import Sequence

import numpy as np
from lancedb.embeddings import EmbeddingFunction, register
from pydantic import PrivateAttr

from ccrk.encoders import Encoder, encode_captions_in, load_encoder
from ccrk.search.query import Query, as_query, check_text
from data_scripts.images import read_image


@register("ccrk")
class CCRKEmbeddings(EmbeddingFunction):
    """Embeds text in any language and pictures: L2-normalised, so that `dot` and `cosine` rank alike.

    A string is a picture where it names a file, or looks as if; any other string is a text. Bytes, `pathlib.Path` and
    PIL images are pictures.

    Args:
        name: folder or Hub id of a CCRK or a dual encoder.
        batch_size: pictures or texts encoded at a time.
        language: of all texts, where the model needs it.
    """

    name: str
    batch_size: int = 64
    language: str | None = None
    max_retries: int = 0  # nothing here gets better by waiting
    _encoder: Encoder | None = PrivateAttr(default=None)

    @property
    def encoder(self) -> Encoder:
        """The model. It is opened when it is first needed."""
        if self._encoder is None:
            self._encoder = load_encoder(self.name, 0, bf16=False)
        return self._encoder

    def ndims(self) -> int:
        """Numbers in a vector."""
        return len(self.compute_query_embeddings("a dog")[0])

    def compute_query_embeddings(self, query: Query, *args, **kwargs) -> list[np.ndarray]:
        """One vector (P,), in a list. ValueError where the query holds nothing, or is no picture."""
        return self._embed([query])

    def compute_source_embeddings(self, sources: Sequence[Query], *args, **kwargs) -> list[np.ndarray]:
        """A vector (P,) for each. ValueError as above."""
        return self._embed(self.sanitize_input(sources))

    def _embed(self, queries: Sequence[Query]) -> list[np.ndarray]:
        queries = [as_query(query) if isinstance(query, str) else query for query in queries]
        vectors: list[np.ndarray] = [np.empty(0)] * len(queries)
        for is_text in (True, False):
            numbers = [number for number, query in enumerate(queries) if isinstance(query, str) == is_text]
            for start in range(0, len(numbers), self.batch_size):
                batch = numbers[start : start + self.batch_size]
                if is_text:
                    texts = [check_text(queries[number]) for number in batch]
                    encoded = encode_captions_in(self.encoder, texts, self.language)
                else:
                    encoded = self.encoder.encode_images([read_image(queries[number]) for number in batch])
                for number, vector in zip(batch, encoded["embeds"].float().cpu().numpy(), strict=True):
                    vectors[number] = vector
        return vectors
