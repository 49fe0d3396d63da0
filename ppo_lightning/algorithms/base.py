"""What every agent that learns from rollouts shares: a network that acts, an optimiser, iterations, checkpoints."""

from __future__ import annotations

import functools
import io
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Optional, Union, cast

import torch
from gymnasium import spaces
from lightning.pytorch import LightningModule
from lightning.pytorch.core.saving import _load_from_checkpoint
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.utilities.model_helpers import _restricted_classmethod
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from ppo_lightning.algorithms.borders import IterationBorders
from ppo_lightning.algorithms.network import build_network
from ppo_lightning.algorithms.ranks import (
    SpreadMinibatches,
    allow_unused_parameters,
    check_not_empty,
    look_at_ranks,
    parameter_hash,
)
from ppo_lightning.algorithms.update import UpdateStatistics, complete_epoch
from ppo_lightning.core.agent import ActOutput, Batch, RolloutSource
from ppo_lightning.core.checkpoint import (
    FORMAT_KEY,
    FORMAT_VERSION,
    NetworkBuilder,
    check_same_network,
    load_network_weights,
    read_checkpoint,
)
from ppo_lightning.core.checkpoint_io import check_same_checkpoint, install_checkpoint_io
from ppo_lightning.core.errors import ConfigurationError, check_range
from ppo_lightning.core.instantiate import build_from_config, describe
from ppo_lightning.core.metrics import log_metrics
from ppo_lightning.core.ranks import gather_over_ranks, mean_over_ranks
from ppo_lightning.core.rollout import Observation, State
from ppo_lightning.core.spaces import space_from_dict, space_to_dict
from ppo_lightning.functional.advantages import normalize_advantages
from ppo_lightning.functional.distributions import at_least_float32, draw_noise
from ppo_lightning.models.outputs import ModelOutput

OptimizerBuilder = Callable[[Iterable[nn.Parameter], float], Optimizer]
SchedulerBuilder = Callable[[Optimizer], LRScheduler]
PlainOrSpace = Union[dict[str, Any], spaces.Space[Any], None]


def default_optimizer(params: Iterable[nn.Parameter], learning_rate: float) -> Optimizer:
    """Adam with eps 1e-5, as PPO implementations use it, in one fused kernel."""
    return torch.optim.Adam(params, lr=learning_rate, eps=1e-5, fused=True)


class OnPolicyModule(LightningModule):
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
        super().__init__()
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

        self.network: nn.Module | None = None
        self.action_space: spaces.Space[Any] | None = None
        # as a plain attribute a module would be registered, and saved, a second time
        self._network_builder: Any = (lambda *spaces: network) if isinstance(network, nn.Module) else network
        self._optimizer_builder = _builder(optimizer, OptimizerBuilder, "--model.optimizer") or default_optimizer
        self._scheduler_builder = _builder(scheduler, SchedulerBuilder, "--model.scheduler")
        self._optimizer_settings: list[dict[str, Any]] = []
        self._resumed_optimizer: str | None = None
        self.iteration_metrics: dict[str, float] = {}
        """What the last iteration logged."""
        self._statistics = UpdateStatistics()
        self._spread: SpreadMinibatches | None = None
        self._update_stopped = False
        self._iteration_start = 0.0
        self._steps_at_start = 0
        self._seconds = 0.0  # of training, before this process
        self._train_start = 0.0

    def build_if_known(self, observation_space: PlainOrSpace, action_space: PlainOrSpace) -> None:
        """Build the network now if the spaces are given; a subclass calls this when its numbers are set."""
        if observation_space is not None and action_space is not None:
            self.build_network(_space(observation_space), _space(action_space))

    # -- the network

    def build_network(self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
        """Build the network for these spaces and remember them in the checkpoint."""
        self.network = build_network(self._network_builder, observation_space, action_space)
        self.action_space = action_space
        self.hparams["observation_space"] = space_to_dict(observation_space)
        self.hparams["action_space"] = space_to_dict(action_space)

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

    def forward(self, obs: Any) -> Any:
        """The network's output for observations ``(B, *shape)``."""
        return self._net(obs)

    @property
    def _net(self) -> Any:
        assert self.network is not None, "the network is built when the spaces are known"
        return self.network

    def _run(self, obs: Observation, state: State | None) -> tuple[ModelOutput, State | None]:
        return (self._net(obs), None) if state is None else self._net(obs, state)

    @property
    def _source(self) -> RolloutSource:
        datamodule = getattr(self.trainer, "datamodule", None)
        if datamodule is None or not hasattr(datamodule, "rollout_metrics"):
            raise ConfigurationError("PPO learns from rollouts: pass datamodule=RolloutDataModule(…) to the Trainer.")
        return cast(RolloutSource, datamodule)

    # -- what the dataset asks (core.agent.Agent)

    @property
    def update_stopped(self) -> bool:
        """True once ``target_kl`` is exceeded, at the next border of accumulated minibatches."""
        return self._update_stopped and self._statistics.count % self.trainer.accumulate_grad_batches == 0

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """No gradients, and the Trainer's precision: rollout and update run the same kernels."""
        with torch.no_grad(), self.trainer.precision_plugin.forward_context():
            yield

    def initial_state(self, num_envs: int) -> State | None:
        """The network's memory at an episode's start; None without memory."""
        initial = getattr(self._net, "initial_state", None)
        return None if initial is None else cast(State, initial(num_envs))

    def draw_noise(self, num_steps: int, generators: Sequence[torch.Generator]) -> Tensor:
        """The random numbers of a rollout's actions, ``(T, N, …)``."""
        assert self.action_space is not None
        dtype = at_least_float32(next(self.parameters()).flatten()[:0]).dtype
        return draw_noise(self.action_space, num_steps, generators, dtype, self.device)

    def act(self, obs: Observation, noise: Tensor, state: State | None) -> ActOutput:
        """Sample actions for ``N`` environments."""
        output, state = self._run(obs, state)
        distribution = output.distribution
        actions = distribution.sample(noise)
        return ActOutput(actions, distribution.log_prob(actions), at_least_float32(output.value), state)

    def value_of(self, obs: Observation, state: State | None) -> Tensor:
        """The critic's values ``(N,)``."""
        return at_least_float32(self._run(obs, state)[0].value)

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
        for optimizer in self.trainer.optimizers:
            for group, settings in zip(optimizer.param_groups, self._optimizer_settings):
                group.update(settings)
            self._replay_schedule(optimizer)
        self._iteration_start = self._train_start = time.perf_counter()

    def _replay_schedule(self, optimizer: Optimizer) -> None:
        """After a resume, a fresh scheduler of this run's settings in the place that the restored one had reached."""
        for config in self.trainer.lr_scheduler_configs if self._scheduler_builder is not None else []:
            steps = int(config.scheduler.state_dict().get("last_epoch", 0))
            if not self._source.iteration:
                continue
            for group in optimizer.param_groups:
                group.pop("initial_lr", None)
                group["lr"] = self.learning_rate
            config.scheduler = self._build_scheduler(optimizer)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", ".*lr_scheduler.step.*before.*optimizer.step.*")
                for _ in range(steps):
                    config.scheduler.step()  # type: ignore[call-arg]

    def start_iteration(self) -> None:
        """Set this iteration's learning rate, before callbacks look at it."""
        source = self._source
        self._steps_at_start = source.env_steps
        self._update_stopped = False
        self._statistics.clear()
        if self._scheduler_builder is None:
            remaining = 1.0
            if self.anneal_lr:
                assert source.total_timesteps is not None
                remaining = 1 - source.env_steps / source.total_timesteps
            for group in self.trainer.optimizers[0].param_groups:
                group["lr"] = self.learning_rate * remaining

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
        now = time.perf_counter()
        clock = {
            "time/sps": (source.env_steps - self._steps_at_start) / (now - self._iteration_start),
            "time/seconds": self._seconds + now - self._train_start,
        }
        gather = functools.partial(gather_over_ranks, self.trainer)
        update = self._statistics.report(source.env_steps, clock, gather)
        learning_rate = self.trainer.optimizers[0].param_groups[0]["lr"]
        metrics = {**source.rollout_metrics(), **update, "train/learning_rate": learning_rate}
        if self.log_param_hash:
            metrics["debug/param_hash"] = float(parameter_hash(self.trainer, self, source.env_steps))
        self._iteration_start = now
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
        self._iteration_start += seconds

    # -- Lightning's hooks

    def configure_optimizers(self) -> Any:
        """The optimiser at ``learning_rate``, and the scheduler if there is one."""
        try:
            optimizer = self._optimizer_builder(self.parameters(), self.learning_rate)
        except (TypeError, ValueError) as error:
            raise ConfigurationError(f"--model.optimizer cannot be built ({error}): change its settings.") from error
        name = type(optimizer).__name__
        if self._resumed_optimizer not in (None, name):
            raise ConfigurationError(
                f"--model.optimizer={name} cannot take up the state that --ckpt_path holds of {self._resumed_optimizer}"
                f": use that optimizer, or start a new run from these weights with --init_from."
            )
        self._optimizer_settings = [
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

    def lr_scheduler_step(self, scheduler: Any, metric: Any | None) -> None:
        """Nothing: Lightning leaves schedulers out after an early stop, so ``on_train_epoch_end`` steps them."""

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """As the Trainer says. bfloat16 needs no loss scaling, so there a fused optimiser may be clipped too."""
        plugin = self.trainer.precision_plugin
        if isinstance(plugin, MixedPrecision) and plugin.scaler is None and gradient_clip_val:
            algorithm = gradient_clip_algorithm or "norm"
            if algorithm == "norm":
                plugin.clip_grad_by_norm(optimizer, gradient_clip_val)
            else:
                plugin.clip_grad_by_value(optimizer, gradient_clip_val)
            return
        self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Mark the format, and store the loops as after a whole iteration, also where a KL stop cut it short."""
        checkpoint[FORMAT_KEY] = FORMAT_VERSION
        if self.trainer.optimizers:
            checkpoint["optimizer_class"] = type(self.trainer.optimizers[0]).__name__
        running = time.perf_counter() - self._train_start if self._train_start else 0.0
        checkpoint["train_seconds"] = self._seconds + running
        complete_epoch(checkpoint["loops"]["fit_loop"])

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse another network's checkpoint in a sentence."""
        self._resumed_optimizer = checkpoint.get("optimizer_class")
        self._seconds = checkpoint.get("train_seconds", 0.0)
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

    def init_from(self, path: Union[str, Path]) -> None:
        """Start from the network weights of a checkpoint; optimiser, schedules and counters begin anew."""
        load_network_weights(self._net, read_checkpoint(path, "--init_from"), "--init_from")


def _builder(part: Any, part_type: Any, flag: str) -> Any:
    """A builder as it is, or built from its plain configuration."""
    return build_from_config(part_type, part, flag) if isinstance(part, Mapping) else part


def _space(space: PlainOrSpace) -> spaces.Space[Any]:
    return space if isinstance(space, spaces.Space) else space_from_dict(cast(dict[str, Any], space))
