"""Reading ``metrics.csv``, with one sentence for each way it can be damaged."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np

from ppo_lightning.core.errors import ConfigurationError
from ppo_lightning.curves.statistics import Series

FILE_NAME = "metrics.csv"
STEP = "step"


def read_metrics(path: Path) -> dict[str, Series]:
    """Every metric that has a value, over environment steps; empty cells, NaN and infinities are left out.

    Raises:
        ConfigurationError: the file is damaged; names it and the row.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.reader(file, strict=True)
            names = next(reader, [])
            if STEP not in names:
                raise _damaged(path, f"its first row has no column {STEP}")
            cells: dict[str, dict[float, float]] = {name: {} for name in names if name != STEP}
            for row in reader:
                _take_row(cells, names, row, f"{path}, row {reader.line_num}")
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise _damaged(path, " ".join(str(error).split())) from error
    return {name: _series(values) for name, values in cells.items() if values}


def _take_row(cells: dict[str, dict[float, float]], names: list[str], row: list[str], where: str) -> None:
    if len(row) != len(names):
        raise ConfigurationError(
            f"{where}, has {len(row)} cells and the first row {len(names)}: mend or remove that row."
        )
    step = _number(dict(zip(names, row))[STEP], where, STEP)
    if not math.isfinite(step):
        raise ConfigurationError(f"{where}, has no {STEP}: mend or remove that row.")
    for name, cell in zip(names, row):
        value = _number(cell, where, name) if name != STEP else math.nan
        if math.isfinite(value):
            cells[name][step] = value  # of a step that is there twice, the later row


def _number(cell: str, where: str, name: str) -> float:
    """NaN for an empty cell."""
    try:
        return float(cell) if cell.strip() else math.nan
    except ValueError:
        raise ConfigurationError(
            f"{where}, has {cell!r} as {name}, which is no number: mend or remove that row."
        ) from None


def _series(values: dict[float, float]) -> Series:
    steps = sorted(values)
    return Series(np.array(steps), np.array([values[step] for step in steps]))


def _damaged(path: Path, reason: str) -> ConfigurationError:
    return ConfigurationError(
        f"{path} is not a table of metrics as ppo-lightning writes it ({reason}): mend it, or leave the run out."
    )
