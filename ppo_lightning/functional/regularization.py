"""Penalties on an actor's means, beside the objective: staying within bounds, and changing little with the input."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ppo_lightning.functional.shapes import check_same_shape


def bounds_loss(mean: Tensor, low: Tensor, high: Tensor) -> Tensor:
    r"""How far means lie outside their bounds, squared.

    .. math::
        L = \operatorname{mean}_b \sum_d \max(\mu_{bd} - \text{high}_d, 0)^2 + \max(\text{low}_d - \mu_{bd}, 0)^2

    Source: rl_games' and ProtoMotions' bounds loss. Keeps a mean where its gradient still reaches the environment,
    which clips actions.

    Args:
        mean: ``(B, D)``.
        low: ``(D,)``, -inf where there is no bound.
        high: ``(D,)``, inf where there is no bound.
    """
    check_same_shape(low=low, high=high, row_of_mean=mean[0])
    outside = (mean - high).relu().square() + (low - mean).relu().square()
    return outside.sum(-1).mean()


def mean_squared_difference(pairs: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Over all elements of all pairs together, each pair of one shape: a scalar, at least float32."""
    squares = []
    for first, second in pairs:
        check_same_shape(first=first, second=second)
        dtype = torch.promote_types(first.dtype, torch.float32)
        squares.append((first.to(dtype) - second.to(dtype)).square())
    return torch.stack([square.sum() for square in squares]).sum() / sum(square.numel() for square in squares)


def l2c2_loss(noisy_mean: Tensor, clean_mean: Tensor, input_distance: Tensor) -> Tensor:
    r"""The squared slope of the means between a noisy observation and the clean one.

    .. math::
        L = \frac{\operatorname{mean}((\mu(\tilde s) - \mu(s))^2)}{d + 10^{-8}}

    Source: Kobayashi, "L2C2: Locally Lipschitz Continuous Constraint towards Stable and Smooth Reinforcement Learning"
    (arXiv 2202.07152), in the form of ProtoMotions.

    Args:
        noisy_mean: ``(B, D)``.
        clean_mean: ``(B, D)``.
        input_distance: ``d``, the :func:`mean_squared_difference` of the observations; has no gradient here.
    """
    return mean_squared_difference([(noisy_mean, clean_mean)]) / (input_distance.detach() + 1e-8)
