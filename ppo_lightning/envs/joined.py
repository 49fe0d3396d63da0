"""Several vector environments as one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import nn

from ppo_lightning.core.errors import NotRestorableError
from ppo_lightning.core.legal import LegalActions
from ppo_lightning.envs.base import Array, ArrayObservation, StepResult, VectorEnv, join_rows


class JoinedVectorEnv(VectorEnv):
    """The rows of the first part, then those of the second, and so on; each part steps by itself.

    Args:
        parts: vector environments from one factory.
    """

    def __init__(self, parts: Sequence[VectorEnv]) -> None:
        self.parts = list(parts)
        self.num_envs = sum(part.num_envs for part in parts)
        for name in ("observation_space", "action_space", "reports_solved", "render_fps"):
            setattr(self, name, getattr(parts[0], name))
        self._borders = np.cumsum([part.num_envs for part in parts])[:-1]

    def reset(self) -> ArrayObservation:
        return _join([part.reset() for part in self.parts])

    def step(self, actions: Array) -> StepResult:
        results = [part.step(own) for part, own in zip(self.parts, self._split(actions))]
        for name in ("dropped", "goes_on"):
            if any(getattr(result, name) is not None for result in results):
                for result in results:
                    if getattr(result, name) is None:
                        setattr(result, name, np.zeros_like(result.valid))
        fields = [field.name for field in dataclasses.fields(StepResult)]
        return StepResult(**{name: _join([getattr(result, name) for result in results]) for name in fields})

    def end_episodes(self, rows: Array) -> bool:
        told = [part.end_episodes(own) for part, own in zip(self.parts, self._split(rows))]
        return all(told)

    def allow_restarts(self, limit: int, name: str = "Environment", at_once: bool = False) -> None:
        """Up to ``limit`` in each part, as on each rank."""
        for part in self.parts:
            part.allow_restarts(limit, name, at_once)

    @property
    def restarts(self) -> int:  # type: ignore[override]
        """Of all parts together."""
        return sum(part.restarts for part in self.parts)

    @restarts.setter
    def restarts(self, value: int) -> None:
        each, left = divmod(value, len(self.parts))  # whose they were is only in the state
        for index, part in enumerate(self.parts):
            part.restarts = each + (index < left)

    def state_dict(self) -> dict[str, Any]:
        parts = [part.state_dict() for part in self.parts]
        return {"parts": parts, "restarts": [part.restarts for part in self.parts]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if len(state["parts"]) != len(self.parts):
            raise NotRestorableError(f"the state is one of {len(state['parts'])} parts, not of {len(self.parts)}")
        for part, own in zip(self.parts, state["parts"]):
            part.load_state_dict(own)
        for part, restarts in zip(self.parts, state.get("restarts", [])):  # not in older checkpoints
            part.restarts = restarts

    def why_not_restorable(self) -> str | None:
        return next(filter(None, (part.why_not_restorable() for part in self.parts)), None)

    def legal_actions(self) -> LegalActions | None:
        return self.parts[0].legal_actions()

    def place_networks(self, convert: Callable[[nn.Module], nn.Module]) -> None:
        for part in self.parts:
            part.place_networks(convert)

    def render(self) -> Array:
        return np.concatenate([part.render() for part in self.parts])

    def close(self) -> None:
        for part in self.parts:
            part.close()

    def _split(self, rows: Array) -> list[Array]:
        return np.split(rows, self._borders)


def _join(parts: Sequence[Any]) -> Any:
    """One after another; a part without final observations had no episode that ended."""
    given = [part for part in parts if part is not None]
    return join_rows(given) if given else None
