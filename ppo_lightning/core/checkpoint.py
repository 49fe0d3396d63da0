"""Reading checkpoints: safely (``weights_only=True``), with one sentence for each way a file can be wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, Union

import torch
from gymnasium import spaces
from torch import nn

from ppo_lightning.core.archive import DamagedError, check_archive
from ppo_lightning.core.errors import ConfigurationError
from ppo_lightning.core.instantiate import build_from_config
from ppo_lightning.core.spaces import space_from_dict

FORMAT_KEY = "ppo_lightning_format"
FORMAT_VERSION = 2
"""1 had no digest; see :mod:`ppo_lightning.core.archive`."""

LEAST_STD_OF_RETURNS = 1e-4
"""What standardised returns are divided by at least, so that equal ones don't blow up."""

_TYPES: dict[str, type | tuple[type, ...]] = {
    "state_dict": dict,
    "hyper_parameters": dict,
    "loops": dict,
    "callbacks": dict,
    "RolloutDataModule": dict,
    "optimizer_states": list,
    "lr_schedulers": list,
    "epoch": int,
    "global_step": int,
    "train_seconds": (int, float),
    "optimizer_class": str,
}

NetworkBuilder = Callable[[spaces.Space[Any], spaces.Space[Any]], nn.Module]
"""Builds a network from an observation and an action space."""


class DamagedCheckpointError(ConfigurationError):
    """A checkpoint that is not, or no longer, what this package wrote; another one may do."""


def read_checkpoint(path: Union[str, Path], flag: str = "ckpt_path") -> dict[str, Any]:
    """Load a checkpoint of this package onto the CPU, without running code that it may hold.

    Raises:
        ConfigurationError: the file is missing, is damaged, or was not written by ppo-lightning; names ``flag``.
    """
    path = Path(path)
    with _opened(path, flag) as file:
        try:
            check_archive(file)
            file.seek(0)
            checkpoint = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:
            raise DamagedCheckpointError(
                f"{flag}: the checkpoint {path} is damaged, incomplete or holds more than tensors and plain containers "
                f"({error if isinstance(error, DamagedError) else type(error).__name__}); use another checkpoint of "
                "the run."
            ) from error
    _check_content(checkpoint, path, flag)
    # a function that Lightning would import and call, whatever the file names
    checkpoint.get("hyper_parameters", {}).pop("_instantiator", None)
    return checkpoint


def _opened(path: Path, flag: str) -> BinaryIO:
    try:
        if path.is_file():
            return path.open("rb")
        what = "is a folder, not a file" if path.is_dir() else "is not a file" if path.exists() else "does not exist"
        raise ConfigurationError(f"{flag}: the checkpoint {path} {what}.{_nearby(path)}")
    except OSError as error:
        raise ConfigurationError(
            f"{flag}: the checkpoint {path} cannot be read ({error.strerror}): name a file that can."
        ) from error


def _check_content(checkpoint: Any, path: Path, flag: str) -> None:
    version = checkpoint.get(FORMAT_KEY) if isinstance(checkpoint, dict) else None
    if type(version) is not int or version < 1 or "state_dict" not in checkpoint:
        raise DamagedCheckpointError(
            f"{flag}: {path} was not written by ppo-lightning; use a checkpoint of a run of it."
        )
    if version > FORMAT_VERSION:
        raise ConfigurationError(
            f"{flag}: {path} has format {version} and this version reads up to {FORMAT_VERSION}: update ppo-lightning."
        )
    wrong = [name for name, kind in _TYPES.items() if name in checkpoint and not isinstance(checkpoint[name], kind)]
    counters = checkpoint.get("RolloutDataModule", {})
    if not wrong and any(type(counters.get(name, 0)) is not int for name in ("env_steps", "iteration")):
        wrong = ["RolloutDataModule"]
    if not wrong and not isinstance(counters.get("env") or {}, dict):
        wrong = ["RolloutDataModule"]
    if wrong:
        raise DamagedCheckpointError(
            f"{flag}: {path} is damaged: its {wrong[0]!r} is not what ppo-lightning writes there; use another "
            "checkpoint of the run."
        )


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
    network: nn.Module = builder(*spaces_of(checkpoint))
    load_network_weights(network, checkpoint, flag)
    return network


def spaces_of(checkpoint: dict[str, Any]) -> tuple[spaces.Space[Any], spaces.Space[Any]]:
    """The observation and the action space that a checkpoint's network was built for."""
    hparams = checkpoint["hyper_parameters"]
    return space_from_dict(hparams["observation_space"]), space_from_dict(hparams["action_space"])


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
    _undo_normalisation_of_returns(network, checkpoint["state_dict"])


@torch.no_grad()
def _undo_normalisation_of_returns(network: nn.Module, state: dict[str, Any]) -> None:
    """Let a critic that learned standardised returns say values in the units of rewards, as others do.

    The statistics belong to the agent that trained it; without it, nothing else knows them.
    """
    mean, var = state.get("return_normalizer.mean"), state.get("return_normalizer.var")
    if mean is not None and var is not None:
        layer: Any = network.fc_value
        std = var.sqrt().clamp(min=LEAST_STD_OF_RETURNS)
        layer.weight.mul_(std.to(layer.weight))
        layer.bias.copy_(layer.bias * std.to(layer.bias) + mean.to(layer.bias))


def check_same_network(own: dict[str, Any], loaded: dict[str, Any], flag: str) -> None:
    """Raise :class:`ConfigurationError` unless two state dicts have the same names and shapes."""
    reason = describe_mismatch(own, loaded)
    if reason:
        part = "novelty" if reason.startswith("novelty") else "network"
        raise ConfigurationError(
            f"{flag}: the checkpoint holds another {part} than --model.{part} builds for this environment "
            f"({reason}); use the {part} and environment that the checkpoint was trained with."
        )


def describe_mismatch(own: dict[str, Any], loaded: dict[str, Any]) -> str:
    """The first difference between two state dicts in names and shapes, in words; empty if there is none."""
    for name in dict.fromkeys([*own, *loaded]):
        if name not in loaded:
            return f"{name} is missing from the checkpoint"
        if name not in own:
            return f"{name} is only in the checkpoint"
        is_tensor = isinstance(own[name], torch.Tensor)
        if is_tensor != isinstance(loaded[name], torch.Tensor):
            return f"{name} is a {type(loaded[name]).__name__} in the checkpoint"
        if is_tensor and own[name].shape != loaded[name].shape:
            return f"{name} is {tuple(loaded[name].shape)} in the checkpoint and {tuple(own[name].shape)} here"
    return ""
