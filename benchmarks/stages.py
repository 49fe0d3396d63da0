"""Where each millisecond of an iteration goes: the time in named parts of a running program, without what they call."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

STAGES = (
    *("environment", "acting", "storing", "rest of the rollout", "targets"),
    *("minibatches", "transfer", "forward", "losses", "backward", "clipping", "optimiser"),
    *("callbacks", "logging", "Lightning"),
)


class Stages:
    """Adds up the seconds of each stage: those of a call, but for the calls of other stages in it."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self._stack: list[str] = []
        self._since = 0.0

    def wrap(self, owner: Any, name: str, stage: str) -> None:
        """Time ``owner.name`` from now on."""
        function = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            self.enter(stage)
            try:
                return function(*args, **kwargs)
            finally:
                self.leave()

        setattr(owner, name, timed)

    def enter(self, stage: str) -> None:
        """Begin a stage within the running one."""
        self._count()
        self._stack.append(stage)

    def leave(self) -> None:
        """Go back to the one around it."""
        self._count()
        self._stack.pop()

    def start(self) -> None:
        """Forget what was counted, outside of all stages or within one."""
        self.seconds.clear()
        self._since = time.perf_counter()

    def _count(self) -> None:
        now = time.perf_counter()
        if self._stack:
            self.seconds[self._stack[-1]] += now - self._since
        self._since = now


def watch(stages: Stages, trainer: Any, agent: Any, collector: Any) -> None:
    """Time the stages of a run that is about to begin."""
    from lightning.pytorch.loops.fetchers import _DataFetcher

    from ppo_lightning.algorithms.clipped import ClippedModule
    from ppo_lightning.core.rollout import RolloutWriter, RowSelector
    from ppo_lightning.data import collect
    from ppo_lightning.models.host_pass import HostPass

    stages.wrap(collector.env, "step", "environment")
    stages.wrap(agent, "act", "acting")
    stages.wrap(RolloutWriter, "add", "storing")
    stages.wrap(collect._HostColumns, "add", "storing")
    stages.wrap(collect._HostColumns, "write", "storing")
    stages.wrap(collector, "collect", "rest of the rollout")
    stages.wrap(agent, "prepare", "targets")
    stages.wrap(RowSelector, "__call__", "minibatches")
    stages.wrap(_DataFetcher, "__next__", "minibatches")
    stages.wrap(trainer.strategy, "batch_to_device", "transfer")
    stages.wrap(agent, "training_step", "losses")
    stages.wrap(ClippedModule, "evaluate", "forward")
    stages.wrap(HostPass, "run", "forward")
    stages.wrap(trainer.strategy, "backward", "backward")
    stages.wrap(agent, "add_gradients", "backward")
    stages.wrap(agent, "configure_gradient_clipping", "clipping")
    stages.wrap(agent, "finish_iteration", "logging")
    for callback in trainer.callbacks:
        for hook in ("on_train_batch_start", "on_train_batch_end", "on_before_zero_grad", "on_train_epoch_end"):
            if callable(getattr(callback, hook)):  # else nobody wrote it, and Lightning passes over it
                stages.wrap(callback, hook, "callbacks")
    _watch_optimizer(stages, trainer)


def _watch_optimizer(stages: Stages, trainer: Any) -> None:
    """Its own time, without the closure: forward and backward pass, and what Lightning does around them."""
    optimizer = trainer.optimizers[0]
    step = optimizer.step

    def timed(closure: Any = None) -> Any:
        def lightnings() -> Any:
            stages.enter("Lightning")
            try:
                return closure()
            finally:
                stages.leave()

        stages.enter("optimiser")
        try:
            return step(closure=lightnings)
        finally:
            stages.leave()

    optimizer.step = timed
