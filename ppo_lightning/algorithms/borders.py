"""What happens at the borders of iterations before any other callback acts."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class IterationBorders(Callback):
    """The first callback: sets the x axis of Lightning's own parts, and finishes iterations that were cut short.

    ``self.log``, ``LearningRateMonitor`` and the like log at Lightning's count of optimiser steps. Set to the
    environment steps at each border of iterations, it goes on by one a minibatch: one x axis for everything.
    """

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin at the steps so far."""
        self._set_step(trainer, 0)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Give Lightning the batch size: ``self.log(…, on_epoch=True)`` would look for it row by row, and fail."""
        results: Any = trainer._results
        results.batch_size = len(batch)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End at the steps now; Lightning logs an epoch's metrics one below its count."""
        pl_module.finish_iteration()  # type: ignore[operator]
        self._set_step(trainer, 1)

    def _set_step(self, trainer: Trainer, offset: int) -> None:
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        trainer.fit_loop.epoch_loop._batches_that_stepped = datamodule.env_steps + offset
