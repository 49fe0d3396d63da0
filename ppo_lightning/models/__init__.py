"""Networks: encoders and actor-critics."""

from ppo_lightning.models.actor_critic import ActorCritic, ImpalaPPOModel
from ppo_lightning.models.coordination import CoordPPOModel, ImpalaCoordPPOModel
from ppo_lightning.models.cores import EpisodeParts, GRUCore, LSTMCore, MemoryCore
from ppo_lightning.models.daac import DAACModel
from ppo_lightning.models.encoders import Encoder, GridCNN, ImpalaCNN, MLPEncoder, NatureCNN
from ppo_lightning.models.gaussian import PPOActor, PPOCritic, PPOModel
from ppo_lightning.models.normalization import ObservationNormalizer
from ppo_lightning.models.novelty import RandomNetworkDistillation, RNDModel
from ppo_lightning.models.outputs import (
    GaussianModelOutput,
    MultiBinaryModelOutput,
    MultiDiscreteModelOutput,
    PPOModelOutput,
    SquashedModelOutput,
    apply_action_mask,
)

__all__ = [
    "ActorCritic",
    "CoordPPOModel",
    "DAACModel",
    "Encoder",
    "EpisodeParts",
    "GRUCore",
    "GaussianModelOutput",
    "GridCNN",
    "ImpalaCNN",
    "ImpalaCoordPPOModel",
    "ImpalaPPOModel",
    "LSTMCore",
    "MLPEncoder",
    "MemoryCore",
    "MultiBinaryModelOutput",
    "MultiDiscreteModelOutput",
    "NatureCNN",
    "ObservationNormalizer",
    "PPOActor",
    "PPOCritic",
    "PPOModel",
    "PPOModelOutput",
    "RNDModel",
    "RandomNetworkDistillation",
    "SquashedModelOutput",
    "apply_action_mask",
]
