"""Continuing a run."""

import shutil
from pathlib import Path

import gymnasium
import pytest
import torch

from ppo_lightning.commands.parser import PPOArgumentParser
from ppo_lightning.data.collect import Collector
from tests.commands import (
    BEST,
    LAST,
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

# -- continuing a run


def test_a_resumed_run_goes_on_in_its_folder():
    run("fit", *WALK)
    run("fit", RESUME, "--data.total_timesteps=256")
    assert [path.name for path in Path("lightning_logs").iterdir()] == ["version_0"]
    assert logged(rows(column="train/value_loss")) == [64, 128, 192, 256]
    assert counters(LAST) == {"env_steps": 256, "iteration": 4}
    assert load(LAST)["epoch"] == 3
    assert config_of()["data"]["total_timesteps"] == 128
    assert config_of(name="config_1.yaml")["data"]["total_timesteps"] == 256


def test_wall_time_goes_on():
    run("fit", *WALK)
    checkpoint = load(LAST)
    assert 0 < checkpoint["train_seconds"] < 60
    torch.save({**checkpoint, "train_seconds": 1000.0}, LAST)
    run("fit", RESUME, "--data.total_timesteps=256")
    seconds = [value for _, value in rows(column="time/seconds")]
    assert seconds == sorted(seconds)
    assert seconds[1] < 60
    assert 1000 < seconds[2] < 1060


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
    assert counters(LAST) == {"env_steps": 320, "iteration": 5}
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
    before, counters_before = load(BEST), counters(BEST)
    score = max(rows(column="eval/return_mean"), key=lambda row: row[1])[1]
    assert score > 0.6
    # from now on it unlearns: the wrapper turns the rewards of the evaluation's environments round
    negative = "--data.env.wrappers=[{class_path: tests.test_resume.Negative}]"
    outcome = run("fit", RESUME, "--data.total_timesteps=2112", negative)
    assert rows(column="eval/return_mean")[-1][1] < score
    assert same(load(BEST)["state_dict"], before["state_dict"])
    assert counters(BEST) == counters_before
    assert str(BEST) in outcome.out


def test_the_best_score_survives_a_move_of_the_folder():
    bandit = ["--data.env.id=tests.tasks:Bandit-v0", "--model.learning_rate=0.02", "--model.gamma=0.5"]
    run("fit", *WALK, *bandit, "--data.total_timesteps=2048", "--evaluation.num_episodes=50")
    before = counters(BEST)
    Path("lightning_logs").rename("old")
    Path("new").mkdir()
    Path("old").rename("new/lightning_logs")
    negative = "--data.env.wrappers=[{class_path: tests.test_resume.Negative}]"
    run("fit", f"--ckpt_path=new/{LAST}", "--data.total_timesteps=2112", negative)
    assert counters("new" / BEST) == before


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


class Killed(BaseException):
    """As abrupt as a signal."""


def test_a_kill_while_the_configuration_is_written_leaves_the_run_resumable(monkeypatch):
    run("fit", *WALK)
    save = PPOArgumentParser.save

    def half(self, config, path, *args, **kwargs):
        save(self, config, path, *args, **kwargs)
        text = Path(path).read_text()
        Path(path).write_text("" if len(text) % 2 else text[: len(text) // 2])
        raise Killed

    with monkeypatch.context() as broken:
        broken.setattr(PPOArgumentParser, "save", half)
        with pytest.raises(Killed):
            run("fit", RESUME, "--data.total_timesteps=192")
    assert not (RUN / "config_1.yaml").exists()
    run("fit", RESUME, "--data.total_timesteps=256")
    assert config_of(name="config_1.yaml")["data"]["total_timesteps"] == 256


def test_an_emptied_configuration_of_a_run_is_named():
    run("fit", *WALK)
    (RUN / "config.yaml").write_text("")
    sentence = sentence_of(command("fit", RESUME, "--data.total_timesteps=192"))
    for words in ("config.yaml", "holds nothing"):
        assert words in sentence
