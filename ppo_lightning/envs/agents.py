"""The novice and the expert as they play in a coordination environment."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from ppo_lightning.core.errors import ConfigurationError
from ppo_lightning.core.plain import from_plain, to_plain
from ppo_lightning.core.rollout import Observation, state_from_plain, state_to_plain
from ppo_lightning.core.spaces import sample_rows
from ppo_lightning.envs.base import Array, ArrayObservation, join_rows, take_rows
from ppo_lightning.functional.distributions import at_least_float32, draw_noise
from ppo_lightning.models.actor_critic import as_observation
from ppo_lightning.policies.base import Policy
from ppo_lightning.policies.ppo import PPOPolicy

_BLOCK = 64  # steps that noise is drawn for at once


class KeyedNoise:
    """The noise of one step after another, by which agents sample: a function of each environment's seed and the step.

    Args:
        action_space: of the agents.
        seeds: one an environment.
    """

    def __init__(self, action_space: spaces.Space[Any], seeds: Sequence[int]) -> None:
        self._action_space, self._seeds = action_space, [int(seed) for seed in seeds]
        self._step = 0
        self._block: Tensor | None = None
        self._drawn = -1

    def next(self) -> Tensor:
        """``(N, …)``, on the CPU."""
        block, row = divmod(self._step, _BLOCK)
        if block != self._drawn:
            generators = [torch.Generator().manual_seed(_key(seed, block)) for seed in self._seeds]
            self._block = draw_noise(self._action_space, _BLOCK, generators, torch.float32, torch.device("cpu"))
            self._drawn = block
        assert self._block is not None
        self._step += 1
        return self._block[row]

    def restart(self) -> None:
        """Begin with the first step again."""
        self._step = 0

    def state_dict(self) -> dict[str, Any]:
        """The seeds, which those of a run that goes on are not, and the steps drawn so far."""
        return {"seeds": list(self._seeds), "step": self._step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self._seeds, self._step = list(state["seeds"]), state["step"]
        self._drawn = -1


def _key(seed: int, block: int) -> int:
    return int(np.random.SeedSequence([seed, block]).generate_state(1)[0])


class PlayingAgent:
    """One of the two agents in one vector environment. Its network runs at most once a step, however many ask for it.

    Args:
        name: novice or expert: what its features are named after.
        policy: acts; nobody else uses this object.
        features: shapes of what it shows of itself, by name without the agent's; none of a closed agent.
        is_ahead: it acts in all rows as soon as observations are there, whoever is chosen; one that shows itself, or
            has a memory, must.
        temperature: by which it samples.
    """

    def __init__(
        self, name: str, policy: Policy, features: Mapping[str, tuple[int, ...]], is_ahead: bool, temperature: float
    ) -> None:
        self.policy = policy
        self._name, self._features, self._temperature = name, dict(features), temperature
        self._is_ahead = is_ahead or bool(features)
        self._obs: ArrayObservation | None = None
        self._noise: Tensor | None = None
        self._actions: Array | None = None
        self._device = policy.device  # asking a network for it takes as long as sampling its actions

    def place(self, convert: Callable[[nn.Module], nn.Module]) -> None:
        """Let ``convert`` move its network to another device or precision."""
        self.policy.place(convert)
        self._device = self.policy.device

    @property
    def needs_noise(self) -> bool:
        """Whether it samples."""
        return self.policy.draws(self._temperature)

    def see(
        self, obs: ArrayObservation, starts: Array, noise: Tensor | None, final: tuple[ArrayObservation, Array] | None
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """Take in the observations to act on next; returns its features of them, and of final observations.

        Args:
            obs: of all ``N`` rows.
            starts: ``(N,)`` bool: the rows where an episode starts.
            noise: of this step, ``(N, …)``.
            final: observations ``(K, *shape)`` that are valued and not acted on, and the rows that they come from.
        """
        self._obs, self._noise, self._actions = obs, noise, None
        if not self._is_ahead:
            return {}, {}
        if final is None or not self._features:
            self.policy.reset(starts)
            own, output = self._act(obs, noise)
            self._actions = own
            return self._shown(output, slice(None)), {}
        return self._see_final(obs, starts, noise, *final)

    def _see_final(
        self, obs: ArrayObservation, starts: Array, noise: Tensor | None, final_obs: ArrayObservation, rows: Array
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """In one forward pass, the final observations with the memory that their episodes ended with."""
        num_envs, policy = len(starts), cast(PPOPolicy, self.policy)
        before = policy.memory
        policy.reset(starts)
        if before is not None:
            picked = torch.from_numpy(rows).to(policy.device)
            policy.memory = torch.cat([cast(Any, policy.memory), cast(Any, before)[picked]])
        if noise is not None:
            noise = torch.cat([noise, noise[torch.from_numpy(rows)]])
        actions, output = self._act(join_rows([obs, final_obs]), noise)
        if policy.memory is not None:
            policy.memory = policy.memory[:num_envs]
        self._actions = actions[:num_envs]
        return self._shown(output, slice(num_envs)), self._shown(output, slice(num_envs, None))

    def unseen(self, rows: int) -> dict[str, Array]:
        """Zeros in place of features that nobody reads."""
        return {f"{self._name}_{key}": np.zeros((rows, *shape), np.float32) for key, shape in self._features.items()}

    def actions(self, rows: Array) -> Array:
        """What it does in the given rows ``(K,)``, as the simulator takes it."""
        if self._actions is not None:
            return self._actions[rows]
        assert self._obs is not None
        noise = None if self._noise is None else self._noise[torch.from_numpy(rows)]
        return self._act(take_rows(self._obs, rows), noise)[0]

    def _act(self, obs: ArrayObservation, noise: Tensor | None) -> tuple[Array, Any]:
        given = None if noise is None else noise.to(self._device)
        return _ask(self.policy, as_observation(obs, self._device), self._temperature, given)

    def _shown(self, output: Any, rows: slice) -> dict[str, Array]:
        return {
            f"{self._name}_{key}": at_least_float32(getattr(output, key)[rows]).cpu().numpy() for key in self._features
        }

    # -- state

    def state_dict(self) -> dict[str, Any]:
        """What it holds between two steps beside the observations, in plain containers."""
        return {"actions": to_plain(self._actions), "memory": state_to_plain(self.policy.memory)}

    def load_state_dict(
        self, state: Mapping[str, Any], obs: ArrayObservation, noise: Tensor | None, num_envs: int
    ) -> None:
        """Go on from there, with the observations and the noise of the step that comes."""
        self._obs, self._noise, self._actions = obs, noise, from_plain(state["actions"])
        self.policy.memory = state_from_plain(state["memory"], num_envs, self._device)


def look_at_agent(
    name: str, policy: Policy, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]
) -> dict[str, tuple[int, ...]]:
    """The shapes of what an agent can show of itself, by name: ``hidden``, and ``logits`` or ``mean``.

    Logits are of Discrete actions alone, as a coordinator takes them for one distribution; a mean is of Box actions.

    Raises:
        ConfigurationError: it can't act in such an environment; names ``--data.env.<name>``.
    """
    flag = f"--data.env.{name}"
    try:
        policy.check_spaces(observation_space, action_space)
    except ConfigurationError as error:
        raise ConfigurationError(f"{flag}: {error}") from error
    obs = sample_rows(observation_space, 2)
    try:
        noise = draw_noise(action_space, 1, [torch.Generator()] * 2, torch.float32, policy.device)[0]
        plain, output = _ask(policy.fresh(), as_observation(obs, policy.device), 1.0, noise)
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ConfigurationError(
            f"{flag} does not fit --data.env.env, with the observations {observation_space} and the actions "
            f"{action_space} ({type(error).__name__}: {reason}): name an agent that was trained on such an environment."
        ) from error
    fits = plain.shape == (2, *(action_space.shape or ()))
    if fits and not isinstance(action_space, spaces.Box):
        fits = bool((plain >= 0).all() and (plain < _counts(action_space)).all())
    if not fits:
        raise ConfigurationError(
            f"{flag} takes other actions than {action_space} of --data.env.env: name an agent that was trained on such "
            "an environment."
        )
    named = {spaces.Discrete: "logits", spaces.Box: "mean"}
    shown = ["hidden", *(key for kind, key in named.items() if isinstance(action_space, kind))]
    return {key: tuple(getattr(output, key).shape[1:]) for key in shown if getattr(output, key, None) is not None}


def _counts(action_space: spaces.Space[Any]) -> Any:
    """How many actions there are to choose from, in each component where there are several."""
    if isinstance(action_space, spaces.MultiDiscrete):
        return action_space.nvec
    return action_space.n if isinstance(action_space, spaces.Discrete) else 2


def _ask(policy: Policy, obs: Observation, temperature: float, noise: Tensor | None) -> tuple[Array, Any]:
    """Its actions, and the output of its network if it has one."""
    output = None
    if isinstance(policy, PPOPolicy):
        actions, output = policy.act(obs, temperature, True, noise=noise)
    else:
        actions = policy.act(obs, temperature, noise=noise)
    return torch.as_tensor(actions).cpu().numpy(), output
