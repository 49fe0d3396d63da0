"""Thresholds of the novice's confidence to try, from episodes that the novice plays alone."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Union

import numpy as np
import torch
from lightning.pytorch import Trainer
from torch import Tensor

from ppo_lightning.callbacks.coordination import Candidate, play
from ppo_lightning.core.errors import ConfigurationError, check_range
from ppo_lightning.core.ranks import gather_rows_over_ranks
from ppo_lightning.data.scoring import Scoring
from ppo_lightning.envs.base import Array, ArrayObservation, EnvFactory
from ppo_lightning.functional.confidence import CONFIDENCES, thresholds_at
from ppo_lightning.policies.coordination import AlwaysPolicy, LogitThresholdPolicy, check_confidence

PERCENTILES = tuple(range(0, 101, 10))


@dataclass(frozen=True)
class ThresholdSearch:
    """Percentiles of the confidences that a novice has in the steps of its own episodes, as duo_ai tries them.

    Attributes:
        confidence: measures, or ``all``.
        num_rollouts: episodes of the novice at each exploration temperature, in the training environment.
        percentiles: of the confidences, from 0 (the expert is never asked) to 100.
        explore_temperatures: at which the novice samples in these episodes.
        score_temperatures: by which its logits are divided before they are measured.

    Raises:
        ConfigurationError: a measure that is not known, an empty list, or a number outside its range.
    """

    confidence: Union[str, Sequence[str]] = "max_prob"
    num_rollouts: int = 128
    percentiles: Sequence[float] = PERCENTILES
    explore_temperatures: Sequence[float] = (1.0,)
    score_temperatures: Sequence[float] = (1.0,)

    def __post_init__(self) -> None:
        for name in self.confidences:
            check_confidence("--confidence", name)
        check_range("--num_rollouts", self.num_rollouts, 1)
        for flag in ("percentiles", "explore_temperatures", "score_temperatures"):
            if not getattr(self, flag):
                raise ConfigurationError(f"--{flag} is empty: give at least one number, or leave it out.")
        for percentile in self.percentiles:
            check_range("--percentiles", percentile, 0, 100)
        for flag in ("explore_temperatures", "score_temperatures"):
            for temperature in getattr(self, flag):
                check_range(f"--{flag}", temperature, 0, exclude_low=True)

    @property
    def confidences(self) -> list[str]:
        """The names of the measures."""
        if self.confidence == "all":
            return list(CONFIDENCES)
        return [self.confidence] if isinstance(self.confidence, str) else list(self.confidence)

    def make_factories(self, datamodule: Any) -> dict[float, EnvFactory]:
        """The training environment at each exploration temperature.

        Raises:
            ConfigurationError: the novice's logits are not shown.
        """
        LogitThresholdPolicy().check_spaces(datamodule.observation_space, datamodule.action_space)
        return {
            temperature: datamodule.eval_factory({"temperature": temperature}, "--explore_temperatures")
            for temperature in self.explore_temperatures
        }

    def candidates(
        self, trainer: Trainer, pl_module: Any, factories: Mapping[float, EnvFactory], scoring: Scoring
    ) -> list[Candidate]:
        """One a measure, temperatures and percentile, the same on all ranks; equal ones share their policy."""
        scoring = dataclasses.replace(scoring, num_episodes=self.num_rollouts)
        found: list[Candidate] = []
        policies: dict[tuple[Any, ...], LogitThresholdPolicy] = {}
        for explored_at, factory in factories.items():
            logits = _novice_logits(trainer, pl_module, factory, scoring)
            for confidence, scored_at in itertools.product(self.confidences, self.score_temperatures):
                measured = LogitThresholdPolicy(confidence, temperature=scored_at).confidence_of(logits)
                for percentile, threshold in zip(self.percentiles, thresholds_at(self.percentiles, measured)):
                    key = confidence, threshold, scored_at
                    policy = policies.setdefault(key, LogitThresholdPolicy(*key))
                    settings = {"explore_temperature": explored_at, "percentile": percentile, **policy.get_params()}
                    name = f"{policy} (percentile {percentile:g})"
                    found.append(Candidate(f"threshold ({confidence})", name, policy, settings, is_of_curve=True))
        return found


def _novice_logits(trainer: Trainer, pl_module: Any, factory: EnvFactory, scoring: Scoring) -> Tensor:
    """Of each step of the novice's episodes of all ranks: ``(K, A)``."""
    datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
    seen: list[Array] = [np.zeros((0, *datamodule.observation_space["novice_logits"].shape), np.float32)]

    def see(obs: ArrayObservation, rows: Array) -> None:
        assert isinstance(obs, Mapping)
        seen.append(obs["novice_logits"][rows])

    play(trainer, pl_module, factory, AlwaysPolicy("novice"), scoring, see)
    return gather_rows_over_ranks(trainer, torch.from_numpy(np.concatenate(seen)))
