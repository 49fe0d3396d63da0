"""Saving a checkpoint on all ranks, and what a run does when it cannot be written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from ppo_lightning.core.errors import TrainingError


def save_whole(
    trainer: Trainer, path: Path, is_last_chance: bool = False, save: Callable[[], None] | None = None
) -> bool:
    """Save on all ranks; whether the file was written, the same on each.

    A full disk ends no training, which may well outlast it: the file of before stays, and the next save tries again.

    Args:
        trainer: what is saved.
        path: the file.
        is_last_chance: no save comes after this one.
        save: how, where it is not ``trainer.save_checkpoint(path)``; ends in its barrier.

    Raises:
        TrainingError: the last one failed.
    """
    reason = ""
    try:
        if save is None:
            trainer.save_checkpoint(path, weights_only=False)
        else:
            save()
    except OSError as error:
        reason = describe(error)
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


def describe(error: OSError) -> str:
    """The reason alone."""
    return error.strerror or str(error) or type(error).__name__
