"""Trains for a long time and watches what the process holds: memory and open files must not grow.

    python benchmarks/soak.py --minutes 60 --config configs/cartpole.yaml
    python benchmarks/soak.py --minutes 60 --config configs/procgen_coinrun.yaml --data.env.num_threads=1

Prints a line a minute, and at the end the slope of memory over the second half of the run with its standard error.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass
class Sample:
    """``seconds`` since the start, resident memory in MiB and open files, of the process and its children together."""

    seconds: float
    memory: float
    files: int


def family(pid: int) -> Iterator[int]:
    """A process and all of its descendants."""
    yield pid
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            yield from family(int(child))


def look(pid: int, started: float) -> Sample:
    """What a process and its children hold now."""
    pages, files = 0, 0
    for member in family(pid):
        pages += int(Path(f"/proc/{member}/statm").read_text().split()[1])
        files += len(list(Path(f"/proc/{member}/fd").iterdir()))
    return Sample(time.monotonic() - started, pages * _PAGE / 2**20, files)


def slope(samples: Sequence[Sample]) -> tuple[float, float]:
    """MiB an hour by least squares, and its standard error."""
    hours = np.array([sample.seconds for sample in samples]) / 3600
    memory = np.array([sample.memory for sample in samples])
    (fitted, _), covariance = np.polyfit(hours, memory, 1, cov=True)
    return float(fitted), float(np.sqrt(covariance[0, 0]))


def soak(flags: Sequence[str], minutes: float, every: float) -> list[Sample]:
    """Run for so many minutes, and look every so many seconds."""
    with tempfile.TemporaryDirectory() as root:
        endless = [f"--trainer.default_root_dir={root}", "--data.total_timesteps=1000000000"]
        quiet = ["--trainer.enable_progress_bar=false", "--summary.log_freq=0"]
        process = subprocess.Popen([sys.executable, "-m", "ppo_lightning", "fit", *flags, *endless, *quiet])
        started, samples = time.monotonic(), []
        try:
            while time.monotonic() - started < 60 * minutes:
                time.sleep(every)
                if process.poll() is not None:
                    raise SystemExit(f"The run ended with exit code {process.returncode}.")
                samples.append(look(process.pid, started))
                last = samples[-1]
                print(f"{last.seconds / 60:6.1f} min {last.memory:9.1f} MiB {last.files:5d} files", flush=True)
        finally:
            process.terminate()
            process.wait()
    return samples


def main() -> None:
    """Read the command line, run, and say how it went."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--every", type=float, default=60.0, help="seconds between two looks")
    own, flags = parser.parse_known_args()
    samples = soak(flags, own.minutes, own.every)
    later = samples[len(samples) // 2 :]
    growth, error = slope(later)
    files = sorted({sample.files for sample in later})
    print(f"second half: {growth:+.2f} ± {error:.2f} MiB an hour; open files {files[0]} to {files[-1]}")


if __name__ == "__main__":
    main()
