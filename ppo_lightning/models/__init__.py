"""Networks: encoders and actor-critics."""

from ppo_lightning.models.actor_critic import ActorCritic, ImpalaPPOModel
from ppo_lightning.models.encoders import Encoder, ImpalaCNN, MLPEncoder, NatureCNN
from ppo_lightning.models.outputs import GaussianModelOutput, PPOModelOutput

__all__ = [
    "ActorCritic",
    "Encoder",
    "GaussianModelOutput",
    "ImpalaCNN",
    "ImpalaPPOModel",
    "MLPEncoder",
    "NatureCNN",
    "PPOModelOutput",
]
