"""Coordinators that need no training: policies over the two actions of a coordination environment."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from gymnasium import spaces
from tensordict import TensorDictBase
from torch import Tensor

from ppo_lightning.core.errors import ConfigurationError, check_range, close_names
from ppo_lightning.functional.confidence import CONFIDENCES
from ppo_lightning.functional.distributions import Categorical, temper
from ppo_lightning.models.actor_critic import RawObservation
from ppo_lightning.policies.base import Policy

NOVICE, EXPERT = 0, 1
"""The actions of a coordinator: who takes the next step."""


class Coordinator(Policy):
    """Base of policies that choose between a novice and an expert."""

    def check_spaces(self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
        if not isinstance(observation_space, spaces.Dict) or "base_obs" not in observation_space.spaces:
            raise ConfigurationError(
                f"{type(self).__name__} chooses between a novice and an expert, and --data.env has neither: set "
                "--data.env to CoordinationEnv."
            )


class AlwaysPolicy(Coordinator):
    """Lets the same agent take every step.

    Args:
        agent: novice or expert.

    Raises:
        ConfigurationError: another name.
    """

    def __init__(self, agent: Literal["novice", "expert"]) -> None:
        if agent not in ("novice", "expert"):
            raise ConfigurationError(f"AlwaysPolicy.agent={agent} is neither novice nor expert: choose one of them.")
        self.agent = agent

    def __str__(self) -> str:
        return f"always {self.agent}"

    def act(self, obs: RawObservation, temperature: float = 1.0, *, noise: Tensor | None = None) -> Tensor:
        return torch.full((_rows(obs),), EXPERT if self.agent == "expert" else NOVICE)

    def draws(self, temperature: float) -> bool:
        return False


class RandomPolicy(Coordinator):
    """Asks the expert with a fixed probability in each step, at any temperature.

    Args:
        expert_probability: from 0, never, to 1, always.

    Raises:
        ConfigurationError: not a probability.
    """

    def __init__(self, expert_probability: float = 0.5) -> None:
        check_range("RandomPolicy.expert_probability", expert_probability, 0, 1)
        self.expert_probability = expert_probability

    def __str__(self) -> str:
        return f"random {self.expert_probability:g}"

    def act(self, obs: RawObservation, temperature: float = 1.0, *, noise: Tensor | None = None) -> Tensor:
        probabilities = torch.tensor([1 - self.expert_probability, self.expert_probability], dtype=torch.float32)
        distribution = Categorical(probabilities.log().expand(_rows(obs), 2))
        return distribution.sample(distribution.noise() if noise is None else noise.cpu())

    def draws(self, temperature: float) -> bool:
        return True

    def get_params(self) -> dict[str, Any]:
        return {"expert_probability": self.expert_probability}

    def set_params(self, params: Mapping[str, Any]) -> None:
        _check_names(self, params)
        self.__init__(**{**self.get_params(), **params})  # type: ignore[misc]


class LogitThresholdPolicy(Coordinator):
    """Asks the expert where the novice's confidence is below a threshold, at any temperature of the evaluation.

    Args:
        confidence: measured on the novice's logits (``functional.confidence``): max_logit, max_prob, margin, entropy
            (its negative) or energy.
        threshold: in the unit of the measure; ``ppo-lightning calibrate`` finds good ones.
        temperature: the novice's logits are divided by it before they are measured.

    Raises:
        ConfigurationError: a measure that is not known, a threshold that is no number, or a temperature of 0 or less.
    """

    def __init__(self, confidence: str = "max_prob", threshold: float = 0.5, temperature: float = 1.0) -> None:
        check_confidence("LogitThresholdPolicy.confidence", confidence)
        check_range("LogitThresholdPolicy.temperature", temperature, 0, exclude_low=True)
        if math.isnan(threshold):
            raise ConfigurationError("LogitThresholdPolicy.threshold=nan is no number: give one.")
        self.confidence = confidence
        self.threshold = threshold
        self.temperature = temperature

    def check_spaces(self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
        super().check_spaces(observation_space, action_space)
        assert isinstance(observation_space, spaces.Dict)
        if "novice_logits" not in observation_space.spaces:
            raise ConfigurationError(
                "LogitThresholdPolicy reads the novice's logits, which the environment does not show: set "
                "--data.env.open_novice=true, with a novice of discrete actions."
            )

    def __str__(self) -> str:
        return f"{self.confidence} < {self.threshold:.4g}"

    def act(self, obs: RawObservation, temperature: float = 1.0, *, noise: Tensor | None = None) -> Tensor:
        assert isinstance(obs, (Mapping, TensorDictBase))
        return torch.where(self.confidence_of(torch.as_tensor(obs["novice_logits"])) < self.threshold, EXPERT, NOVICE)

    def confidence_of(self, logits: Tensor) -> Tensor:
        """What is compared with the threshold: ``(B, A)`` logits of the novice to ``(B,)``."""
        return CONFIDENCES[self.confidence](temper(logits, self.temperature))

    def draws(self, temperature: float) -> bool:
        return False

    def get_params(self) -> dict[str, Any]:
        return {"confidence": self.confidence, "threshold": self.threshold, "temperature": self.temperature}

    def set_params(self, params: Mapping[str, Any]) -> None:
        _check_names(self, params)
        self.__init__(**{**self.get_params(), **params})  # type: ignore[misc]


def check_confidence(flag: str, name: str) -> None:
    """Raise :class:`ConfigurationError` unless ``name`` is a measure of confidence; names ``flag``."""
    if name not in CONFIDENCES:
        raise ConfigurationError(
            f"{flag}={name} is not a measure of confidence: choose from {', '.join(CONFIDENCES)}."
            f"{close_names(name, CONFIDENCES)}"
        )


def _check_names(policy: Policy, params: Mapping[str, Any]) -> None:
    for name in params:
        if name not in policy.get_params():
            raise ConfigurationError(
                f"{type(policy).__name__} has no parameter {name!r}: choose from {', '.join(policy.get_params())}."
            )


def _rows(obs: RawObservation) -> int:
    while isinstance(obs, Mapping) and not isinstance(obs, TensorDictBase):
        obs = next(iter(obs.values()))
    return len(obs)
