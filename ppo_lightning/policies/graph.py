"""A network as a function of named, plain tensors: what a file that other programs run can hold."""

from __future__ import annotations

from typing import Any, Union, cast

import numpy as np
import torch
from gymnasium import spaces
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn

from ppo_lightning.core.errors import ConfigurationError
from ppo_lightning.core.rollout import Observation, State
from ppo_lightning.core.spaces import part_at, paths_of, sample_rows
from ppo_lightning.functional.distributions import (
    Bernoullis,
    Categorical,
    DiagonalGaussian,
    MultiCategorical,
    at_least_float32,
)
from ppo_lightning.models.outputs import (
    MultiDiscreteModelOutput,
    PPOModelOutput,
    initial_state,
    run_network,
    to_env,
)

_OUTPUTS = {"action", "logits", "mean", "std", "value"}
_HUGE = 1e4  # samples beyond it come from bounds that stand for none
_Key = Union[str, tuple[str, ...]]


class PolicyGraph(nn.Module):
    """Observations (and memory) in; greedy action, its distribution, the value (and the next memory) out.

    Inputs are observations as the simulator gives them: ``obs``, or a Dict's keys (``obs.<key>`` for one that is the
    name of another tensor; ``<key>.<key>`` of a Dict in it). Memory is ``state`` in, ``next_state`` out;
    ``state.<key>`` where it is a TensorDict. ``action`` is what the environment's ``step`` takes: a Discrete or
    MultiDiscrete space's start is added, a Box's bounds are kept, and all dtypes but Discrete's, as at the door of
    :class:`envs.gymnasium_vector.GymnasiumVectorEnv`.

    Args:
        network: on the CPU.
        observation_space: one environment's observations.
        action_space: Discrete, or Box, MultiDiscrete or MultiBinary with one dimension.

    Raises:
        ConfigurationError: a memory that begins differently from row to row.
    """

    low: Tensor
    high: Tensor
    start: Tensor

    def __init__(
        self, network: nn.Module, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]
    ) -> None:
        super().__init__()
        self.network = network
        self.observation_space = observation_space
        self.action_space = action_space
        self._state_keys = self._find_state_keys()
        self.state_names = [_join("state", key) for key in self._state_keys or []]
        self._paths = paths_of(observation_space) if isinstance(observation_space, spaces.Dict) else None
        taken = {*_OUTPUTS, *self.state_names, *(f"next_{name}" for name in self.state_names)}
        keys = None if self._paths is None else [".".join(path) for path in self._paths]
        names = ["obs"] if keys is None else [f"obs.{key}" if key in taken else key for key in keys]
        self.input_names = [*names, *self.state_names]
        self._dtype = _torch_dtype(action_space.dtype)
        if isinstance(action_space, spaces.MultiDiscrete):
            self.register_buffer("start", torch.from_numpy(action_space.start.astype(np.int64)), persistent=False)
        if isinstance(action_space, spaces.Box):
            between = np.result_type(np.float32, action_space.dtype)  # what numpy clips in
            self.register_buffer("low", torch.from_numpy(action_space.low.astype(between)), persistent=False)
            self.register_buffer("high", torch.from_numpy(action_space.high.astype(between)), persistent=False)

    def _find_state_keys(self) -> list[_Key] | None:
        """The memory's keys; one empty key for a plain tensor, None without memory."""
        state = initial_state(self.network, 2)
        if state is None:
            return None
        if not bool((state[0] == state[1]).all()):
            raise ConfigurationError(
                f"--ckpt_path: the memory of {type(self.network).__name__} begins differently from row to row, which "
                "an ONNX file cannot tell its user: let initial_state return the same for every row."
            )
        return list(state.keys(True, True)) if isinstance(state, TensorDictBase) else [()]

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Inputs in the order of ``input_names``, each ``(B, *shape)``, to the values of :meth:`named_outputs`."""
        return tuple(self.named_outputs(*tensors).values())

    def named_outputs(self, *tensors: Tensor) -> dict[str, Tensor]:
        """``action``, ``logits`` or ``mean`` and ``std``, ``value``, and ``next_state`` where there is memory."""
        split = len(tensors) - len(self.state_names)
        obs = self._observation(tensors[:split])
        if self._state_keys is None:
            (output, _), following = run_network(self.network, obs), {}
        else:
            output, state = cast("tuple[Any, Any]", run_network(self.network, obs, self._state(tensors[split:])))
            following = {_join("next_state", key): state.get(key) if key else state for key in self._state_keys}
        action = self._to_env(to_env(self.network, output.distribution.mode()))
        return {"action": action, **_parameters(output), "value": at_least_float32(output.value), **following}

    def initial_state(self, rows: int) -> list[Tensor]:
        """The memory at an episode's start, in the order of ``state_names``."""
        if self._state_keys is None:
            return []
        state: Any = initial_state(self.network, rows)
        return [(state.get(key) if key else state).detach() for key in self._state_keys]

    def random_observation(self, rows: int, seed: int) -> list[Tensor]:
        """Something from the observation space; normal where its bounds are so wide that they mean nothing."""
        sample = sample_rows(self.observation_space, rows, seed)
        parts = [sample] if self._paths is None else [part_at(sample, path) for path in self._paths]
        return [torch.from_numpy(_moderate(np.asarray(part), seed)) for part in parts]

    def _observation(self, tensors: tuple[Tensor, ...]) -> Observation:
        if self._paths is None:
            return tensors[0]
        nested: dict[str, Any] = {}
        for path, tensor in zip(self._paths, tensors):
            inner = nested
            for key in path[:-1]:
                inner = inner.setdefault(key, {})
            inner[path[-1]] = tensor
        return TensorDict(nested, batch_size=tensors[0].shape[:1])

    def _state(self, tensors: tuple[Tensor, ...]) -> State:
        if self._state_keys == [()]:
            return tensors[0]
        state = TensorDict({}, batch_size=tensors[0].shape[:1])
        for key, tensor in zip(self._state_keys or [], tensors):
            state.set(key, tensor)
        return state

    def _to_env(self, action: Tensor) -> Tensor:
        if isinstance(self.action_space, spaces.Discrete):
            return action + int(self.action_space.start)
        if isinstance(self.action_space, spaces.MultiDiscrete):
            return (action + self.start).to(self._dtype)
        if isinstance(self.action_space, spaces.MultiBinary):
            return action.to(self._dtype)
        return torch.minimum(torch.maximum(action.to(self.low.dtype), self.low), self.high).to(self._dtype)


def _parameters(output: Any) -> dict[str, Tensor]:
    """A distribution's parameters; none of one that is not the package's own."""
    distribution = output.distribution
    if isinstance(distribution, (Categorical, MultiCategorical)):
        # another output's distribution may be of other logits (masked ones)
        is_plain = type(output) in (PPOModelOutput, MultiDiscreteModelOutput)
        return {"logits": at_least_float32(output.logits) if is_plain else distribution.log_probs}
    if isinstance(distribution, Bernoullis):
        return {"logits": distribution.logits}
    if isinstance(distribution, DiagonalGaussian):
        return {"mean": distribution.mean, "std": distribution.logstd.exp()}
    return {}


def _join(name: str, key: _Key) -> str:
    return ".".join([name, *([key] if isinstance(key, str) else key)])


def _torch_dtype(dtype: Any) -> torch.dtype:
    return torch.from_numpy(np.empty(0, dtype)).dtype


def _moderate(sample: np.ndarray[Any, Any], seed: int) -> np.ndarray[Any, Any]:
    if sample.dtype.kind != "f":
        return sample
    normal = np.random.default_rng(seed).standard_normal(sample.shape)
    return np.where(np.abs(sample) <= _HUGE, sample, normal).astype(sample.dtype)
