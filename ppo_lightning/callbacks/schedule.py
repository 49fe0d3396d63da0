"""When a callback is due, in iterations or environment steps."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

from lightning.pytorch import Trainer

from ppo_lightning.core.errors import ConfigurationError, check_range


class Cadence:
    """Every so many iterations or environment steps, and once at the end of training.

    Args:
        flag: the group of the two flags, for messages.
        every_n_iterations: due after every so many iterations.
        every_n_env_steps: due as soon as a multiple of so many environment steps is reached.
        default: iterations where neither is given; None is due at the end only.

    Raises:
        ConfigurationError: both are given, or one is below 1.
    """

    def __init__(
        self, flag: str, every_n_iterations: int | None, every_n_env_steps: int | None, default: int | None
    ) -> None:
        given = {"every_n_iterations": every_n_iterations, "every_n_env_steps": every_n_env_steps}
        for name, value in given.items():
            if value is not None:
                check_range(f"{flag}.{name}", value, 1)
        if every_n_iterations is not None and every_n_env_steps is not None:
            raise ConfigurationError(
                f"{flag}.every_n_iterations={every_n_iterations} and {flag}.every_n_env_steps={every_n_env_steps} are "
                "two answers to one question: leave one out."
            )
        self.iterations = default if every_n_iterations is None else every_n_iterations
        self.env_steps = every_n_env_steps

    def is_due(self, trainer: Trainer) -> bool:
        """Whether it is time after the iteration that just ended."""
        if is_last_iteration(trainer):
            return True
        if self.env_steps is not None:
            return crossed(trainer, self.env_steps)
        return self.iterations is not None and (trainer.current_epoch + 1) % self.iterations == 0

    @property
    def is_every_iteration(self) -> bool:
        """Whether nothing happens between two times."""
        return self.env_steps is None and self.iterations == 1


def env_steps(trainer: Trainer) -> int:
    """Environment steps of the run so far, over all ranks."""
    datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
    return int(datamodule.env_steps)


@contextlib.contextmanager
def off_the_clock(pl_module: Any) -> Iterator[None]:
    """Leave the time that this takes out of ``time/sps``, which is the speed of training."""
    started = time.perf_counter()
    yield
    exclude = getattr(pl_module, "exclude_from_speed", None)
    if exclude is not None:
        exclude(time.perf_counter() - started)


def crossed(trainer: Trainer, every_n_env_steps: int) -> bool:
    """Whether the iteration that just ended reached or passed a multiple of ``every_n_env_steps``."""
    datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
    now = int(datamodule.env_steps)
    return now // every_n_env_steps > (now - int(datamodule.steps_per_iteration)) // every_n_env_steps


def is_last_iteration(trainer: Trainer) -> bool:
    """Whether training ends with the iteration that just ended."""
    loop = trainer.fit_loop
    progress: Any = loop.epoch_progress.current
    processed, max_epochs = progress.processed, trainer.max_epochs
    epochs_done = max_epochs is not None and max_epochs != -1 and processed >= max_epochs
    steps_done = trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps
    return bool(trainer.should_stop or epochs_done or steps_done)
