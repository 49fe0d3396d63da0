import random

import gymnasium
import numpy as np
import pytest
import torch
from torch import nn

from ppo_lightning import Evaluation, VideoRecorder
from ppo_lightning.models import ActorCritic, PPOModelOutput
from tests.callbacks.test_video import Pictured
from tests.runs import equal, fit, make_data, make_ppo, weights


class Lucky(Pictured):
    """Draws from the global generators."""

    def step(self, action):
        obs, reward, *rest = super().step(action)
        return obs, reward + random.random() + np.random.rand() + float(torch.rand(())), *rest


gymnasium.register("Lucky-v0", Lucky)


class Frozen(nn.Module):
    """Its batch norm stays in evaluation mode, whatever the rest does."""

    def __init__(self, observation_space, action_space):
        super().__init__()
        self.norm, self.linear = nn.BatchNorm1d(observation_space.shape[0]).eval(), nn.Linear(4, 3)

    def forward(self, obs):
        hidden = self.linear(self.norm(obs))
        return PPOModelOutput(hidden[:, :2], hidden[:, 2], hidden)


class AlwaysDropping(nn.Module):
    """Drops out also when it is evaluated."""

    def __init__(self, observation_space, action_space):
        super().__init__()
        self.linear = nn.Linear(observation_space.shape[0], 3)

    def forward(self, obs):
        hidden = self.linear(nn.functional.dropout(obs, 0.3, training=True))
        return PPOModelOutput(hidden[:, :2], hidden[:, 2], hidden)


@pytest.mark.parametrize(
    ("network", "env"), [(Frozen, "Pictured"), (AlwaysDropping, "Pictured"), (ActorCritic, "Lucky")]
)
@pytest.mark.parametrize("kind", [Evaluation, VideoRecorder])
def test_training_goes_on_exactly_as_without_whatever_network_and_environment_draw(tmp_path, kind, network, env):
    def trained(*callbacks):
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)
        data = make_data(env=f"{env}-v0", iterations=3)
        return weights(fit(make_ppo(network=network), data, callbacks=list(callbacks), default_root_dir=tmp_path))

    assert equal(trained(), trained(kind(num_episodes=2, every_n_iterations=1)))
