"""Small environments for tests of whole runs."""

import ctypes
import os
import time

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector.utils import batch_space, iterate


class Bandit(gymnasium.Env):
    """One step an episode: action 1 pays 1, others nothing. Solved in a handful of iterations."""

    observation_space = spaces.Box(-1, 1, (3,), np.float32)
    action_space = spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.np_random.uniform(-1, 1, 3).astype(np.float32), {}

    def step(self, action):
        return self.np_random.uniform(-1, 1, 3).astype(np.float32), float(action == 1), True, False, {}


class Target(gymnasium.Env):
    """One step an episode: reward is minus the squared distance of a Box action to 0.5."""

    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action):
        return np.zeros(2, np.float32), -float(((action - 0.5) ** 2).sum()), True, False, {}

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        assert not state


class Lock(gymnasium.Env):
    """One step an episode: the reward is the share of components that are right; the first follows the observation.

    Args:
        actions: ``several`` MultiDiscrete actions of unequal sizes that do not start from 0, or ``binary`` ones.
    """

    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    ACTIONS = {
        "several": spaces.MultiDiscrete([2, 4, 3], dtype=np.int32, start=[0, 5, -2]),
        "binary": spaces.MultiBinary(4),
    }
    REST = {"several": [7, -2], "binary": [1, 0, 1]}

    def __init__(self, actions="several"):
        self.action_space, self.rest = self.ACTIONS[actions], self.REST[actions]

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self._draw(), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        right = np.mean(action == [self.first, *self.rest])
        return self._draw(), float(right), True, False, {}

    def _draw(self):
        obs = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        self.first = int(obs[0] > 0)
        return obs

    def state_dict(self):
        return {"first": self.first}

    def load_state_dict(self, state):
        self.first = state["first"]


class Walk(gymnasium.Env):
    """A noisy walk: episodes of 3 to 9 steps, some terminated, some truncated; rewards depend on the action."""

    observation_space = spaces.Box(-np.inf, np.inf, (4,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position, self.steps = self.np_random.normal(size=4), 0
        self.length = int(self.np_random.integers(3, 10))
        return self.position.astype(np.float32), {}

    def step(self, action):
        self.position = self.position + self.np_random.normal(size=4) * 0.3 + (2 * action - 1) * 0.1
        self.steps += 1
        ended = self.steps >= self.length
        truncated = ended and self.length % 2 == 0
        obs = self.position.astype(np.float32)
        return obs, float(self.position[0]), ended and not truncated, truncated, {}

    def state_dict(self):
        return {name: vars(self)[name] for name in ("position", "steps", "length")}

    def load_state_dict(self, state):
        vars(self).update(state)


class Reach(Walk):
    """A walk that two actions are paid for, seen with and without noise, and by the critic alone.

    Nothing rounds what depends on an action, which between one rank and two may differ in its last bits.
    """

    action_space = spaces.Box(np.array([-2, -0.5]), np.array([2, 0.5]), dtype=np.float64)
    observation_space = spaces.Dict(
        {
            "noisy": spaces.Box(-np.inf, np.inf, (4,), np.float32),
            "clean": spaces.Box(-np.inf, np.inf, (4,), np.float32),
            "left": spaces.Discrete(10),
        }
    )

    def _see(self):
        noisy = self.position + self.np_random.normal(size=4) * 0.1
        left = max(self.length - self.steps, 0) % 10
        clean = (100 + 10 * self.position).astype(np.float32)
        return {"noisy": (100 + 10 * noisy).astype(np.float32), "clean": clean, "left": left}

    def reset(self, *, seed=None, options=None):
        _, info = super().reset(seed=seed)
        return self._see(), info

    def step(self, action):
        assert self.action_space.contains(action)
        _, reward, terminated, truncated, info = super().step(0.5)
        reward = 30 * (reward * float(action[0]) - float(action[1]) ** 2)
        return self._see(), reward, terminated, truncated, info

    def state_dict(self):
        return super().state_dict()

    def load_state_dict(self, state):
        super().load_state_dict(state)


class Broken(Walk):
    """A walk whose observation or reward becomes NaN after some steps of the whole environment."""

    def __init__(self, what, after=5):
        self.what, self.left = what, after

    def step(self, action):
        obs, reward, terminated, truncated, info = super().step(action)
        self.left -= 1
        if self.left < 0 and self.what == "reward":
            reward = float("nan")
        elif self.left < 0 and self.what == "observation":
            obs = np.full_like(obs, np.nan)
        elif self.left < 0:
            raise RuntimeError("the simulator crashed")
        return obs, reward, terminated, truncated, info


class DictWalk(Walk):
    """A walk with a Dict observation: floats, an image and a number."""

    observation_space = spaces.Dict(
        {
            "position": Walk.observation_space,
            "image": spaces.Box(0, 255, (8, 8, 3), np.uint8),
            "parity": spaces.Discrete(2),
        }
    )

    def _dict(self, obs):
        image = np.full((8, 8, 3), self.steps, np.uint8)
        return {"position": obs, "image": image, "parity": self.steps % 2}

    def reset(self, *, seed=None, options=None):
        obs, info = super().reset(seed=seed)
        return self._dict(obs), info

    def step(self, action):
        obs, *rest = super().step(action)
        return self._dict(obs), *rest


class Fork(Walk):
    """A walk in which only some actions are legal in each step; it does not take the others.

    Args:
        actions: one of four, from 2 on, or two ``several``.
        told: where it says which are legal: in ``obs``, in ``info``, or by a ``method``.
        stuck: the seed of an environment in which none is in the second step of its first episode.
    """

    ACTIONS = {"one": spaces.Discrete(4, start=2), "several": spaces.MultiDiscrete([3, 2], start=[1, 0])}

    def __init__(self, actions="one", told="obs", stuck=None):
        self.action_space, self.told, self.stuck = self.ACTIONS[actions], told, stuck
        self.sizes = [3, 2] if actions == "several" else [4]
        if told == "obs":
            mask = spaces.MultiBinary(sum(self.sizes))
            self.observation_space = spaces.Dict(place=Walk.observation_space, action_mask=mask)

    def reset(self, *, seed=None, options=None):
        self.is_stuck = seed is not None and seed == self.stuck
        obs, _ = super().reset(seed=seed)
        return self._told(obs, is_over=False)

    def step(self, action):
        chosen = np.atleast_1d(action - self.action_space.start)
        legal = [part[index] for part, index in zip(np.split(self.mask, np.cumsum(self.sizes)[:-1]), chosen)]
        assert all(legal), (action, self.mask)
        obs, reward, terminated, truncated, _ = super().step(chosen.mean() / 2)
        obs, info = self._told(obs, terminated or truncated)
        return obs, reward, terminated, truncated, info

    def _told(self, obs, is_over):
        bits = [self.np_random.permutation(size) < self.np_random.integers(1, size + 1) for size in self.sizes]
        if is_over or (self.is_stuck and self.steps == 1):
            bits[-1][:] = False
        self.mask = np.concatenate(bits).astype(np.int8)
        if self.told == "obs":
            return {"place": obs, "action_mask": self.mask}, {}
        return obs, {"action_mask": self.mask} if self.told == "info" else {}

    def action_masks(self):
        """As sb3-contrib asks for it: before an action is to be chosen."""
        assert self.mask.any()
        return self.mask.astype(bool)

    def state_dict(self):
        return {**super().state_dict(), "mask": self.mask, "is_stuck": self.is_stuck}

    def load_state_dict(self, state):
        super().load_state_dict(state)


class Drawn(gymnasium.Env):
    """Episodes of eight steps; observations drawn from one space, actions of another and of it exactly."""

    OBSERVATIONS = {
        "vector": Walk.observation_space,
        "double": spaces.Box(-10, 10, (3,), np.float64),
        "image": spaces.Box(0, 255, (16, 18, 3), np.uint8),
        "frames": spaces.Box(0, 255, (4, 36, 40), np.uint8),
        "grid": spaces.Box(0, 255, (7, 7, 3), np.uint8),
        "bits": spaces.MultiBinary(5),
        "number": spaces.Discrete(6, start=-2),
        # keys that are also names of outputs, of memory and of operations
        "dict": spaces.Dict(
            value=spaces.Box(-1, 1, (2, 2), np.float32),
            state=spaces.Discrete(3),
            cat=spaces.Box(0, 255, (8, 8, 3), np.uint8),
            mean=spaces.MultiBinary(3),
        ),
    }
    ACTIONS = {
        "discrete": spaces.Discrete(4),
        "started": spaces.Discrete(3, start=10),
        "box": spaces.Box(np.array([-1, 0], np.float32), np.array([1, 0.5], np.float32)),
        "unbounded": spaces.Box(-np.inf, np.inf, (3,), np.float64),
        "whole": spaces.Box(-2, 3, (2,), np.int16),
        "several": spaces.MultiDiscrete([3, 2, 4], dtype=np.int32, start=[1, 0, -2]),
        "alike": spaces.MultiDiscrete([3, 3]),
        "binary": spaces.MultiBinary(4),
    }

    def __init__(self, obs="vector", actions="discrete"):
        self.observation_space, self.action_space = self.OBSERVATIONS[obs], self.ACTIONS[actions]
        self.draws = batch_space(self.observation_space, 1)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.draws.seed(int(self.np_random.integers(2**31)))
        self.steps = 0
        return self._draw(), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        self.steps += 1
        return self._draw(), float(np.sum(action)), self.steps == 8, False, {}

    def _draw(self):
        return next(iter(iterate(self.draws, self.draws.sample())))


class Wage(gymnasium.Env):
    """Episodes of ``length`` steps, each paying ``wage``; observed are the steps so far, ``width`` times."""

    action_space = spaces.Discrete(2)
    stepped = 0  # of all of this process

    def __init__(self, length=3, wage=1.0, width=2):
        self.length, self.wage, self.width = length, wage, width
        self.observation_space = spaces.Box(-1, np.inf, (width,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(self.width, np.float32), {}

    def step(self, action):
        Wage.stepped += 1
        self.steps += 1
        return np.full(self.width, self.steps, np.float32), self.wage, self.steps >= self.length, False, {}


class Slow(Walk):
    """A walk of a millisecond a step, with what may go wrong in one of the ranks.

    Args:
        then: after ``after`` steps: ``raise`` an error, give a ``nan``, or ``hang`` where no signal handler can run.
        rank: the one in which it happens.
    """

    def __init__(self, then="", after=100, rank=0):
        mine = int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", os.environ.get("LOCAL_RANK", 0)))) == rank
        self.then, self.left = then if mine else "", after

    def step(self, action):
        time.sleep(0.001)
        obs, *rest = super().step(action)
        self.left -= 1
        if self.left < 0 and self.then == "raise":
            raise RuntimeError("the simulator crashed")
        if self.left < 0 and self.then == "nan":
            obs = np.full_like(obs, np.nan)
        if self.left == 0 and self.then == "hang":
            print("hangs", flush=True)
            mutex = ctypes.create_string_buffer(256)
            for _ in range(2):  # the second time waits for ever
                ctypes.CDLL(None).pthread_mutex_lock(mutex)
        return obs, *rest


class Stroll(Walk):
    """A walk that can be restored; a step takes as many seconds as ``STROLL_SECONDS`` says."""

    def step(self, action):
        time.sleep(float(os.environ.get("STROLL_SECONDS", "0")))
        return super().step(action)

    def state_dict(self):
        return super().state_dict()

    def load_state_dict(self, state):
        super().load_state_dict(state)


for entry_point in (Bandit, Target, Lock, Walk, Broken, DictWalk, Slow, Wage, Stroll, Reach, Fork):
    gymnasium.register(f"{entry_point.__name__}-v0", f"tests.tasks:{entry_point.__name__}")
gymnasium.register("Drawn-v0", "tests.tasks:Drawn", disable_env_checker=True)
