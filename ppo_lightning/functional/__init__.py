"""The maths: pure functions of tensors."""

from ppo_lightning.functional.advantages import (
    generalized_advantage_estimation,
    normalize_advantages,
)
from ppo_lightning.functional.distributions import Categorical, DiagonalGaussian, Distribution
from ppo_lightning.functional.losses import (
    approx_kl_divergence,
    clip_fraction,
    ppo_clipped_policy_loss,
    value_loss,
)
from ppo_lightning.functional.moments import moments_of, pool_moments

__all__ = [
    "Categorical",
    "DiagonalGaussian",
    "Distribution",
    "approx_kl_divergence",
    "clip_fraction",
    "generalized_advantage_estimation",
    "moments_of",
    "normalize_advantages",
    "pool_moments",
    "ppo_clipped_policy_loss",
    "value_loss",
]
