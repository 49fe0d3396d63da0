"""A deterministic environment: every observation says which seed, episode and step it is."""

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from ppo_lightning.envs.gymnasium_vector import GymnasiumVectorEnv

SCRIPT = ((3, "terminated"), (2, "truncated"))


class ToyEnv(gymnasium.Env):
    """Seed ``s`` plays ``script[(s + e) % len(script)] = (length, how it ends)`` as its episode ``e``.

    Step ``t`` is observed as ``[s, e, t]`` and pays ``100·s + 10·e + t + action / 4``.
    """

    def __init__(self, script=SCRIPT, obs="box", actions="discrete", poison=None):
        self.script = [tuple(episode) for episode in script]
        self.kind = obs
        self.poison = poison
        box = spaces.Box(-np.inf, np.inf, (3,), np.float32)
        self.observation_space = {
            "box": box,
            "dict": spaces.Dict(state=box, image=spaces.Box(0, 255, (2, 2, 1), np.uint8)),
            "discrete": spaces.Discrete(1000, start=-5),
            "tuple": spaces.Tuple((box, box)),
        }[obs]
        self.action_space = {
            "discrete": spaces.Discrete(3),
            "started": spaces.Discrete(3, start=10),
            "box": spaces.Box(np.array([-1, 0], np.float32), np.array([1, 0.5], np.float32)),
            "matrix": spaces.Box(-1, 1, (2, 2), np.float32),
            "multi": spaces.MultiDiscrete([3, 2], dtype=np.int16, start=[10, -1]),
            "unsigned": spaces.MultiDiscrete([3, 2], dtype=np.uint64, start=[10, 1]),
            "binary": spaces.MultiBinary(3),
            "grid": spaces.MultiDiscrete([[2, 2], [2, 2]]),
            "binary grid": spaces.MultiBinary((2, 2)),
        }[actions]

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.number, self.episode = seed, -1
        self.episode += 1
        self.time = 0
        return self._observe(), {}

    def step(self, action):
        reward = 100 * self.number + 10 * self.episode + self.time + float(np.sum(action)) / 4
        length, end = self.script[(self.number + self.episode) % len(self.script)]
        if self.poison == ("reward", self.number, self.episode, self.time):
            reward = float("nan")
        self.time += 1
        ended = self.time >= length
        return self._observe(), reward, ended and end != "truncated", ended and end != "terminated", {}

    def _observe(self):
        state = np.array([self.number, self.episode, self.time], np.float32)
        if self.poison == ("obs", self.number, self.episode, self.time):
            state[1] = np.nan
        if self.kind == "dict":
            return {"state": state, "image": np.full((2, 2, 1), self.time, np.uint8)}
        if self.kind == "discrete":
            return np.int64(100 * self.number + 10 * self.episode + self.time)
        return state


gymnasium.register("Toy-v0", ToyEnv, disable_env_checker=True, order_enforce=False)


def make_toy(seeds, mode=AutoresetMode.SAME_STEP, vectorizer=SyncVectorEnv, **kwargs):
    env = vectorizer([lambda: gymnasium.make("Toy-v0", **kwargs)] * len(seeds), autoreset_mode=mode)
    return GymnasiumVectorEnv(env, seeds)


def make_async_toy(seeds, **kwargs):
    return make_toy(seeds, vectorizer=AsyncVectorEnv, **kwargs)


def choose_action(state):
    """A deterministic policy: ``state`` is ``[s, e, t]``."""
    return int(state[0] + 2 * state[1] + state[2]) % 3


def play_plain_toy(seed, num_steps, **kwargs):
    """The first transitions of one environment, from a loop without any vectorisation."""
    env = ToyEnv(**kwargs)
    state, _ = env.reset(seed=seed)
    start, transitions = True, []
    for _ in range(num_steps):
        action = choose_action(state)
        next_state, reward, terminated, truncated, _ = env.step(action)
        transitions.append((tuple(state), action, reward, terminated, truncated, start, tuple(next_state)))
        start = terminated or truncated
        state = env.reset()[0] if start else next_state
    return transitions
