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

from ppo_lightning.core.host import Array, is_on_host
from ppo_lightning.functional import ppo_clipped_policy_loss, value_loss
from ppo_lightning.functional.distributions import LOG_SQRT_2PI, Categorical, DiagonalGaussian
from ppo_lightning.functional.shapes import check_same_shape

Gradients = Callable[[Array, float], list[Array]]
"""Takes the derivatives by the log-probabilities, and the weight of the entropy; gives those by the inputs."""

MOST = 2**17
"""Numbers that describe a minibatch's policies, beyond which autograd is as fast."""


def has_closed_form(distribution: Any, actions: Tensor, old_log_probs: Tensor, advantages: Tensor) -> bool:
    """Whether an actor's loss is one of those here: of ``B`` rows that are as they should be, and few numbers."""
    others: tuple[Tensor, ...] = old_log_probs, advantages
    if type(distribution) is Categorical:
        first = distribution.logits
        fits = actions.dtype is torch.int64 and actions.device.type == "cpu"
    elif type(distribution) is DiagonalGaussian:
        first, others = distribution.mean, (*others, actions)
        fits = actions.shape == first.shape and distribution.logstd.dtype is first.dtype
    else:
        return False
    rows = first.shape[:1]
    fits = fits and first.dim() == 2 and rows[0] > 0 and actions.shape[:1] == rows
    return fits and old_log_probs.shape == advantages.shape == rows and are_small(first, *others)


def are_small(learned: Tensor, *others: Tensor) -> bool:
    """Whether tensors are of one dtype, on the CPU, and the first of few numbers, which alone may have a gradient."""
    if not is_on_host(learned) or learned.numel() > MOST:
        return False
    return all(is_on_host(x) and x.dtype is learned.dtype and not x.requires_grad for x in others)


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
        distribution: for which, and the tensors below, :func:`has_closed_form` is true.
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
    rows = actions.numpy(), old_log_probs.numpy(), advantages.numpy()
    describe: Callable[..., tuple[Array, Array, Gradients]]
    if isinstance(distribution, Categorical):
        describe, inputs = describe_choice, [distribution.logits]
    else:
        describe, inputs = describe_numbers, [distribution.mean, distribution.logstd]

    def by_autograd(*inputs: Tensor) -> Tensor:
        policies = type(distribution)(*inputs)
        log_probs = policies.log_prob(actions)
        policy_loss, _ = ppo_clipped_policy_loss(log_probs, old_log_probs, advantages, clip_coef)
        return policy_loss - ent_coef * policies.entropy().mean()

    return cast(Any, _ActorLoss).apply((describe, rows, clip_coef, ent_coef, by_autograd), *inputs)


def critic_loss(values: Tensor, returns: Tensor, old_values: Tensor, clip_coef: float | None) -> Tensor:
    """As ``functional.value_loss``, of ``(B,)`` tensors for which :func:`are_small` is true."""
    check_same_shape(values=values, returns=returns, old_values=old_values)

    def by_autograd(values: Tensor) -> Tensor:
        return value_loss(values, returns, old_values, clip_coef)

    settings = returns.numpy(), old_values.numpy(), clip_coef, by_autograd
    loss: Tensor = cast(Any, _CriticLoss).apply(settings, values)
    return loss


class _ClosedForm(torch.autograd.Function):
    """A loss whose gradients its forward pass leaves in ``ctx.gradients``, one for each input.

    All that has no gradient is one argument, as autograd looks at each of them.
    """

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Any, ...]:
        if torch.is_grad_enabled():  # derivatives of these derivatives are asked for
            inputs, is_asked = ctx.saved_tensors, ctx.needs_input_grad[1:]
            asked = [x for x, is_due in zip(inputs, is_asked) if is_due]
            found = iter(torch.autograd.grad(ctx.by_autograd(*inputs), asked, gradient, create_graph=True))
            return None, *[next(found) if is_due else None for is_due in is_asked]
        factor = float(gradient)
        if factor == 1:
            return None, *map(torch.from_numpy, ctx.gradients)
        with np.errstate(all="ignore"):
            return None, *[torch.from_numpy(own * factor) for own in ctx.gradients]


class _ActorLoss(_ClosedForm):
    @staticmethod
    def forward(ctx: Any, settings: tuple[Any, ...], *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        describe, rows, clip_coef, ent_coef, ctx.by_autograd = settings
        ctx.save_for_backward(*inputs)
        with np.errstate(all="ignore"):  # what became NaN is told of at the update's end
            description = describe(rows[0], *[x.numpy() for x in inputs])
            terms = actor_terms(description, rows[1], rows[2], clip_coef, ent_coef)
        ctx.gradients, dtype = terms.gradients, terms.ratio.dtype
        others = torch.from_numpy(terms.ratio), torch.from_numpy(np.array(terms.told, dtype=dtype))
        ctx.mark_non_differentiable(*others)
        return torch.from_numpy(np.asarray(terms.loss, dtype=dtype)), *others


class ActorTerms(NamedTuple):
    """The actor's loss of ``B`` rows; ``told`` are the four numbers of :func:`actor_loss`."""

    loss: Any
    told: tuple[Any, Any, Any, Any]
    ratio: Array
    gradients: list[Array]


def actor_terms(
    description: tuple[Array, Array, Gradients],
    old_log_probs: Array,
    advantages: Array,
    clip_coef: float,
    ent_coef: float,
) -> ActorTerms:
    """Of what :func:`describe_choice` or :func:`describe_numbers` described; its gradients are by their inputs."""
    (log_probs, entropy, gradients), size = description, len(advantages)
    log_ratio = log_probs - old_log_probs
    ratio = np.exp(log_ratio)
    surrogate = advantages * ratio
    clipped = advantages * np.minimum(np.maximum(ratio, 1 - clip_coef), 1 + clip_coef)
    policy_loss, mean_entropy = -_mean(np.minimum(surrogate, clipped)), _mean(entropy)
    kl, num_clipped = _mean(np.expm1(log_ratio) - log_ratio), np.count_nonzero(np.abs(ratio - 1) > clip_coef)
    # equal ones are inside the range, or of an advantage of 0; NaN stays NaN, for a guard to see
    weights = np.where(surrogate > clipped, 0, surrogate)
    weights /= -size
    loss = policy_loss - ent_coef * mean_entropy if ent_coef else policy_loss
    return ActorTerms(
        loss, (policy_loss, mean_entropy, kl, num_clipped / size), ratio, gradients(weights, ent_coef / size)
    )


def _mean(x: Array) -> Any:
    return np.add.reduce(x) / len(x)  # a third of the time of x.mean()


# Rows of a few numbers each are worked out as a few columns, which takes numpy a third of the time.


def describe_choice(actions: Array, logits: Array) -> tuple[Array, Array, Gradients]:
    """Of ``functional.distributions.Categorical``: the log-probabilities and entropies ``(B,)`` of logits ``(B, A)``.

    And what takes their gradients further.
    """
    log_probs = np.ascontiguousarray(logits.T)
    log_probs = log_probs - np.maximum.reduce(log_probs)
    probs = np.exp(log_probs)
    total = np.add.reduce(probs)
    probs /= total
    log_probs -= np.log(total)
    finite = np.maximum(log_probs, np.finfo(log_probs.dtype).min)  # 0·log 0 = 0
    entropy = -np.add.reduce(probs * finite)
    chosen = actions, np.arange(len(actions))

    def gradients(weights: Array, entropy_weight: float) -> list[Array]:
        gradient = finite + entropy
        gradient *= entropy_weight
        gradient -= weights
        gradient *= probs
        gradient[chosen] += weights
        return [gradient.T]

    return log_probs[chosen], entropy, gradients


def describe_numbers(actions: Array, mean: Array, logstd: Array) -> tuple[Array, Array, Gradients]:
    """The same of ``functional.distributions.DiagonalGaussian``, with ``mean (B, D)``.

    ``logstd`` is ``(B, D)``, or ``(1, D)`` where it is the same in all rows; its gradient is ``(B, D)``.
    """
    logstd = np.ascontiguousarray(logstd.T)
    inverse = np.exp(-logstd)
    z = np.ascontiguousarray((actions - mean).T)
    z *= inverse
    squares = z * z
    constants = logstd + LOG_SQRT_2PI

    def gradients(weights: Array, entropy_weight: float) -> list[Array]:
        weighted = weights * z
        of_mean = weighted * inverse
        weighted *= z
        weighted -= weights + entropy_weight
        return [of_mean.T, weighted.T]

    return -np.add.reduce(0.5 * squares + constants), np.add.reduce(constants) + 0.5 * len(constants), gradients


class _CriticLoss(_ClosedForm):
    @staticmethod
    def forward(ctx: Any, settings: tuple[Array, Array, float | None, Any], tensor: Tensor) -> Tensor:
        returns, old_values, clip_coef, ctx.by_autograd = settings
        ctx.save_for_backward(tensor)
        with np.errstate(all="ignore"):
            loss, gradient = critic_terms(tensor.numpy(), returns, old_values, clip_coef)
        ctx.gradients = [gradient]
        return torch.from_numpy(np.asarray(loss, dtype=gradient.dtype))


def critic_terms(values: Array, returns: Array, old_values: Array, clip_coef: float | None) -> tuple[Any, Array]:
    """``functional.value_loss`` of ``B`` rows, and its gradient by ``values (B,)``."""
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
            errors = np.where(stops, (0.5 * errors) * (others == squares), errors)
        squares = np.maximum(squares, others)
    errors /= len(values)
    return 0.5 * _mean(squares), errors
