"""Numbers of the loss that change over a run."""

from __future__ import annotations

from ppo_lightning.core.errors import check_range


class LinearSchedule:
    """Goes from one number to another over ``--data.total_timesteps``, a step an iteration.

    Args:
        name: of the flag without ``final_``.
        first: at the beginning.
        final: at the end; None for ``first`` throughout.
        exclude_zero: it must be above 0.

    Attributes:
        now: of the running iteration.

    Raises:
        ConfigurationError: a number that is negative, or 0 where that is excluded.
    """

    def __init__(self, name: str, first: float, final: float | None, exclude_zero: bool = False) -> None:
        check_range(f"--model.{name}", first, 0, exclude_low=exclude_zero)
        if final is not None:
            check_range(f"--model.final_{name}", final, 0, exclude_low=exclude_zero)
        self.name = name
        self.first = first
        self.final = final
        self.now = first

    @property
    def flag(self) -> str | None:
        """The flag that asks for a change; None where nothing does."""
        return None if self.final is None else f"--model.final_{self.name}={self.final:g}"

    def start_iteration(self, remaining: float) -> None:
        """``remaining`` of the run goes from 1 down to 0."""
        if self.final is not None:
            self.now = self.final + (self.first - self.final) * remaining
