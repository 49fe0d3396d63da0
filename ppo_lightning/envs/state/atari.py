"""Atari games of the Arcade Learning Environment, by the state that it clones itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ppo_lightning.core.errors import NotRestorableError
from ppo_lightning.core.plain import from_plain, to_plain
from ppo_lightning.envs.state.fields import Fields, describe

_FIELDS = Fields(
    saved=("_np_random", "_np_random_seed"),
    fixed=frozenset(
        {"ale", "_game", "_game_mode", "_game_difficulty", "_frameskip", "_obs_type", "sound_obs", "_action_set"}
        | {"continuous", "continuous_action_threshold"}
    ),
)

_NOT_WHOLE = "miniature_golf", "pitfall2", "tic_tac_toe_3d", "yars_revenge"
"""The games, of 104, that ALE 0.12 restores but in part.

The first two come back with other bytes than were saved; the others draw on older pictures, which are not saved.
"""


class AtariGame:
    """The codec of ``ale_py``'s environment: the emulator, its random numbers, and the game's score and lives."""

    def save(self, layer: Any) -> dict[str, Any]:
        _refuse_other_state(layer)
        return {**_FIELDS.save(layer), "version": _version(), "game": layer._game, "ale": to_plain(_clone(layer))}

    def load(self, layer: Any, state: Mapping[str, Any]) -> None:
        from ale_py import Action, ALEState

        _refuse_other_state(layer)
        fields = dict(state)
        version, game, ale = (from_plain(fields.pop(name)) for name in ("version", "game", "ale"))
        if (version, game) != (_version(), layer._game):  # another version reads the bytes otherwise, and says nothing
            raise NotRestorableError(
                f"the state is one of {game} in ale-py {version}, not of {layer._game} in ale-py {_version()}"
            )
        _FIELDS.load(layer, fields)
        # in 0.12 the state lacks whether a frame was finished: after a frame it was (Qbert and Tetris start without)
        layer.ale.act(Action.NOOP)
        layer.ale.restoreState(ALEState(ale))
        if _clone(layer) != ale:
            raise NotRestorableError(f"{describe(layer)} did not take up its state")


def _clone(layer: Any) -> bytes:
    serialized: bytes = layer.ale.cloneState(include_rng=True).serialize()
    return serialized


def _version() -> str:
    import ale_py

    return str(ale_py.__version__)


def _refuse_other_state(layer: Any) -> None:
    """Raise where there is state besides: the action that is repeated, sound, or what some games keep elsewhere."""
    if layer._game in _NOT_WHOLE:
        raise NotRestorableError(f"the game {layer._game} is one that ALE does not restore as a whole")
    if layer.ale.getFloat("repeat_action_probability") > 0:
        raise NotRestorableError(
            f"{describe(layer)} with repeat_action_probability above 0 repeats an action that cannot be saved "
            "(gymnasium.wrappers.StickyAction does the same and can)"
        )
    if layer.sound_obs:
        raise NotRestorableError(f"{describe(layer)} with sound_obs cannot be saved")
