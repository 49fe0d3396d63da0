"""Advantages and value targets from rollouts, all ``(T, N)``: T steps, N environments."""

from __future__ import annotations

import torch
from torch import Tensor

from ppo_lightning.functional.shapes import check_same_shape


def generalized_advantage_estimation(
    rewards: Tensor,
    values: Tensor,
    next_values: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    gamma: float,
    gae_lambda: float,
) -> tuple[Tensor, Tensor]:
    r"""Advantages and returns (Schulman et al., arXiv 1506.02438, equation 16).

    .. math::
        \delta_t = r_t + \gamma\,(1 - \text{terminated}_t)\,V(s'_t) - V(s_t) \qquad
        A_t = \delta_t + \gamma\lambda\,(1 - \text{terminated}_t)(1 - \text{truncated}_t)\,A_{t+1}

    A termination cuts the bootstrap and the trace; a truncation cuts the trace alone, since the episode would have
    gone on from ``s'``.

    Args:
        rewards: ``(T, N)``.
        values: ``V(s_t)``, ``(T, N)``.
        next_values: ``V(s'_t)``, ``(T, N)``, where ``s'`` is the observation that truly followed: an episode's last
            one, not the one after its reset.
        terminated: ``(T, N)`` bool.
        truncated: ``(T, N)`` bool.
        gamma: discount a step.
        gae_lambda: decay of the trace.

    Returns:
        ``(advantages, returns)``, each ``(T, N)``; ``returns = advantages + values``.

    Raises:
        ValueError: shapes differ.
    """
    check_same_shape(
        rewards=rewards, values=values, next_values=next_values, terminated=terminated, truncated=truncated
    )
    continues = (~terminated).to(values.dtype)
    deltas = rewards + gamma * continues * next_values - values
    decay = gamma * gae_lambda * continues * (~truncated).to(values.dtype)

    advantages = torch.empty_like(deltas)
    trace = torch.zeros_like(deltas[0])
    for step in range(len(deltas) - 1, -1, -1):
        trace = deltas[step] + decay[step] * trace
        advantages[step] = trace
    return advantages, advantages + values


def normalize_advantages(advantages: Tensor, moments: Tensor | None = None, eps: float = 1e-8) -> Tensor:
    """``(A - mean) / (std + eps)``, with the unbiased std.

    Args:
        advantages: ``(B,)``.
        moments: count, mean and population variance ``(3,)`` of all advantages that these are a part of (of a
            minibatch that is spread over ranks); by default their own.
        eps: keeps equal advantages at 0.
    """
    if moments is None:
        mean, variance = advantages.mean(), advantages.var(correction=min(1, advantages.numel() - 1))
    else:
        count, mean, variance = moments.to(advantages).unbind()
        variance = variance * count / (count - 1).clamp(min=1)
    return (advantages - mean) / (variance.sqrt() + eps)
