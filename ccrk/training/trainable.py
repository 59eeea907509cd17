"""Which parts of a model are trained: adapters in place of all of it, or all but what is frozen."""

import logging
from collections.abc import Sequence

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import is_peft_available

from modeling_ccrk import CCRKPairModel

logger = logging.getLogger(__name__)

# Names of the modules of an encoder, in CCRK and in the dual encoders of transformers.
FROZEN = {
    "image": ("vision_model", "vision_projection", "visual_projection"),
    "text": ("text_model", "text_projection"),
}


def add_adapters(model: torch.nn.Module, rank: int):
    """
    The model as a `peft.PeftModel`: LoRA on linear layers (of CCRK those of text and fusion), all else frozen. Trained
    as they are: temperature and bias of two encoders; `nn.MultiheadAttention`, which reads its weights past adapters;
    and what is behind the encoders of a SentenceTransformer.
    """
    if not is_peft_available():
        raise ValueError("use_peft needs the package peft; install it with pip install peft")
    from peft import LoraConfig, get_peft_model

    attention = [name for name, module in model.named_modules() if isinstance(module, torch.nn.MultiheadAttention)]
    linear = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    linear = {name: module for name, module in linear.items() if name.rpartition(".")[0] not in attention}
    whole = list(attention)
    if isinstance(model, CCRKPairModel):  # the same layers of its base model have no `ccrk.` before them
        targets, whole = r"(ccrk\.)?(text_model\.encoder|fusion_encoder)\..+\.(query|key|value|dense)", []
    elif isinstance(model, PreTrainedModel):
        targets = list(linear)
    else:
        within = {id(module) for module in model.used_of_towers()}
        targets = [name for name, module in linear.items() if id(module) in within]
        whole += [name for name, module in linear.items() if id(module) not in within]
    options = {"target_modules": targets, "modules_to_save": whole or None}
    adapted = get_peft_model(model, LoraConfig(r=rank, lora_alpha=2 * rank, **options))
    scale = [name for name, _ in model.named_parameters(recurse=False) if name in ("logit_scale", "logit_bias")]
    for name in scale:
        model.get_parameter(name).requires_grad = True
    in_full = f", and in full {' '.join([*scale, *whole])}" if scale or whole else ""
    logger.info("LoRA: adapters are trained%s; all else is frozen", in_full)
    return adapted


def freeze(model: torch.nn.Module, encoders: Sequence[str]) -> None:
    """
    Takes the parameters of the image or the text encoder out of training, projection included where it came with the
    checkpoint.

    Raises:
        ValueError: another name, the model calls its encoders otherwise, or nothing is left to train.
    """
    if unknown := sorted(set(encoders) - set(FROZEN)):
        raise ValueError(f"freeze takes {' and '.join(FROZEN)}, not {unknown[0]!r}")
    for encoder in encoders:
        if getattr(model, "has_routes", False):  # of a SentenceTransformer
            own = list(nn.ModuleList(model.tower(encoder)).parameters())
            for module in model.tower(encoder):  # its Dropout has no parameters, and `keep_still` passes it by
                module.register_forward_pre_hook(_evaluate)
        else:
            names = [f".{part}." for part in FROZEN[encoder]]
            own = [p for name, p in model.named_parameters() if any(part in f".{name}" for part in names)]
        if not own:
            raise ValueError(f"freeze {encoder}: a {type(model).__name__} has no {' or '.join(FROZEN[encoder])}")
        for parameter in own:
            parameter.requires_grad = False
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(f"freeze {' '.join(encoders)} leaves nothing to train")


def keep_still(model: torch.nn.Module) -> None:
    """
    Keeps every part that has nothing to train in evaluation mode, which training would put into its own: dropout is
    off there, and no batch norm's statistics move.
    """
    parameters = list(model.parameters())
    if parameters and not any(parameter.requires_grad for parameter in parameters):
        model.register_forward_pre_hook(_evaluate)
    else:
        for part in model.children():
            keep_still(part)


def _evaluate(module: torch.nn.Module, *_) -> None:
    module.eval()
