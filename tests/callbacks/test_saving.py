"""What a run does when a checkpoint or a row of its curves cannot be written."""

import csv
import errno
import os
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint

from ppo_lightning import BestCheckpoint, RunCheckpoint, TrainingError
from ppo_lightning.callbacks import saving
from tests.callbacks.test_checkpoint import Scores, steps_in, train
from tests.commands import LAST, RUN, WALK, command, rows, sentence_of

SYNC = os.fsync


@pytest.fixture(autouse=True)
def _disk_of_before(monkeypatch):
    monkeypatch.setattr(os, "fsync", SYNC)


class FullDisk(Callback):
    """From ``first`` to ``last`` environment steps checkpoints of these names meet a full disk."""

    def __init__(self, first=0, last=10**9, names=("",)):
        self.first, self.last, self.names = first, last, names

    def on_train_epoch_end(self, trainer, pl_module):
        is_full = self.first <= trainer.datamodule.env_steps <= self.last
        os.fsync = self.fail if is_full else SYNC

    def fail(self, descriptor):
        name = os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))
        if any(part in name for part in self.names):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "lightning_logs/version_0/checkpoints"


@pytest.fixture
def warned(monkeypatch):
    messages = []
    monkeypatch.setattr(saving, "rank_zero_warn", messages.append)
    return messages


def test_a_run_outlasts_a_full_disk(tmp_path, folder, warned):
    train(tmp_path, 4, FullDisk(64, 96), RunCheckpoint(32))
    assert "step_64.ckpt cannot be written (No space left on device): the file before it" in warned[0]
    assert sorted(path.name for path in folder.iterdir()) == ["last.ckpt", "step_128.ckpt", "step_32.ckpt"]
    assert steps_in(folder / "last.ckpt") == 128


def test_the_end_of_a_run_that_cannot_be_saved_is_an_error(tmp_path, folder, warned):
    with pytest.raises(TrainingError, match=r"last.ckpt cannot be written \(No space left on device\)"):
        train(tmp_path, 3, FullDisk(96), RunCheckpoint())
    assert steps_in(folder / "last.ckpt") == 32


def best_of(callback):
    return float(callback.best_model_score), Path(callback.best_model_path).name, list(callback.best_k_models.values())


def test_a_best_checkpoint_that_was_not_written_is_not_the_best(tmp_path, folder, warned):
    """Scores 1, 5, 3, 2: the 5 cannot be saved, and so the 3 is the best whose parameters there are."""
    best = BestCheckpoint()
    train(tmp_path, 4, FullDisk(64, 64, ["best"]), Scores(1, 5, 3, 2), best, RunCheckpoint())
    assert len(warned) == 1
    assert "best.ckpt cannot be written" in warned[0]
    assert steps_in(folder / "best.ckpt") == 96
    assert best_of(best) == (3, "best.ckpt", [torch.tensor(3.0)])
    (state,) = (
        state
        for key, state in torch.load(folder / "last.ckpt", weights_only=True)["callbacks"].items()
        if "Best" in key
    )
    assert state["best_model_score"] == 3


def test_a_first_best_checkpoint_that_was_not_written_is_none(tmp_path, folder, warned):
    best = BestCheckpoint()
    train(tmp_path, 2, FullDisk(32, 32, ["best"]), Scores(5, 3), best, RunCheckpoint())
    assert len(warned) == 1
    assert steps_in(folder / "best.ckpt") == 64
    assert best.best_model_score == 3


def test_a_last_best_checkpoint_that_was_not_written_is_an_error(tmp_path, folder, warned):
    with pytest.raises(TrainingError, match=r"best.ckpt cannot be written"):
        train(tmp_path, 2, FullDisk(64, names=["best"]), Scores(1, 2), BestCheckpoint(), RunCheckpoint())
    assert steps_in(folder / "best.ckpt") == 32
    assert steps_in(folder / "last.ckpt") == 64


def test_lightnings_own_checkpoints_are_whole_too(tmp_path, folder):
    stock = ModelCheckpoint(dirpath=folder, filename="stock")
    with pytest.raises(OSError, match="No space left"):
        train(tmp_path, 3, FullDisk(64), stock)
    assert os.listdir(folder) == ["stock.ckpt"]
    assert steps_in(folder / "stock.ckpt") == 32


# -- curves


class FullRow(Callback):
    """The disk is full from the second iteration's end on, for the rows of ``metrics.csv``."""

    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.datamodule.env_steps >= 128:
            trainer.loggers[1].experiment.save = fail


def fail(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_row_that_cannot_be_written_ends_the_run_in_a_sentence():
    full = "--trainer.callbacks=tests.callbacks.test_saving.FullRow"
    sentence = sentence_of(command("fit", *WALK, full, "--data.total_timesteps=256"), code=1)
    for word in ("AppendingCSVLogger", str(RUN), "No space left on device", "--resume=auto", "free some space"):
        assert word in sentence
    assert steps_in(LAST) in (64, 128)


def test_a_disk_that_is_full_for_lightnings_own_files_is_a_sentence():
    callbacks = (
        "--trainer.callbacks=[tests.callbacks.test_saving.FullDisk, lightning.pytorch.callbacks.ModelCheckpoint]"
    )
    sentence = sentence_of(command("fit", *WALK, callbacks), code=1)
    for word in ("cannot be written", "No space left on device", "--resume=auto"):
        assert word in sentence


def test_other_errors_of_loggers_are_their_own(tmp_path):
    class Other(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            trainer.loggers[1].experiment.save = lambda: {}["a"]

    with pytest.raises(KeyError):
        train(tmp_path, 2, Other())


def test_rows_stay_whole(tmp_path):
    test_a_row_that_cannot_be_written_ends_the_run_in_a_sentence()
    with (RUN / "metrics.csv").open(newline="") as file:
        assert all(None not in row.values() for row in csv.DictReader(file))
    assert [int(row["step"]) for row in rows()] == [64, 128]
