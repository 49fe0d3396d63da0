"""Agents whose every number follows from the toy environment's observation ``[seed, episode, step]``."""

import contextlib

import torch

from ppo_lightning.core.agent import ActOutput
from ppo_lightning.core.rollout import PPOBatch


def state_of(obs):
    return obs if isinstance(obs, torch.Tensor) else obs["state"]


class ScriptedAgent:
    """Acts by ``choose_action``, values an observation as ``100·seed + 10·episode + step``."""

    device = torch.device("cpu")
    keeps_next_obs = False
    warm_up_steps = 0

    def __init__(self):
        self.update_stopped = False
        self.is_collecting = False
        self.acted_on = []

    @contextlib.contextmanager
    def collecting(self):
        self.is_collecting = True
        with torch.no_grad():
            yield
        self.is_collecting = False

    def initial_state(self, num_envs):
        return None

    def draw_noise(self, num_steps, generators):
        return torch.stack([torch.rand(num_steps, generator=generator) for generator in generators], dim=1)

    def act(self, obs, noise, state):
        assert self.is_collecting
        x = state_of(obs)
        self.acted_on.append(x.clone())
        actions = (x[:, 0] + 2 * x[:, 1] + x[:, 2]).long() % 3
        return ActOutput(actions, log_probs=-noise, values=self.value_of(obs, state), env_actions=actions, state=state)

    def value_of(self, obs, state):
        assert self.is_collecting
        return state_of(obs) @ torch.tensor([100.0, 10.0, 1.0])

    def start_update(self, batch, minibatches, phases):
        self.minibatches, self.phases_of_minibatches = minibatches, phases

    def prepare(self, rollout, end):
        flat = rollout.flatten()
        return PPOBatch(
            obs=flat.obs,
            actions=flat.actions,
            log_probs=flat.log_probs,
            advantages=flat.rewards,
            returns=flat.rewards,
            values=flat.values,
            batch_size=flat.batch_size,
        )


class LateCriticAgent(ScriptedAgent):
    """Values all steps of a rollout after it."""

    def act(self, obs, noise, state):
        output = super().act(obs, noise, state)
        output.values = None
        return output


class MemoryAgent(ScriptedAgent):
    """Remembers how many steps of its episode it has seen, from 7 on; each adds 1000 to the value."""

    def initial_state(self, num_envs):
        return torch.full((num_envs, 1), 7.0)

    def act(self, obs, noise, state):
        output = super().act(obs, noise, state)
        output.state = state + 1
        return output

    def value_of(self, obs, state):
        return super().value_of(obs, state) + 1000 * state[:, 0]
