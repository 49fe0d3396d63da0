"""Signals and lost ranks: real processes, real signals."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from lightning.pytorch import Callback

from ppo_lightning import RunCheckpoint
from tests.commands import LAST, REPOSITORY, load
from tests.runs import fit

SLOW = [
    *("fit", "--data.env=GymnasiumEnv", "--data.num_envs=2", "--data.num_steps=50", "--data.num_minibatches=2"),
    *("--data.update_epochs=1", "--data.total_timesteps=1000000", "--evaluation.num_episodes=1"),
    *("--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--summary.log_freq=0"),
    *("--model.network=ActorCritic", "--model.network.encoder=MLPEncoder", "--model.network.encoder.hidden_sizes=[8]"),
]
TWO = ["--trainer.devices=2", "--trainer.strategy=ddp"]


def slow(**arguments):
    """The slow environment's flags."""
    given = ",".join(f"{name}: {value}" for name, value in arguments.items())
    return [*SLOW, "--data.env.id=tests.tasks:Slow-v0", f"--data.env.kwargs={{{given}}}"]


class Run:
    """A command in a session of its own, of which nothing is left behind."""

    def __init__(self, *args, program=("-m", "ppo_lightning"), **environment):
        cleared = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
        environment = cleared | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"} | environment
        self.out, self.err = Path(f"out_{id(self)}"), Path(f"err_{id(self)}")
        with self.out.open("w") as out, self.err.open("w") as err:
            self.process = subprocess.Popen(
                [sys.executable, *program, *map(str, args)],
                env=environment,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def until(self, condition, timeout=60):
        """Wait for it."""
        deadline = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < deadline, self.err.read_text()
            time.sleep(0.05)

    def trains(self):
        """Wait for a checkpoint, and into the next rollout."""
        self.until(lambda: LAST.is_file() or self.process.poll() is not None)
        time.sleep(0.3)
        assert self.process.poll() is None, self.err.read_text()
        return self

    def pids(self):
        """Of its session, zombies aside; the command itself first."""
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                state, _, _, session = stat.read_text().rpartition(")")[2].split()[:4]
                if int(session) == self.process.pid and state != "Z":
                    found.append(int(stat.parent.name))
        return sorted(found, key=lambda pid: (pid != self.process.pid, pid))

    def ended(self, timeout=30):
        """Its exit code; after it, nothing of it is left."""
        code = self.process.wait(timeout)
        self.until(lambda: not self.pids(), 15)
        return code

    def said(self):
        """The lines on standard error, warnings and Lightning's notes aside."""
        lines = [line for line in self.err.read_text().splitlines() if line.strip()]
        assert not any("Traceback" in line for line in lines), "\n".join(lines)
        return [line for line in lines if "Terminated" in line or "error:" in line]


def env_steps():
    return load(LAST)["RolloutDataModule"]["env_steps"]


def check_terminated(run, name="SIGTERM"):
    (line,) = run.said()
    assert line == (
        f"Terminated by {name} after {env_steps():,} environment steps. "
        f"Continue with: ppo-lightning fit --ckpt_path {LAST}"
    )


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_sigterm_ends_a_rollout_in_order(vectorization):
    with Run(*slow(), f"--data.env.vectorization={vectorization}").trains() as run:
        for _ in range(2):  # a second one changes nothing
            run.process.send_signal(signal.SIGTERM)
        assert run.ended() == 143
        check_terminated(run)


class Handlers(Callback):
    """Notes SIGTERM's handler, here and in a worker process forked off; and how a signal to that one is taken."""

    def __init__(self, before):
        self.before = before

    def on_train_start(self, trainer, pl_module):
        self.here = signal.getsignal(signal.SIGTERM)
        worker = os.fork()
        if worker == 0:
            os._exit(int(signal.getsignal(signal.SIGTERM) != self.before or signal.set_wakeup_fd(-1) != -1))
        self.code = os.waitpid(worker, 0)[1]


def test_signals_are_handled_in_this_process_and_during_training_only(tmp_path):
    before = [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)]
    handlers = Handlers(before[1])
    fit(callbacks=[RunCheckpoint(), handlers], enable_checkpointing=True, folder=tmp_path)
    assert handlers.here not in before
    assert handlers.code == 0
    assert [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)] == before
    assert signal.set_wakeup_fd(-1) == -1


def test_sigterm_while_the_main_thread_hangs():
    with Run(*slow(then="hang")) as run:
        run.until(lambda: "hangs" in run.out.read_text())
        run.process.send_signal(signal.SIGTERM)
        assert run.ended() == 143
        check_terminated(run)


@pytest.mark.parametrize("child", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_sigterm_to_one_of_two_ranks_ends_both(child):
    with Run(*slow(), *TWO).trains() as run:
        os.kill(run.pids()[int(child)], signal.SIGTERM)
        assert run.ended() == 143
        check_terminated(run)


def test_ctrl_c_to_the_first_of_two_ranks_ends_both():
    with Run(*slow(), *TWO).trains() as run:
        run.process.send_signal(signal.SIGINT)
        assert run.ended() == 130
        assert not run.said()
        assert run.out.read_text().count("Continue with: ppo-lightning fit --ckpt_path") == 1


@pytest.mark.parametrize(("rank", "why"), [(1, "was killed by signal 9 (SIGKILL)"), (0, "ended without a word")])
def test_a_killed_rank_ends_the_other(rank, why):
    with Run(*slow(), *TWO).trains() as run:
        os.kill(run.pids()[rank], signal.SIGKILL)
        assert run.ended() == (-9 if rank == 0 else 1)
        (line,) = run.said()
        assert line == f"ppo-lightning: error: Rank {rank} {why}. Continue with: ppo-lightning fit --ckpt_path {LAST}"


def test_an_error_of_one_rank_is_told_by_the_other():
    with Run(*slow(then="nan", after=200, rank=1), *TWO) as run:
        assert run.ended(60) == 1
        lines = run.said()
        assert len(lines) == 2
        assert sum("Rank 1 ended with an error: " in line for line in lines) == 1
        assert all("is not finite" in line for line in lines)


def test_slurm_requeues_on_its_signal():
    Path("bin").mkdir()
    Path("bin/scontrol").write_text('#!/bin/sh\necho "$@" >> scontrol_calls\n')
    Path("bin/scontrol").chmod(0o755)
    slurm = {"JOB_ID": 7, "NTASKS": 1, "NTASKS_PER_NODE": 1, "PROCID": 0, "LOCALID": 0, "NODEID": 0, "JOB_NAME": "ppo"}
    slurm |= {"ARRAY_JOB_ID": 5, "ARRAY_TASK_ID": 2}
    environment = {f"SLURM_{name}": str(value) for name, value in slurm.items()}
    environment["PATH"] = f"{Path('bin').absolute()}:{os.environ['PATH']}"
    with Run(*slow(), **environment).trains() as run:
        run.process.send_signal(signal.SIGUSR1)
        assert run.ended() == 138
        (line,) = run.said()
        steps = env_steps()
        assert line == f"Terminated by SIGUSR1 after {steps:,} environment steps. SLURM job 5_2 is queued again."
    assert Path("scontrol_calls").read_text() == "requeue 5_2\n"
    assert not list(Path().glob("hpc_ckpt*"))
