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


def moments_of_rows(x: Tensor) -> Tensor:
    """``(count, mean, variance)`` of each element over rows: ``(B, *shape)`` becomes ``(*shape, 3)``.

    As :func:`moments_of`; zeros where there are no rows.
    """
    x = x.to(exact_dtype(x.device))
    if not len(x):
        return x.new_zeros(*x.shape[1:], 3)
    variance, mean = torch.var_mean(x, dim=0, correction=0)
    return torch.stack([torch.full_like(mean, len(x)), mean, variance], dim=-1)


def pool_moments(groups: Tensor) -> Tensor:
    r"""The moments of ``G`` groups together: ``(G, …, 3)`` becomes ``(…, 3)``.

    .. math::
        m = \sum_g \tfrac{n_g}{n} m_g \qquad v = \sum_g \tfrac{n_g}{n} (v_g + (m_g - m)^2)

    Source: Chan, Golub and LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances"
    (1979). Nothing cancels, as it would in the mean of squares minus the square of the mean.
    """
    count = groups[..., 0]
    return _pool_by_shares(groups, count / count.sum(0).clamp(min=1))


def merge_moments(old: Tensor, new: Tensor, weight: float | None = None) -> Tensor:
    r"""The moments ``(…, 3)`` of what was known and what is new.

    .. math::
        m = w\,m_\text{old} + (1 - w)\,m_\text{new} \qquad
        v = w\,v_\text{old} + (1 - w)\,v_\text{new} + w (1 - w)(m_\text{old} - m_\text{new})^2

    Counts add up.

    Args:
        old: ``(…, 3)``; the new replaces it where its count is 0.
        new: ``(…, 3)``; the old stays where its count is 0.
        weight: ``w`` in [0, 1) of an exponential moving average; by default the old's share of the counts, as in
            :func:`pool_moments`.
    """
    old_count, new_count = old[..., 0], new[..., 0]
    share = old_count / (old_count + new_count).clamp(min=1)
    if weight is not None:
        share = torch.full_like(share, weight)
    share = share.masked_fill(old_count == 0, 0).masked_fill(new_count == 0, 1)
    return _pool_by_shares(torch.stack([old, new]), torch.stack([share, 1 - share]))


def _pool_by_shares(groups: Tensor, share: Tensor) -> Tensor:
    """``(G, …, 3)`` groups of which each has a share ``(G, …)``: ``(…, 3)``."""
    count, mean, variance = groups.unbind(-1)
    together = (share * mean).sum(0)
    within_and_between = (share * (variance + (mean - together).square())).sum(0)
    return torch.stack([count.sum(0), together, within_and_between], dim=-1)
