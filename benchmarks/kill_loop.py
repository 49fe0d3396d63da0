"""Kills a run again and again and compares its end with that of a run that was never killed.

    python benchmarks/kill_loop.py --kills 50 --config configs/cartpole.yaml --data.total_timesteps=400000

Every attempt is the same command with ``--resume=auto``, killed by SIGKILL at a random moment, whatever it is doing:
importing, restoring, playing, updating, evaluating, saving. After the last kill the run is left to end. Its last.ckpt
must then hold, bit for bit, what the other's does (wall-clock times and the names of folders aside), and its
metrics.csv the same rows.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

RUN = Path("lightning_logs/version_0")
WALL_CLOCK = ("train_seconds", "time/sps", "time/seconds", "summary/sps", "summary/seconds", "time_queue")


def command(root: Path, flags: Sequence[str]) -> list[str]:
    """The command line of a run below ``root``."""
    quiet = [f"--trainer.default_root_dir={root}", "--trainer.enable_progress_bar=false"]
    return [sys.executable, "-m", "ppo_lightning", "fit", *flags, *quiet]


def run_to_the_end(root: Path, flags: Sequence[str]) -> None:
    """Run without a kill."""
    subprocess.run(command(root, flags), check=True, stdout=subprocess.DEVNULL)


def run_and_kill(root: Path, flags: Sequence[str], after: float) -> bool:
    """Start the run, and kill it with all of its processes ``after`` so many seconds; False if it ended before."""
    with (root / "attempts.log").open("a") as log:
        process = subprocess.Popen(command(root, flags), start_new_session=True, stdout=log, stderr=log)
        try:
            code = process.wait(timeout=after)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return True
    if code:
        raise SystemExit(f"An attempt ended with exit code {code}: see {root / 'attempts.log'}.")
    return False


def steps_saved(root: Path) -> int:
    """Environment steps of ``last.ckpt``; 0 where there is none yet."""
    path = root / RUN / "checkpoints/last.ckpt"
    return int(torch.load(path, weights_only=True)["RolloutDataModule"]["env_steps"]) if path.is_file() else 0


def differences(first: Any, second: Any, place: str = "") -> Iterator[str]:
    """Where two checkpoints differ, wall-clock times and folders aside; nothing if they are the same, bit for bit."""
    if type(first) is not type(second):
        yield f"{place}: {type(first).__name__} and {type(second).__name__}"
    elif isinstance(first, dict):
        first, second = ({without_folder(key): value for key, value in one.items()} for one in (first, second))
        if list(first) != list(second):
            yield f"{place}: the keys {list(first)} and {list(second)}"
        for key in first.keys() & second.keys():
            if key not in WALL_CLOCK:
                yield from differences(first[key], second[key], f"{place}/{key}")
    elif isinstance(first, (list, tuple)):
        if len(first) != len(second):
            yield f"{place}: {len(first)} and {len(second)} entries"
        for number, pair in enumerate(zip(first, second)):
            yield from differences(*pair, f"{place}[{number}]")
    elif isinstance(first, torch.Tensor):
        if first.dtype != second.dtype or first.shape != second.shape or bytes_of(first) != bytes_of(second):
            yield f"{place}: other tensors"
    elif repr(without_folder(first)) != repr(without_folder(second)):  # of -0.0 too; NaNs are alike
        yield f"{place}: {first!r} and {second!r}"


def without_folder(value: Any) -> Any:
    """The last part of a path; anything else as it is."""
    is_path = isinstance(value, str) and (value.startswith(os.sep) or RUN.parts[0] in Path(value).parts)
    return Path(value).name if is_path else value


def bytes_of(tensor: torch.Tensor) -> bytes:
    """The numbers as they are in memory: NaNs and signed zeros count."""
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def rows(root: Path) -> list[dict[str, str]]:
    """The rows of ``metrics.csv`` without their wall-clock times."""
    with (root / RUN / "metrics.csv").open(newline="") as file:
        return [{name: row[name] for name in row if name not in WALL_CLOCK} for row in csv.DictReader(file)]


def compare(first: Path, second: Path) -> list[str]:
    """The differences between the ends of two runs."""
    ends = [torch.load(root / RUN / "checkpoints/last.ckpt", weights_only=True) for root in (first, second)]
    found = list(differences(*ends))
    return found if rows(first) == rows(second) else [*found, "metrics.csv: other rows"]


def kill_loop(root: Path, flags: Sequence[str], kills: int, within: float | None, seed: int) -> list[str]:
    """Run once in peace and once with kills below ``root``; returns the differences.

    Kills come within so many seconds, or where that is None, within as many as the run in peace took.
    """
    whole, killed = root / "whole", root / "killed"
    killed.mkdir(parents=True)
    started = time.monotonic()
    run_to_the_end(whole, flags)
    within = within or time.monotonic() - started
    moments = random.Random(seed)
    for kill in range(1, kills + 1):
        after = moments.uniform(0, within)
        if not run_and_kill(killed, [*flags, "--resume=auto"], after):
            print(f"The run ended before kill {kill}: give it more steps, or --within fewer seconds.")
            break
        print(f"kill {kill:3d} after {after:5.2f} s: {steps_saved(killed):,} steps are safe", flush=True)
    run_to_the_end(killed, [*flags, "--resume=auto"])
    return compare(whole, killed)


def main() -> None:
    """Read the command line, run, and say how it went."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--within", type=float, default=12.0, help="seconds after the start in which a kill comes")
    parser.add_argument("--kill_seed", type=int, default=1)
    own, flags = parser.parse_known_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        found = kill_loop(Path(folder), flags, own.kills, own.within, own.kill_seed)
    print("\n".join(found) or "The same, bit for bit.", f"({time.monotonic() - started:,.0f} s)")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
