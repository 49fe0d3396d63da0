"""TensorBoard and CSV: one folder, one exact x axis, continued by a resumed run."""

import csv
import itertools
import shlex
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ppo_lightning import run_loggers
from ppo_lightning.core.metrics import log_metrics
from ppo_lightning.loggers import _claim_version
from tests.commands import METRICS, RESUME, RUN, WALK, command, rows, run
from tests.runs import make_trainer


def csv_rows(folder):
    with (Path(folder) / "metrics.csv").open(newline="") as file:
        return [{name: value for name, value in row.items() if value} for row in csv.DictReader(file)]


def scalars(folder):
    """``{name: [(step, value), …]}`` of the TensorBoard files."""
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    accumulator.Reload()
    return {
        name: [(event.step, event.value) for event in accumulator.Scalars(name)]
        for name in accumulator.Tags()["scalars"]
    }


def finish(loggers):
    for logger in loggers:
        logger.finalize("success")


def test_both_share_one_folder_and_take_the_next_free_one():
    Path("lightning_logs/version_9").mkdir(parents=True)
    Path("lightning_logs/version_old").mkdir()
    Path("lightning_logs/version_10").mkdir()
    tensorboard, csv_logger = run_loggers(".")
    assert Path(tensorboard.log_dir) == Path(csv_logger.log_dir) == Path("lightning_logs/version_11")


@pytest.mark.parametrize("step", [2**24 + 1, 2**31 + 1, 10**10 + 1])
def test_steps_are_exact_integers(step):
    loggers = run_loggers(".")
    trainer = make_trainer(logger=loggers)
    log_metrics(trainer, {"train/loss": 0.5}, step)
    finish(loggers)
    assert csv_rows(RUN) == [{"step": str(step), "train/loss": "0.5"}]
    assert scalars(RUN) == {"train/loss": [(step, 0.5)]}


def test_a_whole_run_says_the_same_in_both():
    run("fit", *WALK, "--evaluation.every_n_iterations=1")
    board = scalars(RUN)
    assert set(board) >= METRICS
    for name in METRICS:
        in_csv = rows(column=name)
        assert [step for step, _ in in_csv] == [step for step, _ in board[name]] == [64, 128], name
        assert [value for _, value in in_csv] == pytest.approx([value for _, value in board[name]]), name


def test_a_resumed_run_appends_in_both():
    run("fit", *WALK, "--checkpoint.save_freq=64")
    run("fit", f"--ckpt_path={RUN}/checkpoints/step_64.ckpt", "--data.total_timesteps=192")
    assert [step for step, _ in rows(column="train/value_loss")] == [64, 128, 192]
    assert [step for step, _ in scalars(RUN)["train/value_loss"]] == [64, 128, 192]
    assert scalars(RUN)["train/value_loss"][-1][1] == pytest.approx(rows(column="train/value_loss")[-1][1])


def test_a_resumed_logger_keeps_the_rows_up_to_its_step_and_takes_new_columns():
    first = run_loggers(".")
    for step in (10, 20, 30):
        first[1].log_metrics({"a": step}, step)
    finish(first)
    second = run_loggers(".", version=0, resume_step=20)
    second[1].log_metrics({"a": 25, "b": 1}, 25)
    finish(second)
    assert csv_rows(RUN) == [
        {"a": "10", "step": "10"},
        {"a": "20", "step": "20"},
        {"a": "25", "b": "1", "step": "25"},
    ]


def test_every_row_is_on_disk_at_once():
    logger = run_loggers(".")[1]
    logger.log_metrics({"a": 1.0}, 5)
    assert csv_rows(RUN) == [{"a": "1.0", "step": "5"}]


def test_a_run_that_ended_badly_after_its_checkpoint_loses_and_doubles_nothing():
    run("fit", *WALK)
    with (RUN / "metrics.csv").open("a") as file:
        file.write(",".join("192" if name == "step" else "" for name in csv_header()) + "\n")
    run("fit", RESUME, "--data.total_timesteps=192")
    assert [row["step"] for row in csv_rows(RUN) if "train/value_loss" in row] == ["64", "128", "192"]
    assert [row["step"] for row in csv_rows(RUN)] == ["64", "128", "192"]


def test_what_is_logged_at_one_step_is_one_row():
    logger = run_loggers(".")[1]
    logger.log_metrics({"a": 1.0, "b": 2.0}, 5)
    logger.log_metrics({"a": 3.0}, 10)
    logger.log_metrics({"b": 4.0}, 10)
    logger.log_metrics({"c": 5.0}, 10)
    logger.log_metrics({"a": 6.0}, 15)
    assert csv_rows(RUN) == [
        {"a": "1.0", "b": "2.0", "step": "5"},
        {"a": "3.0", "b": "4.0", "c": "5.0", "step": "10"},
        {"a": "6.0", "step": "15"},
    ]
    finish(run_loggers("."))
    second = run_loggers(".", version=0, resume_step=10)
    second[1].log_metrics({"c": 7.0}, 10)
    finish(second)
    assert csv_rows(RUN)[1:] == [{"a": "3.0", "b": "4.0", "c": "7.0", "step": "10"}]


def csv_header():
    with (RUN / "metrics.csv").open(newline="") as file:
        return next(csv.reader(file))


class Remote(Logger):
    """A logger that names its runs and has no folder of its own, as Weights & Biases does."""

    runs = itertools.count()

    def __init__(self):
        super().__init__()
        self.number = next(self.runs)

    name, save_dir = "project", "."
    version = property(lambda self: f"run{self.number}")

    def log_hyperparams(self, *args, **kwargs):
        pass

    def log_metrics(self, metrics, step=None):
        pass


def test_runs_of_a_logger_without_folders_do_not_overwrite_each_other():
    for _ in range(2):
        run("fit", *WALK, "--trainer.logger=tests.test_loggers.Remote")
    folders = sorted(Path("project").iterdir())
    assert len(folders) == 2
    for folder in folders:
        files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
        assert files == {"config.yaml", "checkpoints/last.ckpt", "checkpoints/best.ckpt"}
    assert "after 128 environment steps" in run("validate", f"--ckpt_path={folders[0]}/checkpoints/best.ckpt").out
    assert [path.name for path in Path().iterdir()] == ["project"]


def test_runs_that_start_together_have_folders_of_their_own():
    with ThreadPoolExecutor(8) as pool:
        versions = list(pool.map(lambda _: _claim_version(Path("lightning_logs")), range(40)))
    assert sorted(versions) == list(range(40))
    assert _claim_version(Path("lightning_logs")) == 40


def test_other_ranks_take_the_folder_of_the_first(monkeypatch):
    first = run_loggers(".")[1]
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    assert run_loggers(".")[1].version == first.version
    assert [path.name for path in Path("lightning_logs").iterdir()] == ["version_0"]


@pytest.mark.parametrize(
    "flag",
    [
        "--trainer.callbacks=EarlyStopping",  # by the parser
        "--trainer.gradient_clip_algorithm=nonsense",  # by the Trainer
        "--trainer.limit_train_batches=1",  # when training is set up, with loggers open
        '--evaluation.splits={"a": {"nonsense": 1}}',
        "--model.anneal_lr=true --data.total_timesteps=null --trainer.max_epochs=1",
    ],
)
def test_a_run_that_is_refused_leaves_no_folder(flag):
    assert command("fit", *WALK, *shlex.split(flag)).code == 2
    assert not list(Path().glob("lightning_logs/*"))


def test_a_row_that_a_kill_left_unfinished_is_dropped():
    first = run_loggers(".")[1]
    for step in (1, 2, 3):
        first.log_metrics({"train/loss": step / 4, "train/entropy": 0.5}, step=step)
    path = Path("lightning_logs/version_0/metrics.csv")
    path.write_bytes(path.read_bytes()[:-4])
    again = run_loggers(".", 0, resume_step=3)[1]
    again.log_metrics({"train/loss": 7.0}, step=3)
    assert [(row["step"], row["train/loss"]) for row in csv_rows(RUN)] == [("1", "0.25"), ("2", "0.5"), ("3", "7.0")]


@pytest.mark.parametrize("metrics", [{"train/loss": 0.5, "train/new": 1.0}, {"train/loss": 0.5}])
def test_a_full_disk_leaves_the_rows_that_are_there(monkeypatch, metrics):
    logger = run_loggers(".")[1]
    logger.log_metrics({"train/loss": 0.25}, step=1)

    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", fail)
        patch.setattr(Path, "open", fail)
        with pytest.raises(OSError, match="No space"):
            logger.log_metrics(metrics, step=2)
    assert csv_rows(Path(logger.log_dir)) == [{"step": "1", "train/loss": "0.25"}]
    assert not list(Path(logger.log_dir).glob(".*"))


def test_what_joins_the_last_row_after_a_resume_replaces_it():
    logger = run_loggers(".")[1]
    logger.log_metrics({"train/loss": 0.25, "eval/return_mean": 1.0}, step=1)
    logger.log_metrics({"train/loss": 0.5, "eval/return_mean": 123456.0}, step=2)
    again = run_loggers(".", 0, resume_step=2)[1]
    again.log_metrics({"eval/return_mean": 2.0}, step=2)
    again.log_metrics({"train/loss": 0.75}, step=3)
    again.log_metrics({"eval/return_mean": 4.0}, step=3)
    assert csv_rows(RUN) == [
        {"step": "1", "train/loss": "0.25", "eval/return_mean": "1.0"},
        {"step": "2", "train/loss": "0.5", "eval/return_mean": "2.0"},
        {"step": "3", "train/loss": "0.75", "eval/return_mean": "4.0"},
    ]
