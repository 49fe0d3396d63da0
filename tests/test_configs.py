"""Every configuration in ``configs/`` is complete, and trains."""

import importlib.util
from pathlib import Path

import gymnasium
import pytest
import yaml

from tests.commands import LAST, METRICS, REPOSITORY, RUN, counters, load, rows, run

RUNNERS = "halfcheetah", "hopper", "walker2d", "ant", "humanoid"
OVERLAYS = {"debug", "procgen_splits", "protomotions", *RUNNERS}
CONFIGS = sorted(path for path in (REPOSITORY / "configs").glob("*.yaml") if path.stem not in OVERLAYS)
NEEDS = {"lunarlander": "Box2D", "procgen": "procgen", "minigrid": "minigrid", "mujoco": "mujoco", "atari": "ale_py"}
NEEDS["atari_pong"] = "envpool"
AGENTS = "novice", "expert"
DEBUG = REPOSITORY / "configs/debug.yaml"


def needs(config):
    package = NEEDS.get(config.stem, NEEDS.get(config.stem.partition("_")[0]))
    if package is not None and importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    id = yaml.safe_load(config.read_text())["data"]["env"]["init_args"].get("id", "")
    if id.startswith("Taxi") and id not in gymnasium.registry:
        pytest.skip(f"this version of Gymnasium has no {id}")


each_config = pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)


def test_the_configurations_that_are_promised_are_there():
    chains = {f"{domain}_{stage}" for domain in ("procgen", "minigrid") for stage in (*AGENTS, "coordination")}
    alone = {
        "acrobot",
        "cartpole",
        "cartpole_daac",
        "lunarlander",
        "mujoco",
        "pendulum",
        "pendulum_asymmetric",
        "procgen_coinrun",
        "procgen_daac",
        "taxi_masked",
    }
    alone |= {"atari_breakout", "atari_pong", "atari_rnd", "chain_rnd"}
    alone |= {"cartpole_memory", "minigrid_memory", "doors_masked", "doors_memory"}
    assert {path.stem for path in CONFIGS} == {*alone, *chains}


@pytest.mark.parametrize("domain", ["procgen", "minigrid"])
def test_a_coordinators_configuration_names_the_checkpoints_of_its_agents(domain):
    paths = {stage: REPOSITORY / f"configs/{domain}_{stage}.yaml" for stage in (*AGENTS, "coordination")}
    env = yaml.safe_load(paths["coordination"].read_text())["data"]["env"]["init_args"]
    for agent in AGENTS:
        written = yaml.safe_load(paths[agent].read_text())
        splits = written["evaluation"].get("splits") or {"": None}
        best = {f"best_{split}.ckpt" if split else "best.ckpt" for split in splits}
        folder, _, name = env[agent].rpartition("/")
        assert folder == f"lightning_logs/{written['run_name']}/checkpoints"
        assert name in best


def debug(config, *flags):
    return run("fit", "--config", config, "--config", DEBUG, "--trainer.enable_progress_bar=false", *flags)


def agents_of(config):
    """The configurations of the novice and the expert that a coordinator's needs, trained for a moment."""
    domain, _, stage = config.stem.partition("_")
    if stage != "coordination":
        return []
    for agent in AGENTS:
        check_that_it_trains(config.with_stem(f"{domain}_{agent}"))
    return ["--data.env.base_penalty=0.1"]  # untrained experts earn nothing to measure it by


def folder_of(config):
    return RUN.with_name(yaml.safe_load(config.read_text()).get("run_name") or RUN.name)


@pytest.mark.parametrize(
    "config", [path for path in CONFIGS if not path.stem.endswith(AGENTS)], ids=lambda path: path.stem
)
def test_it_trains_with_the_debug_overlay(config):
    needs(config)
    check_that_it_trains(config, *agents_of(config))


def check_that_it_trains(config, *flags):
    outcome = debug(config, *flags)
    assert "Evaluation after 128 environment steps" in outcome.out
    assert counters(folder_of(config) / "checkpoints/last.ckpt") == {"env_steps": 128, "iteration": 2}
    # no episode need end in sixteen steps
    columns = set(rows(folder_of(config))[0])
    named = {name for name in METRICS if not name.startswith("eval/")}
    assert columns >= named - {"rollout/return_mean", "rollout/length_mean"}
    assert any(name.startswith("eval/") and name.endswith("return_mean") for name in columns)


def holds(printed, written):
    if isinstance(written, list):
        return len(printed) == len(written) and all(map(holds, printed, written))
    if not isinstance(written, dict):
        return printed == written
    return all(key in printed and holds(printed[key], value) for key, value in written.items() if key != "class_path")


@each_config
def test_print_config_shows_what_it_says(config):
    printed = yaml.safe_load(run("fit", "--config", config, "--print_config").out)
    written = yaml.safe_load(config.read_text())
    assert not list(Path().iterdir())
    assert holds(printed["data"]["env"]["init_args"], written["data"]["env"]["init_args"])
    for name in ("num_envs", "num_steps", "num_minibatches", "update_epochs", "total_timesteps"):
        assert printed["data"][name] == written["data"].get(name)
    assert printed["model"]["class_path"].endswith(written["model"].get("class_path", "ppo_lightning.PPO"))
    numbers = written["model"].get("init_args", written["model"])
    model = {name: value for name, value in numbers.items() if name not in ("network", "novelty")}
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


def overlaid(*names):
    return [flag for name in ("mujoco", *names) for flag in ("--config", REPOSITORY / f"configs/{name}.yaml")]


@pytest.mark.parametrize("name", RUNNERS)
def test_a_runners_overlay_says_what_differs(name):
    needs(REPOSITORY / "configs/mujoco.yaml")
    base = yaml.safe_load(run("fit", *overlaid(), "--print_config").out)
    printed = yaml.safe_load(run("fit", *overlaid(name), "--print_config").out)
    id = printed["data"]["env"]["init_args"]["id"]
    assert id.removesuffix("-v5").lower() == name
    encoder = printed["model"]["init_args"]["network"]["init_args"]["encoder"]["init_args"]
    assert encoder["normalizer"]["class_path"].endswith("ObservationNormalizer")
    written = yaml.safe_load((REPOSITORY / f"configs/{name}.yaml").read_text())
    for key, value in written.get("model", {}).items():
        if key != "network":
            assert printed["model"]["init_args"][key] == value
    assert printed["trainer"] == base["trainer"]
    assert printed["evaluation"] == base["evaluation"]


def test_protomotions_numbers_train_any_runner():
    needs(REPOSITORY / "configs/mujoco.yaml")
    flags = ["--config", DEBUG, "--trainer.enable_progress_bar=false", "--data.num_minibatches=4"]
    small = [f"--model.network.{name}.hidden_sizes=[8]" for name in ("encoder", "critic_encoder")]
    run("fit", *overlaid("humanoid", "protomotions"), *flags, *small)
    assert counters(LAST) == {"env_steps": 128, "iteration": 2}
    columns = set(rows()[0])
    named = {"critic_learning_rate", "actor_paused", "dropped_steps"}
    assert columns >= {f"train/{name}" for name in named}
    assert not load(LAST)["state_dict"]["network.actor.logstd"].add(2.9).any()
