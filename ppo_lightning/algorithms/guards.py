"""What keeps a bad minibatch from harm: the actor waits, or a step is dropped."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from ppo_lightning.core.errors import TrainingError, check_range


class ActorPause:
    """Whether the actor waits for the next iteration: from a minibatch on in which too many ratios were clipped.

    The minibatches of one optimiser step are treated alike: where the first one is not the one that exceeded the
    limit, the pause begins with the next step.

    Args:
        max_clip_fraction: the largest share of ratios beyond the clip range, in (0, 1).

    Attributes:
        is_on: whether the actor waits.

    Raises:
        ConfigurationError: it is outside its range.
    """

    def __init__(self, max_clip_fraction: float) -> None:
        check_range("--model.max_clip_fraction", max_clip_fraction, 0, 1, exclude_low=True, exclude_high=True)
        self.max_clip_fraction = max_clip_fraction
        self.start_iteration()

    def start_iteration(self) -> None:
        """The actor learns again."""
        self._is_asked_for = False
        self.is_on = False

    def look(self, exceeds: bool, is_first_of_step: bool) -> bool:
        """Whether the actor waits in this minibatch, whose clip fraction ``exceeds`` the limit or not."""
        self._is_asked_for |= exceeds
        if is_first_of_step:
            self.is_on = self._is_asked_for
        return self.is_on


class GradientGuard:
    """Drops optimiser steps whose gradient is not finite or larger than a limit, and counts them.

    A dropped step leaves parameters and the optimiser's state as they are. Ranks have the same gradients, so all drop
    the same steps.

    Args:
        max_norm: of the gradient of all parameters together.
        max_dropped_steps: so many in a row are borne; one more ends the run.

    Attributes:
        dropped: steps of this iteration.
        in_a_row: steps since the last good one; in checkpoints.

    Raises:
        ConfigurationError: a number outside its range.
    """

    def __init__(self, max_norm: float, max_dropped_steps: int) -> None:
        check_range("--model.gradient_guard", max_norm, 0, exclude_low=True)
        check_range("--model.max_dropped_steps", max_dropped_steps, 0)
        self.max_norm = max_norm
        self.max_dropped_steps = max_dropped_steps
        self.dropped = 0
        self.in_a_row = 0

    def drops(self, module: nn.Module, env_steps: int) -> bool:
        """Look at the gradients before a step; True where it is dropped: they are gone then.

        Raises:
            TrainingError: too many steps in a row were dropped.
        """
        gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(gradients)) if gradients else 0.0
        if math.isfinite(norm) and norm <= self.max_norm:
            self.in_a_row = 0
            return False
        self.dropped += 1
        self.in_a_row += 1
        if self.in_a_row > self.max_dropped_steps:
            raise TrainingError(
                f"{self.in_a_row} optimiser steps in a row had a gradient of norm {norm:g}, beyond "
                f"--model.gradient_guard={self.max_norm:g}, in the update at {env_steps} environment steps: training "
                "stopped and this update was not saved; lower --model.learning_rate, or raise the limit where such "
                "norms are usual here, then continue with --ckpt_path from the last checkpoint."
            )
        for parameter in module.parameters():
            parameter.grad = None  # without one, an optimiser leaves a parameter and what it knows of it alone
        return True

    def state_dict(self) -> dict[str, Any]:
        """What the next iteration depends on."""
        return {"in_a_row": self.in_a_row}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on counting."""
        self.in_a_row = int(state["in_a_row"])
