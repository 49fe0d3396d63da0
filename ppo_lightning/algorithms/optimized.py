"""The half of an agent that takes optimiser steps: learning rates, clipping, and what guards them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ppo_lightning.algorithms.acting import ActingModule
from ppo_lightning.algorithms.clipping import clip_in_bfloat16, clip_on_host, clip_separately
from ppo_lightning.algorithms.optimization import Optimization, critic_parameters_of
from ppo_lightning.core.checkpoint import NetworkBuilder

_STATE_KEY = "gradient_guard"


class OptimizedModule(ActingModule):
    """An acting module with an optimiser.

    Args:
        network: builds the network from the observation and action space; in Python a built module also works.
        optimization: how it learns.
    """

    def __init__(self, network: NetworkBuilder, optimization: Optimization) -> None:
        super().__init__(network)
        self.optimization = optimization
        self._has_gradients = False

    def build_network(self, observation_space: Any, action_space: Any) -> None:
        """Build the network for these spaces and remember them in the checkpoint."""
        super().build_network(observation_space, action_space)
        for flag in self.optimization.critic_flags:
            critic_parameters_of(self._net, flag)

    def learning_rates(self) -> dict[str, float]:
        """As they are logged."""
        rates = [group["lr"] for group in self.trainer.optimizers[0].param_groups]
        return dict(zip(self.optimization.learning_rate_names, rates))

    def on_train_epoch_end(self) -> None:
        """Step the schedules, also after an early stop (where Lightning would not)."""
        for config in self.trainer.lr_scheduler_configs:
            config.scheduler.step()  # type: ignore[call-arg]

    def lr_scheduler_step(self, scheduler: Any, metric: Any | None) -> None:
        """Nothing: Lightning leaves schedulers out after an early stop, so ``on_train_epoch_end`` steps them."""

    def configure_optimizers(self) -> Any:
        """The optimiser at its learning rates, and the scheduler if there is one."""
        return self.optimization.build(self, self._critic_parameters())

    def _critic_parameters(self) -> list[nn.Parameter]:
        """The critic's own, where something asks for them."""
        flags = self.optimization.critic_flags
        return critic_parameters_of(self._net, flags[0]) if flags else []

    def add_gradients(self, loss: Tensor, begins_step: bool) -> None:
        """Backpropagate a part of a minibatch's loss by itself; Lightning sees to the last part.

        DDP sends nothing of it to other ranks: it does so once the last part is backpropagated, with all that is there.

        Args:
            loss: a scalar with the weight that it has in the minibatch.
            begins_step: whether gradients are to be forgotten before, as Lightning would only after ``training_step``.
        """
        trainer = self.trainer
        if begins_step:
            self._forget_gradients(trainer.optimizers[0])
            self._has_gradients = True
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        loss = loss / trainer.accumulate_grad_batches
        with torch.autocast(loss.device.type, enabled=False):  # where Lightning backpropagates too
            (loss if scaler is None else scaler.scale(loss)).backward()

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Optimizer) -> None:
        """Forget the gradients, unless they are of this very step."""
        if self._has_gradients:  # by ``add_gradients``, which forgot those before it
            self._has_gradients = False
        else:
            self._forget_gradients(optimizer)

    def _forget_gradients(self, optimizer: Optimizer) -> None:
        """As the optimiser does it, without the record for the profiler."""
        if type(optimizer).zero_grad is not Optimizer.zero_grad:
            optimizer.zero_grad()
            return
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """As the Trainer says, in bfloat16 for fused optimisers too; the critic's by themselves where asked for."""
        guard, critic_clip_val = self.optimization.guard, self.optimization.critic_gradient_clip_val
        if guard is not None and guard.drops(self, self.env_steps):
            return
        how = gradient_clip_val, gradient_clip_algorithm
        if critic_clip_val is not None:
            by_norm = (gradient_clip_algorithm or "norm") == "norm"
            clip_separately(self, self._critic_parameters(), gradient_clip_val, critic_clip_val, by_norm)
        elif not any(clip(self.trainer, optimizer, *how) for clip in (clip_in_bfloat16, clip_on_host)):
            self.clip_gradients(optimizer, *how)

    @property
    def env_steps(self) -> int:
        """Environment steps so far, which errors name."""
        raise NotImplementedError

    # -- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Name the optimiser's class, and keep the guard's count."""
        if self.trainer.optimizers:
            checkpoint["optimizer_class"] = type(self.trainer.optimizers[0]).__name__
        if self.optimization.guard is not None:
            checkpoint[_STATE_KEY] = self.optimization.guard.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Remember whose state the optimiser is to take up."""
        states = checkpoint.get("optimizer_states") or [{}]
        self.optimization.resumed_class = checkpoint.get("optimizer_class")
        self.optimization.resumed_groups = len(states[0].get("param_groups", [])) or None
        if self.optimization.guard is not None and _STATE_KEY in checkpoint:
            self.optimization.guard.load_state_dict(checkpoint[_STATE_KEY])
