"""Atari and Procgen by envpool, whose simulators run in threads of C++."""

from __future__ import annotations

import contextlib
import inspect
import io
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ppo_lightning.core.errors import ConfigurationError, NotRestorableError, check_range, close_names
from ppo_lightning.envs.atari import FRAMES_PER_SECOND, check_preprocessing
from ppo_lightning.envs.base import Array, EnvFactory, StepResult, VectorEnv, take_rows
from ppo_lightning.envs.resets import as_only_reset

_OF_ALL = "id", "num_threads"
_OF_PROCGEN = "num_levels", "start_level", "use_backgrounds"


class EnvpoolEnv(EnvFactory):
    """An Atari or Procgen game of envpool's: the fast way. It can't be saved and restored.

    Args:
        id: ``Breakout-v5``, ``CoinrunHard-v0`` and the like.
        num_threads: of the simulators; 0 for one a processor.
        frame_skip: this and the next are of Atari, as of ``AtariEnv``. 2 or more.
        frame_stack: pictures an observation. With ``episodic_life`` those before a lost life stay in it.
        noop_max: a game, and each of its lives, starts after up to so many frames without an action, FIRE included.
        episodic_life: an episode ends with a life, the next one goes on with the game.
        fire_reset: press FIRE where a game or a life begins, in games that have the button.
        clip_rewards: learn from the sign of the reward.
        screen_size: of the square grey picture, in pixels.
        full_action_space: all 18 actions, instead of those that do something in the game.
        repeat_action_probability: that a frame repeats the action of the one before ("sticky actions").
        max_num_frames: a game is truncated after so many, counted in whole steps.
        num_levels: this and the next are of Procgen, as of ``ProcgenEnv``; 0 is unlimited.
        start_level: the first level's seed.
        use_backgrounds: draw the games' backgrounds.

    Raises:
        ConfigurationError: a number outside its range.
    """

    speed_settings = ("num_threads",)

    def __init__(
        self,
        id: str,
        num_threads: int = 0,
        frame_skip: int = 4,
        frame_stack: int = 4,
        noop_max: int = 30,
        episodic_life: bool = True,
        fire_reset: bool = True,
        clip_rewards: bool = True,
        screen_size: int = 84,
        full_action_space: bool = False,
        repeat_action_probability: float = 0.0,
        max_num_frames: int = 108_000,
        num_levels: int = 0,
        start_level: int = 0,
        use_backgrounds: bool = True,
    ) -> None:
        check_range("--data.env.frame_skip", frame_skip, 2)  # envpool would show the maximum of all frames with 1
        check_preprocessing(frame_skip, frame_stack, screen_size, repeat_action_probability)
        check_range("--data.env.noop_max", noop_max, 1)
        check_range("--data.env.max_num_frames", max_num_frames, frame_skip)
        check_range("--data.env.num_threads", num_threads, 0)
        check_range("--data.env.num_levels", num_levels, 0)
        check_range("--data.env.start_level", start_level, 0)
        self.id = id
        self.num_threads = num_threads
        self.frame_skip = frame_skip
        self.frame_stack = frame_stack
        self.noop_max = noop_max
        self.episodic_life = episodic_life
        self.fire_reset = fire_reset
        self.clip_rewards = clip_rewards
        self.screen_size = screen_size
        self.full_action_space = full_action_space
        self.repeat_action_probability = repeat_action_probability
        self.max_num_frames = max_num_frames
        self.num_levels = num_levels
        self.start_level = start_level
        self.use_backgrounds = use_backgrounds

    def make(self, seeds: Sequence[int]) -> VectorEnv:
        return self._make(seeds)

    def make_rendering(self, seeds: Sequence[int]) -> VectorEnv:
        """Atari in colour and full size, Procgen as the agent sees it."""
        return self._make(seeds, render_mode="rgb_array")

    def _make(self, seeds: Sequence[int], **options: Any) -> VectorEnv:
        envpool = _import_envpool()
        config = self._config(envpool)
        is_atari = hasattr(config, "episodic_life")
        if not (is_atari or hasattr(config, "distribution_mode")):
            raise ConfigurationError(
                f"--data.env.id={self.id} is neither an Atari nor a Procgen game: use GymnasiumEnv for it."
            )
        self._refuse_settings_of_others(is_atari)
        options.update(self._atari_options() if is_atari else self._procgen_options())
        options.update(num_envs=len(seeds), num_threads=self.num_threads)
        options["env_seed"] = [int(seed) % (2**31 - 1) for seed in seeds]

        def make_simulators() -> Any:
            return envpool.make(self.id, env_type="gymnasium", **options)

        if is_atari:
            return EnvpoolAtari(make_simulators, self.clip_rewards, max(1, round(FRAMES_PER_SECOND / self.frame_skip)))
        return EnvpoolProcgen(make_simulators)

    def _config(self, envpool: Any) -> Any:
        known = envpool.list_all_envs()
        if self.id not in known:
            full = f"{self.id.removeprefix('ALE/').removesuffix('-v5')}-v5"
            hint = f" Did you mean {full}?" if full in known else close_names(self.id, known)
            raise ConfigurationError(
                f"--data.env.id={self.id} is not known to envpool."
                f"{hint or ' Ids are like Breakout-v5 and CoinrunHard-v0.'}"
            )
        return envpool.make_spec(self.id).config

    def _refuse_settings_of_others(self, is_atari: bool) -> None:
        for name, parameter in inspect.signature(type(self)).parameters.items():
            is_own = name in _OF_ALL or (name in _OF_PROCGEN) != is_atari
            if not is_own and getattr(self, name) != parameter.default:
                raise ConfigurationError(
                    f"--data.env.{name}={getattr(self, name)} is for {'Procgen' if is_atari else 'Atari'} games, which "
                    f"{self.id} is not: leave it out."
                )

    def _atari_options(self) -> dict[str, Any]:
        return {
            "frame_skip": self.frame_skip,
            "stack_num": self.frame_stack,
            "noop_max": self.noop_max,
            "episodic_life": self.episodic_life,
            "use_fire_reset": self.fire_reset,
            "reward_clip": self.clip_rewards,
            "img_height": self.screen_size,
            "img_width": self.screen_size,
            "full_action_space": self.full_action_space,
            "repeat_action_probability": self.repeat_action_probability,
            "max_episode_steps": self.max_num_frames // self.frame_skip,
        }

    def _procgen_options(self) -> dict[str, Any]:
        return {"channel_first": False, **{name: getattr(self, name) for name in _OF_PROCGEN}}


def _import_envpool() -> Any:
    try:
        # the unmaintained gym, which envpool imports, prints a notice
        with contextlib.redirect_stderr(io.StringIO()):
            import envpool
    except ImportError as error:
        version = ".".join(map(str, sys.version_info[:2]))
        raise ConfigurationError(
            f"--data.env=EnvpoolEnv needs the envpool package, which cannot be imported here ({error}): "
            f"pip install 'ppo-lightning[envpool]' on Python 3.11 or newer (this is {version})."
        ) from error
    return envpool


class EnvpoolVectorEnv(VectorEnv):
    """What envpool makes, behind the contract. It resets in the next step, which ignores the action.

    Args:
        make_simulators: makes fresh ones, by envpool's interface for Gymnasium.
    """

    def __init__(self, make_simulators: Callable[[], Any]) -> None:
        self._make_simulators = make_simulators
        self._simulators: Any = make_simulators()
        self._is_fresh = True
        self.num_envs = self._simulators.config["num_envs"]
        self.observation_space = self._simulators.observation_space
        self.action_space = self._simulators.action_space
        self._only_resets, self._broken_off = np.zeros((2, self.num_envs), dtype=bool)

    def reset(self) -> Array:
        if not self._is_fresh:  # the simulators can't be told to start again from their seeds
            self.close()
            self._simulators = self._make_simulators()
        self._is_fresh = False
        self._only_resets, self._broken_off = np.zeros((2, self.num_envs), dtype=bool)
        obs, info = self._simulators.reset()
        self._begin(np.ones(self.num_envs, dtype=bool), info)
        return np.asarray(obs)

    def step(self, actions: Array) -> StepResult:
        obs, rewards, terminated, truncated, info = self._simulators.step(actions.astype(np.int32))
        starts, self._only_resets = self._only_resets, terminated | truncated
        ended = np.flatnonzero(self._only_resets)
        final_obs = take_rows(obs, ended) if len(ended) else None
        result = StepResult(obs, rewards, terminated, truncated, starts, ~starts, final_obs)
        self._read(result, info)
        if self._broken_off.any():
            rows, self._broken_off = self._broken_off, np.zeros(self.num_envs, dtype=bool)
            result.obs = obs.copy()
            result.obs[rows], info = self._simulators.reset(np.flatnonzero(rows).astype(np.int32))
            self._only_resets = self._only_resets & ~rows
            self._begin(rows, info)
            result = as_only_reset(result, rows)
        return result

    def _read(self, result: StepResult, info: dict[str, Any]) -> None:
        """Complete the result of a step by what its ``info`` says."""

    def _begin(self, rows: Array, info: dict[str, Any]) -> None:
        """New games begin in these rows; ``info`` is of them alone."""

    def end_episodes(self, rows: Array) -> bool:
        self._broken_off = self._broken_off | rows
        return True

    def render(self) -> Array:
        return np.asarray(self._simulators.render(env_ids=np.arange(self.num_envs)))

    def state_dict(self) -> dict[str, Any]:
        raise NotRestorableError("envpool does not save and restore its simulators")

    def close(self) -> None:
        self._simulators = None  # its threads end with it; it has no other way


class EnvpoolAtari(EnvpoolVectorEnv):
    """Atari games, whose lives are reported as one.

    Args:
        make_simulators: makes fresh ones.
        clips_rewards: the simulators clip them; ``info`` has them as they were.
        render_fps: pictures a second.
    """

    def __init__(self, make_simulators: Callable[[], Any], clips_rewards: bool, render_fps: int) -> None:
        super().__init__(make_simulators)
        self.render_fps = render_fps
        self._clips_rewards = clips_rewards
        self._lives = np.zeros(self.num_envs, dtype=np.int32)
        self._to_go_on = np.zeros(self.num_envs, dtype=bool)  # the reset is still to come

    def _read(self, result: StepResult, info: dict[str, Any]) -> None:
        over = info["terminated"].astype(bool)
        ended = result.terminated | result.truncated
        result.truncated = result.truncated & ~over
        result.terminated = ended & ~result.truncated
        result.goes_on = result.terminated & ~over
        if self._clips_rewards:
            result.scores = info["reward"]
        # the frames without an action after a lost life may be the game's last ones
        lost = self._to_go_on & result.episode_starts & (info["lives"] > self._lives)
        result.dropped = lost if lost.any() else None
        self._lives, self._to_go_on = info["lives"].copy(), result.goes_on

    def _begin(self, rows: Array, info: dict[str, Any]) -> None:
        self._lives[rows] = info["lives"]
        self._to_go_on = self._to_go_on & ~rows


class EnvpoolProcgen(EnvpoolVectorEnv):
    """Procgen games. Their time limit truncates, unlike that of ``ProcgenEnv``, which has no last observation."""

    reports_solved = True
    render_fps = 15

    def _read(self, result: StepResult, info: dict[str, Any]) -> None:
        result.solved = info["prev_level_complete"].astype(bool)
        reached = result.truncated & result.solved
        result.truncated, result.terminated = result.truncated & ~reached, result.terminated | reached
