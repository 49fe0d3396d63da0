"""What critics learn and actors are judged by: advantages and returns of a rollout."""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor

from ppo_lightning.core.errors import ConfigurationError, check_range, close_names
from ppo_lightning.core.rollout import Rollout
from ppo_lightning.functional.advantages import generalized_advantage_estimation, lambda_returns, n_step_returns

Returns = Literal["gae", "lambda", "nstep"]


class ValueTargets:
    """Advantages and returns of a rollout.

    Args:
        returns: ``gae``, ``lambda`` (the same numbers by the recursion of the returns), or ``nstep`` (rewards to the
            rollout's end, then the value there, which is either of them with a ``gae_lambda`` of 1).
        gamma: discount a step.
        gae_lambda: decay of the trace; nothing to ``nstep``.

    Raises:
        ConfigurationError: a number outside its range, or a name that there is not.
    """

    def __init__(self, returns: Returns, gamma: float, gae_lambda: float) -> None:
        check_range("--model.gamma", gamma, 0, 1)
        check_range("--model.gae_lambda", gae_lambda, 0, 1)
        if returns not in get_args(Returns):
            raise ConfigurationError(
                f"--model.returns={returns} is not known: choose from {', '.join(get_args(Returns))}."
                f"{close_names(returns, get_args(Returns))}"
            )
        self.returns = returns
        self.gamma = gamma
        self.gae_lambda = gae_lambda

    def __call__(self, rewards: Tensor, rollout: Rollout) -> tuple[Tensor, Tensor]:
        """``(advantages, returns)``, each ``(T, N)``, of these rewards in place of the rollout's own."""
        values, next_values = rollout.values, rollout.next_values
        ends = rollout.terminated, rollout.truncated
        if self.returns == "gae":
            return generalized_advantage_estimation(rewards, values, next_values, *ends, self.gamma, self.gae_lambda)
        if self.returns == "lambda":
            returns = lambda_returns(rewards, next_values, *ends, self.gamma, self.gae_lambda)
        else:
            returns = n_step_returns(rewards, next_values, *ends, self.gamma)
        return returns - values, returns
