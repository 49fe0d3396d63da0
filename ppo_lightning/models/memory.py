"""Running a network with memory over whole sequences."""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import torch
from torch import Tensor

from ppo_lightning.core.rollout import Observation, State, where_rows
from ppo_lightning.models.outputs import MemoryNetwork, apply_action_mask, belongs_to_forward, run_network


def unroll(network: MemoryNetwork, obs: Observation, state: State, episode_starts: Tensor) -> Any:
    """The network's outputs over ``(N, T)`` observations, in one flat output of ``N·T`` rows, environment-major.

    Args:
        network: takes ``(obs, state)`` and returns ``(output, next state)``. Its own method ``unroll``, with the
            arguments of this function but the first, does the same faster where it has one.
        obs: ``(N, T, *shape)``.
        state: before the first step, ``(N, *shape)``.
        episode_starts: ``(N, T)`` bool; the memory is cleared before each step where it is true.
    """
    if belongs_to_forward(type(network), "unroll"):
        return apply_action_mask(cast(Any, network).unroll(obs, state, episode_starts), obs)
    num_envs, num_steps = episode_starts.shape
    beginning = network.initial_state(num_envs)
    outputs = []
    for step in range(num_steps):
        state = where_rows(episode_starts[:, step], beginning, state)
        output, after = run_network(network, obs[:, step], state)
        state = cast(State, after)
        outputs.append(output)
    return _stack(outputs)


def _stack(outputs: list[Any]) -> Any:
    """``T`` outputs of ``N`` rows as one of ``N·T``; what all rows share (a common logstd, nvec) stays as it is."""
    fields = {}
    for field in dataclasses.fields(outputs[0]):
        parts = [getattr(output, field.name) for output in outputs]
        fields[field.name] = parts[0] if _is_common(field.name, parts[0]) else torch.stack(parts, dim=1).flatten(0, 1)
    return type(outputs[0])(**fields)


def take_rows(output: Any, rows: Tensor) -> Any:
    """Rows of an output, or of a tensor, by a ``(B,)`` mask or indices; what all rows share stays as it is."""
    if isinstance(output, Tensor):
        return output[rows]
    fields = {name: value if _is_common(name, value) else value[rows] for name, value in vars(output).items()}
    return type(output)(**fields)


def _is_common(name: str, value: Any) -> bool:
    """What is no tensor, and a Gaussian's logstd ``(D,)``, belong to all rows; ``(B, D)`` is each row's own."""
    return not isinstance(value, Tensor) or (name == "logstd" and value.dim() == 1)
