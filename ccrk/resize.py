"""Takes a model's Swin to pictures of another size, as the paper does between pre-training and fine-tuning."""

import math

import numpy as np
import torch
from scipy.interpolate import RectBivariateSpline
from timm.layers import resample_abs_pos_embed
from torch import Tensor
from transformers import PreTrainedModel


def resize_position_bias(table: Tensor, window_size: int) -> Tensor:
    """
    Interpolates a relative-position-bias table to another window, by the recipe of BEiT.

    The old offsets are laid out from the centre at distances 1, 1 + q, 1 + q + q², … whose last is the new window's
    last (q at most 1.5); between them each head's biases are a cubic spline. Near offsets so keep their biases.

    Args:
        table: ((2·W - 1)², heads), of a window of W x W tokens.
        window_size: side V of the new window.

    Returns: ((2·V - 1)², heads).
    """
    side = math.isqrt(table.shape[0])
    old, new = side // 2, window_size - 1  # the farthest offsets
    if old == new:
        return table

    # The recipe's own bisection: a closer root would move biases by 1e-4.
    low, high = 1.01, 1.5
    while high - low > 1e-6:
        ratio = (low + high) / 2
        if sum(ratio**power for power in range(old)) > new:
            high = ratio
        else:
            low = ratio
    distances = np.cumsum(ratio ** np.arange(old))
    known = np.concatenate([-distances[::-1], [0], distances])
    wanted = np.arange(-new, new + 1)
    biases = table.detach().double().cpu().numpy().reshape(side, side, -1)
    degree = min(3, side - 1)  # a window of 2 has too few offsets for a cubic
    heads = [
        RectBivariateSpline(known, known, bias, kx=degree, ky=degree)(wanted, wanted).ravel()
        for bias in np.moveaxis(biases, -1, 0)
    ]
    return torch.from_numpy(np.stack(heads, axis=1)).to(table)


def resize_image_encoder(model: PreTrainedModel, image_size: int) -> None:
    """
    Makes a CCRK model take pictures of `image_size` pixels, in place; its config follows.

    The attention windows grow with the picture (7 tokens at 224 px, 12 at 384 px), so there are as many as before.
    Absolute positions, where there are any, are interpolated.

    Raises:
        ValueError: the image encoder is not transformers' Swin, or its windows would not be of whole tokens.
    """
    config = model.config.vision_config
    if getattr(config, "image_size", image_size) == image_size:  # timm's do not say, and take what they are built for
        return
    if config.model_type != "swin":
        raise ValueError(
            f"image_size {image_size}: only Swin is resized, and the image encoder is {config.model_type}"
        )
    window_size, rest = divmod(config.window_size * image_size, config.image_size)
    if rest or image_size % config.patch_size or not window_size:
        raise ValueError(
            f"image_size {image_size} does not scale windows of {config.window_size} at {config.image_size} pixels to "
            f"whole ones; take a multiple of {config.image_size // math.gcd(config.image_size, config.window_size)}"
        )
    base = model.base_model
    old = base.vision_model
    state = {
        name: resize_position_bias(tensor, window_size) if name.endswith("relative_position_bias_table") else tensor
        for name, tensor in old.state_dict().items()
    }
    if (positions := state.get("embeddings.position_embeddings")) is not None:
        grid = [image_size // config.patch_size] * 2
        state["embeddings.position_embeddings"] = resample_abs_pos_embed(positions, grid, num_prefix_tokens=0)
    config.image_size, config.window_size = image_size, window_size
    resized = type(old)(config, add_pooling_layer=False).to(old.device, old.dtype).train(old.training)
    resized.load_state_dict(state)
    base.vision_model = resized
