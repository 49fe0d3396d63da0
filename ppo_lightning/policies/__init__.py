"""What acts: policies loaded from checkpoints or around a network, and coordinators that need no training."""

from ppo_lightning.policies.base import Policy
from ppo_lightning.policies.coordination import AlwaysPolicy, LogitThresholdPolicy, RandomPolicy
from ppo_lightning.policies.export import OnnxFile, export_onnx
from ppo_lightning.policies.ppo import PPOPolicy

__all__ = [
    "AlwaysPolicy",
    "LogitThresholdPolicy",
    "OnnxFile",
    "PPOPolicy",
    "Policy",
    "RandomPolicy",
    "export_onnx",
]
