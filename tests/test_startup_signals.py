"""SIGTERM before training has begun: the run ends, and leaves nothing behind."""

import itertools
import os
import signal
import time
from pathlib import Path

import pytest
from lightning.pytorch import Callback

from tests.ranks.processes import TWO_RANKS
from tests.ranks.test_torchrun import TORCHRUN, ranks_of
from tests.test_faults import Run, slow

HALT = "--trainer.callbacks={class_path: tests.test_startup_signals.Halt, init_args: {where: %s}}"


class Halt(Callback):
    """Says that the start-up has come this far, and stays there."""

    def __init__(self, where):
        self.where = where
        self._halt("init")

    def _halt(self, where):
        if where == self.where:
            Path(f"at_{where}_{os.environ.get('LOCAL_RANK', 0)}").touch()
            time.sleep(60)

    def setup(self, trainer, pl_module, stage):
        self._halt("setup")

    def on_fit_start(self, trainer, pl_module):
        self._halt("fit_start")


def have_both_come(where):
    return all(Path(f"at_{where}_{rank}").exists() for rank in (0, 1))


def check_ended(run):
    """By the signal itself, or in order with its exit code; no traceback."""
    assert run.ended(30) in (-signal.SIGTERM, 143)
    assert "Traceback" not in run.err.read_text()
    assert not list(Path().glob("**/*.ckpt*"))


@pytest.mark.parametrize("where", [None, "init", "setup", "fit_start"])
def test_sigterm_during_the_start_up(where):
    with Run(*slow(), *([HALT % where] if where else [])) as run:
        if where is None:
            time.sleep(0.5)  # it imports
        else:
            run.until(Path(f"at_{where}_0").exists)
        run.process.send_signal(signal.SIGTERM)
        check_ended(run)


@pytest.mark.parametrize(
    ("where", "rank", "signum"),
    [
        ("setup", 0, signal.SIGTERM),
        ("fit_start", 1, signal.SIGTERM),
        *(
            pytest.param(where, rank, signum, marks=pytest.mark.slow)
            for where, rank, signum in [
                *(("setup", 1, signal.SIGTERM), ("fit_start", 0, signal.SIGTERM)),
                *itertools.product(("setup", "fit_start"), (0, 1), [signal.SIGKILL]),
            ]
        ),
    ],
)
def test_a_signal_to_one_of_two_ranks_during_the_start_up(where, rank, signum):
    with Run(*slow(), *TWO_RANKS, HALT % where) as run:
        run.until(lambda: have_both_come(where))
        os.kill(run.pids()[rank], signum)
        assert run.ended(15) != 0
        assert "Traceback" not in run.err.read_text()
        assert not list(Path().glob("**/*.ckpt*"))


def test_ranks_of_a_torchrun_that_is_killed_during_the_start_up():
    with Run("ppo_lightning", *slow(), *TWO_RANKS, HALT % "fit_start", program=TORCHRUN) as run:
        run.until(lambda: have_both_come("fit_start"))
        ranks = ranks_of(run.process).values()
        run.process.kill()
        run.until(lambda: not any(is_running(pid) for pid in ranks), 15)


def is_running(pid):
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"
