"""Judging policies by whole episodes, on all ranks together."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.seed import isolate_rng
from torch import nn

from ppo_lightning.data.episode_metrics import EpisodeMetrics
from ppo_lightning.data.evaluate import EvaluationResult, See, envs_for, episode_quotas, evaluate
from ppo_lightning.data.seeding import Streams
from ppo_lightning.data.trainer_settings import name_of_envs
from ppo_lightning.envs.base import EnvFactory, VectorEnv
from ppo_lightning.policies.base import Policy


@dataclass(frozen=True)
class Scoring:
    """How many episodes are played, and how.

    Attributes:
        num_episodes: over all ranks.
        temperature: 0 takes the most probable actions.
        num_envs: environments played at once over all ranks, at most.
        max_num_steps: episodes that reach this length count as they are.
        action_id: a discrete action whose fraction is reported.
    """

    num_episodes: int
    temperature: float
    num_envs: int = 64
    max_num_steps: int | None = None
    action_id: int | None = None

    def play(self, trainer: Trainer, factory: EnvFactory, policy: Policy, see: See | None = None) -> EvaluationResult:
        """Play the episodes that fall to this rank; the same ones every time."""
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        num_envs = envs_for(self.num_episodes, self.num_envs)
        streams: Streams = datamodule.eval_streams(num_envs)
        if not streams.num_envs:
            return EvaluationResult([], [], 0, 0.0)
        quotas = episode_quotas(self.num_episodes, num_envs)[streams.first_env :][: streams.num_envs]
        env = factory.make(streams.eval_env_seeds())
        place_networks(env, trainer)
        env.allow_restarts(datamodule.max_env_restarts, name_of_envs(trainer, "evaluation environment"), at_once=True)
        agent: Any = trainer.lightning_module
        try:
            with agent.collecting():
                return evaluate(
                    policy, env, streams, quotas, self.temperature, self.max_num_steps, self.action_id, see=see
                )
        finally:
            env.close()

    def over_ranks(self, trainer: Trainer, result: EvaluationResult, reports_solved: bool) -> dict[str, float]:
        """The metrics of all ranks' episodes, the same on each. A collective where there are several."""
        metrics = EpisodeMetrics(self.action_id, reports_solved)
        if trainer.world_size > 1:
            metrics = metrics.to(trainer.lightning_module.device)  # where its process group can reach it
        metrics.update(result.episodes, result.action_steps, result.dropped)
        return {name: float(value) for name, value in metrics.compute().items()}


def score_of(trainer: Trainer, num_envs: int = 64) -> Callable[..., Mapping[str, float]]:
    """What :meth:`EnvFactory.prepare` plays episodes by."""

    def score(
        factory: EnvFactory, policy: Policy, *, num_episodes: int, temperature: float, max_num_steps: int | None
    ) -> Mapping[str, float]:
        scoring = Scoring(num_episodes, temperature, num_envs, max_num_steps)
        policy.place(placement(trainer))
        own = factory.of_share(trainer.global_rank)
        return scoring.over_ranks(trainer, scoring.play(trainer, own, policy), reports_solved=False)

    return score


def prepare_env(factory: EnvFactory, trainer: Trainer) -> None:
    """Let it find out what it must know, on all ranks together; after a checkpoint was loaded, which may know."""
    with isolate_rng():
        found = factory.prepare(score_of(trainer))
    if found:
        rank_zero_info(found)


def placement(trainer: Trainer) -> Callable[[nn.Module], nn.Module]:
    """Moves networks to the device and the precision of the Trainer's own."""
    return functools.partial(_place, trainer)


def place_networks(env: VectorEnv, trainer: Trainer) -> None:
    """Do so with those that play in an environment."""
    env.place_networks(placement(trainer))


def _place(trainer: Trainer, module: nn.Module) -> nn.Module:
    return trainer.precision_plugin.convert_module(module).to(trainer.lightning_module.device)
