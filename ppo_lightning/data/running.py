"""What a checkpoint holds of the environments: on every rank the running episodes, and the simulators themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypedDict

import torch
import torch.distributed as dist

from ppo_lightning.core.errors import NotRestorableError
from ppo_lightning.data.collect import Collector
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


@dataclass(frozen=True)
class Layout:
    """Which environments a run has, and how they lie on its ranks; ``num_envs`` and ``shares`` are those of each."""

    factory: EnvFactory
    num_envs: int
    shares: int
    world_size: int


class EnvironmentsOfRanks:
    """The environments of all ranks as checkpoints hold them: gathered as they run, taken up after a resume."""

    def __init__(self) -> None:
        self.running: RunningEnvironments | None = None
        """Of a checkpoint, or as gathered after an iteration; only the first rank gathers states."""
        self._gathered_at = 0
        self._is_resumed = False

    def gather(self, collector: Collector, layout: Layout, iteration: int) -> None:
        """Ask the simulators, once an iteration: they only change while a rollout is played.

        A collective where there are several ranks.
        """
        if iteration == self._gathered_at:
            return
        state: RankState = collector.state_dict()
        ranks: list[Any] = [state]
        if layout.world_size > 1:
            ranks = [None] * layout.world_size
            dist.gather_object(state, ranks if dist.get_rank() == 0 else None, dst=0)
        settings = describe_settings(layout.factory)
        self.running = RunningEnvironments(
            settings=settings, num_envs=layout.num_envs, shares=layout.shares, ranks=ranks
        )
        self._gathered_at = iteration

    def load(self, running: RunningEnvironments | None, iteration: int) -> None:
        """Those of a checkpoint, which ``restore`` takes up when the simulators are made."""
        self.running, self._gathered_at, self._is_resumed = running, iteration, True

    def restore(self, collector: Collector, layout: Layout, rank: int, device: torch.device) -> str:
        """After a resume, put the new simulators where the checkpoint's were; why that can't be, or empty."""
        if not self._is_resumed:
            return ""
        self._is_resumed = False
        reason = _why_fresh(self.running, layout)
        if self.running is None:
            return reason
        if not reason:
            try:
                collector.load_state_dict(self.running["ranks"][rank], device)
            except NotRestorableError as error:  # in another version of the simulator, say
                reason = str(error)
        elif len(self.running["ranks"]) == layout.world_size:  # their limit is one of the run
            collector.env.restarts = self.running["ranks"][rank].get("restarts", 0)
        return reason


def _why_fresh(saved: RunningEnvironments | None, layout: Layout) -> str:
    """Why this run can't take up these environments, in words; empty if it can."""
    if saved is None:
        return "the checkpoint was saved without them"
    own, ranks = describe_settings(layout.factory), saved["ranks"]
    changed = [name for name in {**own, **saved["settings"]} if own.get(name) != saved["settings"].get(name)]
    if changed:
        return f"--data.env differs from the checkpoint's in {', '.join(changed)}"
    if (len(ranks), saved["num_envs"]) != (layout.world_size, layout.num_envs):
        return (
            f"the checkpoint has {_counted(len(ranks), 'rank')} of {_counted(saved['num_envs'], 'environment')}, and "
            f"this run {_counted(layout.world_size, 'rank')} of {layout.num_envs}"
        )
    if saved["shares"] != layout.shares:
        return "--data.minibatch_shares is another than the checkpoint's"
    return next((state["not_restorable"] for state in ranks if state.get("not_restorable")), "")


def _counted(number: int, name: str) -> str:
    return f"{number} {name}{'s' if number != 1 else ''}"
