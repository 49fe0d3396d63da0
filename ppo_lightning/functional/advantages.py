"""Advantages, value targets and discounted sums from rollouts, all ``(T, N)``: T steps, N environments."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from ppo_lightning.core.host import Array, is_on_host
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

    if _is_plain_on_host(deltas, decay):
        advantages = torch.from_numpy(_backwards_on_host(deltas.numpy(), decay.numpy()))
        return advantages, advantages + values
    advantages = torch.empty_like(deltas)
    trace = torch.zeros_like(deltas[0])
    for step in range(len(deltas) - 1, -1, -1):
        trace = deltas[step] + decay[step] * trace
        advantages[step] = trace
    return advantages, advantages + values


def _is_plain_on_host(*tensors: Tensor) -> bool:
    """Whether these are matrices of one dtype of which numpy may do what torch does: no derivative or map is asked."""
    return all(
        type(x) is Tensor
        and is_on_host(x)
        and x.dtype is tensors[0].dtype
        and x.dim() == 2
        and not (x.requires_grad or torch._C._functorch.is_functorch_wrapped_tensor(x))
        and unpack_dual(x).tangent is None  # type: ignore[no-untyped-call]
        for x in tensors
    )


def _backwards_on_host(deltas: Array, decay: Array) -> Array:
    """The same loop, bit for bit, in a third of the time."""
    sums = np.empty_like(deltas)
    trace = np.zeros_like(deltas[0])
    for delta, factor, total in zip(deltas[::-1], decay[::-1], sums[::-1]):
        total[:] = delta + factor * trace
        trace = total
    return sums


def lambda_returns(
    rewards: Tensor,
    next_values: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    gamma: float,
    gae_lambda: float,
) -> Tensor:
    r"""The λ-return (Sutton and Barto, "Reinforcement Learning", 2nd edition, equation 12.18), by its recursion.

    .. math::
        R_t = r_t + \gamma\,(1 - \text{terminated}_t)\,((1 - \lambda_t)\,V(s'_t) + \lambda_t\,R_{t+1})

    where :math:`\lambda_t` is 0 at truncations and in the last step. Equal to the returns of
    :func:`generalized_advantage_estimation`.

    Args:
        rewards: ``(T, N)``.
        next_values: ``V(s'_t)`` of the observation that truly followed, ``(T, N)``.
        terminated: ``(T, N)`` bool.
        truncated: ``(T, N)`` bool.
        gamma: discount a step.
        gae_lambda: how much of each return comes from later rewards.

    Returns:
        ``(T, N)``.

    Raises:
        ValueError: shapes differ.
    """
    check_same_shape(rewards=rewards, next_values=next_values, terminated=terminated, truncated=truncated)
    discount = gamma * (~terminated).to(rewards.dtype)
    lambdas = gae_lambda * (~truncated).to(rewards.dtype)

    returns = torch.empty_like(rewards)
    following = next_values[-1]
    for step in range(len(rewards) - 1, -1, -1):
        value = next_values[step]
        following = rewards[step] + discount[step] * (value + lambdas[step] * (following - value))
        returns[step] = following
    return returns


def n_step_returns(rewards: Tensor, next_values: Tensor, terminated: Tensor, truncated: Tensor, gamma: float) -> Tensor:
    r"""Rewards up to the episode's or the rollout's end, and the value of what follows (Mnih et al., arXiv 1602.01783).

    .. math::
        R_t = r_t + \gamma\,(1 - \text{terminated}_t)\,R_{t+1}
        \text{, with } V(s'_t) \text{ for } R_{t+1} \text{ at a truncation and in the last step}

    Shapes and errors are those of :func:`lambda_returns`, of which this is the case of λ = 1.
    """
    return lambda_returns(rewards, next_values, terminated, truncated, gamma, 1.0)


def continuing_advantage_estimation(
    rewards: Tensor, values: Tensor, last_values: Tensor, valid: Tensor, gamma: float, gae_lambda: float
) -> tuple[Tensor, Tensor]:
    r"""GAE of a stream of rewards that goes on over the ends of episodes (Burda et al., arXiv 1810.12894, section 2.3).

    .. math::
        \delta_t = r_t + \gamma\,V(s_{t+1}) - V(s_t) \qquad A_t = \delta_t + \gamma\lambda\,A_{t+1}

    where :math:`s_{t+1}` is what the agent acted on next, be it the first observation of another episode.

    Args:
        rewards: ``(T, N)``.
        values: ``V(s_t)``, ``(T, N)``.
        last_values: of the observations after the last step, ``(N,)``.
        valid: ``(T, N)`` bool; a step that is not (one that only resets) is passed over.
        gamma: discount a step.
        gae_lambda: decay of the trace.

    Returns:
        ``(advantages, returns)``, each ``(T, N)``; ``returns = advantages + values``.

    Raises:
        ValueError: shapes differ.
    """
    check_same_shape(rewards=rewards, values=values, valid=valid)
    check_same_shape(last_values=last_values, values_of_a_step=values[0])
    advantages = torch.empty_like(rewards)
    following, trace = last_values, torch.zeros_like(last_values)
    for step in range(len(rewards) - 1, -1, -1):
        new_trace = rewards[step] + gamma * following - values[step] + gamma * gae_lambda * trace
        trace = torch.where(valid[step], new_trace, trace)
        following = torch.where(valid[step], values[step], following)
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


def discounted_sums(rewards: Tensor, ends: Tensor, valid: Tensor, trace: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    r"""Rewards so far in the episode, those longer ago discounted more: what reward scaling takes the variance of.

    .. math::
        R_t = \gamma\,(1 - \text{end}_{t-1})\,R_{t-1} + r_t

    Source: Engstrom et al., "Implementation Matters in Deep Policy Gradients" (arXiv 2005.12729), algorithm 1, but for
    the cut at an episode's end.

    Args:
        rewards: ``(T, N)``.
        ends: ``(T, N)`` bool, where an episode ended, one way or the other.
        valid: ``(T, N)`` bool; a step that is not (one that only resets) leaves the sum as it is.
        trace: ``(N,)``, what runs on from the last rollout: zeros at first, then what this returned.
        gamma: discount a step.

    Returns:
        ``(sums, trace)``: ``R`` of shape ``(T, N)``, and what runs on into the next rollout, 0 after an end.
    """
    check_same_shape(rewards=rewards, ends=ends, valid=valid)
    check_same_shape(trace=trace, rewards_of_a_step=rewards[0])
    continues = (~(valid & ends)).to(rewards.dtype)
    decay = torch.full_like(rewards, gamma).masked_fill(~valid, 1)
    decay[1:] *= continues[:-1]
    added = rewards.masked_fill(~valid, 0)

    sums = torch.empty_like(rewards)
    trace = trace.to(rewards.dtype)
    for step in range(len(rewards)):
        trace = added[step] + decay[step] * trace
        sums[step] = trace
    return sums, trace * continues[-1]
