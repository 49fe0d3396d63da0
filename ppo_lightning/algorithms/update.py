"""What one iteration's update leaves behind: its statistics, and a clean end in the checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ppo_lightning.core.errors import TrainingError


class UpdateStatistics:
    """Gathers one iteration's numbers as tensors; nothing is read back from the device before its end."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._minibatches: list[Tensor] = []
        self._rollout: dict[str, Tensor] = {}

    @property
    def count(self) -> int:
        """Minibatches so far."""
        return len(self._minibatches)

    def clear(self) -> None:
        """Begin a new iteration."""
        self._minibatches = []
        self._rollout = {}

    def add_rollout(self, name: str, value: Tensor) -> None:
        """A number of the whole rollout."""
        self._rollout[name] = value

    def add_minibatch(self, ratio: Tensor, values: dict[str, Tensor]) -> None:
        """The numbers of one minibatch; of the first also how far its ratio is from 1."""
        if not self._minibatches:
            self._names = list(values)
            self._rollout["train/first_ratio_error"] = (ratio - 1).abs().max()
        self._minibatches.append(torch.stack([value.detach() for value in values.values()]))

    def check_finite(self, env_steps: int) -> None:
        """Raise :class:`TrainingError` naming the first minibatch whose numbers are not finite."""
        finite = torch.stack(self._minibatches).isfinite()
        if bool(finite.all()):
            return
        minibatch = int((~finite.all(dim=1)).nonzero()[0])
        names = [name for name, is_finite in zip(self._names, finite[minibatch].tolist()) if not is_finite]
        raise TrainingError(
            f"{', '.join(names)} became NaN or infinite in minibatch {minibatch} of the update at {env_steps} "
            "environment steps: training stopped and this update was not saved; lower --model.learning_rate or set "
            "--trainer.gradient_clip_val, then continue with --ckpt_path from the last checkpoint."
        )

    def means(self, mean_over_ranks: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """The mean of each number over the iteration's minibatches and all ranks."""
        means = torch.stack(self._minibatches).mean(dim=0)
        values = torch.cat([means, *[value.reshape(1).to(means) for value in self._rollout.values()]])
        return dict(zip([*self._names, *self._rollout], mean_over_ranks(values).tolist()))


def complete_epoch(fit_loop: dict[str, Any]) -> None:
    """Rewrite the state of Lightning's loops, in place, as between two epochs.

    Lightning would take an iteration that a KL stop cut short, or one whose end is being saved, for an epoch to be
    continued; but an iteration's rollout is gone, so the next one begins.
    """
    epochs = fit_loop["epoch_progress"]
    for part in ("total", "current"):
        epochs[part] = dict.fromkeys(epochs[part], epochs[part]["processed"])
    batches = fit_loop["epoch_loop.batch_progress"]
    batches["total"] = dict.fromkeys(batches["total"], batches["total"]["ready"])
    batches["current"] = dict.fromkeys(batches["current"], 0)
    batches["is_last_batch"] = False
