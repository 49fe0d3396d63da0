"""How long training took, and how fast it was."""

from __future__ import annotations

import time


class TrainingClock:
    """The seconds of training, over all processes that a run was continued in."""

    def __init__(self) -> None:
        self.seconds_before = 0.0
        """Of training, before this process."""
        self._start = 0.0
        self._iteration_start = 0.0

    def start(self) -> None:
        """Training begins, and its first iteration."""
        self._start = self._iteration_start = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Of training, so far."""
        return self.seconds_before + (time.perf_counter() - self._start if self._start else 0.0)

    def exclude(self, seconds: float) -> None:
        """Leave this time out of the running iteration's speed."""
        self._iteration_start += seconds

    def end_iteration(self, env_steps: int) -> dict[str, float]:
        """``time/sps`` and ``time/seconds`` after an iteration of so many environment steps; the next one begins."""
        now = time.perf_counter()
        speed = env_steps / (now - self._iteration_start)
        self._iteration_start = now
        return {"time/sps": speed, "time/seconds": self.seconds}
