"""Evaluation on whole episodes, during training and after it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Optional

from lightning.pytorch import Callback, LightningModule, Trainer

from ppo_lightning.callbacks.isolation import beside_training
from ppo_lightning.callbacks.monitor import check_monitors
from ppo_lightning.callbacks.schedule import Cadence, env_steps, off_the_clock
from ppo_lightning.core.errors import ConfigurationError, check_range
from ppo_lightning.core.metrics import log_metrics
from ppo_lightning.data.episode_metrics import EpisodeMetrics
from ppo_lightning.data.evaluate import EvaluationResult
from ppo_lightning.data.scoring import Scoring, placement
from ppo_lightning.envs.base import EnvFactory
from ppo_lightning.policies.base import Policy
from ppo_lightning.policies.ppo import PPOPolicy

_FLAG = "--evaluation.splits"
_DEFAULT_ITERATIONS = 10


class Evaluation(Callback):
    """Plays whole episodes with the policy every so often, and once at the end; logs ``eval/…`` or ``eval/<split>/…``.

    Episodes come from environments and random streams of their own, the same at every evaluation: training goes on
    exactly as it would without. Ranks share the episodes out and report all of them.

    Args:
        num_episodes: episodes of each split and evaluation.
        every_n_iterations: evaluate after every so many iterations (10 where neither cadence is given).
        every_n_env_steps: the same in environment steps.
        temperature: 0 takes the most probable action; 1 samples as in training.
        num_envs: environments played at once, at most: 100 episodes take 50 of 64, for two rounds without idle ones.
        max_num_steps: count episodes that reach this length as they are; null plays each to its end.
        policy: plays in place of the agent, with ``validate`` and ``test``: a coordinator that needs no training, say
            (AlwaysPolicy, RandomPolicy, LogitThresholdPolicy), or PPOPolicy with the ``load_path`` of a checkpoint.
        splits: names, and for each the settings in which its environment differs from ``--data.env``
            (``{val: {start_level: 50000}}``); null evaluates on that environment itself.
    """

    def __init__(
        self,
        num_episodes: int = 100,
        every_n_iterations: Optional[int] = None,
        every_n_env_steps: Optional[int] = None,
        temperature: float = 0.0,
        num_envs: int = 64,
        max_num_steps: Optional[int] = None,
        policy: Optional[Policy] = None,
        splits: Optional[dict[str, Optional[dict]]] = None,  # dict[str, Any] would read a class_path in it too early
    ) -> None:
        check_range("--evaluation.num_episodes", num_episodes, 1)
        check_range("--evaluation.temperature", temperature, 0)
        check_range("--evaluation.num_envs", num_envs, 1)
        if max_num_steps is not None:
            check_range("--evaluation.max_num_steps", max_num_steps, 1)
        for name in splits or {}:
            if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+", name):
                raise ConfigurationError(f"{_FLAG}: {name!r} is no name: use letters, digits, _, - and dots.")
        self.cadence = Cadence("--evaluation", every_n_iterations, every_n_env_steps, _DEFAULT_ITERATIONS)
        self.num_episodes = num_episodes
        self.temperature = temperature
        self.num_envs = num_envs
        self.max_num_steps = max_num_steps
        self.policy = policy
        self.splits: Mapping[str, Mapping[str, Any]] = {
            name: settings or {} for name, settings in (splits or {"": {}}).items()
        }
        self.metrics: dict[str, float] = {}
        """Of the last evaluation, under the names that it was logged by, over all ranks."""
        self.results: dict[str, EvaluationResult] = {}
        """Of the last evaluation, by split (``""`` where they have no names), of this rank."""
        self._factories: dict[str, EnvFactory] = {}
        self._evaluated_at: int | None = None

    def is_fresh(self, trainer: Trainer) -> bool:
        """Whether ``metrics`` are of the parameters as they are now."""
        return self._evaluated_at == env_steps(trainer)

    def metric_names(self, trainer: Trainer) -> list[str]:
        """The names that an evaluation logs by."""
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        names = EpisodeMetrics.names(_action_id(trainer.lightning_module), datamodule.reports_solved)
        return [_prefix(split) + name for split in self.splits for name in names]

    def metrics_of(self, split: str) -> dict[str, float]:
        """Those of one split in ``metrics``, without what the logged names begin with."""
        prefix = _prefix(split)
        return {name.removeprefix(prefix): value for name, value in self.metrics.items() if name.startswith(prefix)}

    def make_factories(self, trainer: Trainer) -> dict[str, EnvFactory]:
        """The environment of every split.

        Raises:
            ConfigurationError: unknown settings, or other spaces than the policy's.
        """
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        if self.policy is not None:
            try:
                self.policy.check_spaces(datamodule.observation_space, datamodule.action_space)
            except ConfigurationError as error:
                raise ConfigurationError(f"--evaluation.policy: {error}") from error
        return {split: datamodule.eval_factory(settings, f"{_FLAG}.{split}") for split, settings in self.splits.items()}

    # -- Lightning's hooks

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Look at the splits' environments, and at what other callbacks want to monitor, before any work."""
        if getattr(trainer, "datamodule", None) is None:
            raise ConfigurationError(
                "Evaluation needs environments: pass datamodule=RolloutDataModule(…) to the Trainer."
            )
        self._check_names(trainer)
        self._check_stage(stage)
        self._factories = self.make_factories(trainer)
        check_monitors(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate if it is time."""
        if self.cadence.is_due(trainer):
            with off_the_clock(pl_module):
                self.run(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate what a callback after this one ended: Lightning calls ``EarlyStopping`` and the like last."""
        if not self.is_fresh(trainer):
            self.run(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate for ``trainer.validate``."""
        if not trainer.sanity_checking and trainer.state.fn == "validate":
            self.run(trainer, pl_module)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate for ``trainer.test``."""
        self.run(trainer, pl_module)

    # -- the work

    def run(self, trainer: Trainer, pl_module: Any) -> dict[str, float]:
        """Evaluate every split now, and log it."""
        self.metrics, self.results = {}, {}
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        scoring = self.scoring(pl_module)
        for split, factory in self._factories.items():
            with beside_training(pl_module, datamodule.seed):
                result = scoring.play(trainer, factory, self.player(trainer, pl_module))
            self.results[split] = result
            metrics = scoring.over_ranks(trainer, result, datamodule.reports_solved)
            self.metrics |= {_prefix(split) + name: value for name, value in metrics.items()}
        self._evaluated_at = env_steps(trainer)
        log_metrics(trainer, self.metrics, self._evaluated_at)
        return self.metrics

    def player(self, trainer: Trainer, pl_module: Any) -> Policy:
        """What plays, on the Trainer's device and in its precision."""
        if self.policy is None:
            return PPOPolicy(pl_module.network)
        self.policy.place(placement(trainer))
        self.policy.eval()
        return self.policy

    def scoring(self, pl_module: Any) -> Scoring:
        """How each split is played."""
        return Scoring(self.num_episodes, self.temperature, self.num_envs, self.max_num_steps, _action_id(pl_module))

    def _check_stage(self, stage: str) -> None:
        if self.policy is not None and stage == "fit":
            raise ConfigurationError(
                f"--evaluation.policy={type(self.policy).__name__} plays in place of the agent, whose training needs "
                "evaluations of its own: give it to validate or test."
            )

    def _check_names(self, trainer: Trainer) -> None:
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        others = [callback for callback in callbacks if isinstance(callback, Evaluation) and callback is not self]
        for split in self.splits:
            if any(split in other.splits for other in others):
                named = f"a split named {split!r}" if split else "no named split"
                raise ConfigurationError(
                    f"{_FLAG}: two Evaluation callbacks have {named}, so their metrics would be mixed up: give every "
                    "split a name of its own."
                )


def _prefix(split: str) -> str:
    return f"eval/{split}/" if split else "eval/"


def _action_id(pl_module: Any) -> int | None:
    return getattr(pl_module, "log_action_id", None)
