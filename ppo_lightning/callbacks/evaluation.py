"""Evaluation on whole episodes, during training and after it."""

from __future__ import annotations

from typing import Any, Optional

from lightning.pytorch import Callback, LightningModule, Trainer

from ppo_lightning.callbacks.schedule import crossed, env_steps, is_last_iteration
from ppo_lightning.core.errors import ConfigurationError, check_range
from ppo_lightning.core.metrics import log_metrics
from ppo_lightning.data.evaluate import EvaluationResult, evaluate
from ppo_lightning.policies.ppo import PPOPolicy

_DEFAULT_ITERATIONS = 10


class Evaluation(Callback):
    """Plays whole episodes with the policy every so often, and once at the end; logs ``eval/…``.

    Episodes come from environments and random streams of their own, the same at every evaluation: training goes on
    exactly as it would without.

    Args:
        num_episodes: episodes of each evaluation.
        every_n_iterations: evaluate after every so many iterations (10 where neither cadence is given).
        every_n_env_steps: the same in environment steps.
        temperature: 0 takes the most probable action; 1 samples as in training.
        num_envs: environments played at once, at most ``num_episodes``.
        max_num_steps: count episodes that reach this length as they are; null plays each to its end.
    """

    def __init__(
        self,
        num_episodes: int = 100,
        every_n_iterations: Optional[int] = None,
        every_n_env_steps: Optional[int] = None,
        temperature: float = 0.0,
        num_envs: int = 32,
        max_num_steps: Optional[int] = None,
    ) -> None:
        check_range("--evaluation.num_episodes", num_episodes, 1)
        check_range("--evaluation.temperature", temperature, 0)
        check_range("--evaluation.num_envs", num_envs, 1)
        for flag, value in {
            "every_n_iterations": every_n_iterations,
            "every_n_env_steps": every_n_env_steps,
            "max_num_steps": max_num_steps,
        }.items():
            if value is not None:
                check_range(f"--evaluation.{flag}", value, 1)
        if every_n_iterations is not None and every_n_env_steps is not None:
            raise ConfigurationError(
                f"--evaluation.every_n_iterations={every_n_iterations} and --evaluation.every_n_env_steps="
                f"{every_n_env_steps} are two answers to one question: leave one out."
            )
        self.num_episodes = num_episodes
        self.every_n_iterations = every_n_iterations
        self.every_n_env_steps = every_n_env_steps
        self.temperature = temperature
        self.num_envs = num_envs
        self.max_num_steps = max_num_steps
        self.result: EvaluationResult | None = None
        self._evaluated_at: int | None = None

    def is_fresh(self, trainer: Trainer) -> bool:
        """Whether ``result`` is of the parameters as they are now."""
        return self._evaluated_at == env_steps(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate if it is time."""
        if self._is_due(trainer):
            result = self.run(trainer, pl_module)
            exclude = getattr(pl_module, "exclude_from_speed", None)
            if exclude is not None:
                exclude(result.seconds)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate for ``trainer.validate``."""
        if not trainer.sanity_checking and trainer.state.fn == "validate":
            self.run(trainer, pl_module)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate for ``trainer.test``."""
        self.run(trainer, pl_module)

    def _is_due(self, trainer: Trainer) -> bool:
        if is_last_iteration(trainer):
            return True
        if self.every_n_env_steps is not None:
            return crossed(trainer, self.every_n_env_steps)
        return (trainer.current_epoch + 1) % (self.every_n_iterations or _DEFAULT_ITERATIONS) == 0

    def run(self, trainer: Trainer, pl_module: Any) -> EvaluationResult:
        """Evaluate now, and log it."""
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        env, streams = datamodule.make_eval_env(min(self.num_envs, self.num_episodes))
        was_training = pl_module.training
        pl_module.eval()
        try:
            with pl_module.collecting():
                policy = PPOPolicy(pl_module.network)
                result = evaluate(policy, env, streams, self.num_episodes, self.temperature, self.max_num_steps)
        finally:
            env.close()
            pl_module.train(was_training)
        self.result, self._evaluated_at = result, env_steps(trainer)
        metrics = {
            "eval/return_mean": result.return_mean,
            "eval/return_ci95": result.return_ci95,
            "eval/length_mean": result.length_mean,
            "eval/episodes": float(len(result.episodes)),
        }
        log_metrics(trainer, metrics, env_steps(trainer))
        return result
