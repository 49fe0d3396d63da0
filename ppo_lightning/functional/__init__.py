"""The maths: pure functions of tensors."""

from ppo_lightning.functional.advantages import (
    continuing_advantage_estimation,
    discounted_sums,
    generalized_advantage_estimation,
    lambda_returns,
    n_step_returns,
    normalize_advantages,
)
from ppo_lightning.functional.distributions import (
    Bernoullis,
    Categorical,
    DiagonalGaussian,
    Distribution,
    MultiCategorical,
)
from ppo_lightning.functional.losses import (
    advantage_loss,
    approx_kl_divergence,
    clip_fraction,
    ppo_clipped_policy_loss,
    value_loss,
)
from ppo_lightning.functional.moments import merge_moments, moments_of, moments_of_rows, pool_moments
from ppo_lightning.functional.regularization import bounds_loss, l2c2_loss, mean_squared_difference
from ppo_lightning.functional.squashed import SquashedGaussian

__all__ = [
    "Bernoullis",
    "Categorical",
    "DiagonalGaussian",
    "Distribution",
    "MultiCategorical",
    "SquashedGaussian",
    "advantage_loss",
    "approx_kl_divergence",
    "bounds_loss",
    "clip_fraction",
    "continuing_advantage_estimation",
    "discounted_sums",
    "generalized_advantage_estimation",
    "l2c2_loss",
    "lambda_returns",
    "mean_squared_difference",
    "merge_moments",
    "moments_of",
    "moments_of_rows",
    "n_step_returns",
    "normalize_advantages",
    "pool_moments",
    "ppo_clipped_policy_loss",
    "value_loss",
]
