"""Environments in which a novice and an expert play, and who of them takes the next step is the action.

The problem of yielding and requesting control (Danesh et al., "Learning to Coordinate with Experts",
arXiv 2502.09583): ``r = R(s, a) - 1[x = expert]·α·BP - 1[x ≠ x of the step before]·β·BP``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from ppo_lightning.core.errors import ConfigurationError, NotRestorableError
from ppo_lightning.core.legal import LegalActions
from ppo_lightning.core.plain import from_plain, to_plain
from ppo_lightning.envs.agents import KeyedNoise, PlayingAgent
from ppo_lightning.envs.base import Array, ArrayObservation, StepResult, VectorEnv
from ppo_lightning.policies.coordination import EXPERT, NOVICE

_NOBODY = -1  # took the step before an episode's first


@dataclass
class BasePenalty:
    """The unit of costs, in units of reward. Environments share one.

    Attributes:
        value: None as long as it is not known.
        is_given: it was not found out; a checkpoint's does not replace it.
        is_charged: some of the environments charge it.
    """

    value: float | None = None
    is_given: bool = False
    is_charged: bool = False


@dataclass(frozen=True)
class Costs:
    """What is charged a step: the base penalty (BP) times two weights.

    Attributes:
        expert_query_weight: α.
        switch_agent_weight: β.
        base_penalty: BP.
    """

    expert_query_weight: float
    switch_agent_weight: float
    base_penalty: BasePenalty

    def __post_init__(self) -> None:
        self.base_penalty.is_charged |= self.are_charged

    @property
    def are_charged(self) -> bool:
        """Whether a step may cost something."""
        return bool(self.expert_query_weight or self.switch_agent_weight)

    def of(self, actions: Array, previous: Array) -> Array:
        """Of one step: ``actions (N,)``, and those of the step before or -1 in an episode's first; ``(N,)`` float64.

        Raises:
            ConfigurationError: the base penalty is not known.
        """
        if self.base_penalty.value is None and self.are_charged:
            raise ConfigurationError(
                "The costs of CoordinationEnv are not known yet: give --data.env.base_penalty, or call set_costs."
            )
        unit = self.base_penalty.value or 0.0
        asked = (actions == EXPERT) * (self.expert_query_weight * unit)
        switched = ((actions != previous) & (previous != _NOBODY)) * (self.switch_agent_weight * unit)
        return asked + switched


class CoordinationVectorEnv(VectorEnv):
    """``N`` environments in which action 0 lets the novice take the next step, and action 1 the expert.

    Observations are a dict: ``base_obs``, and of an open agent ``<name>_hidden`` and ``<name>_logits`` (of Box actions
    ``<name>_mean``).

    Args:
        env: what the agents play in.
        agents: the novice and the expert.
        costs: what is charged.
        noise: by which the agents sample.
        observation_space: of the coordinator.
    """

    def __init__(
        self,
        env: VectorEnv,
        agents: tuple[PlayingAgent, PlayingAgent],
        costs: Costs,
        noise: KeyedNoise,
        observation_space: spaces.Dict,
    ) -> None:
        self.env = env
        self.num_envs, self.reports_solved, self.render_fps = env.num_envs, env.reports_solved, env.render_fps
        self.observation_space = observation_space
        self.action_space = spaces.Discrete(2)
        self._agents, self._costs = agents, costs
        self._noise = noise if any(agent.needs_noise for agent in agents) else None
        self._noise_now: Tensor | None = None
        self._obs: ArrayObservation | None = None
        self._previous = np.full(self.num_envs, _NOBODY)

    def reset(self) -> ArrayObservation:
        if self._noise is not None:
            self._noise.restart()
        self._previous[:] = _NOBODY
        return self._see(self.env.reset(), np.ones(self.num_envs, dtype=bool), None)[0]

    def step(self, actions: Array) -> StepResult:
        base_actions = self._act(actions)
        result = self.env.step(base_actions)
        costs = np.where(result.valid, self._costs.of(actions, self._previous), 0)
        self._previous = np.where(result.episode_starts, _NOBODY, actions)
        obs, final_obs = self._see(result.obs, result.episode_starts, result)
        if result.base_rewards is None:
            result.base_rewards = result.rewards if result.scores is None else result.scores
        result.base_actions = base_actions
        result.rewards = result.rewards.astype(np.float64) - costs
        result.scores = None if result.scores is None else result.scores - costs
        result.obs, result.final_obs = obs, final_obs
        return result

    def _act(self, actions: Array) -> Array:
        rows = [np.flatnonzero(actions == number) for number in (NOVICE, EXPERT)]
        chosen = [agent.actions(own) for agent, own in zip(self._agents, rows) if len(own)]
        base_actions: Array = np.concatenate(chosen)
        if len(chosen) > 1:
            base_actions[np.concatenate(rows)] = base_actions.copy()
        return base_actions

    def _see(
        self, obs: ArrayObservation, starts: Array, result: StepResult | None
    ) -> tuple[ArrayObservation, ArrayObservation | None]:
        """Show the agents what they act on next; returns what the coordinator sees of it, and of final observations."""
        self._obs = obs
        self._noise_now = self._noise.next() if self._noise is not None else None
        shown: dict[str, Any] = {"base_obs": obs}
        final: dict[str, Any] | None = None
        valued = None
        if result is not None and result.final_obs is not None:
            final = {"base_obs": result.final_obs}
            ended = np.flatnonzero(result.terminated | result.truncated)
            if result.truncated.any():
                valued = result.final_obs, ended
        for agent in self._agents:
            own, own_final = agent.see(obs, starts, self._noise_now, valued)
            shown.update(own)
            if final is not None:
                final.update(own_final if valued is not None else agent.unseen(len(ended)))
        return shown, final

    def end_episodes(self, rows: Array) -> bool:
        return self.env.end_episodes(rows)

    def allow_restarts(self, limit: int, name: str = "Environment", at_once: bool = False) -> None:
        self.env.allow_restarts(limit, name, at_once)

    @property
    def restarts(self) -> int:  # type: ignore[override]
        """Of the environment that the agents play in."""
        return self.env.restarts

    @restarts.setter
    def restarts(self, value: int) -> None:
        self.env.restarts = value

    def legal_actions(self) -> LegalActions | None:
        """Those of the agents; the coordinator's own are always legal."""
        told = self.env.legal_actions()
        return None if told is None else told.below("base_obs")

    def place_networks(self, convert: Callable[[nn.Module], nn.Module]) -> None:
        self.env.place_networks(convert)
        for agent in self._agents:
            agent.place(convert)

    def render(self) -> Array:
        return self.env.render()

    def state_dict(self) -> dict[str, Any]:
        return {
            "env": self.env.state_dict(),
            "obs": to_plain(self._obs),
            "previous": to_plain(self._previous),
            "noise": self._noise.state_dict() if self._noise is not None else None,
            "noise_now": to_plain(self._noise_now.numpy() if self._noise_now is not None else None),
            "agents": [agent.state_dict() for agent in self._agents],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        previous = from_plain(state["previous"])
        if previous.shape != (self.num_envs,):
            raise NotRestorableError(f"the state is one of {len(previous)} environments, not of {self.num_envs}")
        self.env.load_state_dict(state["env"])
        self._previous, self._obs = previous, from_plain(state["obs"])
        noise_now = from_plain(state["noise_now"])
        self._noise_now = None if noise_now is None else torch.from_numpy(noise_now)
        if self._noise is not None and state["noise"] is not None:
            self._noise.load_state_dict(state["noise"])
        assert self._obs is not None
        for agent, own in zip(self._agents, state["agents"]):
            agent.load_state_dict(own, self._obs, self._noise_now, self.num_envs)

    def why_not_restorable(self) -> str | None:
        return self.env.why_not_restorable()

    def close(self) -> None:
        self.env.close()
