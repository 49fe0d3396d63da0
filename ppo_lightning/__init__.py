"""PPO for PyTorch Lightning."""

from ppo_lightning.algorithms import DAAC, PPO, RND
from ppo_lightning.callbacks import (
    BestCheckpoint,
    CoordinatorComparison,
    EnvStepProgressBar,
    Evaluation,
    EvaluationEarlyStopping,
    FaultHandling,
    RunCheckpoint,
    ThresholdCalibration,
    TrainingSummary,
    VideoRecorder,
)
from ppo_lightning.core.allocator import keep_freed_memory
from ppo_lightning.core.errors import ConfigurationError, TrainingError
from ppo_lightning.core.rollout import PPOBatch, PPOSequenceBatch, Rollout
from ppo_lightning.curves import plot_runs
from ppo_lightning.data import RolloutDataModule, RolloutDataset
from ppo_lightning.envs import ActionMaskWrapper, AtariEnv, CoordinationEnv, EnvpoolEnv, GymnasiumEnv, ProcgenEnv
from ppo_lightning.loggers import run_loggers
from ppo_lightning.models import (
    ActorCritic,
    CoordPPOModel,
    DAACModel,
    GridCNN,
    ImpalaCNN,
    ImpalaCoordPPOModel,
    ImpalaPPOModel,
    MLPEncoder,
    NatureCNN,
    ObservationNormalizer,
    PPOActor,
    PPOCritic,
    PPOModel,
    PPOModelOutput,
    RandomNetworkDistillation,
    RNDModel,
)
from ppo_lightning.policies import AlwaysPolicy, LogitThresholdPolicy, Policy, PPOPolicy, RandomPolicy, export_onnx
from ppo_lightning.version import __version__

__all__ = [
    "DAAC",
    "PPO",
    "RND",
    "DAACModel",
    "RNDModel",
    "RandomNetworkDistillation",
    "ActionMaskWrapper",
    "ActorCritic",
    "AlwaysPolicy",
    "CoordPPOModel",
    "CoordinationEnv",
    "ImpalaCoordPPOModel",
    "LogitThresholdPolicy",
    "Policy",
    "RandomPolicy",
    "AtariEnv",
    "BestCheckpoint",
    "ConfigurationError",
    "CoordinatorComparison",
    "EnvStepProgressBar",
    "EnvpoolEnv",
    "Evaluation",
    "EvaluationEarlyStopping",
    "FaultHandling",
    "GridCNN",
    "GymnasiumEnv",
    "ImpalaCNN",
    "ImpalaPPOModel",
    "MLPEncoder",
    "NatureCNN",
    "ObservationNormalizer",
    "PPOActor",
    "PPOBatch",
    "PPOCritic",
    "PPOModel",
    "PPOModelOutput",
    "PPOPolicy",
    "PPOSequenceBatch",
    "ProcgenEnv",
    "Rollout",
    "RolloutDataModule",
    "RolloutDataset",
    "RunCheckpoint",
    "ThresholdCalibration",
    "TrainingError",
    "TrainingSummary",
    "VideoRecorder",
    "__version__",
    "export_onnx",
    "keep_freed_memory",
    "plot_runs",
    "run_loggers",
]
