"""What collecting with a coordinator costs beside its parts: the environment, and one forward pass of each network.

    python benchmarks/coordination_speed.py --env coinrun
    python benchmarks/coordination_speed.py --env MiniGrid

Networks are untrained. The parts are measured by themselves, at the batch of all environments: stepping the base
environment, and the forward passes of novice, expert and coordinator. Collecting is ``Collector.collect``: all of that,
and sampling, costs, observations, storage. Both forms are measured: ``only the chosen agent acts`` asks the expert in
the rows that the coordinator gives it, ``both act`` asks it in all. Rounds alternate, and ratios are of one round.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from ppo_lightning import CoordinationEnv, CoordPPOModel, GymnasiumEnv, ImpalaPPOModel, PPOPolicy, ProcgenEnv
from ppo_lightning.algorithms.acting import ActingModule
from ppo_lightning.core.agent import Agent
from ppo_lightning.data.collect import Collector, to_device
from ppo_lightning.data.seeding import Streams
from ppo_lightning.envs import EnvFactory, VectorEnv
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


def seconds_of(work: Callable[[], Any]) -> float:
    """Wall-clock time of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def parts_of(env: VectorEnv, networks: list[Any], observations: list[Any], num_steps: int) -> float:
    """Seconds that ``num_steps`` of the environment and of each network take by themselves."""
    actions = np.random.default_rng(1).integers(0, int(env.action_space.n), (num_steps, env.num_envs))  # type: ignore[attr-defined]

    def step() -> None:
        for own in actions:
            env.step(own)

    def forward(network: Any, obs: Any) -> None:
        with torch.no_grad():
            for _ in range(num_steps):
                network(obs)

    return seconds_of(step) + sum(seconds_of(lambda: forward(*pair)) for pair in zip(networks, observations))  # noqa: B023


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
    factory, build, encoder = base_factory(args.env)
    streams = Streams(1, 0, num_envs)
    base = factory.make(streams.env_seeds(0))
    agents = [build(base.observation_space, base.action_space).eval() for _ in range(2)]
    policies = [PPOPolicy(network) for network in agents]
    collectors: dict[str, Collector] = {}
    for name, both_act in (("only the chosen agent acts", False), ("both act", True)):
        coordination = CoordinationEnv(factory, *policies, base_penalty=0.1, both_act=both_act)
        collectors[name] = Collector(coordination.make(streams.env_seeds(0)), num_steps)
    env = next(iter(collectors.values())).env
    player: Any = Player(lambda *given: CoordPPOModel(*given, encoder=encoder))
    player.build_network(env.observation_space, env.action_space)
    base_obs, obs = base.reset(), env.reset()
    device = torch.device("cpu")
    networks = [*agents, player.network]
    observations = [to_device(base_obs, device), to_device(base_obs, device), to_device(obs, device)]
    ratios: dict[str, list[float]] = {name: [] for name in collectors}
    for number in range(args.rounds + 1):
        parts = parts_of(base, networks, observations, num_steps)
        for name, collector in collectors.items():
            whole = seconds_of(lambda: collector.collect(as_agent(player), streams.action_generators(number)))  # noqa: B023
            if number:
                ratios[name].append(whole / parts)
                speed = num_envs * num_steps / whole
                print(
                    f"{name}: {whole:.3f} s, its parts {parts:.3f} s, ratio {whole / parts:.3f}, {speed:,.0f} steps/s"
                )
    for name, values in ratios.items():
        middle = statistics.median(values)
        verdict = "within" if middle <= LIMIT else "ABOVE"
        print(f"{name}: {middle:.3f} ({min(values):.3f}–{max(values):.3f}), {verdict} {LIMIT}")


def as_agent(player: Any) -> Agent:
    """Of ``core.agent.Agent`` it has what a collector asks."""
    return player  # type: ignore[no-any-return]


if __name__ == "__main__":
    main()
