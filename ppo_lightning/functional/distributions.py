"""Action distributions without the overhead of ``torch.distributions``, sampled from noise that is given.

The noise of a whole rollout is drawn at its start, one generator an environment: sampling then does not depend on
which rank or row an environment lives in, and the hot loop draws nothing.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from gymnasium import spaces
from torch import Tensor

LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)


class Distribution(Protocol):
    """A batch of ``B`` action distributions."""

    def log_prob(self, actions: Tensor) -> Tensor:
        """``(B,)``."""

    def entropy(self) -> Tensor:
        """``(B,)``, in nats."""

    def sample(self, noise: Tensor) -> Tensor:
        """Actions from noise of :func:`draw_noise`."""

    def noise(self) -> Tensor:
        """Fresh noise to sample by, from torch's global generator."""

    def mode(self) -> Tensor:
        """The most probable actions."""

    def tempered(self, temperature: float) -> Distribution:
        """Sharper below 1, flatter above; ``temperature > 0``."""


class Categorical:
    """One of ``A`` actions with probability ``softmax(logits)``; ``logits`` is ``(B, A)``, actions ``(B,)`` int64."""

    def __init__(self, logits: Tensor) -> None:
        self._logits = at_least_float32(logits)

    @functools.cached_property
    def log_probs(self) -> Tensor:
        """``(B, A)``, normalised."""
        return torch.log_softmax(self._logits, dim=-1)

    def log_prob(self, actions: Tensor) -> Tensor:
        return self.log_probs.gather(-1, actions.unsqueeze(-1)).squeeze(-1)

    def entropy(self) -> Tensor:
        # an impossible action has log-probability -inf, and 0·log 0 = 0
        log_probs = self.log_probs.clamp(min=torch.finfo(self.log_probs.dtype).min)
        return -(log_probs.exp() * log_probs).sum(-1)

    def sample(self, noise: Tensor) -> Tensor:
        """By the Gumbel trick: ``argmax(z + G)`` has distribution ``softmax z``, normalised or not."""
        return (self._logits + noise).argmax(-1)

    def noise(self) -> Tensor:
        return -torch.empty_like(self.log_probs).exponential_().log()

    def mode(self) -> Tensor:
        return self._logits.argmax(-1)

    def tempered(self, temperature: float) -> Categorical:
        return Categorical(self.log_probs / temperature)


class DiagonalGaussian:
    """``D`` independent normals; ``mean`` is ``(B, D)``, ``logstd`` ``(D,)`` or ``(B, D)``, actions ``(B, D)``."""

    def __init__(self, mean: Tensor, logstd: Tensor) -> None:
        self.mean = at_least_float32(mean)
        self.logstd = at_least_float32(logstd).expand_as(self.mean)

    def log_prob(self, actions: Tensor) -> Tensor:
        z = (actions - self.mean) * (-self.logstd).exp()
        return -(0.5 * z.square() + self.logstd + LOG_SQRT_2PI).sum(-1)

    def entropy(self) -> Tensor:
        return (self.logstd + 0.5 + LOG_SQRT_2PI).sum(-1)

    def sample(self, noise: Tensor) -> Tensor:
        return self.mean + self.logstd.exp() * noise

    def noise(self) -> Tensor:
        return torch.randn_like(self.mean)

    def mode(self) -> Tensor:
        return self.mean

    def tempered(self, temperature: float) -> DiagonalGaussian:
        return DiagonalGaussian(self.mean, self.logstd + math.log(temperature))


def draw_noise(
    action_space: spaces.Space[Any],
    num_steps: int,
    generators: Sequence[torch.Generator],
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """Noise for ``(T, N)`` actions: ``(T, N, A)`` Gumbel for Discrete, ``(T, N, D)`` normal for Box.

    Column ``n`` comes from ``generators[n]`` alone, and has the digits of ``dtype`` whatever torch's default is: the
    Trainer's ``bf16-true`` makes it one with three, in which two actions tie.
    """
    if isinstance(action_space, spaces.Discrete):
        shape: tuple[int, ...] = (num_steps, int(action_space.n))
        columns = [-torch.empty(shape, dtype=dtype).exponential_(generator=generator).log() for generator in generators]
    else:
        assert isinstance(action_space, spaces.Box)
        shape = (num_steps, *action_space.shape)
        columns = [torch.randn(shape, dtype=dtype, generator=generator) for generator in generators]
    return torch.stack(columns, dim=1).to(device)


def at_least_float32(x: Tensor) -> Tensor:
    """Half precisions raised to float32; others as they are."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
