"""What a network returns: everything an agent may need of one forward pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, Union

from torch import Tensor

from ppo_lightning.core.rollout import Observation, State
from ppo_lightning.functional.distributions import Categorical, DiagonalGaussian, Distribution


@dataclass
class PPOModelOutput:
    """For Discrete actions: ``logits (B, A)``, ``value (B,)``, ``hidden (B, H)``."""

    logits: Tensor
    value: Tensor
    hidden: Tensor

    @property
    def distribution(self) -> Categorical:
        return Categorical(self.logits)


@dataclass
class GaussianModelOutput:
    """For Box actions: ``mean (B, D)``, ``logstd (B, D)`` or ``(D,)``, ``value (B,)``, ``hidden (B, H)``."""

    mean: Tensor
    logstd: Tensor
    value: Tensor
    hidden: Tensor

    @property
    def distribution(self) -> DiagonalGaussian:
        return DiagonalGaussian(self.mean, self.logstd)


class ModelOutput(Protocol):
    """What an agent reads of a network's output."""

    value: Tensor

    @property
    def distribution(self) -> Distribution: ...


class MemoryNetwork(Protocol):
    """A network with memory. One without takes ``obs`` alone, returns the output alone, has no ``initial_state``."""

    def initial_state(self, num_envs: int) -> State:
        """The memory at an episode's start, ``(N, *shape)``."""

    def __call__(self, obs: Observation, state: State) -> tuple[ModelOutput, State]: ...


NetworkOutput = Union[PPOModelOutput, GaussianModelOutput]
