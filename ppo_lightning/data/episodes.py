"""Returns and lengths of running episodes, which go on over the borders of rollouts."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppo_lightning.envs.base import Array, StepResult
from ppo_lightning.functional.moments import moments_of, pool_moments

RECENT_EPISODES = 100
_RUNNING = "_returns", "_base_returns", "lengths"


@dataclass
class Episode:
    """A finished episode. ``base_return`` is the return before costs, equal to ``episode_return`` without any.

    ``solved`` tells whether it reached its goal; None where the simulator does not say.
    """

    episode_return: float
    length: int
    base_return: float
    solved: bool | None = None


class EpisodeStatistics:
    """Adds up the running episodes of ``num_envs`` environments."""

    def __init__(self, num_envs: int) -> None:
        self._returns = np.zeros(num_envs, dtype=np.float64)
        self._base_returns = np.zeros(num_envs, dtype=np.float64)
        self.lengths = np.zeros(num_envs, dtype=np.int64)
        self.finished: list[Episode] = []
        self.dropped = 0
        """Episodes of this rollout that were lost with their simulator."""
        self.recent_returns: deque[float] = deque(maxlen=RECENT_EPISODES)

    def start_rollout(self) -> None:
        """Forget the finished episodes of the rollout before; the running ones go on."""
        self.finished, self.dropped = [], 0

    def add(self, step: StepResult) -> list[tuple[int, Episode]]:
        """Count one step; returns the episodes that it ended as ``(environment, episode)``."""
        rewards = (step.rewards if step.scores is None else step.scores) * step.valid
        self._returns += rewards
        self._base_returns += rewards if step.base_rewards is None else step.base_rewards * step.valid
        self.lengths += step.valid
        if step.dropped is not None:
            for row in np.flatnonzero(step.dropped):
                self.drop(int(row))
                self.dropped += 1
        ended = step.terminated | step.truncated
        if step.goes_on is not None:
            ended = ended & ~step.goes_on
        if not np.count_nonzero(ended):
            return []
        rows = np.flatnonzero(ended)
        episodes = [self._close(int(row), step.solved) for row in rows]
        self.finished += episodes
        self.recent_returns.extend(episode.episode_return for episode in episodes)
        return list(zip(rows.tolist(), episodes))

    def running(self, row: int, solved: bool | None = None) -> Episode:
        """The episode that this environment is playing, as far as it has come."""
        return Episode(float(self._returns[row]), int(self.lengths[row]), float(self._base_returns[row]), solved)

    def drop(self, row: int) -> None:
        """Forget the running episode of this environment."""
        self._returns[row] = self._base_returns[row] = self.lengths[row] = 0

    def state_dict(self) -> dict[str, Any]:
        """The running episodes, and the last returns."""
        running = {name: torch.from_numpy(getattr(self, name).copy()) for name in _RUNNING}
        return {**running, "recent_returns": list(self.recent_returns)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with them."""
        for name in _RUNNING:
            getattr(self, name)[:] = state[name].numpy()
        self.recent_returns.extend(state["recent_returns"])

    def _close(self, row: int, solved: Array | None) -> Episode:
        episode = self.running(row, None if solved is None else bool(solved[row]))
        self.drop(row)
        return episode

    @staticmethod
    def names(reports_solved: bool) -> list[str]:
        """The names that ``metrics`` gives once episodes have ended."""
        names = ["episodes", "return_mean", "return_std", "base_return_mean", "base_return_std", "length_mean"]
        return [f"rollout/{name}" for name in [*names, *(["solved_fraction"] if reports_solved else [])]]

    def metrics(
        self, gather: Callable[[Tensor], Tensor] = lambda own: own[None], restarts: int = 0
    ) -> dict[str, float]:
        """Of the episodes that ended in this rollout: how many, and where any did their returns and lengths.

        ``gather`` puts a tensor of every rank into one, ``(W, *shape)``; by default there is one rank. Once there were
        ``restarts`` on any rank, the dropped episodes are counted too.
        """
        columns = [
            [episode.episode_return for episode in self.finished],
            [episode.base_return for episode in self.finished],
            [episode.length for episode in self.finished],
            [episode.solved for episode in self.finished if episode.solved is not None],
            [True] * self.dropped,
            [True] * restarts,
        ]
        own = torch.stack([moments_of(torch.tensor(column, dtype=torch.float64)) for column in columns])
        (episodes, *returns), (_, *base_returns), (_, length, _), (told, solved, _), *rest = pool_moments(
            gather(own)
        ).tolist()
        (dropped, *_), (restarted, *_) = rest
        metrics = {"rollout/episodes": episodes}
        if episodes:
            for name, (mean, variance) in {"return": returns, "base_return": base_returns}.items():
                metrics |= {f"rollout/{name}_mean": mean, f"rollout/{name}_std": math.sqrt(variance)}
            metrics["rollout/length_mean"] = length
        if told:
            metrics["rollout/solved_fraction"] = solved
        if restarted:
            metrics["rollout/dropped_episodes"] = dropped
        return metrics
