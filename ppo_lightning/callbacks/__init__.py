"""Lightning callbacks: evaluation, checkpoints, early stopping, summaries, progress."""

from ppo_lightning.callbacks.checkpoint import BestCheckpoint, RunCheckpoint
from ppo_lightning.callbacks.early_stopping import EvaluationEarlyStopping
from ppo_lightning.callbacks.evaluation import Evaluation
from ppo_lightning.callbacks.progress import EnvStepProgressBar

__all__ = ["BestCheckpoint", "EnvStepProgressBar", "Evaluation", "EvaluationEarlyStopping", "RunCheckpoint"]
