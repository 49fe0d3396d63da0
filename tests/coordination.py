"""Novices, experts and scripted environments for tests of coordination."""

import functools
from dataclasses import dataclass, field

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from tensordict import TensorDict
from torch import nn

from ppo_lightning import ActorCritic, CoordPPOModel, GymnasiumEnv, MLPEncoder, Policy, PPOModelOutput, PPOPolicy
from ppo_lightning.core.checkpoint import FORMAT_KEY, FORMAT_VERSION
from ppo_lightning.core.instantiate import describe
from ppo_lightning.core.spaces import space_to_dict
from ppo_lightning.envs.base import EnvFactory, StepResult, VectorEnv
from tests.commands import WALK
from tests.runs import SmallGRU
from tests.tasks import Walk

SMALL_COORDINATOR = functools.partial(CoordPPOModel, encoder=functools.partial(MLPEncoder, hidden_sizes=[8]))
TINY = functools.partial(ActorCritic, encoder=functools.partial(MLPEncoder, hidden_sizes=[5]))
VECTOR, TWO = Walk.observation_space, spaces.Discrete(2)
COORDINATED = [
    *(flag for flag in WALK if not flag.startswith(("--data.env", "--model.network"))),
    "--data.env=CoordinationEnv",
    "--data.env.env=GymnasiumEnv",
    "--data.env.env.id=tests.tasks:Walk-v0",
    "--data.env.novice=novice.ckpt",
    "--data.env.expert=expert.ckpt",
]
"""A run without a network, and without a base penalty."""
NETWORK = ["--model.network=CoordPPOModel", "--model.network.encoder=MLPEncoder"]
NETWORK = [*NETWORK, "--model.network.encoder.hidden_sizes=[8]"]


class Always(nn.Module):
    """Takes the same action all but always; its hidden features are the observation."""

    def __init__(self, observation_space, action_space, action=1):
        super().__init__()
        self.logits = nn.Parameter(torch.eye(int(action_space.n))[action] * 1e4)

    def forward(self, obs):
        return PPOModelOutput(self.logits.expand(len(obs), -1), obs[:, 0], obs)


class Counted(nn.Module):
    """A linear network that notes what it is called with, and drops features while it trains."""

    def __init__(self, width=4, actions=2, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.dropout, self.linear = nn.Dropout(0.5), nn.Linear(width, actions)
        self.seen = []

    def forward(self, obs):
        self.seen.append(obs.clone())
        hidden = self.dropout(obs.to(self.linear.weight.dtype))
        return PPOModelOutput(self.linear(hidden), hidden[:, 0], hidden)


class CountedGRU(SmallGRU):
    """A network with memory that notes what it is called with."""

    def __init__(self, seed=0):
        torch.manual_seed(seed)
        super().__init__(VECTOR, TWO)
        self.seen = []

    def forward(self, obs, state):
        self.seen.append(obs.clone())
        return super().forward(obs, state)


class NestedGRU(nn.Module):
    """A network whose memory is a TensorDict."""

    def __init__(self, observation_space, action_space):
        super().__init__()
        self.gru = SmallGRU(observation_space, action_space)

    def initial_state(self, num_envs):
        return TensorDict({"inner": {"h": self.gru.initial_state(num_envs)}}, batch_size=[num_envs])

    def forward(self, obs, state):
        output, hidden = self.gru(obs, state["inner", "h"])
        return output, TensorDict({"inner": {"h": hidden}}, batch_size=[len(obs)])


class Says(Policy):
    """The same action whatever is seen; needs no network."""

    def __init__(self, action):
        self.action = action

    def act(self, obs, temperature=1.0, *, noise=None):
        while isinstance(obs, dict):
            obs = next(iter(obs.values()))
        return torch.tensor(self.action).expand(len(obs), *torch.tensor(self.action).shape)

    def draws(self, temperature):
        return False


def policy_of(network, seed=0, observation_space=VECTOR, action_space=TWO):
    """A policy of random parameters far enough from zero to prefer some actions."""
    torch.manual_seed(seed)
    made = network(observation_space, action_space)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter))
    return PPOPolicy(made)


def save_agent(path, network=TINY, seed=0, observation_space=VECTOR, action_space=TWO):
    """A checkpoint as a run leaves it, as far as agents are made from it; returns the network."""
    made = policy_of(network, seed, observation_space, action_space).model if seed else None
    made = made or network(observation_space, action_space)
    content = {
        FORMAT_KEY: FORMAT_VERSION,
        "state_dict": {f"network.{name}": tensor for name, tensor in made.state_dict().items()},
        "hyper_parameters": {
            "network": describe(network),
            "observation_space": space_to_dict(observation_space),
            "action_space": space_to_dict(action_space),
        },
    }
    torch.save(content, path)
    return made


def save_agents():
    """``novice.ckpt`` and ``expert.ckpt``, here."""
    save_agent("novice.ckpt", seed=1)
    save_agent("expert.ckpt", functools.partial(Always, action=1))


@dataclass
class Script:
    """What a :class:`Scripted` environment does in the steps of one of its rows.

    A letter a step: ``.`` goes on, ``t`` terminates and ``c`` cuts the episode, starting the next one; ``T`` and ``C``
    do so without; ``r`` only resets, and ``d`` drops the episode with its simulator.
    """

    steps: str
    rewards: list[float] = field(default_factory=list)


class ScriptedVectorEnv(VectorEnv):
    """Row ``i`` observes ``[i, t, 0, 0]`` after ``t`` steps, and ``[i, t, 1, 0]`` at the end of an episode."""

    observation_space, action_space = VECTOR, TWO

    def __init__(self, rows):
        self.rows, self.num_envs, self.time = rows, len(rows), 0
        self.taken, self.broken_off, self.limit = [], None, None

    def reset(self):
        self.time = 0
        return self._observe(0)

    def step(self, actions):
        self.taken.append(np.array(actions))
        letters = np.array([row.steps[self.time] for row in self.rows])
        rewards = np.array([row.rewards[self.time] if row.rewards else 0.0 for row in self.rows])
        self.time += 1
        ended = np.flatnonzero(np.isin(letters, list("tcTC")))
        return StepResult(
            obs=self._observe(0),
            rewards=np.where(np.isin(letters, list("rd")), 0, rewards),
            terminated=np.isin(letters, list("tT")),
            truncated=np.isin(letters, list("cC")),
            episode_starts=np.isin(letters, list("tcrd")),
            valid=~np.isin(letters, list("rd")),
            final_obs=self._observe(1)[ended] if len(ended) else None,
            dropped=letters == "d" if (letters == "d").any() else None,
        )

    def _observe(self, final):
        return np.array([[row, self.time, final, 0] for row in range(self.num_envs)], np.float32)

    def end_episodes(self, rows):
        self.broken_off = rows.copy()
        return True

    def allow_restarts(self, limit, name="Environment", at_once=False):
        self.limit = limit

    def state_dict(self):
        return {"time": self.time}

    def load_state_dict(self, state):
        self.time = state["time"]

    def close(self):
        pass


class Scripted(EnvFactory):
    """A row a script, whatever the seeds."""

    def __init__(self, rows: list) -> None:
        self.rows = [row if isinstance(row, Script) else Script(row) for row in rows]

    def make(self, seeds):
        return ScriptedVectorEnv(self.rows)


class Bonus(gymnasium.Env):
    """Episodes of ``2 + seed % 5`` steps: each pays its action, the last one ``bonus`` besides; odd ones are cut."""

    observation_space, action_space = VECTOR, TWO

    def __init__(self, bonus=10.0):
        self.bonus = bonus

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.length = self.length if seed is None else 2 + seed % 5
        self.steps = 0
        return self.np_random.normal(size=4).astype(np.float32), {}

    def step(self, action):
        self.steps += 1
        ended, is_cut = self.steps >= self.length, bool(self.length % 2)
        obs = self.np_random.normal(size=4).astype(np.float32)
        return obs, action + self.bonus * ended, ended and not is_cut, ended and is_cut, {}

    def state_dict(self):
        return {"length": self.length, "steps": self.steps}

    def load_state_dict(self, state):
        vars(self).update(state)


class NestedWalk(Walk):
    """A walk whose observation is a Dict in a Dict."""

    observation_space = spaces.Dict(
        pose=spaces.Dict(position=Walk.observation_space, parity=spaces.Discrete(2)),
        steps=spaces.Box(0, np.inf, (1,), np.float32),
    )

    def _nest(self, obs):
        pose = {"position": obs, "parity": self.steps % 2}
        return {"pose": pose, "steps": np.array([self.steps], np.float32)}

    def reset(self, *, seed=None, options=None):
        obs, info = super().reset(seed=seed)
        return self._nest(obs), info

    def step(self, action):
        obs, *rest = super().step(action)
        return self._nest(obs), *rest

    def state_dict(self):
        return super().state_dict()

    def load_state_dict(self, state):
        super().load_state_dict(state)


gymnasium.register("Bonus-v0", Bonus)
gymnasium.register("NestedWalk-v0", NestedWalk)
WALKS, NESTED = GymnasiumEnv("tests.tasks:Walk-v0"), GymnasiumEnv("tests.coordination:NestedWalk-v0")
