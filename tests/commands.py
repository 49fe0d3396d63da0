"""Running the command line in tests, and reading what it left."""

import contextlib
import csv
import io
import os
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch
import yaml

from ppo_lightning import cli

REPOSITORY = Path(__file__).resolve().parents[1]
WALK = [
    "--data.env=GymnasiumEnv",
    "--data.env.id=tests.tasks:Walk-v0",
    "--data.num_envs=4",
    "--data.num_steps=16",
    "--data.num_minibatches=2",
    "--data.update_epochs=2",
    "--data.total_timesteps=128",
    "--evaluation.num_episodes=4",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--model.network=ActorCritic",
    "--model.network.encoder=MLPEncoder",
    "--model.network.encoder.hidden_sizes=[8,8]",
]
RUN = Path("lightning_logs/version_0")
LAST, BEST = RUN / "checkpoints/last.ckpt", RUN / "checkpoints/best.ckpt"
RESUME = f"--ckpt_path={LAST}"
METRICS = {
    *("rollout/return_mean", "rollout/length_mean", "rollout/episodes", "train/policy_loss", "train/value_loss"),
    *("train/entropy", "train/approx_kl", "train/clip_fraction", "train/explained_variance", "train/learning_rate"),
    *("time/sps", "eval/return_mean"),
}


@dataclass
class Outcome:
    code: int
    out: str
    err: str
    warnings: str


def command(*args):
    """Run ``ppo-lightning`` in this process, leaving no trace in it."""
    out, err, code, path = io.StringIO(), io.StringIO(), 0, list(sys.path)
    with (
        mock.patch.dict(os.environ),
        warnings.catch_warnings(record=True) as caught,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            cli.main([str(arg) for arg in args])
        except SystemExit as stop:
            code = stop.code
        finally:
            sys.path[:] = path
    own = [str(warning.message) for warning in caught if "jsonargparse" not in str(warning.category)]
    return Outcome(code or 0, out.getvalue(), err.getvalue(), "\n".join(own))


def run(*args):
    """A command that succeeds."""
    outcome = command(*args)
    assert outcome.code == 0, outcome.err
    return outcome


def sentence_of(outcome, code=2):
    """The one sentence of a command that was refused."""
    assert outcome.code == code
    (line,) = [line for line in outcome.err.splitlines() if line]
    assert line.startswith("ppo-lightning: error: ")
    assert line.endswith((".", "?"))
    assert "Traceback" not in outcome.out
    return line


def rows(folder=RUN, column=None):
    """Rows of ``metrics.csv``; with ``column`` its values by step."""
    with (folder / "metrics.csv").open(newline="") as file:
        read = list(csv.DictReader(file))
    if column is None:
        return read
    return [(int(row["step"]), float(row[column])) for row in read if row.get(column)]


def load(path):
    return torch.load(path, weights_only=True)


def counters(checkpoint):
    """Steps and iterations of a checkpoint, loaded or not."""
    loaded = checkpoint if isinstance(checkpoint, dict) else load(checkpoint)
    return {name: loaded["RolloutDataModule"][name] for name in ("env_steps", "iteration")}


def network_weights(path):
    return {name: tensor for name, tensor in load(path)["state_dict"].items() if name.startswith("network.")}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def logged(values):
    """The steps, each of which is there once."""
    steps = [step for step, _ in values]
    assert steps == sorted(set(steps))
    return steps


def config_of(folder=RUN, name="config.yaml"):
    return yaml.safe_load((folder / name).read_text())
