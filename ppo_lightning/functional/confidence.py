"""How sure a policy is of its choice, from its logits: the higher, the surer.

The measures of Hendrycks & Gimpel (arXiv 1610.02136, the largest probability), Liu et al. (arXiv 2010.03759, the
energy), and others in use, as duo_ai compares them for asking an expert.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor


def max_logit(logits: Tensor) -> Tensor:
    """``max z`` of logits ``(B, A)``: ``(B,)``."""
    return logits.max(dim=-1).values


def max_prob(logits: Tensor) -> Tensor:
    """``max p`` with ``p = softmax z``, of logits ``(B, A)``: ``(B,)`` in (0, 1]."""
    return logits.softmax(dim=-1).max(dim=-1).values


def margin(logits: Tensor) -> Tensor:
    """The largest probability less the second largest, of logits ``(B, A)``, ``A >= 2``: ``(B,)`` in [0, 1]."""
    first, second = logits.softmax(dim=-1).topk(2, dim=-1).values.unbind(-1)
    return first - second


def negative_entropy(logits: Tensor) -> Tensor:
    """``Σ p log p`` in nats, of logits ``(B, A)``: ``(B,)``, at most 0."""
    log_probs = logits.log_softmax(dim=-1)
    return (log_probs.exp() * log_probs.clamp(min=torch.finfo(log_probs.dtype).min)).sum(dim=-1)


def energy(logits: Tensor) -> Tensor:
    """``log Σ exp z`` of logits ``(B, A)``: ``(B,)``."""
    return logits.logsumexp(dim=-1)


CONFIDENCES: dict[str, Callable[[Tensor], Tensor]] = {
    "max_logit": max_logit,
    "max_prob": max_prob,
    "margin": margin,
    "entropy": negative_entropy,
    "energy": energy,
}
"""By the names that users choose them by."""


def thresholds_at(percentiles: Sequence[float], confidences: Tensor) -> list[float]:
    """Values below which such shares (0 to 100) of ``confidences (K,)`` lie, interpolated between two of them.

    None lies below that of 0, and all but the largest below that of 100.
    """
    thresholds: list[float] = np.percentile(confidences.double().numpy(), percentiles).tolist()
    return thresholds
