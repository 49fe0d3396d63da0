"""The clipped objective and its companions (Schulman et al., arXiv 1707.06347), all over ``(B,)`` tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from ppo_lightning.functional.shapes import check_same_shape


def ppo_clipped_policy_loss(
    log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, clip_coef: float
) -> tuple[Tensor, Tensor]:
    r"""The clipped surrogate, negated to be minimised (equation 7).

    .. math::
        r = \exp(\log\pi(a|s) - \log\pi_\text{old}(a|s)) \qquad
        L = \operatorname{mean}(\max(-A\,r,\; -A\,\operatorname{clip}(r, 1-\epsilon, 1+\epsilon)))

    Returns:
        ``(loss, ratio)``: a scalar and ``r`` of shape ``(B,)``.
    """
    check_same_shape(log_probs=log_probs, old_log_probs=old_log_probs, advantages=advantages)
    ratio = (log_probs - old_log_probs).exp()
    clipped = ratio.clamp(1 - clip_coef, 1 + clip_coef)
    return torch.max(-advantages * ratio, -advantages * clipped).mean(), ratio


def value_loss(values: Tensor, returns: Tensor, old_values: Tensor, clip_coef: float | None) -> Tensor:
    r"""Half the mean squared error to the returns; with ``clip_coef``, the worse of it and of the clipped prediction.

    .. math::
        V_\text{clip} = V_\text{old} + \operatorname{clip}(V - V_\text{old}, -\epsilon, \epsilon) \qquad
        L = \tfrac12 \operatorname{mean}(\max((V - R)^2, (V_\text{clip} - R)^2))
    """
    check_same_shape(values=values, returns=returns, old_values=old_values)
    errors = (values - returns).square()
    if clip_coef is not None:
        clipped = old_values + (values - old_values).clamp(-clip_coef, clip_coef)
        errors = torch.max(errors, (clipped - returns).square())
    return 0.5 * errors.mean()


def advantage_loss(predictions: Tensor, advantages: Tensor) -> Tensor:
    r"""The mean squared error of predicted advantages (Raileanu and Fergus, arXiv 2102.10330, equation 3).

    .. math::
        L = \operatorname{mean}((A_\theta(s, a) - \hat A)^2)
    """
    check_same_shape(predictions=predictions, advantages=advantages)
    return (predictions - advantages).square().mean()


def approx_kl_divergence(log_probs: Tensor, old_log_probs: Tensor) -> Tensor:
    r"""The low-variance estimate of :math:`KL(\text{old} \| \text{new})`: mean of :math:`(r - 1) - \log r`.

    Source: Schulman, "Approximating KL Divergence" (2020), estimator k3. Never negative.
    """
    check_same_shape(log_probs=log_probs, old_log_probs=old_log_probs)
    log_ratio = log_probs - old_log_probs
    return (log_ratio.expm1() - log_ratio).mean()


def clip_fraction(ratio: Tensor, clip_coef: float) -> Tensor:
    """The share of samples whose ratio lies outside ``1 ± clip_coef``."""
    return ((ratio - 1).abs() > clip_coef).to(ratio.dtype).mean()
