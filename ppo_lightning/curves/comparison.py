"""Coordinators in a picture: what each earns against how often it asks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Optional, Union

from ppo_lightning.curves.drawing import drawing_module

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Point:
    """One coordinator on one split.

    Attributes:
        panel: title of the panel that it is in.
        label: points of one label have one colour.
        expert_fraction: share of the expert's steps, 0 to 1.
        mean_return: of its episodes.
        interval: half of the 95 % interval of the mean.
        is_of_curve: points of its label are joined by a line.
    """

    panel: str
    label: str
    expert_fraction: float
    mean_return: float
    interval: float
    is_of_curve: bool


def plot_comparison(points: Sequence[Point], out: Optional[Union[str, Path]] = None) -> Figure:
    """Draw coordinators: a panel a split, return with its 95 % interval over the expert's share of the steps.

    Args:
        points: one a split and coordinator.
        out: the picture to write; its ending is its format.

    Raises:
        ConfigurationError: it cannot be written, or matplotlib is missing.
    """
    if out is not None:
        check_picture(out)
    figure: Figure = drawing_module("scatter").draw(points)
    if out is not None:
        drawing_module("figure").save(figure, Path(out))
    return figure


def check_picture(out: Union[str, Path]) -> None:
    """Raise :class:`ConfigurationError` unless a picture can be drawn, and be written there."""
    drawing_module("figure").check_output(Path(out))
