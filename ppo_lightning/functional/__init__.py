"""The maths: pure functions of tensors."""

from ppo_lightning.functional.advantages import (
    explained_variance,
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

__all__ = [
    "Categorical",
    "DiagonalGaussian",
    "Distribution",
    "approx_kl_divergence",
    "clip_fraction",
    "explained_variance",
    "generalized_advantage_estimation",
    "normalize_advantages",
    "ppo_clipped_policy_loss",
    "value_loss",
]
