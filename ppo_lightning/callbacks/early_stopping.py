"""Ending a run that no longer improves."""

from __future__ import annotations

from typing import Any, Literal, Optional

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping

from ppo_lightning.callbacks.monitor import check_monitors, is_any_evaluation_fresh
from ppo_lightning.core.errors import check_range


class EvaluationEarlyStopping(EarlyStopping):
    """Lightning's ``EarlyStopping``, whose ``patience`` counts evaluations.

    The stock one acts every epoch and would count the iterations between two evaluations as failures to improve.

    Args:
        monitor: ``eval/return_mean``, ``eval/<split>/return_mean`` or another metric of an evaluation.
        patience: evaluations without an improvement after which training ends.
        min_delta: what counts as an improvement.
        mode: whether more (``max``) or less (``min``) is better.
        stopping_threshold: end training as soon as the metric is better than this: the task is solved.
        divergence_threshold: end training as soon as the metric is worse than this.
        verbose: say why it ends.
    """

    waits_for_evaluation = True
    _has_stopped = _is_over = False

    def __init__(
        self,
        monitor: str = "eval/return_mean",
        patience: int = 5,
        min_delta: float = 0.0,
        mode: Literal["min", "max"] = "max",
        stopping_threshold: Optional[float] = None,
        divergence_threshold: Optional[float] = None,
        verbose: bool = True,
    ) -> None:
        check_range("EvaluationEarlyStopping.patience", patience, 1)
        super().__init__(
            monitor=monitor,
            patience=patience,
            min_delta=min_delta,
            mode=mode,
            stopping_threshold=stopping_threshold,
            divergence_threshold=divergence_threshold,
            verbose=verbose,
            check_on_train_epoch_end=True,
        )

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Look at the monitor before any work."""
        super().setup(trainer, pl_module, stage)
        check_monitors(trainer)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting; ``patience`` is what this run was given."""
        super().load_state_dict({**state_dict, "patience": self.patience})
        self._is_over = state_dict.get("stopped_by") == self._settings

    def state_dict(self) -> dict[str, Any]:
        """What it counted, and by which settings it stopped: with others the run may go on."""
        return {**super().state_dict(), "stopped_by": self._settings if self._has_stopped else None}

    @property
    def _settings(self) -> list[float | None]:
        return [float(self.patience), self.min_delta, self.stopping_threshold, self.divergence_threshold]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """What it ended stays ended when its last checkpoint is continued, as it is where a kill came just after."""
        self._has_stopped, self._is_over = self._is_over, False
        if self._has_stopped:
            trainer.should_stop = True

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare, if the score is of these parameters."""
        if is_any_evaluation_fresh(trainer, self.monitor):
            before = trainer.should_stop
            super().on_train_epoch_end(trainer, pl_module)
            self._has_stopped = trainer.should_stop and not before
