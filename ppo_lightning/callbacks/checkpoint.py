"""Checkpoints at the ends of iterations, the moments when no half-used rollout exists."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, Literal, Optional, Union

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint

from ppo_lightning.callbacks.monitor import check_monitors, is_any_evaluation_fresh
from ppo_lightning.callbacks.schedule import crossed, env_steps, is_last_iteration
from ppo_lightning.core.errors import check_range
from ppo_lightning.loggers import run_folder_of

_SECONDS_BETWEEN_SAVES = 2.0


class RunCheckpoint(Checkpoint):
    """Keeps ``last.ckpt`` at most two seconds (and one iteration) behind, and ``step_<n>.ckpt`` every ``save_freq``.

    Args:
        save_freq: environment steps between the checkpoints that are kept; 0 keeps none but last and best.
    """

    def __init__(self, save_freq: int = 0) -> None:
        check_range("--checkpoint.save_freq", save_freq, 0)
        self.save_freq = save_freq
        self._saved_at = 0.0
        self._saved_evaluation = False

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save what is due."""
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        folder = checkpoint_folder(trainer)
        if self.save_freq and crossed(trainer, self.save_freq):
            save_whole(trainer, folder / f"step_{env_steps(trainer)}.ckpt")
        is_fresh = is_any_evaluation_fresh(trainer)
        # saving waits for all ranks, so it is the first one's clock that counts
        is_due = trainer.strategy.broadcast(time.monotonic() - self._saved_at >= _SECONDS_BETWEEN_SAVES)
        if is_fresh or is_due or is_last_iteration(trainer):
            save_whole(trainer, folder / "last.ckpt")
            self._saved_at = time.monotonic()
        self._saved_evaluation = is_fresh

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save an evaluation that came after the last iteration's end."""
        if is_any_evaluation_fresh(trainer) and not self._saved_evaluation and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            save_whole(trainer, checkpoint_folder(trainer) / "last.ckpt")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Say how an interrupted run goes on."""
        last = checkpoint_folder(trainer) / "last.ckpt"
        if isinstance(exception, KeyboardInterrupt) and trainer.is_global_zero and last.is_file():
            print(f"\nInterrupted. Continue with: ppo-lightning fit --ckpt_path {relative_path(last)}", flush=True)


class BestCheckpoint(ModelCheckpoint):
    """Lightning's ``ModelCheckpoint`` for the best parameters, acting only when an evaluation is fresh.

    The stock one acts every epoch and would save parameters that were never evaluated under a stale score.

    Args:
        monitor: ``eval/return_mean``, ``eval/<split>/return_mean`` or another metric of an evaluation.
        mode: whether more (``max``) or less (``min``) is better.
        filename: without its ending; by default ``best``, ``best_<split>`` or ``best_<split>_<metric>``.
    """

    waits_for_evaluation = True

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

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare and save, if the score is of these parameters."""
        if is_any_evaluation_fresh(trainer, self.monitor):
            super().on_train_epoch_end(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare an evaluation that came after the last iteration's end; to compare twice changes nothing."""
        self.on_train_epoch_end(trainer, pl_module)


def save_whole(trainer: Trainer, path: Path) -> None:
    """Save under another name first: an interrupted save leaves the file before it as it was."""
    part = path.with_suffix(".part")
    trainer.save_checkpoint(part, weights_only=False)
    if trainer.is_global_zero:
        part.replace(path)


def relative_path(path: Union[str, Path]) -> str:
    """From here if it lies below, else as it is."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


def checkpoint_folder(trainer: Trainer) -> Path:
    """``checkpoints/`` in the run's folder, or in the default root where there is no logger."""
    return run_folder_of(trainer) / "checkpoints"


def _best_name(monitor: str) -> str:
    """``best_val`` for ``eval/val/return_mean``."""
    parts = monitor.removeprefix("eval/").split("/")
    return "_".join(["best", *(part for part in parts if part != "return_mean")])
