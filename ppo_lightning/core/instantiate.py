"""Parts as plain configurations, ``{"class_path": …, "init_args": …}``: the form of the YAML files and checkpoints.

A checkpoint holds its network in this form, so a trained agent comes back without naming its environment.
"""

from __future__ import annotations

import functools
import pkgutil
from collections.abc import Mapping
from typing import Any, get_args

import torch
from jsonargparse import ArgumentParser, Namespace
from torch import nn

from ppo_lightning.core.errors import ConfigurationError

_PARTS = nn.Module, torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler


def build_from_config(part_type: Any, config: Mapping[str, Any], flag: str) -> Any:
    """Turn a configuration into what an argument annotated ``part_type`` would receive from the command line.

    A configuration may come from a stranger's checkpoint: only classes of networks, optimisers and schedulers are made,
    and no function is called.

    Raises:
        ConfigurationError: the class cannot be imported, is of another kind or its arguments do not fit; named by
            ``flag``.
    """
    _refuse_strangers(config, flag)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--part", type=part_type)
    try:
        parsed = parser.parse_object({"part": dict(config)})
        return parser.instantiate(parsed).part
    except ConfigurationError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ConfigurationError(
            f"{flag}: {config.get('class_path')} cannot be built from its configuration ({reason}); is the package "
            "that defines it importable here, in the version that wrote the configuration?"
        ) from error


def _refuse_strangers(config: Any, flag: str) -> None:
    if isinstance(config, (list, tuple)):
        for item in config:
            _refuse_strangers(item, flag)
    if not isinstance(config, Mapping):
        return
    for item in config.values():
        _refuse_strangers(item, flag)
    path = config.get("class_path")
    if path is None:
        return
    try:
        named = pkgutil.resolve_name(str(path))
    except (ImportError, AttributeError, ValueError):
        return  # the parser says what is wrong with it, or knows a short name of the right kind
    if not (isinstance(named, type) and issubclass(named, _PARTS)):
        raise ConfigurationError(
            f"{flag}: {path} is not a class of networks, optimisers or schedulers, and nothing else is made from a "
            "checkpoint: pass the part in Python, or name it by its flag."
        )


def accept_value(value_type: Any, value: Any, flag: str) -> Any:
    """A plain value as an argument annotated ``value_type`` would receive it from a YAML file.

    Raises:
        ConfigurationError: it is of another type; named by ``flag``.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=value_type, required=value is None and not _accepts_none(value_type))
    try:
        return parser.instantiate(parser.parse_object({"value": value})).value
    except ConfigurationError:
        raise
    except Exception as error:
        wanted = value_type.__name__ if isinstance(value_type, type) else str(value_type).replace("typing.", "")
        raise ConfigurationError(f"{flag}={value!r} is not accepted: it should be {wanted}.") from error


def _accepts_none(value_type: Any) -> bool:
    return value_type is Any or type(None) in get_args(value_type)


def describe(part: Any) -> Any:
    """The configuration of a class or a ``functools.partial`` of one; None for what cannot be named (an object)."""
    try:
        return _plain(part) if part is not None else None
    except _NamelessError:
        return None


class _NamelessError(Exception):
    """A value that no configuration can name."""


def _plain(value: Any) -> Any:
    if isinstance(value, (Mapping, Namespace)):
        items = value.items() if isinstance(value, Mapping) else vars(value).items()
        return {str(key): _plain(item) for key, item in items}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str, torch.Tensor)):
        return value
    if isinstance(value, functools.partial) and isinstance(value.func, type) and not value.args:
        return {"class_path": _path(value.func), "init_args": _plain(value.keywords)}
    if isinstance(value, type):
        return {"class_path": _path(value), "init_args": {}}
    raise _NamelessError


def _path(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
