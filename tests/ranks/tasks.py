"""What makes ranks unequal: environments that reset in the next step, at a different pace on each."""

import gymnasium
from gymnasium.vector import AutoresetMode

from ppo_lightning import CoordinationEnv, GymnasiumEnv
from tests.coordination import TINY, policy_of
from tests.runs import SmallGRU
from tests.tasks import Walk


class NextStep(GymnasiumEnv):
    """Resets in the next step, so that a step after each episode is not valid, with one seed an environment."""

    def _make_vector(self, num_envs):
        return self._make_sync(num_envs, {}, AutoresetMode.NEXT_STEP)


class Hurry(Walk):
    """A walk whose pace differs from environment to environment: episodes of 1 to 12 steps, some truncated."""

    def reset(self, *, seed=None, options=None):
        if seed is not None:
            self.pace = 1 + seed % 4
        obs, info = super().reset(seed=seed)
        self.length = self.pace * int(self.np_random.integers(1, 4))
        return obs, info

    def state_dict(self):
        return {**super().state_dict(), "pace": self.pace}

    def load_state_dict(self, state):
        super().load_state_dict(state)


class Uneven(Walk):
    """Episodes of one step from an odd seed on; from an even one on one without end."""

    def reset(self, *, seed=None, options=None):
        if seed is not None:
            self.fixed = 1 if seed % 2 else 10**9
        obs, info = super().reset(seed=seed)
        self.length = self.fixed
        return obs, info


class Coordinated(CoordinationEnv):
    """A novice with memory and an expert without, in environments that reset in the next step."""

    speed_settings = ()

    def __init__(self, id: str) -> None:
        agents = policy_of(SmallGRU, 1), policy_of(TINY, 2)
        super().__init__(NextStep(id), *agents, 0.4, 0.2, base_penalty_episodes=6)
        self.id = id


gymnasium.register("Hurry-v0", Hurry)
gymnasium.register("Uneven-v0", Uneven)
