"""Where the time of an optimiser step goes, and what of it is outside the networks' forward and backward passes.

    python benchmarks/step_overhead.py [--rounds 5] [--steps 8192]

Trains a Gaussian actor-critic with normalised observations and times, within the updates: the choice of a minibatch's
rows, the networks' forward pass, the losses and statistics around it, the backward pass, the guards and clipping of
gradients, the optimiser, and the rest, which is Lightning's loop with its callbacks. One thread. Simulator, rollout and
advantages are not in it. Needs the mujoco extra.
"""

from __future__ import annotations

import argparse
import functools
import logging
import statistics
import time
import warnings
from typing import Any

import torch
from lightning.pytorch import Callback
from stopwatch import Stopwatch
from training import bare_trainer

PARTS = ("rows", "forward", "losses", "backward", "clipping", "optimizer", "rest")


class StepTimes(Callback):
    """The seconds of each part, over all optimiser steps but those of the first iteration."""

    def __init__(self) -> None:
        self.watches = {name: Stopwatch() for name in ("rows", "forward", "step", "backward", "clipping", "optimizer")}
        self.update = Stopwatch()
        self.steps = 0
        self._began = 0.0
        self._before: dict[str, float] = {}
        self._totals = dict.fromkeys(self.watches, 0.0)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Time the parts from now on."""
        from ppo_lightning.algorithms import clipped
        from ppo_lightning.core.rollout import RowSelector
        from ppo_lightning.models.host_pass import HostPass

        self.watches["rows"].wrap(RowSelector, "__call__")
        self.watches["forward"].wrap(clipped, "run_network")
        self.watches["forward"].wrap(HostPass, "run")
        self.watches["step"].wrap(pl_module, "training_step")
        self.watches["backward"].wrap(trainer.strategy, "backward")
        self.watches["clipping"].wrap(pl_module, "configure_gradient_clipping")
        self.watches["optimizer"].wrap(trainer.optimizers[0], "step")
        prepare = pl_module.start_update

        def begin(*update: Any) -> None:
            prepare(*update)
            self._began = time.perf_counter()
            self._before = {name: watch.seconds for name, watch in self.watches.items()}

        pl_module.start_update = begin

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """End an update; one that began before the timing did is not counted."""
        if trainer.is_last_batch and self._before and trainer.current_epoch:
            self.update.seconds += time.perf_counter() - self._began
            self.steps += batch_idx + 1
            for name, watch in self.watches.items():
                self._totals[name] += watch.seconds - self._before[name]

    def report(self) -> dict[str, float]:
        """Milliseconds a step of each part; they add up to ``whole``."""
        own = {name: seconds * 1e3 / self.steps for name, seconds in self._totals.items()}
        whole = self.update.seconds * 1e3 / self.steps
        # the optimiser's step runs the closure: training step, backward pass and clipping
        closure = own["step"] + own["backward"] + own["clipping"]
        return {
            "rows": own["rows"],
            "forward": own["forward"],
            "losses": own["step"] - own["forward"],
            "backward": own["backward"],
            "clipping": own["clipping"],
            "optimizer": own["optimizer"] - closure,
            "rest": whole - own["rows"] - own["optimizer"],
            "whole": whole,
        }


def measure(width: int, rows: int, steps: int) -> dict[str, float]:
    """One training run of an untrained runner: actor 2×64 and critic 2×``width``, minibatches of ``rows``."""
    from lightning.pytorch import seed_everything

    from ppo_lightning import PPO, MLPEncoder, ObservationNormalizer, PPOModel, RolloutDataModule

    seed_everything(1, verbose=False)
    data = RolloutDataModule(
        "HalfCheetah-v5",
        num_envs=8,
        num_steps=256,
        num_minibatches=2048 // rows,
        update_epochs=10,
        total_timesteps=steps,
    )
    network = functools.partial(
        PPOModel,
        encoder=functools.partial(MLPEncoder, normalizer=ObservationNormalizer),
        critic_encoder=functools.partial(MLPEncoder, hidden_sizes=[width, width], normalizer=ObservationNormalizer),
    )
    times = StepTimes()
    trainer = bare_trainer(callbacks=[times])
    trainer.fit(PPO(network, learning_rate=3e-4, ent_coef=0.0, clip_vloss=False, normalize_rewards=True), data)
    return times.report()


def main() -> None:
    """Measure ``--rounds`` rounds of both sizes, in turn, after one to warm up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8_192)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    sizes = {"critic 2×256, minibatches of 64": (256, 64), "critic 2×64, minibatches of 128": (64, 128)}
    measure(64, 128, 4_096)
    rounds = [{name: measure(*size, args.steps) for name, size in sizes.items()} for _ in range(args.rounds)]
    for name in sizes:
        print(f"{name} (ms a step; median of {args.rounds} rounds, lowest to highest)")
        for part in (*PARTS, "whole"):
            column = sorted(one[name][part] for one in rounds)
            print(f"  {part:10} {statistics.median(column):6.3f}  ({column[0]:.3f} to {column[-1]:.3f})")
        outside = sorted(1 - (one[name]["forward"] + one[name]["backward"]) / one[name]["whole"] for one in rounds)
        print(f"  outside forward and backward: {statistics.median(outside):.0%}")


if __name__ == "__main__":
    main()
