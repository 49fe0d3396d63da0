"""An agent's optimiser, its learning rate from iteration to iteration, and its gradients' clipping."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from ppo_lightning.algorithms.chunks import check_chunk_size
from ppo_lightning.algorithms.guards import GradientGuard
from ppo_lightning.algorithms.schedules import learning_rate_decay
from ppo_lightning.core.errors import ConfigurationError, check_range
from ppo_lightning.core.instantiate import build_from_config

OptimizerBuilder = Callable[[Iterable[nn.Parameter], float], Optimizer]
SchedulerBuilder = Callable[[Optimizer], LRScheduler]


def default_optimizer(params: Iterable[nn.Parameter], learning_rate: float) -> Optimizer:
    """Adam with eps 1e-5, as PPO implementations use it, in one fused kernel."""
    return torch.optim.Adam(params, lr=learning_rate, eps=1e-5, fused=True)


class Optimization:
    """How an agent learns: its optimiser, learning rates and clipping, and what guards its steps.

    After a resume this run's settings win over the checkpoint's.

    Args:
        optimizer: builds the optimiser, or the plain configuration of what does; None for ``default_optimizer``.
        scheduler: the same of the scheduler, stepped once an iteration; None for none.
        learning_rate: of the optimiser; of the actor where ``critic_learning_rate`` is given.
        anneal_lr: lower the learning rates linearly to 0 over the run.
        final_learning_rate: lower ``learning_rate`` to this.
        lr_decay_steps: environment steps that either takes; None for the whole run.
        lr_decay_power: of the polynomial that either follows.
        critic_learning_rate: of the critic's own parameters, which then are a second parameter group.
        critic_gradient_clip_val: clips the gradients of the critic's own parameters by themselves.
        adaptive_lr: adapts the learning rates.
        guard: drops bad steps.
        chunk_size: the most transitions of a minibatch that are learned from at once; None for all, or ``auto``.

    Raises:
        ConfigurationError: a number outside its range, or two things that set the learning rate.
    """

    def __init__(
        self,
        optimizer: OptimizerBuilder | Mapping[str, Any] | None,
        scheduler: SchedulerBuilder | Mapping[str, Any] | None,
        learning_rate: float,
        anneal_lr: bool = False,
        final_learning_rate: float | None = None,
        lr_decay_steps: int | None = None,
        lr_decay_power: float = 1.0,
        critic_learning_rate: float | None = None,
        critic_gradient_clip_val: float | None = None,
        adaptive_lr: AdaptiveLearningRate | None = None,
        guard: GradientGuard | None = None,
        chunk_size: int | str | None = None,
    ) -> None:
        check_chunk_size(chunk_size)
        numbers = {
            "--model.learning_rate": learning_rate,
            "--model.critic_learning_rate": critic_learning_rate,
            "--model.critic_gradient_clip_val": critic_gradient_clip_val,
        }
        for flag, value in numbers.items():
            if value is not None:
                check_range(flag, value, 0, exclude_low=True)
        self.decay = learning_rate_decay(learning_rate, final_learning_rate, lr_decay_steps, lr_decay_power, anneal_lr)
        name = "anneal_lr=true" if anneal_lr else f"final_learning_rate={final_learning_rate}"
        self.decay_flag = None if self.decay is None else f"--model.{name}"
        """What asks for the learning rate to be lowered."""
        setters = {
            f"--model.{name}": self.decay is not None,
            "--model.scheduler": scheduler is not None,
            "--model.adaptive_lr_kl": adaptive_lr is not None,
        }
        chosen = [flag for flag, is_set in setters.items() if is_set]
        if len(chosen) > 1:
            raise ConfigurationError(f"{' and '.join(chosen)} both set the learning rate: leave one of them out.")
        if adaptive_lr is not None:
            adaptive_lr.check(learning_rate, critic_learning_rate)
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.critic_gradient_clip_val = critic_gradient_clip_val
        self.adaptive_lr = adaptive_lr
        self.guard = guard
        self.chunk_size = chunk_size
        self.critic_flags = [flag for flag, value in numbers.items() if "critic" in flag and value is not None]
        """Those that are set and need a critic of its own."""
        looks = {"critic_gradient_clip_val": critic_gradient_clip_val, "gradient_guard": guard}
        self._gradient_flags = [f"--model.{name}" for name, part in looks.items() if part is not None]
        self._learning_rates = [rate for rate in (learning_rate, critic_learning_rate) if rate is not None]
        self._optimizer_builder = _builder(optimizer, OptimizerBuilder, "--model.optimizer") or default_optimizer
        self._scheduler_builder = _builder(scheduler, SchedulerBuilder, "--model.scheduler")
        self._settings: list[dict[str, Any]] = []  # of each parameter group, without its learning rate
        self.resumed_class: str | None = None
        """Of the optimiser whose state the checkpoint holds that is resumed, where it says so."""
        self.resumed_groups: int | None = None
        """How many parameter groups it has: a critic of its own learning rate is a second one."""

    @property
    def learning_rate_names(self) -> list[str]:
        """What the learning rates are logged as, the actor's first."""
        return ["train/learning_rate", "train/critic_learning_rate"][: len(self._learning_rates)]

    def build(self, module: nn.Module, critic: Sequence[nn.Parameter]) -> Any:
        """What ``configure_optimizers`` returns, for a module whose parameters ``critic`` are the critic's own.

        Raises:
            ConfigurationError: settings that the optimiser or the scheduler does not take, or an optimiser that can't
                take up the checkpoint's state.
        """
        try:
            optimizer = self._optimizer_builder(self._groups(module, critic), self._learning_rates[0])
        except (TypeError, ValueError) as error:
            raise ConfigurationError(f"--model.optimizer cannot be built ({error}): change its settings.") from error
        name = type(optimizer).__name__
        if self.resumed_class not in (None, name):
            raise ConfigurationError(
                f"--model.optimizer={name} cannot take up the state that --ckpt_path holds of {self.resumed_class}"
                f": use that optimizer, or start a new run from these weights with --init_from."
            )
        if self.resumed_groups not in (None, len(optimizer.param_groups)):
            raise ConfigurationError(
                "--model.critic_learning_rate is given here or was given to the run of --ckpt_path, but not both, so "
                "the optimiser cannot take up its state: do as that run did, or start a new one with --init_from."
            )
        self._settings = [
            {key: value for key, value in group.items() if key not in ("params", "lr", "initial_lr")}
            for group in optimizer.param_groups
        ]
        if self._scheduler_builder is None:
            return optimizer
        scheduler = self._build_scheduler(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "epoch"}}

    def _groups(self, module: nn.Module, critic: Sequence[nn.Parameter]) -> Any:
        if len(self._learning_rates) == 1:
            return module.parameters()
        own = set(critic)
        actor = [parameter for parameter in module.parameters() if parameter not in own]
        return [{"params": actor}, {"params": list(critic), "lr": self._learning_rates[1]}]

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

    def settle(self, trainer: Trainer, is_resumed: bool) -> None:
        """Let this run's settings win over those stored with the optimiser's state.

        Raises:
            ConfigurationError: a fused optimiser whose gradients are to be looked at, in float16.
        """
        for optimizer in trainer.optimizers:
            _check_unscaled(trainer, optimizer, self._gradient_flags)
            for group, settings in zip(optimizer.param_groups, self._settings):
                group.update(settings)
            if is_resumed and self._scheduler_builder is not None:
                self._replay_schedule(trainer, optimizer)

    def _replay_schedule(self, trainer: Trainer, optimizer: Optimizer) -> None:
        """A fresh scheduler of this run's settings in the place that the restored one had reached."""
        for config in trainer.lr_scheduler_configs:
            steps = int(config.scheduler.state_dict().get("last_epoch", 0))
            for group, rate in zip(optimizer.param_groups, self._learning_rates):
                group.pop("initial_lr", None)
                group["lr"] = rate
            config.scheduler = self._build_scheduler(optimizer)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", ".*lr_scheduler.step.*before.*optimizer.step.*")
                for _ in range(steps):
                    config.scheduler.step()  # type: ignore[call-arg]

    def start_iteration(self, trainer: Trainer, env_steps: int, remaining: float) -> None:
        """Set the learning rates, unless a scheduler or the KL divergence does.

        ``env_steps`` are those so far; ``remaining`` of the run goes from 1 down to 0.
        """
        if self.guard is not None:
            self.guard.dropped = 0
        if self._scheduler_builder is None and self.adaptive_lr is None:
            factor = 1.0 if self.decay is None else self.decay.factor(env_steps, remaining)
            for group, rate in zip(trainer.optimizers[0].param_groups, self._learning_rates):
                group["lr"] = rate * factor


class AdaptiveLearningRate:
    """Divides every learning rate by 1.5 where the policy moves too far, multiplies it where it hardly moves.

    Source: the schedule of Isaac Gym's PPO agents (Rudin et al., "Learning to Walk in Minutes Using Massively Parallel
    Deep Reinforcement Learning", arXiv 2109.11978, appendix).

    Args:
        target_kl: rates go down where the KL divergence exceeds twice this, and up where it is less than half.
        low: no rate goes below.
        high: no rate goes above.

    Raises:
        ConfigurationError: a number outside its range.
    """

    FACTOR = 1.5

    def __init__(self, target_kl: float, low: float, high: float) -> None:
        check_range("--model.adaptive_lr_kl", target_kl, 0, exclude_low=True)
        check_range("--model.min_learning_rate", low, 0, exclude_low=True)
        check_range("--model.max_learning_rate", high, low)
        self.target_kl = target_kl
        self.low = low
        self.high = high

    def check(self, *learning_rates: float | None) -> None:
        """Raise :class:`ConfigurationError` where a rate to begin with lies outside the range."""
        for rate in learning_rates:
            if rate is not None and not self.low <= rate <= self.high:
                raise ConfigurationError(
                    f"A learning rate of {rate:g} is to be adapted between --model.min_learning_rate={self.low:g} and "
                    f"--model.max_learning_rate={self.high:g}, and lies outside: change one of them."
                )

    def adapt(self, optimizer: Optimizer, kl: float) -> None:
        """Set the rates for the step that follows a KL divergence; NaN changes nothing."""
        for group in optimizer.param_groups:
            if kl > 2 * self.target_kl:
                group["lr"] = max(self.low, group["lr"] / self.FACTOR)
            elif kl < self.target_kl / 2:
                group["lr"] = min(self.high, group["lr"] * self.FACTOR)


def critic_parameters_of(network: nn.Module, flag: str) -> list[nn.Parameter]:
    """What belongs to a network's critic alone.

    Raises:
        ConfigurationError: actor and critic share what they are made of; names ``flag``.
    """
    find = getattr(network, "critic_parameters", None)
    own: list[nn.Parameter] | None = None if find is None else find()
    if own is None:
        raise ConfigurationError(
            f"{flag} needs a critic of its own, and in --model.network={type(network).__name__} actor and critic share "
            "their encoder: take PPOModel, or ActorCritic with shared=false."
        )
    return own


def _check_unscaled(trainer: Trainer, optimizer: Optimizer, flags: Sequence[str]) -> None:
    """Raise where gradients are looked at that are scaled until the optimiser itself takes that back."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    if flags and scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False):
        raise ConfigurationError(
            f"{flags[0]} looks at gradients, which a fused optimiser with --trainer.precision=16-mixed leaves scaled: "
            "use --trainer.precision=bf16-mixed, or an --model.optimizer that is not fused."
        )


def _builder(part: Any, part_type: Any, flag: str) -> Any:
    """A builder as it is, or built from its plain configuration."""
    return build_from_config(part_type, part, flag) if isinstance(part, Mapping) else part
