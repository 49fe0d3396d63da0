"""What happens when training is ended from outside: by a signal, by SLURM, or by a rank that dies."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from ppo_lightning.callbacks.fault_watch import FaultWatch
from ppo_lightning.callbacks.saving import SnapshotCheckpoint, checkpoint_folder, relative_path
from ppo_lightning.callbacks.schedule import env_steps
from ppo_lightning.core.errors import check_range


class FaultHandling(Callback):
    """Ends training in order on Ctrl-C, SIGTERM and SLURM's requeue signal, and on all ranks when one is lost.

    The newest snapshot of :class:`RunCheckpoint` is written, one line says how to continue, and the exit code is
    128 + the signal's number (143 for SIGTERM), or 1 for a lost rank. Signals are handled during ``fit`` only;
    afterwards the handlers are what they were.

    Args:
        rank_timeout: seconds without a sign of life after which a rank is lost. Raise it if a simulator keeps the
            whole process from running for so long at a time.
    """

    _trainings = 0  # of this process; ranks train the same number of times

    def __init__(self, rank_timeout: float = 30) -> None:
        check_range("--faults.rank_timeout", rank_timeout, 5)
        self.rank_timeout = rank_timeout
        self._watch: FaultWatch | None = None
        self._trainer: Any = None
        self._folder: Path | None = None
        self._steps = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Start to watch; Lightning's own signal handling stays away."""
        if stage != "fit":
            return
        FaultHandling._trainings += 1
        # torchrun may keep one store over its restarts, where the ranks before left their keys
        is_kept = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") if is_kept else "0"
        prefix = f"ppo-lightning/{restart}/{FaultHandling._trainings}"
        self._trainer, self._folder = trainer, None
        self._watch = FaultWatch(trainer, self._flush, lambda: self._steps, self.rank_timeout, prefix)
        self._watch.start()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember where checkpoints are: later, with a rank that is lost, nobody can be asked."""
        self._folder = checkpoint_folder(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count what the newest snapshot holds."""
        self._steps = env_steps(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Tell the other ranks, and write the newest snapshot."""
        if self._watch is not None:
            self._watch.unwind(exception)
            self._flush()

    def _flush(self) -> Path | None:
        """The checkpoint to continue from, on every rank; the first one writes it."""
        for callback in self._trainer.callbacks:
            path = callback.flush() if isinstance(callback, SnapshotCheckpoint) else None
            if path is not None:
                return Path(relative_path(path))
        last = self._folder / "last.ckpt" if self._folder is not None else None
        return Path(relative_path(last)) if last is not None and last.is_file() else None
