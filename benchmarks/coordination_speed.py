"""What collecting with a coordinator costs beside its parts: the environment, and the forward pass of each network.

    python benchmarks/coordination_speed.py --env coinrun
    python benchmarks/coordination_speed.py --env MiniGrid

Networks are untrained. ``Collector.collect`` is timed as a whole, and within it the steps of the base environment and
the forward passes of novice, expert and coordinator: what is left is sampling, costs, observations and storage. Both
forms are measured: ``only the chosen agent acts`` asks the expert in the rows that the coordinator gives it, ``both
act`` asks it in all. A ratio is of one rollout.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import torch
from gymnasium import spaces
from stopwatch import Stopwatch

from ppo_lightning import CoordinationEnv, CoordPPOModel, GymnasiumEnv, ImpalaPPOModel, PPOPolicy, ProcgenEnv
from ppo_lightning.algorithms.acting import ActingModule
from ppo_lightning.data.collect import Collector
from ppo_lightning.data.seeding import Streams
from ppo_lightning.envs import EnvFactory
from ppo_lightning.models import ActorCritic, GridCNN, ImpalaCNN

LIMIT = 1.15


class Player(ActingModule):
    """An agent that only plays."""

    @contextlib.contextmanager
    def collecting(self) -> Iterator[None]:
        """Without a Trainer: no gradients, in float32."""
        with torch.no_grad():
            yield


def small_network(observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> ActorCritic:
    """That of the MiniGrid configurations."""
    return ActorCritic(observation_space, action_space, encoder=GridCNN, shared=True)


def base_factory(name: str) -> tuple[EnvFactory, Callable[..., Any], Any]:
    """The environment, the network of both agents, and the coordinator's encoder."""
    if name == "coinrun":
        return ProcgenEnv("coinrun", distribution_mode="hard", num_threads=2), ImpalaPPOModel, ImpalaCNN
    import minigrid

    wrappers = [minigrid.wrappers.ImgObsWrapper]
    return GymnasiumEnv("minigrid:MiniGrid-DistShift2-v0", wrappers=wrappers), small_network, GridCNN


def main() -> None:
    """Measure ``--rounds`` rounds after one to warm up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", choices=["coinrun", "MiniGrid"], required=True)
    parser.add_argument("--num_envs", type=int)
    parser.add_argument("--num_steps", type=int)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.manual_seed(1)
    is_procgen = args.env == "coinrun"
    if not is_procgen:
        torch.set_num_threads(1)  # as the command line does for small networks
    num_envs, num_steps = args.num_envs or (128 if is_procgen else 16), args.num_steps or (16 if is_procgen else 256)
    for name, both_act in (("only the chosen agent acts", False), ("both act", True)):
        ratios = list(measure(args.env, both_act, num_envs, num_steps, args.rounds))
        middle = statistics.median(ratios)
        verdict = "within" if middle <= LIMIT else "ABOVE"
        print(f"{name}: {middle:.3f} ({min(ratios):.3f}–{max(ratios):.3f}), {verdict} {LIMIT}", flush=True)


def measure(name: str, both_act: bool, num_envs: int, num_steps: int, rounds: int) -> Iterator[float]:
    """The time of each rollout over that of its parts."""
    base, build, encoder = base_factory(name)
    streams = Streams(1, 0, num_envs)
    probe = base.make([0])
    agents = [build(probe.observation_space, probe.action_space).eval() for _ in range(2)]
    probe.close()
    factory = CoordinationEnv(base, *map(PPOPolicy, agents), base_penalty=0.1, both_act=both_act)
    env: Any = factory.make(streams.env_seeds(0))
    player: Any = Player(lambda *given: CoordPPOModel(*given, encoder=encoder))
    player.build_network(env.observation_space, env.action_space)
    in_env, in_networks, whole = Stopwatch(), Stopwatch(), Stopwatch()
    in_env.wrap(env.env, "step")
    for network in (*agents, player.network):
        in_networks.wrap(network, "forward")
    collector = Collector(env, num_steps)
    whole.wrap(collector, "collect")
    for number in range(rounds + 1):
        in_env.seconds = in_networks.seconds = whole.seconds = 0.0
        collector.collect(player, streams.action_generators(number))
        if not number:
            continue  # it warms up, and has the reset in it
        parts = in_env.seconds + in_networks.seconds
        speed = num_envs * num_steps / whole.seconds
        print(
            f"  {whole.seconds:.3f} s: environment {in_env.seconds:.3f}, networks {in_networks.seconds:.3f}; "
            f"ratio {whole.seconds / parts:.3f}, {speed:,.0f} steps/s"
        )
        yield whole.seconds / parts
    env.close()


if __name__ == "__main__":
    main()
