"""Lightning callbacks: evaluation, coordinators, checkpoints, faults, early stopping, summaries, progress."""

from ppo_lightning.callbacks.calibration import ThresholdCalibration
from ppo_lightning.callbacks.checkpoint import BestCheckpoint, RunCheckpoint
from ppo_lightning.callbacks.comparison import CoordinatorComparison
from ppo_lightning.callbacks.early_stopping import EvaluationEarlyStopping
from ppo_lightning.callbacks.evaluation import Evaluation
from ppo_lightning.callbacks.faults import FaultHandling
from ppo_lightning.callbacks.progress import EnvStepProgressBar
from ppo_lightning.callbacks.summary import TrainingSummary
from ppo_lightning.callbacks.video import VideoRecorder

__all__ = [
    "BestCheckpoint",
    "CoordinatorComparison",
    "EnvStepProgressBar",
    "Evaluation",
    "EvaluationEarlyStopping",
    "FaultHandling",
    "RunCheckpoint",
    "ThresholdCalibration",
    "TrainingSummary",
    "VideoRecorder",
]
