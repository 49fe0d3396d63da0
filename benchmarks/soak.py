"""Trains for a long time and watches what the process holds: memory and open files must not grow.

    python benchmarks/soak.py --minutes 60 --config configs/cartpole.yaml
    python benchmarks/soak.py --minutes 60 --config configs/procgen_coinrun.yaml --data.env.num_threads=1

Memory goes up and down within an iteration (activations, the optimiser's work), so it is looked at every second and a
line a minute has the lowest and the highest of it: the lowest are of one phase of the iteration and can be compared.
Ends with the slopes of both over the second half of the run, and their standard errors.
"""

from __future__ import annotations

import argparse
import os
import signal
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


@dataclass
class Window:
    """What was seen during one stretch of the run, which ended ``seconds`` after the start."""

    seconds: float
    lowest: float
    highest: float
    files: int

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> Window:
        """Put the looks of one stretch together; of the open files the fewest, for a logger opens one for a moment."""
        memory = [sample.memory for sample in samples]
        return cls(samples[-1].seconds, min(memory), max(memory), min(sample.files for sample in samples))


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


def slope(windows: Sequence[Window], memory: Sequence[float]) -> tuple[float, float]:
    """MiB an hour by least squares, and its standard error."""
    hours = np.array([window.seconds for window in windows]) / 3600
    (fitted, _), covariance = np.polyfit(hours, np.array(memory), 1, cov=True)
    return float(fitted), float(np.sqrt(covariance[0, 0]))


def windows_of(process: subprocess.Popen[bytes], minutes: float, length: float, every: float) -> Iterator[Window]:
    """Look at a process every so many seconds, and give what was seen in each stretch of ``length`` seconds."""
    started, samples = time.monotonic(), list[Sample]()
    end = started + length
    while time.monotonic() - started < 60 * minutes:
        time.sleep(every)
        if process.poll() is not None:
            raise SystemExit(f"The run ended with exit code {process.returncode}.")
        samples.append(look(process.pid, started))
        if time.monotonic() >= end:
            yield Window.of(samples)
            samples, end = [], end + length


def soak(flags: Sequence[str], minutes: float, length: float, every: float) -> list[Window]:
    """Run for so many minutes, and look all the while."""
    with tempfile.TemporaryDirectory() as root:
        endless = [f"--trainer.default_root_dir={root}", "--data.total_timesteps=1000000000"]
        quiet = ["--trainer.enable_progress_bar=false", "--summary.log_freq=0"]
        process = subprocess.Popen([sys.executable, "-m", "ppo_lightning", "fit", *flags, *endless, *quiet])
        windows = []
        try:
            for last in windows_of(process, minutes, length, every):
                windows.append(last)
                span = f"{last.lowest:9.1f} to {last.highest:9.1f} MiB"
                print(f"{last.seconds / 60:6.1f} min {span} {last.files:5d} files", flush=True)
        finally:
            process.terminate()
            process.wait()
    return windows


def main() -> None:
    """Read the command line, run, and say how it went."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--window", type=float, default=60.0, help="seconds that one printed line is of")
    parser.add_argument("--every", type=float, default=1.0, help="seconds between two looks")
    own, flags = parser.parse_known_args()
    if min(own.window, own.every) <= 0 or own.minutes * 60 < 8 * own.window:
        parser.error("a slope needs --minutes of at least 8 times --window, and both --window and --every above 0")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # which ends the run too
    windows = soak(flags, own.minutes, own.window, own.every)
    later = windows[len(windows) // 2 :]
    for name, memory in [("lowest", [w.lowest for w in later]), ("highest", [w.highest for w in later])]:
        growth, error = slope(later, memory)
        print(f"second half, {name} of a window: {growth:+.2f} ± {error:.2f} MiB an hour")
    files = sorted({window.files for window in later})
    print(f"open files {files[0]} to {files[-1]}")


if __name__ == "__main__":
    main()
