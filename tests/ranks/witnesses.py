"""Callbacks that note what each rank sees, and agents and callbacks that treat ranks unequally."""

import json
from pathlib import Path

import torch
from lightning.pytorch import Callback
from torch import nn

from ppo_lightning import PPO, ActorCritic


class Witness(Callback):
    """Each rank's metrics, counters, parameters and observations of every iteration, in ``rank_<n>.json``."""

    def __init__(self):
        self.noted = []

    def on_train_start(self, trainer, pl_module):
        prepare = pl_module.prepare

        def spy(rollout, *rest):
            obs = rollout.obs.flatten(0, 1)
            self.obs = [bytes(row.numpy().tobytes()).hex() for row in obs]
            return prepare(rollout, *rest)

        pl_module.prepare = spy

    def on_train_epoch_end(self, trainer, pl_module):
        optimizer = trainer.optimizers[0]
        self.noted.append(
            {
                "metrics": {name: float(value).hex() for name, value in trainer.callback_metrics.items()},
                "learning_rate": optimizer.param_groups[0]["lr"],
                "env_steps": trainer.datamodule.env_steps,
                "optimizer_steps": trainer.global_step,
                "parameters": {name: part.flatten().tolist() for name, part in pl_module.network.named_parameters()},
                "gradients": [name for name, part in pl_module.network.named_parameters() if part.grad is not None],
                "observations": self.obs,
            }
        )

    def on_train_end(self, trainer, pl_module):
        Path(f"rank_{trainer.global_rank}.json").write_text(json.dumps(self.noted))

    def on_exception(self, trainer, pl_module, exception):
        Path(f"rank_{trainer.global_rank}.txt").write_text(f"{type(exception).__name__}: {exception}")


class Poison(Callback):
    """The second rank's returns are NaN from the third minibatch of the second iteration on."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_rank == 1 and trainer.current_epoch == 1 and batch_idx == 2:
            batch.returns.fill_(torch.nan)


class Nudge(Callback):
    """After the first iteration the second rank's weights are no longer the first one's."""

    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.global_rank == 1 and trainer.current_epoch == 0:
            with torch.no_grad():
                next(pl_module.network.parameters()).view(-1)[0] += 1e-6


class Alternating(PPO):
    """Only the critic learns in every second iteration."""

    has_unused_parameters = True

    @property
    def _pretrains_critic(self):
        return self.trainer.current_epoch % 2 == 1


class NeverUsed(ActorCritic):
    """Has a layer that no loss reaches."""

    def __init__(self, observation_space, action_space):
        super().__init__(observation_space, action_space)
        self.unused = nn.Linear(2, 2)
