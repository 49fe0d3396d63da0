"""Numbers of the loss that change over a run."""

from __future__ import annotations

from ppo_lightning.core.errors import ConfigurationError, check_range


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


class LearningRateDecay:
    r"""Polynomial decay of a learning rate over environment steps, and its end from there on.

    .. math::
        \alpha = \alpha_\text{final} + (\alpha_0 - \alpha_\text{final})\,(1 - \min(1, \text{steps} / D))^p

    Other rates than the one that ``final`` belongs to keep their proportion to it.

    Args:
        first: the rate at the beginning.
        final: at the end.
        steps: environment steps, of all ranks, that it takes; None for the whole run.
        power: of the polynomial; 1 is linear.

    Raises:
        ConfigurationError: a number outside its range.
    """

    def __init__(self, first: float, final: float, steps: int | None, power: float) -> None:
        check_range("--model.final_learning_rate", final, 0)
        if steps is not None:
            check_range("--model.lr_decay_steps", steps, 1)
        check_range("--model.lr_decay_power", power, 0, exclude_low=True)
        self.first = first
        self.final = final
        self.steps = steps
        self.power = power

    def factor(self, env_steps: int, remaining: float) -> float:
        """What rates are multiplied by; ``remaining`` of the run goes from 1 down to 0."""
        left = remaining if self.steps is None else max(0.0, 1 - env_steps / self.steps)
        end = self.final / self.first
        return end + (1 - end) * left**self.power


def learning_rate_decay(
    first: float, final: float | None, steps: int | None, power: float, anneal_lr: bool
) -> LearningRateDecay | None:
    """What the flags ask for; None for a constant rate.

    Raises:
        ConfigurationError: flags without the one that they belong to, or that contradict each other.
    """
    if anneal_lr and final is not None:
        raise ConfigurationError(
            f"--model.anneal_lr=true and --model.final_learning_rate={final:g} both set the learning rate: leave one "
            "of them out."
        )
    if final is None and not anneal_lr and (steps is not None or power != 1):
        flag = f"lr_decay_steps={steps}" if steps is not None else f"lr_decay_power={power:g}"
        raise ConfigurationError(
            f"--model.{flag} is of --model.final_learning_rate, which is not set: set it, or leave this out."
        )
    if final is None and not anneal_lr:
        return None
    return LearningRateDecay(first, 0.0 if final is None else final, steps, power)
