"""Steps in which some environments were only reset."""

from __future__ import annotations

import numpy as np

from ppo_lightning.envs.base import Array, StepResult, take_rows


def as_only_reset(result: StepResult, rows: Array) -> StepResult:
    """The step as if the environments where ``rows (N,)`` is true had only been reset; their ``obs`` is the first."""
    ended = np.flatnonzero(result.terminated | result.truncated)
    if result.final_obs is not None:
        kept = ~rows[ended]
        result.final_obs = take_rows(result.final_obs, np.flatnonzero(kept)) if kept.any() else None
    result.rewards = np.where(rows, 0, result.rewards)
    result.terminated, result.truncated = result.terminated & ~rows, result.truncated & ~rows
    result.valid, result.episode_starts = result.valid & ~rows, result.episode_starts | rows
    result.dropped = None if result.dropped is None else result.dropped & ~rows
    result.scores = None if result.scores is None else np.where(rows, 0, result.scores)
    result.goes_on = None if result.goes_on is None else result.goes_on & ~rows
    return result
