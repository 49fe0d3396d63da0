"""The ranks that Lightning's launcher started as children of this process, and the process that started this one."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from typing import Any

from lightning.fabric.plugins.environments import LightningEnvironment, TorchElasticEnvironment
from lightning.pytorch import Trainer

from ppo_lightning.callbacks.heartbeat import Fault

_SECONDS_TO_END = 8.0
_OBSERVER = "child-process-observer"


class ChildRanks:
    """Watches and ends them in the place of Lightning's observer, which kills this process too when one ends."""

    def __init__(self, trainer: Trainer) -> None:
        launcher: Any = trainer.strategy.launcher
        self._processes: list[subprocess.Popen[Any]] = list(getattr(launcher, "procs", []))
        self._rank = trainer.global_rank
        environment: Any = vars(trainer)["_accelerator_connector"].cluster_environment
        is_child = isinstance(environment, LightningEnvironment) and trainer.local_rank > 0
        self._parent = os.getppid() if is_child or isinstance(environment, TorchElasticEnvironment) else None
        self._orphaned = Fault(rank=0, text="ended without a word") if is_child else Fault(text="torchrun ended")
        self._looks_after_end = 0

    def take_over(self) -> None:
        """Let Lightning's observer look away."""
        for thread in self._observers():
            thread._run = lambda: False

    def hand_back(self) -> None:
        """Let it look again."""
        for thread in self._observers():
            vars(thread).pop("_run", None)

    @staticmethod
    def _observers() -> list[Any]:
        return [thread for thread in threading.enumerate() if thread.name == _OBSERVER]

    def explain(self, found: Fault | None) -> Fault | None:
        """What the heartbeats found, with more about it where this process knows more; else what it sees itself.

        A child that ended with an error of its own has said so to the heartbeats, which take a moment to hear it.
        """
        if found is not None and (found.rank < 0 or found.text.startswith("ended with an error")):
            return found
        for index, process in enumerate(self._processes):
            code = process.poll()
            if not code:
                continue
            rank = self._rank + 1 + index
            self._looks_after_end += 1
            if code < 0 or self._looks_after_end > 2 or (found is not None and found.rank == rank):
                return Fault(rank=rank, text=_describe(code))
        if found is None and self._parent is not None and os.getppid() != self._parent:
            return self._orphaned
        return found

    def signal(self, signum: int) -> None:
        """Pass a signal on."""
        for process in self._processes:
            with contextlib.suppress(OSError):
                process.send_signal(signum)

    def end(self) -> None:
        """Wait until all have ended; kill those that do not."""
        deadline = time.monotonic() + _SECONDS_TO_END
        for process in self._processes:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _describe(code: int) -> str:
    if code > 0:
        return f"ended with exit code {code}"
    with contextlib.suppress(ValueError):
        return f"was killed by signal {-code} ({signal.Signals(-code).name})"
    return f"was killed by signal {-code}"
