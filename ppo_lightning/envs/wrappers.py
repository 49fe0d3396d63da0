"""Wrappers that Gymnasium doesn't have."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from ppo_lightning.core.errors import ConfigurationError

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
