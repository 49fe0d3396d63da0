"""An environment and its wrappers, saved and restored one after another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import gymnasium

from ppo_lightning.core.errors import NotRestorableError
from ppo_lightning.core.plain import from_plain, to_plain
from ppo_lightning.envs.state.codecs import CODECS
from ppo_lightning.envs.state.fields import Codec, describe
from ppo_lightning.envs.state.replay import Recorder, Replay

Layers = list[tuple[str, dict[str, Any]]]
"""Each class's name with its state, from the outermost wrapper to the environment."""


class Own:
    """A class that defines ``state_dict()`` and ``load_state_dict(state)`` itself.

    They are used as they are. The environment's ``np_random`` is saved beside; it is in place before
    ``load_state_dict`` and again after it, should that have drawn from it.
    """

    def save(self, layer: Any) -> dict[str, Any]:
        try:
            state = {"own": to_plain(layer.state_dict())}
        except Exception as error:  # of whatever a user wrote; no reason to end the training
            raise NotRestorableError(f"the state_dict() of {describe(layer)}: {_reason(error)}") from error
        if not isinstance(layer, gymnasium.Wrapper):
            state["np_random"] = to_plain(getattr(layer, "_np_random", None))
            state["np_random_seed"] = to_plain(getattr(layer, "_np_random_seed", None))
        return state

    def load(self, layer: Any, state: Mapping[str, Any]) -> None:
        generator = from_plain(state.get("np_random"))
        if generator is not None:
            layer._np_random, layer._np_random_seed = generator, from_plain(state["np_random_seed"])
        layer.load_state_dict(from_plain(state["own"]))
        if generator is not None:
            generator.bit_generator.state = from_plain(state["np_random"]["state"])
            layer._np_random, layer._np_random_seed = generator, from_plain(state["np_random_seed"])


_OWN = Own()


def find_codec(layer: Any) -> Codec:
    """The codec of an environment or wrapper: its own methods, or the table's.

    Raises:
        NotRestorableError: there is none; names the class.
    """
    kind = type(layer)
    # inherited ones don't count: they know nothing of what the subclass holds
    if "state_dict" in vars(kind) and "load_state_dict" in vars(kind):
        return _OWN
    codec = CODECS.get(f"{kind.__module__}:{kind.__qualname__}")
    if codec is None:
        raise NotRestorableError(f"{describe(layer)} cannot be saved and restored")
    return codec


def layers_of(env: Any) -> Iterator[Any]:
    """The wrappers from the outermost to the innermost, then the environment; a recorder stands for its environment."""
    while isinstance(env, gymnasium.Wrapper) and not isinstance(env, Recorder):
        yield env
        env = env.env
    yield env


def name_of(layer: Any) -> str:
    """The name of a layer's class; a recorder's is its environment's."""
    return type(layer.env if isinstance(layer, Recorder) else layer).__qualname__


def save_layers(env: Any) -> Layers:
    """The state of each layer.

    Raises:
        NotRestorableError: one can't be saved; names it.
    """
    codecs = [(layer, find_codec(layer)) for layer in layers_of(env)]  # before any work
    return [(name_of(layer), codec.save(layer)) for layer, codec in codecs]


def load_layers(env: Any, states: Sequence[tuple[str, dict[str, Any]]]) -> None:
    """Make the environment, which has been reset, go on as the saved one.

    Raises:
        NotRestorableError: the state is one of other layers, or one can't be restored.
    """
    layers = list(layers_of(env))
    names, saved = [name_of(layer) for layer in layers], [name for name, _ in states]
    if names != saved:
        raise NotRestorableError(f"the state is one of {' of '.join(saved)}, not of {' of '.join(names)}")
    # the environment first: it may have to be played to where it was
    for layer, (_, state) in reversed(list(zip(layers, states))):
        try:
            find_codec(layer).load(layer, state)
        except NotRestorableError:
            raise
        except Exception as error:
            raise NotRestorableError(f"{describe(layer)} did not take up its state: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, NotRestorableError) else f"{type(error).__name__}: {error}"


def record_actions(env: Any) -> Any:
    """The environment with a recorder right around its innermost part, where that can only be played again."""
    outer, base = None, env
    while isinstance(base, gymnasium.Wrapper):
        outer, base = base, base.env
    codec = CODECS.get(f"{type(base).__module__}:{type(base).__qualname__}")
    if not isinstance(codec, Replay):
        return env
    recorder = Recorder(base, codec.renew)
    if outer is None:
        return recorder
    outer.env = recorder
    return env
