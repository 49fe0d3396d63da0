"""A Trainer that does nothing but train."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer


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
