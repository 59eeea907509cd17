"""CCRK: image-text retrieval that answers equally well in every language. The public names, in one place."""

from configuration_ccrk import CCRKConfig
from modeling_ccrk import CCRKForImageTextRetrieval, CCRKForPreTraining, CCRKModel
from processing_ccrk import CCRKProcessor, normalize_caption

__all__ = [
    "CCRKConfig",
    "CCRKForImageTextRetrieval",
    "CCRKForPreTraining",
    "CCRKModel",
    "CCRKProcessor",
    "normalize_caption",
]
