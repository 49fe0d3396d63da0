import numpy as np
import pytest
import torch

from ppo_lightning.data.episodes import RECENT_EPISODES, Episode, EpisodeStatistics
from ppo_lightning.envs.base import StepResult


def step(rewards, ended=(0, 0), valid=(1, 1), base=None, truncated=False):
    ended, no = np.array(ended, bool), np.zeros(2, bool)
    kinds = (no, ended) if truncated else (ended, no)
    base = None if base is None else np.array(base, float)
    return StepResult(np.zeros(2), np.array(rewards, float), *kinds, no, np.array(valid, bool), None, base)


@pytest.mark.parametrize("truncated", [False, True])
def test_an_episode_is_the_sum_of_its_steps(truncated):
    statistics = EpisodeStatistics(2)
    assert statistics.add(step([1, 10])) == []
    assert statistics.add(step([2, 20], ended=(1, 0), truncated=truncated)) == [(0, Episode(3, 2, 3))]
    assert statistics.add(step([4, 40], ended=(1, 1), truncated=truncated)) == [
        (0, Episode(4, 1, 4)),
        (1, Episode(70, 3, 70)),
    ]
    assert [episode.episode_return for episode in statistics.finished] == [3, 4, 70]


def test_reset_steps_do_not_count():
    statistics = EpisodeStatistics(2)
    statistics.add(step([1, 1], ended=(1, 0)))
    statistics.add(step([50, 1], valid=(0, 1)))
    assert statistics.add(step([2, 1], ended=(1, 1))) == [(0, Episode(2, 1, 2)), (1, Episode(3, 3, 3))]


def test_base_rewards_are_added_up_beside_the_rewards():
    statistics = EpisodeStatistics(2)
    statistics.add(step([1, 1], base=[2, 3]))
    (row, episode), _ = statistics.add(step([1, 1], ended=(1, 1), base=[2, 3]))
    assert (row, episode) == (0, Episode(2, 2, 4))


def test_many_small_rewards_are_added_without_rounding():
    statistics = EpisodeStatistics(1)
    flags = np.zeros((3, 1), bool)
    small = StepResult(np.zeros(1), np.full(1, 0.1, np.float32), *flags, ~flags[0])
    statistics.add(StepResult(np.zeros(1), np.full(1, 2.0**24, np.float32), *flags, ~flags[0]))
    for _ in range(100):
        statistics.add(small)
    assert statistics.running(0).episode_return == pytest.approx(2**24 + 10, abs=1e-5)


def test_a_new_rollout_forgets_the_finished_and_keeps_the_running():
    statistics = EpisodeStatistics(2)
    statistics.add(step([1, 5], ended=(1, 0)))
    statistics.start_rollout()
    assert statistics.metrics() == {"rollout/episodes": 0}
    assert statistics.running(1) == Episode(5, 1, 5)
    statistics.add(step([1, 5], ended=(0, 1)))
    metrics = statistics.metrics()
    assert [metrics[f"rollout/{name}"] for name in ("episodes", "return_mean", "length_mean")] == [1, 10, 2]
    assert list(statistics.recent_returns) == [1, 10]


def test_recent_returns_are_bounded():
    statistics = EpisodeStatistics(2)
    for number in range(RECENT_EPISODES):
        statistics.add(step([number, number], ended=(1, 1)))
    assert list(statistics.recent_returns) == [i // 2 for i in range(RECENT_EPISODES, 2 * RECENT_EPISODES)]


def test_the_numbers_of_two_ranks_are_those_of_all_episodes_together():
    ranks = [EpisodeStatistics(2), EpisodeStatistics(2)]
    ranks[0].add(step([1, 2], ended=(1, 1), base=[3, 3]))
    ranks[1].add(step([6, 0], ended=(1, 0), base=[9, 0]))
    together = EpisodeStatistics(2)
    together.finished = ranks[0].finished + ranks[1].finished
    assert over_ranks(ranks) == [pytest.approx(together.metrics(), rel=1e-12)] * 2


@pytest.mark.parametrize("idle", [0, 1])
def test_a_rank_without_finished_episodes_takes_no_part_in_the_means(idle):
    ranks = [EpisodeStatistics(2), EpisodeStatistics(2)]
    ranks[1 - idle].add(step([1, 4], ended=(1, 1)))
    assert over_ranks(ranks) == [ranks[1 - idle].metrics()] * 2
    assert over_ranks([EpisodeStatistics(2), EpisodeStatistics(2)]) == [{"rollout/episodes": 0}] * 2


def over_ranks(ranks):
    sent = []
    for rank in ranks:
        rank.metrics(lambda own: sent.append(own) or own[None])
    return [rank.metrics(lambda own: torch.stack(sent)) for rank in ranks]
