"""Environment steps as the x axis of what Lightning's own parts log."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class EnvStepAxis(Callback):
    """Lets ``self.log``, ``LearningRateMonitor`` and the like log at environment steps, as everything else here does.

    Lightning logs at its count of optimiser steps. Set to the environment steps at each border of iterations, it goes
    on by one a minibatch. It must be the first callback, for others to find the count set.
    """

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin at the steps so far."""
        self._set(trainer, 0)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End at the steps now; Lightning logs an epoch's metrics one below its count."""
        self._set(trainer, 1)

    def _set(self, trainer: Trainer, offset: int) -> None:
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        trainer.fit_loop.epoch_loop._batches_that_stepped = datamodule.env_steps + offset
