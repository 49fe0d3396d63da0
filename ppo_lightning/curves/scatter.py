"""Points and the lines between them, in matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ppo_lightning.curves.comparison import Point
from ppo_lightning.curves.figure import MARKERS, colors_of, drawing_style, label_axes, make_axes, place_legend

_LINE: dict[str, Any] = {"linewidth": 1.5, "markersize": 5.5, "markeredgecolor": "white", "markeredgewidth": 0.7}


def draw(points: Sequence[Point]) -> Figure:
    """A picture with a panel a split, and one colour and marker a label."""
    panels = list(dict.fromkeys(point.panel for point in points))
    lines = dict.fromkeys(point.label for point in points if point.is_of_curve)
    labels = list(dict.fromkeys(point.label for point in points))
    looks: dict[str, dict[str, Any]] = {
        label: {"color": color, "marker": MARKERS[number % len(MARKERS)], "linestyle": "-" if label in lines else ""}
        for number, (label, color) in enumerate(colors_of(labels).items())
    }
    with drawing_style():
        figure, axes = make_axes([panels])
        for panel, axis in zip(panels, axes):
            for label, look in looks.items():
                _draw_label(axis, [point for point in points if (point.panel, point.label) == (panel, label)], look)
            label_axes(axis, "steps of the expert (%)", "return (mean and 95 % interval)")
        place_legend(figure, [Line2D([], [], label=label, **_LINE, **look) for label, look in looks.items()])
    return figure


def _draw_label(axis: Axes, points: Sequence[Point], look: dict[str, Any]) -> None:
    ordered = sorted(points, key=lambda point: point.expert_fraction)
    axis.errorbar(
        [100 * point.expert_fraction for point in ordered],
        [point.mean_return for point in ordered],
        yerr=[point.interval for point in ordered],
        elinewidth=1,
        **_LINE,
        **look,
    )
