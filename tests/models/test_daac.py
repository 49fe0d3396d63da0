import pytest
import torch

from ppo_lightning import DAACModel
from ppo_lightning.models.daac import action_features
from tests.tasks import Drawn, Walk

ACTIONS = {
    "discrete": (2, [0, 0, 1, 0]),
    "started": (0, [1, 0, 0]),  # policies count from 0, wherever the space starts
    "several": ([2, 0, 3], [0, 0, 1, 1, 0, 0, 0, 0, 1]),
    "binary": ([1, 0, 1, 1], [1, 0, 1, 1]),
    "box": ([0.25, -3.0], [0.25, -3.0]),
}


@pytest.mark.parametrize("kind", ACTIONS)
def test_each_action_is_read_at_its_own_place(kind):
    action, features = ACTIONS[kind]
    space = Drawn.ACTIONS[kind]
    actions = torch.tensor([action, action])
    assert action_features(actions, space).tolist() == [features] * 2

    network = DAACModel(Walk.observation_space, space)
    hidden = network.policy(torch.randn(2, 4)).hidden
    weight = network.fc_advantage.weight[0]
    predicted = network.advantages(hidden, actions)
    expected = torch.cat([hidden, torch.tensor([features] * 2, dtype=torch.float32)], 1) @ weight
    assert predicted.shape == (2,)
    torch.testing.assert_close(predicted, expected + network.fc_advantage.bias)
    others = network.policy(torch.randn(2, 4)).distribution
    other = others.sample(others.noise())
    if other.tolist() != actions.tolist():
        assert not torch.equal(network.advantages(hidden, other), predicted)


@pytest.mark.parametrize("kind", Drawn.ACTIONS)
def test_the_whole_is_its_two_halves(kind):
    network, obs = DAACModel(Walk.observation_space, Drawn.ACTIONS[kind]), torch.randn(5, 4)
    whole, policy = network(obs), network.policy(obs)
    assert policy.value.isnan().all()
    assert torch.equal(whole.value, network.values(obs))
    assert torch.equal(whole.hidden, policy.hidden)
    actions = whole.distribution.mode()
    assert torch.equal(whole.distribution.log_prob(actions), policy.distribution.log_prob(actions))


def test_the_two_networks_share_nothing():
    network = DAACModel(Walk.observation_space, Drawn.ACTIONS["discrete"])
    critic = set(network.critic_parameters())
    network.values(torch.randn(3, 4)).sum().backward()
    assert {parameter for parameter in network.parameters() if parameter.grad is not None} == critic
    network.zero_grad()
    output = network.policy(torch.randn(3, 4))
    (output.logits.sum() + network.advantages(output.hidden, torch.tensor([0, 1, 2])).sum()).backward()
    assert {parameter for parameter in network.parameters() if parameter.grad is None} == critic


def test_observations_may_be_arrays_and_mappings():
    network = DAACModel(Drawn.OBSERVATIONS["vector"], Drawn.ACTIONS["discrete"])
    obs = torch.randn(3, 4)
    assert torch.equal(network.values(obs.numpy()), network.values(obs))
    assert torch.equal(network.policy(obs.numpy()).logits, network.policy(obs).logits)
