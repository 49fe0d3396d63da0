"""MiniGrid's environments: a grid of things, which fields of the environment and other things know as well."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from ppo_lightning.core.errors import NotRestorableError
from ppo_lightning.core.plain import TAG, from_plain, to_plain
from ppo_lightning.envs.state.fields import ENV_FIELDS, describe, list_names

_THINGS = frozenset({
    "minigrid.core.grid:Grid",
    "minigrid.core.roomgrid:Room",
    *(f"minigrid.core.world_object:{name}" for name in ("Ball", "Box", "Door", "Floor", "Goal", "Key", "Lava", "Wall")),
    "minigrid.envs.lockedroom:LockedRoom",
    "minigrid.envs.multiroom:MultiRoom",
})  # fmt: skip

_SETTINGS = frozenset({
    # of all, and what pictures are drawn with
    "actions", "agent_pov", "agent_view_size", "height", "highlight", "max_steps", "reward_range", "screen_size",
    "see_through_walls", "tile_size", "width", "window", "clock", "render_size",
    # of some
    "_agent_default_pos", "_goal_default_pos", "agent_room", "agent_start_dir", "agent_start_pos", "blocked",
    "key_in_box", "maxNumRooms", "maxRoomSize", "minNumRooms", "n_obstacles", "num_cols", "num_crossings",
    "num_quarters", "num_rows", "numObjs", "obj_type", "obj_types", "obstacle_type", "random_length", "room_size",
    "size", "strip2_row",
})  # fmt: skip


class MiniGridWorld:
    """The codec of MiniGrid's environments: every field but the settings, and every thing that they lead to, once.

    A door that the grid, two rooms and a field know is the same door again. A thing's state is all of its fields.
    """

    # Not Replay, though a seed and the actions make an episode: wrappers such as StochasticActionWrapper and
    # StickyAction draw from the environment's generator between its steps, so that they don't make this one. And not
    # Fields, which must name every field to miss none: here one that is not known is saved, or refused by its type.

    def save(self, layer: Any) -> dict[str, Any]:
        if not hasattr(layer, "step_count"):
            raise NotRestorableError(f"{describe(layer)} has no state yet: reset it first")
        things = _Things()
        try:
            fields = {name: things.pack(getattr(layer, name)) for name in _names(layer)}
            return {"fields": fields, "things": things.pack_all()}
        except NotRestorableError as error:
            raise NotRestorableError(f"{describe(layer)} holds {error}") from None

    def load(self, layer: Any, state: Mapping[str, Any]) -> None:
        try:
            self._load(layer, state)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise NotRestorableError(f"the state is not one that {describe(layer)} was saved in") from error

    def _load(self, layer: Any, state: Mapping[str, Any]) -> None:
        if state["fields"].keys() != _names(layer):
            raise NotRestorableError(
                f"{describe(layer)} has other fields than the saved one: "
                f"{list_names(state['fields'].keys() ^ _names(layer))}"
            )
        things = [_make(kind) for kind, _ in state["things"]]
        for thing, (_, fields) in zip(things, state["things"]):
            vars(thing).update({name: _unpack(value, things) for name, value in fields.items()})
        for name, value in state["fields"].items():
            setattr(layer, name, _unpack(value, things))


def _names(layer: Any) -> set[str]:
    return {*(vars(layer).keys() - ENV_FIELDS - _SETTINGS), "_np_random", "_np_random_seed"}


class _Things:
    """Those found so far, in the order in which they are referred to by number."""

    def __init__(self) -> None:
        self._found: list[Any] = []
        self._numbers: dict[int, int] = {}

    def pack(self, value: Any) -> Any:
        """``value`` with a number for each thing; things lie in fields, lists and tuples."""
        if type(value) in (list, tuple):
            return type(value)(self.pack(item) for item in value)
        if _full_name(value) not in _THINGS:
            return to_plain(value)
        number = self._numbers.setdefault(id(value), len(self._found))
        if number == len(self._found):
            self._found.append(value)
        return {TAG: "thing", "number": number}

    def pack_all(self) -> list[tuple[str, dict[str, Any]]]:
        """The class and the fields of each, also of those that are found on the way."""
        packed: list[tuple[str, dict[str, Any]]] = []
        while len(packed) < len(self._found):
            thing = self._found[len(packed)]
            packed.append((_full_name(thing), {name: self.pack(value) for name, value in vars(thing).items()}))
        return packed


def _full_name(value: Any) -> str:
    return f"{type(value).__module__}:{type(value).__qualname__}"


def _make(kind: str) -> Any:
    if kind not in _THINGS:
        raise NotRestorableError(f"{kind} is no thing of MiniGrid's that this version saves")
    module, _, name = kind.partition(":")
    made: Any = getattr(importlib.import_module(module), name)
    return made.__new__(made)


def _unpack(plain: Any, things: list[Any]) -> Any:
    if type(plain) in (list, tuple):
        return type(plain)(_unpack(item, things) for item in plain)
    if type(plain) is dict and plain.get(TAG) == "thing":
        return things[plain["number"]]
    return from_plain(plain)
