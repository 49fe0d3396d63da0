"""Logging on the one x axis of this package: environment steps, as exact integers."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from lightning.pytorch import Trainer


def log_metrics(trainer: Trainer, metrics: Mapping[str, float], env_steps: int) -> None:
    """Give ``metrics`` to every logger at ``env_steps``, and to the callbacks that monitor them.

    ``self.log`` would count optimiser steps, in float32 where told otherwise: exact only up to 2²⁴.
    """
    for logger in trainer.loggers:
        logger.log_metrics(dict(metrics), step=env_steps)
    trainer.callback_metrics.update({name: torch.tensor(value) for name, value in metrics.items()})
