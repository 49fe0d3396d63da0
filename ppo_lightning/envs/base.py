"""The contract that every simulator is adapted to."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Union

import numpy as np
from gymnasium import spaces

Array = np.ndarray[Any, Any]
ArrayObservation = Union[Array, dict[str, Array]]
"""``(N, *shape)``, or a dict of such for Dict spaces."""


@dataclass
class StepResult:
    """One step of ``N`` environments.

    Attributes:
        obs: the next observation ``(N, *shape)``: what the policy acts on next, so after a same-step reset the new
            episode's first.
        rewards: ``(N,)``.
        terminated: ``(N,)`` bool: the episode ended in a terminal state; no value follows.
        truncated: ``(N,)`` bool: the episode was cut off; the value of ``final_obs`` follows.
        episode_starts: ``(N,)`` bool: ``obs`` is the first of an episode.
        valid: ``(N,)`` bool: false where this step was only a reset (its action was ignored).
        final_obs: the true last observations of the rows that ended, ``(K, *shape)`` in row order; None where none
            ended or the simulator does not give them (then nothing is ``truncated``).
        base_rewards: ``(N,)`` rewards before costs, where an environment adds some.
    """

    obs: ArrayObservation
    rewards: Array
    terminated: Array
    truncated: Array
    episode_starts: Array
    valid: Array
    final_obs: ArrayObservation | None = None
    base_rewards: Array | None = None


class VectorEnv(ABC):
    """``num_envs`` environments stepped together, each starting its next episode by itself."""

    num_envs: int
    observation_space: spaces.Space[Any]
    """One environment's observations."""
    action_space: spaces.Space[Any]
    """One environment's actions."""

    @abstractmethod
    def reset(self) -> ArrayObservation:
        """Start every environment's first episode, from the seeds it was made with."""

    @abstractmethod
    def step(self, actions: Array) -> StepResult:
        """Play one action in each environment."""

    @abstractmethod
    def close(self) -> None:
        """Free the simulator. Safe to call twice."""


class EnvFactory(ABC):
    """The settings of an environment, from which any number of them can be made: for training, for evaluation."""

    @abstractmethod
    def make(self, seeds: Sequence[int]) -> VectorEnv:
        """One environment a seed.

        Raises:
            ConfigurationError: the environment is unknown, cannot be made, or has unsupported spaces.
        """


def take_rows(obs: ArrayObservation, rows: Array) -> ArrayObservation:
    """The given rows of an observation, copied."""
    if isinstance(obs, dict):
        return {key: value[rows] for key, value in obs.items()}
    return obs[rows]
