"""Objects whose state is some of their fields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import gymnasium

from ppo_lightning.core.errors import NotRestorableError
from ppo_lightning.core.plain import from_plain, to_plain


class Codec(Protocol):
    """How the state of one class's objects is saved and restored."""

    def save(self, layer: Any) -> dict[str, Any]:
        """All that the object's future depends on, in plain containers; a copy.

        Raises:
            NotRestorableError: it holds something that can't be saved.
        """

    def load(self, layer: Any, state: Mapping[str, Any]) -> None:
        """Make the object, made with the same settings, go on as the saved one.

        Raises:
            NotRestorableError: the state is not one of such an object.
        """


# fields of every environment and wrapper that are no state: settings, spaces, and what is worked out from them
ENV_FIELDS = frozenset(
    {"action_space", "observation_space", "metadata", "render_mode", "spec", "_ezpickle_args", "_ezpickle_kwargs"}
)
_WRAPPER_FIELDS = frozenset(
    {"env", "_action_space", "_observation_space", "_metadata", "_cached_spec", "_saved_kwargs"}
)


@dataclass(frozen=True)
class Fields:
    """The object's state is some of its fields.

    Every field of an object must be named here. A field that is not, of another version or set by a user, could be
    state: the object is refused then, by the field's name.

    Args:
        saved: the fields that change, and are there after a reset.
        parts: saved fields that hold objects: the codec of each.
        optional: saved where the object has them (not all versions do).
        fixed: the others: settings, what is worked out from them, and what pictures are drawn with.
    """

    saved: tuple[str, ...] = ()
    parts: tuple[tuple[str, Fields], ...] = ()
    optional: tuple[str, ...] = ()
    fixed: frozenset[str] = frozenset()

    def save(self, layer: Any) -> dict[str, Any]:
        self._refuse_unknown(layer)
        state = {}
        for name in self._names(layer):
            if not hasattr(layer, name):
                raise NotRestorableError(f"{describe(layer)} has no field {name} (yet: reset it first)")
            try:
                state[name] = to_plain(getattr(layer, name))
            except NotRestorableError as error:
                raise NotRestorableError(f"field {name} of {describe(layer)}: {error}") from None
        for name, part in self.parts:
            state[name] = part.save(getattr(layer, name))
        return state

    def load(self, layer: Any, state: Mapping[str, Any]) -> None:
        self._refuse_unknown(layer)
        names = {*self._names(layer), *(name for name, _ in self.parts)}
        if state.keys() != names:
            raise NotRestorableError(
                f"{describe(layer)} has other fields than the saved one: {list_names(state.keys() ^ names)}"
            )
        for name in self._names(layer):
            setattr(layer, name, from_plain(state[name]))
        for name, part in self.parts:
            part.load(getattr(layer, name), state[name])

    def _names(self, layer: Any) -> tuple[str, ...]:
        if not self.optional:
            return self.saved
        return (*self.saved, *(name for name in self.optional if hasattr(layer, name)))

    @cached_property
    def _known(self) -> frozenset[str]:
        parts = {name for name, _ in self.parts}
        return ENV_FIELDS | _WRAPPER_FIELDS | self.fixed | parts | {*self.saved, *self.optional}

    def _refuse_unknown(self, layer: Any) -> None:
        if not vars(layer).keys() <= self._known:
            unknown = list_names(vars(layer).keys() - self._known)
            raise NotRestorableError(f"{describe(layer)} has a field that is not known: {unknown}")


def describe(layer: Any) -> str:
    """The object as users know it: what it is, and its class's name."""
    if isinstance(layer, gymnasium.Wrapper):
        kind = "the wrapper "
    elif isinstance(layer, gymnasium.Env):
        kind = "the environment "
    else:
        kind = ""
    return f"{kind}{type(layer).__qualname__}"


def list_names(names: Any) -> str:
    """The names in alphabetical order, with commas."""
    return ", ".join(sorted(map(str, names)))
