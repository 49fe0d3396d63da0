"""Small environments that show what something is for: masks and memory, and exploration."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from ppo_lightning.core.errors import ConfigurationError, check_range, close_names

_Array = np.ndarray[Any, Any]
_HINTS = ("always", "first")


class Doors(gymnasium.Env[Any, Any]):
    """Walk through open doors of the right kind.

    In each of ``length`` rooms some doors are open, as many with an even number as with an odd one, and
    ``action_mask`` alone tells which. The hint, +1 or −1 all through an episode, says whether even or odd doors earn 1;
    the others earn nothing, and a closed one ends the episode. So the best return is ``length``, that of legal actions
    at random half of it, and a policy that doesn't know the mask is soon at a closed door, whatever it learns.

    Args:
        num_doors: of each room, an even number.
        num_open: of them, an even number.
        length: rooms.
        hint: shown in every room (``always``), or in the first one alone (``first``, 0 after it), so that it must be
            remembered.

    Raises:
        ConfigurationError: numbers that make no rooms, or an unknown ``hint``.
    """

    def __init__(self, num_doors: int = 16, num_open: int = 4, length: int = 20, hint: str = "always") -> None:
        check_range("--data.env.kwargs.length", length, 1)
        if num_doors % 2 or num_open % 2 or not 2 <= num_open <= num_doors:
            raise ConfigurationError(
                f"--data.env.kwargs: num_doors={num_doors} and num_open={num_open} must be even numbers of at least 2, "
                "the second no larger than the first."
            )
        if hint not in _HINTS:
            raise ConfigurationError(
                f"--data.env.kwargs.hint={hint} is not known: choose from {', '.join(_HINTS)}."
                f"{close_names(hint, _HINTS)}"
            )
        self.num_doors, self.num_open, self.length, self.hint = num_doors, num_open, length, hint
        self.observation_space = spaces.Dict(
            obs=spaces.Box(-1, 1, (1,), np.float32), action_mask=spaces.MultiBinary(num_doors)
        )
        self.action_space = spaces.Discrete(num_doors)
        self.kind = 1
        self.room = 0
        self.is_open = np.zeros(num_doors, dtype=np.int8)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, _Array], dict[str, Any]]:
        """The first room."""
        super().reset(seed=seed)
        self.kind = 1 if self.np_random.random() < 0.5 else -1
        self.room = 0
        return self._enter(), {}

    def step(self, action: int) -> tuple[dict[str, _Array], float, bool, bool, dict[str, Any]]:
        """Through a door."""
        was_open = bool(self.is_open[action])
        is_right = was_open and (action % 2 == 0) == (self.kind > 0)
        self.room += 1
        return self._enter(), float(is_right), not was_open or self.room == self.length, False, {}

    def _enter(self) -> dict[str, _Array]:
        """Open the doors of a room, and look."""
        self.is_open = np.zeros(self.num_doors, dtype=np.int8)
        for parity in (0, 1):
            doors = np.arange(parity, self.num_doors, 2)
            self.is_open[self.np_random.choice(doors, self.num_open // 2, replace=False)] = 1
        is_shown = self.hint == "always" or self.room == 0
        return {"obs": np.array([self.kind * is_shown], np.float32), "action_mask": self.is_open.copy()}


class Chain(gymnasium.Env[Any, Any]):
    """Find the one action at each place that leads on, with a reward at the end of the chain alone.

    Any other action ends the episode with nothing. Random actions earn 1 once in ``num_actions ** length`` episodes, so
    it takes curiosity to come there. Observations are one-hot, of the place or of the end; all zeros where one fell.

    Args:
        length: places.
        num_actions: at each.
        layout: the seed by which the actions that lead on are drawn, the same in all episodes.

    Raises:
        ConfigurationError: a number outside its range.
    """

    def __init__(self, length: int = 20, num_actions: int = 4, layout: int = 0) -> None:
        check_range("--data.env.kwargs.length", length, 1)
        check_range("--data.env.kwargs.num_actions", num_actions, 2)
        check_range("--data.env.kwargs.layout", layout, 0)
        self.length = length
        self.observation_space = spaces.Box(0, 1, (length + 1,), np.float32)
        self.action_space = spaces.Discrete(num_actions)
        self.leads_on = np.random.default_rng(layout).integers(num_actions, size=length)
        self.place = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[_Array, dict[str, Any]]:
        """The first place."""
        super().reset(seed=seed)
        self.place = 0
        return self._look(), {}

    def step(self, action: int) -> tuple[_Array, float, bool, bool, dict[str, Any]]:
        """On, or down."""
        if action != self.leads_on[self.place]:
            return np.zeros(self.length + 1, np.float32), 0.0, True, False, {}
        self.place += 1
        is_end = self.place == self.length
        return self._look(), float(is_end), is_end, False, {}

    def _look(self) -> _Array:
        seen = np.zeros(self.length + 1, np.float32)
        seen[self.place] = 1
        return seen


gymnasium.register("Doors-v0", "ppo_lightning.envs.toys:Doors")
gymnasium.register("Chain-v0", "ppo_lightning.envs.toys:Chain")
