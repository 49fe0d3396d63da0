"""Smoothing, wall time, and the mean and band over seeds: pure functions of arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Series:
    """Values of one metric of one run, where it has any; ``x`` increases."""

    x: FloatArray  # (n,)
    y: FloatArray  # (n,)


@dataclass(frozen=True)
class Curve:
    """Mean of one metric over seeds; without ``std`` for one seed."""

    x: FloatArray  # (n,)
    mean: FloatArray  # (n,)
    std: FloatArray | None  # (n,)


def moving_mean(series: Series, window: float) -> Series:
    """The mean of the values in ``(x − window, x]`` at each ``x``; a window of 0 changes nothing."""
    ends = np.arange(1, len(series.x) + 1)
    starts = np.minimum(np.searchsorted(series.x, series.x - window, side="right"), ends - 1)
    bounds = np.stack([starts, ends], axis=1).ravel()
    # sums of the slices themselves: differences of one running sum lose small values that follow large ones
    sums = np.add.reduceat(np.append(series.y, 0.0), bounds)[::2]
    return Series(series.x, sums / (ends - starts))


def over_time(series: Series, clock: Series) -> Series:
    """The same values over seconds: ``clock`` has the seconds at some steps, and 0 at step 0."""
    seconds = np.interp(series.x, np.append(0.0, clock.x), np.append(0.0, clock.y))
    return Series(seconds, series.y)


def common_range(seeds: Sequence[Series]) -> tuple[float, float]:
    """Where every seed has values; the first is larger than the second if there is no such place."""
    return float(max(series.x[0] for series in seeds)), float(min(series.x[-1] for series in seeds))


def mean_and_band(seeds: Sequence[Series]) -> Curve:
    """Mean and sample standard deviation (``ddof=1``) over seeds, on the range that all of them cover.

    The grid has every seed's own ``x``, and each seed is interpolated linearly between its own: so the mean is exact
    wherever the seeds lie, and seeds with the same ``x`` are not interpolated at all.
    """
    low, high = common_range(seeds)
    grid = np.unique(np.concatenate([series.x for series in seeds]))
    grid = grid[(grid >= low) & (grid <= high)]
    values = np.stack([np.interp(grid, series.x, series.y) for series in seeds])  # (seeds, n)
    std = values.std(axis=0, ddof=1) if len(seeds) > 1 else None
    return Curve(grid, values.mean(axis=0), std)
