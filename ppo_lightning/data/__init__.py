"""Rollouts: collecting them and cutting them into minibatches."""

from ppo_lightning.data.collect import Collector
from ppo_lightning.data.datamodule import RolloutDataModule
from ppo_lightning.data.dataset import RolloutDataset

__all__ = ["Collector", "RolloutDataModule", "RolloutDataset"]
