"""How far an ONNX file's results are from those of the network that it was made from."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from ppo_lightning.functional.distributions import ILLEGAL
from ppo_lightning.policies.graph import PolicyGraph

BATCHES = 1, 2, 7
_STEPS = 3  # so that memory is more than its beginning

Array = np.ndarray[Any, Any]


def largest_difference(path: Path, graph: PolicyGraph) -> tuple[str, float]:
    """Run the file in onnxruntime on random observations; the output that differs most, and by how much.

    A difference is divided by the largest magnitude that the output had, where that is above 1.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors are raised anyway
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(inputs: list[Tensor]) -> dict[str, Array]:
        feed = {name: tensor.numpy() for name, tensor in zip(graph.input_names, inputs)}
        return dict(zip(names, session.run(names, feed)))

    differences = _differences(graph, run)
    worst = max(differences, key=lambda name: math.inf if math.isnan(differences[name]) else differences[name])
    return worst, differences[worst]


def rounding(graph: PolicyGraph) -> float:
    """How far the network's own results are from those in float64: no other program can be held to less.

    It is much where numbers inside are large and cancel. 0 for a network that computes in float32 alone.
    """
    exact = copy.deepcopy(graph).double()

    def run(inputs: list[Tensor]) -> dict[str, Array]:
        widened = [tensor.double() if tensor.is_floating_point() else tensor for tensor in inputs]
        outputs = graph.named_outputs(*inputs)
        return {name: tensor.to(outputs[name].dtype).numpy() for name, tensor in exact.named_outputs(*widened).items()}

    try:
        differences = _differences(graph, run)
    except Exception:
        return 0.0
    return max(difference for name, difference in differences.items() if name != "action")


def _differences(graph: PolicyGraph, run: Callable[[list[Tensor]], dict[str, Array]]) -> dict[str, float]:
    """By output."""
    gaps: dict[str, Any] = {}
    scales: dict[str, Any] = {}
    with torch.no_grad():
        for inputs, outputs in _draws(graph):
            given, expected = run(inputs), {name: tensor.numpy() for name, tensor in outputs.items()}
            for name in expected:
                gap, scale = _gap(name, given, expected, graph)
                gaps[name] = np.maximum(gaps.get(name, 0), gap)
                scales[name] = np.maximum(scales.get(name, 1), scale)
    return {name: float(gaps[name] / scales[name]) for name in gaps}


def _draws(graph: PolicyGraph) -> Iterator[tuple[list[Tensor], dict[str, Tensor]]]:
    """Some steps of several batch sizes, with what the network makes of them."""
    for rows in BATCHES:
        state = graph.initial_state(rows)
        for step in range(_STEPS):
            inputs = [*graph.random_observation(rows, seed=step), *state]
            outputs = graph.named_outputs(*inputs)
            yield inputs, outputs
            state = [outputs[f"next_{name}"] for name in graph.state_names]


def _gap(name: str, given: dict[str, Array], expected: dict[str, Array], graph: PolicyGraph) -> tuple[Any, Any]:
    """The largest difference of two outputs, and the largest magnitude, but for logits of illegal actions."""
    one, other = given[name], expected[name]
    if one.shape != other.shape or one.dtype != other.dtype:
        return math.inf, 1.0
    if name == "action" and "logits" in expected:  # by how much they lose: 0 for the greedy ones, also among equals
        one, other = (_logits_of(actions, expected["logits"], graph.action_space) for actions in (one, other))
    one, other = one.astype(np.float64), other.astype(np.float64)
    with np.errstate(invalid="ignore"):
        gap = np.where(one == other, 0.0, np.abs(one - other))
    magnitudes = np.abs(other)
    return gap.max(), magnitudes[magnitudes < -ILLEGAL].max(initial=1.0)


def _logits_of(actions: Array, logits: Array, space: spaces.Space[Any]) -> Array:
    """Of what was chosen in each component, ``(B, D)``; 0 for the 0 of a MultiBinary action."""
    if isinstance(space, spaces.MultiBinary):
        return actions * logits
    assert isinstance(space, (spaces.Discrete, spaces.MultiDiscrete))
    counts = space.n if isinstance(space, spaces.Discrete) else space.nvec
    sizes, starts = (np.atleast_1d(part).astype(np.int64) for part in (counts, space.start))
    columns = actions.astype(np.int64).reshape(len(actions), -1) - starts + np.cumsum(sizes) - sizes
    return np.take_along_axis(logits, columns, axis=1)
