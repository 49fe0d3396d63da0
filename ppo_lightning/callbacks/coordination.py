"""Coordinators judged one after another, on the same episodes."""

from __future__ import annotations

import csv
import dataclasses
import sys
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

from lightning.pytorch import Callback, LightningModule, Trainer
from tqdm.auto import tqdm

from ppo_lightning.callbacks.evaluation import Evaluation
from ppo_lightning.callbacks.isolation import beside_training
from ppo_lightning.core.errors import ConfigurationError
from ppo_lightning.core.files import check_file, written_whole
from ppo_lightning.data.evaluate import EvaluationResult, See
from ppo_lightning.data.scoring import Scoring, placement
from ppo_lightning.envs.base import EnvFactory
from ppo_lightning.envs.coordination import CoordinationEnv
from ppo_lightning.policies.base import Policy
from ppo_lightning.policies.coordination import EXPERT

_FIRST = "split", "label", "coordinator"  # columns


@dataclass(frozen=True)
class Candidate:
    """A coordinator to judge.

    Attributes:
        label: what it has in common with others of its kind.
        name: of this one.
        policy: acts.
        settings: what tells it from the others.
        is_of_curve: those of its label differ in one number, so that a line may join them.
    """

    label: str
    name: str
    policy: Policy
    settings: Mapping[str, Any] = field(default_factory=dict)
    is_of_curve: bool = False


@dataclass(frozen=True)
class CoordinatorScore:
    """What one coordinator reached on one split.

    Attributes:
        split: empty where splits have no names.
        candidate: the coordinator.
        metrics: those of the evaluation, over all ranks, and ``expert_fraction``: the share of the expert's steps.
        is_best: whether no other coordinator has a higher mean return there; of several the first.
    """

    split: str
    candidate: Candidate
    metrics: Mapping[str, float]
    is_best: bool

    def row(self) -> dict[str, Any]:
        """Everything of it, flat."""
        candidate = self.candidate
        own = {"split": self.split, "label": candidate.label, "coordinator": candidate.name, **candidate.settings}
        return {**own, **self.metrics, "is_best": self.is_best}


class CoordinatorTrials(Callback):
    """Base of callbacks that play a ``CoordinationEnv`` with one coordinator after another, in ``Trainer.validate``.

    Args:
        evaluation: how many episodes of which splits are played; null is the Trainer's ``Evaluation`` callback.
    """

    def __init__(self, evaluation: Optional[Evaluation]) -> None:
        self.scores: list[CoordinatorScore] = []
        """One a split and coordinator, the same on all ranks."""
        self._evaluation = evaluation
        self._factories: dict[str, EnvFactory] = {}

    @abstractmethod
    def candidates(self, trainer: Trainer, pl_module: Any, scoring: Scoring) -> list[Candidate]:
        """The coordinators, the same on all ranks; may play to find them, by what ``scoring`` says."""

    # -- Lightning's hooks

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Look at the environments of all splits before any work."""
        name = type(self).__name__
        if stage != "validate":
            raise ConfigurationError(f"{name} plays coordinators that are trained already: give it to validate.")
        datamodule: Any = getattr(trainer, "datamodule", None)
        env = getattr(datamodule, "env", None)
        if not isinstance(env, CoordinationEnv):
            raise ConfigurationError(
                f"{name} needs a novice and an expert, and --data.env={type(env).__name__} has neither: set --data.env "
                "to CoordinationEnv."
            )
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        evaluations = [callback for callback in callbacks if isinstance(callback, Evaluation)]
        self._evaluation = self._evaluation or next(iter(evaluations), None) or Evaluation()
        if self._evaluation.policy is not None:
            raise ConfigurationError(
                f"--evaluation.policy={type(self._evaluation.policy).__name__} is for validate and test, and {name} "
                "plays coordinators of its own: leave it out."
            )
        self._factories = self._evaluation.make_factories(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Play for ``trainer.validate``: the base penalty is known now."""
        self.run(trainer, pl_module)

    # -- the work

    def run(self, trainer: Trainer, pl_module: Any) -> list[CoordinatorScore]:
        """Play all splits with all coordinators."""
        assert self._evaluation is not None
        scoring = dataclasses.replace(self._evaluation.scoring(pl_module), action_id=EXPERT)
        candidates = self.candidates(trainer, pl_module, scoring)
        is_shown = trainer.is_global_zero and trainer.progress_bar_callback is not None
        with tqdm(
            total=len(self._factories) * len(candidates),
            unit=" evaluations",
            file=sys.stdout,
            leave=False,
            disable=None if is_shown else True,  # None shows it on terminals only
        ) as bar:
            self.scores = []
            for split, factory in self._factories.items():
                metrics = _metrics_of(trainer, pl_module, factory, candidates, scoring, bar)
                best = max(range(len(metrics)), key=lambda number: metrics[number]["return_mean"])
                self.scores += [
                    CoordinatorScore(split, candidate, own, number == best)
                    for number, (candidate, own) in enumerate(zip(candidates, metrics))
                ]
        return self.scores


def play(
    trainer: Trainer, pl_module: Any, factory: EnvFactory, policy: Policy, scoring: Scoring, see: See | None = None
) -> EvaluationResult:
    """The episodes of this rank, as ``Evaluation`` plays them."""
    datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
    policy.place(placement(trainer))
    policy.eval()
    with beside_training(pl_module, datamodule.seed):
        return scoring.play(trainer, factory, policy, see)


def check_table(path: Path) -> None:
    """Raise :class:`ConfigurationError` unless a table can be written there, in place of no other file than a table."""
    check_file(path)
    if path.is_file() and not path.read_bytes().startswith(",".join(_FIRST).encode()):
        raise ConfigurationError(
            f"--out: the numbers go to {path}, which holds something else: give the picture another name."
        )


def write_rows(path: Path, scores: Sequence[CoordinatorScore]) -> None:
    """A CSV file, a row a score; whole or not at all."""
    rows = [score.row() for score in scores]
    settings = [name for score in scores for name in score.candidate.settings]
    names = dict.fromkeys([*_FIRST, *settings, *(name for row in rows for name in row)])
    with written_whole(path) as part, part.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)


def _metrics_of(
    trainer: Trainer, pl_module: Any, factory: EnvFactory, candidates: Sequence[Candidate], scoring: Scoring, bar: Any
) -> list[dict[str, float]]:
    """Of each candidate on one split. A policy that several share is played once: percentiles may coincide."""
    datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
    known: dict[int, dict[str, float]] = {}
    for candidate in candidates:
        key = id(candidate.policy)
        if key not in known:
            result = play(trainer, pl_module, factory, candidate.policy, scoring)
            metrics = scoring.over_ranks(trainer, result, datamodule.reports_solved)
            metrics["expert_fraction"] = metrics.pop(f"action_{EXPERT}_fraction")
            known[key] = metrics
        bar.update()
    return [known[id(candidate.policy)] for candidate in candidates]
