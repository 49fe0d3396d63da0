"""When a callback is due, in iterations or environment steps."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer


def env_steps(trainer: Trainer) -> int:
    """Environment steps of the run so far, over all ranks."""
    datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
    return int(datamodule.env_steps)


def crossed(trainer: Trainer, every_n_env_steps: int) -> bool:
    """Whether the iteration that just ended reached or passed a multiple of ``every_n_env_steps``."""
    datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
    now = int(datamodule.env_steps)
    return now // every_n_env_steps > (now - int(datamodule.steps_per_iteration)) // every_n_env_steps


def is_last_iteration(trainer: Trainer) -> bool:
    """Whether training ends with the iteration that just ended."""
    loop = trainer.fit_loop
    progress: Any = loop.epoch_progress.current
    processed, max_epochs = progress.processed, trainer.max_epochs
    epochs_done = max_epochs is not None and max_epochs != -1 and processed >= max_epochs
    steps_done = trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps
    return bool(trainer.should_stop or epochs_done or steps_done)
