"""Learning curves in matplotlib, and what other pictures share with them. No global state, so a picture depends on its
input only.
"""

from __future__ import annotations

import contextlib
import itertools
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter, MaxNLocator

from ppo_lightning.core.errors import ConfigurationError, close_names
from ppo_lightning.core.files import check_file, written_whole
from ppo_lightning.curves.panels import Line, Panel, kind_of

# Okabe and Ito's palette, which colour-blind people can tell apart; its yellow is too pale for lines
_PALETTE = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000"
_NEUTRAL = "#444444"
MARKERS = "osD^vPX*"
_DASHES = (0, (4, 1.5)), (0, (1, 1)), (0, (6, 1.5, 1, 1.5)), (0, (2, 1.5))
_COLUMNS = 4
_WIDTH, _MAX_PANEL_WIDTH = 11.0, 5.5  # inches; text of 10 points is still read where 11 inches are a README's width
_LETTER, _HANDLE = 0.075, 0.7  # inches of a letter, and of the sign before a legend's text
_DPI = 200
_MAX_MARKERS = 25
_ROUND = 1, 2, 2.5, 5, 10  # between ticks
_STYLE: dict[str, Any] = {
    **{"font.size": 10, "axes.titlesize": 10, "axes.labelsize": 10, "legend.fontsize": 10},
    **{"axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#888888", "axes.linewidth": 0.8},
    **{"axes.grid": True, "grid.color": "#E4E4E4", "grid.linewidth": 0.8, "axes.axisbelow": True},
    **{"xtick.color": "#888888", "xtick.labelcolor": "#222222"},
    **{"ytick.color": "#888888", "ytick.labelcolor": "#222222"},
    **{"legend.frameon": False, "svg.hashsalt": "ppo-lightning"},
}
_NO_DATE = {"svg": {"Date": None}, "svgz": {"Date": None}, "pdf": {"CreationDate": None}}


def draw(panels: Sequence[Sequence[Panel]], x: str, smooth: float) -> Figure:
    """A picture of rows of panels."""
    look = _Look([line for row in panels for panel in row for line in panel.lines])
    with drawing_style():
        figure, axes = make_axes([[panel.title for panel in row] for row in panels])
        for panel, axis in zip(itertools.chain.from_iterable(panels), axes):
            _draw_panel(axis, panel, x, look)
        _add_legend(figure, look, smooth)
    return figure


def drawing_style() -> contextlib.AbstractContextManager[None]:
    """While figures are made and saved, whatever the user's own style is."""
    return matplotlib.style.context(["default", _STYLE])


def make_axes(titles: Sequence[Sequence[str]]) -> tuple[Figure, list[Axes]]:
    """Panels in rows, of which more than four go on in a row below; they are in the order of their titles."""
    columns = min(_COLUMNS, len(titles[0]))
    rows = [row[start : start + columns] for row in titles for start in range(0, len(row), columns)]
    width = min(_MAX_PANEL_WIDTH, _WIDTH / columns)
    figure = Figure(
        figsize=(width * columns, (1.1 + 0.5 * width) * len(rows) + 0.3), layout=ConstrainedLayoutEngine(w_pad=0.08)
    )
    axes = []
    for row, axes_of_row in zip(rows, figure.subplots(len(rows), columns, squeeze=False)):
        for title, axis in zip(row, axes_of_row):
            axis.set_title(textwrap.fill(title, int(width / _LETTER)))
            axes.append(axis)
        for axis in axes_of_row[len(row) :]:
            axis.remove()
    return figure, axes


def label_axes(axis: Axes, x: str, y: str) -> None:
    """The first panel of a row says for all of them what goes up; ticks are round numbers."""
    place = axis.get_subplotspec()
    axis.set(xlabel=x, ylabel=y if place is not None and place.is_first_col() else "")
    axis.xaxis.set_major_locator(MaxNLocator(5, steps=_ROUND))
    axis.yaxis.set_major_locator(MaxNLocator(6, steps=_ROUND))


def colors_of(labels: Sequence[str]) -> dict[str, str]:
    """One for each."""
    few = len(labels) <= len(_PALETTE)
    colors = _PALETTE if few else matplotlib.colormaps["viridis"](np.linspace(0, 0.95, len(labels)))
    return {label: matplotlib.colors.to_hex(color) for label, color in zip(labels, colors)}


class _Look:
    """One colour a label and one marker a kind of evaluation, the same in all panels."""

    def __init__(self, lines: Sequence[Line]) -> None:
        self.labels = [label for label in dict.fromkeys(line.label for line in lines) if label]
        self.kinds = sorted(dict.fromkeys(kind_of(line.metric) for line in lines), key=lambda kind: kind != "training")
        self.has_band = any(line.curve.std is not None for line in lines)
        self._colors = colors_of(self.labels)
        self.neutral = _NEUTRAL if self.labels else _PALETTE[0]

    def color(self, label: str) -> str:
        """Of a label; what has none is drawn as the legend's line styles are."""
        return self._colors.get(label, self.neutral)

    def of_kind(self, kind: str) -> dict[str, Any]:
        """Line and marker."""
        if kind == "training":
            return {"linewidth": 1.8, "linestyle": "-"}
        index = self.kinds.index(kind) - ("training" in self.kinds)
        return {
            "linewidth": 1.2,
            "linestyle": _DASHES[index % len(_DASHES)],
            "marker": MARKERS[index % len(MARKERS)],
            "markersize": 5,
            "markeredgecolor": "white",
            "markeredgewidth": 0.7,
        }


def _draw_panel(axis: Axes, panel: Panel, x: str, look: _Look) -> None:
    unit, seconds = _time_unit(panel) if x == "time" else ("", 1.0)
    for line in panel.lines:
        color, curve = look.color(line.label), line.curve
        if curve.std is not None:
            low, high = curve.mean - curve.std, curve.mean + curve.std
            axis.fill_between(curve.x / seconds, low, high, color=color, alpha=0.18, linewidth=0)
        alone = {"marker": "."} if len(curve.x) == 1 else {}  # no line shows a single point
        axis.plot(
            curve.x / seconds,
            curve.mean,
            color=color,
            label=", ".join(filter(None, [line.label, line.metric])),
            markevery=max(1, len(curve.x) // _MAX_MARKERS),
            **(alone | look.of_kind(kind_of(line.metric))),
        )
    label_axes(axis, f"wall time ({unit})" if unit else "environment steps", panel.ylabel)
    if not unit:
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))


def _time_unit(panel: Panel) -> tuple[str, float]:
    longest = max(float(line.curve.x[-1]) for line in panel.lines)
    units = [("hours", 3600.0, 7200), ("minutes", 60.0, 120)]
    return next(((name, seconds) for name, seconds, least in units if longest >= least), ("seconds", 1.0))


def _add_legend(figure: Figure, look: _Look, smooth: float) -> None:
    """Colours are groups, line styles what is shown."""
    handles: list[Any] = [Line2D([], [], color=look.color(label), linewidth=4, label=label) for label in look.labels]
    for kind in look.kinds:
        name = f"{kind} (moving mean over {100 * smooth:g} % of the run)" if kind == "training" and smooth else kind
        handles.append(Line2D([], [], color=look.neutral, label=name, **look.of_kind(kind)))
    if look.has_band:
        handles.append(Patch(color=look.neutral, alpha=0.25, linewidth=0, label="± one standard deviation over seeds"))
    place_legend(figure, handles)


def place_legend(figure: Figure, handles: Sequence[Any]) -> None:
    """Below the panels."""
    for handle in handles:
        handle.set_label(textwrap.fill(str(handle.get_label()), int(figure.get_figwidth() / _LETTER) - 10))
    columns = _legend_columns([str(handle.get_label()) for handle in handles], figure.get_figwidth())
    figure.legend(handles=list(handles), loc="outside lower center", ncols=columns)


def _legend_columns(labels: Sequence[str], width: float) -> int:
    """As many columns as fit; they are filled one after the other."""

    def needed(columns: int) -> float:
        parts = np.array_split([max(map(len, label.splitlines())) for label in labels], columns)
        return sum(_LETTER * int(part.max()) + _HANDLE for part in parts)

    return next((columns for columns in range(len(labels), 1, -1) if needed(columns) <= width), 1)


def check_output(path: Path) -> None:
    """Raise unless a picture can be written there."""
    ending, known = path.suffix.removeprefix(".").lower(), Figure().canvas.get_supported_filetypes()
    if ending not in known:
        raise ConfigurationError(
            f"--out={path} does not end with a picture format ({', '.join(sorted(known))}): name a .png, say."
            f"{close_names(ending, known)}"
        )
    check_file(path)


def save(figure: Figure, path: Path) -> None:
    """Write the picture whole or not at all; one that was there before stays until then."""
    ending = path.suffix.removeprefix(".").lower()
    try:
        with written_whole(path) as part, drawing_style():
            figure.savefig(part, format=ending, dpi=_DPI, metadata=_NO_DATE.get(ending))
    except (RuntimeError, ValueError) as error:
        if isinstance(error, ConfigurationError):
            raise
        reason = " ".join(str(error).split())
        raise ConfigurationError(f"--out={path} cannot be written ({reason}): name another file.") from error
