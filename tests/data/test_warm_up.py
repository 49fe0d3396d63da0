"""Random actions before the first rollout, of which nothing is left but what the agent saw."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode

from ppo_lightning import TrainingError
from ppo_lightning.core.agent import Phase
from ppo_lightning.data import RolloutDataset
from ppo_lightning.data.collect import Collector
from ppo_lightning.data.seeding import Streams
from ppo_lightning.data.warm_up import warm_up
from ppo_lightning.envs import GymnasiumEnv
from tests.data.agents import ScriptedAgent, state_of
from tests.data.test_collect import generators
from tests.stateful import SIMULATORS
from tests.tasks import Drawn
from tests.toy import ToyEnv, make_toy

MODES = [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP]


class Watcher(ScriptedAgent):
    """Remembers what it was shown."""

    def __init__(self, warm_up_steps=13):
        super().__init__()
        self.warm_up_steps, self.seen = warm_up_steps, []

    def warm_up(self, obs):
        assert self.is_collecting
        self.seen.append(obs.clone())


def actions_of(env, watcher, seeds, chunk=100):
    """What ``env`` was given."""
    given, step = [], env.step
    env.step = lambda actions: (given.append(np.array(actions)), step(actions))[1]
    warm_up(env, watcher, seeds, chunk)
    return np.stack(given)


def test_as_many_steps_as_asked_for_are_shown_in_parts():
    watcher = Watcher(13)  # seven steps of two environments
    warm_up(make_toy([0, 1]), watcher, [5, 6], chunk=3)
    assert [tuple(obs.shape) for obs in watcher.seen] == [(6, 3), (6, 3), (2, 3)]
    assert torch.cat(watcher.seen)[:6].tolist() == [[0, 0, 1], [1, 0, 1], [0, 0, 2], [1, 1, 0], [0, 1, 0], [1, 1, 1]]


def test_a_step_that_only_resets_is_not_shown():
    watcher = Watcher(40)
    warm_up(make_toy([0, 1], AutoresetMode.NEXT_STEP), watcher, [5, 6], chunk=8)
    seen = torch.cat(watcher.seen)
    assert seen[:, 2].min() == 1  # an episode's first observation is only seen after a reset
    assert len(seen) < 40
    assert len(seen.unique(dim=0)) == len(seen)


def test_dict_observations_are_shown_in_their_own_dtypes():
    watcher = Watcher(6)
    warm_up(make_toy([0, 1], obs="dict"), watcher, [5, 6], chunk=2)
    assert [len(obs) for obs in watcher.seen] == [4, 2]
    assert all(obs["image"].dtype == torch.uint8 for obs in watcher.seen)
    assert state_of(watcher.seen[0])[:, 2].tolist() == [1, 1, 2, 0]


@pytest.mark.parametrize("kind", Drawn.ACTIONS)
def test_actions_of_every_kind_are_of_their_space(kind):
    """The environment asserts that."""
    env = GymnasiumEnv("tests.tasks:Drawn-v0", kwargs={"actions": kind}).make([1, 2])
    given = actions_of(env, Watcher(200), [3, 4])
    env.close()
    assert len(given) == 100
    assert not np.array_equal(given[:, 0], given[:, 1])  # each environment's own
    if kind == "several":
        assert [set(given[..., part].flatten()) for part in range(3)] == [{0, 1, 2}, {0, 1}, {0, 1, 2, 3}]
    elif kind == "started":
        assert set(given.flatten()) == {0, 1, 2}
    elif kind == "box":
        space = Drawn.ACTIONS[kind]
        assert (given >= space.low).all()
        assert (given <= space.high).all()
        assert given.std(axis=(0, 1)) == pytest.approx([2 / 12**0.5, 0.5 / 12**0.5], rel=0.2)


def test_actions_follow_from_the_seed_of_their_environment_alone():
    both = actions_of(make_toy([0, 1]), Watcher(40), [3, 4])
    second = actions_of(make_toy([1]), Watcher(20), [4])
    assert np.array_equal(both[:, 1], second[:, 0])
    assert not np.array_equal(second, actions_of(make_toy([1]), Watcher(20), [5]))


def rollouts_of(env, seeds, watcher, is_warmed_up):
    collector = Collector(env, 6)
    if is_warmed_up:
        collector.warm_up(watcher, seeds)
    rollouts = [collector.collect(watcher, generators(len(seeds))).clone() for _ in range(2)]
    return rollouts, repr(collector.episodes.state_dict())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("steps", [1, 2, 11, 40])
def test_the_rollouts_are_those_of_a_run_without_it(mode, steps):
    with_it, without = (rollouts_of(make_toy([0, 1], mode), [3, 4], Watcher(steps), warm) for warm in (True, False))
    assert with_it[1] == without[1]
    for one, other in zip(with_it[0], without[0]):
        assert bool((one == other).all())


NAMES = ["CartPole async", "CartPole vector", "Pendulum next step", "Procgen coinrun", "MiniGrid DoorKey-5x5-v0"]


@pytest.mark.parametrize("simulator", [one for one in SIMULATORS if one.name in NAMES], ids=lambda one: one.name)
def test_simulators_begin_as_if_it_had_not_been(simulator):
    if simulator.missing():
        pytest.skip(f"needs {simulator.missing()}")
    observed = []
    for steps in (30, 0):
        env = simulator.make([7, 8])
        if steps:
            warm_up(env, Watcher(steps), [3, 4], chunk=10)
        observed.append([env.reset()] + [env.step(np.stack([env.action_space.sample() * 0] * 2)).obs for _ in range(5)])
        env.close()
    assert len(observed[0]) == 6
    for one, other in zip(*observed):
        np.testing.assert_array_equal(one, other)


def test_a_number_that_is_not_finite_stops_training_before_the_statistics():
    watcher = Watcher(20)
    words = r"^The observation of environment 1 after a random action before the first rollout is not finite"
    with pytest.raises(TrainingError, match=words):
        warm_up(make_toy([0, 1], poison=("obs", 1, 1, 2)), watcher, [5, 6], chunk=100)
    assert not watcher.seen


class Global(ToyEnv):
    """Draws from NumPy's own generator."""

    def _observe(self):
        return np.array([self.number, self.episode, np.random.rand()], np.float32)


gymnasium.register("GlobalToy-v0", Global, disable_env_checker=True, order_enforce=False)


class Run:
    """A dataset over environments that draw from the global generator; counts its rollouts."""

    def __init__(self, watcher, rollouts=0):
        self.rollouts = rollouts
        collector, streams = Collector(GymnasiumEnv("GlobalToy-v0").make([0, 1]), 6), Streams(1, 0, 2)
        self.dataset = RolloutDataset(
            watcher, collector, [Phase("update", 1)], 2, streams, lambda: self.rollouts, self.count
        )

    def count(self):
        self.rollouts += 1

    def rows(self):
        return [batch.obs.tolist() for batch in self.dataset]


def test_it_comes_once_before_the_first_rollout():
    watcher = Watcher(13)
    run = Run(watcher)
    run.rows()
    assert sum(map(len, watcher.seen)) == 14
    run.rows()
    assert sum(map(len, watcher.seen)) == 14


def test_a_resumed_run_has_had_it():
    watcher = Watcher(13)
    Run(watcher, rollouts=1).rows()
    assert not watcher.seen


def test_environments_that_draw_from_global_generators_begin_as_if_it_had_not_been():
    assert Run(Watcher(13)).rows() == Run(Watcher(0)).rows()


def test_no_environment_is_shown_the_same_actions_as_another_or_as_in_another_run():
    seeds = [Streams(seed, first, 2).warm_up_seeds() for seed, first in ((1, 0), (1, 2), (2, 0))]
    assert len({seed for own in seeds for seed in own}) == 6
    assert Streams(1, 0, 4).warm_up_seeds() == [*seeds[0], *seeds[1]]
    assert not set(seeds[0]) & set(Streams(1, 0, 2).env_seeds(0))


def test_spaces_are_left_as_they_are():
    """Gymnasium's spaces draw from generators of their own, which the environment may use too."""
    env = make_toy([0])
    env.action_space.seed(3)
    expected = spaces.Discrete(3, seed=3).sample()
    warm_up(env, Watcher(5), [9], chunk=5)
    assert env.action_space.sample() == expected
