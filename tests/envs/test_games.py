"""Episodes that are lives of a game, and rewards that are reported but not learned from."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces, wrappers
from gymnasium.vector import AutoresetMode

from ppo_lightning.core.agent import ActOutput
from ppo_lightning.core.errors import ConfigurationError
from ppo_lightning.data.collect import Collector
from ppo_lightning.data.episodes import Episode, EpisodeStatistics
from ppo_lightning.data.evaluate import evaluate
from ppo_lightning.data.seeding import Streams
from ppo_lightning.envs import CoordinationEnv, GymnasiumEnv
from ppo_lightning.envs.joined import JoinedVectorEnv
from ppo_lightning.envs.wrappers import EpisodicLife, FireReset, ReportedReward
from tests.coordination import TINY, policy_of
from tests.data.agents import ScriptedAgent
from tests.tasks import Walk

MODES = AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP
each_mode = pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)


class Arcade(gymnasium.Env):
    """Games of some lives of some steps each; a step pays ten times its number in the game, and action 1 fires.

    It is seen as ``(game, step of the game)``. Resets and lives don't begin with a step of their own, fire does.
    """

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, lives=3, life=2, limit=None, fails_at=None):
        self.all, self.life, self.limit, self.fails_at, self.games = lives, life, limit, fails_at, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.games, self.steps, self.lives = self.games + 1, 0, self.all
        self.fired = []
        return self._see(), {"lives": self.lives}

    def step(self, action):
        if self.steps + 1 == self.fails_at and self.games == 1:
            raise RuntimeError("out of order")
        self.steps += 1
        self.lives -= self.steps % self.life == 0
        if action == 1:
            self.fired.append(self.steps)
        truncated = self.steps == self.limit
        info = {"lives": self.lives, "fired": list(self.fired)}
        return self._see(), 10.0 * self.steps, self.lives == 0, truncated, info

    def _see(self):
        return np.array([self.games, self.steps], np.float32)


gymnasium.register("Arcade-v0", Arcade, disable_env_checker=True)


def sign(env):
    return wrappers.TransformReward(env, np.sign)


WRAPPERS = [EpisodicLife, ReportedReward, sign]


def make(mode=AutoresetMode.SAME_STEP, num_envs=1, wrapping=WRAPPERS, **kwargs):
    factory = GymnasiumEnv("Arcade-v0", "sync", kwargs, list(wrapping))
    return factory._adapt(range(num_envs), lambda: factory._make_sync(num_envs, {}, mode))


def play(env, num_steps):
    """What is learned from ``(reward, terminated, truncated)`` in valid steps, and the games that are reported."""
    env.reset()
    statistics, learned = EpisodeStatistics(env.num_envs), []
    for _ in range(num_steps):
        result = env.step(np.zeros(env.num_envs, int))
        statistics.add(result)
        if result.valid[0]:
            learned.append((float(result.rewards[0]), bool(result.terminated[0]), bool(result.truncated[0])))
    env.close()
    return learned, statistics.finished


@each_mode
def test_episodes_are_lives_and_reports_are_of_whole_games(mode):
    # the first step of the second and the third life is played by the reset: steps 3 and 5 are not the agent's
    learned, games = play(make(mode), 9)
    assert learned[:4] == [(1, False, False), (1, True, False), (1, True, False), (1, True, False)]
    assert games[0] == Episode(10 + 20 + 40 + 60, 4, 130)
    assert len(games) == (2 if mode == AutoresetMode.SAME_STEP else 1)
    assert len({game.episode_return for game in games}) == 1


@each_mode
def test_without_lives_only_the_rewards_differ(mode):
    learned, games = play(make(mode, wrapping=WRAPPERS[1:]), 6)
    assert learned == 5 * [(1, False, False)] + [(1, True, False)]
    assert games == [Episode(210, 6, 210)]


@each_mode
def test_a_game_that_is_cut_off_bootstraps_and_is_reported(mode):
    learned, games = play(make(mode, limit=4), 4 if mode == AutoresetMode.SAME_STEP else 5)
    # the limit and the second life end in the same step: there is a next state, of which nobody plays on
    assert learned[:3] == [(1, False, False), (1, True, False), (1, False, True)]
    assert games == [Episode(10 + 20 + 40, 3, 70)]


@each_mode
def test_a_game_that_is_over_in_a_reset_is_not_reported(mode):
    env = make(mode, limit=3)  # the reset's own step is the last one
    env.reset()
    statistics, starts = EpisodeStatistics(1), []
    for _ in range(6):
        result = env.step(np.zeros(1, int))
        assert statistics.add(result) == []
        starts += [tuple(result.obs[0])] if result.episode_starts[0] else []
    assert starts[0] == (2, 0)
    assert statistics.dropped == len(starts)
    env.close()


@pytest.mark.parametrize("mode", MODES)
def test_a_simulator_that_fails_where_a_life_begins_loses_the_game(mode):
    env = make(mode, fails_at=3)
    env.allow_restarts(3)
    env.reset()
    statistics = EpisodeStatistics(1)
    with pytest.warns(UserWarning, match="out of order"):
        results = [env.step(np.zeros(1, int)) for _ in range(3)]
    for result in results:
        assert statistics.add(result) == []
    assert results[1].terminated[0]
    assert results[1].valid[0]
    assert statistics.dropped == 1
    # the games of the new simulator are whole
    assert statistics.running(0).episode_return == (10 if mode == AutoresetMode.SAME_STEP else 0)
    env.close()


def test_other_processes_tell_the_same():
    factory = GymnasiumEnv("tests.envs.test_games:Arcade-v0", "async", {}, WRAPPERS)
    assert play(factory.make([0, 1]), 9) == play(make(num_envs=2), 9)


@each_mode
def test_a_game_that_is_broken_off_begins_anew_even_where_a_life_was_just_lost(mode):
    for steps in range(1, 7):
        env = make(mode, num_envs=2)
        env.reset()
        for _ in range(steps):
            env.step(np.zeros(2, int))
        env.end_episodes(np.array([True, False]))
        result = env.step(np.zeros(2, int))
        assert not result.valid[0]
        assert not result.terminated[0]
        assert result.goes_on is None or not result.goes_on[0]
        statistics = EpisodeStatistics(2)
        assert result.obs[0, 1] == 0, steps
        finished = [row for _ in range(5) for row, _ in statistics.add(env.step(np.zeros(2, int)))]
        assert 0 not in finished or mode == AutoresetMode.SAME_STEP
        if mode == AutoresetMode.SAME_STEP:  # a whole game from here on
            assert next(game for game in statistics.finished if game.length == 4).episode_return == 130
        env.close()


class Still:
    """Plays action 0."""

    device = torch.device("cpu")

    def __init__(self):
        self.resets = []

    def draws(self, temperature):
        return False

    def keep(self, rows):
        pass

    def reset(self, rows):
        self.resets.append(bool(rows[0]))

    def act(self, obs, temperature, noise=None):
        return np.zeros(len(obs), int)


@each_mode
def test_evaluation_plays_whole_games(mode):
    policy = Still()
    result = evaluate(policy, make(mode, num_envs=2), Streams(0, 0, 2), np.array([2, 1]), 0.0)
    assert [(game.episode_return, game.length) for game in result.episodes] == 3 * [(130, 4)]
    # the memory is cleared with each life, as in training: at the start, and where lives 2, 3, and the next game began
    assert sum(policy.resets) == (7 if mode == AutoresetMode.SAME_STEP else 6)


def test_evaluation_cuts_games_not_lives():
    result = evaluate(Still(), make(), Streams(0, 0, 1), np.array([2]), 0.0, max_num_steps=3)
    assert [(game.episode_return, game.length) for game in result.episodes] == 2 * [(10 + 20 + 40, 3)]


def test_parts_of_which_one_lost_a_life_are_joined():
    def step(env):
        env.reset()
        result = [env.step(np.zeros(2, int)) for _ in range(2)][-1]
        env.close()
        return result.scores.tolist(), result.goes_on.tolist(), result.rewards.tolist()

    joined = JoinedVectorEnv([make(life=2), make(life=3)])
    assert step(joined) == ([20, 20], [True, False], [1, 1])


def test_fire_starts_the_game_and_each_life_goes_on_with_it():
    env = EpisodicLife(FireReset(Arcade(), 1), first_action=1)
    obs, info = env.reset()
    assert (obs[1], info["fired"]) == (1, [1])
    *_, terminated, _, _ = env.step(0)
    assert terminated
    obs, info = env.reset()
    assert (obs.tolist(), info["fired"]) == ([1, 3], [1, 3])
    obs, info = env.reset()  # in the midst of a life
    assert (obs.tolist(), info["fired"]) == ([2, 1], [1])


@pytest.mark.parametrize("told", [{"seed": 3}, {"options": {}}])
def test_a_reset_that_is_told_something_begins_a_new_game(told):
    env = EpisodicLife(Arcade())
    env.reset()
    env.step(0)
    env.step(0)
    obs, _ = env.reset(**told)
    assert obs.tolist() == [2, 0]


def test_a_game_that_is_over_when_it_starts_is_reset_again():
    obs, _ = FireReset(Arcade(lives=1, life=1), 1).reset()
    assert obs.tolist() == [2, 0]


def test_a_game_that_plays_on_without_lives_is_not_over():
    class Late(Arcade):
        def step(self, action):
            obs, reward, _, truncated, info = super().step(action)
            return obs, reward, self.steps == 9, truncated, info

    env = EpisodicLife(Late())
    env.reset()
    ends = []
    for _ in range(9):
        *_, terminated, _, _ = env.step(0)
        ends.append(terminated)
    assert ends == [False, True, False, True, False, False, False, False, True]


def test_an_environment_without_lives_is_refused():
    with pytest.raises(ConfigurationError, match="EpisodicLife is for games with lives"):
        EpisodicLife(Walk()).reset()


def test_a_coordinator_is_charged_in_what_is_reported_too():
    game = GymnasiumEnv("Arcade-v0", "sync", {}, WRAPPERS)
    agents = [policy_of(TINY, seed, Arcade.observation_space, Arcade.action_space) for seed in (1, 2)]
    env = CoordinationEnv(game, *agents, expert_query_cost_weight=0.5, base_penalty=4.0).make([0])
    env.reset()
    step = env.step(np.array([1]))
    assert (step.rewards[0], step.scores[0], step.base_rewards[0]) == (1 - 2, 10 - 2, 10)
    step = env.step(np.array([0]))
    assert step.goes_on[0]
    env.close()


class Idle(ScriptedAgent):
    """Takes action 0 of two-dimensional observations, which are worth nothing."""

    def act(self, obs, noise, state):
        zeros = torch.zeros(len(obs))
        return ActOutput(zeros.long(), zeros, zeros, zeros.long(), state)

    def value_of(self, obs, state):
        return torch.zeros(len(obs))


def test_a_step_that_ended_a_life_is_learned_from_though_the_simulator_then_failed():
    env = make(fails_at=3)
    env.allow_restarts(3)
    collector = Collector(env, 3)
    with pytest.warns(UserWarning, match="out of order"):
        rollout = collector.collect(Idle(), [torch.Generator()])
    assert rollout.valid[:, 0].tolist() == [True] * 3
    assert rollout.terminated[:2, 0].tolist() == [False, True]
    assert not rollout.truncated.any()
    assert collector.episodes.dropped == 1
