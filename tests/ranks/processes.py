"""Runs in processes of their own, one a rank."""

import os
import signal
import socket
import subprocess
import sys

from tests.commands import REPOSITORY

TWO_RANKS = ["--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.accelerator=cpu"]


def start(*command):
    """A program of this Python with its ranks in one process group; one thread each."""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(started, timeout=120):
    """``(return code, standard output, standard error)``; one that hangs is killed with all of its ranks."""
    try:
        out, err = started.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(started.pid, signal.SIGKILL)
        raise
    return started.returncode, out, err


def process(*args, timeout=120, with_errors=False):
    """Standard output of a command that starts its ranks itself."""
    code, out, err = finish(start("-m", "ppo_lightning", *args), timeout)
    assert code == 0, err
    return out + err if with_errors else out


def torchrun(*args, timeout=120):
    """Standard output of a command on two ranks that torchrun starts."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    rendezvous = ["--nproc-per-node=2", "--rdzv-backend=c10d", f"--rdzv-endpoint={address}", "--max-restarts=0"]
    command = ["-m", "torch.distributed.run", *rendezvous, "-m", "ppo_lightning", *args]
    code, out, err = finish(start(*command), timeout)
    assert code == 0, err
    return out
