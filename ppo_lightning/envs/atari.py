"""Atari games through ale-py, preprocessed as the field does it, by Gymnasium's own wrappers."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Sequence
from typing import Any, Literal, SupportsFloat

import gymnasium
import numpy as np
from gymnasium import wrappers

from ppo_lightning.core.errors import ConfigurationError, check_range, close_names
from ppo_lightning.envs.base import EnvFactory, VectorEnv
from ppo_lightning.envs.gymnasium import GymnasiumEnv
from ppo_lightning.envs.wrappers import EpisodicLife, FireReset, ReportedReward

FRAMES_PER_SECOND = 60
"""Of an Atari 2600."""

_ENTRY_POINT = "ale_py.env:AtariEnv"


class AtariEnv(EnvFactory):
    """An Atari game. An agent sees the last four pictures, and plays a step for every fourth frame.

    What is learned from is one life at a time, with rewards of −1, 0 and 1; what is reported, in training and by the
    evaluation, is whole games with the rewards of the game.

    Args:
        id: ``ALE/Breakout-v5`` and the like.
        vectorization: ``sync`` steps the environments one after another in this process, ``async`` each in a process
            of its own.
        frame_skip: frames a step, in which the action is held; the picture is the maximum of the last two.
        frame_stack: pictures an observation.
        noop_max: a game starts after 1 to so many frames without an action; 0 starts at once.
        episodic_life: an episode ends with a life, the next one goes on with the game.
        fire_reset: press FIRE where a game or a life begins, in games that have the button.
        clip_rewards: learn from the sign of the reward.
        screen_size: of the square grey picture, in pixels.
        full_action_space: all 18 actions, instead of those that do something in the game.
        repeat_action_probability: that a frame repeats the action of the one before ("sticky actions").
        max_num_frames: a game is truncated after so many.

    Raises:
        ConfigurationError: a number outside its range.
    """

    def __init__(
        self,
        id: str,
        vectorization: Literal["sync", "async"] = "sync",
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
    ) -> None:
        check_range("--data.env.noop_max", noop_max, 0)
        check_preprocessing(frame_skip, frame_stack, screen_size, repeat_action_probability)
        check_range("--data.env.max_num_frames", max_num_frames, noop_max + 2 * frame_skip, exclude_low=True)
        self.id = id
        self.vectorization = vectorization
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

    def make(self, seeds: Sequence[int]) -> VectorEnv:
        return self._games().make(seeds)

    def make_rendering(self, seeds: Sequence[int]) -> VectorEnv:
        """In colour and full size, a picture a step."""
        env = self._games().make_rendering(seeds)
        env.render_fps = max(1, round(FRAMES_PER_SECOND / self.frame_skip))
        return env

    def _games(self) -> GymnasiumEnv:
        _check_packages()
        _check_id(self.id)
        options = {
            "frameskip": 1,  # the wrapper's is another: with the maximum
            "repeat_action_probability": 0.0,  # the wrapper's can be saved and restored
            "full_action_space": self.full_action_space,
            "max_num_frames_per_episode": self.max_num_frames,
            "obs_type": "grayscale",  # less to copy than colours, and nobody looks at it
        }
        return GymnasiumEnv(f"ale_py:{self.id}", self.vectorization, options, self._wrappers())

    def _wrappers(self) -> list[Callable[[Any], Any]]:
        """From the innermost to the outermost."""
        preprocess = functools.partial(
            _preprocess,
            noop_max=self.noop_max,
            frame_skip=self.frame_skip,
            screen_size=self.screen_size,
        )
        layers: list[Callable[[Any], Any]] = [preprocess]
        if self.repeat_action_probability > 0:
            repeat = functools.partial(wrappers.StickyAction, repeat_action_probability=self.repeat_action_probability)
            layers.insert(0, repeat)
        if self.fire_reset:
            layers.append(_fire_at_reset)
        if self.episodic_life:
            layers.append(functools.partial(_end_with_lives, fires=self.fire_reset))
        if self.clip_rewards:
            layers += [ReportedReward, functools.partial(wrappers.TransformReward, func=_sign)]
        return [*layers, functools.partial(wrappers.FrameStackObservation, stack_size=self.frame_stack)]


def check_preprocessing(frame_skip: int, frame_stack: int, screen_size: int, repeat_action_probability: float) -> None:
    """Raise :class:`ConfigurationError` where a number is outside its range."""
    check_range("--data.env.frame_skip", frame_skip, 1)
    check_range("--data.env.frame_stack", frame_stack, 1)
    check_range("--data.env.screen_size", screen_size, 1)
    check_range("--data.env.repeat_action_probability", repeat_action_probability, 0, 1, exclude_high=True)


def _check_packages() -> None:
    for module, package in {"ale_py": "ale-py", "cv2": "opencv-python-headless"}.items():
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise ConfigurationError(
                f"--data.env=AtariEnv needs {package}, which cannot be imported here ({error}): "
                "pip install 'ppo-lightning[atari]'."
            ) from error
    _say_nothing()


def _say_nothing() -> None:
    """ALE would print its version with the first game of each process."""
    from ale_py import ALEInterface, LoggerMode

    ALEInterface.setLoggerMode(LoggerMode.Error)


def _check_id(id: str) -> None:
    spec = gymnasium.registry.get(id)
    games = [name for name in gymnasium.registry if name.startswith("ALE/")]
    if spec is not None and id in games:
        return
    same = [
        name
        for name in games
        if spec is not None and spec.kwargs.get("game") == gymnasium.registry[name].kwargs.get("game")
    ]
    if spec is not None and spec.entry_point == _ENTRY_POINT and same:
        raise ConfigurationError(
            f"--data.env.id={id}: AtariEnv has settings of its own for what the names of older versions stand for; "
            f"use {same[0]}."
        )
    full = f"ALE/{id}-v5"
    hint = f" Did you mean {full}?" if full in games else close_names(id, games) or " Ids are like ALE/Breakout-v5."
    what = "is no Atari game: use GymnasiumEnv for it." if spec is not None else f"is not known to ale-py.{hint}"
    raise ConfigurationError(f"--data.env.id={id} {what}")


def _preprocess(env: gymnasium.Env[Any, Any], noop_max: int, **settings: Any) -> gymnasium.Env[Any, Any]:
    meanings: list[str] = env.unwrapped.get_action_meanings()  # type: ignore[attr-defined]
    if noop_max and meanings[0] != "NOOP":
        raise ConfigurationError(
            f"--data.env.noop_max={noop_max}: {env.spec.id if env.spec else env} has no action that does nothing; set "
            "it to 0, or --data.env.full_action_space to true."
        )
    return wrappers.AtariPreprocessing(env, noop_max=noop_max, **settings)


def fire_of(env: gymnasium.Env[Any, Any]) -> int | None:
    """The action that presses FIRE and nothing else; None where a game has none."""
    meanings: list[str] = env.unwrapped.get_action_meanings()  # type: ignore[attr-defined]
    return meanings.index("FIRE") if "FIRE" in meanings else None


def _sign(reward: SupportsFloat) -> float:
    return float(np.sign(float(reward)))


def _fire_at_reset(env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
    fire = fire_of(env)
    return env if fire is None else FireReset(env, fire)


def _end_with_lives(env: gymnasium.Env[Any, Any], fires: bool) -> gymnasium.Env[Any, Any]:
    return EpisodicLife(env, first_action=(fire_of(env) or 0) if fires else 0)
