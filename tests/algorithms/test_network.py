"""A network that is not of its action space is told so before any work."""

import functools

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

from ppo_lightning import ActorCritic, ConfigurationError, CoordPPOModel, MLPEncoder, PPOModelOutput
from ppo_lightning.algorithms.network import build_network
from ppo_lightning.models import GaussianModelOutput, MultiBinaryModelOutput, MultiDiscreteModelOutput

VECTOR, SEVERAL, BINARY = spaces.Box(-1, 1, (3,)), spaces.MultiDiscrete([3, 2]), spaces.MultiBinary(2)


class Making(nn.Module):
    """Returns the output that ``make`` makes of five numbers an observation."""

    def __init__(self, observation_space, action_space, make):
        super().__init__()
        self.linear, self.make = nn.Linear(3, 5), make

    def forward(self, obs):
        numbers = self.linear(obs)
        return self.make(numbers, value=numbers[:, 0], hidden=numbers)


def gaussian(numbers, value, hidden):
    return GaussianModelOutput(numbers[:, :2], torch.zeros(2), value, hidden)


def one_of_two(numbers, value, hidden):
    return PPOModelOutput(numbers[:, :2], value, hidden)


def categoricals(numbers, value, hidden):
    return MultiDiscreteModelOutput(numbers, value, hidden, (3, 2))


def bernoullis(numbers, value, hidden):
    return MultiBinaryModelOutput(numbers[:, :2], value, hidden)


@pytest.mark.parametrize(("space", "make"), [(SEVERAL, categoricals), (BINARY, bernoullis)])
def test_the_output_for_the_space_fits(space, make):
    assert isinstance(build_network(functools.partial(Making, make=make), VECTOR, space), Making)
    assert isinstance(build_network(ActorCritic, VECTOR, space), ActorCritic)


@pytest.mark.parametrize(
    ("space", "make", "words"),
    [
        (SEVERAL, PPOModelOutput, ["int64", r"shape \(\)", "none of MultiDiscrete"]),
        (BINARY, one_of_two, [r"shape \(\)", "none of MultiBinary"]),
        (BINARY, gaussian, ["float32", "none of MultiBinary"]),
        (SEVERAL, bernoullis, ["does not fit", "MultiDiscrete"]),
        (BINARY, categoricals, ["does not fit", "MultiBinary"]),
        (spaces.Discrete(5), categoricals, [r"shape \(2,\)"]),
    ],
)
def test_another_output_is_refused_in_a_sentence(space, make, words):
    with pytest.raises(ConfigurationError, match=r"^--model\.network: .*\.$") as caught:
        build_network(functools.partial(Making, make=make), VECTOR, space)
    for part in words:
        assert caught.match(part)


@pytest.mark.parametrize("space", [SEVERAL, BINARY, spaces.Box(-1, 1, (2,), np.float32)])
def test_a_coordinators_network_has_discrete_actions(space):
    observed = spaces.Dict({"base_obs": VECTOR})
    with pytest.raises(ConfigurationError, match=r"is one of a coordinator.*choose another network\.$"):
        build_network(functools.partial(CoordPPOModel, encoder=MLPEncoder), observed, space)
