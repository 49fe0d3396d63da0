"""Gymnasium spaces as plain containers, so that a checkpoint can carry them and load with ``weights_only=True``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector.utils import batch_space

from ppo_lightning.core.errors import ConfigurationError
from ppo_lightning.core.legal import check_mask_space

PlainSpace = dict[str, Any]
SUPPORTED_ACTIONS = "Discrete, and Box, MultiDiscrete and MultiBinary of one dimension"
VECTOR_ACTIONS = (spaces.Box, spaces.MultiDiscrete, spaces.MultiBinary)
SUPPORTED_OBSERVATIONS = "Box, Discrete, MultiBinary and Dict of these"


def check_spaces(observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
    """Raise :class:`ConfigurationError` for a space that the package has no network or distribution for."""
    _check_observation_space(observation_space)
    is_vector = isinstance(action_space, VECTOR_ACTIONS) and len(action_space.shape) == 1
    if not isinstance(action_space, spaces.Discrete) and not is_vector:
        raise ConfigurationError(
            f"The action space {action_space} is not supported: supported are {SUPPORTED_ACTIONS}; wrap the "
            "environment (--data.env.wrappers), in gymnasium.wrappers.TransformAction for example, so that its actions "
            "are one of these."
        )
    check_mask_space(observation_space, action_space)


def _check_observation_space(space: spaces.Space[Any]) -> None:
    if isinstance(space, spaces.Dict):
        for part in space.values():
            _check_observation_space(part)
    elif not isinstance(space, (spaces.Box, spaces.Discrete, spaces.MultiBinary)):
        raise ConfigurationError(
            f"The observation space {space} is not supported: supported are {SUPPORTED_OBSERVATIONS}; wrap the "
            "environment (--data.env.wrappers), with gymnasium.wrappers.FlattenObservation for example."
        )


def paths_of(space: spaces.Space[Any], path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The keys that lead to each part below ``path`` which is no Dict itself; ``path`` alone where that is none."""
    part = part_at(space, path)
    if not isinstance(part, spaces.Dict):
        return [path]
    return [longer for key in part for longer in paths_of(space, (*path, key))]


def part_at(whole: Any, path: tuple[str, ...]) -> Any:
    """What the keys lead to, of a space or of an observation."""
    for key in path:
        whole = whole[key]
    return whole


def sample_rows(space: spaces.Space[Any], rows: int, seed: int = 0) -> Any:
    """Random members of a space, ``(rows, *shape)``; a dict of such for Dict spaces. The space itself draws nothing."""
    batch = batch_space(space, rows)
    batch.seed(seed)
    return batch.sample()


def space_to_dict(space: spaces.Space[Any]) -> PlainSpace:
    """The space as strings, numbers and lists. Bounds that are the same everywhere are stored once."""
    if isinstance(space, spaces.Dict):
        return {"type": "Dict", "spaces": {key: space_to_dict(part) for key, part in space.items()}}
    if isinstance(space, spaces.Discrete):
        return {"type": "Discrete", "n": int(space.n), "start": int(space.start)}
    if isinstance(space, spaces.MultiBinary):
        # MultiBinary(4) and MultiBinary([4]) are not equal
        return {"type": "MultiBinary", "shape": space.n if isinstance(space.n, int) else list(space.n)}
    if isinstance(space, spaces.MultiDiscrete):
        counts = {"nvec": space.nvec.tolist(), "start": space.start.tolist()}
        return {"type": "MultiDiscrete", **counts, "dtype": str(space.dtype)}
    if isinstance(space, spaces.Box):
        return {
            "type": "Box",
            "low": _bound_to_plain(space.low),
            "high": _bound_to_plain(space.high),
            "shape": [int(size) for size in space.shape],
            "dtype": str(space.dtype),
        }
    raise ConfigurationError(
        f"The space {space} cannot be stored: supported are {SUPPORTED_OBSERVATIONS}, and MultiDiscrete."
    )


def space_from_dict(plain: Mapping[str, Any]) -> spaces.Space[Any]:
    """The inverse of :func:`space_to_dict`."""
    kind = plain["type"]
    if kind == "Dict":
        return spaces.Dict([(key, space_from_dict(part)) for key, part in plain["spaces"].items()])
    if kind == "Discrete":
        return spaces.Discrete(plain["n"], start=plain["start"])
    if kind == "MultiBinary":
        return spaces.MultiBinary(plain["shape"])
    if kind == "MultiDiscrete":
        return spaces.MultiDiscrete(plain["nvec"], dtype=np.dtype(plain["dtype"]), start=plain["start"])
    if kind == "Box":
        dtype = np.dtype(plain["dtype"])
        shape = tuple(plain["shape"])
        low, high = (_bound_from_plain(plain[side], shape, dtype) for side in ("low", "high"))
        return spaces.Box(low, high, shape=shape, dtype=dtype.type)
    raise ConfigurationError(f"The space type {kind!r} in the checkpoint is not known to this version.")


def _bound_to_plain(bound: np.ndarray[Any, Any]) -> Any:
    values = bound.ravel().tolist()
    return values[0] if len(set(values)) == 1 else values


def _bound_from_plain(bound: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    if isinstance(bound, list):
        return np.array(bound, dtype=dtype).reshape(shape)
    return np.full(shape, bound, dtype=dtype)
