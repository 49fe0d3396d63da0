"""Lightning's own callbacks, loggers and settings: they work here, or are refused in a sentence."""

import json
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import LearningRateMonitor, Timer

from ppo_lightning import PPO, EnvStepProgressBar, Evaluation, RunCheckpoint, run_loggers
from tests.commands import LAST, RESUME, RUN, WALK, command, counters, load, logged, rows, run, sentence_of
from tests.runs import SMALL_NETWORK, equal, fit, make_data, make_ppo, weights

EVERY = "--trainer.log_every_n_steps=1"


def steps_of(column, folder=RUN):
    return [step for step, _ in rows(folder, column)]


# -- the x axis


def test_the_learning_rate_monitor_logs_at_environment_steps():
    monitor = ["--trainer.callbacks=LearningRateMonitor", "--trainer.callbacks.logging_interval=step"]
    run("fit", *WALK, EVERY, *monitor, "--model.anneal_lr=true")
    assert rows(column="lr-Adam") == [
        *[(step, 5e-4) for step in (0, 1, 2, 3)],  # at the start of each minibatch
        *[(step, 2.5e-4) for step in (64, 65, 66, 67)],
    ]


def test_the_learning_rate_monitor_sees_the_rate_of_the_iteration_that_begins():
    run("fit", *WALK, "--trainer.callbacks=LearningRateMonitor", "--model.anneal_lr=true")
    assert rows(column="lr-Adam") == [(0, 5e-4), (64, 2.5e-4)]


@pytest.mark.parametrize("every", [1, 3, 4, 50, 0])
def test_log_every_n_steps_counts_optimiser_steps(every):
    # 32 environment steps an iteration: their multiples never come one before a multiple of 4
    ppo = LoggingPPO(network=SMALL_NETWORK)
    fit(ppo, make_data(iterations=4), logger=run_loggers(".", 0), log_every_n_steps=every)
    assert ppo.trainer.log_every_n_steps == every
    optimiser_steps = [step for step in range(16) if every and (step + 1) % every == 0]
    logged_values = [value for _, value in rows(column="mine_step")] if optimiser_steps else []
    assert logged_values == [10 * (step // 4 + 1) + step % 4 for step in optimiser_steps]


def test_a_package_that_is_missing_is_one_sentence(monkeypatch):
    def missing(*args, **kwargs):
        raise ModuleNotFoundError("`DeviceStatsMonitor` cannot log CPU stats as `psutil` is not installed.")

    monkeypatch.setattr("lightning.pytorch.callbacks.DeviceStatsMonitor.setup", missing)
    sentence = sentence_of(command("fit", *WALK, "--trainer.callbacks=DeviceStatsMonitor"))
    assert "`psutil` is not installed: install it" in sentence


def test_steps_stay_exact_beyond_what_float32_holds():
    data = make_data(total_timesteps=2**24 + 1 + 64)
    data.env_steps = 2**24 + 1
    fit(make_ppo(), data, logger=run_loggers(".", 0), callbacks=[LearningRateMonitor("epoch")])
    assert steps_of("lr-Adam") == [2**24 + 1, 2**24 + 33]
    assert steps_of("train/loss") == [2**24 + 33, 2**24 + 65]


class LoggingPPO(PPO):
    """Logs by Lightning's own means."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.log("mine", float(self.trainer.datamodule.iteration * 10 + batch_idx), on_step=True, on_epoch=True)
        return loss

    def on_train_epoch_end(self):
        super().on_train_epoch_end()
        self.log("mine_at_the_end", float(self.trainer.datamodule.iteration))


def test_what_a_subclass_logs_lands_at_environment_steps():
    ppo = LoggingPPO(network=SMALL_NETWORK)
    fit(ppo, make_data(), logger=run_loggers(".", 0), log_every_n_steps=1)
    assert rows(column="mine_step") == [
        *[(0, 10), (1, 11), (2, 12), (3, 13)],
        *[(32, 20), (33, 21), (34, 22), (35, 23)],
    ]
    assert rows(column="mine_epoch") == [(32, 11.5), (64, 21.5)]
    assert rows(column="mine_at_the_end") == [(32, 1), (64, 2)]


def test_what_a_subclass_logs_goes_on_there_after_a_resume():
    def train(iterations, **kwargs):
        ppo, data = LoggingPPO(network=SMALL_NETWORK), make_data(iterations=iterations)
        callbacks = [RunCheckpoint(), Evaluation(num_episodes=1)]
        fit(ppo, data, callbacks=callbacks, enable_checkpointing=True, log_every_n_steps=1, **kwargs)

    train(2, logger=run_loggers(".", 0))
    train(3, logger=run_loggers(".", 0, resume_step=64), ckpt_path=LAST)
    assert steps_of("mine_step") == [0, 1, 2, 3, 32, 33, 34, 35, 64, 65, 66, 67]
    assert steps_of("mine_epoch") == [32, 64, 96]


# -- the end of a run


class FastTimer(Timer):
    """Time runs out in the second minibatch of the third iteration."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if (trainer.datamodule.iteration, batch_idx) == (3, 1):
            self._duration = 0
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)


@pytest.mark.parametrize("order", [1, -1])
def test_a_timer_ends_the_run_with_an_evaluation_and_a_checkpoint_that_goes_on(order):
    evaluation, timer = Evaluation(num_episodes=2, every_n_iterations=100), FastTimer(timedelta(hours=1))
    callbacks = [*[evaluation, timer][::order], RunCheckpoint()]
    settings = {"logger": run_loggers(".", 0), "enable_checkpointing": True}
    ppo = fit(make_ppo(), make_data(iterations=9), callbacks=callbacks, **settings)
    assert steps_of("train/loss") == [32, 64, 96]
    assert steps_of("eval/return_mean") == [96]
    last = load(LAST)
    assert counters(last) == {"env_steps": 96, "iteration": 3}
    assert last["global_step"] == 4 + 4 + 2
    assert equal({name: last["state_dict"][f"network.{name}"] for name in weights(ppo)}, weights(ppo))
    fit(
        make_ppo(),
        make_data(iterations=5),
        ckpt_path=LAST,
        callbacks=[RunCheckpoint()],
        logger=run_loggers(".", 0, resume_step=96),
        enable_checkpointing=True,
    )
    assert logged(rows(column="train/loss")) == [32, 64, 96, 128, 160]
    assert counters(LAST) == {"env_steps": 160, "iteration": 5}


def test_max_time_ends_a_run_from_the_command_line():
    endless = ["--data.total_timesteps=1000000000", "--evaluation.every_n_iterations=1000000"]
    started = time.monotonic()
    metrics = json.loads(run("fit", *WALK, *endless, "--trainer.max_time=00:00:00:01", "--json").out)
    assert time.monotonic() - started < 60
    assert rows(column="eval/return_mean")[-1] == (metrics["env_steps"], metrics["metrics"]["eval/return_mean"])
    assert load(LAST)["RolloutDataModule"]["env_steps"] == metrics["env_steps"] > 64
    total = metrics["env_steps"] + 64
    run("fit", RESUME, "--trainer.max_time=null", f"--data.total_timesteps={total}")
    assert load(LAST)["RolloutDataModule"]["env_steps"] == total


# -- progress bars and loggers


@pytest.mark.parametrize("bar", ["RichProgressBar", "TQDMProgressBar"])
def test_another_progress_bar_takes_the_place_of_ours(bar, monkeypatch):
    opened = []
    monkeypatch.setattr(EnvStepProgressBar, "on_train_start", lambda *_: opened.append(1))
    outcome = run("fit", *WALK, f"--trainer.callbacks={bar}", "--trainer.enable_progress_bar=true")
    assert "Epoch 1" in outcome.out
    assert not opened
    assert load(LAST)["RolloutDataModule"]["env_steps"] == 128


def test_ours_is_there_without_another(monkeypatch):
    opened = []
    monkeypatch.setattr(EnvStepProgressBar, "on_train_start", lambda *_: opened.append(1))
    monkeypatch.setattr(EnvStepProgressBar, "on_train_epoch_end", lambda *_: None)
    run("fit", *WALK, "--trainer.enable_progress_bar=true")
    assert opened == [1]


def test_a_csv_logger_of_lightnings_has_the_same_numbers():
    run("fit", *WALK, "--trainer.logger=CSVLogger", "--trainer.logger.save_dir=mine", "--trainer.logger.name=run")
    folder = Path("mine/run/version_0")
    assert steps_of("train/loss", folder) == [64, 128]
    assert steps_of("eval/return_mean", folder) == [128]
    assert (folder / "checkpoints/last.ckpt").is_file()
    assert (folder / "config.yaml").is_file()


def test_wandb_offline():
    pytest.importorskip("wandb")
    run("fit", *WALK, "--trainer.logger=WandbLogger", "--trainer.logger.offline=true", "--trainer.logger.save_dir=.")
    assert list(Path("wandb").glob("offline-run-*"))


# -- callbacks that work


def test_a_model_summary_and_accumulated_gradients():
    accumulate = ["GradientAccumulationScheduler", "--trainer.callbacks.scheduling={0: 2}"]
    run("fit", *WALK, f"--trainer.callbacks={accumulate[0]}", accumulate[1], "--trainer.enable_model_summary=true")
    assert load(LAST)["global_step"] == 4  # of 8 minibatches
    assert steps_of("train/loss") == [64, 128]


def test_fast_dev_run_trains_a_batch_and_writes_nothing():
    metrics = json.loads(run("fit", *WALK, "--trainer.fast_dev_run=true", "--json").out)
    assert metrics["env_steps"] == 64
    assert metrics["metrics"]["eval/episodes"] == 4
    assert not [path for path in Path().rglob("*") if path.is_file()]


@pytest.mark.parametrize("name", ["validate", "test"])
def test_fast_dev_run_of_an_evaluation(name):
    run("fit", *WALK)
    assert "after 128 environment steps" in run(name, RESUME, "--trainer.fast_dev_run=true").out


# -- settings and callbacks that mean nothing here


def refused(*flags, name="fit"):
    """The sentence, having seen that nothing was trained."""
    sentence = sentence_of(command(name, *WALK, *flags))
    assert not list(Path().rglob("metrics.csv"))
    return sentence


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--trainer.check_val_every_n_epoch=2", "--evaluation.every_n_iterations"),
        ("--trainer.val_check_interval=0.5", "--evaluation.every_n_env_steps"),
        ("--trainer.val_check_interval=3", "--evaluation.every_n_env_steps"),
        ("--trainer.limit_val_batches=3", "--evaluation.num_episodes"),
        ("--trainer.limit_train_batches=2", "--data.num_minibatches"),
        ("--trainer.limit_train_batches=1", "--data.num_minibatches"),  # one batch; 1.0 is all
        ("--trainer.limit_train_batches=0.5", "--data.update_epochs"),
        ("--trainer.overfit_batches=1", "--data.num_minibatches"),
    ],
)
def test_a_setting_that_means_nothing_is_refused_with_the_one_that_does(flag, words):
    sentence = refused(flag)
    assert f"{flag} means nothing here" in sentence
    assert words in sentence


@pytest.mark.parametrize("name", ["validate", "test"])
def test_a_limit_of_batches_is_refused_where_episodes_are_counted(name):
    limit = "--trainer.limit_val_batches=3" if name == "validate" else "--trainer.limit_test_batches=3"
    run("fit", *WALK)
    sentence = sentence_of(command(name, RESUME, limit))
    assert f"{limit} means nothing here" in sentence
    assert "--evaluation.num_episodes" in sentence


@pytest.mark.parametrize(
    "flag", ["limit_val_batches=0", "limit_val_batches=0.0", "limit_train_batches=1.0", "check_val_every_n_epoch=1"]
)
def test_a_setting_that_changes_nothing_is_accepted(flag):
    run("fit", *WALK, f"--trainer.{flag}")
    assert load(LAST)["RolloutDataModule"]["env_steps"] == 128
    assert load(LAST)["global_step"] == 8
    assert steps_of("eval/return_mean") == [128]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["StochasticWeightAveraging", "--trainer.callbacks.swa_lrs=0.1"], "--model.anneal_lr=true"),
        (["WeightAveraging"], "--model.anneal_lr=true"),
        (["BatchSizeFinder"], "num_minibatches"),
        (["LearningRateFinder"], "--model.learning_rate"),
    ],
)
def test_a_callback_that_cannot_do_what_it_says_is_refused(flags, words):
    sentence = refused(f"--trainer.callbacks={flags[0]}", *flags[1:])
    assert f"--trainer.callbacks: {flags[0]}" in sentence
    assert words in sentence


def test_a_callback_alone_is_a_list_of_one():
    ending = ["--trainer.callbacks=EvaluationEarlyStopping", "--trainer.callbacks.stopping_threshold=-1000"]
    run("fit", *WALK, *ending, "--evaluation.every_n_iterations=1")
    assert load(LAST)["RolloutDataModule"]["env_steps"] == 64
    assert torch.isfinite(torch.tensor(rows(column="eval/return_mean")[-1][1]))
