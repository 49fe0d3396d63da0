"""An agent's optimiser, its learning rate from iteration to iteration, and its gradients' clipping."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from ppo_lightning.core.errors import ConfigurationError
from ppo_lightning.core.instantiate import build_from_config

OptimizerBuilder = Callable[[Iterable[nn.Parameter], float], Optimizer]
SchedulerBuilder = Callable[[Optimizer], LRScheduler]


def default_optimizer(params: Iterable[nn.Parameter], learning_rate: float) -> Optimizer:
    """Adam with eps 1e-5, as PPO implementations use it, in one fused kernel."""
    return torch.optim.Adam(params, lr=learning_rate, eps=1e-5, fused=True)


class Optimization:
    """Builds the optimiser and the scheduler, and after a resume lets this run's settings win over the checkpoint's.

    Args:
        optimizer: builds the optimiser, or the plain configuration of what does; None for ``default_optimizer``.
        scheduler: the same of the scheduler, stepped once an iteration; None for none.
    """

    def __init__(
        self,
        optimizer: OptimizerBuilder | Mapping[str, Any] | None,
        scheduler: SchedulerBuilder | Mapping[str, Any] | None,
    ) -> None:
        self._optimizer_builder = _builder(optimizer, OptimizerBuilder, "--model.optimizer") or default_optimizer
        self._scheduler_builder = _builder(scheduler, SchedulerBuilder, "--model.scheduler")
        self._settings: list[dict[str, Any]] = []  # of each parameter group, without its learning rate
        self.resumed_class: str | None = None
        """Of the optimiser whose state the checkpoint holds that is resumed, where it says so."""

    def build(self, parameters: Iterable[nn.Parameter], learning_rate: float) -> Any:
        """What ``configure_optimizers`` returns.

        Raises:
            ConfigurationError: settings that the optimiser or the scheduler does not take, or an optimiser that can't
                take up the checkpoint's state.
        """
        try:
            optimizer = self._optimizer_builder(parameters, learning_rate)
        except (TypeError, ValueError) as error:
            raise ConfigurationError(f"--model.optimizer cannot be built ({error}): change its settings.") from error
        name = type(optimizer).__name__
        if self.resumed_class not in (None, name):
            raise ConfigurationError(
                f"--model.optimizer={name} cannot take up the state that --ckpt_path holds of {self.resumed_class}"
                f": use that optimizer, or start a new run from these weights with --init_from."
            )
        self._settings = [
            {key: value for key, value in group.items() if key not in ("params", "lr", "initial_lr")}
            for group in optimizer.param_groups
        ]
        if self._scheduler_builder is None:
            return optimizer
        scheduler = self._build_scheduler(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "epoch"}}

    def _build_scheduler(self, optimizer: Optimizer) -> LRScheduler:
        try:
            scheduler: LRScheduler = self._scheduler_builder(optimizer)
        except (TypeError, ValueError) as error:
            raise ConfigurationError(f"--model.scheduler cannot be built ({error}): change its settings.") from error
        if isinstance(scheduler, ReduceLROnPlateau):
            raise ConfigurationError(
                "--model.scheduler=ReduceLROnPlateau needs a metric at each step, which the end of an iteration does "
                "not always have: choose another scheduler, or --model.anneal_lr=true."
            )
        return scheduler

    def settle(self, trainer: Trainer, learning_rate: float, is_resumed: bool) -> None:
        """Let this run's settings win over those stored with the optimiser's state."""
        for optimizer in trainer.optimizers:
            for group, settings in zip(optimizer.param_groups, self._settings):
                group.update(settings)
            if is_resumed and self._scheduler_builder is not None:
                self._replay_schedule(trainer, optimizer, learning_rate)

    def _replay_schedule(self, trainer: Trainer, optimizer: Optimizer, learning_rate: float) -> None:
        """A fresh scheduler of this run's settings in the place that the restored one had reached."""
        for config in trainer.lr_scheduler_configs:
            steps = int(config.scheduler.state_dict().get("last_epoch", 0))
            for group in optimizer.param_groups:
                group.pop("initial_lr", None)
                group["lr"] = learning_rate
            config.scheduler = self._build_scheduler(optimizer)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", ".*lr_scheduler.step.*before.*optimizer.step.*")
                for _ in range(steps):
                    config.scheduler.step()  # type: ignore[call-arg]

    def set_learning_rate(self, trainer: Trainer, learning_rate: float) -> None:
        """Of the iteration that begins, unless a scheduler sets it."""
        if self._scheduler_builder is None:
            for group in trainer.optimizers[0].param_groups:
                group["lr"] = learning_rate


def clip_in_bfloat16(trainer: Trainer, optimizer: Optimizer, clip_val: float | None, algorithm: str | None) -> bool:
    """Clip the gradients where Lightning refuses a fused optimiser without need; False where it isn't so.

    bfloat16 needs no loss scaling, so there a fused optimiser may be clipped too.
    """
    plugin = trainer.precision_plugin
    if not (isinstance(plugin, MixedPrecision) and plugin.scaler is None and clip_val):
        return False
    if (algorithm or "norm") == "norm":
        plugin.clip_grad_by_norm(optimizer, clip_val)
    else:
        plugin.clip_grad_by_value(optimizer, clip_val)
    return True


def _builder(part: Any, part_type: Any, flag: str) -> Any:
    """A builder as it is, or built from its plain configuration."""
    return build_from_config(part_type, part, flag) if isinstance(part, Mapping) else part
