"""Draw learning curves of runs, one panel a group of runs: every seed's curve and the mean over seeds.

    python benchmarks/plot_curves.py --out docs/learning_curves.png \
        CartPole-v1=runs/cartpole Acrobot-v1=runs/acrobot 'coinrun (easy, 200 levels)=runs/coinrun'

Each argument is TITLE=FOLDER, where the runs are in FOLDER/lightning_logs/version_*. Needs the bench extra.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt

POINTS = 200


def read_column(path: Path, name: str) -> tuple[list[int], list[float]]:
    """Steps and values of one metric of a ``metrics.csv``, where it was logged."""
    with path.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get(name)]
    return [int(row["step"]) for row in rows], [float(row[name]) for row in rows]


def smoothed(values: list[float], window: int) -> np.ndarray:
    """The mean of the last ``window`` values at each point."""
    sums = np.cumsum(np.concatenate([[0.0], values]))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - window)
    return (sums[ends] - sums[starts]) / (ends - starts)


def draw(axis: plt.Axes, title: str, folder: Path) -> None:
    """One panel: training returns (lines) and evaluations (dots) of every run in ``folder``."""
    paths = sorted(folder.glob("lightning_logs/version_*/metrics.csv"))
    if not paths:
        raise SystemExit(
            f"{folder} has no lightning_logs/version_*/metrics.csv: name the folder of --default_root_dir."
        )
    curves = []
    for path in paths:
        steps, returns = read_column(path, "rollout/return_mean")
        curve = smoothed(returns, max(1, len(returns) // 40))
        axis.plot(steps, curve, color="tab:blue", alpha=0.3 if len(paths) > 1 else 1.0, linewidth=1)
        curves.append((steps, curve))
        axis.plot(*read_column(path, "eval/return_mean"), "o", color="tab:orange", markersize=3)
    if len(curves) > 1:
        grid = np.linspace(max(steps[0] for steps, _ in curves), min(steps[-1] for steps, _ in curves), POINTS)
        mean = np.mean([np.interp(grid, steps, curve) for steps, curve in curves], axis=0)
        axis.plot(grid, mean, color="tab:blue", linewidth=2)
    seeds = f"{len(paths)} seeds" if len(paths) > 1 else "1 seed"
    axis.set(title=f"{title}, {seeds}", xlabel="environment steps", ylabel="return")
    axis.ticklabel_format(axis="x", style="sci", scilimits=(3, 3), useMathText=True)
    axis.grid(alpha=0.3)
    axis.plot([], [], color="tab:blue", label="training")
    axis.plot([], [], "o", color="tab:orange", markersize=3, label="evaluation")
    axis.legend(loc="lower right", fontsize=8)


def main() -> None:
    """Draw the panels side by side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("groups", nargs="+", metavar="TITLE=FOLDER")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    figure, axes = plt.subplots(1, len(args.groups), figsize=(4.2 * len(args.groups), 3.2), squeeze=False)
    for axis, group in zip(axes[0], args.groups):
        title, _, folder = group.partition("=")
        draw(axis, title, Path(folder))
    figure.tight_layout()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out, dpi=130)


if __name__ == "__main__":
    main()
