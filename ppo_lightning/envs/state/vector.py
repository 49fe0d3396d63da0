"""The simulators of a Gymnasium vector environment, saved and restored together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv

from ppo_lightning.core.errors import NotRestorableError
from ppo_lightning.core.plain import map_arrays
from ppo_lightning.envs.state.layers import find_codec, name_of


class VectorState:
    """Takes and loads the states of a vector environment's simulators.

    Args:
        env: has each environment in a :class:`SimulatorState`, or is of a class that has a codec itself.
    """

    def __init__(self, env: Any) -> None:
        self.env = env
        self._why_not: str | None = None
        self._is_checked = False

    def forget_failure(self) -> None:
        """Ask the simulators again: they were reset."""
        self._why_not = None

    def save(self) -> list[Any]:
        """A list of layers for each simulator, or for all in one. What can't be saved is asked once, not every time.

        Raises:
            NotRestorableError: one of them can't be saved.
        """
        if self._why_not is not None:
            raise NotRestorableError(self._why_not)
        try:
            return self._save()
        except NotRestorableError as error:
            self._why_not = str(error)
            raise

    def _save(self) -> list[Any]:
        if not self.is_one_each:
            return [[(name_of(self.env), find_codec(self.env).save(self.env))]]
        self._refuse_strangers()
        answers = self.env.call("take_simulator_state", to_send=self._has_workers)
        for answer in answers:
            if isinstance(answer, str):
                raise NotRestorableError(answer)
        return [map_arrays(answer, torch.from_numpy) for answer in answers] if self._has_workers else list(answers)

    def load(self, simulators: Sequence[Any], resets_next: Sequence[bool]) -> None:
        """Load what :meth:`save` took into environments that were reset; ``resets_next`` are to reset in a step more.

        Raises:
            NotRestorableError: one of them doesn't fit.
        """
        if not self.is_one_each:
            ((name, state),) = simulators[0]
            if name != name_of(self.env):
                raise NotRestorableError(f"the state is one of {name}, not of {name_of(self.env)}")
            find_codec(self.env).load(self.env, state)
            return
        self._refuse_strangers()
        if self._has_workers:
            simulators = map_arrays(list(simulators), lambda tensor: tensor.numpy())
        states = [
            {"layers": simulator, "resets_next": bool(resets)} for simulator, resets in zip(simulators, resets_next)
        ]
        self.env.set_attr("simulator_state_to_load", states)
        for problem in self.env.call("load_simulator_state"):
            if problem is not None:
                raise NotRestorableError(problem)

    @property
    def is_one_each(self) -> bool:
        """Whether every row is an environment of its own, which can be reset and saved by itself."""
        return isinstance(self.env.unwrapped, (SyncVectorEnv, AsyncVectorEnv))

    @property
    def _has_workers(self) -> bool:
        return isinstance(self.env.unwrapped, AsyncVectorEnv)

    def _refuse_strangers(self) -> None:
        if self._is_checked:
            return
        if self.env is not self.env.unwrapped:
            raise NotRestorableError(f"the wrapper {type(self.env).__qualname__} cannot be saved and restored")
        if not all(self.env.call("has_wrapper_attr", "take_simulator_state")):  # else the call would end the workers
            raise NotRestorableError("environments that are not made by GymnasiumEnv cannot be saved and restored")
        self._is_checked = True
