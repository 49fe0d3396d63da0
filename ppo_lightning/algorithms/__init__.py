"""Agents that learn: LightningModules."""

from ppo_lightning.algorithms.ppo import PPO

__all__ = ["PPO"]
