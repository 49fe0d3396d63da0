from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium import spaces

from ppo_lightning import (
    ActorCritic,
    export_onnx,
)
from ppo_lightning.policies.graph import PolicyGraph
from ppo_lightning.policies.onnx_check import largest_difference, rounding
from tests.exports import DISCRETE, VECTOR, save
from tests.runs import SMALL_NETWORK, SmallGRU


def test_a_file_of_other_weights_is_found_to_differ():
    graph = PolicyGraph(save(weights={"fc_value.weight": torch.zeros(1, 16)}), VECTOR, DISCRETE)
    export_onnx("a.ckpt", "policy.onnx")
    assert largest_difference(Path("policy.onnx"), graph)[1] < 1e-5
    with torch.no_grad():
        graph.network.fc_value.bias += 0.5
    assert largest_difference(Path("policy.onnx"), graph) == ("value", pytest.approx(0.5, abs=1e-5))
    with torch.no_grad():
        graph.network.fc_value.bias -= 0.5
        graph.network.fc_policy.bias[2] -= 3
    assert largest_difference(Path("policy.onnx"), graph)[0] in ("action", "logits")


def test_memory_is_compared_beyond_its_beginning():
    graph = PolicyGraph(save(SmallGRU), VECTOR, DISCRETE)
    export_onnx("a.ckpt", "policy.onnx")
    assert largest_difference(Path("policy.onnx"), graph)[1] < 1e-5
    with torch.no_grad():
        graph.network.cell.weight_hh += 1  # which the zeros of the beginning do not show
    assert largest_difference(Path("policy.onnx"), graph)[1] > 1e-2


class Cancelling(ActorCritic):
    """A value that is the small difference of large numbers."""

    def forward(self, obs):
        output = super().forward(obs)
        large = output.value * 1e5
        output.value = (large + 0.1 * obs.sum(-1).to(large.dtype)) - large
        return output


class Float32Only(ActorCritic):
    def forward(self, obs):
        torch.nn.functional.linear(obs.float(), self.embedder.layers[0].weight)
        return super().forward(obs)


def test_a_networks_own_rounding_is_measured():
    def measured(network):
        return rounding(PolicyGraph(save(network), VECTOR, DISCRETE))

    assert 1e-9 < measured(SMALL_NETWORK) < 2e-6
    assert measured(Cancelling) > 1e-4
    assert 1e-9 < measured(SmallGRU) < 2e-6
    assert measured(Float32Only) == 0


def test_observations_without_real_bounds_are_drawn_small():
    wide = spaces.Box(np.array([-3e38, 5], np.float32), np.array([3e38, 6], np.float32))
    graph = PolicyGraph(SMALL_NETWORK(wide, DISCRETE), wide, DISCRETE)
    (obs,) = graph.random_observation(50, seed=0)
    assert obs[:, 0].abs().max() < 10
    assert obs[:, 0].std() > 0.5
    assert ((obs[:, 1] >= 5) & (obs[:, 1] <= 6)).all()
