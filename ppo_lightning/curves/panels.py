"""What a picture shows, before it is drawn."""

from __future__ import annotations

from dataclasses import dataclass

from ppo_lightning.curves.statistics import Curve

_EVALUATION = "eval/"


@dataclass(frozen=True)
class Line:
    """A curve, the group that it is of, and what it shows."""

    label: str
    metric: str
    curve: Curve


@dataclass(frozen=True)
class Panel:
    """Curves over one another."""

    title: str
    ylabel: str
    lines: list[Line]


def is_evaluation(metric: str) -> bool:
    """Whether it is logged at evaluations only."""
    return metric.startswith(_EVALUATION)


def kind_of(metric: str) -> str:
    """``training``, ``evaluation``, or ``evaluation (unseen)`` of a split."""
    if not is_evaluation(metric):
        return "training"
    split = metric.removeprefix(_EVALUATION).rpartition("/")[0]
    return f"evaluation ({split})" if split else "evaluation"
