"""The losses of small minibatches on the CPU, with their gradients in closed form.

Autograd takes some fifty operations for them, each of which takes longer than the few hundred numbers that it works
out. Here each loss is one node of its graph, in numpy: the formulas are those of ``functional.losses``, and so are the
gradients, also where a maximum is reached twice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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
) -> tuple[Tensor, Tensor, Tensor]:
    """The clipped policy loss less the weighted entropy, and what is told of both.

    Args:
        distribution: for which :func:`has_closed_form` is true.
        actions: ``(B,)`` or ``(B, D)``.
        old_log_probs: ``(B,)``, of the rollout.
        advantages: ``(B,)``.
        clip_coef: how far the ratio may move from 1.
        ent_coef: weight of the entropy.

    Returns:
        ``(loss, ratio, told)``: a scalar, which alone has a gradient; ``(B,)``, of the probabilities to those of the
        rollout; and ``(4,)``, the clipped policy loss, the mean entropy, ``functional.approx_kl_divergence`` and
        ``functional.clip_fraction``.
    """
    check_same_shape(advantages=advantages, old_log_probs=old_log_probs)
    rows = actions.numpy(), old_log_probs.numpy(), advantages.numpy()
    if isinstance(distribution, Categorical):
        return _apply(_ActorLoss, (_choice, rows, clip_coef, ent_coef), distribution.logits)
    return _apply(_ActorLoss, (_numbers, rows, clip_coef, ent_coef), distribution.mean, distribution.logstd)


def critic_loss(values: Tensor, returns: Tensor, old_values: Tensor, clip_coef: float | None) -> Tensor:
    """As ``functional.value_loss``, of tensors for which :func:`are_small` is true."""
    check_same_shape(values=values, returns=returns, old_values=old_values)
    return _apply(_CriticLoss, (returns.numpy(), old_values.numpy(), clip_coef), values)


def _apply(node: Any, settings: tuple[Any, ...], *inputs: Tensor) -> Any:
    """With all that has no gradient in one argument, as autograd looks at each of them."""
    return node.apply(settings, *inputs)


def _mean(x: Array) -> Any:
    return np.add.reduce(x) / len(x)  # a third of the time


class _ActorLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, settings: tuple[Any, ...], *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        describe, (actions, old_log_probs, advantages), clip_coef, ent_coef = settings
        size = len(advantages)
        with np.errstate(all="ignore"):  # what became NaN is told of at the update's end
            log_probs, entropy, gradients = describe(actions, *[x.numpy() for x in inputs])
            log_ratio = log_probs - old_log_probs
            ratio = np.exp(log_ratio)
            surrogate = advantages * ratio
            nearest = np.minimum(np.maximum(ratio, 1 - clip_coef), 1 + clip_coef)
            clipped = advantages * nearest
            policy_loss, mean_entropy = -_mean(np.minimum(surrogate, clipped)), _mean(entropy)
            told = (
                policy_loss,
                mean_entropy,
                _mean(np.expm1(log_ratio) - log_ratio),
                np.count_nonzero(ratio != nearest) / size,
            )
            # where both are equal the ratio is inside its range, or the advantage is 0
            weights = (surrogate <= clipped) * surrogate
            weights /= -size
            ctx.gradients = gradients(weights, ent_coef / size)
            loss = np.asarray(policy_loss - ent_coef * mean_entropy if ent_coef else policy_loss, dtype=ratio.dtype)
        others = torch.from_numpy(ratio), torch.from_numpy(np.array(told, dtype=ratio.dtype))
        ctx.mark_non_differentiable(*others)
        return torch.from_numpy(loss), *others

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Any, ...]:
        factor = gradient.numpy()
        return None, *[torch.from_numpy(own * factor) for own in ctx.gradients]


# Rows of a few numbers each are worked out as a few columns, which takes numpy a third of the time.


def _choice(actions: Array, logits: Array) -> tuple[Array, Array, Gradients]:
    """Of ``functional.distributions.Categorical``, with logits ``(B, A)``."""
    log_probs = np.ascontiguousarray(logits.T)
    log_probs = log_probs - np.maximum.reduce(log_probs)
    probs = np.exp(log_probs)
    total = np.add.reduce(probs)
    probs /= total
    log_probs -= np.log(total)
    entropy = -np.add.reduce(probs * log_probs)
    chosen = actions, np.arange(len(actions))

    def gradients(weights: Array, entropy_weight: float) -> list[Array]:
        gradient = log_probs + entropy
        gradient *= entropy_weight
        gradient -= weights
        gradient *= probs
        gradient[chosen] += weights
        return [gradient.T]

    return log_probs[chosen], entropy, gradients


def _numbers(actions: Array, mean: Array, logstd: Array) -> tuple[Array, Array, Gradients]:
    """Of ``functional.distributions.DiagonalGaussian``, with ``mean`` and ``logstd`` ``(B, D)``."""
    logstd = np.ascontiguousarray(logstd.T)
    inverse = np.exp(-logstd)
    z = np.ascontiguousarray((actions - mean).T)
    z *= inverse
    squares = z * z
    constants = logstd + LOG_SQRT_2PI

    def gradients(weights: Array, entropy_weight: float) -> list[Array]:
        squares_less = squares - 1
        squares_less *= weights
        squares_less -= entropy_weight
        return [(weights * z * inverse).T, squares_less.T]

    return -np.add.reduce(0.5 * squares + constants), np.add.reduce(constants) + 0.5 * len(constants), gradients


class _CriticLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, settings: tuple[Array, Array, float | None], tensor: Tensor) -> Tensor:
        returns, old_values, clip_coef = settings
        values = tensor.numpy()
        with np.errstate(all="ignore"):
            errors = values - returns
            squares = errors * errors
            if clip_coef is not None:
                change = values - old_values
                nearest = np.minimum(np.maximum(change, -clip_coef), clip_coef)
                others = np.square(old_values + nearest - returns)
                # within its range the clipped value is the value; beyond it, where its error is the worse, none learns;
                # as autograd has it, one that is as bad counts half
                stops = (others >= squares) & (change != nearest)
                if stops.any():
                    errors = np.where(stops, 0.5 * (others == squares) * errors, errors)
                squares = np.maximum(squares, others)
            errors /= len(values)
            ctx.gradient = errors
            return torch.from_numpy(np.asarray(0.5 * _mean(squares), dtype=values.dtype))

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        return None, torch.from_numpy(ctx.gradient * gradient.numpy())
