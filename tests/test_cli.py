"""The commands as they are typed: what a run leaves, going on with it, starting from it, evaluating it."""

import contextlib
import csv
import functools
import io
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import gymnasium
import pytest
import torch
import yaml

from ppo_lightning import PPO, ActorCritic, ConfigurationError, Evaluation, MLPEncoder, PPOPolicy, cli
from ppo_lightning.data.collect import Collector
from tests.runs import fit, make_data, make_ppo, make_trainer

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


def network_weights(path):
    return {name: tensor for name, tensor in load(path)["state_dict"].items() if name.startswith("network.")}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def logged(values):
    """The steps, each of which is there once."""
    steps = [step for step, _ in values]
    assert steps == sorted(set(steps))
    return steps


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


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
    assert load(LAST)["RolloutDataModule"] == {"env_steps": 128, "iteration": 2}
    assert load(RUN / "checkpoints/step_64.ckpt")["RolloutDataModule"] == {"env_steps": 64, "iteration": 1}


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


def config_of(folder=RUN, name="config.yaml"):
    return yaml.safe_load((folder / name).read_text())


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


# -- continuing a run


def test_a_resumed_run_goes_on_in_its_folder():
    run("fit", *WALK)
    run("fit", RESUME, "--data.total_timesteps=256")
    assert [path.name for path in Path("lightning_logs").iterdir()] == ["version_0"]
    assert logged(rows(column="train/value_loss")) == [64, 128, 192, 256]
    assert load(LAST)["RolloutDataModule"] == {"env_steps": 256, "iteration": 4}
    assert load(LAST)["epoch"] == 3
    assert config_of()["data"]["total_timesteps"] == 128
    assert config_of(name="config_1.yaml")["data"]["total_timesteps"] == 256


def test_rows_after_the_checkpoint_are_dropped_and_played_again():
    run("fit", *WALK, "--checkpoint.save_freq=64", "--data.total_timesteps=192")
    first = rows(column="train/value_loss")
    run("fit", f"--ckpt_path={RUN / 'checkpoints/step_64.ckpt'}")
    second = rows(column="train/value_loss")
    assert logged(second) == [64, 128, 192]
    assert second[0] == first[0]


@pytest.mark.parametrize("folder", ["runs", "deep/runs"])
def test_a_run_that_was_moved_by_default_root_dir_is_resumed_in_place(folder):
    run("fit", *WALK, f"--trainer.default_root_dir={folder}")
    run("fit", f"--ckpt_path={folder / LAST}", "--data.total_timesteps=192")
    assert [path.name for path in Path(folder, "lightning_logs").iterdir()] == ["version_0"]
    assert logged(rows(folder / RUN, "train/value_loss")) == [64, 128, 192]


def test_a_run_is_resumed_in_place_from_another_folder(monkeypatch):
    run("fit", *WALK, "--trainer.default_root_dir=runs")
    Path("other").mkdir()
    monkeypatch.chdir("other")
    run("fit", f"--ckpt_path=../runs/{LAST}", "--data.total_timesteps=192")
    assert not list(Path().iterdir())
    assert logged(rows("../runs" / RUN, "train/value_loss")) == [64, 128, 192]


def test_an_explicit_default_root_dir_moves_the_resumed_run():
    run("fit", *WALK)
    run("fit", RESUME, "--data.total_timesteps=192", "--trainer.default_root_dir=elsewhere")
    assert load("elsewhere" / LAST)["RolloutDataModule"]["env_steps"] == 192
    assert load(LAST)["RolloutDataModule"]["env_steps"] == 128


def count_rollouts(monkeypatch):
    """Notes the call of every rollout."""
    calls, collect = [], Collector.collect
    monkeypatch.setattr(
        Collector, "collect", lambda self, *args: (calls.append(self.env.num_envs), collect(self, *args))[1]
    )
    return calls


def test_exactly_the_remaining_rollouts_are_played(monkeypatch):
    calls = count_rollouts(monkeypatch)
    run("fit", *WALK)
    assert len(calls) == 2
    run("fit", RESUME, "--data.total_timesteps=320")
    assert len(calls) == 5


def test_exactly_the_remaining_rollouts_are_played_after_kl_stops(monkeypatch):
    calls = count_rollouts(monkeypatch)
    stopping = ["--model.target_kl=1e-12", "--model.learning_rate=0.01"]
    run("fit", *WALK, *stopping, "--data.num_minibatches=4")
    assert load(LAST)["global_step"] < 16  # the stops did happen
    run("fit", RESUME, "--data.total_timesteps=320")
    assert len(calls) == 5
    assert load(LAST)["RolloutDataModule"] == {"env_steps": 320, "iteration": 5}
    assert logged(rows(column="train/value_loss")) == [64, 128, 192, 256, 320]


def test_a_resumed_run_may_have_another_number_of_environments(monkeypatch):
    calls = count_rollouts(monkeypatch)
    run("fit", *WALK)
    outcome = run("fit", RESUME, "--data.num_envs=8", "--data.total_timesteps=384")
    assert calls == [4, 4, 8, 8]
    assert load(LAST)["RolloutDataModule"]["env_steps"] == 384
    assert "--trainer" not in outcome.warnings  # nothing about limits that the user never set


def test_a_worse_evaluation_after_a_resume_leaves_the_best_checkpoint():
    bandit = ["--data.env.id=tests.tasks:Bandit-v0", "--model.learning_rate=0.02", "--model.gamma=0.5"]
    run("fit", *WALK, *bandit, "--data.total_timesteps=2048", "--evaluation.num_episodes=50")
    before = load(BEST)
    score = max(rows(column="eval/return_mean"), key=lambda row: row[1])[1]
    assert score > 0.6
    # from now on it unlearns: the wrapper turns the rewards of the evaluation's environments round
    negative = "--data.env.wrappers=[{class_path: tests.test_cli.Negative}]"
    outcome = run("fit", RESUME, "--data.total_timesteps=2112", negative)
    assert rows(column="eval/return_mean")[-1][1] < score
    assert same(load(BEST)["state_dict"], before["state_dict"])
    assert load(BEST)["RolloutDataModule"] == before["RolloutDataModule"]
    assert str(BEST) in outcome.out


def test_the_best_score_survives_a_move_of_the_folder():
    bandit = ["--data.env.id=tests.tasks:Bandit-v0", "--model.learning_rate=0.02", "--model.gamma=0.5"]
    run("fit", *WALK, *bandit, "--data.total_timesteps=2048", "--evaluation.num_episodes=50")
    before = load(BEST)["RolloutDataModule"]
    Path("lightning_logs").rename("old")
    Path("new").mkdir()
    Path("old").rename("new/lightning_logs")
    negative = "--data.env.wrappers=[{class_path: tests.test_cli.Negative}]"
    run("fit", f"--ckpt_path=new/{LAST}", "--data.total_timesteps=2112", negative)
    assert load("new" / BEST)["RolloutDataModule"] == before


class Negative(gymnasium.RewardWrapper):
    """Pays the opposite."""

    def reward(self, reward):
        return -reward


def test_explicit_flags_win_over_the_checkpoint():
    run("fit", *WALK)
    run(
        *("fit", RESUME, "--data.total_timesteps=192", "--model.learning_rate=0.25", "--model.gamma=0.5"),
        *("--model.optimizer=torch.optim.Adam", "--model.optimizer.eps=0.125"),
    )
    checkpoint = load(LAST)
    assert rows(column="train/learning_rate")[-1] == (192, 0.25)
    assert checkpoint["hyper_parameters"]["gamma"] == 0.5
    (group,) = checkpoint["optimizer_states"][0]["param_groups"]
    assert (group["eps"], group["lr"]) == (0.125, 0.25)
    assert checkpoint["optimizer_states"][0]["state"][0]["step"] == 12  # its state goes on


def test_gamma_given_on_resume_changes_the_update():
    run("fit", *WALK)
    shutil.copytree("lightning_logs", "copy/lightning_logs")
    run("fit", RESUME, "--data.total_timesteps=192")
    run("fit", f"--ckpt_path=copy/{LAST}", "--data.total_timesteps=192", "--model.gamma=0.5")
    assert not same(network_weights(LAST), network_weights("copy" / LAST))


EXPONENTIAL = ["--model.scheduler=torch.optim.lr_scheduler.ExponentialLR", "--model.scheduler.gamma=0.5"]


def test_a_schedule_goes_on_after_a_resume():
    run("fit", *WALK, *EXPONENTIAL, "--model.learning_rate=0.5")
    run("fit", RESUME, "--data.total_timesteps=256")
    assert [rate for _, rate in rows(column="train/learning_rate")] == [0.5, 0.25, 0.125, 0.0625]


@pytest.mark.parametrize(
    ("flag", "rates"),
    [("--model.learning_rate=0.25", [0.0625, 0.03125]), ("--model.scheduler.gamma=0.1", [0.005, 0.0005])],
)
def test_flags_of_a_schedule_win_over_the_checkpoint(flag, rates):
    run("fit", *WALK, *EXPONENTIAL, "--model.learning_rate=0.5")
    run("fit", RESUME, "--data.total_timesteps=256", flag)
    assert [rate for _, rate in rows(column="train/learning_rate")][2:] == pytest.approx(rates)


def test_another_optimizer_is_refused_on_resume_by_name():
    run("fit", *WALK)
    before = sorted(RUN.rglob("*"))
    sentence = sentence_of(
        command("fit", RESUME, "--data.total_timesteps=192", "--model.optimizer=torch.optim.RMSprop")
    )
    for word in ("--model.optimizer=RMSprop", "Adam", "--init_from"):
        assert word in sentence
    assert {path.name for path in set(RUN.rglob("*")) - set(before)} <= {
        path.name for path in RUN.glob("events.out.tfevents.*")
    }


def test_a_resume_with_nothing_left_to_train_is_refused():
    run("fit", *WALK)
    sentence = sentence_of(command("fit", RESUME))
    for word in ("--data.total_timesteps=128", "nothing to train", "--ckpt_path", "raise it by at least 64"):
        assert word in sentence
    assert not (RUN / "config_1.yaml").exists()
    assert logged(rows(column="train/value_loss")) == [64, 128]


def test_a_resumed_run_equals_a_resumed_copy():
    run("fit", *WALK)
    shutil.copytree("lightning_logs", "copy/lightning_logs")
    for root in (".", "copy"):
        run("fit", f"--ckpt_path={root}/{LAST}", "--data.total_timesteps=256")
    assert same(network_weights(LAST), network_weights("copy" / LAST))


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
    result = evaluation.result
    assert f"{result.return_mean:.2f} ± {result.return_ci95:.2f}" in outcome.out
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
    assert len(evaluation.result.episodes) == 3


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
