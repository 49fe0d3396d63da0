"""Steps/s of two ranks with one thread each beside one rank with one thread, in turn, with the same numbers per rank.

    python benchmarks/ranks_speed.py [--rounds 5] [--tasks cartpole coinrun] [--precision 32-true]

CartPole: 64 environments × 256 steps a rank, 4 epochs × 4 minibatches of 4096, MLP 2×64. Coinrun: the numbers of
configs/procgen_coinrun.yaml with shorter rollouts (64 × 16, 3 × 8 minibatches of 128, IMPALA CNN, bf16-mixed). Without
evaluation, loggers and checkpoints; a speed is the median of the iterations' own (``time/sps``) without the first, so
that starting processes does not count. Each round trains both, one after the other; the ratio is taken round by round.
Two ranks play twice as many steps, so perfect scaling is a ratio of 2.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

ITERATIONS = {"cartpole": 12, "coinrun": 3}


def cartpole() -> tuple[Any, Any, dict[str, Any]]:
    """Agent, data and precision of a run with a small network and a large batch."""
    from ppo_lightning import PPO, RolloutDataModule

    sizes = {"num_envs": 64, "num_steps": 256, "num_minibatches": 4, "update_epochs": 4}
    return PPO(learning_rate=3e-4, gamma=0.99), RolloutDataModule("CartPole-v1", total_timesteps=None, **sizes), {}


def coinrun(precision: str) -> tuple[Any, Any, dict[str, Any]]:
    """Agent, data and precision as in configs/procgen_coinrun.yaml, with one simulator thread a rank."""
    from ppo_lightning import PPO, ImpalaPPOModel, ProcgenEnv, RolloutDataModule

    env = ProcgenEnv("coinrun", distribution_mode="easy", num_levels=200, num_threads=0)
    sizes = {"num_envs": 64, "num_steps": 16, "num_minibatches": 8, "update_epochs": 3}
    data = RolloutDataModule(env, total_timesteps=None, **sizes)
    return PPO(ImpalaPPOModel), data, {"precision": precision}


def train(task: str, ranks: int, precision: str, out: Path) -> None:
    """One run in this process (and those that Lightning starts beside it); writes the iterations' steps/s."""
    import torch
    from lightning.pytorch import Callback, Trainer, seed_everything
    from training import bare_trainer

    class Speeds(Callback):
        def __init__(self) -> None:
            self.seen: list[float] = []

        def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
            self.seen.append(float(trainer.callback_metrics["time/sps"]))

    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    seed_everything(1, verbose=False)
    agent, data, settings = cartpole() if task == "cartpole" else coinrun(precision)
    trainer = bare_trainer(
        max_epochs=ITERATIONS[task],
        devices=ranks,
        strategy="ddp" if ranks > 1 else "auto",
        callbacks=[speeds := Speeds()],
        **settings,
    )
    trainer.fit(agent, data)
    if trainer.is_global_zero:
        out.write_text(json.dumps(speeds.seen))


def speed(task: str, ranks: int, precision: str) -> float:
    """Steps/s over all ranks, of a run in processes of its own."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "speeds.json"
        command = [sys.executable, __file__, "--task", task, "--ranks", str(ranks), "--precision", precision]
        command += ["--out", str(out)]
        subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)
        return statistics.median(json.loads(out.read_text())[1:])


def main() -> None:
    """Measure in turn and print medians and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tasks", nargs="+", choices=list(ITERATIONS), default=list(ITERATIONS))
    parser.add_argument("--precision", default="bf16-mixed", help="of coinrun; 32-true on a CPU without bfloat16")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    parser.add_argument("--ranks", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.task:
        train(args.task, args.ranks, args.precision, args.out)
        return
    for task in args.tasks:
        rounds = [tuple(speed(task, ranks, args.precision) for ranks in (1, 2)) for _ in range(args.rounds)]
        ratios = sorted(two / one for one, two in rounds)
        print(task)
        for name, column in zip(("one rank", "two ranks"), zip(*rounds)):
            print(
                f"  {name:10} {statistics.median(column):8,.0f} steps/s (from {min(column):,.0f} to {max(column):,.0f})"
            )
        print(f"  {'ratio':10} {statistics.median(ratios):8.2f}         (from {ratios[0]:.2f} to {ratios[-1]:.2f})")


if __name__ == "__main__":
    main()
