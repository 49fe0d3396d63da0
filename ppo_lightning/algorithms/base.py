"""What every agent that learns from rollouts shares: iterations, minibatches of all ranks, Lightning's hooks."""

from __future__ import annotations

import functools
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional, Union, cast

import torch
from lightning.pytorch.core.saving import _load_from_checkpoint
from lightning.pytorch.utilities.model_helpers import _restricted_classmethod
from torch import Tensor, nn
from torch.optim import Optimizer

from ppo_lightning.algorithms.acting import ActingModule
from ppo_lightning.algorithms.borders import IterationBorders
from ppo_lightning.algorithms.clock import TrainingClock
from ppo_lightning.algorithms.optimization import Optimization, OptimizerBuilder, SchedulerBuilder, clip_in_bfloat16
from ppo_lightning.algorithms.ranks import (
    SpreadMinibatches,
    allow_unused_parameters,
    check_not_empty,
    fix_order_of_sums,
    look_at_ranks,
    parameter_hash,
)
from ppo_lightning.algorithms.update import UpdateStatistics, complete_epoch
from ppo_lightning.core.agent import Batch, RolloutSource
from ppo_lightning.core.checkpoint import (
    FORMAT_KEY,
    FORMAT_VERSION,
    NetworkBuilder,
    check_same_network,
    read_checkpoint,
)
from ppo_lightning.core.checkpoint_io import check_same_checkpoint, install_checkpoint_io
from ppo_lightning.core.errors import ConfigurationError, check_range
from ppo_lightning.core.instantiate import describe
from ppo_lightning.core.metrics import log_metrics
from ppo_lightning.core.ranks import gather_over_ranks, mean_over_ranks
from ppo_lightning.functional.advantages import normalize_advantages


class OnPolicyModule(ActingModule):
    """Base of the agents: a LightningModule that plays rollouts (``core.agent.Agent``) and learns from them.

    A subclass adds its numbers, ``prepare`` and ``training_step``.

    Args:
        network: builds the network from the observation and action space; in Python a built module also works.
        optimizer: builds the optimiser from parameters and learning rate; Adam with eps 1e-5 by default.
        scheduler: builds a learning-rate scheduler, stepped once an iteration.
        learning_rate: of the optimiser.
        anneal_lr: lower the learning rate linearly to 0 over ``--data.total_timesteps``.
        log_param_hash: log ``debug/param_hash`` every iteration, and stop if ranks' parameters differ.

    Raises:
        ConfigurationError: a number outside its range, or options that contradict each other.
    """

    def __init__(
        self,
        network: NetworkBuilder,
        optimizer: OptimizerBuilder | None,
        scheduler: SchedulerBuilder | None,
        learning_rate: float,
        anneal_lr: bool,
        log_param_hash: bool = False,
    ) -> None:
        super().__init__(network)
        check_range("--model.learning_rate", learning_rate, 0, exclude_low=True)
        if anneal_lr and scheduler is not None:
            raise ConfigurationError(
                "--model.anneal_lr=true and --model.scheduler both set the learning rate: leave one of them out."
            )
        parts = {"network": network, "optimizer": optimizer, "scheduler": scheduler}
        self.save_hyperparameters(  # of the subclass too
            logger=False, ignore=[name for name, part in parts.items() if isinstance(part, nn.Module)]
        )
        if "_instantiator" not in self.hparams:  # not from the command line, which stores plain configurations
            self.hparams.update({name: describe(part) for name, part in parts.items()})
        self.learning_rate = learning_rate
        self.anneal_lr = anneal_lr
        self.log_param_hash = log_param_hash

        self._optimization = Optimization(optimizer, scheduler)
        self.iteration_metrics: dict[str, float] = {}
        """What the last iteration logged."""
        self._statistics = UpdateStatistics()
        self._spread: SpreadMinibatches | None = None
        self._update_stopped = False
        self._clock = TrainingClock()
        self._steps_at_start = 0

    def setup(self, stage: str) -> None:
        """Build the network from the data module's spaces where they were not given."""
        if self.anneal_lr and stage == "fit" and self._source.total_timesteps is None:
            raise ConfigurationError(
                "--model.anneal_lr=true needs to know when training ends: set --data.total_timesteps."
            )
        install_checkpoint_io(self.trainer)
        callbacks: list[Any] = self.trainer.callbacks  # type: ignore[attr-defined]
        if not any(isinstance(callback, IterationBorders) for callback in callbacks):
            callbacks.insert(0, IterationBorders())
        if self.has_unused_parameters:
            allow_unused_parameters(self.trainer)
        if self.network is None:
            self.build_network(self._source.observation_space, self._source.action_space)
        # Lightning would do so after it has loaded a checkpoint, whose float64 parameters would be rounded to float32
        self.trainer.precision_plugin.convert_module(self)

    @property
    def has_unused_parameters(self) -> bool:
        """Whether some losses leave some parameters out, which DDP must know of."""
        return False

    @property
    def _source(self) -> RolloutSource:
        datamodule = getattr(self.trainer, "datamodule", None)
        if datamodule is None or not hasattr(datamodule, "rollout_metrics"):
            raise ConfigurationError("PPO learns from rollouts: pass datamodule=RolloutDataModule(…) to the Trainer.")
        return cast(RolloutSource, datamodule)

    # -- what the dataset asks of the update (core.agent.Agent)

    @property
    def update_stopped(self) -> bool:
        """True once ``target_kl`` is exceeded, at the next border of accumulated minibatches."""
        return self._update_stopped and self._statistics.count % self.trainer.accumulate_grad_batches == 0

    def stop_update(self) -> None:
        """Leave out the rest of this iteration's minibatches, from the next border of accumulated ones on."""
        self._update_stopped = True

    def start_update(self, batch: Batch, minibatches: Sequence[Tensor]) -> None:
        """Ask the other ranks what they have of each minibatch."""
        if self.trainer.world_size > 1:
            self._spread = look_at_ranks(self.trainer, batch, minibatches)
        else:
            self._spread = None
            check_not_empty(torch.tensor([len(rows) for rows in minibatches]))

    def _weight(self, batch_idx: int) -> float:
        """What this rank's means of a minibatch count, so that the mean over ranks is that over all transitions."""
        return 1.0 if self._spread is None else self._spread.weights[batch_idx]

    def _normalize(self, advantages: Tensor, batch_idx: int) -> Tensor:
        """The minibatch's advantages by its mean and std over all ranks."""
        return normalize_advantages(advantages, None if self._spread is None else self._spread.advantages[batch_idx])

    def _exceeds(self, mean: Tensor, limit: float, batch_idx: int) -> bool:
        """Whether the mean over the minibatch of all ranks exceeds a limit: the same answer on each."""
        return bool(mean_over_ranks(self.trainer, mean * self._weight(batch_idx)) > limit)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Nothing: the ``Evaluation`` callback plays whole episodes."""

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Nothing: the ``Evaluation`` callback plays whole episodes."""

    # -- one iteration

    def on_fit_start(self) -> None:
        """All ranks continue from one file, or none does."""
        check_same_checkpoint(self.trainer)

    def on_train_start(self) -> None:
        """After a resume, let the settings of this run win over those stored with the optimiser's state."""
        self._steps_at_start = self._source.env_steps
        fix_order_of_sums(self.trainer)
        self._optimization.settle(self.trainer, self.learning_rate, is_resumed=bool(self._source.iteration))
        self._clock.start()

    def start_iteration(self) -> None:
        """Set this iteration's learning rate, before callbacks look at it."""
        source = self._source
        self._steps_at_start = source.env_steps
        self._update_stopped = False
        self._statistics.clear()
        remaining = 1.0
        if self.anneal_lr:
            assert source.total_timesteps is not None
            remaining = 1 - source.env_steps / source.total_timesteps
        self._optimization.set_learning_rate(self.trainer, self.learning_rate * remaining)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Finish the iteration after its last minibatch, before any callback can save or evaluate."""
        if self.trainer.is_last_batch or self.update_stopped:
            self.finish_iteration()

    def on_train_epoch_end(self) -> None:
        """Step the schedules, also after an early stop (where Lightning would not)."""
        for config in self.trainer.lr_scheduler_configs:
            config.scheduler.step()  # type: ignore[call-arg]

    def finish_iteration(self) -> None:
        """Look for a NaN on any rank and log the iteration, once."""
        if not self._statistics.count:
            return
        source = self._source
        clock = self._clock.end_iteration(source.env_steps - self._steps_at_start)
        gather = functools.partial(gather_over_ranks, self.trainer)
        update = self._statistics.report(source.env_steps, clock, gather)
        learning_rate = self.trainer.optimizers[0].param_groups[0]["lr"]
        metrics = {**source.rollout_metrics(), **update, "train/learning_rate": learning_rate}
        if self.log_param_hash:
            metrics["debug/param_hash"] = float(parameter_hash(self.trainer, self, source.env_steps))
        self._statistics.clear()
        self.iteration_metrics = metrics
        log_metrics(self.trainer, metrics, source.env_steps)

    @property
    def metric_names(self) -> list[str]:
        """What is logged every iteration, ``rollout/return_mean`` and the like once episodes have ended."""
        names = [*self._source.rollout_metric_names(), "train/learning_rate", "time/sps", "time/seconds"]
        return [*names, "debug/param_hash"] if self.log_param_hash else names

    def exclude_from_speed(self, seconds: float) -> None:
        """Leave this time out of the running iteration's ``time/sps``: evaluation is not training."""
        self._clock.exclude(seconds)

    # -- Lightning's hooks

    def configure_optimizers(self) -> Any:
        """The optimiser at ``learning_rate``, and the scheduler if there is one."""
        return self._optimization.build(self.parameters(), self.learning_rate)

    def lr_scheduler_step(self, scheduler: Any, metric: Any | None) -> None:
        """Nothing: Lightning leaves schedulers out after an early stop, so ``on_train_epoch_end`` steps them."""

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """As the Trainer says, in bfloat16 for fused optimisers too."""
        if not clip_in_bfloat16(self.trainer, optimizer, gradient_clip_val, gradient_clip_algorithm):
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Mark the format, and store the loops as after a whole iteration, also where a KL stop cut it short."""
        checkpoint[FORMAT_KEY] = FORMAT_VERSION
        if self.trainer.optimizers:
            checkpoint["optimizer_class"] = type(self.trainer.optimizers[0]).__name__
        checkpoint["train_seconds"] = self._clock.seconds
        complete_epoch(checkpoint["loops"]["fit_loop"])

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse another network's checkpoint in a sentence."""
        self._optimization.resumed_class = checkpoint.get("optimizer_class")
        self._clock.seconds_before = checkpoint.get("train_seconds", 0.0)
        check_same_network(self.state_dict(), checkpoint["state_dict"], "--ckpt_path")

    @_restricted_classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls,  # noqa: N805
        checkpoint_path: Union[str, Path],
        map_location: Any = None,
        hparams_file: Optional[str] = None,
        strict: Optional[bool] = None,
        weights_only: Optional[bool] = None,
        **kwargs: Any,
    ) -> Any:
        """The trained module; arguments given in ``kwargs`` win over those of the checkpoint.

        The file is read as everywhere (``core.checkpoint.read_checkpoint``): only tensors and plain containers, and
        only classes of networks, optimisers and schedulers are made from it.

        Raises:
            ConfigurationError: it is missing, damaged, or not of this package.
        """
        content = io.BytesIO()
        torch.save(read_checkpoint(checkpoint_path, "checkpoint_path"), content)
        content.seek(0)
        return _load_from_checkpoint(cls, content, map_location, hparams_file, strict, True, **kwargs)
