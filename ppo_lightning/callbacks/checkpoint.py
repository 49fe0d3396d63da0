"""Checkpoints at the ends of iterations, the moments when no half-used rollout exists."""

from __future__ import annotations

import copy
import functools
import threading
import time
from pathlib import Path
from typing import Any, Literal, Optional

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from ppo_lightning.callbacks.faults import FaultHandling
from ppo_lightning.callbacks.monitor import check_monitors, is_any_evaluation_fresh
from ppo_lightning.callbacks.saving import (
    SnapshotCheckpoint,
    checkpoint_folder,
    relative_path,
    report_failed_save,
    save_whole,
)
from ppo_lightning.callbacks.schedule import crossed, env_steps, is_last_iteration
from ppo_lightning.core.errors import check_range
from ppo_lightning.core.files import reason_of
from ppo_lightning.core.snapshot import Snapshot, take_snapshot

_SECONDS_BETWEEN_SAVES = 2.0


class RunCheckpoint(SnapshotCheckpoint):
    """Keeps ``last.ckpt``, and ``step_<n>.ckpt`` every ``save_freq``.

    The end of every iteration is captured in memory, on all ranks and whole. It is written at most every two seconds,
    and at once when the run ends in any way that leaves it the time: a signal, an error, a lost rank.

    Args:
        save_freq: environment steps between the checkpoints that are kept; 0 keeps none but last and best.
    """

    def __init__(self, save_freq: int = 0) -> None:
        check_range("--checkpoint.save_freq", save_freq, 0)
        self.save_freq = save_freq
        self._folder: Path | None = None
        self._checkpoint_io: Any = None
        self._snapshot: Snapshot | None = None
        self._written: Snapshot | None = None
        self._written_at = 0.0
        self._writing = threading.RLock()  # a signal may come while its own thread writes
        self._saw_evaluation = False

    # -- Lightning's hooks

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Become the last callback: a snapshot holds what the others remember of the iteration.

        And bring along what flushes it on a signal, where that is not there.
        """
        parts: Any = trainer
        others = [other for other in parts.callbacks if other is not self]
        if not any(isinstance(other, FaultHandling) for other in others):
            others.append(FaultHandling())
            others[-1].setup(trainer, pl_module, stage)  # Lightning goes through the list of before
        parts.callbacks = [*others, self]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the folder: a signal or a lost rank leaves no time for it."""
        self._folder = checkpoint_folder(trainer)
        self._checkpoint_io = trainer.strategy.checkpoint_io
        self._snapshot = self._written = None

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Capture the iteration, and write what is due."""
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        self._snapshot = take_snapshot(trainer, env_steps(trainer))
        self._saw_evaluation = is_any_evaluation_fresh(trainer)
        if self._snapshot is None:
            return
        if self.save_freq and crossed(trainer, self.save_freq):
            self._write(self._snapshot, f"step_{self._snapshot.env_steps}.ckpt")
        is_due = time.monotonic() - self._written_at >= _SECONDS_BETWEEN_SAVES
        if is_due or self._saw_evaluation or is_last_iteration(trainer):
            self.flush()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the end, with an evaluation that came after the last iteration's."""
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        if is_any_evaluation_fresh(trainer) and not self._saw_evaluation:
            self._snapshot = take_snapshot(trainer, env_steps(trainer))
        self.flush(is_last_chance=True)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Write the newest snapshot, and say how an interrupted run goes on."""
        last = self.flush()
        if isinstance(exception, KeyboardInterrupt) and last is not None:
            print(f"\nInterrupted. Continue with: ppo-lightning fit --ckpt_path {relative_path(last)}", flush=True)

    # -- writing

    def flush(self, is_last_chance: bool = False) -> Path | None:
        """Write the newest snapshot to ``last.ckpt`` unless it is there already; the path if the file is that one.

        Without a collective, so that it can be called in any trouble and from any thread. Only rank 0 writes. A file
        that cannot be written is a warning.

        Raises:
            TrainingError: it could not be written, and this was the last chance.
        """
        with self._writing:
            snapshot = self._snapshot
            if snapshot is None or self._folder is None:
                return None
            if snapshot is not self._written:
                self._written_at = time.monotonic()  # also of a failure: the next try is as far off as the next save
                if not self._write(snapshot, "last.ckpt", is_last_chance):
                    return None
                self._written = snapshot
            return self._folder / "last.ckpt"

    def _write(self, snapshot: Snapshot, name: str, is_last_chance: bool = False) -> bool:
        assert self._folder is not None
        try:
            self._checkpoint_io.save_checkpoint(snapshot.checkpoint, self._folder / name)
        except OSError as error:
            report_failed_save(self._folder / name, reason_of(error), is_last_chance)
            return False
        return True


_BOOKKEEPING = (
    *("best_model_path", "best_model_score", "best_k_models", "kth_best_model_path", "kth_value", "current_score"),
    *("_last_global_step_saved", "_last_checkpoint_saved"),
)


class _NotSavedError(Exception):
    """On all ranks, after the warning."""


class BestCheckpoint(ModelCheckpoint):
    """Lightning's ``ModelCheckpoint`` for the best parameters, acting only when an evaluation is fresh.

    The stock one acts every epoch and would save parameters that were never evaluated under a stale score.

    Args:
        monitor: ``eval/return_mean``, ``eval/<split>/return_mean`` or another metric of an evaluation.
        mode: whether more (``max``) or less (``min``) is better.
        filename: without its ending; by default ``best``, ``best_<split>`` or ``best_<split>_<metric>``.
    """

    waits_for_evaluation = True
    _is_last_chance = False

    def __init__(
        self,
        monitor: str = "eval/return_mean",
        mode: Literal["min", "max"] = "max",
        filename: Optional[str] = None,
    ) -> None:
        super().__init__(
            monitor=monitor,
            mode=mode,
            filename=filename or _best_name(monitor),
            save_top_k=1,
            enable_version_counter=False,
            save_on_train_epoch_end=True,
        )

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Look at the monitor before any work."""
        check_monitors(trainer)
        super().setup(trainer, pl_module, stage)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the best score, also where the run's folder was moved or is named from another place."""
        best = Path(self.dirpath or "") / Path(state_dict["best_model_path"]).name
        if best.is_file():
            paths = {name: str(best) for name in ("best_model_path", "kth_best_model_path") if state_dict[name]}
            models = {str(best): score for score in state_dict["best_k_models"].values()}
            state_dict = {**state_dict, **paths, "best_k_models": models, "dirpath": self.dirpath}
        super().load_state_dict(state_dict)
        self.current_score = state_dict.get("current_score")  # which Lightning saves and forgets

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare and save, if the score is of these parameters; what could not be saved is not the best."""
        if not is_any_evaluation_fresh(trainer, self.monitor):
            return
        before = {name: copy.copy(getattr(self, name)) for name in _BOOKKEEPING}
        try:
            super().on_train_epoch_end(trainer, pl_module)
        except _NotSavedError:
            vars(self).update(before)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare an evaluation that came after the last iteration's end; to compare twice changes nothing."""
        self._is_last_chance = True
        try:
            self.on_train_epoch_end(trainer, pl_module)
        finally:
            self._is_last_chance = False

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        save = functools.partial(super()._save_checkpoint, trainer, filepath)
        if not save_whole(trainer, Path(filepath), save, self._is_last_chance):
            raise _NotSavedError


def _best_name(monitor: str) -> str:
    """``best_val`` for ``eval/val/return_mean``."""
    parts = monitor.removeprefix("eval/").split("/")
    return "_".join(["best", *(part for part in parts if part != "return_mean")])
