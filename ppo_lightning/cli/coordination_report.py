"""What the commands that judge coordinators say at their end."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from ppo_lightning.callbacks import CoordinatorComparison, ThresholdCalibration
from ppo_lightning.callbacks.coordination import CoordinatorScore, CoordinatorTrials
from ppo_lightning.callbacks.saving import relative_path
from ppo_lightning.cli.report import console
from ppo_lightning.curves.comparison import Point

_OF_THRESHOLDS = ("confidence", "explore_temperature", "temperature", "percentile", "threshold")
_ALWAYS_TOLD = ("percentile", "threshold")


def report_calibration(calibration: ThresholdCalibration, as_json: bool, checkpoint: str | None) -> None:
    """A table a split, and where the best thresholds are."""
    scores, best = calibration.scores, calibration.best
    files = {split: relative_path(path) for split, path in calibration.files.items()}
    table = relative_path(calibration.table)
    if as_json:
        found = {split: {"file": files[split], **score.candidate.settings} for split, score in best.items()}
        _print_json(calibration, checkpoint, thresholds=found, table=table)
        return
    told = [
        name
        for name in _OF_THRESHOLDS
        if name in _ALWAYS_TOLD or len({score.candidate.settings[name] for score in scores}) > 1
    ]
    for split, own in _by_split(scores).items():
        rows = [
            {name.replace("_", " "): _number(score.candidate.settings[name]) for name in told} | _cells(score.metrics)
            for score in own
        ]
        console().print(_table(f"Thresholds{_on(split)}: {_measures(calibration)}", own, rows))
    for split, score in best.items():
        print(f"Best threshold{_on(split)}: {score.candidate.name}: {files[split]}")
    print(f"All candidates: {table}")


def report_comparison(comparison: CoordinatorComparison, as_json: bool, checkpoint: str | None, out: str) -> None:
    """A table a split, and where picture and numbers are."""
    table = str(table_beside(out))
    if as_json:
        _print_json(comparison, checkpoint, picture=out, table=table)
        return
    for split, own in _by_split(comparison.scores).items():
        rows = [{"coordinator": score.candidate.name} | _cells(score.metrics) for score in own]
        console().print(_table(f"Coordinators{_on(split)}", own, rows))
    print(f"Comparison: {out}, {table}")


def table_beside(picture: str) -> Path:
    """All numbers of a picture."""
    return Path(picture).with_suffix(".csv")


def points_of(scores: Sequence[CoordinatorScore]) -> list[Point]:
    """What is drawn of them."""
    return [
        Point(
            panel=score.split,
            label=score.candidate.label,
            expert_fraction=score.metrics["expert_fraction"],
            mean_return=score.metrics["return_mean"],
            interval=score.metrics["return_ci95"],
            is_of_curve=score.candidate.is_of_curve,
        )
        for score in scores
    ]


def _measures(calibration: ThresholdCalibration) -> str:
    return ", ".join(calibration.search.confidences)


def _by_split(scores: Sequence[CoordinatorScore]) -> dict[str, list[CoordinatorScore]]:
    splits: dict[str, list[CoordinatorScore]] = {}
    for score in scores:
        splits.setdefault(score.split, []).append(score)
    return splits


def _table(title: str, scores: Sequence[CoordinatorScore], rows: Sequence[Mapping[str, str]]) -> Table:
    """A row a coordinator; the best is marked."""
    table = Table(title=title)
    for name in rows[0]:
        table.add_column(name, justify="left" if name in ("coordinator", "confidence") else "right")
    table.add_column("")
    for score, row in zip(scores, rows):
        table.add_row(*row.values(), "best" if score.is_best else "", style="bold" if score.is_best else None)
    return table


def _cells(metrics: Mapping[str, float]) -> dict[str, str]:
    return {
        "return (mean ± 95 %)": f"{metrics['return_mean']:.2f} ± {metrics['return_ci95']:.2f}",
        "base return": f"{metrics['base_return_mean']:.2f} ± {metrics['base_return_ci95']:.2f}",
        "expert": f"{100 * metrics['expert_fraction']:.1f} %",
        "length": f"{metrics['length_mean']:.1f}",
    }


def _number(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, (int, float)) else str(value)


def _on(split: str) -> str:
    return f" on {split}" if split else ""


def _print_json(trials: CoordinatorTrials, checkpoint: str | None, **more: Any) -> None:
    print(json.dumps({"checkpoint": checkpoint, **more, "rows": [score.row() for score in trials.scores]}, indent=2))
