"""Simulators that can't be read out: the running episode is played again, from the generator that its reset drew from.

Such a simulator must forget all earlier episodes at a reset. LunarLander does, it makes a new world for each. The
other Box2D environments put the next episode's bodies into the old world, whose order of contacts depends on its past;
the recorder gives them a new world as well.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
import numpy as np

from ppo_lightning.core.errors import NotRestorableError
from ppo_lightning.core.plain import from_plain, to_plain

Renew = Callable[[Any], None]
"""Done to an environment before each of its resets."""


def renew_walker_world(env: Any) -> None:
    """A new world for BipedalWalker's next episode."""
    env._destroy()
    env.world = type(env.world)()


def renew_car_racing_world(env: Any) -> None:
    """A new world for CarRacing's next episode."""
    env._destroy()
    env.car = None
    env.world = type(env.world)((0, 0), contactListener=env.contactListener_keepref)


class Replay:
    """The codec of an environment that a :class:`Recorder` stands around, which has its state.

    Args:
        renew: makes the environment forget its earlier episodes, where its reset doesn't.
    """

    def __init__(self, renew: Renew | None = None) -> None:
        self.renew = renew

    def save(self, layer: Any) -> dict[str, Any]:
        raise NotRestorableError(f"the environment {type(layer).__qualname__} was not recorded from its start")

    def load(self, layer: Any, state: Mapping[str, Any]) -> None:
        self.save(layer)


class Recorder(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Notes what led an environment to where it is: the generator before its last reset, and the actions since.

    Wrappers draw from the same generator between the steps (StickyAction does): where it moved, it is noted as well.

    Args:
        env: the bare environment.
        renew: done to it before each reset.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], renew: Renew | None = None) -> None:
        super().__init__(env)
        self._renew = renew
        self._start: dict[str, Any] = {}
        self._actions = ActionLog()
        self._obs: np.ndarray[Any, Any] = np.zeros(0)
        self._left: Any = None  # the generator as the environment left it
        self._moved: dict[int, Any] = {}  # … and as some steps found it instead, by their number

    @property
    def spec(self) -> Any:  # type: ignore[override]
        return self.env.spec

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self._start = {"seed": seed, "options": copy.deepcopy(options)}
        if seed is None:  # np_random is made, where there is none yet; deepcopy would lose its seed sequence
            generator = from_plain(to_plain(self.env.np_random))
            self._start |= {"np_random": generator, "np_random_seed": self.env._np_random_seed}
        self._actions.clear()
        if self._renew is not None:
            self._renew(self.env)
        obs, info = self.env.reset(seed=seed, options=options)
        self._obs = np.array(obs)
        self._left, self._moved = self._generator(), {}
        return obs, info

    def step(self, action: Any) -> Any:
        found = self._generator()
        if found != self._left:
            self._moved[len(self._actions)] = found
        self._actions.append(action)
        result = self.env.step(action)
        self._obs = np.array(result[0])  # a copy, which no wrapper changes
        self._left = self._generator()
        return result

    def _generator(self) -> Any:
        own = getattr(self.env, "_np_random", None)
        return None if own is None else own.bit_generator.state

    def state_dict(self) -> dict[str, Any]:
        """What the environment is played to its present state from, and what proves that it was reached."""
        if not self._start:
            raise NotRestorableError("it has not been reset")
        generators = {"moved": dict(self._moved), "now": self._generator()}
        return {**self._start, "actions": self._actions.take(), "obs": self._obs, "generators": generators}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Play the environment to where the saved one was.

        Raises:
            NotRestorableError: it came out elsewhere.
        """
        if state["seed"] is None:
            self.env._np_random, self.env._np_random_seed = state["np_random"], state["np_random_seed"]
        self.reset(seed=state["seed"], options=state["options"])
        generators = state.get("generators", {"moved": {}, "now": None})  # not in older checkpoints
        for number, action in enumerate(state["actions"]):
            self._move(generators["moved"].get(number))
            self.step(action)
        self._move(generators["now"])
        if self._obs.tobytes() != state["obs"].tobytes():
            raise NotRestorableError(
                f"the environment {type(self.env).__qualname__}: its {len(state['actions'])} steps, played again, led "
                "elsewhere"
            )

    def _move(self, generator: Any) -> None:
        if generator is not None:
            self.env.np_random.bit_generator.state = generator


class ActionLog:
    """The actions of an episode in one growing array: a thousand are copied in a microsecond."""

    def __init__(self) -> None:
        self._rows: np.ndarray[Any, Any] = np.zeros(0)
        self._length = 0
        self._is_mixed = False

    def __len__(self) -> int:
        return self._length

    def clear(self) -> None:
        self._length, self._is_mixed = 0, False

    def append(self, action: Any) -> None:
        """Note one more."""
        action = np.asarray(action)
        if self._length == 0 and (self._rows.shape[1:] != action.shape or self._rows.dtype != action.dtype):
            self._rows = np.zeros((64, *action.shape), action.dtype)
        elif self._rows.shape[1:] != action.shape or self._rows.dtype != action.dtype:
            self._is_mixed = True
            return
        if self._length == len(self._rows):
            self._rows = np.concatenate([self._rows, np.zeros_like(self._rows)])
        self._rows[self._length] = action
        self._length += 1

    def take(self) -> np.ndarray[Any, Any]:
        """All of them, ``(steps, *shape)``; a copy.

        Raises:
            NotRestorableError: they are of several types.
        """
        if self._is_mixed:
            raise NotRestorableError("an episode with actions of several types cannot be saved")
        return self._rows[: self._length].copy()
