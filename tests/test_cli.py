"""The command line: what a run leaves, choosing parts, starting from weights, evaluating."""

import functools
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch
import yaml

from ppo_lightning import PPO, ActorCritic, ConfigurationError, Evaluation, MLPEncoder, PPOPolicy
from tests.commands import (
    BEST,
    LAST,
    METRICS,
    REPOSITORY,
    RESUME,
    RUN,
    WALK,
    command,
    config_of,
    counters,
    load,
    logged,
    network_weights,
    rows,
    run,
    same,
    sentence_of,
)
from tests.runs import fit, make_data, make_ppo, make_trainer

# -- what a run leaves


def test_a_run_leaves_one_folder_with_everything_in_it():
    outcome = run("fit", *WALK, "--checkpoint.save_freq=64")
    assert [path.name for path in Path("lightning_logs").iterdir()] == ["version_0"]
    assert {path.name for path in (RUN / "checkpoints").iterdir()} == {
        "last.ckpt",
        "best.ckpt",
        "step_64.ckpt",
        "step_128.ckpt",
    }
    assert {"metrics.csv", "config.yaml"} <= {path.name for path in RUN.iterdir()}
    assert len(list(RUN.glob("events.out.tfevents.*"))) == 1
    assert [path.name for path in Path().iterdir()] == ["lightning_logs"]
    assert "return (mean ± 95 %)" in outcome.out
    assert f"{BEST}" in outcome.out
    assert counters(LAST) == {"env_steps": 128, "iteration": 2}
    assert counters(RUN / "checkpoints/step_64.ckpt") == {"env_steps": 64, "iteration": 1}


def test_all_metrics_are_logged_at_environment_steps_once_an_iteration():
    run("fit", *WALK, "--evaluation.every_n_iterations=1")
    assert set(rows()[0]) >= METRICS
    for name in METRICS:
        assert logged(rows(column=name)) == [64, 128], name


def test_default_root_dir_moves_the_run():
    run("fit", *WALK, "--trainer.default_root_dir=elsewhere")
    assert [path.name for path in Path().iterdir()] == ["elsewhere"]
    assert (Path("elsewhere") / LAST).is_file()


def test_the_next_run_gets_the_next_folder():
    for _ in range(2):
        run("fit", *WALK)
    assert {path.name for path in Path("lightning_logs").iterdir()} == {"version_0", "version_1"}


def test_the_same_command_gives_the_same_agent_and_another_seed_another():
    for seed in (1, 1, 2):
        run("fit", *WALK, f"--seed_everything={seed}")
    first, second, third = (network_weights(f"lightning_logs/version_{n}/checkpoints/last.ckpt") for n in range(3))
    assert same(first, second)
    assert not same(first, third)


def test_config_yaml_repeats_the_run():
    run("fit", *WALK, "--model.gamma=0.5")
    run("fit", "--config", RUN / "config.yaml")
    assert same(network_weights(LAST), network_weights("lightning_logs/version_1/checkpoints/last.ckpt"))


# -- choosing parts


def test_a_gymnasium_id_is_enough():
    run("fit", *WALK[2:], "--data.env=CartPole-v1")
    assert load(LAST)["hyper_parameters"]["observation_space"]["shape"] == [4]


def test_later_configs_and_flags_win():
    Path("a.yaml").write_text("model: {gamma: 0.5, gae_lambda: 0.5, clip_coef: 0.5}\n")
    Path("b.yaml").write_text("model: {gae_lambda: 0.6, clip_coef: 0.6}\n")
    run("fit", *WALK, "--config=a.yaml", "--config=b.yaml", "--model.clip_coef=0.7")
    settings = config_of()["model"]["init_args"]
    assert (settings["gamma"], settings["gae_lambda"], settings["clip_coef"]) == (0.5, 0.6, 0.7)


def test_the_environment_of_a_config_is_replaced_by_its_id():
    run(
        *("fit", "--config", REPOSITORY / "configs/cartpole.yaml", "--config", REPOSITORY / "configs/debug.yaml"),
        "--data.env.id=Acrobot-v1",
        "--trainer.enable_progress_bar=false",
    )
    assert load(LAST)["hyper_parameters"]["action_space"]["n"] == 3


def test_network_optimizer_scheduler_and_wrappers_are_flags():
    run(
        *("fit", *WALK, "--model.network.shared=true", "--model.optimizer=torch.optim.RMSprop"),
        *("--model.optimizer.alpha=0.5", "--model.scheduler=torch.optim.lr_scheduler.ExponentialLR"),
        *("--model.scheduler.gamma=0.5", "--model.learning_rate=0.125"),
        "--data.env.wrappers=[{class_path: gymnasium.wrappers.TimeLimit, init_args: {max_episode_steps: 2}}]",
    )
    checkpoint = load(LAST)
    assert "network.critic_embedder.layers.0.weight" not in checkpoint["state_dict"]
    assert checkpoint["optimizer_class"] == "RMSprop"
    assert checkpoint["optimizer_states"][0]["param_groups"][0]["alpha"] == 0.5
    assert rows(column="train/learning_rate") == [(64, 0.125), (128, 0.0625)]
    assert [length for _, length in rows(column="rollout/length_mean")] == [2, 2]


def test_an_environment_of_ones_own_lies_in_the_current_folder():
    Path("my_games.py").write_text(
        "import gymnasium\nfrom tests.tasks import Bandit\ngymnasium.register('MyBandit-v0', Bandit)\n"
    )
    run("fit", *WALK, "--data.env.id=my_games:MyBandit-v0")
    assert load(LAST)["hyper_parameters"]["action_space"]["n"] == 3


def test_print_config_prints_and_trains_nothing():
    outcome = run("fit", *WALK, "--model.gamma=0.25", "--print_config")
    printed = yaml.safe_load(outcome.out)
    assert printed["model"]["init_args"]["gamma"] == 0.25
    assert printed["trainer"]["max_epochs"] == -1
    assert not list(Path().iterdir())


@pytest.mark.parametrize("is_one", [True, False])
@pytest.mark.parametrize("init_args", ["", "init_args."])
def test_a_part_within_a_part_is_left_out_by_null(init_args, is_one):
    pendulum, encoder = REPOSITORY / "configs/pendulum.yaml", f"--model.network.{init_args}encoder.{init_args}"
    flags = [f"{encoder}normalizer", f"--model.network.{init_args}critic_encoder"]
    nulls = [arg for flag in flags for arg in ([f"{flag}=null"] if is_one else [flag, "null"])]
    model = yaml.safe_load(run("fit", "--config", pendulum, *nulls, "--print_config").out)["model"]["init_args"]
    network = model["network"]["init_args"]
    assert network["encoder"]["init_args"]["normalizer"] is None
    assert network["encoder"]["init_args"]["hidden_sizes"] == [64, 64]
    assert network["critic_encoder"] is None
    assert network["rescale_actions"] is True


@pytest.mark.parametrize("args", [["--help"], ["fit", "--help"], ["validate", "--help"], ["test", "--help"]])
def test_help_names_the_program(args):
    assert run(*args).out.startswith("usage: ppo-lightning")


@pytest.mark.parametrize(("name", "value", "end"), [("max_epochs", 1, 64), ("max_steps", 4, 64)])
def test_a_trainer_limit_that_cuts_short_names_both(name, value, end):
    outcome = run("fit", *WALK, f"--trainer.{name}={value}")
    assert f"--trainer.{name}={value}" in outcome.warnings
    assert "--data.total_timesteps=128" in outcome.warnings
    assert load(LAST)["RolloutDataModule"]["env_steps"] == end


def test_a_trainer_limit_that_cuts_nothing_says_nothing():
    assert "--trainer" not in run("fit", *WALK, "--trainer.max_epochs=5", "--trainer.max_steps=8").warnings
    assert load(LAST)["RolloutDataModule"]["env_steps"] == 128


def test_total_timesteps_is_lowered_to_whole_rollouts():
    run("fit", *WALK, "--data.total_timesteps=191")
    assert load(LAST)["RolloutDataModule"]["env_steps"] == 128


# -- starting from another run's weights


def test_init_from_starts_a_new_run_with_the_weights(monkeypatch):
    run("fit", *WALK)
    trained, seen = network_weights(LAST), []
    start = PPO.on_train_start

    def spy(self):
        start(self)
        seen.append({f"network.{name}": tensor.clone() for name, tensor in self.network.state_dict().items()})
        seen.append((self.trainer.global_step, len(self.trainer.optimizers[0].state)))

    monkeypatch.setattr(PPO, "on_train_start", spy)
    run("fit", *WALK, f"--init_from={LAST}", "--seed_everything=7")
    assert same(seen[0], trained)
    assert seen[1] == (0, 0)
    second = Path("lightning_logs/version_1")
    assert logged(rows(second, "train/value_loss")) == [64, 128]
    assert not same(network_weights(second / "checkpoints/last.ckpt"), trained)
    assert same(network_weights(LAST), trained)


# -- checkpoints in Python


def test_a_checkpoint_of_the_command_line_comes_back_with_its_nested_network():
    run("fit", *WALK)
    trained = network_weights(LAST)
    ppo, policy = PPO.load_from_checkpoint(LAST), PPOPolicy(load_path=LAST)
    assert same({f"network.{name}": tensor for name, tensor in ppo.network.state_dict().items()}, trained)
    assert same({f"network.{name}": tensor for name, tensor in policy.get_params().items()}, trained)
    assert ppo.network.embedder.output_dim == 8
    assert policy.act(torch.zeros(3, 4)).shape == (3,)


NETWORKS = {
    "class": ActorCritic,
    "partial": functools.partial(ActorCritic, encoder=functools.partial(MLPEncoder, hidden_sizes=[5])),
    "lambda": lambda observations, actions: ActorCritic(observations, actions),
    "module": ActorCritic(make_data().observation_space, make_data().action_space),
}


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_checkpoint_of_the_python_interface_comes_back_or_says_why_not(kind):
    trainer, ppo = make_trainer(), make_ppo(network=NETWORKS[kind])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(ppo, make_data())
    trainer.save_checkpoint("a.ckpt", weights_only=False)
    load("a.ckpt")
    if kind in ("class", "partial"):
        assert same(PPOPolicy(load_path="a.ckpt").get_params(), ppo.network.state_dict())
        assert same(PPO.load_from_checkpoint("a.ckpt").network.state_dict(), ppo.network.state_dict())
        return
    with pytest.raises(ConfigurationError, match=r"given as an object or a lambda .*pass network="):
        PPOPolicy(load_path="a.ckpt")
    with pytest.raises(ConfigurationError, match=r"given as an object or a lambda .*pass network="):
        PPO.load_from_checkpoint("a.ckpt")
    again = PPO.load_from_checkpoint("a.ckpt", network=ActorCritic)
    assert same(again.network.state_dict(), ppo.network.state_dict())


# -- validate and test


@pytest.mark.parametrize("name", ["validate", "test"])
def test_a_checkpoint_is_evaluated_as_through_the_python_interface(name):
    run("fit", *WALK)
    files = sorted(Path().rglob("*"))
    outcome = run(name, RESUME, "--evaluation.num_episodes=7", "--evaluation.temperature=1")
    evaluation = Evaluation(num_episodes=7, temperature=1)
    trainer = make_trainer(callbacks=[evaluation])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        getattr(trainer, name)(
            PPO.load_from_checkpoint(LAST), make_data(num_steps=16, total_timesteps=128), verbose=False
        )
    metrics = evaluation.metrics
    assert f"{metrics['eval/return_mean']:.2f} ± {metrics['eval/return_ci95']:.2f}" in outcome.out
    assert "after 128 environment steps" in outcome.out
    assert sorted(Path().rglob("*")) == files


def test_a_run_that_was_continued_is_validated():
    run("fit", *WALK)
    run("fit", RESUME, "--data.total_timesteps=256")
    assert "after 256 environment steps" in run("validate", RESUME).out


@pytest.mark.parametrize("name", ["validate", "test"])
def test_evaluating_needs_a_checkpoint(name):
    sentence = sentence_of(command(name, *WALK))
    assert "--ckpt_path" in sentence
    assert name in sentence


def test_trainer_validate_evaluates_a_trained_module():
    evaluation = Evaluation(num_episodes=3)
    ppo, data = fit(make_ppo(), make_data()), make_data()
    trainer = make_trainer(callbacks=[evaluation])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.validate(ppo, data, verbose=False)
    assert len(evaluation.results[""].episodes) == 3


# -- as processes


def start(*args):
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "ppo_lightning", *map(str, args)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_mistake_ends_the_process_with_a_code_and_a_sentence():
    process = start("fit", *WALK, "--model.gamma=1.5")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert err.splitlines()[-1] == "ppo-lightning: error: --model.gamma must be at least 0 and at most 1, not 1.5."
    assert "Traceback" not in err


def test_ctrl_c_stops_cleanly_and_the_run_goes_on():
    process = start("fit", *WALK, "--data.total_timesteps=1000000000", "--evaluation.every_n_iterations=100000")
    try:
        deadline = time.monotonic() + 120
        while not LAST.is_file() or len(rows()) < 5:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode not in (0, None)
    assert "Traceback" not in out + err
    done = load(LAST)["RolloutDataModule"]["env_steps"]
    run("fit", RESUME, f"--data.total_timesteps={done + 128}")
    assert load(LAST)["RolloutDataModule"]["env_steps"] == done + 128
    steps = logged(rows(column="train/value_loss"))
    assert steps == list(range(64, done + 129, 64))


# -- splits, tables and JSON


NIL = {"nil": {"wrappers": [{"class_path": "tests.test_resume.Negative"}]}}
SPLITS = f"--evaluation.splits={json.dumps({'val': {}, **NIL})}"


def numbers(metrics, split):
    """What a table's row should say."""
    mean, interval = metrics[f"eval/{split}return_mean"], metrics[f"eval/{split}return_ci95"]
    return f"{mean:.2f} ± {interval:.2f}"


def test_fit_prints_json_and_nothing_else():
    outcome = run("fit", *WALK, SPLITS, "--model.log_action_id=1", "--json")
    report = json.loads(outcome.out)
    assert report["env_steps"] == 128
    settings = {"num_episodes": 4, "temperature": 0.0, "max_num_steps": None}
    assert report["splits"] == [{"split": split, **settings} for split in ("val", "nil")]
    assert {name: rows(column=name) for name in report["metrics"]} == {
        name: [(128, value)] for name, value in report["metrics"].items()
    }
    assert {name.split("/")[1] for name in report["metrics"]} == {"val", "nil"}
    assert "eval/nil/action_1_fraction" in report["metrics"]
    assert report["best_checkpoints"] == {
        f"eval/{split}/return_mean": str(RUN / f"checkpoints/best_{split}.ckpt") for split in ("val", "nil")
    }


@pytest.mark.parametrize("name", ["validate", "test"])
def test_an_evaluation_prints_json_with_the_numbers_of_the_table_and_of_the_log(name):
    run("fit", *WALK, SPLITS)
    report = json.loads(run(name, RESUME, "--json").out)
    assert report["checkpoint"] == str(LAST)
    assert report["env_steps"] == 128
    assert {column for column in rows()[0] if column.startswith("eval/")} == report["metrics"].keys()
    for column, value in report["metrics"].items():
        assert rows(column=column) == [(128, value)]
    table = run(name, RESUME).out
    for split in ("val", "nil"):
        (row,) = [line for line in table.splitlines() if f"│ {split} " in line]
        assert numbers(report["metrics"], f"{split}/") in row
        assert f"{report['metrics'][f'eval/{split}/steps']:.0f}" in row


def test_json_is_alone_also_where_a_progress_bar_is_configured():
    bar = ["--trainer.callbacks=RichProgressBar", "--trainer.enable_progress_bar=true"]
    assert json.loads(run("fit", *WALK, *bar, "--json").out)["env_steps"] == 128
    assert json.loads(run("validate", RESUME, "--json").out)["env_steps"] == 128


def test_the_table_has_a_row_a_split_and_the_fraction_of_the_logged_action():
    table = run("fit", *WALK, SPLITS, "--model.log_action_id=1").out
    lines = [line for line in table.splitlines() if line.startswith("│")]
    assert [line.split("│")[1].strip() for line in lines] == ["val", "nil"]
    header = next(line for line in table.splitlines() if "return (mean ± 95 %)" in line)
    assert "action 1" in header
    assert "base return" not in header  # the same
    for split, line in zip(("val", "nil"), lines):
        ((_, fraction),) = rows(column=f"eval/{split}/action_1_fraction")
        assert f"{100 * fraction:.1f} %" in line


def test_the_splits_of_a_run_are_those_of_its_checkpoint_unless_others_are_given():
    run("fit", *WALK, SPLITS)
    assert config_of()["evaluation"]["splits"] == {"val": {}, **NIL}
    again = json.loads(run("validate", RESUME, "--json").out)["metrics"]
    assert again["eval/nil/return_mean"] == pytest.approx(-again["eval/val/return_mean"])
    assert again["eval/nil/return_mean"] != 0
    other = json.loads(run("validate", RESUME, "--json", '--evaluation.splits={"mine": {}}').out)["metrics"]
    assert other["eval/mine/return_mean"] == again["eval/val/return_mean"]


def test_each_split_has_its_best_checkpoint_and_the_end_names_them():
    out = run("fit", *WALK, SPLITS).out
    for split in ("val", "nil"):
        assert (RUN / f"checkpoints/best_{split}.ckpt").is_file()
        assert f"Best checkpoint (return of {split} " in out
    assert not BEST.exists()


def refused_config(text):
    """The sentence for a configuration file, having seen that nothing was written."""
    Path("a.yaml").write_text(text)
    sentence = sentence_of(command("fit", *WALK, "--config=a.yaml"))
    assert [path.name for path in Path().iterdir()] == ["a.yaml"]
    return sentence


@pytest.mark.parametrize(
    ("text", "key", "line"),
    [
        ("evaluation:\n  splits:\n    val: {}\n    test: {}\n    val: {kwargs: {}}\n", "val", 5),
        ("model:\n  gamma: 0.5\n  gae_lambda: 0.9\n  gamma: 0.6\n", "gamma", 4),
        ("data:\n  num_envs: 4\nmodel:\n  gamma: 0.9\ndata:\n  num_steps: 8\n", "data", 5),
        ("trainer: {max_epochs: 3, max_epochs: 4}\n", "max_epochs", 1),
    ],
)
def test_a_setting_that_is_written_twice_is_refused_with_its_line(text, key, line):
    sentence = refused_config(text)
    assert f"--config=a.yaml: '{key}' is given twice, again in line {line}: leave one of them out." in sentence


@pytest.mark.parametrize("joined", [True, False])
def test_a_split_that_is_named_twice_on_the_command_line_is_refused(joined):
    value = '{"a": {}, "b": {}, "a": {"kwargs": {}}}'
    flags = [f"--evaluation.splits={value}"] if joined else ["--evaluation.splits", value]
    sentence = sentence_of(command("fit", *WALK, *flags))
    assert "--evaluation.splits: 'a' is given twice: leave one of them out." in sentence
    assert not list(Path().iterdir())


def test_the_same_setting_in_two_places_is_no_mistake():
    Path("a.yaml").write_text("model: {gamma: 0.5}\nevaluation: {splits: {a: {kwargs: {}}, b: {kwargs: {}}}}\n")
    run("fit", *WALK, "--config=a.yaml", "--model.gamma=0.75")
    assert config_of()["model"]["init_args"]["gamma"] == 0.75


def test_yaml_anchors_and_merges_are_no_repetition():
    Path("a.yaml").write_text(
        "evaluation:\n  splits:\n    a: &a {vectorization: sync}\n    c: &c {kwargs: {}}\n    b: {<<: *a, <<: *c}\n"
    )
    run("fit", *WALK, "--config=a.yaml")
    assert config_of()["evaluation"]["splits"]["b"] == {"vectorization": "sync", "kwargs": {}}
