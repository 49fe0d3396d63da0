"""A run that is continued is, bit for bit, the run that never stopped."""

import functools
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from lightning.pytorch import Callback
from torch import nn

import ppo_lightning
from benchmarks.kill_loop import WALL_CLOCK, compare, differences
from ppo_lightning import (
    BestCheckpoint,
    Evaluation,
    EvaluationEarlyStopping,
    GymnasiumEnv,
    RunCheckpoint,
    TrainingSummary,
    run_loggers,
)
from tests.commands import RUN, load, rows, run
from tests.runs import SMALL_NETWORK, SmallGRU, fit, make_data, make_ppo, make_trainer
from tests.stateful import AGENTS, SIMULATORS, agent_flags

ITERATIONS = 6


class Dropping(nn.Module):
    """An actor-critic that draws random numbers of its own, when it acts and when it learns."""

    def __init__(self, observation_space, action_space):
        super().__init__()
        self.dropout = nn.Dropout(0.2)
        self.network = SMALL_NETWORK(observation_space, action_space)

    def forward(self, obs):
        return self.network(self.dropout(obs))


def make_callbacks():
    """All that remember something of a run."""
    return [
        Evaluation(num_episodes=3, every_n_iterations=2, max_num_steps=20),
        TrainingSummary(log_freq=4, verbose=False),
        EvaluationEarlyStopping(patience=100, verbose=False),
        RunCheckpoint(save_freq=1),
        BestCheckpoint(),
    ]


def play(folder, data, ppo, ckpt_path=None, resume_step=None, **trainer):
    """One run, or its continuation in its folder; every iteration is saved."""
    fit(
        make_ppo(**ppo),
        make_data(**{"env": "CartPole-v1", "iterations": ITERATIONS} | data),
        ckpt_path=ckpt_path,
        callbacks=make_callbacks(),
        logger=run_loggers(folder, 0, resume_step),
        enable_checkpointing=True,
        folder=folder,
        **trainer,
    )
    return Path(folder, "lightning_logs/version_0")


def numbers(folder):
    """What was logged, wall-clock times aside."""
    return [{name: row[name] for name in sorted(row) if name not in WALL_CLOCK} for row in rows(folder)]


def check(tmp_path, at, data=None, ppo=None, name="step", iterations=ITERATIONS, **trainer):
    """Compare a run with its own continuation after iteration ``at``."""
    data, ppo = {"iterations": iterations} | (data or {}), ppo or {}
    whole = play(tmp_path / "whole", data, ppo, **trainer)
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    again = tmp_path / "again" / whole.relative_to(tmp_path / "whole")
    (again / "checkpoints/last.ckpt").unlink()
    steps = load(whole / "checkpoints/last.ckpt")["RolloutDataModule"]["env_steps"] // iterations
    path = again / "checkpoints" / (f"step_{at * steps}.ckpt" if name == "step" else f"{name}.ckpt")
    start = load(path)["RolloutDataModule"]["env_steps"]
    play(tmp_path / "again", data, ppo, path, start, **trainer)
    assert start < steps * iterations
    ends = [load(folder / "checkpoints/last.ckpt") for folder in (whole, again)]
    assert list(differences(*ends)) == []
    assert numbers(again) == numbers(whole)


@pytest.mark.parametrize("at", [1, 3, 5])
def test_parameters_optimizer_and_every_number(tmp_path, at):
    check(tmp_path, at)


def test_from_the_best_checkpoint(tmp_path):
    check(tmp_path, 0, name="best", ppo={"learning_rate": 0.5})


def test_a_network_that_draws_random_numbers(tmp_path):
    check(tmp_path, 2, ppo={"network": Dropping})


CONFIGURATIONS = st.fixed_dictionaries(
    {
        "data": st.fixed_dictionaries(
            {
                "num_envs": st.sampled_from([2, 4]),
                "num_steps": st.integers(2, 24).map(lambda half: 2 * half),
                "num_minibatches": st.sampled_from([1, 2]),
                "update_epochs": st.integers(1, 3),
                "seed": st.integers(0, 2**31),
                "vectorization": st.sampled_from(["sync", "sync", "vector_entry_point"]),
            }
        ),
        "ppo": st.fixed_dictionaries(
            {
                "network": st.sampled_from([SMALL_NETWORK, Dropping, SmallGRU]),
                "target_kl": st.sampled_from([None, 1e-3]),
                "norm_adv": st.booleans(),
                "clip_vloss": st.booleans(),
                "critic_pretrain_steps": st.sampled_from([0, 0, 100]),
                "schedule": st.sampled_from(["none", "anneal", "cosine"]),
                "optimizer": st.sampled_from([None, torch.optim.RMSprop, torch.optim.SGD]),
            }
        ),
        "trainer": st.fixed_dictionaries(
            {
                "precision": st.sampled_from(["32-true", "64-true", "bf16-mixed"]),
                "accumulate_grad_batches": st.sampled_from([1, 2]),
                "gradient_clip_val": st.sampled_from([None, 0.5]),
            }
        ),
    }
)
SCHEDULES = {
    "none": {},
    "anneal": {"anneal_lr": True},
    "cosine": {"scheduler": functools.partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=ITERATIONS)},
}


@settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],  # shrinking whole runs takes minutes
    suppress_health_check=list(HealthCheck),
)
@given(configuration=CONFIGURATIONS, at=st.integers(1, ITERATIONS - 1))
def test_any_configuration_after_any_iteration(tmp_path, configuration, at):
    data, ppo, trainer = (dict(configuration[part]) for part in ("data", "ppo", "trainer"))
    data["env"] = GymnasiumEnv("CartPole-v1", vectorization=data.pop("vectorization"))
    optimizer = ppo.pop("optimizer")
    if optimizer is not None:
        ppo["optimizer"] = functools.partial(optimizer)
    ppo |= SCHEDULES[ppo.pop("schedule")]
    for folder in ("whole", "again"):
        shutil.rmtree(tmp_path / folder, ignore_errors=True)
    check(tmp_path, at, data, ppo, **trainer)


@pytest.mark.parametrize("simulator", SIMULATORS, ids=lambda simulator: simulator.name)
def test_every_simulator(tmp_path, simulator):
    if simulator.missing():
        pytest.skip(f"{', '.join(simulator.missing())} cannot be imported")
    data = {"env": simulator.factory, "num_envs": simulator.num_envs, "num_steps": 16}
    check(tmp_path, 2, data, {"network": Looking}, iterations=3)


class Looking(nn.Module):
    """An actor-critic of any observation that is numbers in the end."""

    def __init__(self, observation_space, action_space):
        super().__init__()
        self.space = observation_space
        flat = spaces.Box(-np.inf, np.inf, (spaces.flatdim(observation_space),), np.float32)
        self.network = SMALL_NETWORK(flat, action_space)

    def forward(self, obs):
        return self.network(_flat(obs, self.space))


def _flat(obs, space):
    if isinstance(space, spaces.Dict):
        return torch.cat([_flat(obs[key], part) for key, part in space.items()], dim=1)
    if isinstance(space, spaces.Discrete):
        obs = nn.functional.one_hot(obs.long() - int(space.start), int(space.n))
    return obs.reshape(len(obs), -1).float()


@pytest.mark.parametrize("name", AGENTS)
def test_every_agent(name):
    flags = [*agent_flags(name), "--evaluation.every_n_iterations=4", "--summary.log_freq=3"]
    run("fit", *flags, "--checkpoint.save_freq=48", "--trainer.default_root_dir=whole")
    shutil.copytree("whole", "again")
    run("fit", *flags, f"--ckpt_path={'again' / RUN / 'checkpoints/step_240.ckpt'}", "--trainer.default_root_dir=again")
    assert compare(Path("whole"), Path("again")) == []


def test_every_callback_of_the_package_that_has_state_is_part_of_it():
    exported = [getattr(ppo_lightning, name) for name in ppo_lightning.__all__]
    kinds = [kind for kind in exported if isinstance(kind, type) and issubclass(kind, Callback)]
    stateful = {
        kind for kind in kinds if any("state_dict" in vars(base) for base in kind.__mro__ if base is not Callback)
    }
    assert stateful <= {type(callback) for callback in make_callbacks()}


def test_an_environment_that_cannot_be_saved_is_named_once(tmp_path):
    data = make_data("tests.tasks:Bandit-v0")
    fit(data=data, callbacks=[RunCheckpoint(1)], enable_checkpointing=True, folder=tmp_path)
    trainer = make_trainer(tmp_path, enable_checkpointing=True)
    with pytest.warns(UserWarning, match="start fresh episodes") as caught:
        trainer.fit(make_ppo(), make_data("tests.tasks:Bandit-v0"), ckpt_path=tmp_path / "checkpoints/step_32.ckpt")
    (said,) = [str(warning.message) for warning in caught if "fresh episodes" in str(warning.message)]
    assert said == (
        "The simulators start fresh episodes, from new seeds: the environment Bandit cannot be saved and restored."
    )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"num_envs": 8}, "the checkpoint has 1 rank of 4 environments, and this run 1 rank of 8"),
        ({"env": GymnasiumEnv("CartPole-v0")}, "--data.env differs from the checkpoint's in id"),
        ({"minibatch_shares": 2}, "--data.minibatch_shares is another than the checkpoint's"),
    ],
)
def test_what_changes_on_resume_is_told(tmp_path, change, reason):
    play(tmp_path, {"iterations": 2}, {})
    last = tmp_path / RUN / "checkpoints/last.ckpt"
    trainer = make_trainer(tmp_path, enable_checkpointing=True, callbacks=[RunCheckpoint()])
    data = make_data(**{"env": "CartPole-v1", "iterations": 9} | change)
    with pytest.warns(UserWarning, match=f"fresh episodes, from new seeds: {reason}[.]"):
        trainer.fit(make_ppo(), data, ckpt_path=last)
    assert load(tmp_path / "checkpoints/last.ckpt")["RolloutDataModule"]["iteration"] > 2


def test_a_seed_that_changes_on_resume_does_not_touch_what_runs(tmp_path):
    """Running episodes go on; the actions to come are of the new seed."""
    play(tmp_path, {"iterations": 2}, {})
    trainer = make_trainer(tmp_path, enable_checkpointing=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*fresh episodes.*")
        data = make_data("CartPole-v1", iterations=3, seed=5)
        trainer.fit(make_ppo(), data, ckpt_path=tmp_path / RUN / "checkpoints/last.ckpt")


@pytest.mark.slow
def test_procgen(tmp_path):
    pytest.importorskip("procgen")
    from ppo_lightning import ImpalaPPOModel, ProcgenEnv

    env = ProcgenEnv("coinrun", distribution_mode="easy", num_levels=0)
    data = {"env": env, "num_envs": 8, "num_steps": 64, "num_minibatches": 4}
    check(tmp_path, 3, data, {"network": ImpalaPPOModel})
