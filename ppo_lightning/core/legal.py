"""Which actions are legal, where observations say so."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from gymnasium import spaces

from ppo_lightning.core.errors import ConfigurationError, TrainingError

ACTION_MASK = "action_mask"
"""The key of a Dict observation under which it says which actions are legal, with 1 or true for those that are."""

_Array = np.ndarray[Any, Any]


def component_sizes(action_space: spaces.Space[Any]) -> tuple[int, ...]:
    """How many actions there are to choose from: one number for Discrete, one a component for MultiDiscrete."""
    if isinstance(action_space, spaces.MultiDiscrete):
        return tuple(action_space.nvec.tolist())
    assert isinstance(action_space, spaces.Discrete)
    return (int(action_space.n),)


def is_masked(observation_space: spaces.Space[Any]) -> bool:
    """Whether observations say which actions are legal."""
    return isinstance(observation_space, spaces.Dict) and ACTION_MASK in observation_space.spaces


def check_mask_space(observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
    """Raise :class:`ConfigurationError` for a mask, where there is one, that does not fit the actions."""
    if not isinstance(observation_space, spaces.Dict) or not is_masked(observation_space):
        return
    mask = observation_space[ACTION_MASK]
    if not isinstance(action_space, (spaces.Discrete, spaces.MultiDiscrete)):
        raise ConfigurationError(
            f"The observation has the key {ACTION_MASK}, and masks are for Discrete and MultiDiscrete actions, not for "
            f"{action_space}: give the key another name, or leave it out with gymnasium.wrappers.FilterObservation."
        )
    size = sum(component_sizes(action_space))
    if not _is_of_bits(mask) or mask.shape != (size,):
        raise ConfigurationError(
            f"The observation's {ACTION_MASK} is {mask}, and one of the actions {action_space} must be MultiBinary"
            f"({size}), or a Box from 0 to 1 of {size} integers or bools: change it in the environment, or leave it "
            "out with gymnasium.wrappers.FilterObservation."
        )


def _is_of_bits(space: spaces.Space[Any]) -> bool:
    if isinstance(space, spaces.Box):
        return space.dtype.kind in "biu" and bool((space.low == 0).all() and (space.high == 1).all())
    return isinstance(space, spaces.MultiBinary)


@dataclass(frozen=True)
class LegalActions:
    """Where in an observation the mask is, and which actions it is of.

    Attributes:
        path: the keys that lead to it.
        action_space: Discrete or MultiDiscrete.
        is_own: the actions are those of the environment whose observations they are; otherwise those of agents that
            play in it.
    """

    path: tuple[str, ...]
    action_space: spaces.Space[Any]
    is_own: bool = True

    @classmethod
    def told_by(cls, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> LegalActions | None:
        """What an environment of these spaces tells; None where it tells nothing."""
        return cls((ACTION_MASK,), action_space) if is_masked(observation_space) else None

    def below(self, key: str) -> LegalActions:
        """The same in what is shown under ``key`` to somebody else than who acts."""
        return LegalActions((key, *self.path), self.action_space, is_own=False)

    @cached_property
    def _borders(self) -> list[int]:
        borders: list[int] = np.cumsum(component_sizes(self.action_space))[:-1].tolist()
        return borders

    def masks(self, obs: Any) -> list[_Array]:
        """Of each component, ``(N, n)``, from observations ``(N, *shape)``."""
        for key in self.path:
            obs = obs[key]
        return np.split(np.asarray(obs), self._borders, axis=-1)

    def first(self, obs: Any) -> _Array:
        """The first legal actions, ``(N,)`` or ``(N, D)``, each from 0; 0 where none is legal."""
        firsts = np.stack([mask.argmax(axis=-1) for mask in self.masks(obs)], axis=-1)
        return firsts.reshape(len(firsts), *(self.action_space.shape or ()))

    def check(self, obs: Any, rows: _Array, place: str) -> None:
        """Raise :class:`TrainingError` for an observation that is to be acted on and allows nothing.

        Args:
            obs: ``(N, *shape)``.
            rows: ``(N,)`` bool: those that are acted on.
            place: completes "environment 3 …".
        """
        for component, mask in enumerate(self.masks(obs)):
            stuck = np.flatnonzero(rows & ~mask.any(axis=-1))
            if len(stuck):
                which = f" of component {component}" if self.action_space.shape else ""
                raise TrainingError(
                    f"The {ACTION_MASK} of environment {stuck[0]} {place} allows no action{which}, and one has to be "
                    "taken: let the environment end the episode before, or allow an action that does nothing."
                )
