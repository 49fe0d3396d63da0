"""Small environments for tests of whole runs."""

import gymnasium
import numpy as np
from gymnasium import spaces


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


for entry_point in (Bandit, Target, Walk, Broken, DictWalk):
    gymnasium.register(f"{entry_point.__name__}-v0", f"tests.tasks:{entry_point.__name__}")
