"""``ppo-lightning plot``: learning curves of runs as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from ppo_lightning.commands.parser import PROGRAM, PPOArgumentParser
from ppo_lightning.curves import DEFAULT_SMOOTH, plot_runs

_DESCRIPTION = """Draw learning curves of runs: a panel an environment, a colour a configuration, the mean over its
seeds and a band of one standard deviation, as far as all of its runs go. Runs that differ only in seeds and paths have
one configuration. Example: ppo-lightning plot lightning_logs --out curves.png."""


def main(args: Sequence[str]) -> None:
    """Run the command."""
    parser = PPOArgumentParser(prog=f"{PROGRAM} plot", description=_DESCRIPTION)
    parser.add_argument(
        "runs",
        nargs="+",
        type=str,
        metavar="RUNS",
        help="A run's folder, or one above, which is searched. LABEL=FOLDER makes one curve of all runs in it.",
    )
    parser.add_argument("--out", type=str, required=True, help="The picture to write, a .png say.")
    parser.add_argument(
        "--metric",
        type=str,
        nargs="+",
        default=[],
        help="Columns of metrics.csv, a row of panels each; without it training and evaluation returns.",
    )
    parser.add_argument("--x", type=Literal["env_steps", "time"], default="env_steps", help="What is on the x axis.")
    parser.add_argument(
        "--smooth",
        type=float,
        default=DEFAULT_SMOOTH,
        help="Training metrics are means over this share of the run before each point; 0 draws them as they are.",
    )
    given = parser.parse_args(list(args))
    plot_runs(given.runs, given.out, given.metric, given.x, given.smooth)
    print(f"Learning curves: {given.out}")
