"""Values of simulators and random generators as a checkpoint carries them: type for type, bit for bit, without pickle.

``torch.load(weights_only=True)`` reads tensors, numbers, strings and plain containers. Anything else becomes a dict
with one key more, ``"~"``, which says what it was. Tensors are copied both ways: what was packed doesn't change with
the simulator, and what was unpacked doesn't change the checkpoint.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch

from ppo_lightning.core.errors import NotRestorableError

TAG = "~"

_LONGEST_INT = 1000
"""Bits. Longer integers travel as text: torch reads no more than 255 bytes of one."""

_BIT_GENERATORS = {kind.__name__: kind for kind in (
    np.random.PCG64, np.random.PCG64DXSM, np.random.MT19937, np.random.Philox, np.random.SFC64
)}  # fmt: skip


def to_plain(value: Any) -> Any:
    """``value`` as something that ``torch.load(weights_only=True)`` reads; :func:`from_plain` makes it again.

    Raises:
        NotRestorableError: ``value`` is, or holds, something of another type; names the type.
    """
    pack = _PACK.get(type(value))
    if pack is not None:
        return pack(value)
    if isinstance(value, np.generic):
        return _pack_scalar(value)
    raise NotRestorableError(f"a value of type {_name(type(value))} cannot be saved")


def from_plain(plain: Any) -> Any:
    """What :func:`to_plain` packed, of exactly the same types.

    Raises:
        NotRestorableError: ``plain`` doesn't come from :func:`to_plain`.
    """
    kind = type(plain)
    if kind is dict:
        if TAG in plain:
            return _unpack_tagged(plain)
        return {key: from_plain(item) for key, item in plain.items()}
    if kind is list:
        return [from_plain(item) for item in plain]
    if kind is tuple:
        return tuple(from_plain(item) for item in plain)
    if kind is torch.Tensor:
        return plain.clone()
    if plain is None or kind in (bool, int, float, str):
        return plain
    raise NotRestorableError(f"a value of type {_name(kind)} is nothing that was saved")


def map_arrays(plain: Any, change: Callable[[Any], Any]) -> Any:
    """The packed value with ``change`` done to what holds the numbers of each array.

    Worker processes send numpy arrays instead of tensors, which would take an open file each.
    """
    if type(plain) is dict:
        if plain.get(TAG) in ("array", "bytes"):
            return {**plain, "data": change(plain["data"])}
        return {key: map_arrays(item, change) for key, item in plain.items()}
    if type(plain) in (list, tuple):
        return type(plain)(map_arrays(item, change) for item in plain)
    return plain


def _name(kind: type) -> str:
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _same(value: Any) -> Any:
    return value


def _pack_int(value: int) -> Any:
    return value if value.bit_length() <= _LONGEST_INT else {TAG: "int", "hex": hex(value)}


def _pack_bytes(value: bytes) -> dict[str, Any]:
    return {TAG: "bytes", "data": torch.from_numpy(np.frombuffer(value, np.uint8).copy())}


def _pack_list(value: list[Any]) -> list[Any]:
    return [to_plain(item) for item in value]


def _pack_tuple(value: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(to_plain(item) for item in value)


def _pack_dict(value: dict[Any, Any]) -> dict[str, Any]:
    if TAG not in value and all(type(key) is str for key in value):
        return {key: to_plain(item) for key, item in value.items()}
    return {TAG: "dict", "items": [(to_plain(key), to_plain(item)) for key, item in value.items()]}


def _pack_ordered(value: OrderedDict[Any, Any]) -> dict[str, Any]:
    return {TAG: "ordered", "items": [(to_plain(key), to_plain(item)) for key, item in value.items()]}


def _pack_deque(value: deque[Any]) -> dict[str, Any]:
    return {TAG: "deque", "items": [to_plain(item) for item in value], "maxlen": value.maxlen}


def _pack_set(value: set[Any] | frozenset[Any]) -> dict[str, Any]:
    return {TAG: type(value).__name__, "items": [to_plain(item) for item in value]}


def _pack_array(value: np.ndarray[Any, Any]) -> dict[str, Any]:
    dtype = value.dtype
    if dtype.kind not in "biufc" or dtype.itemsize > 16 or dtype.char in "gG":
        raise NotRestorableError(f"an array of {dtype} cannot be saved")
    # sums over an array depend on the order of its memory, to the last bit
    is_column_major = value.flags.f_contiguous and not value.flags.c_contiguous
    data = np.array(value.T if is_column_major else value, dtype=dtype.newbyteorder("="), order="C")
    if dtype.kind == "u" and dtype.itemsize > 1:  # torch can do little with wider unsigned numbers
        data = data.view(f"i{dtype.itemsize}")
    packed = {TAG: "array", "dtype": dtype.str, "data": torch.from_numpy(data)}
    if is_column_major:
        packed["column_major"] = True
    if not value.flags.writeable:
        packed["read_only"] = True
    return packed


def _pack_scalar(value: Any) -> dict[str, Any]:
    if isinstance(value, np.str_):
        return {TAG: "np.str", "text": str(value)}
    if value.dtype.kind not in "biufc" or value.dtype.char in "gG":
        raise NotRestorableError(f"a value of type {_name(type(value))} cannot be saved")
    return {TAG: "scalar", "dtype": value.dtype.str, "hex": value.tobytes().hex()}


def _pack_tensor(value: torch.Tensor) -> torch.Tensor:
    return value.detach().clone()


def _pack_generator(value: np.random.Generator) -> dict[str, Any]:
    bits = value.bit_generator
    if _BIT_GENERATORS.get(type(bits).__name__) is not type(bits):
        raise NotRestorableError(f"a generator of {_name(type(bits))} cannot be saved")
    packed = {TAG: "generator", "state": to_plain(bits.state)}
    seeds = getattr(bits, "seed_seq", None)
    if type(seeds) is np.random.SeedSequence:  # what spawn() goes on from
        packed["seeds"] = to_plain(
            {name: getattr(seeds, name) for name in ("entropy", "spawn_key", "pool_size", "n_children_spawned")}
        )
    return packed


def _pack_random_state(value: np.random.RandomState) -> dict[str, Any]:
    state: Any = value.get_state(legacy=False)
    if state["bit_generator"] != "MT19937":
        raise NotRestorableError(f"a RandomState of {state['bit_generator']} cannot be saved")
    return {TAG: "RandomState", "state": to_plain(state)}


_PACK: dict[type, Callable[[Any], Any]] = {
    type(None): _same,
    bool: _same,
    int: _pack_int,
    float: _same,
    str: _same,
    bytes: _pack_bytes,
    list: _pack_list,
    tuple: _pack_tuple,
    dict: _pack_dict,
    OrderedDict: _pack_ordered,
    deque: _pack_deque,
    set: _pack_set,
    frozenset: _pack_set,
    np.ndarray: _pack_array,
    torch.Tensor: _pack_tensor,
    np.random.Generator: _pack_generator,
    np.random.RandomState: _pack_random_state,
}


def _unpack_tagged(plain: dict[str, Any]) -> Any:
    unpack = _UNPACK.get(plain[TAG])
    if unpack is None:
        raise NotRestorableError(f"{plain[TAG]!r} is no kind of value that this version saves")
    return unpack(plain)


def _unpack_array(plain: dict[str, Any]) -> np.ndarray[Any, Any]:
    dtype = np.dtype(plain["dtype"])
    data = np.asarray(plain["data"]).view(dtype.newbyteorder("=")).astype(dtype)  # a copy
    if plain.get("column_major"):
        data = data.T
    if plain.get("read_only"):
        data.flags.writeable = False
    return data


def _unpack_scalar(plain: dict[str, Any]) -> Any:
    return np.frombuffer(bytes.fromhex(plain["hex"]), np.dtype(plain["dtype"]))[0]


def _unpack_generator(plain: dict[str, Any]) -> np.random.Generator:
    state = from_plain(plain["state"])
    kind: Any = _BIT_GENERATORS[state["bit_generator"]]
    seeds = np.random.SeedSequence(**from_plain(plain["seeds"])) if "seeds" in plain else 0
    bits = kind(seeds)
    bits.state = state
    return np.random.Generator(bits)


def _unpack_random_state(plain: dict[str, Any]) -> np.random.RandomState:
    generator = np.random.RandomState()
    generator.set_state(from_plain(plain["state"]))
    return generator


def _items(plain: dict[str, Any]) -> Iterable[Any]:
    return from_plain(plain["items"])


_UNPACK: dict[str, Callable[[dict[str, Any]], Any]] = {
    "int": lambda plain: int(plain["hex"], 16),
    "bytes": lambda plain: np.asarray(plain["data"]).tobytes(),
    "dict": lambda plain: dict(_items(plain)),
    "ordered": lambda plain: OrderedDict(_items(plain)),
    "deque": lambda plain: deque(_items(plain), plain["maxlen"]),
    "set": lambda plain: set(_items(plain)),
    "frozenset": lambda plain: frozenset(_items(plain)),
    "array": _unpack_array,
    "np.str": lambda plain: np.str_(plain["text"]),
    "scalar": _unpack_scalar,
    "generator": _unpack_generator,
    "RandomState": _unpack_random_state,
}
