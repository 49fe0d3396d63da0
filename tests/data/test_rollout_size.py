"""What a rollout holds, by the formula of docs/performance.md."""

import functools
import math

import pytest
import torch
from gymnasium import spaces
from tensordict import TensorDictBase

from ppo_lightning import ActorCritic, GridCNN, LSTMCore
from tests.agents import make_daac, make_rnd
from tests.runs import SMALL_NETWORK, fit, make_data, make_ppo

WITH_LSTM = functools.partial(SMALL_NETWORK, core=functools.partial(LSTMCore, hidden_dim=8, num_layers=2))
PER_STEP = 4 * 4 + 4 * 1
"""Log-probability, value, next value and reward; terminated, truncated, valid and episode start."""
PER_TARGET = 2 * 4
"""Advantage and return."""


def bytes_of(obs):
    """An observation's: pixels stay bytes."""
    if isinstance(obs, spaces.Dict):
        return sum(bytes_of(part) for part in obs.values())
    return math.prod(obs.shape) * obs.dtype.itemsize


def bytes_of_action(space):
    """Numbers are the network's float32, choices int64."""
    return math.prod(space.shape) * (4 if isinstance(space, spaces.Box) else 8)


def formula(data, num_steps, num_envs, states=0, extra=0):
    """In bytes."""
    obs, action = bytes_of(data.observation_space), bytes_of_action(data.action_space)
    return num_steps * num_envs * (obs + action + PER_STEP + PER_TARGET + states + extra)


def storages(*holders):
    """Bytes by the storage that they lie in, so that views count once."""
    found = {}
    for holder in holders:
        for _, tensor in holder.items(include_nested=True, leaves_only=True):
            if isinstance(tensor, torch.Tensor) and not isinstance(tensor, TensorDictBase):
                found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(found.values())


@pytest.mark.parametrize(
    ("env", "make", "flags", "states", "extra"),
    [
        ("tests.tasks:Walk-v0", make_ppo, {}, 0, 0),
        ("tests.tasks:Reach-v0", make_ppo, {}, 0, 0),
        ("tests.stateful:Film-v0", make_ppo, {"network": functools.partial(ActorCritic, encoder=GridCNN)}, 0, 0),
        ("tests.tasks:Walk-v0", make_daac, {}, 0, 0),
        # of actor and critic two vectors of 8 in each of two layers
        ("tests.tasks:Walk-v0", make_ppo, {"network": WITH_LSTM}, 2 * 2 * 2 * 8 * 4, 0),
        # the next observation, twice a value, a return, and a bool for each of two epochs
        ("tests.tasks:Walk-v0", make_rnd, {}, 0, 4 * 4 + 4 + 4 + 2),
    ],
)
@pytest.mark.parametrize(("num_steps", "num_envs"), [(8, 4), (24, 6)])
def test_a_rollout_holds_what_the_formula_says(env, make, flags, states, extra, num_steps, num_envs):
    epochs = None if make is make_daac else 2
    data = make_data(env, iterations=1, num_steps=num_steps, num_envs=num_envs, update_epochs=epochs)
    agent, held = make(**flags), []
    prepare = agent.prepare

    def spy(rollout, end):
        batch = prepare(rollout, end)
        held.append(storages(rollout, batch))
        return batch

    agent.prepare = spy
    fit(agent, data)
    assert held == [formula(data, num_steps, num_envs, states, extra)]
