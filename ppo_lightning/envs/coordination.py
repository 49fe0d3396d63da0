"""A novice and an expert in one environment, and a coordinator to train: who of them takes the next step."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional, Union

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from ppo_lightning.core.errors import ConfigurationError, check_range
from ppo_lightning.envs.agents import KeyedNoise, PlayingAgent, look_at_agent
from ppo_lightning.envs.base import EnvFactory, Score, VectorEnv
from ppo_lightning.envs.coordination_vector import BasePenalty, CoordinationVectorEnv, Costs
from ppo_lightning.envs.gymnasium import GymnasiumEnv
from ppo_lightning.policies.base import Policy
from ppo_lightning.policies.ppo import PPOPolicy

AGENTS = ("novice", "expert")
_MAX_EXPERT_STEPS = 1000  # of the episodes that the base penalty is computed from


@dataclass
class _Loaded:
    """An agent, and what its parameters were when it was loaded (precision may change them)."""

    policy: Policy
    digest: str


class CoordinationEnv(EnvFactory):
    """A novice, an expert, and a coordinator that chooses in each step who of them acts: 0 the novice, 1 the expert.

    Both act by sampling, in evaluation mode, and never learn. The reward is that of ``env``, less
    ``expert_query_cost_weight · base_penalty`` in steps of the expert and ``switch_agent_cost_weight · base_penalty``
    in steps of another agent than that of the step before; the reward of ``env`` itself is reported as base return.

    Args:
        env: what the agents play in.
        novice: a checkpoint of a run of this package; or a Policy.
        expert: likewise.
        expert_query_cost_weight: what a step of the expert costs, in base penalties.
        switch_agent_cost_weight: what a change of the agent costs, in base penalties.
        base_penalty: the unit of costs; by default the expert's mean return over its mean length in ``env``, measured
            before training starts and kept in checkpoints.
        base_penalty_episodes: episodes to measure it by.
        open_novice: show the coordinator the novice's hidden features and logits.
        open_expert: show it the expert's.
        both_act: both agents act in every step, whoever is chosen, as agents with memory must; by default they do where
            one has a memory.
        temperature: at which both sample; 0 takes their most probable actions.

    Raises:
        ConfigurationError: a cost or temperature that is negative or no number, or an infinite cost.
    """

    speed_settings = ("base_penalty_episodes",)

    def __init__(
        self,
        env: Union[EnvFactory, str],
        novice: Union[str, Policy, Path],  # of str and Policy alone, jsonargparse would read a text file of that name
        expert: Union[str, Policy, Path],
        expert_query_cost_weight: float = 0.4,
        switch_agent_cost_weight: float = 0.0,
        base_penalty: Optional[float] = None,
        base_penalty_episodes: int = 256,
        open_novice: bool = True,
        open_expert: bool = False,
        both_act: Optional[bool] = None,
        temperature: float = 1.0,
    ) -> None:
        _check_cost("--data.env.expert_query_cost_weight", expert_query_cost_weight)
        _check_cost("--data.env.switch_agent_cost_weight", switch_agent_cost_weight)
        _check_cost("--data.env.base_penalty", base_penalty or 0)
        check_range("--data.env.base_penalty_episodes", base_penalty_episodes, 1)
        check_range("--data.env.temperature", temperature, 0)
        self.env = GymnasiumEnv(env) if isinstance(env, str) else env
        self.novice = str(novice) if isinstance(novice, Path) else novice
        self.expert = str(expert) if isinstance(expert, Path) else expert
        self.expert_query_cost_weight = expert_query_cost_weight
        self.switch_agent_cost_weight = switch_agent_cost_weight
        self.base_penalty = base_penalty
        self.base_penalty_episodes = base_penalty_episodes
        self.open_novice = open_novice
        self.open_expert = open_expert
        self.both_act = both_act
        self.temperature = temperature
        self._costs = Costs(
            expert_query_cost_weight,
            switch_agent_cost_weight,
            BasePenalty(None if base_penalty is None else float(base_penalty), is_given=base_penalty is not None),
        )
        self._loaded: dict[str, _Loaded] = {}

    def set_costs(self, base_penalty: float) -> None:
        """Charge ``base_penalty`` times the weights from now on, in all environments that were made from this.

        Raises:
            ConfigurationError: it is negative, or no finite number.
        """
        _check_cost("base_penalty", base_penalty)
        self._costs.base_penalty.value = float(base_penalty)
        self._costs.base_penalty.is_given = True

    # -- making

    def make(self, seeds: Sequence[int]) -> VectorEnv:
        return self._around(self.env.make(seeds), seeds)

    def make_rendering(self, seeds: Sequence[int]) -> VectorEnv:
        return self._around(self.env.make_rendering(seeds), seeds)

    def _around(self, env: VectorEnv, seeds: Sequence[int]) -> CoordinationVectorEnv:
        try:
            parts: dict[str, spaces.Space[Any]] = {"base_obs": env.observation_space}
            shapes = {}
            for name, is_open in zip(AGENTS, (self.open_novice, self.open_expert)):
                policy = self._policy(name)
                found = look_at_agent(name, policy, env.observation_space, env.action_space)
                if is_open and not found:
                    raise ConfigurationError(
                        f"--data.env.{name} is no network, so it has nothing to show: set --data.env.open_{name}=false."
                    )
                shapes[name] = found if is_open else {}
                for key, shape in shapes[name].items():
                    parts[f"{name}_{key}"] = spaces.Box(-np.inf, np.inf, shape, np.float32)
            novice, expert = (
                PlayingAgent(name, self._policy(name).fresh(), shapes[name], self._do_both_act(), self.temperature)
                for name in AGENTS
            )
        except BaseException:
            env.close()
            raise
        noise = KeyedNoise(env.action_space, seeds)
        return CoordinationVectorEnv(env, (novice, expert), self._costs, noise, spaces.Dict(parts))

    def _policy(self, name: str) -> Policy:
        """The novice or the expert, loaded once."""
        if name not in self._loaded:
            given: Union[str, Policy] = getattr(self, name)
            policy: Policy
            if isinstance(given, str):
                policy = PPOPolicy.from_checkpoint(given, f"--data.env.{name}")
                policy.model.requires_grad_(False)
            else:
                policy = given
            policy.eval()
            self._loaded[name] = _Loaded(policy, _digest(policy))
        return self._loaded[name].policy

    def _do_both_act(self) -> bool:
        remembering = [name for name in AGENTS if self._policy(name).has_memory]
        left_out = [name for name in remembering if not getattr(self, f"open_{name}")]  # open ones see every step
        if self.both_act is False and left_out:
            raise ConfigurationError(
                f"--data.env.both_act=false would leave steps out of the memory of --data.env.{left_out[0]}: leave it "
                "out, so that both agents see every step."
            )
        return bool(remembering) if self.both_act is None else self.both_act

    def of_share(self, index: int) -> EnvFactory:
        other = copy.copy(self)  # with the same agents and costs
        other.env = self.env.of_share(index)
        return other

    def with_settings(self, settings: Mapping[str, Any], flag: str) -> EnvFactory:
        other = super().with_settings(settings, flag)
        assert isinstance(other, CoordinationEnv)
        for name, loaded in self._loaded.items():
            if getattr(other, name) == getattr(self, name):
                other._loaded[name] = loaded
        if other.base_penalty in (None, self.base_penalty):  # what is found out later holds for both
            other._costs = dataclasses.replace(other._costs, base_penalty=self._costs.base_penalty)
        return other

    # -- the base penalty

    def prepare(self, score: Score) -> str:
        """Measure the base penalty where it is not given: the expert's mean return over its mean length in ``env``."""
        unit = self._costs.base_penalty
        if unit.value is not None or not unit.is_charged:
            return ""
        expert = self._policy("expert").fresh()
        metrics = score(
            self.env,
            expert,
            num_episodes=self.base_penalty_episodes,
            temperature=self.temperature,
            max_num_steps=_MAX_EXPERT_STEPS,
        )
        mean_return, mean_length = metrics["return_mean"], metrics["length_mean"]
        what = f"the expert's mean return {mean_return:.4g} over its mean length {mean_length:.4g}"
        if mean_return <= 0:
            raise ConfigurationError(
                f"--data.env.base_penalty is not given, and {what} makes no cost: give one, or a better expert."
            )
        unit.value = base_penalty = mean_return / mean_length
        return (
            f"The base penalty is {base_penalty:.6g}: {what}, of {self.base_penalty_episodes} episodes "
            f"(--data.env.base_penalty gives another)."
        )

    # -- checkpoints

    def words_of(self, name: str) -> str:
        """Agents by their parameters, wherever their files are."""
        return self._digest_of(name) if name in AGENTS else super().words_of(name)

    def state_dict(self) -> dict[str, Any]:
        """The base penalty, and where the agents come from."""
        agents: dict[str, dict[str, str]] = {}
        for name in AGENTS:
            given: Union[str, Policy] = getattr(self, name)
            agents[name] = {"sha256": self._digest_of(name)}
            if isinstance(given, str):
                agents[name] |= {"path": given, "absolute": str(Path(given).absolute())}
        return {"base_penalty": self._costs.base_penalty.value, "agents": agents}

    def _digest_of(self, name: str) -> str:
        self._policy(name)
        return self._loaded[name].digest

    def load_state_dict(self, state: Mapping[str, Any]) -> str:
        """The base penalty that a run found out goes on to hold."""
        known = state.get("base_penalty")
        unit = self._costs.base_penalty
        if not unit.is_given and isinstance(known, float) and 0 <= known < math.inf:
            unit.value = known
        saved = state.get("agents")
        others = [
            f"--data.env.{name}"
            for name, own in (saved if isinstance(saved, Mapping) else {}).items()
            if name in AGENTS and isinstance(own, Mapping) and own.get("sha256") != self._digest_of(name)
        ]
        return f"The checkpoint was trained with another {' and another '.join(others)}." if others else ""


def _check_cost(flag: str, value: float) -> None:
    check_range(flag, value, 0)
    if value == math.inf:
        raise ConfigurationError(
            f"{flag}=inf would make a step cost more than there are numbers for: give a finite one."
        )


def _digest(policy: Policy) -> str:
    """What a policy would do, as far as its parameters say: the same for two copies of a file."""
    digest = hashlib.sha256(type(policy).__qualname__.encode())
    for name, value in sorted(policy.get_params().items()):
        digest.update(name.encode())
        if isinstance(value, Tensor):
            value = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        digest.update(value if isinstance(value, bytes) else repr(value).encode())
    return digest.hexdigest()
