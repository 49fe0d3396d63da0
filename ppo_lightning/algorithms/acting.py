"""The half of an agent that plays: a network, and what a rollout asks of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Union, cast

import torch
from gymnasium import spaces
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from ppo_lightning.algorithms.network import build_network
from ppo_lightning.core.agent import ActOutput
from ppo_lightning.core.checkpoint import NetworkBuilder, load_network_weights, read_checkpoint
from ppo_lightning.core.rollout import Observation, State
from ppo_lightning.core.spaces import space_from_dict, space_to_dict
from ppo_lightning.functional.distributions import at_least_float32, draw_noise
from ppo_lightning.models.host import HostActor, host_actor
from ppo_lightning.models.outputs import ModelOutput, has_own_critic, initial_state, run_network, run_policy, to_env

PlainOrSpace = Union[dict[str, Any], spaces.Space[Any], None]


class ActingModule(LightningModule):
    """A LightningModule whose network plays: of ``core.agent.Agent`` all but what is learned from a rollout.

    Args:
        network: builds the network from the observation and action space; in Python a built module also works.
    """

    def __init__(self, network: NetworkBuilder) -> None:
        super().__init__()
        self.network: nn.Module | None = None
        self.action_space: spaces.Space[Any] | None = None
        self._has_own_critic = False
        self._host_actor: HostActor | None = None
        self._looks_for_host_actor = False
        # as a plain attribute a module would be registered, and saved, a second time
        self._network_builder: Any = (lambda *spaces: network) if isinstance(network, nn.Module) else network

    # -- the network

    def build_if_known(self, observation_space: PlainOrSpace, action_space: PlainOrSpace) -> None:
        """Build the network now if the spaces are given; a subclass calls this when its numbers are set."""
        if observation_space is not None and action_space is not None:
            self.build_network(_space(observation_space), _space(action_space))

    def build_network(self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
        """Build the network for these spaces and remember them in the checkpoint."""
        self.network = build_network(self._network_builder, observation_space, action_space)
        self.action_space = action_space
        self._has_own_critic = has_own_critic(self.network)
        self.hparams["observation_space"] = space_to_dict(observation_space)
        self.hparams["action_space"] = space_to_dict(action_space)

    def init_from(self, path: Union[str, Path]) -> None:
        """Start from the network weights of a checkpoint; optimiser, schedules and counters begin anew."""
        load_network_weights(self._net, read_checkpoint(path, "--init_from"), "--init_from")

    def forward(self, obs: Any) -> Any:
        """The network's output for observations ``(B, *shape)``."""
        return run_network(self._net, obs)[0]

    @property
    def _net(self) -> Any:
        network = self.network
        assert network is not None, "the network is built when the spaces are known"
        return network

    def _run(self, obs: Observation, state: State | None) -> tuple[ModelOutput, State | None]:
        return run_network(self._net, obs, state)

    # -- what the dataset asks (core.agent.Agent)

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """No gradients, and the Trainer's precision: rollout and update run the same kernels."""
        with torch.no_grad(), self.trainer.precision_plugin.forward_context():
            self._looks_for_host_actor = True
            try:
                yield
            finally:
                self._host_actor, self._looks_for_host_actor = None, False

    def initial_state(self, num_envs: int) -> State | None:
        """The network's memory at an episode's start; None without memory."""
        return initial_state(self._net, num_envs)

    def draw_noise(self, num_steps: int, generators: Sequence[torch.Generator]) -> Tensor:
        """The random numbers of a rollout's actions, ``(T, N, …)``."""
        assert self.action_space is not None
        dtype = at_least_float32(next(self.parameters()).flatten()[:0]).dtype
        return draw_noise(self.action_space, num_steps, generators, dtype, self.device)

    def act(self, obs: Observation, noise: Tensor, state: State | None) -> ActOutput:
        """Sample actions for ``N`` environments."""
        if self._looks_for_host_actor:
            self._host_actor, self._looks_for_host_actor = self._find_host_actor(len(obs)), False
        if self._host_actor is not None:
            actions, log_probs, values = self._host_actor.act(cast(Tensor, obs), noise)
            return ActOutput(actions, log_probs, values, self._host_actor.to_env(actions))
        if self._has_own_critic:  # of whose values none is needed to act
            output, values = run_policy(self._net, obs), None
        else:
            output, state = self._run(obs, state)
            values = at_least_float32(output.value)
        distribution = output.distribution
        actions = distribution.sample(noise)
        log_probs = distribution.log_prob(actions)
        return ActOutput(actions, log_probs, values, to_env(self._net, actions), state, self.extra_of(output))

    def _find_host_actor(self, num_envs: int) -> HostActor | None:
        """What acts in place of the network in this rollout, where that is faster and the same."""
        is_same = type(self).extra_of is ActingModule.extra_of and type(self)._run is ActingModule._run
        return host_actor(self._net, num_envs) if is_same and not torch.is_autocast_enabled("cpu") else None

    def extra_of(self, output: ModelOutput) -> dict[str, Tensor] | None:
        """What else of the network's output the rollout is to hold, ``(N, …)`` each; None for nothing."""
        return None

    def value_of(self, obs: Observation, state: State | None) -> Tensor:
        """The critic's values ``(K,)`` of any number of observations."""
        return at_least_float32(self._net.values(obs) if self._has_own_critic else self._run(obs, state)[0].value)


def _space(space: PlainOrSpace) -> spaces.Space[Any]:
    return space if isinstance(space, spaces.Space) else space_from_dict(cast(dict[str, Any], space))
