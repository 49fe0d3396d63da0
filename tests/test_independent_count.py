"""Evaluation against a plain loop over single environments, which shares nothing with it but the policy."""

import importlib.util

import gymnasium
import numpy as np
import pytest
import torch
from torch import nn

from ppo_lightning.data.evaluate import episode_quotas, evaluate
from ppo_lightning.data.seeding import Streams
from ppo_lightning.envs import GymnasiumEnv, ProcgenEnv
from ppo_lightning.models import PPOModelOutput
from ppo_lightning.policies import PPOPolicy

needs_procgen = pytest.mark.skipif(importlib.util.find_spec("procgen") is None, reason="procgen has no wheel here")


class Fixed(nn.Module):
    """Logits as a function of the observation."""

    def __init__(self, logits_of):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(1.0))
        self.logits_of = logits_of

    def forward(self, obs):
        logits = self.logits_of(obs)
        return PPOModelOutput(logits=logits, value=logits[:, 0], hidden=logits)


def push_to_the_falling_side(obs):
    """CartPole: good, but not sure of itself."""
    falling = obs[:, 2] + 0.3 * obs[:, 3]
    return torch.stack([-8 * falling, 8 * falling], dim=1)


def swing_with_the_motion(obs):
    """Acrobot: torque along the velocity of the first joint, most of the time."""
    return torch.stack([obs[:, 4], torch.zeros(len(obs)), -obs[:, 4]], dim=1) * 0.7


RUN_AND_JUMP = torch.full((15,), -2.0)
RUN_AND_JUMP[[7, 8]] = torch.tensor([1.0, 1.0])  # right, and right with a jump


def run_and_jump(obs):
    """Coinrun: to the right, mostly."""
    return RUN_AND_JUMP.expand(len(obs), 15)


POLICIES = {"CartPole-v1": push_to_the_falling_side, "Acrobot-v1": swing_with_the_motion}


def evaluated(factory, logits_of, num_episodes, num_envs, temperature=1.0):
    streams = Streams(1, 0, num_envs)
    env = factory.make(streams.eval_env_seeds())
    quotas = episode_quotas(num_episodes, num_envs)
    result = evaluate(PPOPolicy(Fixed(logits_of)), env, streams, quotas, temperature)
    env.close()
    return result.episodes


def choose(logits, rng):
    """The most probable action without a generator, else one drawn by NumPy."""
    if rng is None:
        return int(logits.argmax())
    return int(rng.choice(len(logits), p=torch.softmax(logits.double(), 0).numpy()))


def plain_episode(env, logits_of, rng, **reset):
    obs, _ = env.reset(**reset)
    rewards, ended = [], False
    while not ended:
        action = choose(logits_of(torch.as_tensor(obs)[None])[0], rng)
        obs, reward, terminated, truncated, _ = env.step(action)
        rewards.append(float(reward))
        ended = terminated or truncated
    return sum(rewards), len(rewards)


def assert_same_mean(first, second):
    """Within three standard errors of the difference, which is small enough to see a difference."""
    assert np.std(first) > 0
    error = np.sqrt(np.var(first) / len(first) + np.var(second) / len(second))
    assert abs(np.mean(first) - np.mean(second)) < 3 * error
    return error


@pytest.mark.parametrize("name", POLICIES)
def test_sampled_returns_agree_with_a_plain_loop(name):
    episodes = evaluated(GymnasiumEnv(name), POLICIES[name], num_episodes=60, num_envs=12)
    env, rng = gymnasium.make(name), np.random.default_rng(7)
    counted = [plain_episode(env, POLICIES[name], rng, seed=10_000 + number) for number in range(60)]
    error = assert_same_mean([episode.episode_return for episode in episodes], [total for total, _ in counted])
    assert error < 0.15 * abs(np.mean([total for total, _ in counted]))
    assert_same_mean([episode.length for episode in episodes], [length for _, length in counted])


@pytest.mark.parametrize("name", POLICIES)
def test_greedy_episodes_are_exactly_those_of_a_plain_loop(name):
    """Each environment goes on from its seed: the second episode begins by a reset without one."""
    episodes = evaluated(GymnasiumEnv(name), POLICIES[name], num_episodes=9, num_envs=4, temperature=0.0)
    expected = []
    for seed, quota in zip(Streams(1, 0, 4).eval_env_seeds(), episode_quotas(9, 4)):
        env = gymnasium.make(name)
        for number in range(quota):
            expected.append(plain_episode(env, POLICIES[name], None, **({"seed": seed} if number == 0 else {})))
    assert sorted((episode.episode_return, episode.length) for episode in episodes) == sorted(expected)


def plain_coinrun(num_episodes, rng, **options):
    """Return, length and whether the level was completed, of episodes of one environment after another."""
    from procgen import ProcgenGym3Env

    env = ProcgenGym3Env(1, "coinrun", num_threads=0, rand_seed=12345, **options)
    episodes, total, length = [], 0.0, 0
    while len(episodes) < num_episodes:
        env.act(np.array([choose(RUN_AND_JUMP, rng)], dtype=np.int32))
        reward, _, first = env.observe()
        total, length = total + float(reward[0]), length + 1
        if first[0]:
            episodes.append((total, length, bool(env.get_info()[0]["prev_level_complete"])))
            total, length = 0.0, 0
    env.close()
    return episodes


@needs_procgen
@pytest.mark.parametrize("num_episodes", [100, pytest.param(400, marks=pytest.mark.slow)])
def test_returns_and_solved_fraction_of_coinrun_agree_with_a_plain_loop(num_episodes):
    options = {"distribution_mode": "easy", "num_levels": 0, "start_level": 0}
    episodes = evaluated(ProcgenEnv("coinrun", num_threads=0, **options), run_and_jump, num_episodes, num_envs=12)
    counted = plain_coinrun(num_episodes, np.random.default_rng(7), **options)
    assert_same_mean([episode.episode_return for episode in episodes], [total for total, _, _ in counted])
    assert_same_mean([episode.length for episode in episodes], [length for _, length, _ in counted])
    assert_same_mean([float(episode.solved) for episode in episodes], [float(solved) for _, _, solved in counted])
    for episode in episodes:  # the coin pays 10 and nothing else pays
        assert (episode.episode_return, episode.solved) in ((10, True), (0, False))
    assert [(total, solved) for total, _, solved in counted] == [(10.0 * solved, solved) for _, _, solved in counted]
