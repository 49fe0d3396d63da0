"""Settings of the Trainer that mean nothing where an epoch is a rollout and evaluation is a callback."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.accelerators import CPUAccelerator, CUDAAccelerator
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder, StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.utilities import rank_zero_warn

from ppo_lightning.core.errors import ConfigurationError

_WHEN = "evaluation plays whole episodes when --evaluation.every_n_iterations or --evaluation.every_n_env_steps says"
_UPDATE = "an update takes its minibatches from one rollout: set --data.num_minibatches and --data.update_epochs"
_EPISODES = "evaluation plays --evaluation.num_episodes"

# name: (values that are fine, why others are not); 1 is one batch and 1.0 all of them
_FIT: dict[str, tuple[tuple[Any, ...], str]] = {
    "overfit_batches": ((0, 0.0), _UPDATE),  # before the limits, which it sets
    "check_val_every_n_epoch": ((1,), _WHEN),
    "val_check_interval": ((1.0,), _WHEN),
    "limit_val_batches": ((0, 0.0, 1.0), _EPISODES),
    "limit_train_batches": ((1.0,), _UPDATE),
}
_VALIDATE = {"limit_val_batches": ((1.0,), _EPISODES)}
_TEST = {"limit_test_batches": ((1.0,), _EPISODES)}

_CALLBACKS: dict[type, str] = {
    StochasticWeightAveraging: "sets learning rates of its own and puts its average in place only after the last "
    "evaluation and checkpoint: use --model.anneal_lr=true instead",
    WeightAveraging: "would save an average that was never evaluated: use --model.anneal_lr=true instead",
    BatchSizeFinder: "looks for a batch size, which here follows from --data.num_envs, num_steps and num_minibatches",
    LearningRateFinder: "would train on rollouts that it then forgets: give --model.learning_rate",
}


def warn_of_emulated_precision(trainer: Trainer) -> None:
    """bfloat16 where the hardware has none takes up to ten times as long as float32, not half as long."""
    if not str(trainer.precision).startswith("bf16"):
        return
    what, nearest = "", ""
    if isinstance(trainer.accelerator, CPUAccelerator) and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        what, nearest = "CPU", "32-true"
    elif isinstance(trainer.accelerator, CUDAAccelerator) and not torch.cuda.is_bf16_supported(False):
        what, nearest = "GPU", "16-mixed"
    if what:
        rank_zero_warn(
            f"--trainer.precision={trainer.precision}: this {what} has no bfloat16, and emulates it slowly: "
            f"--trainer.precision={nearest} is faster here."
        )


def refuse_meaningless_settings(trainer: Trainer, stage: str) -> None:
    """Raise :class:`ConfigurationError` for a setting or a callback that could not do what its name says."""
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        return
    for name, (fine, reason) in {"fit": _FIT, "validate": _VALIDATE, "test": _TEST}.get(stage, {}).items():
        value = getattr(trainer, name)
        if not any(value == one and type(value) is type(one) for one in fine):
            raise ConfigurationError(f"--trainer.{name}={value} means nothing here: {reason}.")
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    for callback in callbacks:
        for kind, reason in _CALLBACKS.items():
            if isinstance(callback, kind):
                raise ConfigurationError(f"--trainer.callbacks: {type(callback).__name__} {reason}.")


def name_of_envs(trainer: Trainer, name: str) -> str:
    """What warnings call the environments of this rank, before their number in it."""
    return f"Rank {trainer.global_rank}'s {name}" if trainer.world_size > 1 else name.capitalize()
