"""What every agent that learns from rollouts shares: iterations, minibatches of all ranks, Lightning's hooks."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Optional, Union, cast

import torch
from lightning.pytorch.core.saving import _load_from_checkpoint
from lightning.pytorch.utilities.model_helpers import _restricted_classmethod
from torch import Tensor, nn

from ppo_lightning.algorithms.borders import IterationBorders, leave_out_empty_hooks
from ppo_lightning.algorithms.clock import TrainingClock
from ppo_lightning.algorithms.normalization import check_same_statistics
from ppo_lightning.algorithms.optimization import Optimization
from ppo_lightning.algorithms.optimized import OptimizedModule
from ppo_lightning.algorithms.ranks import (
    SpreadMinibatches,
    advantage_moments,
    allow_unused_parameters,
    check_not_empty,
    fix_order_of_sums,
    leave_statistics_alone,
    look_at_ranks,
    parameter_hash,
)
from ppo_lightning.algorithms.update import UpdateStatistics, complete_epoch
from ppo_lightning.core.agent import Batch, Phase, RolloutSource
from ppo_lightning.core.checkpoint import (
    FORMAT_KEY,
    FORMAT_VERSION,
    NetworkBuilder,
    check_same_network,
    read_checkpoint,
)
from ppo_lightning.core.checkpoint_io import check_same_checkpoint, install_checkpoint_io
from ppo_lightning.core.errors import ConfigurationError
from ppo_lightning.core.instantiate import describe
from ppo_lightning.core.metrics import log_metrics
from ppo_lightning.core.ranks import gather_over_ranks
from ppo_lightning.core.rollout import Observation
from ppo_lightning.functional.advantages import normalize_advantages

_UPDATE_EPOCHS = 3  # unless the user asks for another number


class OnPolicyModule(OptimizedModule):
    """Base of the agents: a LightningModule that plays rollouts (``core.agent.Agent``) and learns from them.

    A subclass adds its numbers, ``prepare`` and ``training_step``.

    Args:
        network: builds the network from the observation and action space; in Python a built module also works.
        optimization: how it learns.
        log_param_hash: log ``debug/param_hash`` every iteration, and stop if ranks' parameters differ.

    Raises:
        ConfigurationError: a number outside its range, or options that contradict each other.
    """

    PARTS: tuple[str, ...] = ("optimization",)
    """Arguments of base classes that subclasses make of their own."""
    BUILDERS: tuple[str, ...] = ("network", "optimizer", "scheduler")
    """Arguments that checkpoints hold as plain configurations."""

    def __init__(self, network: NetworkBuilder, optimization: Optimization, log_param_hash: bool = False) -> None:
        super().__init__(network, optimization)
        modules = ["network"] if isinstance(network, nn.Module) else []
        self.save_hyperparameters(logger=False, ignore=[*self.PARTS, *modules])  # of the subclass
        if "_instantiator" not in self.hparams:  # not from the command line, which stores plain configurations
            self.hparams.update({name: describe(self.hparams.get(name)) for name in self.BUILDERS})
        self.log_param_hash = log_param_hash

        self.iteration_metrics: dict[str, float] = {}
        """What the last iteration logged."""
        self._statistics = UpdateStatistics()
        self._spread: SpreadMinibatches | None = None
        self._moments: Tensor | None = None
        self._phases: Sequence[str] = []
        self._update_stopped = False
        self._clock = TrainingClock()
        self._steps_at_start = 0

    def setup(self, stage: str) -> None:
        """Build the network from the data module's spaces where they were not given."""
        if stage == "fit" and self._source.total_timesteps is None:
            for flag in self.scheduled_flags[:1]:
                raise ConfigurationError(f"{flag} needs to know when training ends: set --data.total_timesteps.")
        install_checkpoint_io(self.trainer)
        callbacks: list[Any] = self.trainer.callbacks  # type: ignore[attr-defined]
        if not any(isinstance(callback, IterationBorders) for callback in callbacks):
            callbacks.insert(0, IterationBorders())
        leave_out_empty_hooks(self, callbacks)
        if self.has_unused_parameters:
            allow_unused_parameters(self.trainer)
        if self.network is None:
            self.build_network(self._source.observation_space, self._source.action_space)
        leave_statistics_alone(self)
        # Lightning would do so after it has loaded a checkpoint, whose float64 parameters would be rounded to float32
        self.trainer.precision_plugin.convert_module(self)

    @property
    def scheduled_flags(self) -> list[str]:
        """The flags that are set and depend on the run's length."""
        decay, flag = self.optimization.decay, self.optimization.decay_flag
        return [] if decay is None or flag is None or decay.steps is not None else [flag]

    @property
    def has_unused_parameters(self) -> bool:
        """Whether some losses leave some parameters out, which DDP must know of."""
        return False

    @property
    def _source(self) -> RolloutSource:
        datamodule = getattr(self.trainer, "datamodule", None)
        if datamodule is None or not hasattr(datamodule, "rollout_metrics"):
            raise ConfigurationError(
                f"{type(self).__name__} learns from rollouts: pass datamodule=RolloutDataModule(…) to the Trainer."
            )
        return cast(RolloutSource, datamodule)

    @property
    def env_steps(self) -> int:
        """Environment steps so far, over all ranks."""
        return self._source.env_steps

    # -- what the dataset asks of the update (core.agent.Agent)

    @property
    def update_stopped(self) -> bool:
        """True once ``target_kl`` is exceeded, at the next border of accumulated minibatches."""
        return self._update_stopped and self._statistics.count % self.trainer.accumulate_grad_batches == 0

    @property
    def keeps_next_obs(self) -> bool:
        """Whether rollouts are to hold what followed each observation."""
        return False

    @property
    def warm_up_steps(self) -> int:
        """Random actions before the first rollout."""
        return 0

    def warm_up(self, obs: Observation) -> None:
        """Look at what random actions led to."""

    def phases(self, update_epochs: int | None) -> Sequence[Phase]:
        """What an update consists of: by default ``update_epochs`` passes, or 3."""
        return [Phase("update", _UPDATE_EPOCHS if update_epochs is None else update_epochs)]

    def phase_of(self, batch_idx: int) -> str:
        """The name of the phase that a minibatch of the running update belongs to."""
        return self._phases[batch_idx]

    @property
    def update_length(self) -> int:
        """Minibatches of the running update, all phases together."""
        return len(self._phases)

    def stop_update(self) -> None:
        """Leave out the rest of this iteration's minibatches, from the next border of accumulated ones on."""
        self._update_stopped = True

    def start_update(self, batch: Batch, minibatches: Sequence[Tensor], phases: Sequence[str]) -> None:
        """Ask the other ranks what they have of each minibatch."""
        self._phases = phases
        if self.trainer.world_size > 1:
            self._spread = look_at_ranks(self.trainer, batch, minibatches)
        else:
            self._spread = None
            check_not_empty(torch.tensor([len(rows) for rows in minibatches]))

    def end_update(self) -> None:
        """Forget what was for the minibatches of one update; also where it broke off."""

    def _weight(self, batch_idx: int) -> float:
        """What this rank's means of a minibatch count, so that the mean over ranks is that over all transitions."""
        return 1.0 if self._spread is None else self._spread.weights[batch_idx]

    def look_at_minibatch(self, batch: Batch) -> None:
        """Take down what is to be known of a whole minibatch before its chunks."""
        if self._spread is None:  # which knows it of all minibatches
            self._moments = advantage_moments(batch)

    def _normalize(self, advantages: Tensor, batch_idx: int) -> Tensor:
        """A minibatch's advantages, or a chunk's, by the mean and std of the minibatch over all ranks."""
        moments = self._moments if self._spread is None else self._spread.advantages[batch_idx]
        return normalize_advantages(advantages, moments)

    def gather(self, x: Tensor) -> Tensor:
        """``x`` of every rank, ``(W, *x.shape)``; all must call this in the same order."""
        return gather_over_ranks(self.trainer, x)

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
        self.optimization.settle(self.trainer, is_resumed=bool(self._source.iteration))
        self._clock.start()

    def start_iteration(self) -> None:
        """Set what this iteration's learning rate and schedules are, before callbacks look at it."""
        source = self._source
        self._steps_at_start = source.env_steps
        self._update_stopped = False
        self._statistics.clear()
        remaining = 1.0 if source.total_timesteps is None else 1 - source.env_steps / source.total_timesteps
        self.optimization.start_iteration(self.trainer, source.env_steps, remaining)
        self.start_schedules(remaining)

    def start_schedules(self, remaining: float) -> None:
        """Set what else follows the part of training that ``remains``, from 1 down to 0."""

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Finish the iteration after its last minibatch, before any callback can save or evaluate."""
        if self.trainer.is_last_batch or self.update_stopped:
            self.finish_iteration()

    def finish_iteration(self) -> None:
        """Look for a NaN on any rank and log the iteration, once."""
        self.end_update()
        if not self._statistics.count:
            return
        source, guard = self._source, self.optimization.guard
        clock = self._clock.end_iteration(source.env_steps - self._steps_at_start)
        gather = self.gather
        update = self._statistics.report(source.env_steps, clock, gather, bears_nan=guard is not None)
        metrics = {**source.rollout_metrics(), **update, **self.learning_rates()}
        if guard is not None:
            metrics["train/dropped_steps"] = float(guard.dropped)
        self.finish_statistics(gather)
        if self.log_param_hash:
            metrics["debug/param_hash"] = float(parameter_hash(self.trainer, self, source.env_steps))
        self._statistics.clear()
        self.iteration_metrics = metrics
        log_metrics(self.trainer, metrics, source.env_steps)

    def finish_statistics(self, gather: Callable[[Tensor], Tensor]) -> None:
        """Change what is frozen while a rollout is played and learned from; called on all ranks."""

    @property
    def metric_names(self) -> list[str]:
        """What is logged every iteration, ``rollout/return_mean`` and the like once episodes have ended."""
        names = [
            *self._source.rollout_metric_names(),
            *self.optimization.learning_rate_names,
            "time/sps",
            "time/seconds",
        ]
        if self.optimization.guard is not None:
            names.append("train/dropped_steps")
        return [*names, "debug/param_hash"] if self.log_param_hash else names

    def exclude_from_speed(self, seconds: float) -> None:
        """Leave this time out of the running iteration's ``time/sps``: evaluation is not training."""
        self._clock.exclude(seconds)

    # -- Lightning's hooks

    def __setattr__(self, name: str, value: Any) -> None:
        """As a Module, which takes microseconds; Lightning notes the hook it is in some 45 times a minibatch."""
        if name == "_current_fx_name":
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Mark the format, and store the loops as after a whole iteration, also where a KL stop cut it short."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[FORMAT_KEY] = FORMAT_VERSION
        checkpoint["train_seconds"] = self._clock.seconds
        complete_epoch(checkpoint["loops"]["fit_loop"])

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse the checkpoint of another network, or of other normalisers, in a sentence."""
        super().on_load_checkpoint(checkpoint)
        self._clock.seconds_before = checkpoint.get("train_seconds", 0.0)
        check_same_statistics(self.state_dict(), checkpoint["state_dict"])
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
