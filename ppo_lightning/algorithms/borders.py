"""What happens at the borders of iterations and minibatches before any other callback acts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

_MINIBATCH_HOOKS = (
    *("on_train_batch_start", "on_before_zero_grad", "on_before_backward", "on_after_backward"),
    *("on_before_optimizer_step", "on_train_batch_end"),
)


def leave_out_empty_hooks(module: LightningModule, callbacks: Iterable[Callback]) -> None:
    """Let Lightning pass over the hooks of a minibatch that nobody wrote.

    It takes as long to call one that does nothing as the network takes for a layer, and calls six of every callback.
    """
    for owner, base in [(module, LightningModule), *((callback, Callback) for callback in callbacks)]:
        for name in _MINIBATCH_HOOKS:
            if getattr(type(owner), name, None) is getattr(base, name) and name not in vars(owner):
                setattr(owner, name, None)  # what can't be called is not


def bring_back_hooks(module: LightningModule, callbacks: Iterable[Callback]) -> None:
    """Undo :func:`leave_out_empty_hooks`."""
    for owner in (module, *callbacks):
        for name in _MINIBATCH_HOOKS:
            if vars(owner).get(name, name) is None:
                delattr(owner, name)


class IterationBorders(Callback):
    """The first callback: starts and finishes iterations, and sets the x axis of Lightning's own parts.

    ``self.log``, ``LearningRateMonitor`` and the like log at Lightning's count of optimiser steps. Set to the
    environment steps at each border of iterations, it goes on by one a minibatch: one x axis for everything.
    ``--trainer.log_every_n_steps`` counts optimiser steps as ever.
    """

    def __init__(self) -> None:
        self._log_every_n_steps = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember what the user set."""
        settings: Any = trainer
        self._log_every_n_steps = settings.log_every_n_steps

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin at the steps so far, with this iteration's learning rate."""
        pl_module.start_iteration()  # type: ignore[operator]
        self._set_step(trainer, 0)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Say whether this optimiser step is to be logged, which Lightning would read off the environment steps.

        And the batch size: ``self.log(…, on_epoch=True)`` would look for it row by row, and fail.
        """
        settings: Any = trainer
        every = self._log_every_n_steps
        settings.log_every_n_steps = int(every > 0 and (trainer.global_step + 1) % every == 0)
        settings._results.batch_size = len(batch)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End at the steps now; Lightning logs an epoch's metrics one below its count."""
        pl_module.finish_iteration()  # type: ignore[operator]
        self._set_step(trainer, 1)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Put back what the user set."""
        self._restore(trainer, pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Put back what the user set, and forget what the update that broke off was in the middle of."""
        pl_module.end_update()  # type: ignore[operator]
        self._restore(trainer, pl_module)

    def _restore(self, trainer: Trainer, pl_module: LightningModule) -> None:
        settings: Any = trainer
        bring_back_hooks(pl_module, settings.callbacks)
        if self._log_every_n_steps:
            settings.log_every_n_steps, self._log_every_n_steps = self._log_every_n_steps, 0

    def _set_step(self, trainer: Trainer, offset: int) -> None:
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        trainer.fit_loop.epoch_loop._batches_that_stepped = datamodule.env_steps + offset
