"""Counting the returns of whole episodes, without bias to short ones."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppo_lightning.core.errors import TrainingError
from ppo_lightning.data.collect import to_device
from ppo_lightning.data.episodes import Episode, EpisodeStatistics
from ppo_lightning.data.seeding import Streams
from ppo_lightning.envs.base import VectorEnv
from ppo_lightning.functional.distributions import draw_noise
from ppo_lightning.policies.ppo import PPOPolicy

_NOISE_STEPS = 64
_PATIENCE = 100  # times max_num_steps


@dataclass
class EvaluationResult:
    """Finished episodes, and what playing them took."""

    episodes: list[Episode]
    steps: int
    seconds: float

    @property
    def return_mean(self) -> float:
        return float(np.mean([episode.episode_return for episode in self.episodes]))

    @property
    def return_ci95(self) -> float:
        """Half of the 95 % interval of the mean: 1.96·std/√n."""
        returns = np.array([episode.episode_return for episode in self.episodes])
        return float(1.96 * returns.std() / math.sqrt(len(returns)))

    @property
    def length_mean(self) -> float:
        return float(np.mean([episode.length for episode in self.episodes]))


def evaluate(
    policy: PPOPolicy,
    env: VectorEnv,
    streams: Streams,
    num_episodes: int,
    temperature: float,
    max_num_steps: int | None = None,
) -> EvaluationResult:
    """Play ``num_episodes`` with a fresh environment.

    Each environment has its quota of episodes, whatever they take: counting the first to finish would favour short
    ones.

    Args:
        policy: acts; its memory is reset between episodes.
        env: just made; ``num_envs`` may be anything up to ``num_episodes``.
        streams: the random numbers of its actions.
        num_episodes: whole episodes to count.
        temperature: 0 takes the most probable actions.
        max_num_steps: episodes that reach this length count as they are, and are played on to their end.

    Raises:
        TrainingError: an environment never ends the episode that ``max_num_steps`` cut, and has more to play.
    """
    started = time.perf_counter()
    device = next(policy.model.parameters()).device
    noise = _Noise(env, streams, device) if temperature > 0 else None
    counter = _QuotaCounter(env.num_envs, num_episodes, max_num_steps)
    policy.reset(np.ones(env.num_envs, dtype=bool))
    obs, steps = env.reset(), 0
    while not counter.is_done:
        actions = policy.act(to_device(obs, device), temperature, noise=noise.next() if noise is not None else None)
        result = env.step(actions.cpu().numpy())
        counter.add(result)
        policy.reset(result.episode_starts)
        obs = result.obs
        steps += 1
    return EvaluationResult(counter.episodes, steps * env.num_envs, time.perf_counter() - started)


class _QuotaCounter:
    """Keeps the first ``quota`` episodes of each environment."""

    def __init__(self, num_envs: int, num_episodes: int, max_num_steps: int | None) -> None:
        self._statistics = EpisodeStatistics(num_envs)
        self._open = num_episodes // num_envs + (np.arange(num_envs) < num_episodes % num_envs)
        self._max_num_steps = max_num_steps
        self._cut = np.zeros(num_envs, dtype=bool)  # counted already, still playing on
        self.episodes: list[Episode] = []

    @property
    def is_done(self) -> bool:
        return not self._open.any()

    def add(self, result: Any) -> None:
        for row, episode in self._statistics.add(result):
            if not self._cut[row]:
                self._count(row, episode)
            self._cut[row] = False
        if self._max_num_steps is not None:
            too_long = (self._statistics.lengths >= self._max_num_steps) & ~self._cut
            for row in np.flatnonzero(too_long).tolist():
                self._count(row, self._statistics.running(row))
                self._cut[row] = True
            self._check_that_episodes_end(self._max_num_steps)

    def _check_that_episodes_end(self, max_num_steps: int) -> None:
        """A simulator starts its next episode only at the end of the one before: without an end, wait no longer."""
        endless = self._cut & (self._open > 0) & (self._statistics.lengths >= _PATIENCE * max_num_steps)
        if endless.any():
            row = int(np.flatnonzero(endless)[0])
            raise TrainingError(
                f"Evaluation waits for environment {row} to end an episode, {int(self._statistics.lengths[row])} steps "
                f"after its start (--evaluation.max_num_steps={max_num_steps} counted it long ago): give the "
                "environment a time limit, or set --evaluation.num_envs to --evaluation.num_episodes."
            )

    def _count(self, row: int, episode: Episode) -> None:
        if self._open[row]:
            self._open[row] -= 1
            self.episodes.append(episode)


class _Noise:
    """Action noise of one step after another, drawn some steps ahead."""

    def __init__(self, env: VectorEnv, streams: Streams, device: torch.device) -> None:
        self._env, self._device = env, device
        self._generators = streams.eval_generators()
        self._drawn: list[Tensor] = []

    def next(self) -> Tensor:
        if not self._drawn:
            noise = draw_noise(self._env.action_space, _NOISE_STEPS, self._generators, torch.float32, self._device)
            self._drawn = list(noise.unbind())[::-1]
        return self._drawn.pop()
