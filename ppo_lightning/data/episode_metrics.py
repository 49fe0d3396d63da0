"""What evaluation reports of its episodes, over all ranks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from ppo_lightning.data.episodes import Episode


class EpisodeMetrics(Metric):
    """Aggregates of whole episodes, reduced over ranks by ``compute``.

    Args:
        action_id: also report the fraction of this action; None for none.
        reports_solved: also report the fraction of solved episodes.
    """

    full_state_update = False
    returns: list[Tensor]
    base_returns: list[Tensor]
    lengths: list[Tensor]
    solved: list[Tensor]
    action_steps: Tensor
    dropped: Tensor

    def __init__(self, action_id: int | None = None, reports_solved: bool = False) -> None:
        super().__init__()
        self.action_id = action_id
        self.reports_solved = reports_solved
        for name in ("returns", "base_returns", "lengths", "solved"):
            self.add_state(name, default=[], dist_reduce_fx="cat")
        for name in ("action_steps", "dropped"):
            self.add_state(name, default=torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    @staticmethod
    def names(action_id: int | None = None, reports_solved: bool = False) -> list[str]:
        """The names that ``compute`` always gives."""
        names = ["episodes", "steps", "length_mean", "length_min", "length_max"]
        names += ["return_mean", "return_ci95", "base_return_mean", "base_return_ci95"]
        names += [] if action_id is None else [f"action_{action_id}_fraction"]
        return [*names, *(["solved_fraction"] if reports_solved else [])]

    def update(self, episodes: Sequence[Episode], action_steps: int = 0, dropped: int = 0) -> None:
        """Add the episodes of one rank, of which ``action_steps`` steps took the action; ``dropped`` more were lost."""
        columns = {
            "returns": [episode.episode_return for episode in episodes],
            "base_returns": [episode.base_return for episode in episodes],
            "lengths": [float(episode.length) for episode in episodes],
            "solved": [float(bool(episode.solved)) for episode in episodes],
        }
        for name, column in columns.items():
            getattr(self, name).append(torch.tensor(column, dtype=torch.float64, device=self.device))
        self.action_steps += action_steps
        self.dropped += dropped

    def compute(self) -> dict[str, Tensor]:
        """Means, 95 % intervals of the means (1.96·std/√n, std of the population), extremes and fractions."""
        lengths, returns = dim_zero_cat(self.lengths), dim_zero_cat(self.returns)
        base_returns = dim_zero_cat(self.base_returns)
        interval = 1.96 / math.sqrt(len(returns))
        metrics = {
            "episodes": torch.tensor(len(lengths)),
            "steps": lengths.sum(),
            "length_mean": lengths.mean(),
            "length_min": lengths.min(),
            "length_max": lengths.max(),
            "return_mean": returns.mean(),
            "return_ci95": interval * returns.std(correction=0),
            "base_return_mean": base_returns.mean(),
            "base_return_ci95": interval * base_returns.std(correction=0),
        }
        if self.action_id is not None:
            metrics[f"action_{self.action_id}_fraction"] = self.action_steps / lengths.sum()
        if self.reports_solved:
            metrics["solved_fraction"] = dim_zero_cat(self.solved).mean()
        if self.dropped:
            metrics["dropped_episodes"] = self.dropped
        return metrics
