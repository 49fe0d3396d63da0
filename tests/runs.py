"""Short whole runs for tests."""

import functools
import warnings

import torch
from gymnasium import spaces
from lightning.pytorch import Callback, Trainer
from torch import nn

from ppo_lightning import PPO, ActorCritic, MLPEncoder, PPOModelOutput, RolloutDataModule

SMALL_NETWORK = functools.partial(ActorCritic, encoder=functools.partial(MLPEncoder, hidden_sizes=[16]))


class SmallGRU(nn.Module):
    """The smallest network with memory."""

    def __init__(self, observation_space, action_space):
        super().__init__()
        assert isinstance(observation_space, spaces.Box)
        self.cell = nn.GRUCell(observation_space.shape[0], 8)
        self.policy = nn.Linear(8, int(action_space.n))
        self.value = nn.Linear(8, 1)

    def initial_state(self, num_envs):
        return self.cell.weight_ih.new_zeros(num_envs, 8)

    def forward(self, obs, state):
        hidden = self.cell(obs.to(state.dtype), state)
        return PPOModelOutput(self.policy(hidden), self.value(hidden).squeeze(-1), hidden), hidden


def make_trainer(folder=None, **kwargs):
    settings = {
        "max_epochs": -1,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": folder,
        "gradient_clip_val": 0.5,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Trainer(**(settings | kwargs))


def make_data(env="tests.tasks:Walk-v0", iterations=2, **kwargs):
    settings = {"num_envs": 4, "num_steps": 8, "num_minibatches": 2, "update_epochs": 2, "seed": 1} | kwargs
    if "total_timesteps" not in settings:
        settings["total_timesteps"] = iterations * settings["num_envs"] * settings["num_steps"]
    return RolloutDataModule(env, **settings)


def make_ppo(**kwargs):
    torch.manual_seed(kwargs.pop("init_seed", 0))
    return PPO(**({"network": SMALL_NETWORK, "learning_rate": 3e-3, "gamma": 0.9} | kwargs))


def fit(ppo=None, data=None, ckpt_path=None, **trainer_kwargs):
    """A run of two iterations by default; returns the trained module."""
    ppo, data = ppo or make_ppo(), data or make_data()
    trainer = make_trainer(**trainer_kwargs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(ppo, data, ckpt_path=ckpt_path, weights_only=True if ckpt_path else None)
    return ppo


def weights(ppo):
    return {name: tensor.detach().clone() for name, tensor in ppo.network.state_dict().items()}


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


class Recorder(Callback):
    """Notes every iteration's metrics and, at each border of rollouts, the parameters."""

    def __init__(self):
        self.metrics, self.after, self.lrs = [], [], []

    def on_train_epoch_end(self, trainer, pl_module):
        self.metrics.append({name: float(value) for name, value in trainer.callback_metrics.items()})
        self.lrs.append(trainer.optimizers[0].param_groups[0]["lr"])
        self.after.append(weights(pl_module))
