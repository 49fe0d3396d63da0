"""Training with an LSTM on CartPole: ours beside the sum of its parts, and beside sb3-contrib's RecurrentPPO, in turn.

    python benchmarks/memory_speed.py [--rounds 5] [--steps 49152] [--cell LSTM | GRU | none]

The numbers of configs/cartpole_memory.yaml: 16 environments × 128 steps, 6 epochs × 4 minibatches of 4 environments,
separate networks for actor and critic of 64 units and an LSTM of 64, normalised observations (and rewards, which is no
part of the floor), fused Adam, gradient clipping 0.5, float32, one thread each. The learning rate is next to nothing:
actions stay random and episodes as short in all of them. The *floor* is what no program can leave out, alone in a
bare loop: the same environment steps, the same networks' forward pass of each step, their forward and backward pass of
each minibatch, the same clipping and optimiser. RecurrentPPO (pip install sb3-contrib) has its LSTM before the 64 units
and normalises nothing; it is left out where it is not installed, and with another cell.
Each round runs all, one after the other; ratios are taken round by round, and speeds are steps per second of processor
time, which neighbours on the machine disturb less.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import logging
import statistics
import time
import warnings
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import nn
from training import ProcessorTime, bare_trainer

from ppo_lightning import ActorCritic, GRUCore, LSTMCore, MLPEncoder, ObservationNormalizer
from ppo_lightning.models.memory import unroll
from ppo_lightning.models.outputs import initial_state, run_network

ENVS, STEPS, EPOCHS, MINIBATCHES, UNITS = 16, 128, 6, 4, 64
RATE = 1e-9
CORES = {"LSTM": functools.partial(LSTMCore, hidden_dim=UNITS), "GRU": functools.partial(GRUCore, hidden_dim=UNITS)}


def network_of(cell: str) -> Any:
    """What builds the network."""
    encoder = functools.partial(MLPEncoder, hidden_sizes=[UNITS], normalizer=ObservationNormalizer)
    return functools.partial(ActorCritic, encoder=encoder, core=CORES.get(cell))


def ours(steps: int, cell: str) -> float:
    """Steps/s of this package."""
    from lightning.pytorch import seed_everything

    from ppo_lightning import PPO, RolloutDataModule

    seed_everything(1, verbose=False)
    data = RolloutDataModule(
        "CartPole-v1",
        num_envs=ENVS,
        num_steps=STEPS,
        num_minibatches=MINIBATCHES,
        update_epochs=EPOCHS,
        total_timesteps=steps,
    )
    clock = ProcessorTime()
    trainer = bare_trainer(callbacks=[clock])
    ppo = PPO(network_of(cell), learning_rate=RATE, gamma=0.99, clip_vloss=False, ent_coef=0.0, normalize_rewards=True)
    trainer.fit(ppo, data)
    return data.env_steps / clock.seconds


def floor(steps: int, cell: str) -> float:
    """Steps/s of the parts alone."""
    env = gymnasium.make_vec("CartPole-v1", ENVS, vectorization_mode="sync")
    network = network_of(cell)(env.single_observation_space, env.single_action_space)
    optimizer = torch.optim.Adam(network.parameters(), lr=RATE, eps=1e-5, fused=True)
    obs, _ = env.reset(seed=1)
    state: Any = initial_state(network, ENVS)
    draws = np.random.default_rng(1)
    iterations = steps // (ENVS * STEPS)
    start = time.process_time()
    for _ in range(iterations):
        seen, starts = torch.empty(ENVS, STEPS, *env.single_observation_space.shape), torch.zeros(ENVS, STEPS).bool()
        with torch.no_grad():
            for step in range(STEPS):
                seen[:, step] = torch.from_numpy(obs)
                _, state = run_network(network, seen[:, step], state)
                obs, _, terminated, _, _ = env.step(draws.integers(2, size=ENVS))
                starts[:, step] = torch.from_numpy(terminated)
        for _ in range(EPOCHS):
            for rows in torch.randperm(ENVS).split(ENVS // MINIBATCHES):
                if state is None:
                    output = run_network(network, seen[rows].flatten(0, 1))[0]
                else:
                    output = unroll(network, seen[rows], initial_state(network, len(rows)), starts[rows])
                (output.value.square().mean() + output.logits.square().mean()).backward()
                nn.utils.clip_grad_norm_(network.parameters(), 0.5)
                optimizer.step()
                optimizer.zero_grad()
    return iterations * ENVS * STEPS / (time.process_time() - start)


def recurrent_ppo(steps: int, cell: str) -> float:
    """Steps/s of the peer."""
    from sb3_contrib import RecurrentPPO
    from stable_baselines3.common.env_util import make_vec_env

    env = make_vec_env("CartPole-v1", n_envs=ENVS, seed=1)
    model = RecurrentPPO(
        "MlpLstmPolicy",
        env,
        learning_rate=RATE,
        n_steps=STEPS,
        batch_size=ENVS * STEPS // MINIBATCHES,
        n_epochs=EPOCHS,
        device="cpu",
        seed=1,
        policy_kwargs={"lstm_hidden_size": UNITS, "net_arch": [UNITS]},
    )
    start = time.process_time()
    model.learn(steps)
    return float(model.num_timesteps / (time.process_time() - start))


def main() -> None:
    """Measure in turn and print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=49_152)
    parser.add_argument("--cell", choices=[*CORES, "none"], default="LSTM")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    programs = {"ppo-lightning": ours, "floor": floor}
    if args.cell == "LSTM" and importlib.util.find_spec("sb3_contrib") is not None:
        programs["RecurrentPPO"] = recurrent_ppo
    for program in programs.values():
        program(2 * ENVS * STEPS, args.cell)  # warm up
    rounds = [{name: program(args.steps, args.cell) for name, program in programs.items()} for _ in range(args.rounds)]
    for name in programs:
        column = [speeds[name] for speeds in rounds]
        ratios = sorted(speeds["ppo-lightning"] / speeds[name] for speeds in rounds)
        print(
            f"{name:14} {statistics.median(column):7,.0f} steps/s (from {min(column):,.0f} to {max(column):,.0f}); "
            f"ours over it {statistics.median(ratios):.2f} (from {ratios[0]:.2f} to {ratios[-1]:.2f})"
        )


if __name__ == "__main__":
    main()
