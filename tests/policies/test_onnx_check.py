import dataclasses
import functools
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from gymnasium import spaces

from ppo_lightning import (
    ActorCritic,
    export_onnx,
)
from ppo_lightning.functional.distributions import ILLEGAL
from ppo_lightning.policies.graph import PolicyGraph
from ppo_lightning.policies.onnx_check import _gap, largest_difference, rounding
from tests.exports import DISCRETE, SMALL_MLP, VECTOR, Loud, draw, save
from tests.runs import SMALL_NETWORK, SmallGRU
from tests.tasks import Drawn


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


@pytest.mark.parametrize("actions", ["several", "alike", "binary"])
def test_a_file_that_takes_another_action_is_found_to_differ(actions):
    space = Drawn.ACTIONS[actions]
    graph = PolicyGraph(save(functools.partial(Loud, encoder=SMALL_MLP), actions=space), VECTOR, space)
    export_onnx("a.ckpt", "policy.onnx")
    assert largest_difference(Path("policy.onnx"), graph)[1] < 1e-5
    forward = graph.network.forward

    def stubborn(obs):
        """The same logits, and another choice of the last component."""
        output = forward(obs)
        distribution = output.distribution
        other = torch.cat([output.logits[:, :-1], output.logits.abs().amax(1, keepdim=True) + 1], dim=1)
        wrong = dataclasses.replace(output, logits=other).distribution
        distribution.mode = wrong.mode
        return Chosen(output, distribution)

    graph.network.forward = stubborn
    name, difference = largest_difference(Path("policy.onnx"), graph)
    assert name == "action"
    assert difference > 0.1


class Chosen:
    def __init__(self, output, distribution):
        self.logits, self.value, self.distribution = output.logits, output.value, distribution


def test_equal_logits_may_be_chosen_between():
    """Which of them is the greedy action is another program's own affair."""
    logits = np.array([[1.0, 5.0, 5.0, 2.0, 2.0]], np.float32)
    space = spaces.MultiDiscrete([3, 2], dtype=np.uint64, start=[250, 0])
    graph = PolicyGraph(SMALL_NETWORK(VECTOR, space), VECTOR, space)

    def gap(*action):
        given, expected = ({"action": np.array([a], np.uint64), "logits": logits} for a in (action, (251, 1)))
        return float(_gap("action", given, expected, graph)[0])

    assert gap(251, 1) == gap(252, 0) == gap(251, 0) == 0
    assert gap(250, 0) == 4


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


MASKED = {
    "started": spaces.Dict(x=VECTOR, action_mask=spaces.MultiBinary(3)),
    "several": spaces.Dict(x=VECTOR, action_mask=spaces.Box(0, 1, (9,), bool)),
}


@pytest.mark.parametrize("actions", MASKED)
def test_masks_are_in_the_file_and_small_differences_are_found_beside_them(actions):
    """Among the random masks are some that allow nothing."""
    space, masked = Drawn.ACTIONS[actions], MASKED[actions]
    graph = PolicyGraph(save(functools.partial(Loud, encoder=SMALL_MLP), masked, space), masked, space)
    assert graph.input_names == ["x", "action_mask"]
    assert export_onnx("a.ckpt", "policy.onnx").difference < 1e-5
    obs = draw(masked, 400)
    first = slice(0, 3)  # all, or the first component
    obs["action_mask"][:5, first] = 0
    action, logits = onnxruntime.InferenceSession("policy.onnx").run(["action", "logits"], dict(obs))
    mask = obs["action_mask"].astype(bool)
    assert (logits[~mask] == ILLEGAL).all()
    assert (logits[mask] > -1e6).all()
    chosen = action.reshape(400, -1)[:, 0] - int(np.ravel(space.start)[0])
    some = mask[:, first].any(1)
    assert mask[some, chosen[some]].all()
    assert (chosen[~some] == 0).all()
    with torch.no_grad():
        graph.network.fc_policy.bias[0] += 0.5
    assert largest_difference(Path("policy.onnx"), graph)[1] > 1e-2


def test_a_file_that_takes_an_illegal_action_is_found_to_differ():
    space = Drawn.ACTIONS["started"]
    graph = PolicyGraph(save(SMALL_NETWORK, MASKED["started"], space), MASKED["started"], space)
    logits = np.array([[1.0, ILLEGAL, 2.0]], np.float32)
    given, expected = ({"action": np.array([action]), "logits": logits} for action in (11, 12))
    gap, scale = _gap("action", given, expected, graph)
    assert scale == 2
    assert gap > 1e30
    assert _gap("logits", given, expected, graph) == (0, 2)
