"""What it costs to map every activation anew: an IMPALA update with freed memory kept, and without, in turn.

    python benchmarks/allocator_speed.py [--rounds 3] [--sizes 128 2048 4096] [--threads 2] [--precision bf16]

Each measurement is a process of its own: forward and backward passes over minibatches of images of 64×64×3, and forward
passes alone. Ratios are taken round by round. ``peak`` is the process's largest resident size.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time


def measure(is_kept: bool, size: int, threads: int, precision: str) -> None:
    """Print samples/s of training and of acting, and the peak in MiB, as JSON."""
    import resource

    import numpy as np
    import torch
    from gymnasium import spaces

    from ppo_lightning import ImpalaPPOModel, keep_freed_memory

    if is_kept and not keep_freed_memory():
        raise SystemExit("Not here: another C library than glibc, or settings of malloc in the environment.")
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    network = ImpalaPPOModel(spaces.Box(0, 255, (64, 64, 3), np.uint8), spaces.Discrete(15))
    obs = torch.randint(0, 255, (size, 64, 64, 3), dtype=torch.uint8)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")

    def train() -> None:
        with autocast:
            output = network(obs)
        (output.logits.square().mean() + output.value.square().mean()).backward()

    def act() -> None:
        with torch.no_grad(), autocast:
            network(obs)

    speeds = []
    for run in (train, act):
        run(), run()  # warm up
        count = max(2, 8192 // size)
        start = time.perf_counter()
        for _ in range(count):
            run()
        speeds.append(count * size / (time.perf_counter() - start))
    print(json.dumps([*speeds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))


def main() -> None:
    """Measure in turn and print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 2048, 4096])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", choices=["bf16", "float32"], default="bf16")
    parser.add_argument("--one", choices=["kept", "returned"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        measure(args.one == "kept", args.sizes[0], args.threads, args.precision)
        return
    for size in args.sizes:
        rounds = []
        for _ in range(args.rounds):
            numbers = {}
            for one in ("kept", "returned"):
                command = [sys.executable, __file__, f"--one={one}", "--sizes", str(size)]
                command += [f"--threads={args.threads}", f"--precision={args.precision}"]
                numbers[one] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            rounds.append(numbers)
        print(f"minibatches of {size}")
        for place, name in enumerate(("train, samples/s", "act, samples/s", "peak, MiB")):
            kept, returned = ([numbers[one][place] for numbers in rounds] for one in ("kept", "returned"))
            ratios = sorted(a / b for a, b in zip(kept, returned))
            print(
                f"  {name:17} kept {statistics.median(kept):6,.0f}, returned {statistics.median(returned):6,.0f}, "
                f"ratio {statistics.median(ratios):.2f} ({ratios[0]:.2f}–{ratios[-1]:.2f})",
                flush=True,
            )


if __name__ == "__main__":
    main()
