"""From folders of runs to a picture: everything is read and checked before anything is drawn."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Optional, Union

from ppo_lightning.core.errors import ConfigurationError, check_range, close_names
from ppo_lightning.curves.drawing import drawing_module
from ppo_lightning.curves.groups import Group, group_runs
from ppo_lightning.curves.panels import Line, Panel, is_evaluation
from ppo_lightning.curves.runs import Run, find_runs
from ppo_lightning.curves.statistics import Curve, common_range, mean_and_band, moving_mean, over_time

if TYPE_CHECKING:
    from matplotlib.figure import Figure

X_AXES = "env_steps", "time"
DEFAULT_SMOOTH = 0.025
TRAINING_RETURN, EVALUATION_RETURN = "rollout/return_mean", "eval/return_mean"
CLOCK = "time/seconds"
_MUCH_SHORTER = 0.9  # than the longest run of its curve: worth a warning


def plot_runs(
    runs: Sequence[Union[str, Path]],
    out: Optional[Union[str, Path]] = None,
    metrics: Sequence[str] = (),
    x: str = "env_steps",
    smooth: float = DEFAULT_SMOOTH,
) -> Figure:
    """Draw learning curves: a panel an environment, a colour a configuration, mean and band over its seeds.

    Args:
        runs: folders of runs, or folders above; ``LABEL=FOLDER`` makes one curve of all runs in it.
        out: the picture to write; its ending is its format.
        metrics: names of ``metrics.csv``, a row of panels each; training and evaluation returns by default.
        x: ``env_steps`` or ``time``.
        smooth: training metrics are means over the last part of the run, as long as this share of it.

    Raises:
        ConfigurationError: something is wrong with the runs or the settings, or matplotlib is missing.
    """
    figures = drawing_module("figure")
    check_range("--smooth", smooth, 0, 1)
    if x not in X_AXES:
        raise ConfigurationError(f"--x={x} is no axis: choose from {', '.join(X_AXES)}.")
    if out is not None:
        figures.check_output(Path(out))
    found = find_runs([runs] if isinstance(runs, (str, Path)) else runs)
    rows = _rows(found, metrics)
    if x == "time":
        _check_clocks(found)
    groups = group_runs(found)
    for group in groups:
        _warn_of_short_runs(group)
    panels = [
        [_panel(groups, name, row, row[0] if metrics else "return", x, smooth) for name in _environments(groups)]
        for row in rows
    ]
    figure: Figure = figures.draw(panels, x, smooth)
    if out is not None:
        figures.save(figure, Path(out))
    return figure


def _rows(runs: Sequence[Run], metrics: Sequence[str]) -> list[list[str]]:
    """The metrics of each row of panels: returns together by default, else one a row."""
    if metrics:
        for metric in metrics:
            _check_metric(runs, metric)
        return [[metric] for metric in dict.fromkeys(metrics)]
    returns = {name: None for run in runs for name in run.metrics if is_return(name)}
    if not any(all(name in run.metrics for run in runs) for name in returns):
        raise ConfigurationError(
            f"The runs have no return in common, {TRAINING_RETURN} or {EVALUATION_RETURN}: {_what_each_has(runs)}; "
            "name metrics with --metric, or leave runs out."
        )
    return [sorted(returns, key=lambda name: (name != TRAINING_RETURN, name != EVALUATION_RETURN, name))]


def is_return(metric: str) -> bool:
    """Whether it is the return of training, of evaluation, or of one of its splits."""
    return metric == TRAINING_RETURN or (is_evaluation(metric) and metric.endswith("/return_mean"))


def _check_metric(runs: Sequence[Run], metric: str) -> None:
    lacking = [run for run in runs if metric not in run.metrics]
    if not lacking:
        return
    if len(lacking) == len(runs):
        known = sorted({name for run in runs for name in run.metrics})
        close = close_names(metric, known)
        raise ConfigurationError(f"--metric={metric} is in none of the runs, which have {', '.join(known)}.{close}")
    raise ConfigurationError(
        f"--metric={metric} is not in all of the runs: {_what_each_has(lacking)}; leave these out, or choose another."
    )


def _what_each_has(runs: Sequence[Run]) -> str:
    shown = "; ".join(f"{run.folder} has {run.has()}" for run in runs[:3])
    return shown if len(runs) <= 3 else f"{shown}; and {len(runs) - 3} more"


def _check_clocks(runs: Sequence[Run]) -> None:
    lacking = [str(run.folder) for run in runs if CLOCK not in run.metrics]
    if lacking:
        raise ConfigurationError(
            f"--x=time needs {CLOCK}, which is not in the metrics.csv of {', '.join(lacking[:3])}"
            f"{f' and {len(lacking) - 3} more' if len(lacking) > 3 else ''}: leave these runs out, or leave out --x."
        )


def _environments(groups: Sequence[Group]) -> list[str]:
    return list(dict.fromkeys(group.environment for group in groups))


def _panel(
    groups: Sequence[Group], environment: str, metrics: Sequence[str], ylabel: str, x: str, smoothing: float
) -> Panel:
    here = [group for group in groups if group.environment == environment]
    sizes = {group.size for group in here}
    title = ", ".join(filter(None, [environment, *(sizes if len(sizes) == 1 else [])]))
    lines = []
    for group in here:
        label = group.label if len(sizes) == 1 else f"{group.label} ({group.size})"
        curves = [(metric, _curve(group, metric, x, smoothing)) for metric in metrics]
        lines += [Line(label, metric, curve) for metric, curve in curves if curve is not None]
    if not lines:
        raise ConfigurationError(
            f"The runs of {environment or 'one curve'} have no {' or '.join(metrics)} where all of them have values: "
            "leave out those that ended early, or give them labels of their own."
        )
    return Panel(title, ylabel, lines)


def _curve(group: Group, metric: str, x: str, smoothing: float) -> Curve | None:
    """Mean and band of the runs that have the metric, where all of these have it; None if there is no such place."""
    runs = [run for run in group.runs if metric in run.metrics]
    if not runs:
        return None
    if len(runs) < len(group.runs):
        lacking = next(run.folder for run in group.runs if metric not in run.metrics)
        warnings.warn(
            f"The curve {metric} is of {len(runs)} of {len(group.runs)} runs only: {lacking} has no value of it.",
            stacklevel=2,
        )
    window = 0 if is_evaluation(metric) else smoothing * max(run.last_step for run in runs)
    seeds = [moving_mean(run.metrics[metric], window) for run in runs]
    if x == "time":
        seeds = [over_time(series, run.metrics[CLOCK]) for run, series in zip(runs, seeds)]
    low, high = common_range(seeds)
    if low > high:
        warnings.warn(
            f"{metric} of {runs[0].folder} and {len(runs) - 1} more is not drawn: there is no place on the x axis "
            "between first and last values of all of them.",
            stacklevel=2,
        )
        return None
    return mean_and_band(seeds)


def _warn_of_short_runs(group: Group) -> None:
    shortest, longest = (end(group.runs, key=lambda run: run.last_step) for end in (min, max))
    if shortest.last_step < _MUCH_SHORTER * longest.last_step:
        warnings.warn(
            f"{shortest.folder} ends at {shortest.last_step:,.0f} environment steps and {longest.folder}, of the same "
            f"curve, at {longest.last_step:,.0f}: a mean over seeds ends with the shortest.",
            stacklevel=2,
        )
