"""Seeds of one configuration are one group; what tells groups apart is their label."""

from pathlib import Path

import pytest

from ppo_lightning.curves.groups import environment_of, group_runs
from ppo_lightning.curves.runs import Run
from tests.curves.files import config


def run(settings, folder="run", label=""):
    return Run(Path(folder), label, settings, {})


def summary(runs):
    return [(group.environment, group.label, len(group.runs)) for group in group_runs(runs)]


def change(settings, name, value):
    *parents, last = name.split(".")
    part = settings
    for parent in parents:
        part = part[parent]
    part[last] = value
    return settings


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed_everything", 7),
        ("data.seed", 7),
        ("data.env.init_args.rand_seed", 7),
        ("trainer.default_root_dir", "/elsewhere"),
        ("trainer.logger", {"class_path": "CSVLogger", "init_args": {"save_dir": "x"}}),
        ("ckpt_path", "last.ckpt"),
        ("run_name", "a"),
        ("checkpoint.save_freq", 100),
        ("summary", {"log_freq": 1}),
        ("json", True),
    ],
)
def test_seeds_and_paths_do_not_tell_runs_apart(name, value):
    assert summary([run(config()), run(change(config(), name, value))]) == [("Walk-v0", "", 2)]


@pytest.mark.parametrize(
    ("name", "value", "labels"),
    [
        ("model.init_args.learning_rate", 0.0003, ["learning_rate=0.001", "learning_rate=0.0003"]),
        ("data.num_envs", 8, ["num_envs=4", "num_envs=8"]),
        ("data.env.init_args.vectorization", "async", ["vectorization=sync", "vectorization=async"]),
        ("trainer.accelerator", None, ["accelerator=cpu", "accelerator=null"]),
        ("init_from", "best.ckpt", ["init_from=null", "init_from=true"]),
        ("model.class_path", "my.RND", ["model=PPO", "model=RND"]),
    ],
)
def test_other_settings_do_and_are_the_labels(name, value, labels):
    runs = [run(config()), run(change(config(), name, value)), run(config(seed=2))]
    assert summary(runs) == [("Walk-v0", labels[0], 2), ("Walk-v0", labels[1], 1)]


def test_runs_that_start_from_other_checkpoints_are_one_group():
    runs = [run(change(config(), "init_from", path)) for path in ("a.ckpt", "b.ckpt")]
    assert summary(runs) == [("Walk-v0", "", 2)]


def test_arguments_of_a_class_that_differs_are_not_named():
    first = config(network={"class_path": "x.MLP", "init_args": {"width": 3}})
    second = config(network={"class_path": "x.CNN", "init_args": {"depth": 3}})
    assert [label for _, label, _ in summary([run(first), run(second)])] == ["network=MLP", "network=CNN"]


def test_settings_of_one_name_are_told_apart_by_what_they_belong_to():
    runs = [run(config(a={"size": i}, b={"size": i})) for i in (1, 2)]
    assert [label for _, label, _ in summary(runs)] == ["a.size=1, b.size=1", "a.size=2, b.size=2"]


def test_many_differences_are_counted_unless_labels_would_be_equal():
    runs = [run(config(a=i, b=i, c=i, d=i, e=i)) for i in (1, 2)]
    assert [label for _, label, _ in summary(runs)] == ["a=1, b=1, c=1, 2 more", "a=2, b=2, c=2, 2 more"]
    runs.append(run(config(a=1, b=1, c=1, d=1, e=3)))
    assert summary(runs)[2] == ("Walk-v0", "a=1, b=1, c=1, d=1, e=3", 1)


def test_a_label_makes_one_group_in_each_environment():
    runs = [run(config(seed=1), label="mine"), run(config(gamma=0.5), label="mine")]
    runs += [run(config("Other-v0"), label="mine"), run(config(), folder="logs/lightning_logs/version_0")]
    assert summary(runs) == [
        ("Walk-v0", "mine", 2),
        ("Other-v0", "mine", 1),
        ("Walk-v0", "logs/lightning_logs/version_0", 1),
    ]


def test_runs_without_a_configuration_are_told_apart_by_their_folders():
    runs = [run(None, "a"), run(None, "b"), run(None, "c", "mine"), run(None, "d", "mine")]
    assert summary(runs) == [("", "a", 1), ("", "b", 1), ("", "mine", 2)]


@pytest.mark.parametrize(
    ("env", "name"),
    [
        ("CartPole-v1", "CartPole-v1"),
        ("my_envs:Reach-v0", "Reach-v0"),
        ({"class_path": "ppo_lightning.ProcgenEnv", "init_args": {"env_name": "coinrun"}}, "Procgen coinrun"),
        ({"class_path": "my_envs.Maze", "init_args": {"size": 3}}, "Maze"),
        ({"class_path": "my_envs.Maze"}, "Maze"),
    ],
)
def test_environments(env, name):
    assert environment_of(config(env)) == name


def test_environments_of_odd_configurations():
    assert [environment_of(odd) for odd in (None, {}, {"data": 3}, {"data": {"env": None}})] == [""] * 4
    assert environment_of({"data": {"env": "CartPole-v1"}}) == "CartPole-v1"


def test_seeds_are_counted_as_such_only_if_they_differ():
    def size(*settings):
        (group,) = group_runs([run(one, label="mine") for one in settings])
        return group.size

    assert size(config(seed=1)) == "1 seed"
    assert size(config(seed=1), config(seed=2)) == "2 seeds"
    assert size(config(seed=1), config(seed=1)) == "2 runs"
    assert size(None, None) == "2 runs"
