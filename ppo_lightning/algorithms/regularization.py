"""Losses that keep a Gaussian policy within bounds and smooth."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from gymnasium import spaces
from tensordict import TensorDictBase
from torch import Tensor, nn

from ppo_lightning.core.errors import ConfigurationError, check_range, close_names
from ppo_lightning.core.rollout import Observation
from ppo_lightning.functional.regularization import bounds_loss, l2c2_loss, mean_squared_difference
from ppo_lightning.models.outputs import has_memory, run_network

Average = Callable[[Tensor], Tensor]
"""A number of this rank's minibatch to that of all ranks."""
Penalty = Callable[[Observation, Tensor, Average], Tensor]
"""Of ``B`` observations and the policy's means ``(B, D)`` for them; a scalar, without its weight."""


class BoundsLoss:
    """Pulls means back that lie beyond the action bounds, where clipping would hide what they do.

    Args:
        network: whose means they are; -1 and 1 bound those of one that rescales its actions.
        action_space: bounds all others.

    Raises:
        ConfigurationError: a policy without means, or one that needs no such loss.
    """

    def __init__(self, network: nn.Module, action_space: spaces.Space[Any]) -> None:
        actor: Any = getattr(network, "actor", network)
        if not isinstance(action_space, spaces.Box):
            raise ConfigurationError(
                f"--model.bounds_coef is for the means of a Gaussian, and the action space is {action_space}: "
                "leave it out."
            )
        if getattr(actor, "squash", False):
            raise ConfigurationError(
                "--model.bounds_coef and --model.network.squash=true contradict each other, since tanh keeps "
                "actions within their bounds: leave one of them out."
            )
        low, high = torch.from_numpy(action_space.low), torch.from_numpy(action_space.high)
        if getattr(actor, "rescale_actions", False):
            low, high = -torch.ones(low.shape), torch.ones(high.shape)
        if not bool((low.isfinite() | high.isfinite()).any()):
            raise ConfigurationError(
                f"--model.bounds_coef needs bounds, and the action space {action_space} has none: leave it out."
            )
        self._low, self._high = low, high

    def __call__(self, obs: Observation, mean: Tensor, average: Average) -> Tensor:
        self._low, self._high = self._low.to(mean), self._high.to(mean)
        return bounds_loss(mean, self._low, self._high)


class SmoothnessLoss:
    """L2C2: how far the policy's means move beside how far its observations do, between noisy and clean ones.

    Args:
        pairs: of keys of the observation, the noisy one that the actor reads: its clean counterpart.
        network: whose means they are.
        observation_space: has the keys.
        action_space: a Box.

    Raises:
        ConfigurationError: keys that the observation lacks or the actor does not read, or a policy without means.
    """

    def __init__(
        self,
        pairs: Mapping[str, str],
        network: nn.Module,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
    ) -> None:
        self.pairs = dict(pairs)
        actor: Any = getattr(network, "actor", None)
        # of a separate actor without the critic's half
        self._distribution: Callable[[Observation], Any] = (
            actor.distribution if actor is not None else lambda obs: run_network(network, obs)[0].distribution
        )
        known = observation_space.spaces if isinstance(observation_space, spaces.Dict) else None
        flag = f"--model.l2c2_pairs={dict(pairs)}"
        if has_memory(network):
            raise ConfigurationError(f"{flag} is not for networks with memory, as {type(network).__name__} is one.")
        if not isinstance(action_space, spaces.Box):
            raise ConfigurationError(
                f"{flag} is for the means of a Gaussian, and the action space is {action_space}: leave it out."
            )
        if known is None:
            raise ConfigurationError(f"{flag} names keys, and the observation space {observation_space} has none.")
        for key in (key for pair in pairs.items() for key in pair):
            if key not in known:
                raise ConfigurationError(
                    f"{flag}: the observation has no key {key!r}, only {list(known)}.{close_names(key, known)}"
                )
        read = getattr(getattr(actor or network, "embedder", None), "in_keys", None)
        for noisy, clean in pairs.items():
            if noisy == clean:
                raise ConfigurationError(f"{flag}: {noisy!r} is paired with itself: name its clean counterpart.")
            if known[noisy].shape != known[clean].shape or not isinstance(known[noisy], spaces.Box):
                raise ConfigurationError(
                    f"{flag}: {noisy!r} is {known[noisy]} and {clean!r} {known[clean]}: pair Boxes of one shape."
                )
            if read is not None and noisy not in read:
                raise ConfigurationError(
                    f"{flag}: the actor does not read {noisy!r}, only {read}: add it to "
                    "--model.network.encoder.in_keys."
                )

    def __call__(self, obs: Observation, mean: Tensor, average: Average) -> Tensor:
        assert isinstance(obs, TensorDictBase)
        clean = obs.copy()  # its own keys, the same tensors
        for noisy_key, clean_key in self.pairs.items():
            clean.set(noisy_key, obs[clean_key])
        pairs = [(obs[noisy], obs[clean_key]) for noisy, clean_key in self.pairs.items()]
        # of all ranks: a mean of ratios would not be the ratio of the means
        return l2c2_loss(mean, self._distribution(clean).mean, average(mean_squared_difference(pairs)))


def check_l2c2_flags(pairs: Mapping[str, str] | None, coef: float) -> None:
    """Raise :class:`ConfigurationError` for a negative weight, or pairs that are none."""
    check_range("--model.l2c2_coef", coef, 0)
    if pairs is not None and not pairs:
        raise ConfigurationError("--model.l2c2_pairs={} names no keys: give {noisy key: clean key}, or leave it out.")
