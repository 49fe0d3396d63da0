"""Steps/s of Atari: the simulators alone with random actions, and training with each.

    python benchmarks/atari_speed.py [--game Breakout] [--num_envs 8 32] [--steps 4000] [--without_training]

ale-py in this process (sync), ale-py in a process for each environment (async), and envpool with a thread a processor.
A step is an agent's: four frames. Each round measures all of them in turn; printed are medians over the rounds.
Training is that of configs/atari_pong.yaml: rollouts of 128 steps, four epochs of four minibatches, the Nature CNN.
"""

from __future__ import annotations

import argparse
import functools
import logging
import statistics
import time
import warnings
from collections.abc import Callable

import numpy as np
from training import Iterations, bare_trainer

from ppo_lightning.envs import AtariEnv, EnvFactory, EnvpoolEnv

_FRAME_SKIP = 4
_NUM_STEPS = 128


def simulate(factory: EnvFactory, num_envs: int, steps: int) -> float:
    """Steps/s of the simulators with random actions."""
    env = factory.make(range(num_envs))
    env.reset()
    rounds = -(-steps // num_envs)
    actions = np.random.default_rng(0).integers(env.action_space.n, size=(rounds + 10, num_envs))
    valid = 0
    for number, action in enumerate(actions):
        if number == 10:
            valid, started = 0, time.perf_counter()
        valid += int(env.step(action).valid.sum())
    seconds = time.perf_counter() - started
    env.close()
    return valid / seconds


def train(factory: EnvFactory, num_envs: int, steps: int, precision: str) -> float:
    """Steps/s of whole training, from the second iteration on."""
    from lightning.pytorch import seed_everything

    from ppo_lightning import PPO, ActorCritic, NatureCNN, RolloutDataModule

    clock = Iterations()
    seed_everything(1, verbose=False)
    iterations = 1 + max(1, -(-steps // (num_envs * _NUM_STEPS)))
    data = RolloutDataModule(
        factory, num_envs=num_envs, num_steps=_NUM_STEPS, num_minibatches=4, update_epochs=4, total_timesteps=None
    )
    network = functools.partial(ActorCritic, encoder=NatureCNN, shared=True)
    trainer = bare_trainer(max_epochs=iterations, precision=precision, callbacks=[clock])
    trainer.fit(PPO(network=network, learning_rate=2.5e-4, gamma=0.99, clip_coef=0.1), data)
    return (iterations - 1) * num_envs * _NUM_STEPS / (clock.ends[-1] - clock.ends[0])


def measure(name: str, once: Callable[[EnvFactory, int], float], game: str, sizes: list[int], rounds: int) -> None:
    """Print the median of each simulator at each number of environments."""
    factories = {
        "ale-py sync": AtariEnv(f"ALE/{game}-v5"),
        "ale-py async": AtariEnv(f"ALE/{game}-v5", vectorization="async"),
        "envpool": EnvpoolEnv(f"{game}-v5"),
    }
    for num_envs in sizes:
        results = [{kind: once(factory, num_envs) for kind, factory in factories.items()} for _ in range(rounds)]
        for kind in factories:
            column = [result[kind] for result in results]
            median = statistics.median(column)
            print(
                f"{name:10} {num_envs:3} environments  {kind:13} {median:8,.0f} steps/s "
                f"({_FRAME_SKIP * median:9,.0f} frames/s; from {min(column):,.0f} to {max(column):,.0f})",
                flush=True,
            )


def main() -> None:
    """Measure the simulators, then training with them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--game", default="Breakout")
    parser.add_argument("--num_envs", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--steps", type=int, default=4000, help="of all environments together, a measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", default="bf16-mixed", help="of the training")
    parser.add_argument("--without_training", action="store_true")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    measure("simulating", functools.partial(simulate, steps=args.steps), args.game, args.num_envs, args.rounds)
    if not args.without_training:
        once = functools.partial(train, steps=args.steps, precision=args.precision)
        measure("training", once, args.game, args.num_envs, args.rounds)


if __name__ == "__main__":
    main()
