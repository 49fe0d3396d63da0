"""The state of a run as it is between two iterations, kept apart from the training that goes on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from lightning.pytorch import Trainer
from torch import Tensor


@dataclass(frozen=True)
class Snapshot:
    """A whole checkpoint in memory, on the CPU; later updates don't touch it.

    Attributes:
        checkpoint: what a checkpoint file holds.
        env_steps: environment steps so far, over all ranks.
    """

    checkpoint: dict[str, Any]
    env_steps: int


def take_snapshot(trainer: Trainer, env_steps: int) -> Snapshot | None:
    """The run as it is now; only rank 0 gets one, but every rank must take part: simulators are gathered from all."""
    connector: Any = trainer._checkpoint_connector
    checkpoint = connector.dump_checkpoint(weights_only=False)
    return Snapshot(cast(dict[str, Any], _copy(checkpoint)), env_steps) if trainer.is_global_zero else None


def _copy(value: Any) -> Any:
    """Containers anew, and tensors copied to the CPU."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        copied = {key: _copy(item) for key, item in value.items()}
        return copied if type(value) is dict else _like(value, copied)
    if type(value) in (list, tuple):
        return type(value)(_copy(item) for item in value)
    return value


def _like(original: Mapping[Any, Any], items: dict[Any, Any]) -> Mapping[Any, Any]:
    """The same kind of mapping where it can be made from items (an ``OrderedDict``), with its metadata."""
    copied = type(original)(items)  # type: ignore[call-arg]
    if hasattr(original, "_metadata"):
        copied._metadata = original._metadata  # type: ignore[attr-defined]
    return copied
