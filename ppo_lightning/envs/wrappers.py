"""Wrappers that Gymnasium doesn't have."""

from __future__ import annotations

from typing import Any, Optional

import gymnasium
import numpy as np
from gymnasium import spaces

from ppo_lightning.core.errors import ConfigurationError
from ppo_lightning.core.legal import ACTION_MASK, component_sizes
from ppo_lightning.envs.games import GOES_ON, SCORE

_Array = np.ndarray[Any, Any]


class NoisyObservation(gymnasium.ObservationWrapper):
    """What sensors see beside what is true: a Dict of ``noisy`` and ``clean``.

    For an actor that will run on sensors, a critic that may know the truth in simulation, and L2C2 between the two.
    The noise is normal and drawn from the environment's own generator, so that it is a function of its seed and is
    restored with it.

    Args:
        env: its observations are a Box of floats.
        std: of the noise, in the observation's units: one number, or one for each of its elements.

    Raises:
        ConfigurationError: other observations, a ``std`` below 0 or of another length.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], std: float | list[float] = 0.1) -> None:
        super().__init__(env)
        space = env.observation_space
        if not isinstance(space, spaces.Box) or not np.issubdtype(space.dtype, np.floating):
            raise ConfigurationError(
                f"--data.env.wrappers: NoisyObservation is for a Box of floats, not for {space}: leave it out."
            )
        deviations = np.asarray(std, dtype=np.float64)
        if (
            deviations.shape not in ((), space.shape)
            or not (deviations >= 0).all()
            or not np.isfinite(deviations).all()
        ):
            raise ConfigurationError(
                f"--data.env.wrappers: NoisyObservation.std={std} must be at least 0: one number, or one for each of "
                f"the {space.shape} elements of an observation."
            )
        self.std = deviations
        self.observation_space = spaces.Dict(
            noisy=spaces.Box(-np.inf, np.inf, space.shape, space.dtype.type), clean=space
        )

    def observation(self, observation: _Array) -> dict[str, _Array]:
        """The observation twice, once with noise."""
        noise = self.std * self.env.unwrapped.np_random.standard_normal(observation.shape)
        return {"noisy": (observation + noise).astype(observation.dtype), "clean": observation}


class SelectObservation(gymnasium.ObservationWrapper):
    """Some of an observation's numbers: CartPole without its velocities is ``indices: [0, 2]``.

    Args:
        env: its observations are a Box of one dimension.
        indices: of the numbers that are left, in this order.

    Raises:
        ConfigurationError: other observations, or an index beyond them.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], indices: list[int]) -> None:
        super().__init__(env)
        space = env.observation_space
        if not isinstance(space, spaces.Box) or len(space.shape) != 1:
            raise ConfigurationError(
                f"--data.env.wrappers: SelectObservation is for a Box of one dimension, not for {space}: leave it out."
            )
        size = space.shape[0]
        if not indices or not all(0 <= index < size for index in indices):
            raise ConfigurationError(
                f"--data.env.wrappers: SelectObservation.indices={list(indices)} must be of 0 to {size - 1}, at least "
                "one."
            )
        self.indices = list(indices)
        self.observation_space = spaces.Box(space.low[self.indices], space.high[self.indices], dtype=space.dtype.type)

    def observation(self, observation: _Array) -> _Array:
        """The numbers that are left."""
        return observation[self.indices]


class ActionMaskWrapper(gymnasium.Wrapper):
    """Shows which actions are legal beside what is observed, where an environment tells it elsewhere.

    The observation becomes a Dict of ``obs`` and ``action_mask``; one that is a Dict gets the key ``action_mask``. The
    mask of an episode's last observation may be missing: it is all zeros then.

    Args:
        env: its actions are Discrete or MultiDiscrete.
        info_key: where its ``info`` has the mask, after resets and steps: one array for all components, or one each.
        method: takes no arguments and returns the mask, in place of the info; ``action_masks`` is what sb3-contrib's
            environments call it. It is not called where an episode ended.

    Raises:
        ConfigurationError: other actions, an observation that has a mask already, or a method that is not there; at the
            first reset, a mask that is not there or not one of the actions.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], info_key: str = ACTION_MASK, method: Optional[str] = None) -> None:
        super().__init__(env)
        space, actions = env.observation_space, env.action_space
        if not isinstance(actions, (spaces.Discrete, spaces.MultiDiscrete)) or len(actions.shape or ()) > 1:
            raise _mask_error(
                f"is for Discrete actions, and MultiDiscrete ones of one dimension, not for {actions}: leave it out."
            )
        parts = dict(space.spaces) if isinstance(space, spaces.Dict) else {"obs": space}
        if ACTION_MASK in parts:
            raise _mask_error(f"adds the key {ACTION_MASK}, which the observation has already: leave it out.")
        if method is not None and info_key != ACTION_MASK:
            raise _mask_error(f"has info_key={info_key} and method={method}, and takes the mask from one: drop one.")
        if method is not None and not (env.has_wrapper_attr(method) and callable(env.get_wrapper_attr(method))):
            raise _mask_error(
                f"has method={method}, which {type(env.unwrapped).__name__} lacks: name one of its methods, or give "
                "info_key."
            )
        self.info_key = info_key
        self.method = method
        self.sizes = component_sizes(actions)
        size = sum(self.sizes)
        self.observation_space = spaces.Dict([*parts.items(), (ACTION_MASK, spaces.MultiBinary(size))])

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset, and show the mask."""
        obs, info = self.env.reset(seed=seed, options=options)
        return self._beside(obs, self._mask(info)), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step, and show the mask."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        if (terminated or truncated) and (self.method is not None or info.get(self.info_key) is None):
            mask = np.zeros(sum(self.sizes), np.int8)
        else:
            mask = self._mask(info)
        return self._beside(obs, mask), reward, terminated, truncated, info

    def _beside(self, obs: Any, mask: _Array) -> dict[str, Any]:
        return {**(obs if isinstance(obs, dict) else {"obs": obs}), ACTION_MASK: mask}

    def _mask(self, info: dict[str, Any]) -> _Array:
        """``(sum of sizes,)`` int8."""
        if self.method is not None:
            return self._flat(self.env.get_wrapper_attr(self.method)(), f"what {self.method}() returns")
        if info.get(self.info_key) is None:
            raise _mask_error(
                f"finds no {self.info_key!r} in the info, only {sorted(map(str, info))}: name the mask's key by "
                "info_key, or what returns it by method."
            )
        return self._flat(info[self.info_key], f"info[{self.info_key!r}]")

    def _flat(self, given: Any, what: str) -> _Array:
        if isinstance(given, (tuple, list)) and any(np.ndim(part) for part in given):
            mask = np.concatenate([np.ravel(part) for part in given])
            fits = tuple(np.size(part) for part in given) == self.sizes
            size = " + ".join(str(np.size(part)) for part in given)
        else:
            mask = np.asarray(given)
            fits = mask.shape == (sum(self.sizes),)
            size = " × ".join(map(str, mask.shape)) or "1, without a dimension"
        if not fits:
            raise _mask_error(
                f"finds {what} to be of size {size}, and the actions {self.action_space} need "
                f"{' + '.join(map(str, self.sizes))}: return 1 or 0 for each action, one component "
                "after another."
            )
        if mask.dtype.kind not in "biuf" or not ((mask == 0) | (mask == 1)).all():
            raise _mask_error(f"finds {what} to hold other than 0 and 1 ({mask.dtype}): return 1 for legal actions.")
        return mask.astype(np.int8)


def _mask_error(what: str) -> ConfigurationError:
    return ConfigurationError(f"--data.env.wrappers: ActionMaskWrapper {what}")


class EpisodicLife(gymnasium.Wrapper):
    """Ends an episode with each life, and the game only with the last: the next episode goes on where a life was lost.

    Gymnasium's own (``AtariPreprocessing(terminal_on_life_loss=True)``) starts the game anew, so that an agent never
    sees what comes after its first life. ``info[GOES_ON]`` tells whole games from lives.

    Args:
        env: its ``info`` has ``lives``.
        first_action: what the next life begins with, in the agent's place.

    Raises:
        ConfigurationError: no lives, at the first reset.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], first_action: int = 0) -> None:
        super().__init__(env)
        self.first_action = first_action
        self._lives = 0
        self._goes_on = False

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step; a lost life is an end."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        left = int(info["lives"])
        # without lives left some games (Qbert) still play for some frames before they are over
        self._goes_on = 0 < left < self._lives and not (terminated or truncated)
        self._lives = left
        return obs, reward, terminated or self._goes_on, truncated, self._with_note(info)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Go on with the next life; a reset that is told something, or in the midst of a life, starts the game anew."""
        if self._goes_on and seed is None and options is None:
            obs, _, terminated, truncated, info = self.env.step(self.first_action)
            self._goes_on = not (terminated or truncated)
        else:
            self._goes_on = False
        if not self._goes_on:
            obs, info = self.env.reset(seed=seed, options=options)
            if "lives" not in info:
                raise ConfigurationError(
                    "--data.env.wrappers: EpisodicLife is for games with lives, which their info has as 'lives': leave "
                    "it out."
                )
        info, self._goes_on = self._with_note(info), False
        self._lives = int(info["lives"])
        return obs, info

    def _with_note(self, info: dict[str, Any]) -> dict[str, Any]:
        return {**info, GOES_ON: True} if self._goes_on else info


class FireReset(gymnasium.Wrapper):
    """Presses the button that starts the game, after each reset.

    Args:
        env: what starts with ``action``.
        action: that presses the button.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], action: int) -> None:
        super().__init__(env)
        self.action = action

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset and press."""
        self.env.reset(seed=seed, options=options)
        obs, _, terminated, truncated, info = self.env.step(self.action)
        return self.env.reset(options=options) if terminated or truncated else (obs, info)


class ReportedReward(gymnasium.Wrapper):
    """Rewards as they are here are what is reported; wrappers around this one change those to learn from."""

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step, and note the reward."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        return obs, reward, terminated, truncated, {**info, SCORE: float(reward)}
