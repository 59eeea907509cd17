"""Search in pictures of one's own: by words in any language, or by a picture."""

from data_scripts.cli import how_to_install

try:
    import lancedb  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(f"search needs the package lancedb; {how_to_install('search')}") from error

from ccrk.search.index import PictureIndex
from ccrk.search.lance import CCRKEmbeddings

__all__ = ["CCRKEmbeddings", "PictureIndex"]
