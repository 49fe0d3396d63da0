"""What a run costs as it grows: seconds an iteration and peak memory against environments, steps and network width.

    python benchmarks/scaling.py [--rounds 3] [--jobs cartpole coinrun] --out docs/scaling.png

Each point is a process of its own, in turn, and all of them again in every round; the best of each is kept, as nothing
makes a program faster than it is. CartPole's minibatches stay 128 transitions, coinrun's 512, so that nothing but the
number of transitions grows with environments and steps. Cost grows linearly where the lines are straight.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import run
from jobs import JOBS, Job, mlp

from ppo_lightning import ImpalaPPOModel

HERE = Path(__file__).resolve().parent


def of_cartpole(num_envs: int = 16, num_steps: int = 128, width: int = 64) -> Job:
    """CartPole of this size."""
    return dataclasses.replace(
        JOBS["cartpole"],
        num_envs=num_envs,
        num_steps=num_steps,
        num_minibatches=num_envs * num_steps // 128,
        network=mlp(width),
        iterations=max(2, 2**15 // (num_envs * num_steps)),
    )


def of_coinrun(num_envs: int = 16, num_steps: int = 64, width: int = 16) -> Job:
    """Coinrun of this size."""
    return dataclasses.replace(
        JOBS["coinrun"],
        num_envs=num_envs,
        num_steps=num_steps,
        num_minibatches=num_envs * num_steps // 512,
        update_epochs=1,
        network=functools.partial(ImpalaPPOModel, channels=(width, 2 * width, 2 * width)),
    )


SIZES: dict[str, tuple[Callable[..., Job], dict[str, list[int]]]] = {
    "cartpole": (
        of_cartpole,
        {
            "num_envs": [4, 16, 64, 128, 256],
            "num_steps": [32, 128, 512, 1024, 2048],
            "width": [32, 64, 128, 256, 512],
        },
    ),
    "coinrun": (of_coinrun, {"num_envs": [8, 16, 32, 64], "num_steps": [32, 64, 128, 256], "width": [8, 16, 24]}),
}
NAMES = {"num_envs": "environments", "num_steps": "steps a rollout", "width": "network width"}


def point(name: str, size: str, value: int) -> dict[str, float]:
    """One of them, in this process."""
    from programs import ours, quietly

    job = SIZES[name][0](**{size: value})
    return {"seconds": job.batch_size / quietly(ours, job)["sps"]}


def measure(name: str, rounds: int) -> dict[str, dict[int, tuple[float, float]]]:
    """Of each size and each of its values the seconds an iteration, and MiB."""
    best: dict[str, dict[int, tuple[float, float]]] = {size: {} for size in SIZES[name][1]}
    for _ in range(rounds):
        for size, values in SIZES[name][1].items():
            for value in values:
                command = [sys.executable, str(HERE / "scaling.py"), "--point", name, size, str(value)]
                printed, memory = run(command, JOBS[name].threads)
                seconds = json.loads(printed.splitlines()[-1])["seconds"]
                before = best[size].get(value, (seconds, memory))
                best[size][value] = min(before[0], seconds), min(before[1], memory)
                print(f"{name}, {NAMES[size]} {value}: {seconds:.3f} s, {memory:,.0f} MiB", file=sys.stderr, flush=True)
    return best


def draw(figures: dict[str, dict[str, dict[int, tuple[float, float]]]], out: Path) -> None:
    """A row for each job: seconds on the left axis, memory on the right."""
    from matplotlib.figure import Figure

    columns = len(NAMES)
    figure = Figure(figsize=(4 * columns, 3 * len(figures)), layout="constrained")
    axes: Any = figure.subplots(len(figures), columns, squeeze=False)
    for row, (name, sizes) in zip(axes, figures.items()):
        for axis, (size, points) in zip(row, sizes.items()):
            values = list(points)
            axis.plot(values, [seconds for seconds, _ in points.values()], "o-", color="C0")
            axis.set(xlabel=NAMES[size], title=name, xlim=(0, None), ylim=(0, None))
            axis.set_ylabel("seconds an iteration", color="C0")
            memory = axis.twinx()
            memory.plot(values, [mib for _, mib in points.values()], "s--", color="C1")
            memory.set_ylabel("peak memory, MiB", color="C1")
            memory.set_ylim(0, None)
    figure.savefig(out, dpi=110)


def main() -> None:
    """Measure, print a table, and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", nargs="+", choices=list(SIZES), default=list(SIZES), metavar="JOB")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="the picture to draw")
    parser.add_argument("--point", nargs=3, metavar=("JOB", "SIZE", "VALUE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.point:
        print(json.dumps(point(args.point[0], args.point[1], int(args.point[2]))))
        return
    if args.rounds < 1:
        parser.error(f"--rounds={args.rounds} must be at least 1.")
    figures = {name: measure(name, args.rounds) for name in args.jobs}
    for name, sizes in figures.items():
        for size, points in sizes.items():
            cells = [f"{value}: {seconds:.3g} s, {mib:,.0f} MiB" for value, (seconds, mib) in points.items()]
            print(f"| {name}, {NAMES[size]} | {' | '.join(cells)} |")
    if args.out:
        draw(figures, args.out)


if __name__ == "__main__":
    main()
