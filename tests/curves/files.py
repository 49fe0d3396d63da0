"""Runs written by hand."""

import csv
from pathlib import Path

import yaml


def config(env="Walk-v0", seed=1, **settings):
    """A configuration as a run leaves it; ``settings`` are the algorithm's."""
    if isinstance(env, str):
        env = {"class_path": "ppo_lightning.GymnasiumEnv", "init_args": {"id": env, "vectorization": "sync"}}
    return {
        "seed_everything": seed,
        "trainer": {"accelerator": "cpu", "default_root_dir": None, "logger": None},
        "model": {"class_path": "ppo_lightning.PPO", "init_args": {"learning_rate": 0.001, "gamma": 0.99} | settings},
        "data": {"env": env, "num_envs": 4, "seed": None},
        "checkpoint": {"save_freq": 0},
        "init_from": None,
        "ckpt_path": None,
    }


def write_run(folder, rows=None, settings=None):
    """``rows`` as dictionaries, by default three of training and one of evaluation."""
    folder = Path(folder)
    folder.mkdir(parents=True)
    rows = rows or [{"step": step, "rollout/return_mean": step / 10} for step in (10, 20, 30)] + [
        {"step": 30, "eval/return_mean": 5}
    ]
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)))
        writer.writeheader()
        writer.writerows(rows)
    if settings is not False:
        (folder / "config.yaml").write_text(yaml.safe_dump(settings or config()))
    return folder


def returns(*values, spacing=10, **columns):
    """Rows of training returns; ``columns`` are metrics of the same rows, with ``_`` for ``/``."""
    rows = [{"step": spacing * (i + 1), "rollout/return_mean": value} for i, value in enumerate(values)]
    for name, column in columns.items():
        for row, value in zip(rows, column):
            row[name.replace("_", "/", 1)] = value
    return rows
