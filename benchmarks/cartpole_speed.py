"""Steps/s of whole training runs on CartPole: ours beside Stable-Baselines3, in turn, with the same numbers.

    python benchmarks/cartpole_speed.py [--rounds 5] [--steps 40000]

4 environments × 128 steps, 4 epochs × 4 minibatches of 128, MLP 2×64 (separate trunks), Adam, gradient clipping 0.5,
float32, one thread each. Each round trains both, one after the other; the ratio is taken round by round, so a machine
that slows down slows both.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time
import warnings

import torch
from training import bare_trainer


def ours(steps: int) -> float:
    """Steps/s of this package."""
    from lightning.pytorch import seed_everything

    from ppo_lightning import PPO, RolloutDataModule

    seed_everything(1, verbose=False)
    data = RolloutDataModule(
        "CartPole-v1", num_envs=4, num_steps=128, num_minibatches=4, update_epochs=4, total_timesteps=steps
    )
    trainer = bare_trainer()
    ppo = PPO(learning_rate=3e-4, gamma=0.99, clip_vloss=False, ent_coef=0.0)
    start = time.perf_counter()
    trainer.fit(ppo, data)
    return data.env_steps / (time.perf_counter() - start)


def stable_baselines3(steps: int) -> float:
    """Steps/s of the peer."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env

    env = make_vec_env("CartPole-v1", n_envs=4, seed=1)
    model = PPO("MlpPolicy", env, n_steps=128, batch_size=128, n_epochs=4, device="cpu", seed=1)
    start = time.perf_counter()
    model.learn(steps)
    return model.num_timesteps / (time.perf_counter() - start)


def main() -> None:
    """Measure in turn and print medians and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=40_000)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    ours(2_048), stable_baselines3(2_048)  # warm up
    rounds = [(ours(args.steps), stable_baselines3(args.steps)) for _ in range(args.rounds)]
    ratios = sorted(a / b for a, b in rounds)
    for name, column in zip(("ppo-lightning", "Stable-Baselines3"), zip(*rounds)):
        print(f"{name:18} {statistics.median(column):7,.0f} steps/s (from {min(column):,.0f} to {max(column):,.0f})")
    print(f"{'ratio':18} {statistics.median(ratios):7.2f}         (from {ratios[0]:.2f} to {ratios[-1]:.2f})")


if __name__ == "__main__":
    main()
