"""Where the time of an evaluation goes: the simulator, the network, and the rest, which is ours.

    python benchmarks/evaluation_speed.py --env CartPole-v1
    python benchmarks/evaluation_speed.py --env coinrun

CartPole: 100 episodes on 50 environments, greedy, with the policy of a checkpoint (``--ckpt_path``) or an untrained
one. coinrun: 256 episodes on 128 environments, sampled, bfloat16, untrained unless a checkpoint is given.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from stopwatch import Stopwatch

from ppo_lightning.core.checkpoint import network_from_checkpoint, read_checkpoint
from ppo_lightning.data.evaluate import envs_for, episode_quotas, evaluate
from ppo_lightning.data.seeding import Streams
from ppo_lightning.envs import GymnasiumEnv, ProcgenEnv
from ppo_lightning.models import ActorCritic, ImpalaPPOModel
from ppo_lightning.policies import PPOPolicy


def main() -> None:
    """Evaluate once to warm up and ``--repeats`` times by the clock."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", choices=["CartPole-v1", "coinrun"], required=True)
    parser.add_argument("--ckpt_path")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    torch.manual_seed(1)
    is_procgen = args.env == "coinrun"
    if is_procgen:
        factory: Any = ProcgenEnv("coinrun", distribution_mode="easy", num_levels=200, num_threads=2)
        num_episodes, num_envs, temperature = 256, 128, 1.0
    else:
        torch.set_num_threads(1)  # as the command line does for small networks
        factory = GymnasiumEnv(args.env)
        num_episodes, num_envs, temperature = 100, envs_for(100, 64), 0.0
    streams = Streams(1, 0, num_envs)
    for repeat in range(args.repeats + 1):
        env = factory.make(streams.eval_env_seeds())
        if args.ckpt_path:
            network = network_from_checkpoint(read_checkpoint(args.ckpt_path))
        else:
            network = (ImpalaPPOModel if is_procgen else ActorCritic)(env.observation_space, env.action_space)
        in_simulator, in_network = Stopwatch(), Stopwatch()
        simulator = vars(env)["_simulator"] if is_procgen else vars(env)["env"]
        for name in ("act", "observe", "get_info") if is_procgen else ("step", "reset"):
            in_simulator.wrap(simulator, name)
        in_network.wrap(network, "forward")
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=is_procgen):
            result = evaluate(
                PPOPolicy(network.eval()), env, streams, episode_quotas(num_episodes, num_envs), temperature
            )
        env.close()
        if repeat:
            parts = {"simulator": in_simulator.seconds, "network": in_network.seconds}
            parts["rest"] = result.seconds - sum(parts.values())
            shares = ", ".join(f"{name} {100 * seconds / result.seconds:.1f} %" for name, seconds in parts.items())
            print(
                f"{args.env}: {len(result.episodes)} episodes, {result.steps} steps, {result.seconds:.2f} s: {shares}"
            )


if __name__ == "__main__":
    main()
