"""Networks whose policy and critic share nothing, run by halves."""

import dataclasses
import functools

import pytest
import torch
from gymnasium import spaces
from tensordict import TensorDict

from ppo_lightning import ActorCritic, DAACModel, LSTMCore, MLPEncoder, PPOModel, RNDModel
from ppo_lightning.core.legal import ACTION_MASK
from ppo_lightning.models.outputs import has_own_critic, run_network, run_policy


def small(space):
    return MLPEncoder(space, hidden_sizes=[8])


VECTOR, MASKED = spaces.Box(-1, 1, (3,)), spaces.Dict(obs=spaces.Box(-1, 1, (3,)), action_mask=spaces.MultiBinary(4))
SEPARATE = {
    "Discrete": (ActorCritic, VECTOR, spaces.Discrete(4)),
    "Box": (ActorCritic, VECTOR, spaces.Box(-1, 1, (2,))),
    "MultiDiscrete": (ActorCritic, VECTOR, spaces.MultiDiscrete([2, 3])),
    "masked": (ActorCritic, MASKED, spaces.Discrete(4)),
    "TensorDict": (PPOModel, VECTOR, spaces.Box(-1, 1, (2,))),
    "squashed": (functools.partial(PPOModel, squash=True), VECTOR, spaces.Box(-1, 1, (2,))),
    "DAAC": (DAACModel, VECTOR, spaces.Discrete(4)),
}


@pytest.mark.parametrize("name", SEPARATE)
def test_the_halves_of_a_network_say_what_the_whole_says(name):
    build, observation_space, action_space = SEPARATE[name]
    network = build(observation_space, action_space, encoder=small)
    assert has_own_critic(network)
    obs = torch.randn(5, 3)
    if observation_space is MASKED:
        mask = torch.rand(5, 4) < 0.5
        mask[:, 0] = True
        obs = TensorDict({"obs": obs, ACTION_MASK: mask}, batch_size=[5])
    whole, half = run_network(network, obs)[0], run_policy(network, obs)
    assert type(half) is type(whole)
    assert half.value.isnan().all()
    for field in dataclasses.fields(whole):
        if field.name != "value":
            torch.testing.assert_close(getattr(half, field.name), getattr(whole, field.name), rtol=0, atol=0)
    torch.testing.assert_close(network.values(obs), whole.value, rtol=0, atol=0)


class OwnForward(ActorCritic):
    def forward(self, obs, state=None):
        output = super().forward(obs, state)
        output.value = output.value + 1
        return output


class OwnHalves(OwnForward):
    def policy(self, obs):
        return super().policy(obs)

    def values(self, obs):
        return super().values(obs) + 1


def test_a_network_is_run_in_halves_only_where_they_are_its_own():
    def build(kind, **settings):
        return kind(VECTOR, spaces.Discrete(4), encoder=small, **settings)

    assert not has_own_critic(build(ActorCritic, shared=True))
    assert not has_own_critic(build(RNDModel))
    assert not has_own_critic(build(ActorCritic, core=functools.partial(LSTMCore, hidden_dim=4)))
    assert not has_own_critic(build(OwnForward))
    assert has_own_critic(build(OwnHalves))
    assert not has_own_critic(torch.nn.Linear(3, 4))
