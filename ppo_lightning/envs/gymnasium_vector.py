"""A Gymnasium vector environment behind the contract of environments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode

from ppo_lightning.core.errors import ConfigurationError, NotRestorableError
from ppo_lightning.core.plain import from_plain, to_plain
from ppo_lightning.envs.base import Array, ArrayObservation, StepResult, VectorEnv, take_rows
from ppo_lightning.envs.games import Games
from ppo_lightning.envs.resets import as_only_reset
from ppo_lightning.envs.restart import DIED, RESTARTS, RestartBudget, derive_seed
from ppo_lightning.envs.state import VectorState
from ppo_lightning.envs.workers import Workers


class GymnasiumVectorEnv(VectorEnv):
    """A Gymnasium vector environment behind the contract, whether it resets in the same step or in the next.

    Args:
        env: the vector environment.
        seeds: one for each environment's first episode; later episodes go on from there.
        can_restart: each environment is a ``Restarting``, and those in processes are ``Workers``.
    """

    def __init__(self, env: Any, seeds: Sequence[int], can_restart: bool = False) -> None:
        self.env = env
        self.seeds = [int(seed) for seed in seeds]
        self.num_envs = env.num_envs
        self.observation_space = env.single_observation_space
        self.action_space = env.single_action_space
        self.resets_in_next_step = self._reset_mode() == AutoresetMode.NEXT_STEP
        self.render_fps = int(self._metadata().get("render_fps") or 30)
        self._only_resets = np.zeros(self.num_envs, dtype=bool)
        self._broken_off: Array | None = None  # rows to reset in the next step
        self._games = Games(self.num_envs, self.resets_in_next_step)
        self._states = VectorState(env)
        self._can_restart = can_restart
        self._budget = RestartBudget()
        self._is_limit_told = True

    def _reset_mode(self) -> AutoresetMode:
        mode = self.env.metadata.get("autoreset_mode")
        if mode not in (AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP):
            raise ConfigurationError(
                f"--data.env: the vector environment must reset itself, in the same or the next step, but its "
                f"autoreset_mode is {mode}."
            )
        return AutoresetMode(mode)

    def reset(self) -> ArrayObservation:
        self._only_resets[:], self._broken_off = False, None
        self._games.forget(np.ones(self.num_envs, dtype=bool))
        self._states.forget_failure()
        obs, infos = self.env.reset(seed=self.seeds if self._states.is_one_each else self.seeds[0])
        if RESTARTS in infos:
            self._budget.spend(infos, np.zeros(self.num_envs, dtype=bool))
        return _own(obs)

    def end_episodes(self, rows: Array) -> bool:
        if self._states.is_one_each:
            self._broken_off = rows.copy() if self._broken_off is None else self._broken_off | rows
        return self._states.is_one_each

    def allow_restarts(self, limit: int, name: str = "Environment", at_once: bool = False) -> None:
        if self._can_restart:
            self._budget.limit, self._budget.name, self._is_limit_told = limit, name, False
            if at_once:
                self._tell_limit()

    @property
    def restarts(self) -> int:  # type: ignore[override]
        """How many simulators were restarted so far; a run that goes on sets it to where it was."""
        return self._budget.used

    @restarts.setter
    def restarts(self, value: int) -> None:
        self._budget.used = value

    def _tell_limit(self) -> None:
        self._is_limit_told = True
        if isinstance(self.env, Workers):
            self.env.allow_restarts(
                self._budget.limit, lambda row, death: derive_seed(self.seeds[row], DIED, self.restarts + death)
            )
        else:
            self.env.call("allow_restarts", self._budget.limit)

    def step(self, actions: Array) -> StepResult:
        if not self._is_limit_told:
            self._tell_limit()
        result = self._step(actions)
        if self._broken_off is not None:
            rows, self._broken_off = self._broken_off, None
            # the others were reset in this step, at an end of their own
            running = rows & ~(result.episode_starts & ~self._games.continued)
            if running.any():
                obs, infos = self.env.reset(options={"reset_mask": running})
                result.obs = _own(obs)
                if RESTARTS in infos:
                    self._drop(result, infos, infos[f"_{RESTARTS}"] & ~running)
            result = as_only_reset(result, rows)
            self._games.forget(rows)
            self._only_resets &= ~rows
        return result

    def _drop(self, result: StepResult, infos: dict[str, Any], restarted: Array) -> None:
        """Take out of ``result`` the steps of environments that were restarted.

        Where an episode had ended before, or was not begun, nothing is lost.
        """
        dropped = restarted & result.valid & ~(result.terminated | result.truncated)
        self._budget.spend(infos, dropped)
        result.rewards = np.where(dropped, 0, result.rewards)
        result.valid, result.episode_starts = result.valid & ~dropped, result.episode_starts | restarted
        result.dropped = dropped if result.dropped is None else result.dropped | dropped
        self._only_resets = self._only_resets & ~restarted

    def _step(self, actions: Array) -> StepResult:
        obs, rewards, terminated, truncated, infos = self.env.step(self._to_env(actions))
        obs, ended = _own(obs), terminated | truncated
        starts = ended
        valid = np.ones(self.num_envs, dtype=bool)
        if self.resets_in_next_step:
            starts, self._only_resets = self._only_resets, ended
            valid = ~starts
            final_obs = take_rows(obs, np.flatnonzero(ended)) if ended.any() else None
        else:
            has_ends = np.count_nonzero(ended)  # a fifth of the time of any(), which this is asked in every step
            final_obs = self._final_obs(infos, np.flatnonzero(ended)) if has_ends else None
        result = StepResult(obs, rewards, terminated, truncated, starts, valid, final_obs)
        if RESTARTS in infos:
            self._drop(result, infos, infos[f"_{RESTARTS}"])
        self._games.read(result, infos)
        return result

    def _final_obs(self, infos: dict[str, Any], rows: Array) -> ArrayObservation:
        return _stack(self.observation_space, list(infos["final_obs"][rows]))

    def _to_env(self, actions: Array) -> Array:
        """Box actions are clipped to their bounds here, at the door: log-probabilities are of the unclipped ones."""
        space = self.action_space
        if isinstance(space, spaces.Box):
            nearest = np.minimum(np.maximum(actions, space.low), space.high)  # half the time of np.clip
            return nearest.astype(space.dtype, copy=False)
        if isinstance(space, spaces.MultiDiscrete):
            return (actions + space.start).astype(space.dtype)
        if isinstance(space, spaces.MultiBinary):
            return actions.astype(space.dtype)
        assert isinstance(space, spaces.Discrete)
        return actions + space.start if space.start else actions

    def state_dict(self) -> dict[str, Any]:
        simulators = self._states.save()
        lost = self.env.untold() if isinstance(self.env, Workers) else []
        if lost:  # they are another episode's than the observations that were seen last
            raise NotRestorableError(f"the worker process of environment {lost[0]} was lost after the last step")
        return {
            "num_envs": self.num_envs,
            "seeds": self.seeds,
            "resets_in_next_step": self.resets_in_next_step,
            "simulators": simulators,
            "only_resets": to_plain(self._only_resets),
            "broken_off": to_plain(self._broken_off),
            "games": self._games.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state["num_envs"] != self.num_envs:
            raise NotRestorableError(f"the state is one of {state['num_envs']} environments, not of {self.num_envs}")
        if state["resets_in_next_step"] != self.resets_in_next_step:
            raise NotRestorableError("the state is one of environments that reset in another step")
        self.reset()  # the vector environment forgets what it knows of ended episodes
        self.seeds = list(state["seeds"])  # those after the loss of a process follow from them
        only_resets = from_plain(state["only_resets"])
        self._states.load(state["simulators"], only_resets)
        self._only_resets, self._broken_off = only_resets, from_plain(state["broken_off"])
        if "games" in state:  # not in older checkpoints
            self._games.load_state_dict(state["games"])

    def render(self) -> Array:
        return np.stack([np.asarray(picture) for picture in self.env.render()])

    def render_modes(self) -> list[str]:
        """The render modes that the environment names."""
        return [str(mode) for mode in self._metadata().get("render_modes") or []]

    def _metadata(self) -> dict[str, Any]:
        envs = getattr(self.env.unwrapped, "envs", None)
        return (envs[0] if envs else self.env).metadata or {}

    def close(self) -> None:
        if not getattr(self.env, "closed", False):
            self.env.close()


def _stack(space: spaces.Space[Any], observations: Sequence[Any]) -> ArrayObservation:
    """Single observations as the rows of one."""
    if isinstance(space, spaces.Dict):
        return {key: _stack(part, [single[key] for single in observations]) for key, part in space.items()}
    return np.stack(observations)


def _own(obs: Any) -> ArrayObservation:
    """A plain dict for Dict observations; arrays as they are (Gymnasium copies its buffers by default)."""
    return dict(obs) if isinstance(obs, dict) else obs
