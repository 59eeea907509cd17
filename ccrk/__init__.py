"""CCRK: image-text retrieval that answers equally well in every language. The public names, in one place.

Importing this module also makes the Auto classes open CCRK checkpoints with the code installed here, without asking
whether to trust the copy that travels with each checkpoint.
"""

import os

import ccrk.own_modules  # noqa: F401  before all others

# Before torch is imported: its notes on classes of torchao are not for users.
os.environ.setdefault("TORCH_LOGS", "-torch.utils._pytree")

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForPreTraining,
    AutoModelForZeroShotImageClassification,
    AutoProcessor,
)

from configuration_ccrk import CCRKConfig
from modeling_ccrk import CCRKForImageTextRetrieval, CCRKForPreTraining, CCRKModel
from processing_ccrk import CCRKProcessor, normalize_caption

__version__ = "0.1.0"

AutoConfig.register(CCRKConfig.model_type, CCRKConfig, exist_ok=True)
AutoModel.register(CCRKConfig, CCRKModel, exist_ok=True)
AutoModelForPreTraining.register(CCRKConfig, CCRKForPreTraining, exist_ok=True)
AutoModelForZeroShotImageClassification.register(CCRKConfig, CCRKModel, exist_ok=True)
AutoProcessor.register(CCRKConfig, CCRKProcessor, exist_ok=True)

__all__ = [
    "CCRKConfig",
    "CCRKForImageTextRetrieval",
    "CCRKForPreTraining",
    "CCRKModel",
    "CCRKProcessor",
    "normalize_caption",
]
