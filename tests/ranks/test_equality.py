"""Two ranks of n environments train as one rank of 2n: the same parameters and the same logged numbers."""

import math
from pathlib import Path

import pytest
import torch

import ppo_lightning
from ppo_lightning.algorithms.base import OnPolicyModule
from ppo_lightning.data.seeding import Streams
from tests.commands import load, rows, run
from tests.ranks.processes import TWO_RANKS, process, torchrun
from tests.stateful import AGENTS, agent_flags

ALWAYS = ["--model.log_param_hash=true", "--evaluation.every_n_iterations=5", "--summary.log_freq=4"]
HALF = "--data.num_envs=2"
QUICK = "PPO", "PPO in chunks", "PPO of unequal ranks, stopped by KL", "PPO with memory", "PPO with critic pretraining"
IN_FOLDER = "lightning_logs/version_0"


def numbers(folder):
    """What was logged, by step and name; wall clock and hash aside."""
    logged = {}
    for row in rows(Path(folder) / IN_FOLDER):
        for name, value in row.items():
            if value and name != "step" and not any(part in name for part in ("time/", "sps", "seconds", "hash")):
                logged[int(row["step"]), name] = float(value)
    return logged


def weights(folder):
    checkpoint = load(Path(folder) / IN_FOLDER / "checkpoints/last.ckpt")
    assert checkpoint["RolloutDataModule"]["env_steps"] == 480
    assert checkpoint["RolloutDataModule"]["iteration"] == 10
    return checkpoint["state_dict"]


def assert_same_run(one, other):
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=1e-10)
    alone, together = numbers(one), numbers(other)
    assert alone.keys() == together.keys()
    for key, value in alone.items():
        assert math.isclose(together[key], value, rel_tol=1e-9, abs_tol=1e-9), (key, value, together[key])


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in AGENTS]
)
def test_two_ranks_train_as_one_with_their_shares(name):
    flags = [*agent_flags(name), *ALWAYS]
    run("fit", *flags, "--data.minibatch_shares=2", "--trainer.default_root_dir=one")
    launch = torchrun if name == "PPO" else process
    launch("fit", *flags, HALF, *TWO_RANKS, "--trainer.default_root_dir=two")
    assert_same_run("one", "two")


@pytest.mark.slow
def test_two_ranks_of_two_shares_train_as_one_of_four():
    flags = [*agent_flags("PPO of unequal ranks, stopped by KL"), *ALWAYS, "--data.minibatch_shares=4"]
    run("fit", *flags, "--trainer.default_root_dir=one")
    process("fit", *flags, HALF, *TWO_RANKS, "--trainer.default_root_dir=two")
    assert_same_run("one", "two")


def test_a_rank_may_have_fewer_transitions_than_there_are_minibatches():
    """One rank's only environment resets in every second step: half of its minibatches are empty."""
    seed = next(seed for seed in range(99) if [key % 2 for key in Streams(seed, 0, 2).env_seeds(0)] == [0, 1])
    env = ["--data.env=tests.ranks.tasks.NextStep", "--data.env.id=tests.ranks.tasks:Uneven-v0", f"--data.seed={seed}"]
    sizes = ["--data.num_envs=2", "--data.num_steps=24", "--data.num_minibatches=24", "--data.update_epochs=1"]
    flags = [*agent_flags("PPO"), *env, *sizes, "--evaluation.num_episodes=1", "--evaluation.max_num_steps=5"]
    run("fit", *flags, "--data.minibatch_shares=2", "--trainer.default_root_dir=one")
    process("fit", *flags, "--data.num_envs=1", *TWO_RANKS, "--trainer.default_root_dir=two")
    assert_same_run("one", "two")


def test_every_agent_is_in_the_table():
    exported = [part for part in vars(ppo_lightning).values() if isinstance(part, type)]
    agents = {part.__name__ for part in exported if issubclass(part, OnPolicyModule)}
    assert agents == {cls for cls, _ in AGENTS.values()}
    assert set(QUICK) <= set(AGENTS)
