"""Lightning callbacks: evaluation, checkpoints, progress."""

from ppo_lightning.callbacks.checkpoint import BestCheckpoint, RunCheckpoint
from ppo_lightning.callbacks.evaluation import Evaluation
from ppo_lightning.callbacks.progress import EnvStepProgressBar

__all__ = ["BestCheckpoint", "EnvStepProgressBar", "Evaluation", "RunCheckpoint"]
