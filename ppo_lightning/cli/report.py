"""What a command says at its end: a table for people, JSON for machines."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, TextIO

from rich.console import Console
from rich.table import Table

from ppo_lightning.callbacks import Evaluation
from ppo_lightning.callbacks.video import Recording

_NOT_A_TERMINAL = 120  # columns


def console(file: TextIO | None = None) -> Console:
    """Prints to the terminal in its width, and into files wide enough for a table."""
    file = file or sys.stdout
    return Console(file=file, width=None if file.isatty() else _NOT_A_TERMINAL)


def evaluation_table(evaluation: Evaluation, title: str) -> Table:
    """A row a split."""
    rows = [_cells(split, evaluation.metrics_of(split)) for split in evaluation.splits]
    if all(row["base return"] == row["return (mean ± 95 %)"] for row in rows):  # no costs anywhere
        rows = [{name: cell for name, cell in row.items() if name != "base return"} for row in rows]
    table = Table(title=title)
    for name in rows[0]:
        table.add_column(name, justify="left" if name == "split" else "right")
    for row in rows:
        table.add_row(*row.values())
    return table


def evaluation_json(evaluations: Sequence[Evaluation], env_steps: int, **more: Any) -> str:
    """The same numbers, under the names that they are logged by."""
    names = ("num_episodes", "temperature", "max_num_steps")
    splits = [
        {"split": split, **{name: getattr(evaluation, name) for name in names}}
        for evaluation in evaluations
        for split in evaluation.splits
    ]
    metrics = {name: value for evaluation in evaluations for name, value in evaluation.metrics.items()}
    return json.dumps({**more, "env_steps": env_steps, "splits": splits, "metrics": metrics}, indent=2)


def recordings_json(recordings: Sequence[Recording], checkpoint: str) -> str:
    """The recorded files."""
    videos = [{**asdict(recording), "path": str(recording.path)} for recording in recordings]
    return json.dumps({"checkpoint": checkpoint, "videos": videos}, indent=2)


def _cells(split: str, metrics: Mapping[str, float]) -> dict[str, str]:
    cells = {"split": split} if split else {}
    cells["return (mean ± 95 %)"] = f"{metrics['return_mean']:.2f} ± {metrics['return_ci95']:.2f}"
    cells["base return"] = f"{metrics['base_return_mean']:.2f} ± {metrics['base_return_ci95']:.2f}"
    cells["length (min–max)"] = (
        f"{metrics['length_mean']:.1f} ({metrics['length_min']:.0f}–{metrics['length_max']:.0f})"
    )
    for name, value in metrics.items():
        if name.endswith("_fraction"):
            cells[name.removesuffix("_fraction").replace("_", " ")] = f"{100 * value:.1f} %"
    cells["episodes"] = f"{metrics['episodes']:,.0f}"
    cells["steps"] = f"{metrics['steps']:,.0f}"
    return cells
