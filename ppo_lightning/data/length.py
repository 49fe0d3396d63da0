"""How long a run is: ``total_timesteps`` in whole rollouts, and the Trainer's limits beside them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn

from ppo_lightning.core.errors import ConfigurationError, NothingLeftError


@dataclass(frozen=True)
class RunLength:
    """Whole rollouts within ``total_timesteps``, both over all ranks; ``num_envs`` are those of each."""

    total_timesteps: int | None
    num_envs: int
    num_steps: int
    world_size: int

    @property
    def rollout(self) -> int:
        """Environment steps of one rollout."""
        return self.num_envs * self.num_steps * self.world_size

    def check(self) -> None:
        """Raise :class:`ConfigurationError` where not even one rollout fits."""
        if self.total_timesteps is not None and self.total_timesteps < self.rollout:
            ranks = f" × {self.world_size} ranks" if self.world_size > 1 else ""
            raise ConfigurationError(
                f"--data.total_timesteps={self.total_timesteps} is less than one rollout of --data.num_envs="
                f"{self.num_envs} × --data.num_steps={self.num_steps}{ranks} = {self.rollout} steps: raise it, or make "
                "the rollout shorter."
            )

    def check_left(self, env_steps: int) -> None:
        """Raise :class:`NothingLeftError` where no rollout fits after a checkpoint's steps."""
        if self.total_timesteps is not None and self.total_timesteps - env_steps < self.rollout:
            raise NothingLeftError(
                f"--data.total_timesteps={self.total_timesteps} leaves nothing to train: the checkpoint of --ckpt_path "
                f"has {env_steps} environment steps; raise it by at least {self.rollout}."
            )


class TrainerLimits:
    """The limits that the user gave the Trainer: lowered while it trains, and put back, so that it can be used again.

    Args:
        trainer: plays no validation batches from now on.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer: Any = trainer
        self._max_epochs: int | None = trainer.max_epochs
        self._limit_val_batches = trainer.limit_val_batches
        trainer.limit_val_batches = 0  # the Evaluation callback keeps its own times

    def lower(self, length: RunLength, env_steps: int, iteration: int, minibatches: int) -> None:
        """End after the last whole rollout, and say where the Trainer's own limits come first.

        Args:
            length: of the run.
            env_steps: so far.
            iteration: rollouts so far.
            minibatches: of an iteration.
        """
        trainer, rollout, own = self._trainer, length.rollout, self._max_epochs
        if length.total_timesteps is None:
            if own in (None, -1) and trainer.max_steps == -1:
                rank_zero_warn(
                    "--data.total_timesteps=null and --trainer.max_epochs=-1: training goes on until stopped."
                )
            return
        epochs = iteration + (length.total_timesteps - env_steps) // rollout
        steps_an_epoch = -(-minibatches // trainer.accumulate_grad_batches)
        for name, limit, per_epoch in (("max_epochs", own, 1), ("max_steps", trainer.max_steps, steps_an_epoch)):
            if limit in (None, -1) or trainer.fast_dev_run:
                continue
            if limit < epochs * per_epoch:
                rank_zero_warn(
                    f"--trainer.{name}={limit} ends training after about {limit * rollout // per_epoch} environment "
                    f"steps, before --data.total_timesteps={length.total_timesteps}: set it to -1 to train to the end."
                )
        trainer.fit_loop.max_epochs = epochs if own in (None, -1) else min(own, epochs)

    def put_back(self) -> None:
        """Leave the Trainer as the user set it."""
        self._trainer.fit_loop.max_epochs, self._trainer.limit_val_batches = self._max_epochs, self._limit_val_batches
