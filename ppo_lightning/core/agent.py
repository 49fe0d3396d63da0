"""Where data and algorithms meet: what a dataset asks of an agent, and an agent of the data module."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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

    ``values`` may be None where there is no memory: the agent is asked for those of all steps together after the
    rollout, by its ``value_of``. ``env_actions (N, …)`` are what the environments are given: ``actions``, within their
    bounds. ``extra``, with a tensor ``(N, …)`` a name, is what else the rollout is to hold of this step.
    """

    actions: Tensor
    log_probs: Tensor
    values: Tensor | None
    env_actions: Tensor
    state: State | None = None
    extra: dict[str, Tensor] | None = None


@dataclass(frozen=True)
class Phase:
    """A part of an update: so many passes over the rollout, by which one thing is learned."""

    name: str
    epochs: int


@dataclass
class RolloutEnd:
    """Where the environments stand after a rollout.

    Attributes:
        obs: the observation that the agent acts on next, ``(N, *shape)``.
        state: its memory then.
        traces: the agent's own, what it keeps of each environment from rollout to rollout, ``(N,)`` each; empty where
            the environments start anew. Saved and restored with them.
        num_epochs: passes over the rollout that the update will make.
        make_generators: one an environment, for what the update draws at random for its transitions.
    """

    obs: Observation
    state: State | None
    traces: dict[str, Tensor]
    num_epochs: int
    make_generators: Callable[[], Sequence[torch.Generator]]


class Agent(Protocol):
    """What plays and learns. Any object with these members can be trained on a ``RolloutDataset``."""

    @property
    def device(self) -> torch.device:
        """Where observations go and rollouts live."""

    @property
    def update_stopped(self) -> bool:
        """True once the rest of this iteration's minibatches is to be left out (a KL stop)."""

    @property
    def keeps_next_obs(self) -> bool:
        """Whether rollouts are to hold ``next_obs``."""

    @property
    def warm_up_steps(self) -> int:
        """Random actions that this rank's environments play, all together, before the first rollout; 0 for none."""

    def phases(self, update_epochs: int | None) -> Sequence[Phase]:
        """What an update consists of, in order, where the user asks for ``update_epochs`` passes (None: does not)."""

    def warm_up(self, obs: Observation) -> None:
        """Look at what random actions led to, ``(K, *shape)``; called equally often on all ranks."""

    def collecting(self) -> AbstractContextManager[Any]:
        """The context of a rollout: no gradients, the trainer's precision."""

    def initial_state(self, num_envs: int) -> State | None:
        """The memory at an episode's start, ``(N, *shape)``; None for a policy without memory."""

    def draw_noise(self, num_steps: int, generators: Sequence[torch.Generator]) -> Tensor:
        """The random numbers of a whole rollout's actions, ``(T, N, …)``, one generator an environment."""

    def act(self, obs: Observation, noise: Tensor, state: State | None) -> ActOutput:
        """Choose actions for ``N`` environments."""

    def value_of(self, obs: Observation, state: State | None) -> Tensor:
        """The critic's values of any number of observations ``(K, *shape)``, ``(K,)``."""

    def prepare(self, rollout: Rollout, end: RolloutEnd) -> Batch:
        """Turn a rollout into the batch that minibatches are drawn from.

        The batch's rows are the valid transitions, one time step after another, or the environments of a
        ``MemoryRollout``.
        """

    def start_update(self, batch: Batch, minibatches: Sequence[Tensor], phases: Sequence[str]) -> None:
        """Look at the whole update before its first minibatch.

        ``minibatches`` are the rows of ``batch`` that each one takes; none only where other ranks have some.
        ``phases`` names the phase of each.
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
