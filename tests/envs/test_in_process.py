"""Environments in one process, beside Gymnasium's own loop over them."""

import functools

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from ppo_lightning.envs.games import GOES_ON, SCORE
from ppo_lightning.envs.in_process import InProcess


class Telling(gymnasium.Env):
    """Episodes of random length that say something in ``info``, and write every observation to the same memory."""

    def __init__(self, observation_space, action_space):
        self.observation_space, self.action_space = observation_space, action_space
        self._obs = observation_space.sample()

    def _look(self):
        self.observation_space.seed(int(self.np_random.integers(2**31)))
        obs = self.observation_space.sample()
        if isinstance(obs, np.ndarray):
            self._obs[...] = obs
            return self._obs
        return obs

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self._look(), {"other": 1} | ({GOES_ON: True} if self.np_random.random() < 0.5 else {})

    def step(self, action):
        assert self.action_space.contains(action)
        ends = self.np_random.random(2) < 0.2
        info = {"other": 2.0, SCORE: float(self.np_random.random())}
        return self._look(), float(self.np_random.random()), bool(ends[0]), bool(ends[1]), info


class Wrong(Telling):
    """Gives another observation than it promised, from its first step on."""

    def __init__(self, observation_space, obs):
        super().__init__(observation_space, spaces.Discrete(2))
        self._wrong = obs

    def step(self, action):
        return self._wrong, 0.0, False, False, {}


@pytest.mark.parametrize(
    ("space", "obs"),
    [
        (spaces.Box(-1, 1, (3,)), np.zeros(1, np.float32)),
        (spaces.Box(-1, 1, (3,)), np.zeros((1, 3), np.float32)),
        (spaces.Box(-1, 1, (3,)), None),
        (spaces.Box(0, 255, (3,), np.uint8), np.full(3, 300)),
    ],
)
def test_observations_that_do_not_fit_are_refused_as_by_gymnasium(space, obs):
    make = functools.partial(Wrong, space, obs)
    for kind in (InProcess, SyncVectorEnv):
        env = kind([make], autoreset_mode=AutoresetMode.SAME_STEP)
        env.reset(seed=1)
        with pytest.raises((TypeError, ValueError)):
            env.step(np.zeros(1, np.int64))


def test_numbers_of_another_type_are_converted_as_by_gymnasium():
    make = functools.partial(Wrong, spaces.Box(-1, 1, (3,)), np.full(3, 0.1))
    found = []
    for kind in (InProcess, SyncVectorEnv):
        env = kind([make], autoreset_mode=AutoresetMode.SAME_STEP)
        env.reset(seed=1)
        found.append(env.step(np.zeros(1, np.int64))[0])
    assert same(*found)


SPACES = {
    "vector": spaces.Box(-1, 1, (3,)),
    "doubles": spaces.Box(-1, 1, (3,), np.float64),
    "picture": spaces.Box(0, 255, (4, 4, 3), np.uint8),
    "choice": spaces.Discrete(5),
    "dict": spaces.Dict(a=spaces.Box(-1, 1, (2,)), b=spaces.Discrete(3)),
}


def same(first, second):
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if first.dtype == object:
        return all((a is None and b is None) or same(a, b) for a, b in zip(first, second))
    return first.dtype == second.dtype and np.array_equal(first, second)


def copied(obs):
    return {key: copied(part) for key, part in obs.items()} if isinstance(obs, dict) else obs.copy()


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP])
@pytest.mark.parametrize("action_space", [spaces.Discrete(3), spaces.Box(-1, 1, (2,)), spaces.MultiDiscrete([2, 3])])
@pytest.mark.parametrize("name", list(SPACES))
def test_steps_are_gymnasiums(name, action_space, mode):
    make = functools.partial(Telling, SPACES[name], action_space)
    own, other = (kind([make] * 3, autoreset_mode=mode) for kind in (InProcess, SyncVectorEnv))
    assert all(same(a, b) for a, b in zip(own.reset(seed=1), other.reset(seed=1)))
    own.action_space.seed(2)
    kept, ends = [], 0
    for step in range(60):
        actions = own.action_space.sample()
        found, expected = own.step(actions), other.step(actions)
        assert all(same(a, b) for a, b in zip(found[:4], expected[:4]))
        kept.append((found[0], copied(found[0])))
        ends += int((found[2] | found[3]).sum())
        for key in (SCORE, GOES_ON, "final_obs", f"_{SCORE}", f"_{GOES_ON}", "_final_obs"):
            assert (key in found[-1]) == (key in expected[-1])
            assert key not in found[-1] or same(found[-1][key], expected[-1][key]), key
        for key in (SCORE, f"_{SCORE}") if "final_info" in found[-1] else ():
            assert same(found[-1]["final_info"][key], expected[-1]["final_info"][key])
        if step == 30 and mode == AutoresetMode.SAME_STEP:
            options = {"reset_mask": np.array([True, False, True])}
            assert same(own.reset(options=dict(options))[0], other.reset(options=dict(options))[0])
    assert ends > 10
    assert all(same(*pair) for pair in kept)  # nothing writes over an observation that was given
