"""Action distributions without the overhead of ``torch.distributions``, sampled from noise that is given.

The noise of a whole rollout is drawn at its start, one generator an environment: sampling then does not depend on
which rank or row an environment lives in, and the hot loop draws nothing.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from gymnasium import spaces
from torch import Tensor
from torch.nn.functional import logsigmoid

from ppo_lightning.functional.shapes import check_same_shape

LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)
ILLEGAL = torch.finfo(torch.float32).min
"""The logit of an illegal action, in all precisions: the probability is exactly 0, yet nothing of it is infinite."""


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
        self.logits = at_least_float32(logits)

    @functools.cached_property
    def log_probs(self) -> Tensor:
        """``(B, A)``, normalised."""
        return torch.log_softmax(self.logits, dim=-1)

    def log_prob(self, actions: Tensor) -> Tensor:
        return self.log_probs.gather(-1, actions.unsqueeze(-1)).squeeze(-1)

    def entropy(self) -> Tensor:
        return _entropy(self.log_probs)

    def sample(self, noise: Tensor) -> Tensor:
        """By the Gumbel trick: ``argmax(z + G)`` has distribution ``softmax z``, normalised or not."""
        return (self.logits + noise).argmax(-1)

    def noise(self) -> Tensor:
        return _gumbel(torch.empty_like(self.log_probs))

    def mode(self) -> Tensor:
        return self.logits.argmax(-1)

    def tempered(self, temperature: float) -> Categorical:
        return Categorical(temper(self.log_probs, temperature))


class MultiCategorical:
    """``D`` independent categoricals, the d-th over ``nvec[d]`` actions.

    ``logits`` is ``(B, sum(nvec))``, those of the first component before those of the second; actions are ``(B, D)``
    int64, each from 0. Components of unequal sizes are padded to the largest, as one operation on all of them is
    several times as fast as a loop.
    """

    def __init__(self, logits: Tensor, nvec: Sequence[int]) -> None:
        self.logits = at_least_float32(logits)
        self.nvec = tuple(nvec)

    @functools.cached_property
    def log_probs(self) -> Tensor:
        """``(B, sum(nvec))``, normalised in each component."""
        padded = self._padded_log_probs
        return torch.cat([padded[:, d, :size] for d, size in enumerate(self.nvec)], dim=-1)

    @functools.cached_property
    def _padded_log_probs(self) -> Tensor:
        return torch.log_softmax(self._pad(self.logits), dim=-1)

    def _pad(self, flat: Tensor) -> Tensor:
        """``(B, sum(nvec))`` to ``(B, D, max(nvec))``: actions that there are none of are impossible."""
        largest = max(self.nvec)
        if any(size != largest for size in self.nvec):
            is_eager = type(flat) is Tensor and not torch.compiler.is_compiling()  # else what is kept would be a trace
            columns = (_padding if is_eager else _padding.__wrapped__)(self.nvec, flat.device)
            flat = torch.cat([flat, flat.new_full((flat.shape[0], 1), -math.inf)], dim=-1).index_select(-1, columns)
        return flat.reshape(-1, len(self.nvec), largest)

    def log_prob(self, actions: Tensor) -> Tensor:
        return self._padded_log_probs.gather(-1, actions.unsqueeze(-1)).squeeze(-1).sum(-1)

    def entropy(self) -> Tensor:
        return _entropy(self._padded_log_probs).sum(-1)

    def sample(self, noise: Tensor) -> Tensor:
        """By the Gumbel trick in each component."""
        return self._pad(self.logits + noise).argmax(-1)

    def noise(self) -> Tensor:
        return _gumbel(torch.empty_like(self.logits))

    def mode(self) -> Tensor:
        return self._pad(self.logits).argmax(-1)

    def tempered(self, temperature: float) -> MultiCategorical:
        return MultiCategorical(temper(self.log_probs, temperature), self.nvec)


@functools.lru_cache(maxsize=64)
def _padding(nvec: tuple[int, ...], device: torch.device) -> Tensor:
    """For each padded place the column that it comes from: one beyond the last where there is none."""
    ends = list(itertools.accumulate(nvec))
    columns = [
        end - size + place if place < size else ends[-1] for size, end in zip(nvec, ends) for place in range(max(nvec))
    ]
    with torch.inference_mode(False):  # or no gradient could pass it later
        return torch.tensor(columns, device=device)


class Bernoullis:
    """``D`` independent yes-or-no choices; ``logits`` is ``(B, D)``, of choosing 1, actions ``(B, D)`` int64."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = at_least_float32(logits)

    def log_prob(self, actions: Tensor) -> Tensor:
        # the sign is plus for 1 and minus for 0: sigmoid(-z) = 1 - sigmoid(z)
        return logsigmoid((2 * actions - 1) * self.logits).sum(-1)

    def entropy(self) -> Tensor:
        return _entropy(logsigmoid(torch.stack([self.logits, -self.logits], dim=-1))).sum(-1)

    def sample(self, noise: Tensor) -> Tensor:
        """``z + L > 0`` with logistic ``L`` has probability ``sigmoid(z)``: the Gumbel trick of two actions."""
        return (self.logits + noise > 0).long()

    def noise(self) -> Tensor:
        return _logistic(torch.empty_like(self.logits))

    def mode(self) -> Tensor:
        return (self.logits > 0).long()

    def tempered(self, temperature: float) -> Bernoullis:
        return Bernoullis(self.logits / temperature)


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


def mask_logits(logits: Tensor, mask: Tensor) -> Tensor:
    """The logits of legal actions, and ``ILLEGAL`` for the others, whose logits get no gradient.

    A row without a legal action, as an episode's last observation may be, is uniform over all of them.

    Args:
        logits: ``(…, A)``; half precisions are raised to float32, since none of their numbers is low enough.
        mask: ``(…, A)``, true or 1 for a legal action.

    Raises:
        ValueError: the shapes differ.
    """
    check_same_shape(mask=mask, logits=logits)
    return at_least_float32(logits).masked_fill(~mask.bool(), ILLEGAL)


def temper(logits: Tensor, temperature: float) -> Tensor:
    """``logits / temperature``, but for those of illegal actions, which stay so at any temperature."""
    return torch.where(logits > ILLEGAL / 2, logits / temperature, logits)


def draw_noise(
    action_space: spaces.Space[Any],
    num_steps: int,
    generators: Sequence[torch.Generator],
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """Noise for ``(T, N)`` actions.

    ``(T, N, A)`` Gumbel for Discrete, ``(T, N, sum(nvec))`` for MultiDiscrete; ``(T, N, D)`` logistic for MultiBinary,
    normal for Box. Column ``n`` comes from ``generators[n]`` alone, and has the digits of ``dtype`` whatever torch's
    default is: the Trainer's ``bf16-true`` makes it one with three, in which two actions tie.
    """
    draw = next(draw for kind, draw in _NOISE.items() if isinstance(action_space, kind))
    shape = num_steps, spaces.flatdim(action_space)
    columns = [draw(torch.empty(shape, dtype=dtype), generator) for generator in generators]
    return torch.stack(columns, dim=1).to(device)


def _gumbel(storage: Tensor, generator: torch.Generator | None = None) -> Tensor:
    # 0 can be drawn: the noise would be infinite, and the action taken however low its logit is
    return -storage.exponential_(generator=generator).clamp_(min=torch.finfo(storage.dtype).tiny).log()


def _logistic(storage: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """The difference of two Gumbels, so that it is finite."""
    return _gumbel(storage, generator) - _gumbel(torch.empty_like(storage), generator)


def _normal(storage: Tensor, generator: torch.Generator | None = None) -> Tensor:
    return torch.randn(storage.shape, dtype=storage.dtype, generator=generator)


_NOISE = {
    spaces.Discrete: _gumbel,
    spaces.MultiDiscrete: _gumbel,
    spaces.MultiBinary: _logistic,
    spaces.Box: _normal,
}


def _entropy(log_probs: Tensor) -> Tensor:
    """Over the last dimension, in nats."""
    # an impossible action has log-probability -inf, and 0·log 0 = 0
    log_probs = log_probs.clamp(min=torch.finfo(log_probs.dtype).min)
    return -(log_probs.exp() * log_probs).sum(-1)


def at_least_float32(x: Tensor) -> Tensor:
    """Half precisions raised to float32; others as they are."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
