"""Games of several episodes: wrappers say in ``info`` what is reported instead of what is learned from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ppo_lightning.core.plain import from_plain, to_plain
from ppo_lightning.envs.base import Array, StepResult

SCORE = "ppo_lightning.score"
"""Where the ``info`` of a step has the reward that is reported, where the one to learn from is another."""

GOES_ON = "ppo_lightning.goes_on"
"""True in the ``info`` of a step that ends an episode but not the game, and of the reset that goes on with it."""


class Games:
    """Reads what a Gymnasium vector environment's ``infos`` say of games.

    A reset may find that the game which was to go on is over (at its time limit, say), or be one of a restarted
    simulator. Nobody knows then what the game would have come to: it is ``dropped``.

    Args:
        num_envs: of the vector environment.
        resets_in_next_step: whether the reset's ``info`` comes a step later than that of the end.
    """

    def __init__(self, num_envs: int, resets_in_next_step: bool) -> None:
        self._resets_in_next_step = resets_in_next_step
        self.continued = np.zeros(num_envs, dtype=bool)
        """``(N,)``: rows whose running episode is not the first of its game."""
        self._to_go_on = np.zeros(num_envs, dtype=bool)  # the reset is still to come
        self._are_told = False  # most environments never say a word of games, and need not be asked in every step

    def forget(self, rows: Array) -> None:
        """New games begin in these rows, whatever was said before."""
        self.continued, self._to_go_on = self.continued & ~rows, self._to_go_on & ~rows

    def read(self, result: StepResult, infos: Mapping[str, Any]) -> None:
        """Complete the result of a step by what its ``infos`` say."""
        if not (infos or self._are_told):
            return
        at_end = infos if self._resets_in_next_step else infos.get("final_info", {})
        result.scores = _scores(infos, infos.get("final_info", {}))
        self._are_told = self._are_told or GOES_ON in infos or GOES_ON in at_end
        if not self._are_told:
            return
        goes_on = _flags(at_end, GOES_ON, result) & (result.terminated | result.truncated)
        promised, self._to_go_on = (self._to_go_on, goes_on) if self._resets_in_next_step else (goes_on, self._to_go_on)
        if not (goes_on.any() or promised.any() or self.continued.any()):
            return
        kept = promised & _flags(infos, GOES_ON, result)
        lost = result.episode_starts & promised & ~kept
        self.continued = np.where(result.episode_starts, kept, self.continued)
        result.goes_on = goes_on
        if lost.any():
            result.dropped = lost if result.dropped is None else result.dropped | lost

    def state_dict(self) -> dict[str, Any]:
        """Where the games stand."""
        return {"continued": to_plain(self.continued), "to_go_on": to_plain(self._to_go_on)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with them."""
        self.continued, self._to_go_on = from_plain(state["continued"]), from_plain(state["to_go_on"])
        self._are_told = True


def _scores(*infos: Mapping[str, Any]) -> Array | None:
    """Those of all rows, of which each has one in one of the ``infos``, or none where it was only reset."""
    told = [np.where(info[f"_{SCORE}"], info[SCORE], 0) for info in infos if SCORE in info]
    return sum(told[1:], start=told[0]) if told else None


def _flags(infos: Mapping[str, Any], name: str, result: StepResult) -> Array:
    if name not in infos:
        return np.zeros_like(result.valid)
    flags: Array = infos[f"_{name}"] & infos[name]
    return flags
