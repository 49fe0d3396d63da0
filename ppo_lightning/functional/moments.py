"""Count, mean and variance of numbers, and of several groups of numbers together."""

from __future__ import annotations

import torch
from torch import Tensor


def exact_dtype(device: torch.device) -> torch.dtype:
    """float64, but where the device has none (Apple's GPUs)."""
    return torch.float32 if device.type == "mps" else torch.float64


def moments_of(x: Tensor) -> Tensor:
    """``(count, mean, variance)`` of all elements, shape ``(3,)``; zeros where there are none.

    The variance is the population's. In ``exact_dtype``, so that counts are exact.
    """
    dtype = exact_dtype(x.device)
    if not x.numel():
        return torch.zeros(3, dtype=dtype, device=x.device)
    variance, mean = torch.var_mean(x, correction=0)
    return torch.stack([torch.full_like(mean, x.numel(), dtype=dtype), mean.to(dtype), variance.to(dtype)])


def pool_moments(groups: Tensor) -> Tensor:
    r"""The moments of ``G`` groups together: ``(G, …, 3)`` becomes ``(…, 3)``.

    .. math::
        m = \sum_g \tfrac{n_g}{n} m_g \qquad v = \sum_g \tfrac{n_g}{n} (v_g + (m_g - m)^2)

    Source: Chan, Golub and LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances"
    (1979). Nothing cancels, as it would in the mean of squares minus the square of the mean.
    """
    count, mean, variance = groups.unbind(-1)
    total = count.sum(0)
    share = count / total.clamp(min=1)
    together = (share * mean).sum(0)
    within_and_between = (share * (variance + (mean - together).square())).sum(0)
    return torch.stack([total, together, within_and_between], dim=-1)
