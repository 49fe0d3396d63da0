"""Agents that learn: LightningModules."""

from ppo_lightning.algorithms.base import OnPolicyModule
from ppo_lightning.algorithms.clipped import ClippedModule
from ppo_lightning.algorithms.daac import DAAC
from ppo_lightning.algorithms.ppo import PPO
from ppo_lightning.algorithms.rnd import RND

__all__ = ["DAAC", "PPO", "RND", "ClippedModule", "OnPolicyModule"]
