"""Speed and memory of this package beside its peers and beside what no program can leave out, in one go.

    make bench ARGS="--rounds 5 --cleanrl FOLDER --cleanrl_python PYTHON --write"

Four jobs (CartPole, HalfCheetah, Procgen coinrun, Atari Breakout), each with the same numbers in all programs. Every
program runs in a process of its own, one after the other, and all of them again in every round; ratios are taken round
by round, so that a machine that slows down slows all. What is timed begins after the first iteration. Printed are
medians, from the lowest to the highest.

- *floor*: the environment's steps, the network's forward pass in each, its forward and backward pass in each minibatch,
  clipping and the optimiser, alone in a bare loop. What a run takes beyond it is its overhead.
- Stable-Baselines3: pip install 'ppo-lightning[bench]', which make bench does.
- CleanRL: the folder of its scripts, and a Python that has what they need.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jobs import JOBS, Job
from stages import STAGES

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "RESULTS.md"
BEGIN, END = "<!-- make bench: begin -->", "<!-- make bench: end -->"
MIB = 1024 if sys.platform.startswith("linux") else 1024**2  # of what getrusage counts in


def run(command: Sequence[str], threads: int, folder: str | None = None) -> tuple[str, float]:
    """What a program prints, and the most memory that it had, in MiB.

    Raises:
        SystemExit: it failed; with the end of what it said.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "CUDA_VISIBLE_DEVICES": ""}
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(command, stdout=out, stderr=err, env=environment, cwd=folder)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0), err.seek(0)
        if process.returncode:
            sys.exit(f"{' '.join(command)} failed:\n{err.read()[-2000:]}")
        return out.read(), usage.ru_maxrss / MIB


def of_own_process(program: str, name: str) -> dict[str, Any]:
    """The figures of a program of programs.py."""
    printed, memory = run([sys.executable, str(HERE / "programs.py"), program, name], JOBS[name].threads)
    return {**json.loads(printed.splitlines()[-1]), "memory": memory}


def of_cleanrl(job: Job, folder: Path, python: str) -> dict[str, Any]:
    """The figures of CleanRL's script, from the steps/s since its start that it prints every iteration."""
    assert job.cleanrl is not None
    script, arguments = job.cleanrl
    numbers = {
        "total-timesteps": (1 + job.iterations) * job.batch_size,
        "num-envs": job.num_envs,
        "num-steps": job.num_steps,
        "num-minibatches": job.num_minibatches,
        "update-epochs": job.update_epochs,
    }
    flags = [word for name, number in numbers.items() for word in (f"--{name}", str(number))]
    with tempfile.TemporaryDirectory() as scratch:  # where it writes its curves
        printed, memory = run(
            [python, str(folder.resolve() / script), *arguments, *flags, "--no-cuda"], job.threads, scratch
        )
    speeds = [int(number) for number in re.findall(r"^SPS: (\d+)", printed, flags=re.MULTILINE)]
    if len(speeds) != 1 + job.iterations:
        sys.exit(f"{script} printed {len(speeds)} lines of SPS in {1 + job.iterations} iterations.")
    seconds = [number * job.batch_size / speed for number, speed in enumerate(speeds, 1)]
    return {"sps": job.iterations * job.batch_size / (seconds[-1] - seconds[0]), "memory": memory}


def measure(name: str, rounds: int, cleanrl: Path | None, python: str) -> dict[str, list[dict[str, Any]]]:
    """The figures of all programs for one job, round by round."""
    job = JOBS[name]
    programs = ["ours", "floor"]
    if job.sb3 is not None and importlib.util.find_spec("stable_baselines3") is not None:
        programs.append("Stable-Baselines3")
    figures: dict[str, list[dict[str, Any]]] = {program: [] for program in programs}
    for number in range(rounds):
        for program in programs:
            figures[program].append(of_own_process(program, name))
        if cleanrl is not None and job.cleanrl is not None:
            figures.setdefault("CleanRL", []).append(of_cleanrl(job, cleanrl, python))
        latest = ", ".join(f"{program} {column[-1]['sps']:,.0f}" for program, column in figures.items())
        print(f"{name}, round {number + 1} of {rounds}: {latest} steps/s", file=sys.stderr, flush=True)
    figures["stages"] = [of_own_process("stages", name)]
    return figures


def spread(numbers: Sequence[float], digits: int = 0) -> str:
    """The median, from the lowest to the highest."""
    low, middle, high = min(numbers), statistics.median(numbers), max(numbers)
    return f"{middle:,.{digits}f} ({low:,.{digits}f} – {high:,.{digits}f})"


def table(name: str, figures: dict[str, list[dict[str, Any]]]) -> str:
    """What was measured for one job, in Markdown."""
    job, ours = JOBS[name], [one["sps"] for one in figures["ours"]]
    lines = [
        f"**{job.title}**: {job.numbers}",
        "",
        "| | steps/s | ours over it | peak memory, MiB |",
        "|---|---|---|---|",
    ]
    for program, column in figures.items():
        if program == "stages":
            continue
        speeds, memory = [one["sps"] for one in column], statistics.median(one["memory"] for one in column)
        ratio = spread([own / other for own, other in zip(ours, speeds)], 2) if program != "ours" else ""
        title = "ppo-lightning" if program == "ours" else program
        lines.append(f"| {title} | {spread(speeds)} | {ratio} | {memory:,.0f} |")
    outside = [1 - own / one["sps"] for own, one in zip(ours, figures["floor"])]
    seconds = figures["stages"][0]["stages"]
    whole = sum(seconds.values())
    lines += [
        "",
        f"Outside the floor: {100 * statistics.median(outside):.0f} % of an iteration "
        f"({100 * min(outside):.0f} – {100 * max(outside):.0f}). Where {whole:,.1f} ms of one go:",
        "",
        "| " + " | ".join(STAGES) + " |",
        "|" + "---|" * len(STAGES),
        "| " + " | ".join(f"{seconds[stage]:,.1f}" for stage in STAGES) + " |",
    ]
    return "\n".join(lines)


def machine() -> str:
    """What all of it was measured on, when, and at which commit."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=HERE, capture_output=True, text=True
    ).stdout.strip()
    processor, info = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if info.exists():
        names = re.findall(r"^model name\s*: (.*)$", info.read_text(), flags=re.MULTILINE)
        processor = names[0] if names else processor
    day = datetime.date.today().isoformat()
    return f"{day}, commit {commit}, {os.cpu_count()} cores of {processor}, Python {platform.python_version()}"


def write(text: str) -> None:
    """Put it into RESULTS.md in the place of what an earlier run left there."""
    results = RESULTS.read_text()
    before, _, rest = results.partition(BEGIN)
    _, _, after = rest.partition(END)
    RESULTS.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")


def main() -> None:
    """Measure, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", nargs="+", choices=list(JOBS), default=list(JOBS), metavar="JOB")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cleanrl", type=Path, help="the folder that has its ppo.py and ppo_procgen.py")
    parser.add_argument("--cleanrl_python", default=sys.executable, help="a Python with the packages that they need")
    parser.add_argument("--write", action="store_true", help="write the tables to benchmarks/RESULTS.md")
    args = parser.parse_args()
    if args.rounds < 1:
        parser.error(f"--rounds={args.rounds} must be at least 1.")
    for script in sorted({job.cleanrl[0] for job in map(JOBS.get, args.jobs) if job and job.cleanrl}):
        if args.cleanrl is not None and not (args.cleanrl / script).exists():
            parser.error(f"--cleanrl={args.cleanrl} has no {script}: give the folder of CleanRL's scripts.")
    if shutil.which(args.cleanrl_python) is None:
        parser.error(f"--cleanrl_python={args.cleanrl_python} is no program: give the path of a Python.")
    if args.write and not re.search(f"{BEGIN}.*{END}", RESULTS.read_text(), flags=re.DOTALL):
        parser.error(f"{RESULTS.name} has no place for the tables, between a line {BEGIN} and a line {END}.")
    words = f"--jobs {' '.join(args.jobs)} --rounds {args.rounds}" + (" --cleanrl …" if args.cleanrl else "")
    parts = [f"`python benchmarks/bench.py {words}`; {machine()}."]
    for name in args.jobs:
        parts.append(table(name, measure(name, args.rounds, args.cleanrl, args.cleanrl_python)))
        print(f"\n{parts[-1]}\n", flush=True)
    if args.write:
        write("\n\n".join(parts))


if __name__ == "__main__":
    main()
