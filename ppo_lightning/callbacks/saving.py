"""Where checkpoints are, saving one on all ranks, and what a run does when it cannot be written."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Union

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from ppo_lightning.core.errors import TrainingError
from ppo_lightning.core.files import reason_of
from ppo_lightning.loggers import run_folder_of


class SnapshotCheckpoint(Checkpoint):
    """A callback that keeps the newest iteration in memory and can write it in any trouble."""

    @abstractmethod
    def flush(self) -> Path | None:
        """Write it unless it is written; the checkpoint to continue from, where this rank knows one."""


def save_whole(trainer: Trainer, path: Path, save: Callable[[], None], is_last_chance: bool = False) -> bool:
    """Save on all ranks; whether the file was written, the same on each.

    A full disk ends no training, which may well outlast it: the file of before stays, and the next save tries again.

    Args:
        trainer: what is saved.
        path: the file.
        save: how; ends in the barrier of ``trainer.save_checkpoint``.
        is_last_chance: no save comes after this one.

    Raises:
        TrainingError: the last one failed.
    """
    reason = ""
    try:
        save()
    except OSError as error:
        reason = reason_of(error)
        trainer.strategy.barrier("Trainer.save_checkpoint")  # in which the other ranks wait
    reason = trainer.strategy.broadcast(reason)
    if reason:
        report_failed_save(path, reason, is_last_chance)
    return not reason


def report_failed_save(path: Path, reason: str, is_last_chance: bool = False) -> None:
    """Warn, or end a run that has no other chance to save.

    Raises:
        TrainingError: it was the last chance.
    """
    if is_last_chance:
        raise TrainingError(
            f"The checkpoint {path} cannot be written ({reason}): training is over and its end is not saved; make the "
            "folder writable or free some space, then continue from the checkpoint before with --resume=auto."
        )
    rank_zero_warn(
        f"The checkpoint {path} cannot be written ({reason}): the file before it, if there is one, stays, and the next "
        "save tries again."
    )


def checkpoint_folder(trainer: Trainer) -> Path:
    """``checkpoints/`` in the run's folder, or in the default root where there is no logger."""
    return run_folder_of(trainer) / "checkpoints"


def relative_path(path: Union[str, Path]) -> str:
    """From here if it lies below, else as it is."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative
