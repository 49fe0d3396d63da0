"""Reading checkpoints: safely (``weights_only=True``), with one sentence for each way a file can be wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Union

import torch
from gymnasium import spaces
from torch import nn

from ppo_lightning.core.errors import ConfigurationError
from ppo_lightning.core.instantiate import build_from_config
from ppo_lightning.core.spaces import space_from_dict

FORMAT_KEY = "ppo_lightning_format"
FORMAT_VERSION = 1

NetworkBuilder = Callable[[spaces.Space[Any], spaces.Space[Any]], nn.Module]
"""Builds a network from an observation and an action space."""


def read_checkpoint(path: Union[str, Path], flag: str = "ckpt_path") -> dict[str, Any]:
    """Load a checkpoint of this package onto the CPU.

    Raises:
        ConfigurationError: the file is missing, is damaged, or was not written by ppo-lightning; names ``flag``.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a folder, not a file" if path.is_dir() else "does not exist"
        raise ConfigurationError(f"{flag}: the checkpoint {path} {what}.{_nearby(path)}")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ConfigurationError(
            f"{flag}: the checkpoint {path} is damaged, incomplete or holds more than tensors and plain containers "
            f"({type(error).__name__}); use another checkpoint of the run."
        ) from error
    if not isinstance(checkpoint, dict) or FORMAT_KEY not in checkpoint or "state_dict" not in checkpoint:
        raise ConfigurationError(f"{flag}: {path} was not written by ppo-lightning; use a checkpoint of a run of it.")
    if not isinstance(checkpoint[FORMAT_KEY], int) or checkpoint[FORMAT_KEY] > FORMAT_VERSION:
        raise ConfigurationError(
            f"{flag}: {path} has format {checkpoint[FORMAT_KEY]} and this version reads up to {FORMAT_VERSION}: "
            "update ppo-lightning."
        )
    return checkpoint


def _nearby(path: Path) -> str:
    folder = path if path.is_dir() else path.parent
    found = sorted(folder.glob("*.ckpt")) if folder.is_dir() else []
    return f" In {folder} there are {', '.join(file.name for file in found[:5])}." if found else ""


def network_from_checkpoint(checkpoint: dict[str, Any], flag: str = "ckpt_path") -> nn.Module:
    """The trained network of a checkpoint, on the CPU.

    Raises:
        ConfigurationError: the network was given as an object, so the checkpoint cannot name its class.
    """
    hparams = checkpoint["hyper_parameters"]
    if hparams.get("network") is None:
        raise ConfigurationError(
            f"{flag}: this checkpoint's network was given as an object or a lambda and cannot be rebuilt from its "
            "name: train with network=<class> or functools.partial(<class>, …), or pass network= when loading."
        )
    builder = build_from_config(NetworkBuilder, hparams["network"], "model.network")
    network: nn.Module = builder(
        space_from_dict(hparams["observation_space"]), space_from_dict(hparams["action_space"])
    )
    load_network_weights(network, checkpoint, flag)
    return network


def load_network_weights(network: nn.Module, checkpoint: dict[str, Any], flag: str) -> None:
    """Copy a checkpoint's network weights into ``network``.

    Raises:
        ConfigurationError: the weights are of another network.
    """
    prefix = "network."
    weights = {
        name[len(prefix) :]: tensor for name, tensor in checkpoint["state_dict"].items() if name.startswith(prefix)
    }
    check_same_network(network.state_dict(), weights, flag)
    network.load_state_dict(weights)


def check_same_network(own: dict[str, Any], loaded: dict[str, Any], flag: str) -> None:
    """Raise :class:`ConfigurationError` unless two state dicts have the same names and shapes."""
    reason = describe_mismatch(own, loaded)
    if reason:
        raise ConfigurationError(
            f"{flag}: the checkpoint holds another network than --model.network builds for this environment "
            f"({reason}); use the network and environment that the checkpoint was trained with."
        )


def describe_mismatch(own: dict[str, Any], loaded: dict[str, Any]) -> str:
    """The first difference between two state dicts in names and shapes, in words; empty if there is none."""
    for name in dict.fromkeys([*own, *loaded]):
        if name not in loaded:
            return f"{name} is missing from the checkpoint"
        if name not in own:
            return f"{name} is only in the checkpoint"
        if own[name].shape != loaded[name].shape:
            return f"{name} is {tuple(loaded[name].shape)} in the checkpoint and {tuple(own[name].shape)} here"
    return ""
