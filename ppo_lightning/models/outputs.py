"""What a network returns: everything an agent may need of one forward pass."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, Union, cast

import torch
from gymnasium import spaces
from tensordict.nn import TensorDictModuleBase
from torch import Tensor

from ppo_lightning.core.errors import ConfigurationError
from ppo_lightning.core.legal import ACTION_MASK
from ppo_lightning.core.rollout import Observation, State
from ppo_lightning.functional.distributions import (
    Bernoullis,
    Categorical,
    DiagonalGaussian,
    Distribution,
    MultiCategorical,
    mask_logits,
)
from ppo_lightning.functional.squashed import SquashedGaussian


@dataclass
class PPOModelOutput:
    """For Discrete actions: ``logits (B, A)``, ``value (B,)``, ``hidden (B, H)``."""

    logits: Tensor
    value: Tensor
    hidden: Tensor

    @property
    def distribution(self) -> Categorical:
        return Categorical(self.logits)


@dataclass
class MultiDiscreteModelOutput:
    """For MultiDiscrete actions: ``logits (B, sum(nvec))``, ``value (B,)``, ``hidden (B, H)``, and the space's nvec."""

    logits: Tensor
    value: Tensor
    hidden: Tensor
    nvec: tuple[int, ...]

    @property
    def distribution(self) -> MultiCategorical:
        return MultiCategorical(self.logits, self.nvec)


@dataclass
class MultiBinaryModelOutput:
    """For MultiBinary actions: ``logits (B, D)`` of 1 against 0, ``value (B,)``, ``hidden (B, H)``."""

    logits: Tensor
    value: Tensor
    hidden: Tensor

    @property
    def distribution(self) -> Bernoullis:
        return Bernoullis(self.logits)


@dataclass
class GaussianModelOutput:
    """For Box actions: ``mean (B, D)``, ``logstd (B, D)`` or ``(D,)``, ``value (B,)``, ``hidden (B, H)``."""

    mean: Tensor
    logstd: Tensor
    value: Tensor
    hidden: Tensor

    @property
    def distribution(self) -> DiagonalGaussian:
        return DiagonalGaussian(self.mean, self.logstd)


class SquashedModelOutput(GaussianModelOutput):
    """The same for actions that are tanh of the Gaussian's samples; ``mean`` and ``logstd`` are those before it."""

    @property
    def distribution(self) -> SquashedGaussian:
        return SquashedGaussian(self.mean, self.logstd)


class ModelOutput(Protocol):
    """What an agent reads of a network's output; those with further heads read ``hidden (B, H)`` too."""

    value: Tensor
    hidden: Tensor

    @property
    def distribution(self) -> Distribution: ...


class MemoryNetwork(Protocol):
    """A network with memory. One without takes ``obs`` alone, returns the output alone, and has no ``initial_state``,
    or one that gives None.
    """

    def initial_state(self, num_envs: int) -> State:
        """The memory at an episode's start, ``(N, *shape)``."""

    def __call__(self, obs: Observation, state: State) -> tuple[ModelOutput, State]: ...


def initial_state(network: Any, num_envs: int) -> State | None:
    """The memory of a network at an episode's start, ``(N, *shape)``; None of one without."""
    begin = getattr(network, "initial_state", None)
    return None if begin is None else cast("State | None", begin(num_envs))


def has_memory(network: Any) -> bool:
    """Whether a network carries something from step to step."""
    return initial_state(network, 1) is not None


def run_network(network: Any, obs: Observation, state: State | None = None) -> tuple[Any, State | None]:
    """The output for ``B`` observations, and the memory after them where there is a ``state`` before.

    Actions that the observations tell to be illegal have probability 0 in it, whatever the network says. A TensorDict
    module, which is called with something else, has ``evaluate(obs)`` for this.
    """
    run: Any = network.evaluate if isinstance(network, TensorDictModuleBase) else network
    output, state = (run(obs), None) if state is None else run(obs, state)
    return apply_action_mask(output, obs), state


def run_policy(network: Any, obs: Observation, *memory: Any) -> Any:
    """The output for ``B`` observations without its value (NaN), of a network that can run its policy alone.

    That of whole sequences, where its ``policy`` takes them: with the memory before them and where episodes start.
    """
    return apply_action_mask(network.policy(obs, *memory), obs)


def has_own_critic(network: Any) -> bool:
    """Whether a network's policy and critic share nothing, so that one of them can be run alone.

    It says so by ``critic_parameters``, has no memory, and runs them by ``policy(obs)`` and ``values(obs)``.
    """
    find = getattr(network, "critic_parameters", None)
    has_halves = all(belongs_to_forward(type(network), name) for name in ("policy", "values"))
    return has_halves and find is not None and find() is not None and not has_memory(network)


def belongs_to_forward(kind: type, method: str) -> bool:
    """Whether what a class does in ``method`` is what its ``forward`` does: not where a subclass changed only that."""
    for base in kind.__mro__:
        if method in vars(base):
            return True
        if not {"forward", "evaluate", "initial_state"}.isdisjoint(vars(base)):
            return False
    return False


def apply_action_mask(output: Any, obs: Any) -> Any:
    """A network's output for observations, with the logits of illegal actions put so low that none is ever taken.

    The same object where the observations tell nothing of it. What does not ask :func:`run_network` for a network's
    output asks this. Observations are ``(B, *shape)``, or ``(N, T, *shape)`` where the output is of ``N·T`` rows.

    Raises:
        ConfigurationError: they do, and the output is no dataclass with ``logits``.
    """
    if isinstance(obs, torch.Tensor) or not isinstance(obs, Mapping):  # all in rollouts but Dict observations
        return output
    mask = obs.get(ACTION_MASK, None)
    if mask is None:
        return output
    if not dataclasses.is_dataclass(output) or not hasattr(output, "logits"):
        raise ConfigurationError(
            f"--model.network gives a {type(output).__name__}, and the observation's {ACTION_MASK} needs a dataclass "
            "with logits: return the output of ppo_lightning.models that is for such actions."
        )
    logits = mask_logits(output.logits, torch.as_tensor(mask, device=output.logits.device).flatten(0, -2))
    return dataclasses.replace(cast(Any, output), logits=logits)


def to_env(network: Any, actions: Tensor) -> Tensor:
    """What the environment is given for the actions of a network's distribution: the same, unless it says otherwise."""
    # asked of the class, as a Module takes microseconds to tell that it has no such attribute
    return network.to_env(actions) if hasattr(type(network), "to_env") else actions


LogitsOutput = Union[PPOModelOutput, MultiDiscreteModelOutput, MultiBinaryModelOutput]
NetworkOutput = Union[LogitsOutput, GaussianModelOutput]


def logits_output(action_space: spaces.Space[Any]) -> Callable[..., LogitsOutput]:
    """What makes the output of ``flatdim(action_space)`` logits: from ``logits``, ``value`` and ``hidden``."""
    if isinstance(action_space, spaces.MultiDiscrete):
        return functools.partial(MultiDiscreteModelOutput, nvec=tuple(action_space.nvec.tolist()))
    return MultiBinaryModelOutput if isinstance(action_space, spaces.MultiBinary) else PPOModelOutput
