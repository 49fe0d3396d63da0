import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from torch import nn

from ppo_lightning.core.errors import TrainingError
from ppo_lightning.data.evaluate import episode_quotas, evaluate
from ppo_lightning.data.seeding import Streams
from ppo_lightning.models import PPOModelOutput
from ppo_lightning.policies import PPOPolicy
from tests.toy import make_toy, play_plain_toy

MODES = [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP]
# an episode lasts 1, 2, 9 or 4 steps, by seed and number
SCRIPT = [(1, "terminated"), (2, "truncated"), (9, "terminated"), (4, "truncated")]


class ToyNetwork(nn.Module):
    """Prefers what ``choose_action`` chooses; ``sharpness`` is how much."""

    def __init__(self, sharpness=50.0):
        super().__init__()
        self.sharpness = nn.Parameter(torch.tensor(sharpness))

    def forward(self, obs):
        preferred = (obs[:, 0] + 2 * obs[:, 1] + obs[:, 2]).long() % 3
        logits = nn.functional.one_hot(preferred, 3) * self.sharpness
        return PPOModelOutput(logits=logits, value=obs[:, 0], hidden=obs)


class CountingNetwork(nn.Module):
    """Chooses by how many steps of its episode it remembers: 0, 1, 2, 0, …"""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(1.0))

    def initial_state(self, num_envs):
        return torch.zeros(num_envs, 1, dtype=torch.int64)

    def forward(self, obs, state):
        logits = nn.functional.one_hot(state[:, 0] % 3, 3) * self.weight
        return PPOModelOutput(logits=logits, value=obs[:, 0], hidden=obs), state + 1


def play(
    num_envs, num_episodes, mode=MODES[0], network=None, temperature=0.0, max_num_steps=None, first=0, policy=None
):
    env = make_toy(range(first, first + num_envs), mode, script=SCRIPT)
    policy = policy or PPOPolicy(network or ToyNetwork())
    result = evaluate(
        policy, env, Streams(1, first, num_envs), episode_quotas(num_episodes, num_envs), temperature, max_num_steps
    )
    env.close()
    return result


def episodes_of(result):
    return sorted((episode.episode_return, episode.length) for episode in result.episodes)


def plain_episodes(seed, count, max_num_steps=None):
    """The first episodes of one environment, from a plain loop."""
    episodes, rewards = [], []
    for _, _, reward, terminated, truncated, _, _ in play_plain_toy(seed, 20 * count, script=SCRIPT):
        rewards.append(reward)
        if terminated or truncated:
            counted = rewards[:max_num_steps]
            episodes.append((sum(counted), len(counted)))
            rewards = []
    return episodes[:count]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("num_envs", "num_episodes"), [(1, 3), (4, 4), (4, 10), (3, 11), (4, 7), (4, 2)])
def test_evaluation_equals_a_loop_over_single_environments(mode, num_envs, num_episodes):
    expected = []
    for seed in range(num_envs):
        quota = num_episodes // num_envs + (seed < num_episodes % num_envs)
        expected += plain_episodes(seed, quota)
    result = play(num_envs, num_episodes, mode)
    assert len(result.episodes) == num_episodes
    assert episodes_of(result) == sorted(expected)


def test_short_episodes_are_not_counted_more_often():
    # one round of each of the four lengths, though the short ones could finish several times
    assert sorted(length for _, length in episodes_of(play(4, 4))) == [1, 2, 4, 9]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("num_envs", "num_episodes"), [(4, 4), (2, 7)])
@pytest.mark.parametrize("max_num_steps", [1, 3, 4, 9])
def test_longer_episodes_count_as_they_are_at_the_limit(mode, num_envs, num_episodes, max_num_steps):
    expected = []
    for seed in range(num_envs):
        quota = num_episodes // num_envs + (seed < num_episodes % num_envs)
        expected += plain_episodes(seed, quota, max_num_steps)
    assert episodes_of(play(num_envs, num_episodes, mode, max_num_steps=max_num_steps)) == sorted(expected)


def test_the_limit_ends_evaluation_without_waiting_for_the_episode():
    assert play(1, 1, max_num_steps=1, first=2).steps == 1  # the episode would last nine steps
    assert play(1, 1, first=2).steps == 9


@pytest.mark.parametrize("mode", MODES)
def test_the_limit_starts_the_next_episode_of_an_environment_without_an_end(mode):
    env = make_toy([0, 1], mode, script=((10**9, "terminated"),))
    result = evaluate(PPOPolicy(ToyNetwork()), env, Streams(1, 0, 2), np.array([3, 2]), 0.0, max_num_steps=4)
    env.close()
    assert [episode.length for episode in result.episodes] == [4] * 5
    assert result.steps == 20


def test_an_environment_without_an_end_or_a_reset_of_its_own_is_reported_instead_of_waited_for():
    env = make_toy([0], MODES[0], script=((10**9, "terminated"),))
    env.end_episodes = lambda rows: False
    with pytest.raises(TrainingError, match=r"environment 0 .*--evaluation.max_num_steps=2"):
        evaluate(PPOPolicy(ToyNetwork()), env, Streams(1, 0, 1), np.array([2]), 0.0, max_num_steps=2)
    env.close()


def test_sampled_evaluation_repeats_itself():
    one, other = (play(4, 12, network=ToyNetwork(1.0), temperature=1.0) for _ in range(2))
    assert episodes_of(one) == episodes_of(other)
    assert episodes_of(one) != episodes_of(play(4, 12))


def test_sampled_evaluation_is_the_same_on_two_ranks_of_half_the_environments():
    whole = play(4, 12, network=ToyNetwork(1.0), temperature=1.0)
    halves = [play(2, 6, network=ToyNetwork(1.0), temperature=1.0, first=first) for first in (0, 2)]
    assert episodes_of(whole) == sorted(episodes_of(halves[0]) + episodes_of(halves[1]))


def test_evaluation_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    play(2, 4, network=ToyNetwork(1.0), temperature=1.0)
    assert torch.equal(torch.get_rng_state(), before)


def test_long_evaluations_draw_noise_beyond_the_first_block():
    env = make_toy([0], script=[(150, "terminated")])
    result = evaluate(PPOPolicy(ToyNetwork(0.0)), env, Streams(1, 0, 1), np.array([1]), 1.0)
    assert result.episodes[0].length == 150


@pytest.mark.parametrize("mode", MODES)
def test_a_memory_begins_anew_in_each_episode(mode):
    result = play(2, 6, mode, network=CountingNetwork())
    expected = []
    for seed in (0, 1):
        for number in range(3):
            length = SCRIPT[(seed + number) % 4][0]
            rewards = [100 * seed + 10 * number + step + (step % 3) / 4 for step in range(length)]
            expected.append((sum(rewards), length))
    assert episodes_of(result) == sorted(expected)


def test_a_memory_of_an_earlier_evaluation_is_forgotten():
    policy = PPOPolicy(CountingNetwork())
    first = play(2, 2, policy=policy)
    assert episodes_of(play(2, 2, policy=policy)) == episodes_of(first)


@pytest.mark.parametrize("num_envs", [1, 4])
def test_a_policy_may_go_on_to_another_number_of_environments(num_envs):
    policy = PPOPolicy(CountingNetwork())
    play(2, 2, policy=policy)
    assert episodes_of(play(num_envs, 4, policy=policy)) == episodes_of(play(num_envs, 4, network=CountingNetwork()))
