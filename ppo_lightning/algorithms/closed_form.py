"""The losses of small minibatches on the CPU, with their gradients in closed form.

Autograd takes some fifty operations for them, each of which takes longer than the few hundred numbers that it works
out. Here each loss is one node of its graph, in numpy: the formulas are those of ``functional.losses``, and so are the
gradients, also where a maximum is reached twice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ppo_lightning.functional.distributions import LOG_SQRT_2PI, Categorical, DiagonalGaussian
from ppo_lightning.functional.shapes import check_same_shape

Array = np.ndarray[Any, Any]
Gradients = Callable[[Array, float], list[Array]]
"""Takes the derivatives by the log-probabilities, and the weight of the entropy; gives those by the inputs."""

MOST = 2**17
"""Numbers that describe a minibatch's policies, beyond which autograd is as fast."""


class ActorLoss(NamedTuple):
    """The actor's loss and what is told of it; only ``loss`` has a gradient.

    Attributes:
        loss: the clipped policy loss less the weighted entropy.
        ratio: ``(B,)``, of the probabilities to those of the rollout.
        policy_loss: the clipped policy loss alone.
        entropy: mean over the rows.
        approx_kl: of ``functional.approx_kl_divergence``.
        clip_fraction: of ``functional.clip_fraction``.
    """

    loss: Tensor
    ratio: Tensor
    policy_loss: Tensor
    entropy: Tensor
    approx_kl: Tensor
    clip_fraction: Tensor


def has_closed_form(distribution: Any, actions: Tensor, *others: Tensor) -> bool:
    """Whether an actor's loss is one of those here; ``others`` are the further tensors ``(B,)`` that it is made of."""
    kind = type(distribution)
    if kind is Categorical:
        return are_small(distribution.logits, *others)
    return kind is DiagonalGaussian and are_small(distribution.mean, distribution.logstd, actions, *others)


def are_small(first: Tensor, *others: Tensor) -> bool:
    """Whether tensors are of one dtype, on the CPU, and the first of few numbers."""
    if first.device.type != "cpu" or first.dtype not in (torch.float32, torch.float64) or first.numel() > MOST:
        return False
    return all(other.dtype is first.dtype and other.device.type == "cpu" for other in others)


def actor_loss(
    distribution: Categorical | DiagonalGaussian,
    actions: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    clip_coef: float,
    ent_coef: float,
) -> ActorLoss:
    """The clipped policy loss less the weighted entropy, and what is told of both.

    Args:
        distribution: for which :func:`has_closed_form` is true.
        actions: ``(B,)`` or ``(B, D)``.
        old_log_probs: ``(B,)``, of the rollout.
        advantages: ``(B,)``.
        clip_coef: how far the ratio may move from 1.
        ent_coef: weight of the entropy.
    """
    check_same_shape(advantages=advantages, old_log_probs=old_log_probs)
    parts: Callable[..., tuple[Array, Array, Gradients]]
    inputs: tuple[Tensor, ...]
    if isinstance(distribution, Categorical):
        parts, inputs = _choice, (distribution.logits,)
    else:
        parts, inputs = _numbers, (distribution.mean, distribution.logstd)
    rows = actions.numpy(), old_log_probs.numpy(), advantages.numpy()
    return ActorLoss(*cast(Any, _ActorLoss).apply(parts, rows, clip_coef, ent_coef, *inputs))


def critic_loss(values: Tensor, returns: Tensor, old_values: Tensor, clip_coef: float | None) -> Tensor:
    """As ``functional.value_loss``, of tensors for which :func:`are_small` is true."""
    check_same_shape(values=values, returns=returns, old_values=old_values)
    loss: Tensor = cast(Any, _CriticLoss).apply(values, returns.numpy(), old_values.numpy(), clip_coef)
    return loss


class _ActorLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, parts: Any, rows: tuple[Array, ...], clip_coef: float, ent_coef: float, *inputs: Tensor
    ) -> tuple[Tensor, ...]:
        actions, old_log_probs, advantages = rows
        with np.errstate(all="ignore"):  # what became NaN is told of at the update's end
            log_probs, entropy, gradients = parts(actions, *(x.numpy() for x in inputs))
            log_ratio = log_probs - old_log_probs
            ratio = np.exp(log_ratio)
            surrogate = advantages * ratio
            clipped = advantages * ratio.clip(1 - clip_coef, 1 + clip_coef)
            policy_loss, mean_entropy = -np.minimum(surrogate, clipped).mean(), entropy.mean()
            numbers = [
                policy_loss - ent_coef * mean_entropy if ent_coef else policy_loss,
                policy_loss,
                mean_entropy,
                (np.expm1(log_ratio) - log_ratio).mean(),
                (np.abs(ratio - 1) > clip_coef).mean(dtype=ratio.dtype),
            ]
            # where both are equal the ratio is inside its range, or the advantage is 0
            weights = np.where(surrogate <= clipped, surrogate, 0) / -len(advantages)
            ctx.gradients = gradients(weights, ent_coef / len(advantages))
        loss, *others = (torch.from_numpy(np.asarray(number, dtype=ratio.dtype)) for number in numbers)
        told = torch.from_numpy(ratio), *others
        ctx.mark_non_differentiable(*told)
        return loss, *told

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Any, ...]:
        factor = gradient.numpy()
        return None, None, None, None, *(torch.from_numpy(own * factor) for own in ctx.gradients)


def _choice(actions: Array, logits: Array) -> tuple[Array, Array, Gradients]:
    """Of ``functional.distributions.Categorical``, with logits ``(B, A)``."""
    log_probs = logits - logits.max(-1, keepdims=True)
    probs = np.exp(log_probs)
    total = probs.sum(-1, keepdims=True)
    probs /= total
    log_probs -= np.log(total)
    entropy = -(probs * log_probs).sum(-1)
    chosen = np.arange(len(actions)), actions

    def gradients(weights: Array, entropy_weight: float) -> list[Array]:
        gradient = probs * (entropy_weight * (log_probs + entropy[:, None]) - weights[:, None])
        gradient[chosen] += weights
        return [gradient]

    return log_probs[chosen], entropy, gradients


def _numbers(actions: Array, mean: Array, logstd: Array) -> tuple[Array, Array, Gradients]:
    """Of ``functional.distributions.DiagonalGaussian``, with ``mean`` and ``logstd`` ``(B, D)``."""
    inverse = np.exp(-logstd)
    z = (actions - mean) * inverse
    squares = z * z
    constants = logstd + LOG_SQRT_2PI

    def gradients(weights: Array, entropy_weight: float) -> list[Array]:
        column = weights[:, None]
        return [column * z * inverse, column * (squares - 1) - entropy_weight]

    return -(0.5 * squares + constants).sum(-1), (constants + 0.5).sum(-1), gradients


class _CriticLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, returns: Array, old_values: Array, clip_coef: float | None) -> Tensor:
        values = tensor.numpy()
        with np.errstate(all="ignore"):
            errors = values - returns
            squares = errors * errors
            if clip_coef is not None:
                change = values - old_values
                clipped = old_values + change.clip(-clip_coef, clip_coef) - returns
                others = clipped * clipped
                is_kept, is_clipped = squares >= others, others >= squares
                # as autograd has it, a maximum that is reached twice learns from the mean of both
                slopes = is_kept * errors + (is_clipped & (np.abs(change) <= clip_coef)) * clipped
                errors, squares = slopes / (1 + (is_kept & is_clipped)), np.maximum(squares, others)
            ctx.gradient = errors / len(values)
            return torch.from_numpy(np.asarray(0.5 * squares.mean(), dtype=values.dtype))

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        return torch.from_numpy(ctx.gradient * gradient.numpy()), None, None, None
