"""What acts in environments, trained or not."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from ppo_lightning.core.rollout import State
from ppo_lightning.models.actor_critic import RawObservation

PolicyT = TypeVar("PolicyT", bound="Policy")


class Policy(ABC):
    """Chooses the actions of ``B`` environments, row by row.

    Attributes:
        memory: what it carries from one step to the next, ``(B, *shape)``: a tensor or a TensorDict that is replaced
            and never written into; None before the first step, and without memory.
    """

    memory: State | None = None

    @property
    def has_memory(self) -> bool:
        """Whether it must see every step: what it does depends on the steps before."""
        return False

    @property
    def device(self) -> torch.device:
        """Where its observations and noise are wanted."""
        return torch.device("cpu")

    @abstractmethod
    def act(self, obs: RawObservation, temperature: float = 1.0, *, noise: Tensor | None = None) -> Any:
        """Actions ``(B,)`` or ``(B, D)`` for observations ``(B, *shape)``; as a tensor, or an array.

        Args:
            obs: a tensor on ``device``, a TensorDict of them for Dict observations.
            temperature: 0 takes the most probable action; else samples, sharper below 1 and flatter above.
            noise: what to sample by, as :func:`functional.distributions.draw_noise` draws it; by default fresh from
                torch's global generator.
        """

    def __str__(self) -> str:
        return type(self).__name__

    def fresh(self: PolicyT) -> PolicyT:
        """The same policy for other environments: it shares the parameters, and none of the memory."""
        other = copy.copy(self)
        other.memory = None
        return other

    def draws(self, temperature: float) -> bool:
        """Whether its actions depend on noise."""
        return temperature > 0

    def check_spaces(self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
        """Raise :class:`ConfigurationError` where it cannot act in an environment with these spaces."""
        return

    def reset(self, done: np.ndarray[Any, Any]) -> None:
        """Forget what came before in the rows where an episode ended; ``done`` is ``(B,)`` bool."""
        return

    def keep(self, rows: np.ndarray[Any, Any]) -> None:
        """Go on with only the rows where ``rows (B,)`` is true: the next ``act`` gets their observations."""
        return

    def place(self, convert: Callable[[nn.Module], nn.Module]) -> None:
        """Let ``convert`` move its networks to another device or precision."""
        return

    def get_params(self) -> dict[str, Any]:
        """A copy of what it was given or has learned."""
        return {}

    def set_params(self, params: Mapping[str, Any]) -> None:
        """Take up parameters of ``get_params``."""
        return

    def train(self) -> None:
        """Put its networks in training mode."""
        return

    def eval(self) -> None:
        """Put its networks in evaluation mode."""
        return
