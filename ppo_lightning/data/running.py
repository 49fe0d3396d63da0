"""What a checkpoint holds of the environments: on every rank the running episodes, and the simulators themselves."""

from __future__ import annotations

from typing import Any, TypedDict

import torch.distributed as dist

from ppo_lightning.envs.base import EnvFactory, describe_settings

RankState = dict[str, Any]
"""What ``Collector.state_dict`` gives."""


class RunningEnvironments(TypedDict):
    """Of all ranks.

    ``settings`` are those of the environment's factory, in words; ``num_envs`` and ``shares`` those of each rank;
    ``ranks`` has a state for each rank, in order.
    """

    settings: dict[str, str]
    num_envs: int
    shares: int
    ranks: list[RankState]


def gather_running(
    factory: EnvFactory, num_envs: int, shares: int, state: RankState, world_size: int
) -> RunningEnvironments:
    """The states of all ranks, on rank 0; a collective where there are several."""
    ranks: list[Any] = [state]
    if world_size > 1:
        ranks = [None] * world_size
        dist.gather_object(state, ranks if dist.get_rank() == 0 else None, dst=0)
    return RunningEnvironments(settings=describe_settings(factory), num_envs=num_envs, shares=shares, ranks=ranks)


def why_fresh(
    saved: RunningEnvironments | None, factory: EnvFactory, num_envs: int, shares: int, world_size: int
) -> str:
    """Why this run can't take up these environments, in words; empty if it can."""
    if saved is None:
        return "the checkpoint was saved without them"
    own, ranks = describe_settings(factory), saved["ranks"]
    changed = [name for name in {**own, **saved["settings"]} if own.get(name) != saved["settings"].get(name)]
    if changed:
        return f"--data.env differs from the checkpoint's in {', '.join(changed)}"
    if (len(ranks), saved["num_envs"]) != (world_size, num_envs):
        return (
            f"the checkpoint has {_counted(len(ranks), 'rank')} of {_counted(saved['num_envs'], 'environment')}, and "
            f"this run {_counted(world_size, 'rank')} of {num_envs}"
        )
    if saved["shares"] != shares:
        return "--data.minibatch_shares is another than the checkpoint's"
    return next((state["not_restorable"] for state in ranks if state.get("not_restorable")), "")


def _counted(number: int, name: str) -> str:
    return f"{number} {name}{'s' if number != 1 else ''}"
