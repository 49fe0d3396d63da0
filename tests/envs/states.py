"""Helpers: states through a file, steps compared to the last bit."""

import io

import gymnasium
import numpy as np
import torch


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def draw(env, rng):
    if isinstance(env.action_space, gymnasium.spaces.Discrete):
        return rng.integers(0, env.action_space.n, env.num_envs)
    return rng.uniform(-1.2, 1.2, (env.num_envs, *env.action_space.shape)).astype(np.float32)


def assert_same(first, second, name=""):
    assert type(first) is type(second), name
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        for key, value in first.items():
            assert_same(value, second[key], key)
    elif first is not None:
        assert first.dtype == second.dtype, name
        assert first.tobytes() == second.tobytes(), name


def assert_same_step(first, second):
    for name, value in vars(first).items():
        assert_same(value, getattr(second, name), name)


def taken(env):
    """The state of an environment that was only reset, as a file gives it back."""
    env.reset()
    return through_a_file(env.state_dict())
