"""Search in pictures of one's own: by words in any language, or by a picture."""

try:
    import lancedb  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "search needs the package lancedb; install it with pip install 'ccrk[search]'"
    ) from error

from ccrk.search.index import PictureIndex
from ccrk.search.lance import CCRKEmbeddings

__all__ = ["CCRKEmbeddings", "PictureIndex"]
