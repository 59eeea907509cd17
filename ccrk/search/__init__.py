"""Search in pictures of one's own: by words in any language, or by a picture."""

from ccrk.search.index import PictureIndex

__all__ = ["PictureIndex"]
