"""Thresholds for asking an expert, found by trying."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional, Union

import yaml  # type: ignore[import-untyped]
from lightning.pytorch import LightningModule, Trainer

from ppo_lightning.callbacks.coordination import Candidate, CoordinatorScore, CoordinatorTrials, write_rows
from ppo_lightning.callbacks.evaluation import Evaluation
from ppo_lightning.callbacks.thresholds import PERCENTILES, ThresholdSearch
from ppo_lightning.core.errors import ConfigurationError
from ppo_lightning.core.files import make_writable_folder, written_whole
from ppo_lightning.data.scoring import Scoring
from ppo_lightning.envs.base import EnvFactory
from ppo_lightning.policies.coordination import LogitThresholdPolicy


class ThresholdCalibration(CoordinatorTrials):
    """Tries percentiles of the novice's confidence as thresholds, and keeps the best one of each split.

    Writes ``threshold_<split>.yaml``, which ``--evaluation.policy`` takes, and ``candidates.csv`` with all of them.

    Args:
        confidence: how sure the novice is (max_logit, max_prob, margin, entropy or energy); several, or ``all``.
        num_rollouts: episodes that the novice plays alone at each exploration temperature, in the training environment.
        percentiles: of the confidences in their steps: the thresholds to try.
        explore_temperatures: at which the novice samples in these episodes.
        score_temperatures: by which its logits are divided before they are measured.
        folder: of the files.
        evaluation: how many episodes of which splits are played; null is the Trainer's ``Evaluation`` callback.
    """

    def __init__(
        self,
        confidence: Union[list[str], str] = "max_prob",
        num_rollouts: int = 128,
        percentiles: Sequence[float] = PERCENTILES,
        explore_temperatures: Sequence[float] = (1.0,),
        score_temperatures: Sequence[float] = (1.0,),
        folder: str = "thresholds",
        evaluation: Optional[Evaluation] = None,
    ) -> None:
        super().__init__(evaluation)
        self.search = ThresholdSearch(confidence, num_rollouts, percentiles, explore_temperatures, score_temperatures)
        if not self.search.confidences:
            raise ConfigurationError("--confidence is empty: name a measure, or all.")
        self.folder = Path(folder)
        self.files: dict[str, Path] = {}
        """Of the best thresholds, by split."""
        self._explored: dict[float, EnvFactory] = {}

    @property
    def table(self) -> Path:
        """The file with all candidates."""
        return self.folder / "candidates.csv"

    @property
    def best(self) -> dict[str, CoordinatorScore]:
        """By split."""
        return {score.split: score for score in self.scores if score.is_best}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Look at the environments and at the folder before any work."""
        super().setup(trainer, pl_module, stage)
        self._explored = self.search.make_factories(trainer.datamodule)  # type: ignore[attr-defined]
        if trainer.is_global_zero:
            make_writable_folder(self.folder, "--out")

    def candidates(self, trainer: Trainer, pl_module: Any, scoring: Scoring) -> list[Candidate]:
        return self.search.candidates(trainer, pl_module, self._explored, scoring)

    def run(self, trainer: Trainer, pl_module: Any) -> list[CoordinatorScore]:
        """Play, and write the files."""
        super().run(trainer, pl_module)
        self.files = {
            split: self.folder / f"{'_'.join(filter(None, ['threshold', split]))}.yaml" for split in self.best
        }
        if trainer.is_global_zero:
            write_rows(self.table, self.scores)
            for split, score in self.best.items():
                with written_whole(self.files[split]) as part:
                    part.write_text(yaml.safe_dump(_as_config(score.candidate.policy), sort_keys=False))
        return self.scores


def _as_config(policy: Any) -> dict[str, Any]:
    """What the command line builds the policy from."""
    assert isinstance(policy, LogitThresholdPolicy)
    return {"class_path": f"ppo_lightning.{type(policy).__name__}", "init_args": policy.get_params()}
