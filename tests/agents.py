"""Small agents beside PPO for tests."""

import functools

import torch
from torch import nn

from ppo_lightning import DAAC, RND, DAACModel, MLPEncoder, RandomNetworkDistillation, RNDModel
from tests.runs import SmallGRU, make_data

ENCODER = functools.partial(MLPEncoder, hidden_sizes=[16])
SMALL_DAAC = functools.partial(DAACModel, encoder=ENCODER)
SMALL_RND = functools.partial(RNDModel, encoder=ENCODER)
SMALL_NOVELTY = functools.partial(RandomNetworkDistillation, encoder=ENCODER, hidden_sizes=[8], output_dim=8)


class RewardingGRU(SmallGRU):
    """The smallest network with memory and a value of intrinsic rewards."""

    def __init__(self, observation_space, action_space):
        super().__init__(observation_space, action_space)
        self.intrinsic = nn.Linear(8, 1)

    def intrinsic_values(self, hidden):
        return self.intrinsic(hidden).squeeze(-1)


class ForkGRU(SmallGRU):
    """The smallest network with memory, of an observation beside a mask."""

    def __init__(self, observation_space, action_space):
        super().__init__(observation_space["place"], action_space)

    def forward(self, obs, state):
        return super().forward(obs["place"], state)


def make_daac(**kwargs):
    torch.manual_seed(kwargs.pop("init_seed", 0))
    return DAAC(**({"network": SMALL_DAAC, "learning_rate": 3e-3, "gamma": 0.9, "value_epochs": 2} | kwargs))


def make_rnd(**kwargs):
    torch.manual_seed(kwargs.pop("init_seed", 0))
    flags = {"network": SMALL_RND, "novelty": SMALL_NOVELTY, "learning_rate": 3e-3, "gamma": 0.9, "init_obs_steps": 24}
    return RND(**(flags | kwargs))


def daac_data(env="tests.tasks:Walk-v0", iterations=2, **kwargs):
    """Rollouts for an agent with epochs of its own."""
    return make_data(env, iterations, **({"update_epochs": None} | kwargs))


def batches_of(agent):
    """What each rollout of a run is learned from, with the rollout itself: filled while it trains."""
    seen, prepare = [], agent.prepare

    def spy(rollout, end):
        batch = prepare(rollout, end)
        seen.append((rollout.clone(), batch.clone()))
        return batch

    agent.prepare = spy
    return seen
