"""Where data and algorithms meet: what a dataset asks of an agent, and an agent of the data module."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, Union

import torch
from gymnasium.spaces import Space
from torch import Tensor

from ppo_lightning.core.rollout import Observation, PPOBatch, PPOSequenceBatch, Rollout, State

Batch = Union[PPOBatch, PPOSequenceBatch]


@dataclass
class ActOutput:
    """One step of ``N`` environments: ``actions (N, …)``, ``log_probs (N,)``, ``values (N,)``, the state after it.

    ``env_actions (N, …)`` are what the environments are given: ``actions``, within their bounds.
    """

    actions: Tensor
    log_probs: Tensor
    values: Tensor
    env_actions: Tensor
    state: State | None = None


class Agent(Protocol):
    """What plays and learns. Any object with these members can be trained on a ``RolloutDataset``."""

    @property
    def device(self) -> torch.device:
        """Where observations go and rollouts live."""

    @property
    def update_stopped(self) -> bool:
        """True once the rest of this iteration's minibatches is to be left out (a KL stop)."""

    def collecting(self) -> AbstractContextManager[Any]:
        """The context of a rollout: no gradients, the trainer's precision."""

    def initial_state(self, num_envs: int) -> State | None:
        """The memory at an episode's start, ``(N, *shape)``; None for a policy without memory."""

    def draw_noise(self, num_steps: int, generators: Sequence[torch.Generator]) -> Tensor:
        """The random numbers of a whole rollout's actions, ``(T, N, …)``, one generator an environment."""

    def act(self, obs: Observation, noise: Tensor, state: State | None) -> ActOutput:
        """Choose actions for ``N`` environments."""

    def value_of(self, obs: Observation, state: State | None) -> Tensor:
        """The critic's values ``(N,)``, to bootstrap from."""

    def prepare(self, rollout: Rollout, traces: dict[str, Tensor]) -> Batch:
        """Turn a rollout into the batch that minibatches are drawn from.

        ``traces`` is the agent's own, what it keeps of each environment from rollout to rollout, ``(N,)`` each; empty
        where the environments start anew. It is saved and restored with them.

        The batch's rows are the valid transitions, one time step after another, or the environments of a
        ``MemoryRollout``.
        """

    def start_update(self, batch: Batch, minibatches: Sequence[Tensor]) -> None:
        """Look at the whole update before its first minibatch.

        ``minibatches`` are the rows of ``batch`` that each one takes; none only where other ranks have some.
        """


class RolloutSource(Protocol):
    """What an agent reads from the data module it is trained on."""

    env_steps: int
    """Environment steps so far, over all ranks."""
    iteration: int
    """Rollouts so far."""
    total_timesteps: int | None
    """Environment steps after which training ends."""

    @property
    def observation_space(self) -> Space[Any]:
        """One environment's observations."""

    @property
    def action_space(self) -> Space[Any]:
        """One environment's actions."""

    def rollout_metrics(self) -> dict[str, float]:
        """What the last rollout is reported by: ``rollout/return_mean`` and the like."""

    def rollout_metric_names(self) -> list[str]:
        """The names of ``rollout_metrics``."""
