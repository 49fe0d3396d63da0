"""A trained network that acts."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Optional, Union

import numpy as np
import torch
from gymnasium import spaces
from tensordict import TensorDictBase
from torch import Tensor, nn

from ppo_lightning.core.checkpoint import network_from_checkpoint, read_checkpoint, spaces_of
from ppo_lightning.core.errors import ConfigurationError, check_range
from ppo_lightning.core.rollout import where_rows
from ppo_lightning.functional.distributions import Distribution
from ppo_lightning.models.actor_critic import RawObservation, as_observation
from ppo_lightning.models.outputs import has_memory, has_own_critic, initial_state, run_network, run_policy, to_env
from ppo_lightning.policies.base import Policy


class PPOPolicy(Policy):
    """Chooses actions by a network, from a checkpoint or given.

    >>> policy = PPOPolicy(load_path="lightning_logs/version_0/checkpoints/best.ckpt")  # doctest: +SKIP
    >>> action = policy.act(obs, temperature=0)  # doctest: +SKIP

    Args:
        model: the network.
        load_path: a checkpoint to take network and weights from, without naming the environment.

    Attributes:
        model: the network.
        observation_space: what the checkpoint's network was trained on; None of a network that was given.
        action_space: what it chooses from; None likewise.

    Raises:
        ConfigurationError: both or neither given, or a checkpoint that cannot be used.
    """

    def __init__(self, model: Optional[nn.Module] = None, load_path: Union[str, Path, None] = None) -> None:
        if (model is None) == (load_path is None):
            raise ConfigurationError("PPOPolicy needs either a model or a load_path, and not both.")
        self.observation_space: spaces.Space[Any] | None = None
        self.action_space: spaces.Space[Any] | None = None
        if load_path is not None:
            model, self.observation_space, self.action_space = _parts_of(load_path, "load_path")
        assert model is not None
        self.model = model

    @classmethod
    def from_checkpoint(cls, path: Union[str, Path], flag: str) -> PPOPolicy:
        """That of ``load_path``; errors name ``flag``."""
        model, observation_space, action_space = _parts_of(path, flag)
        policy = cls(model)
        policy.observation_space, policy.action_space = observation_space, action_space
        return policy

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.model.parameters()).device

    @torch.no_grad()
    def act(
        self,
        obs: RawObservation,
        temperature: float = 1.0,
        return_model_output: bool = False,
        *,
        noise: Tensor | None = None,
    ) -> Any:
        """Actions ``(B,)`` or ``(B, D)`` for observations ``(B, *shape)``.

        Args:
            obs: tensors, numpy arrays, or a mapping of either.
            temperature: 0 takes the most probable action; else samples, sharper below 1 and flatter above.
            return_model_output: return ``(actions, output)``.
            noise: what to sample by, as :func:`functional.distributions.draw_noise` draws it; by default fresh from
                torch's global generator.
        """
        check_range("temperature", temperature, 0)
        tensors = obs if isinstance(obs, (Tensor, TensorDictBase)) else as_observation(obs, self.device)
        is_alone = self._has_own_critic and not return_model_output
        output = run_policy(self.model, tensors) if is_alone else self._run(tensors)
        actions = to_env(self.model, _choose(output.distribution, temperature, noise))
        return (actions, output) if return_model_output else actions

    @property
    def has_memory(self) -> bool:
        return has_memory(self.model)

    @functools.cached_property
    def _has_own_critic(self) -> bool:
        return has_own_critic(self.model)

    def _run(self, obs: Any) -> Any:
        if self.memory is None or len(self.memory) != len(obs):
            self.memory = initial_state(self.model, len(obs))
        output, self.memory = run_network(self.model, obs, self.memory)
        return output

    def reset(self, done: np.ndarray[Any, Any]) -> None:
        """Forget what came before in the rows where an episode ended; ``done`` is ``(B,)`` bool."""
        if self.memory is not None and len(self.memory) != len(done):
            self.memory = None  # another number of rows: all begin anew
        if self.memory is not None and done.any():
            rows = torch.from_numpy(done).to(self.device)
            self.memory = where_rows(rows, initial_state(self.model, len(done)), self.memory)

    def keep(self, rows: np.ndarray[Any, Any]) -> None:
        """Go on with only the rows where ``rows (B,)`` is true: the next ``act`` gets their observations."""
        if self.memory is not None:
            self.memory = self.memory[torch.from_numpy(np.flatnonzero(rows)).to(self.device)]

    def check_spaces(self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
        """Those of its checkpoint; of a network that was given nothing is known."""
        for own, other, name in (
            (self.observation_space, observation_space, "observations"),
            (self.action_space, action_space, "actions"),
        ):
            if own is not None and own != other:
                raise ConfigurationError(
                    f"The checkpoint's network was trained with the {name} {own}, and the environment has {other}: use "
                    "a checkpoint that was trained on such an environment."
                )

    def place(self, convert: Callable[[nn.Module], nn.Module]) -> None:
        self.model = convert(self.model)

    def get_params(self) -> dict[str, Any]:
        """A copy of the network's parameters."""
        return {name: tensor.clone() for name, tensor in self.model.state_dict().items()}

    def set_params(self, params: Mapping[str, Any]) -> None:
        """Copy parameters into the network."""
        self.model.load_state_dict(params)

    def train(self) -> None:
        """Put the network in training mode."""
        self.model.train()

    def eval(self) -> None:
        """Put the network in evaluation mode."""
        self.model.eval()


def _choose(distribution: Distribution, temperature: float, noise: Tensor | None) -> Tensor:
    if temperature == 0:
        return distribution.mode()
    if temperature != 1:
        distribution = distribution.tempered(temperature)
    return distribution.sample(noise if noise is not None else distribution.noise())


def _parts_of(path: Union[str, Path], flag: str) -> tuple[nn.Module, spaces.Space[Any], spaces.Space[Any]]:
    """The network of a checkpoint, and the two spaces that it was trained with."""
    checkpoint = read_checkpoint(path, flag)
    return (network_from_checkpoint(checkpoint, flag).eval(), *spaces_of(checkpoint))
