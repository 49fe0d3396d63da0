"""A Trainer that does nothing but train."""

from __future__ import annotations

import time
from typing import Any

from lightning.pytorch import Callback, Trainer


def bare_trainer(**settings: Any) -> Trainer:
    """On the CPU until the data ends, gradients clipped at 0.5: no logger, checkpoint, progress bar or summary."""
    return Trainer(
        **{
            "max_epochs": -1,
            "accelerator": "cpu",
            "gradient_clip_val": 0.5,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            **settings,
        }
    )


class Iterations(Callback):
    """When each iteration ended, in seconds."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_epoch_end(self, *_: Any) -> None:
        """Look at the clock."""
        self.ends.append(time.perf_counter())


class ProcessorTime(Callback):
    """The processor time of training alone, without what is done once before it."""

    seconds = 0.0

    def on_train_start(self, *_: Any) -> None:
        """Begin."""
        self._begin = time.process_time()

    def on_train_end(self, *_: Any) -> None:
        """End."""
        self.seconds = time.process_time() - self._begin
