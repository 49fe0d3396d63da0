"""What is said when training is ended from outside, and by which rank."""

from __future__ import annotations

import contextlib
import signal
import sys
from pathlib import Path
from typing import Any

from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch import Trainer

from ppo_lightning.callbacks.heartbeat import Fault
from ppo_lightning.callbacks.slurm import requeue


class FaultReport:
    """One sentence about a fault, with what to do next; asks SLURM for another run where the signal was for that.

    Args:
        trainer: whose rank speaks.
        environment: the cluster that it runs in.
    """

    def __init__(self, trainer: Trainer, environment: Any) -> None:
        self._trainer: Any = trainer
        self._environment = environment

    def describe(self, fault: Fault, path: Path | None, steps: int) -> str:
        """The sentence; ``path`` is the checkpoint to continue from, of so many environment steps."""
        where = f"Continue with: ppo-lightning fit --ckpt_path {path}" if path else "There is no checkpoint yet."
        if not fault.signum:
            what = f"Rank {fault.rank} {fault.text}" if fault.rank >= 0 else fault.text
            return f"{what}. {where}"
        if self._is_requeue(fault.signum):
            is_queued, words = requeue()
            where = words if is_queued else f"{words} {where}"
        name = signal.Signals(fault.signum).name
        how = "Interrupted" if fault.signum == signal.SIGINT else f"Terminated by {name}"
        return f"{how} after {steps:,} environment steps. {where}"

    def _is_requeue(self, signum: int) -> bool:
        slurm = self._environment if isinstance(self._environment, SLURMEnvironment) else None
        is_due = slurm is not None and slurm.auto_requeue and signum == slurm.requeue_signal
        return is_due and bool(self._trainer.is_global_zero)

    def is_spoken_here(self, fault: Fault) -> bool:
        """Whether this rank speaks of a lost one: the first, or where that is lost, one a machine."""
        if fault.rank != 0:
            return bool(self._trainer.is_global_zero)
        return bool(self._trainer.local_rank == (1 if self._trainer.node_rank == 0 else 0))

    def say(self, sentence: str) -> None:
        """Of a signal, on standard error of the first rank."""
        if self._trainer.is_global_zero:
            _print(f"\n{sentence}")

    def say_at_end(self, fault: Fault, sentence: str) -> None:
        """Of any fault, where the process ends without an exception that would say it."""
        if fault.signum:
            self.say(sentence)
        elif self.is_spoken_here(fault):
            _print(f"ppo-lightning: error: {sentence}")


def _print(line: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # the terminal may be gone
        print(line, file=sys.stderr, flush=True)
