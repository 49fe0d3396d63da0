"""Every configuration in ``configs/`` is complete, and trains."""

import importlib.util
from pathlib import Path

import pytest
import yaml

from tests.commands import LAST, METRICS, REPOSITORY, counters, rows, run

OVERLAYS = {"debug", "procgen_splits"}
CONFIGS = sorted(path for path in (REPOSITORY / "configs").glob("*.yaml") if path.stem not in OVERLAYS)
NEEDS = {"lunarlander": "Box2D", "procgen_coinrun": "procgen"}
DEBUG = REPOSITORY / "configs/debug.yaml"


def needs(config):
    package = NEEDS.get(config.stem)
    if package is not None and importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")


each_config = pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)


def test_the_configurations_that_are_promised_are_there():
    assert {path.stem for path in CONFIGS} >= {"acrobot", "cartpole", "lunarlander", "procgen_coinrun"}


@each_config
def test_it_trains_with_the_debug_overlay(config):
    needs(config)
    outcome = run("fit", "--config", config, "--config", DEBUG, "--trainer.enable_progress_bar=false")
    assert "Evaluation after 128 environment steps" in outcome.out
    assert counters(LAST) == {"env_steps": 128, "iteration": 2}
    # no episode need end in sixteen steps
    assert set(rows()[0]) >= METRICS - {"rollout/return_mean", "rollout/length_mean"}


@each_config
def test_print_config_shows_what_it_says(config):
    printed = yaml.safe_load(run("fit", "--config", config, "--print_config").out)
    written = yaml.safe_load(config.read_text())
    assert not list(Path().iterdir())
    assert printed["data"]["env"]["init_args"].items() >= written["data"]["env"]["init_args"].items()
    for name in ("num_envs", "num_steps", "num_minibatches", "update_epochs", "total_timesteps"):
        assert printed["data"][name] == written["data"][name]
    model = {name: value for name, value in written["model"].items() if name != "network"}
    assert printed["model"]["init_args"].items() >= model.items()
    assert printed["seed_everything"] == written["seed_everything"]


def test_the_procgen_splits_are_evaluated_each_on_its_levels():
    coinrun, splits = (REPOSITORY / f"configs/{name}.yaml" for name in ("procgen_coinrun", "procgen_splits"))
    needs(coinrun)
    run("fit", "--config", coinrun, "--config", splits, "--config", DEBUG, "--trainer.enable_progress_bar=false")
    assert {path.stem for path in LAST.parent.iterdir()} == {
        *("last", "best_train", "best_val_sim", "best_val_true", "best_test")
    }
    for split in ("train", "val_sim", "val_true", "test"):
        assert [step for step, _ in rows(column=f"eval/{split}/solved_fraction")] == [128]
