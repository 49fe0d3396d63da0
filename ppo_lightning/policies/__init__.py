"""What acts: policies loaded from checkpoints, or around a network."""

from ppo_lightning.policies.export import OnnxFile, export_onnx
from ppo_lightning.policies.ppo import PPOPolicy

__all__ = ["OnnxFile", "PPOPolicy", "export_onnx"]
