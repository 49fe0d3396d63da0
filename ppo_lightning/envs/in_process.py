"""Environments one after another in this process, with little around their steps."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.vector.utils import concatenate

from ppo_lightning.envs.base import Array
from ppo_lightning.envs.games import GOES_ON, SCORE
from ppo_lightning.envs.restart import RESTARTS

_KEPT = frozenset((RESTARTS, SCORE, GOES_ON))


class InProcess(SyncVectorEnv):
    """A ``SyncVectorEnv`` with half as much around the simulators' steps, where it resets in the same step.

    Of what simulators tell in ``info`` it keeps what this package reads (``_KEPT``): most of Gymnasium's time goes into
    gathering the rest, of which nothing is asked.
    """

    def step(self, actions: Any) -> tuple[Any, Array, Array, Array, dict[str, Any]]:
        """One step of each environment, and the reset of those whose episode ended."""
        if self.autoreset_mode != AutoresetMode.SAME_STEP or not isinstance(actions, np.ndarray):
            return super().step(actions)
        all_obs, rewards = self._env_obs, np.empty(self.num_envs, dtype=np.float64)
        terminations, truncations = np.zeros((2, self.num_envs), dtype=np.bool_)
        infos: dict[str, Any] = {}
        for row, (env, action) in enumerate(zip(self.envs, actions)):
            obs, rewards[row], terminated, truncated, info = env.step(action)
            if terminated or truncated:
                terminations[row], truncations[row] = terminated, truncated
                infos = self._add_info(infos, {"final_obs": obs, "final_info": _kept(info)}, row)
                obs, info = env.reset()
            all_obs[row] = obs
            if not _KEPT.isdisjoint(info):
                infos = self._add_info(infos, _kept(info), row)
        return self._gather(), rewards, terminations, truncations, infos

    def _gather(self) -> Any:
        """The last observation of each environment, as one of all that nothing writes over."""
        space = self.single_observation_space
        if type(space) is spaces.Box:
            gathered = np.empty((self.num_envs, *space.shape), dtype=space.dtype)
            for row, obs in enumerate(self._env_obs):
                if not _fits(obs, space):
                    break
                gathered[row] = obs
            else:
                return gathered
        self._observations = concatenate(space, self._env_obs, self._observations)
        return copy.deepcopy(self._observations)


def _fits(obs: Any, space: spaces.Box) -> bool:
    """Whether numpy has nothing to convert; else Gymnasium says what it makes of it, or that it is wrong."""
    return type(obs) is np.ndarray and obs.shape == space.shape and obs.dtype == space.dtype


def _kept(info: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in info.items() if name in _KEPT}
