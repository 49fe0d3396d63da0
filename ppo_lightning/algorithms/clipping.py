"""The clipping of gradients, beside what Lightning does itself."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.precision import DoublePrecision, MixedPrecision, Precision
from torch import Tensor, nn
from torch.optim import Optimizer

from ppo_lightning.core.host import is_on_host

MOST = 2**18
"""Numbers of all gradients, beyond which torch clips as fast."""


def is_plain(plugin: Precision) -> bool:
    """Whether gradients are what they are: other precisions scale them, or have parts of them on other ranks."""
    return type(plugin) in (Precision, DoublePrecision)


def clip_separately(
    module: nn.Module, critic: Sequence[nn.Parameter], clip_val: float | None, critic_clip_val: float, by_norm: bool
) -> None:
    """Clip the gradients of the critic's own parameters by one value, and all others by another (None: not at all)."""
    own = set(critic)
    actor = [parameter for parameter in module.parameters() if parameter not in own]
    clip = nn.utils.clip_grad_norm_ if by_norm else nn.utils.clip_grad_value_
    if clip_val:
        clip(actor, clip_val)
    clip(critic, critic_clip_val)


def clip_in_bfloat16(trainer: Trainer, optimizer: Optimizer, clip_val: float | None, algorithm: str | None) -> bool:
    """Clip the gradients where Lightning refuses a fused optimiser without need; False where it isn't so.

    bfloat16 needs no loss scaling, so there a fused optimiser may be clipped too.
    """
    plugin = trainer.precision_plugin
    if not (isinstance(plugin, MixedPrecision) and plugin.scaler is None and clip_val):
        return False
    if (algorithm or "norm") == "norm":
        plugin.clip_grad_by_norm(optimizer, clip_val)
    else:
        plugin.clip_grad_by_value(optimizer, clip_val)
    return True


def clip_on_host(trainer: Trainer, optimizer: Optimizer, clip_val: float | None, algorithm: str | None) -> bool:
    """Clip the norm of a small network's gradients on the CPU, in half the time of torch; False where it isn't so.

    As ``torch.nn.utils.clip_grad_norm_`` does it, whose result this is but for rounding.
    """
    by_norm = (algorithm or trainer.gradient_clip_algorithm or "norm") == "norm"
    is_the_trainers = by_norm and clip_val == trainer.gradient_clip_val  # Lightning has a word to say of others
    if not (clip_val and clip_val > 0 and is_the_trainers and is_plain(trainer.precision_plugin)):
        return False
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not all(map(_is_dense, gradients)) or sum(gradient.numel() for gradient in gradients) > MOST:
        return False
    arrays = [gradient.numpy() for gradient in _in_one_piece(gradients)]
    with np.errstate(all="ignore"):
        # no product of BLAS, which gives other bits with other numbers of threads
        norm = math.sqrt(sum(float(np.add.reduce(np.square(array), axis=None)) for array in arrays))
    if not math.isfinite(norm):
        return False
    factor = clip_val / (norm + 1e-6)
    if factor < 1:
        for array in arrays:
            array *= array.dtype.type(factor)
    return True


def _in_one_piece(gradients: Sequence[Tensor]) -> Sequence[Tensor]:
    """The tensor that they are the parts of, as those of a ``HostPass`` are; themselves where there is none."""
    whole = gradients[0]._base if gradients else None
    if whole is None or any(gradient._base is not whole for gradient in gradients):
        return gradients
    return [whole] if whole.numel() == sum(gradient.numel() for gradient in gradients) else gradients


def _is_dense(gradient: Tensor) -> bool:
    is_dense = type(gradient) is Tensor and gradient.layout is torch.strided
    return is_dense and is_on_host(gradient) and not gradient.requires_grad
