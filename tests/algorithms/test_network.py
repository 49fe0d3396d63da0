"""A network that is not of its action space is told so before any work."""

import functools
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

from ppo_lightning import ActorCritic, ConfigurationError, CoordPPOModel, MLPEncoder, PPOModelOutput
from ppo_lightning.algorithms.network import build_network
from ppo_lightning.functional import Categorical
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


MASKED = spaces.Dict(place=VECTOR, action_mask=spaces.MultiBinary(5))


class MaskedMaking(Making):
    """The same of the key ``place``."""

    def forward(self, obs):
        return super().forward(obs["place"])


@dataclass
class Scores:
    """No logits."""

    scores: torch.Tensor
    value: torch.Tensor
    hidden: torch.Tensor

    @property
    def distribution(self):
        return Categorical(self.scores)


@dataclass
class Stubborn(PPOModelOutput):
    """Logits that nobody reads."""

    @property
    def distribution(self):
        return Categorical(self.hidden)


@pytest.mark.parametrize(
    ("space", "make"), [(SEVERAL, categoricals), (spaces.Discrete(5, start=3), PPOModelOutput), (SEVERAL, None)]
)
def test_an_output_whose_logits_can_be_masked_fits(space, make):
    network = ActorCritic if make is None else functools.partial(MaskedMaking, make=make)
    assert isinstance(build_network(network, MASKED, space), nn.Module)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (Scores, "gives a Scores, and the observation's action_mask needs a dataclass with logits"),
        (lambda numbers, **rest: {"logits": numbers, **rest}, "gives a dict, and the observation's action_mask needs"),
        (Stubborn, "the distribution of MaskedMaking takes actions that the observation's action_mask forbids"),
        (one_of_two, r"does not fit .* mask \(2, 5\)"),
    ],
)
def test_an_output_that_cannot_be_masked_is_refused_in_a_sentence(make, words):
    with pytest.raises(ConfigurationError, match=rf"^--model\.network:? .*{words}.*\.$"):
        build_network(functools.partial(MaskedMaking, make=make), MASKED, spaces.Discrete(5))
