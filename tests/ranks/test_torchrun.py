"""Ranks that are killed go on from the last checkpoint: bit for bit, as if nothing had happened."""

import os
import signal
import time
from pathlib import Path

import pytest

from benchmarks.kill_loop import compare
from tests.commands import LAST, RUN, WALK, rows
from tests.ranks.processes import TWO_RANKS, process
from tests.test_faults import Run

STROLL = [
    *(flag for flag in WALK if not flag.startswith(("--data.env.id", "--data.total_timesteps"))),
    *("--data.env.id=tests.tasks:Stroll-v0", "--data.total_timesteps=7680", "--evaluation.every_n_iterations=20"),
    *("--resume=auto", *TWO_RANKS),
]
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=3", "-m")
ENVIRONMENT = {"TORCH_CPP_LOG_LEVEL": "ERROR", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
SLOWLY = {"STROLL_SECONDS": "0.002"}


def ranks_of(torchrun):
    """The process ids that torchrun started, by rank; they have sessions of their own."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == torchrun.pid:
                environment = dict(line.partition("=")[::2] for line in (folder / "environ").read_text().split("\0"))
                found[int(environment["RANK"])] = int(folder.name)
        except (OSError, KeyError):  # it ended, or has not begun
            continue
    return found


def check_same_as_never_killed():
    process("fit", *STROLL, "--trainer.default_root_dir=whole")
    assert compare(Path("whole"), Path()) == []
    assert [folder.name for folder in RUN.parent.iterdir()] == ["version_0"]
    assert rows()[-1]["step"] == "7680"


@pytest.mark.slow
@pytest.mark.parametrize("rank", [1, 0])
def test_torchrun_restarts_all_when_one_is_killed(rank):
    with Run("ppo_lightning", "fit", *STROLL, program=TORCHRUN, **ENVIRONMENT, **SLOWLY).trains() as run:
        before = ranks_of(run.process)
        os.kill(before[rank], signal.SIGKILL)
        run.until(lambda: len(now := ranks_of(run.process)) == 2 and not set(now.values()) & set(before.values()))
        assert run.ended(120) == 0, run.err.read_text()
        assert "Restored all states from the checkpoint" in run.err.read_text()
    check_same_as_never_killed()


@pytest.mark.slow
def test_two_ranks_killed_together_go_on():
    for _ in range(2):
        saved = LAST.stat().st_mtime_ns if LAST.is_file() else 0
        with Run("fit", *STROLL, **SLOWLY) as run:
            run.until(lambda saved=saved: LAST.is_file() and LAST.stat().st_mtime_ns != saved)
            time.sleep(0.3)
            assert run.process.poll() is None, run.err.read_text()
            os.killpg(run.process.pid, signal.SIGKILL)
            assert run.ended() == -signal.SIGKILL
    process("fit", *STROLL)
    check_same_as_never_killed()
