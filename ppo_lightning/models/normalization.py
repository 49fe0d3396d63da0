"""Running statistics that observations are normalised by: buffers of the network, saved and exported with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ppo_lightning.core.errors import check_range
from ppo_lightning.functional.moments import merge_moments, moments_of_rows


class FullPrecision(nn.Module):
    """A module whose buffers are never in half precision, where a count stops at 256 and a mean has three digits."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        before = dict(self._buffers)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer in self._buffers.items():
            kept = before[name]
            if buffer is not None and kept is not None and buffer.dtype in (torch.bfloat16, torch.float16):
                self._buffers[name] = kept.to(buffer.device)
        return self


class RunningMoments(FullPrecision):
    """Mean and variance of what it was shown so far: of everything, or with ``ema`` of the more recent.

    It only changes by ``update``: who owns it calls that between a rollout's update and the next rollout, with the
    moments of all ranks.

    Args:
        shape: of one row.
        ema: what the statistics so far count beside those of a new rollout, in [0, 1); None weighs all rows the same.
        flag: names ``ema`` in errors.

    Attributes:
        count: rows so far.
        mean: ``shape``; 0 before the first rows.
        var: the population's variance; 1 before the first rows.

    Raises:
        ConfigurationError: ``ema`` outside its range.
    """

    count: Tensor
    mean: Tensor
    var: Tensor

    def __init__(self, shape: tuple[int, ...] = (), ema: float | None = None, flag: str = "ema") -> None:
        super().__init__()
        if ema is not None:
            check_range(flag, ema, 0, 1, exclude_high=True)
        self.ema = ema
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("var", torch.ones(shape))

    def update(self, moments: Tensor) -> None:
        """Take in the count, mean and variance ``(*shape, 3)`` of new rows."""
        own = torch.stack([self.count.expand_as(self.mean), self.mean, self.var], dim=-1).to(moments)
        merged = merge_moments(own, moments, self.ema)
        self.count.copy_(merged.reshape(-1, 3)[0, 0])
        self.mean.copy_(merged[..., 1])
        self.var.copy_(merged[..., 2])


class ObservationNormalizer(RunningMoments):
    r"""Observations in units of their own standard deviation, :math:`(x - \mu) / \sqrt{\sigma^2 + 10^{-8}}`, clipped.

    Frozen while a rollout is played and learned from; the rollouts of all ranks enter it afterwards.

    Args:
        num_features: numbers an observation has.
        clip: the largest magnitude of what comes out; null for none.
        ema: what the statistics so far count beside those of a new rollout; null weighs all observations the same
            (Welford).

    Raises:
        ConfigurationError: a number outside its range.
    """

    def __init__(self, num_features: int, clip: float | None = 10.0, ema: float | None = None) -> None:
        flag = "--model.network.encoder.normalizer"
        super().__init__((num_features,), ema, f"{flag}.ema")
        if clip is not None:
            check_range(f"{flag}.clip", clip, 0, exclude_low=True)
        self.clip = clip

    def forward(self, x: Tensor) -> Tensor:
        """``(B, num_features)`` to the same, in its dtype."""
        normal = (x - self.mean) * (self.var + 1e-8).rsqrt()
        return (normal if self.clip is None else normal.clamp(-self.clip, self.clip)).to(x.dtype)

    def moments_of(self, x: Tensor) -> Tensor:
        """What rows ``(B, num_features)`` would enter the statistics as, ``(num_features, 3)``."""
        return moments_of_rows(x)
