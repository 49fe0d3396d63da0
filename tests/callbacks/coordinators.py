"""A coordination environment in which every number can be worked out by hand."""

import gymnasium
import numpy as np
import torch
import yaml
from gymnasium import spaces
from torch import nn

from ppo_lightning import CoordinationEnv, Evaluation, GymnasiumEnv, PPOModelOutput, PPOPolicy
from tests.runs import make_data, make_ppo, make_trainer

SURE = 100.0  # a logit that sampling never gets around
PAYS = (1, 1, 0, 0)
BASE_PENALTY = 0.5  # the expert's return of 2 over 4 steps
COST = 0.4 * BASE_PENALTY


class Pay(gymnasium.Env):
    """Four steps an episode: action 1 pays ``pays[step]``, action 0 nothing; observed is the step."""

    observation_space = spaces.Box(0, 4, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, pays=PAYS):
        self.pays = pays

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        reward = float(self.pays[self.steps] * action)
        self.steps += 1
        return np.full(1, self.steps, np.float32), reward, self.steps == 4, False, {}


gymnasium.register("Pay-v0", "tests.callbacks.coordinators:Pay")
ID = "tests.callbacks.coordinators:Pay-v0"
SPLITS = {"train": {}, "rich": {"env": {"kwargs": {"pays": [1, 1, 1, 1]}}}}


class StepNetwork(nn.Module):
    """Takes one action always, by a logit of 100 + the step; the other's is 0."""

    def __init__(self, action, width=2):
        super().__init__()
        self.action = nn.Parameter(torch.tensor(float(action)))
        self.width = width

    def forward(self, obs):
        logits = torch.zeros(len(obs), self.width)
        logits[:, int(self.action)] = SURE + obs[:, 0]
        return PPOModelOutput(logits, obs[:, 0], obs)


class StepPolicy(PPOPolicy):
    """Plays by a StepNetwork."""

    def __init__(self, action: int):
        super().__init__(StepNetwork(action))


def make_env(**settings):
    return CoordinationEnv(GymnasiumEnv(ID), **({"novice": StepPolicy(0), "expert": StepPolicy(1)} | settings))


def validate(callback, evaluation=None, env=None, **trainer_settings):
    """``callback`` plays; returns its scores."""
    evaluation = evaluation or Evaluation(num_episodes=3, splits=SPLITS)
    callback._evaluation = callback._evaluation or evaluation
    trainer = make_trainer(callbacks=[callback], **trainer_settings)
    trainer.validate(make_ppo(), make_data(env or make_env()), verbose=False)
    return callback.scores


def write_config(path="c.yaml", splits=SPLITS, **settings):
    """For the command line."""
    agents = {
        name: {"class_path": "tests.callbacks.coordinators.StepPolicy", "init_args": {"action": action}}
        for action, name in enumerate(("novice", "expert"))
    }
    env = {"env": {"class_path": "GymnasiumEnv", "init_args": {"id": ID}}, **agents, **settings}
    config = {
        "data": {
            "env": {"class_path": "CoordinationEnv", "init_args": env},
            **{"num_envs": 2, "num_steps": 8, "num_minibatches": 2, "update_epochs": 1, "total_timesteps": 16},
        },
        "evaluation": {"num_episodes": 3, "splits": splits},
        "trainer": {"accelerator": "cpu", "enable_progress_bar": False},
    }
    with open(path, "w") as file:
        yaml.safe_dump(config, file, sort_keys=False)
    return f"--config={path}"


def returns(scores, split):
    return [score.metrics["return_mean"] for score in scores if score.split == split]
