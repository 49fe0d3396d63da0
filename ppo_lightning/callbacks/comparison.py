"""Coordinators side by side: trained, random, by thresholds, and none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Optional, Union

from lightning.pytorch import LightningModule, Trainer

from ppo_lightning.callbacks.coordination import Candidate, CoordinatorTrials
from ppo_lightning.callbacks.evaluation import Evaluation
from ppo_lightning.callbacks.thresholds import PERCENTILES, ThresholdSearch
from ppo_lightning.core.errors import ConfigurationError, check_range
from ppo_lightning.data.scoring import Scoring
from ppo_lightning.envs.base import EnvFactory
from ppo_lightning.policies.coordination import AlwaysPolicy, RandomPolicy
from ppo_lightning.policies.ppo import PPOPolicy

PROBABILITIES = (0.1, 0.25, 0.5, 0.75, 0.9)
_LEARNED = "learned"


class CoordinatorComparison(CoordinatorTrials):
    """Plays the same episodes with the novice alone, the expert alone, and coordinators of every kind.

    Args:
        probabilities: of asking the expert, of a random coordinator each.
        confidence: how sure the novice is, of a threshold coordinator for each percentile (max_logit, max_prob, margin,
            entropy or energy); several, ``all``, or an empty list for none.
        percentiles: of the confidences in the novice's own episodes: the thresholds.
        num_rollouts: episodes that the novice plays alone for them, in the training environment.
        learned: checkpoints of coordinators by label; a list of them for the seeds of one label.
        with_agent: also play the agent that the Trainer was given, with the label ``learned``.
        evaluation: how many episodes of which splits are played; null is the Trainer's ``Evaluation`` callback.

    Raises:
        ConfigurationError: an unknown measure, or a number outside its range.
    """

    def __init__(
        self,
        probabilities: Sequence[float] = PROBABILITIES,
        confidence: Union[list[str], str] = "max_prob",
        percentiles: Sequence[float] = PERCENTILES,
        num_rollouts: int = 128,
        learned: Optional[dict[str, Union[list[str], str]]] = None,
        with_agent: bool = True,
        evaluation: Optional[Evaluation] = None,
    ) -> None:
        super().__init__(evaluation)
        for probability in probabilities:
            check_range("--probabilities", probability, 0, 1)
        self.probabilities = probabilities
        self.search = ThresholdSearch(confidence, num_rollouts, percentiles)
        self.learned = {
            label: [given] if isinstance(given, str) else list(given) for label, given in (learned or {}).items()
        }
        self.with_agent = with_agent
        self._explored: dict[float, EnvFactory] = {}
        self._policies: dict[str, PPOPolicy] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Look at the environments and at the checkpoints before any work."""
        super().setup(trainer, pl_module, stage)
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        if self.search.confidences:
            self._explored = self.search.make_factories(datamodule)
        for label, paths in self.learned.items():
            if label in ("random", "always novice", "always expert") or (self.with_agent and label == _LEARNED):
                raise ConfigurationError(f"--learned.{label}: another coordinator has this label: give it another.")
            if not paths:
                raise ConfigurationError(f"--learned.{label} is empty: name a checkpoint, or leave the label out.")
            for path in paths:
                self._policies[path] = _load(path, label, datamodule)

    def candidates(self, trainer: Trainer, pl_module: Any, scoring: Scoring) -> list[Candidate]:
        found = [Candidate(str(one), str(one), one) for one in (AlwaysPolicy("novice"), AlwaysPolicy("expert"))]
        for random in map(RandomPolicy, self.probabilities):
            settings = {"probability": random.expert_probability}
            found.append(Candidate("random", str(random), random, settings, is_of_curve=True))
        found += self.search.candidates(trainer, pl_module, self._explored, scoring)
        if self.with_agent:
            from_file = {"checkpoint": str(trainer.ckpt_path)} if trainer.ckpt_path else {}
            found.append(Candidate(_LEARNED, _LEARNED, PPOPolicy(pl_module.network), from_file))
        for label, paths in self.learned.items():
            for number, path in enumerate(paths, 1):
                name = f"{label} {number}" if len(paths) > 1 else label
                found.append(Candidate(label, name, self._policies[path], {"checkpoint": path}))
        return found


def _load(path: str, label: str, datamodule: Any) -> PPOPolicy:
    try:
        policy = PPOPolicy(load_path=path)
        policy.check_spaces(datamodule.observation_space, datamodule.action_space)
    except ConfigurationError as error:
        raise ConfigurationError(f"--learned.{label}: {error}") from error
    return policy
