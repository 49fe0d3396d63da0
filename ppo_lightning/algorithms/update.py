"""What one iteration's update leaves behind: its statistics, and a clean end in the checkpoint."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ppo_lightning.core.errors import TrainingError
from ppo_lightning.functional.moments import exact_dtype, moments_of, pool_moments
from ppo_lightning.functional.shapes import check_same_shape

_Moments = list[list[float]]


class UpdateStatistics:
    """Gathers one iteration's numbers as tensors; nothing is read back or sent to other ranks before its end."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Begin a new iteration."""
        self._minibatches: list[tuple[tuple[str, ...], Tensor]] = []
        self._first_ratio_error: Tensor | None = None
        self._moments: list[Tensor] = []
        self._reports: list[Callable[[_Moments], dict[str, float]]] = []

    @property
    def count(self) -> int:
        """Minibatches so far."""
        return len(self._minibatches)

    def add_mean(self, name: str, x: Tensor) -> None:
        """Of the whole rollout, report the mean of ``x``, any shape."""
        self._add([x], lambda own: {name: own[0][1]})

    def add_spread(self, name: str, x: Tensor) -> None:
        """Of the whole rollout, report ``<name>_mean`` and ``<name>_std``."""
        self._add([x], lambda own: {f"{name}_mean": own[0][1], f"{name}_std": math.sqrt(own[0][2])})

    def add_explained_variance(self, name: str, values: Tensor, returns: Tensor) -> None:
        """Of the whole rollout, report ``1 - Var(returns - values) / Var(returns)``; NaN if returns are equal."""
        check_same_shape(values=values, returns=returns)
        self._add([returns, returns - values], lambda own: {name: 1 - own[1][2] / own[0][2] if own[0][2] else math.nan})

    def _add(self, parts: list[Tensor], report: Callable[[_Moments], dict[str, float]]) -> None:
        self._moments.append(torch.stack([moments_of(part) for part in parts]))
        self._reports.append(report)

    def add_minibatch(self, ratio: Tensor | None, values: Mapping[str, Tensor], weight: float = 1.0) -> None:
        """The numbers of one minibatch, means over its rows; minibatches of different phases have different ones.

        Of the first minibatch with a ``ratio`` of the policies it is told how far that is from 1. ``weight`` is what
        the numbers count beside the other ranks' numbers of this minibatch.
        """
        self.add_numbers(ratio, tuple(values), torch.stack([value.detach() for value in values.values()]), weight)

    def add_numbers(self, ratio: Tensor | None, names: tuple[str, ...], numbers: Tensor, weight: float = 1.0) -> None:
        """The same of numbers that come in one tensor, ``(len(names),)``."""
        if ratio is not None and self._first_ratio_error is None:
            self._first_ratio_error = (ratio.detach() - 1).abs().max().reshape(1)
        self._minibatches.append((names, numbers if weight == 1 else numbers * weight))

    def report(
        self,
        env_steps: int,
        clock: Mapping[str, float],
        gather: Callable[[Tensor], Tensor],
        bears_nan: bool = False,
    ) -> dict[str, float]:
        """The iteration's numbers, over all ranks by one ``gather`` of ``x`` into ``(W, *x.shape)``.

        Each is the mean over the minibatches, or what was asked for of the rollout; of ``clock`` the first rank's.
        With ``bears_nan`` minibatches whose numbers are not finite are left out, as their steps were.

        Raises:
            TrainingError: on every rank, naming the first minibatch whose numbers are not finite on any of them.
        """
        names, means, first_bad = self._means(bears_nan)
        ratio_error = self._first_ratio_error
        parts = [means, first_bad, *(part.flatten() for part in self._moments)]
        parts += [] if ratio_error is None else [ratio_error]
        own = torch.cat([part.to(means.device, exact_dtype(means.device)) for part in parts]).cpu().double()
        table = gather(torch.cat([own, torch.tensor(list(clock.values()), dtype=torch.float64)]))

        sizes = [len(names), len(names), sum(part.numel() for part in self._moments)]
        sizes += [len(own) - sum(sizes), len(clock)]
        means, first_bad, moments, ratios, seconds = torch.split(table, sizes, dim=1)
        self._check_finite(names, first_bad.amin(dim=0), env_steps)
        return {
            **dict(zip(names, means.mean(dim=0).tolist())),
            **self._reports_of(moments),
            **({} if ratio_error is None else {"train/first_ratio_error": float(ratios.max())}),
            **dict(zip(clock, seconds[0].tolist())),
        }

    def _means(self, bears_nan: bool) -> tuple[list[str], Tensor, Tensor]:
        """The names of all phases' numbers, their means, and the minibatch in which each was not finite first."""
        names: list[str] = []
        means, first_bad = [], []
        for phase in dict.fromkeys(phase for phase, _ in self._minibatches):
            own = [index for index, (of, _) in enumerate(self._minibatches) if of == phase]
            numbers = torch.stack([self._minibatches[index][1] for index in own])
            finite, number = numbers.isfinite(), torch.tensor([*own, self.count], device=numbers.device)
            first = torch.where(finite.all(dim=0), len(own), (~finite).int().argmax(dim=0))
            if bears_nan:
                first = torch.full_like(first, len(own))
                numbers = torch.where(finite, numbers, torch.nan)
            names += phase
            means.append(numbers.nanmean(dim=0) if bears_nan else numbers.mean(dim=0))
            first_bad.append(number[first])
        return names, torch.cat(means), torch.cat(first_bad)

    def _reports_of(self, moments: Tensor) -> dict[str, float]:
        rows = iter(pool_moments(moments.reshape(len(moments), moments.shape[1] // 3, 3)).tolist())
        reported: dict[str, float] = {}
        for part, report in zip(self._moments, self._reports):
            reported |= report([next(rows) for _ in part])
        return reported

    def _check_finite(self, all_names: Sequence[str], first_bad: Tensor, env_steps: int) -> None:
        minibatch = int(first_bad.min())
        if minibatch == self.count:
            return
        names = [name for name, first in zip(all_names, first_bad.tolist()) if first == minibatch]
        raise TrainingError(
            f"{', '.join(names)} became NaN or infinite in minibatch {minibatch} of the update at {env_steps} "
            "environment steps: training stopped and this update was not saved; lower --model.learning_rate or set "
            "--trainer.gradient_clip_val, then continue with --ckpt_path from the last checkpoint."
        )


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
