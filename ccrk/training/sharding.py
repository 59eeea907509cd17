"""Parameters that FSDP2 or DeepSpeed spreads over processes: what training must know of it."""

import contextlib
import math
from collections.abc import Iterator

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from modeling_ccrk import TEMPERATURE_RANGE, CCRKPairModel


def check_fsdp(plugin: FullyShardedDataParallelPlugin, model: nn.Module) -> None:
    """
    Raises ValueError where FSDP would train the model otherwise than one process does, or save it in pieces. Names the
    layers that are gathered one at a time, where the launch file names none.
    """
    if plugin.fsdp_version != 2:
        raise ValueError("FSDP is version 1; set fsdp_version: 2, as configs/accelerate/fsdp2.yaml does")
    if not isinstance(model, CCRKPairModel):
        raise ValueError(
            f"FSDP trains CCRK models without adapters, not a {type(model).__name__}; --deepspeed "
            "configs/deepspeed/zero3.json spreads parameters too"
        )
    if "FULL_STATE_DICT" not in str(plugin.state_dict_type):
        raise ValueError(
            f"fsdp_state_dict_type {plugin.state_dict_type} saves pieces that nothing else opens; set FULL_STATE_DICT"
        )
    if plugin.cpu_ram_efficient_loading:
        raise ValueError("fsdp_cpu_ram_efficient_loading leaves parts of the model without weights; set it to false")
    if plugin.transformer_cls_names_to_wrap is None:
        # Embeddings are in the root: it shares theirs with the LM head.
        there = {type(module).__name__ for module in model.modules()}
        layers = (name for name in model._no_split_modules if not name.endswith("Embeddings"))
        plugin.transformer_cls_names_to_wrap = [name for name in layers if name in there]


@contextlib.contextmanager
def embeddings_in_root(model: nn.Module) -> Iterator[None]:
    """
    Inside, accelerate sees no embeddings of the model, which it would spread by themselves: the LM head's bias, which
    is its decoder's as well, would then be in two groups.
    """
    names = ("get_input_embeddings", "get_output_embeddings")
    for name in names:
        setattr(model, name, lambda: None)
    try:
        yield
    finally:
        for name in names:
            delattr(model, name)


@contextlib.contextmanager
def all_parameters(model: nn.Module, reshard_after_forward: bool) -> Iterator[None]:
    """
    Inside, every process has all parameters of a model that FSDP has spread: parts of it may be called by themselves,
    and by each process as often as it has work.

    Args:
        reshard_after_forward: of the layers in training.
    """
    root, *layers = [module for module in model.modules() if isinstance(module, FSDPModule)]
    root.set_reshard_after_forward(False)
    for module in (root, *layers):
        module.unshard()
    try:
        yield
    finally:
        # Backward would gather ahead in the order of these forwards, which differs between processes, and hang.
        root.reset_iter_state()  # frees them, too
        for layer in layers:
            layer.set_reshard_after_forward(reshard_after_forward, recurse=False)


@contextlib.contextmanager
def accumulating(accelerator: Accelerator, model: nn.Module) -> Iterator[None]:
    """Inside, a backward adds to the gradient, which is neither complete over processes nor applied."""
    if accelerator.distributed_type != DistributedType.DEEPSPEED:
        with accelerator.no_sync(model):
            yield
        return
    # Of DeepSpeed accelerate's backward takes the step as well, where gradients are to be synchronised.
    state = accelerator.gradient_state
    is_complete = state.sync_gradients
    state._set_sync_gradients(False)
    try:
        yield
    finally:
        state._set_sync_gradients(is_complete)


def gathered_scalars(model: nn.Module) -> contextlib.AbstractContextManager:
    """Inside, parameters of one element, such as the temperature, are whole under ZeRO-3 outside of any forward."""
    scalars = [parameter for parameter in model.parameters() if getattr(parameter, "ds_numel", 0) == 1]
    if not scalars:
        return contextlib.nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(scalars)


def without_shards(model: nn.Module) -> nn.Module:
    """
    The model; of one that FSDP has spread, and has made another class of, an empty one of its own class, which saves
    whatever weights it is given.
    """
    if not isinstance(model, FSDPModule):
        return model
    kind = next(kind for kind in type(model).__mro__ if not issubclass(kind, FSDPModule))
    with torch.device("meta"):
        return kind(model.config)


def clamp_master(model: nn.Module) -> None:
    """
    Keeps the temperature in its range where its parameter is made anew in each step from a master copy, which the
    model's own clamp does not reach.
    """
    if isinstance(model, CCRKPairModel):
        parameter, limits = model.ccrk.temperature, TEMPERATURE_RANGE
    else:
        parameter, limits = model.logit_scale, (None, math.log(100))  # as `DualEncoder.embed`
        if getattr(model, "logit_bias", None) is not None:
            return
    if not parameter.requires_grad:
        return
    # Each process clamps its own part: there may be nothing of so small a parameter on some.
    if isinstance(parameter, DTensor):
        parameter.data.to_local().clamp_(*limits)
    elif hasattr(parameter, "ds_id"):  # ZeRO-3
        from deepspeed.utils import safe_get_local_fp32_param, safe_set_local_fp32_param

        safe_set_local_fp32_param(parameter, safe_get_local_fp32_param(parameter).clamp(*limits))
        parameter.ds_tensor.data.clamp_(*limits)
    elif getattr(parameter, "_hp_mapping", None) is not None:  # ZeRO-1 and ZeRO-2
        parameter._hp_mapping.get_hp_fragment().data.clamp_(*limits)
