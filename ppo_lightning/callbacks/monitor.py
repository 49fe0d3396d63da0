"""What callbacks monitor, looked at before any work."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.trainer.states import TrainerFn

from ppo_lightning.core.errors import ConfigurationError, close_names

_OURS = ("eval/", "rollout/", "train/", "time/")


def check_monitors(trainer: Trainer) -> None:
    """Raise :class:`ConfigurationError` for a monitor that nothing logs, or that would act on a stale score.

    Only training looks at monitors: validate and video may play other splits than those that a run was configured for.
    Metrics under other names than this package's are a subclass's own and taken to be there.
    """
    if trainer.state.fn != TrainerFn.FITTING:
        return
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    evaluations = [callback for callback in callbacks if hasattr(callback, "metric_names")]
    evaluated = [name for callback in evaluations for name in callback.metric_names(trainer)]
    trained = list(getattr(trainer.lightning_module, "metric_names", []))
    for callback in callbacks:
        monitor = getattr(callback, "monitor", None)
        if not isinstance(monitor, str):
            continue
        waits = getattr(callback, "waits_for_evaluation", False)
        known = evaluated if waits else [*evaluated, *trained]
        name = type(callback).__name__
        if monitor not in known and (waits or monitor.startswith(_OURS)):
            kind = "evaluation" if waits else "callback or agent"
            raise ConfigurationError(
                f"{name}(monitor={monitor!r}): no {kind} logs that name.{close_names(monitor, known)} Known are "
                f"{', '.join(known) or 'none, for there is no Evaluation callback'}."
            )
        if isinstance(callback, EarlyStopping) and callback.strict and monitor in _absent_at_first(trainer):
            raise ConfigurationError(
                f"{name}(monitor={monitor!r}) would fail in the first iteration in which no episode ends: set "
                "strict=false, or monitor eval/return_mean by EvaluationEarlyStopping."
            )
        if monitor in evaluated and not waits and not all(other.cadence.is_every_iteration for other in evaluations):
            raise ConfigurationError(
                f"{name}(monitor={monitor!r}) would act after every iteration, on a score of earlier parameters: use "
                "ppo_lightning's BestCheckpoint or EvaluationEarlyStopping, which wait for an evaluation, or set "
                "--evaluation.every_n_iterations=1."
            )


def _absent_at_first(trainer: Trainer) -> list[str]:
    """What an iteration logs only if episodes ended in it."""
    datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
    return [name for name in datamodule.rollout_metric_names() if name != "rollout/episodes"]


def is_any_evaluation_fresh(trainer: Trainer, monitor: str | None = None) -> bool:
    """Whether the parameters as they are now have been evaluated, by the evaluation that logs ``monitor`` if given."""
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    fresh = [callback for callback in callbacks if hasattr(callback, "is_fresh") and callback.is_fresh(trainer)]
    return any(monitor is None or monitor in callback.metric_names(trainer) for callback in fresh)
