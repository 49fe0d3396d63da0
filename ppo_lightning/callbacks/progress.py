"""One progress line in environment steps."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from tqdm.auto import tqdm

from ppo_lightning.callbacks.schedule import env_steps


class EnvStepProgressBar(ProgressBar):
    """Environment steps of the total, steps/s, the mean return of the last 100 episodes, time left."""

    def __init__(self) -> None:
        super().__init__()
        self._bar: Any = None
        self._enabled = True

    def disable(self) -> None:
        """Show nothing (Lightning does this on all ranks but the first)."""
        self._enabled = False

    def enable(self) -> None:
        """Show again."""
        self._enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the line."""
        super().on_train_start(trainer, pl_module)
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        self._bar = tqdm(
            total=datamodule.total_timesteps,
            initial=env_steps(trainer),
            unit=" steps",
            unit_scale=True,
            dynamic_ncols=True,
            disable=not self._enabled,
            file=sys.stdout,
            bar_format="{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} steps, {rate_fmt}{postfix}, {remaining} left",
        )

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Move the line on by an iteration."""
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        if datamodule.recent_returns:
            self._bar.set_postfix_str(f"return {np.mean(datamodule.recent_returns):.4g}", refresh=False)
        self._bar.update(env_steps(trainer) - self._bar.n)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Close the line before anything is said of the exception."""
        self._close()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Close the line."""
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print above the line."""
        tqdm.write(" ".join(str(arg) for arg in args), file=sys.stdout)
