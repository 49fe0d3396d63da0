"""The noise that agents sample by, and agents that fit no environment."""

import functools
import math

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

from ppo_lightning import ActorCritic, ConfigurationError, CoordinationEnv, MLPEncoder, PPOModelOutput, PPOPolicy
from ppo_lightning.envs.agents import KeyedNoise, look_at_agent
from ppo_lightning.policies import AlwaysPolicy, Policy
from tests.coordination import TINY, TWO, VECTOR, WALKS, Counted, CountedGRU, Says, policy_of, save_agent
from tests.envs.states import through_a_file

BOX, SEVERAL = spaces.Box(-1, 1, (3,), np.float32), spaces.MultiDiscrete([3, 2], start=[4, 0])


@pytest.mark.parametrize(
    ("space", "shape"), [(spaces.Discrete(4), (4,)), (BOX, (3,)), (SEVERAL, (5,)), (spaces.MultiBinary(2), (2,))]
)
def test_a_column_of_noise_follows_from_its_seed(space, shape):
    """Over the borders of what is drawn at once, and whatever the other columns are."""
    one, other = KeyedNoise(space, [3, 4, 5]), KeyedNoise(space, [5, 3])
    drawn = [(one.next(), other.next()) for _ in range(150)]
    assert drawn[0][0].shape == (3, *shape)
    for first, second in drawn:
        assert torch.equal(first[[2, 0]], second)
    assert len({float(first[0].flatten()[0]) for first, _ in drawn}) == 150


@pytest.mark.parametrize("steps", [0, 1, 63, 64, 65, 130])
def test_noise_goes_on_from_a_state_and_begins_again(steps):
    noise, other = KeyedNoise(TWO, [3, 4]), KeyedNoise(TWO, [8, 9])
    drawn = [noise.next() for _ in range(steps)]
    other.next()
    other.load_state_dict(through_a_file(noise.state_dict()))
    for _ in range(70):
        assert torch.equal(noise.next(), other.next())
    for again in (noise, other):
        again.restart()
        assert all(torch.equal(again.next(), first) for first in drawn)


def test_noise_is_gumbel_for_discrete_and_normal_for_box_actions():
    gumbel, normal = KeyedNoise(spaces.Discrete(5), range(50)), KeyedNoise(BOX, range(80))
    drawn = torch.stack([gumbel.next() for _ in range(80)]), torch.stack([normal.next() for _ in range(80)])
    for values, mean, std in zip(drawn, (0.5772, 0.0), (math.pi / math.sqrt(6), 1.0)):
        assert abs(values.mean() - mean) < 4 * std / values.numel() ** 0.5
        assert abs(values.std() / std - 1) < 0.05


class Bare(nn.Module):
    """An output that shows nothing but what it must."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))

    def forward(self, obs):
        class Output:
            value = obs[:, 0]
            distribution = PPOModelOutput(self.weight.expand(len(obs), 2), obs[:, 0], obs).distribution

        return Output()


class Raising(Policy):
    def act(self, obs, temperature=1.0, *, noise=None):
        raise KeyError("no such\nkey")


def test_what_an_agent_can_show():
    assert look_at_agent("novice", PPOPolicy(Counted(4, 3)), VECTOR, spaces.Discrete(3)) == {
        "hidden": (4,),
        "logits": (3,),
    }
    continuous = policy_of(ActorCritic, 1, VECTOR, BOX)
    assert look_at_agent("novice", continuous, VECTOR, BOX) == {"hidden": (64,), "mean": (3,)}
    for space in (SEVERAL, spaces.MultiBinary(2)):  # several distributions are none to read a confidence from
        assert look_at_agent("novice", policy_of(ActorCritic, 1, VECTOR, space), VECTOR, space) == {"hidden": (64,)}
    assert look_at_agent("expert", Says(1), VECTOR, TWO) == {}
    assert look_at_agent("expert", PPOPolicy(Bare()), VECTOR, TWO) == {}


@pytest.mark.parametrize(
    ("agent", "words"),
    [
        (PPOPolicy(Counted(5)), ["does not fit --data.env.env", "RuntimeError", "trained on such an environment"]),
        (PPOPolicy(Counted(4, 3)), ["does not fit", "actions Discrete(2)", "trained on such an environment"]),
        (Says(2), ["takes other actions than Discrete(2)"]),
        (Says(-1), ["takes other actions than Discrete(2)"]),
        (policy_of(ActorCritic, 1, VECTOR, BOX), ["does not fit", "actions Discrete(2)"]),
        (Raising(), ["does not fit", "KeyError: 'no such\\nkey'"]),
        (AlwaysPolicy("expert"), ["AlwaysPolicy chooses between a novice and an expert"]),
    ],
)
@pytest.mark.parametrize("name", ["novice", "expert"])
def test_agents_that_do_not_fit_are_refused_in_a_sentence(agent, words, name):
    agents = {"novice": Says(0), "expert": Says(0)} | {name: agent}
    with pytest.raises(ConfigurationError) as caught:
        CoordinationEnv(WALKS, **agents, open_novice=False).make([0])
    text = str(caught.value)
    assert text.startswith(f"--data.env.{name}")
    assert "\n" not in text
    for part in words:
        assert part in text


@pytest.mark.parametrize(
    ("action", "space"),
    [
        ([2, 2], SEVERAL),
        ([-1, 0], SEVERAL),
        ([0, 2], spaces.MultiBinary(2)),
        ([0], spaces.MultiBinary(2)),
        (1, SEVERAL),
    ],
)
def test_actions_of_several_components_are_looked_at(action, space):
    with pytest.raises(ConfigurationError, match=r"^--data\.env\.novice takes other actions than Multi"):
        look_at_agent("novice", Says(action), VECTOR, space)
    last = [1] * 2 if isinstance(space, spaces.MultiBinary) else [2, 1]
    assert look_at_agent("novice", Says(last), VECTOR, space) == {}


@pytest.mark.parametrize(
    ("spaces_of_it", "words"),
    [
        ((spaces.Box(-1, 1, (4,), np.float32), TWO), ["observations Box(-1.0, 1.0", "environment has Box(-inf, inf"]),
        ((VECTOR, spaces.Discrete(3)), ["actions Discrete(3)", "environment has Discrete(2)"]),
        ((VECTOR, spaces.Discrete(2, start=1)), ["actions Discrete(2, start=1)"]),
    ],
)
@pytest.mark.parametrize("load", [str, lambda path: PPOPolicy(load_path=path)])
def test_checkpoints_of_other_spaces_are_refused(spaces_of_it, words, load):
    save_agent("other.ckpt", observation_space=spaces_of_it[0], action_space=spaces_of_it[1])
    with pytest.raises(ConfigurationError, match=r"^--data.env.novice: The checkpoint's network was trained") as caught:
        CoordinationEnv(WALKS, load("other.ckpt"), Says(1)).make([0])
    for part in words:
        assert part in str(caught.value)


def test_what_cannot_be_shown_must_not_be_asked_for():
    for name in ("novice", "expert"):
        settings = {"open_novice": False} | {f"open_{name}": True}
        with pytest.raises(ConfigurationError, match=rf"^--data.env.{name} is no network.*open_{name}=false\.$"):
            CoordinationEnv(WALKS, Says(0), Says(1), **settings).make([0])


def test_an_environment_that_is_refused_is_closed():
    closed = []

    class Watched(type(WALKS)):
        def make(self, seeds):
            env = super().make(seeds)
            close = env.close
            env.close = lambda: closed.append(close())
            return env

    with pytest.raises(ConfigurationError):
        CoordinationEnv(Watched("tests.tasks:Walk-v0"), Says(7), Says(1), open_novice=False).make([0])
    assert closed == [None]


def test_looking_at_an_agent_draws_no_random_numbers():
    env = WALKS.make([0])
    torch.manual_seed(5)
    before = torch.get_rng_state()
    env.observation_space.seed(1)
    expected = env.observation_space.sample()
    env.observation_space.seed(1)
    look_at_agent("novice", policy_of_fixed(), env.observation_space, env.action_space)
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(env.observation_space.sample(), expected)


@functools.cache
def policy_of_fixed():
    state = torch.get_rng_state()
    policy = policy_of(functools.partial(ActorCritic, encoder=functools.partial(MLPEncoder, hidden_sizes=[3])), 1)
    torch.set_rng_state(state)
    return policy


def test_negative_numbers_are_refused():
    for name in ("expert_query_cost_weight", "switch_agent_cost_weight", "base_penalty", "temperature"):
        for value in (-0.5, math.nan):
            with pytest.raises(ConfigurationError, match=rf"^--data.env.{name} must be at least 0, not"):
                CoordinationEnv(WALKS, Says(0), Says(1), **{name: value})
    with pytest.raises(ConfigurationError, match=r"base_penalty_episodes must be at least 1, not 0\."):
        CoordinationEnv(WALKS, Says(0), Says(1), base_penalty_episodes=0)


def test_costs_are_finite():
    """Infinity would be no cost of the novice's steps either: 0 · ∞ is no number."""
    for name in ("expert_query_cost_weight", "switch_agent_cost_weight", "base_penalty"):
        with pytest.raises(ConfigurationError, match=rf"^--data.env.{name}=inf would .*: give a finite one\.$"):
            CoordinationEnv(WALKS, Says(0), Says(1), **{name: math.inf})
    with pytest.raises(ConfigurationError, match="base_penalty=inf"):
        CoordinationEnv(WALKS, Says(0), Says(1)).set_costs(math.inf)


@pytest.mark.parametrize(
    "state",
    [
        *({"agents": agents} for agents in ([1], "x", {"novice": 3}, {"novice": [1]}, {"other": {}})),
        *({"base_penalty": known} for known in ("x", [1], math.inf, math.nan, -1.0)),
    ],
)
def test_what_a_strangers_checkpoint_says_is_taken_for_nothing(state):
    env = CoordinationEnv(WALKS, Says(0), Says(1), open_novice=False)
    assert env.load_state_dict(state) == ""
    assert env.state_dict()["base_penalty"] is None


def test_an_id_stands_for_the_gymnasium_environment():
    env = CoordinationEnv("tests.tasks:Walk-v0", policy_of(TINY, 1), Says(1), 0.0).make([0])
    assert env.reset()["base_obs"].shape == (1, 4)


class Remembering(Policy):
    """Acts by how many steps of the episode it has seen; a policy of a user's own, with a memory and no network."""

    has_memory = True

    def act(self, obs, temperature=1.0, *, noise=None):
        before = torch.zeros(len(obs), dtype=torch.int64) if self.memory is None else self.memory
        self.memory = before + 1
        return before % 2

    def reset(self, done):
        if self.memory is not None:
            self.memory = torch.where(torch.from_numpy(done), 0, self.memory)


def test_a_policy_of_ones_own_with_a_memory_sees_every_step_and_is_restored():
    def make():
        factory = CoordinationEnv(WALKS, Remembering(), Remembering(), open_novice=False, base_penalty=1.0)
        env = factory.make([1, 2, 3])
        env.reset()
        return env

    env, other = make(), make()
    chosen = np.random.default_rng(1).integers(0, 2, (40, 3))
    steps = np.zeros(3, dtype=int)
    for actions in chosen[:20]:
        result = env.step(actions)
        assert result.base_actions.tolist() == (steps % 2).tolist()
        steps = np.where(result.episode_starts, 0, steps + 1)
    other.load_state_dict(env.state_dict())
    for actions in chosen[20:]:
        assert other.step(actions).base_actions.tolist() == env.step(actions).base_actions.tolist()


def test_an_open_agent_with_a_memory_may_be_the_only_one_to_act_ahead():
    network = PPOPolicy(CountedGRU(1))
    CoordinationEnv(WALKS, network, policy_of(TINY, 2), both_act=False).make([1]).close()
    with pytest.raises(ConfigurationError, match=r"memory of --data\.env\.expert"):
        CoordinationEnv(WALKS, policy_of(TINY, 2), network, both_act=False).make([1])
