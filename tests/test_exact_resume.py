"""A run that is continued is, bit for bit, the run that never stopped."""

import functools
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from benchmarks.kill_loop import WALL_CLOCK, differences
from ppo_lightning import ActorCritic, BestCheckpoint, Evaluation, RunCheckpoint, TrainingSummary, run_loggers
from tests.commands import load, rows
from tests.runs import SMALL_NETWORK, fit, make_data, make_ppo

ITERATIONS = 6


class Dropping(nn.Module):
    """An actor-critic that draws random numbers of its own, when it acts and when it learns."""

    def __init__(self, observation_space, action_space):
        super().__init__()
        self.dropout = nn.Dropout(0.2)
        self.network = SMALL_NETWORK(observation_space, action_space)

    def forward(self, obs):
        return self.network(self.dropout(obs))


def play(folder, data, ppo, ckpt_path=None, **trainer):
    """One run, or its continuation; every iteration is saved."""
    callbacks = [
        Evaluation(num_episodes=3, every_n_iterations=2, max_num_steps=20),
        TrainingSummary(log_freq=4, verbose=False),
        RunCheckpoint(save_freq=1),
        BestCheckpoint(),
    ]
    fit(
        make_ppo(**ppo),
        make_data(**{"env": "CartPole-v1", "iterations": ITERATIONS} | data),
        ckpt_path=ckpt_path,
        callbacks=callbacks,
        logger=run_loggers(folder),
        enable_checkpointing=True,
        folder=folder,
        **trainer,
    )
    return Path(folder, "lightning_logs/version_0")


def numbers(folder, after):
    """What was logged after so many steps, wall-clock times aside."""
    kept = [{name: row[name] for name in sorted(row) if name not in WALL_CLOCK and row[name]} for row in rows(folder)]
    return [row for row in kept if int(row["step"]) > after]


def check(tmp_path, at, data=None, ppo=None, name="step", **trainer):
    """Compare a run with its own continuation after iteration ``at``."""
    whole = play(tmp_path / "whole", data or {}, ppo or {}, **trainer)
    steps = load(whole / "checkpoints/last.ckpt")["RolloutDataModule"]["env_steps"] // ITERATIONS
    path = whole / "checkpoints" / (f"step_{at * steps}.ckpt" if name == "step" else f"{name}.ckpt")
    start = load(path)["RolloutDataModule"]["env_steps"]
    again = play(tmp_path / "again", data or {}, ppo or {}, ckpt_path=path, **trainer)
    ends = [load(folder / "checkpoints/last.ckpt") for folder in (whole, again)]
    assert list(differences(*ends)) == []
    assert numbers(again, start) == numbers(whole, start)
    assert numbers(again, 0) == numbers(again, start)
    return whole, again


@pytest.mark.parametrize("at", [1, 3, 5])
def test_parameters_optimizer_and_every_number(tmp_path, at):
    check(tmp_path, at)


def test_from_the_best_checkpoint(tmp_path):
    whole, _ = check(tmp_path, 0, name="best", ppo={"learning_rate": 0.5})
    assert load(whole / "checkpoints/best.ckpt")["RolloutDataModule"]["iteration"] < ITERATIONS


def test_a_network_that_draws_random_numbers(tmp_path):
    check(tmp_path, 2, ppo={"network": Dropping})


@pytest.mark.slow
def test_procgen(tmp_path):
    pytest.importorskip("procgen")
    from ppo_lightning import ImpalaPPOModel, ProcgenEnv

    env = ProcgenEnv("coinrun", distribution_mode="easy", num_levels=0)
    data = {"env": env, "num_envs": 8, "num_steps": 64, "num_minibatches": 4}
    check(tmp_path, 3, data, {"network": ImpalaPPOModel})
