"""Checkpoints without runs, and observations, for tests of exported files."""

import functools
from pathlib import Path

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector.utils import batch_space

from ppo_lightning import ActorCritic, MLPEncoder
from ppo_lightning.core.checkpoint import FORMAT_KEY, FORMAT_VERSION
from ppo_lightning.core.instantiate import describe
from ppo_lightning.core.spaces import space_to_dict
from tests.commands import command, sentence_of
from tests.runs import SMALL_NETWORK
from tests.tasks import Drawn

SMALL_MLP = functools.partial(MLPEncoder, hidden_sizes=[16])
VECTOR, DISCRETE = Drawn.OBSERVATIONS["vector"], Drawn.ACTIONS["discrete"]


class Loud(ActorCritic):
    """Means and logits beyond the bounds of actions."""

    def forward(self, obs):
        output = super().forward(obs)
        return type(output)(**{name: 300 * x if name in ("mean", "logits") else x for name, x in vars(output).items()})


def save(network=SMALL_NETWORK, obs=VECTOR, actions=DISCRETE, weights=None):
    """A checkpoint without a run, ``a.ckpt``."""
    built = network(obs, actions)
    built.load_state_dict(built.state_dict() | (weights or {}))
    hparams = {
        "network": describe(network),
        "observation_space": space_to_dict(obs),
        "action_space": space_to_dict(actions),
    }
    torch.save(
        {
            FORMAT_KEY: FORMAT_VERSION,
            "state_dict": {f"network.{name}": tensor for name, tensor in built.state_dict().items()},
            "hyper_parameters": hparams,
        },
        "a.ckpt",
    )
    return built


def refused(*args):
    """The sentence, having seen that nothing was written."""
    before = sorted(Path().rglob("*"))
    sentence = sentence_of(command("export", *args))
    assert sorted(Path().rglob("*")) == before
    return sentence


def draw(space, rows, seed=0):
    """A batch of raw observations."""
    batched = batch_space(space, rows)
    batched.seed(seed)
    sample = batched.sample()
    return dict(sample) if isinstance(space, spaces.Dict) else sample


def assert_close(given, expected):
    np.testing.assert_allclose(given, expected, rtol=1e-5, atol=1e-5)
    assert given.shape == expected.shape
