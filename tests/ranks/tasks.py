"""What makes ranks unequal: environments that reset in the next step, at a different pace on each."""

import gymnasium
from gymnasium.vector import AutoresetMode
from torch import nn

from ppo_lightning import GymnasiumEnv, PPOModelOutput
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


class Remembering(nn.Module):
    """A small network with memory, in the precision of its weights."""

    def __init__(self, observation_space, action_space):
        super().__init__()
        self.cell = nn.GRUCell(observation_space.shape[0], 8)
        self.policy = nn.Linear(8, int(action_space.n))
        self.value = nn.Linear(8, 1)

    def initial_state(self, num_envs):
        return self.value.weight.new_zeros(num_envs, 8)

    def forward(self, obs, state):
        hidden = self.cell(obs.to(self.value.weight.dtype), state)
        return PPOModelOutput(self.policy(hidden), self.value(hidden).squeeze(-1), hidden), hidden


gymnasium.register("Hurry-v0", Hurry)
gymnasium.register("Uneven-v0", Uneven)
