"""Wrappers that Gymnasium doesn't have."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from ppo_lightning.core.errors import ConfigurationError
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
