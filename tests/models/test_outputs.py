"""Masks act on the output of every network, wherever it is asked for."""

import functools

import numpy as np
import pytest
import torch
from gymnasium import spaces
from tensordict import TensorDict
from torch import nn

from ppo_lightning import ActorCritic, ConfigurationError, CoordPPOModel, MLPEncoder, NatureCNN, PPOModelOutput
from ppo_lightning import RandomNetworkDistillation as Novelty
from ppo_lightning.core.spaces import sample_rows
from ppo_lightning.models.memory import unroll
from ppo_lightning.models.outputs import apply_action_mask, run_network
from tests.agents import SMALL_DAAC, SMALL_RND, ForkGRU
from tests.runs import SMALL_NETWORK
from tests.tasks import Fork, Walk

ONE, SEVERAL = Fork.ACTIONS["one"], Fork.ACTIONS["several"]
PLACE = Walk.observation_space


def masked_space(actions):
    return spaces.Dict(place=PLACE, action_mask=spaces.MultiBinary(spaces.flatdim(actions)))


class Own(nn.Module):
    """A user's network, which knows nothing of masks."""

    def __init__(self, observation_space, action_space):
        super().__init__()
        self.linear = nn.Linear(4, int(action_space.n))

    def forward(self, obs):
        logits = self.linear(torch.as_tensor(obs["place"]))
        return PPOModelOutput(logits, logits[:, 0], logits)


def draw(actions, rows=200):
    sample = sample_rows(masked_space(actions), rows)
    sample["action_mask"][:, -1] = 1
    sample["action_mask"][:, 0] = 1
    return {key: torch.from_numpy(part) for key, part in sample.items()}


@pytest.mark.parametrize(
    ("network", "actions"),
    [(Own, ONE), (SMALL_NETWORK, ONE), (SMALL_NETWORK, SEVERAL), (SMALL_DAAC, SEVERAL), (SMALL_RND, ONE)],
)
def test_only_the_probabilities_change(network, actions):
    raw = draw(actions)
    obs, made = TensorDict(raw, batch_size=[200]), network(masked_space(actions), actions)
    plain, (output, state) = made(obs), run_network(made, obs)
    assert state is None
    legal = raw["action_mask"].bool()
    assert bool((output.distribution.log_probs.exp()[~legal] == 0).all())
    assert torch.equal(output.logits[legal], plain.logits[legal])
    assert torch.equal(output.value, plain.value)
    assert type(output) is type(plain)
    arrays = {key: part.numpy() for key, part in raw.items()}
    assert torch.equal(run_network(made, arrays)[0].logits, output.logits)


def test_observations_without_a_mask_cost_nothing_and_change_nothing():
    output = PPOModelOutput(torch.zeros(2, 3), torch.zeros(2), torch.zeros(2))
    nested = TensorDict({"inner": {"action_mask": torch.zeros(2, 3)}}, batch_size=[2])
    for obs in (torch.zeros(2, 3), np.zeros((2, 3)), TensorDict({"x": torch.zeros(2)}, batch_size=[2]), nested):
        assert apply_action_mask(output, obs) is output


def test_masks_act_in_every_step_of_a_sequence():
    torch.manual_seed(0)
    network, starts = ForkGRU(masked_space(ONE), ONE), torch.rand(3, 5) < 0.3
    obs = TensorDict(draw(ONE, 15), batch_size=[15]).reshape(3, 5)
    output = unroll(network, obs, network.initial_state(3), starts)
    legal = obs["action_mask"].flatten(0, 1).bool()
    assert bool((output.distribution.log_probs.exp()[~legal] == 0).all())
    state = network.initial_state(3)
    for step in range(5):
        state = torch.where(starts[:, step, None], network.initial_state(3), state)
        single, state = run_network(network, obs[:, step], state)
        torch.testing.assert_close(output.logits.reshape(3, 5, 4)[:, step], single.logits)


def test_encoders_read_the_mask_only_where_it_is_named():
    space = masked_space(ONE)
    assert MLPEncoder(space).in_keys == ["place"]
    assert MLPEncoder(space, in_keys=["place", "action_mask"]).layers[0].in_features == 8
    with pytest.raises(ConfigurationError, match=r"in_keys is missing: .* no key but action_mask, .*; give \[action_"):
        MLPEncoder(spaces.Dict(action_mask=spaces.MultiBinary(4)))
    images = spaces.Dict(picture=spaces.Box(0, 255, (36, 36, 3), np.uint8), action_mask=spaces.MultiBinary(4))
    assert NatureCNN(images).in_keys == ["picture"]
    shared = ActorCritic(space, ONE, encoder=functools.partial(MLPEncoder, in_keys=["action_mask"]), shared=True)
    assert shared.embedder.layers[0].in_features == 4


def test_a_coordinators_encoder_leaves_out_the_agents_mask():
    space = spaces.Dict(base_obs=masked_space(ONE), novice_hidden=PLACE)
    model = CoordPPOModel(space, spaces.Discrete(2), encoder=MLPEncoder)
    assert model.embedder.in_keys == ["place"]


@pytest.mark.parametrize("mask", [spaces.MultiBinary(4), spaces.Box(0, 1, (4,), np.int8)], ids=str)
def test_novelty_is_not_that_of_the_mask(mask):
    assert Novelty(spaces.Dict(action_mask=mask, place=PLACE)).obs_key == "place"
    with pytest.raises(ConfigurationError, match="RND looks at Box observations, not at Discrete"):
        Novelty(spaces.Dict(action_mask=mask, place=spaces.Discrete(3)))
    two = spaces.Dict(action_mask=mask, place=PLACE, speed=PLACE)
    with pytest.raises(ConfigurationError, match="has the keys place, speed; name"):
        Novelty(two)
