"""What all factories of environments share."""

import copy
import functools
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers import FlattenObservation, TimeAwareObservation

from ppo_lightning.core.errors import ConfigurationError
from ppo_lightning.envs.base import EnvFactory, describe_settings
from ppo_lightning.envs.gymnasium import GymnasiumEnv
from ppo_lightning.envs.procgen import ProcgenEnv


class Forgetful(EnvFactory):
    """Keeps its argument under another name."""

    def __init__(self, size: int = 3) -> None:
        self._size = size

    def make(self, seeds):
        raise NotImplementedError


class Nesting(EnvFactory):
    """An environment around another one."""

    def __init__(self, base: EnvFactory, cost: float = 0.5) -> None:
        self.base, self.cost = base, cost

    def make(self, seeds):
        return self.base.make(seeds)


def test_a_factory_that_does_not_keep_its_settings_is_refused_in_a_sentence():
    with pytest.raises(
        ConfigurationError, match=r"--evaluation.splits.val: Forgetful does not keep its argument 'size'"
    ):
        Forgetful().with_settings({"size": 4}, "--evaluation.splits.val")


def test_settings_in_words_differ_where_the_environment_does():
    partial = functools.partial(TimeAwareObservation, normalize_time=True)
    factories = [
        GymnasiumEnv("CartPole-v1"),
        GymnasiumEnv("CartPole-v0"),
        GymnasiumEnv("CartPole-v1", kwargs={"sutton_barto_reward": True}),
        GymnasiumEnv("CartPole-v1", wrappers=[FlattenObservation]),
        GymnasiumEnv("CartPole-v1", wrappers=[partial]),
        GymnasiumEnv("CartPole-v1", wrappers=[TimeAwareObservation]),
        GymnasiumEnv("CartPole-v1", wrappers=[lambda env: gymnasium.wrappers.ClipReward(env, 0, 1)]),
        ProcgenEnv("coinrun"),
        ProcgenEnv("coinrun", start_level=1),
        Nesting(ProcgenEnv("coinrun")),
        Nesting(ProcgenEnv("coinrun", start_level=1)),
        Nesting(ProcgenEnv("coinrun"), cost=0.25),
    ]
    words = [str(describe_settings(factory)) for factory in factories]
    assert len(set(words)) == len(words)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (np.int64(5), np.int64(6)),
        (Path("maps/a"), Path("maps/b")),
        (np.zeros(2), np.ones(2)),
        (np.zeros(2), np.zeros((2, 1))),
        (np.array([None, 1]), np.array([None, 2])),
        ({1, 2}, {1, 3}),
        (b"a", b"b"),
        (range(3), range(4)),
        (AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP),
        (functools.partial(max, 1), functools.partial(max, 2)),
    ],
)
def test_settings_in_words_differ_where_a_value_does(one, other):
    words, same, others = (
        str(describe_settings(GymnasiumEnv("CartPole-v1", kwargs={"setting": value})))
        for value in (one, copy.deepcopy(one), other)
    )
    assert words == same != others


def test_settings_in_words_say_nothing_of_places_in_memory():
    words = str(describe_settings(GymnasiumEnv("CartPole-v1", wrappers=[Wrapping(), lambda env: env])))
    assert " at 0x" not in words


class Wrapping:
    """A wrapper that is an object."""

    def __call__(self, env):
        return env


def test_what_only_changes_the_speed_is_no_difference():
    assert describe_settings(ProcgenEnv("coinrun", num_threads=1)) == describe_settings(ProcgenEnv("coinrun"))


def test_what_a_factory_does_not_keep_is_left_open():
    assert describe_settings(Forgetful(4)) == describe_settings(Forgetful(5))
