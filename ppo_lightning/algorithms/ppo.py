"""Proximal Policy Optimization (Schulman et al., arXiv 1707.06347)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal, Optional, Union, cast

import torch
from gymnasium import spaces
from torch import Tensor

from ppo_lightning.algorithms.base import OnPolicyModule
from ppo_lightning.algorithms.batches import batch_of, rows_of_sequences
from ppo_lightning.algorithms.guards import ActorPause, GradientGuard
from ppo_lightning.algorithms.normalization import (
    ObservationStatistics,
    ReturnNormalizer,
    RewardNormalizer,
    advantage_normalizer,
    check_returns_flags,
    value_layer,
)
from ppo_lightning.algorithms.optimization import (
    AdaptiveLearningRate,
    Optimization,
    OptimizerBuilder,
    SchedulerBuilder,
)
from ppo_lightning.algorithms.regularization import BoundsLoss, Penalty, SmoothnessLoss, check_l2c2_flags
from ppo_lightning.algorithms.schedules import LinearSchedule
from ppo_lightning.core.agent import ActOutput, Batch
from ppo_lightning.core.checkpoint import NetworkBuilder
from ppo_lightning.core.errors import ConfigurationError, check_range
from ppo_lightning.core.ranks import mean_over_ranks
from ppo_lightning.core.rollout import Observation, PPOBatch, Rollout, State
from ppo_lightning.functional import (
    approx_kl_divergence,
    clip_fraction,
    generalized_advantage_estimation,
    ppo_clipped_policy_loss,
    value_loss,
)
from ppo_lightning.functional.distributions import DiagonalGaussian, at_least_float32
from ppo_lightning.models.actor_critic import ActorCritic
from ppo_lightning.models.gaussian import check_reach
from ppo_lightning.models.memory import unroll
from ppo_lightning.models.outputs import ModelOutput, run_network


class PPO(OnPolicyModule):
    """The clipped objective over rollouts of a ``RolloutDataModule``.

    Gradient clipping is the Trainer's: ``--trainer.gradient_clip_val`` (0.5 on the command line).

    Args:
        network: builds the network from the observation and action space; in Python a built module also works.
        observation_space: one environment's observations; linked from the data.
        action_space: one environment's actions; linked from the data.
        optimizer: builds the optimiser from parameters and learning rate; Adam with eps 1e-5 by default.
        scheduler: builds a learning-rate scheduler, stepped once an iteration.
        learning_rate: of the optimiser; of the actor's half where ``critic_learning_rate`` is given.
        anneal_lr: lower the learning rate linearly to 0 over ``--data.total_timesteps``.
        gamma: discount a step.
        gae_lambda: decay of the GAE trace.
        clip_coef: how far the probability ratio may move from 1.
        norm_adv: normalise advantages: in each ``minibatch`` (true), over each ``rollout``, by moving averages of the
            rollouts' mean and standard deviation (``ema``), all of all ranks; or not at all (false).
        clip_vloss: clip the value's change by ``clip_coef`` too.
        vf_coef: weight of the value loss.
        ent_coef: weight of the entropy bonus.
        target_kl: leave out the rest of an iteration's minibatches once the KL divergence from the rollout's policy
            exceeds this; null for never.
        critic_pretrain_steps: environment steps in which only the critic learns, by the value loss alone.
        log_action_id: log the fraction of this action as ``rollout/action_<id>_fraction``; null for none.
        log_param_hash: log ``debug/param_hash`` every iteration, and stop if ranks' parameters differ.
        final_clip_coef: what ``clip_coef`` changes to, linearly over ``--data.total_timesteps``; null leaves it.
        final_ent_coef: what ``ent_coef`` changes to, likewise.
        adv_ema_weight: of ``norm_adv=ema``, the weight of a new rollout.
        adv_clip: of ``norm_adv=ema``, the largest magnitude of an advantage.
        critic_learning_rate: of the critic's own parameters.
        critic_gradient_clip_val: clips the gradients of the critic's own parameters by themselves, as
            ``--trainer.gradient_clip_val`` then does all others.
        adaptive_lr_kl: before each step of an iteration but its first divide the learning rates by 1.5 where the
            minibatch's KL divergence from the rollout's policy, over all ranks, is more than twice this, and multiply
            them where it is less than half.
        min_learning_rate: the lowest that ``adaptive_lr_kl`` goes.
        max_learning_rate: the highest that ``adaptive_lr_kl`` goes.
        max_clip_fraction: once more than this part of a minibatch's ratios lies beyond the clip range, the actor waits
            for the next iteration; the critic goes on.
        gradient_guard: drop optimiser steps whose gradient is not finite or has a norm beyond this; without it
            the first NaN ends the run.
        max_dropped_steps: so many dropped steps in a row are borne; one more ends the run.
        bounds_coef: weight of a loss on means beyond the action bounds.
        l2c2_pairs: smoothness (L2C2): the key of a noisy observation that the actor reads, and that of its clean
            counterpart; the means for both are drawn together.
        l2c2_coef: weight of the smoothness loss.
        normalize_rewards: divide rewards by the standard deviation of their discounted sum.
        normalize_returns: let the critic learn standardised returns, by PopArt.
        norm_ema: of rewards or returns, what the statistics so far count beside those of a new rollout; null weighs all
            steps the same.
        reward_clip: the largest magnitude of a normalised reward.

    Raises:
        ConfigurationError: a number outside its range, or options that contradict each other.
    """

    def __init__(
        self,
        network: NetworkBuilder = ActorCritic,
        observation_space: Optional[dict[str, Any]] = None,
        action_space: Optional[dict[str, Any]] = None,
        optimizer: Optional[OptimizerBuilder] = None,
        scheduler: Optional[SchedulerBuilder] = None,
        learning_rate: float = 5e-4,
        anneal_lr: bool = False,
        gamma: float = 0.999,
        gae_lambda: float = 0.95,
        clip_coef: float = 0.2,
        norm_adv: Union[bool, Literal["minibatch", "rollout", "ema"]] = True,
        clip_vloss: bool = True,
        vf_coef: float = 0.5,
        ent_coef: float = 0.01,
        target_kl: Optional[float] = None,
        critic_pretrain_steps: int = 0,
        log_action_id: Optional[int] = None,
        log_param_hash: bool = False,
        final_clip_coef: Optional[float] = None,
        final_ent_coef: Optional[float] = None,
        adv_ema_weight: float = 0.05,
        adv_clip: float = 4.0,
        critic_learning_rate: Optional[float] = None,
        critic_gradient_clip_val: Optional[float] = None,
        adaptive_lr_kl: Optional[float] = None,
        min_learning_rate: float = 1e-5,
        max_learning_rate: float = 1e-2,
        max_clip_fraction: Optional[float] = None,
        gradient_guard: Optional[float] = None,
        max_dropped_steps: int = 10,
        bounds_coef: float = 0.0,
        l2c2_pairs: Optional[dict[str, str]] = None,
        l2c2_coef: float = 0.1,
        normalize_rewards: bool = False,
        normalize_returns: bool = False,
        norm_ema: Optional[float] = None,
        reward_clip: float = 10.0,
    ) -> None:
        adaptive_lr = None
        if adaptive_lr_kl is not None:
            adaptive_lr = AdaptiveLearningRate(adaptive_lr_kl, min_learning_rate, max_learning_rate)
        guard = None if gradient_guard is None else GradientGuard(gradient_guard, max_dropped_steps)
        optimization = Optimization(
            optimizer,
            scheduler,
            learning_rate,
            anneal_lr,
            critic_learning_rate,
            critic_gradient_clip_val,
            adaptive_lr,
            guard,
        )
        super().__init__(network, optimization, log_param_hash)
        check_range("--model.gamma", gamma, 0, 1)
        check_range("--model.gae_lambda", gae_lambda, 0, 1)
        check_range("--model.vf_coef", vf_coef, 0)
        check_range("--model.critic_pretrain_steps", critic_pretrain_steps, 0)
        check_range("--model.bounds_coef", bounds_coef, 0)
        check_range("--model.reward_clip", reward_clip, 0, exclude_low=True)
        check_l2c2_flags(l2c2_pairs, l2c2_coef)
        check_returns_flags(normalize_rewards, normalize_returns, norm_ema)
        if target_kl is not None:
            check_range("--model.target_kl", target_kl, 0, exclude_low=True)
        self.gamma = gamma
        self.gae_lambda = gae_lambda
        self.clip_coef = LinearSchedule("clip_coef", clip_coef, final_clip_coef, exclude_zero=True)
        self.ent_coef = LinearSchedule("ent_coef", ent_coef, final_ent_coef)
        self.clip_vloss = clip_vloss
        self.vf_coef = vf_coef
        self.target_kl = target_kl
        self.critic_pretrain_steps = critic_pretrain_steps
        self.log_action_id = log_action_id
        self.bounds_coef = bounds_coef
        self.l2c2_pairs = l2c2_pairs
        self.l2c2_coef = l2c2_coef
        self.actor_pause = None if max_clip_fraction is None else ActorPause(max_clip_fraction)
        self.advantage_normalizer = advantage_normalizer(norm_adv, adv_ema_weight, adv_clip)
        self.reward_normalizer = RewardNormalizer(gamma, reward_clip, norm_ema) if normalize_rewards else None
        self.return_normalizer = ReturnNormalizer(norm_ema) if normalize_returns else None
        self._observation_statistics = ObservationStatistics()
        self._penalties: dict[str, tuple[float, Penalty]] = {}
        self.build_if_known(observation_space, action_space)

    def build_network(self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
        """Build the network for these spaces and remember them in the checkpoint."""
        if self.log_action_id is not None:
            if not isinstance(action_space, spaces.Discrete):
                raise ConfigurationError("--model.log_action_id needs a Discrete action space: leave it out.")
            check_range("--model.log_action_id", self.log_action_id, 0, int(action_space.n) - 1)
        super().build_network(observation_space, action_space)
        self._observation_statistics.check(self._net, observation_space)
        if self.bounds_coef:
            self._penalties["bounds"] = self.bounds_coef, BoundsLoss(self._net, action_space)
        if self.l2c2_pairs is not None:
            smoothness = SmoothnessLoss(self.l2c2_pairs, self._net, observation_space, action_space)
            self._penalties["l2c2"] = self.l2c2_coef, smoothness
        check_reach(self._net, action_space)
        if self.return_normalizer is not None:
            value_layer(self._net)

    def forward(self, obs: Any) -> Any:
        """The network's output for observations ``(B, *shape)``, its values in the units of rewards."""
        output = super().forward(obs)
        if self.return_normalizer is not None:
            output.value = self.return_normalizer.values_of(output.value)
        return output

    # -- a rollout

    def act(self, obs: Observation, noise: Tensor, state: State | None) -> ActOutput:
        """Sample actions for ``N`` environments."""
        output = super().act(obs, noise, state)
        if self.return_normalizer is not None:
            output.values = self.return_normalizer.values_of(output.values)
        return output

    def value_of(self, obs: Observation, state: State | None) -> Tensor:
        """The critic's values ``(N,)``, in the units of rewards."""
        outputs = super().value_of(obs, state)
        return outputs if self.return_normalizer is None else self.return_normalizer.values_of(outputs)

    def prepare(self, rollout: Rollout, traces: dict[str, Tensor]) -> Batch:
        """Advantages and returns by GAE; transitions in one row, or whole environments for a network with memory."""
        gather, valid, values = self.gather, rollout.valid, rollout.values
        self._observation_statistics.look(self._net, rollout)
        rewards = rollout.rewards
        if self.reward_normalizer is not None:
            rewards = self.reward_normalizer.normalize(rollout, traces, gather)
        advantages, returns = generalized_advantage_estimation(
            rewards, values, rollout.next_values, rollout.terminated, rollout.truncated, self.gamma, self.gae_lambda
        )
        self._add_rollout_statistics(rollout, advantages, returns)
        if self.advantage_normalizer is not None:
            advantages = self.advantage_normalizer.normalize(advantages, valid, gather)
        if self.return_normalizer is not None:
            self.return_normalizer.learn(returns[valid], value_layer(self._net), gather)
            values, returns = map(self.return_normalizer.outputs_for, (values, returns))
        return batch_of(rollout, advantages=advantages, returns=returns, values=values)

    def _add_rollout_statistics(self, rollout: Rollout, advantages: Tensor, returns: Tensor) -> None:
        valid, statistics = rollout.valid, self._statistics
        values = rollout.values[valid]
        statistics.add_explained_variance("train/explained_variance", values, returns[valid])
        statistics.add_spread("train/advantage", advantages[valid])
        statistics.add_spread("train/value", values)
        statistics.add_mean("rollout/action_prob_mean", rollout.log_probs[valid].exp())
        if self.log_action_id is not None:
            taken = (rollout.actions[valid] == self.log_action_id).to(values.dtype)
            statistics.add_mean(f"rollout/action_{self.log_action_id}_fraction", taken)

    def finish_statistics(self, gather: Callable[[Tensor], Tensor]) -> None:
        """Let the encoders take in the observations of the rollout that was learned from."""
        self._observation_statistics.update(self._net, gather)

    # -- an update

    def start_schedules(self, remaining: float) -> None:
        """The clip range and the weight of the entropy; the actor learns again."""
        for schedule in (self.clip_coef, self.ent_coef):
            schedule.start_iteration(remaining)
        if self.actor_pause is not None:
            self.actor_pause.start_iteration()

    @property
    def scheduled_flags(self) -> list[str]:
        """The flags that are set and depend on the run's length."""
        flags = [schedule.flag for schedule in (self.clip_coef, self.ent_coef)]
        return [*super().scheduled_flags, *(flag for flag in flags if flag is not None)]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of one minibatch."""
        output, rows = self._evaluate(batch)
        distribution, clip_coef = output.distribution, self.clip_coef.now
        log_probs = distribution.log_prob(rows.actions)
        advantages = rows.advantages
        if self.advantage_normalizer is not None and self.advantage_normalizer.scope == "minibatch":
            advantages = self._normalize(advantages, batch_idx)
        policy_loss, ratio = ppo_clipped_policy_loss(log_probs, rows.log_probs, advantages, clip_coef)
        critic_clip = clip_coef if self.clip_vloss else None
        critic_loss = value_loss(at_least_float32(output.value), rows.returns, rows.values, critic_clip)
        with torch.set_grad_enabled(self.ent_coef.now > 0 and torch.is_grad_enabled()):
            entropy = distribution.entropy().mean()
        actor_loss = policy_loss - self.ent_coef.now * entropy
        parts = {"policy_loss": policy_loss, "value_loss": critic_loss, "entropy": entropy}
        for name, (coef, penalty) in self._penalties.items():
            mean = cast(DiagonalGaussian, distribution).mean
            parts[f"{name}_loss"] = penalty(rows.obs, mean, functools.partial(self._average, batch_idx))
            actor_loss = actor_loss + coef * parts[f"{name}_loss"]

        with torch.no_grad():
            parts["approx_kl"] = approx_kl_divergence(log_probs, rows.log_probs)
            parts["clip_fraction"] = clip_fraction(ratio, clip_coef)
        is_paused = self._react(parts["approx_kl"], parts["clip_fraction"], batch_idx)
        if self._pretrains_critic:
            loss = critic_loss
        else:
            loss = self.vf_coef * critic_loss if is_paused else actor_loss + self.vf_coef * critic_loss
        if self.actor_pause is not None:
            parts["actor_paused"] = torch.full_like(critic_loss, float(is_paused))
        weight = self._weight(batch_idx)
        metrics = {f"train/{name}": value for name, value in {"loss": loss, **parts}.items()}
        self._statistics.add_minibatch(ratio, metrics, weight)
        return loss if weight == 1 else loss * weight

    def _react(self, kl: Tensor, clipped: Tensor, batch_idx: int) -> bool:
        """Stop, adapt or pause by what all ranks see of a minibatch; whether the actor waits in it."""
        adaptive_lr, pause = self.optimization.adaptive_lr, self.actor_pause
        if self.target_kl is None and adaptive_lr is None and pause is None:
            return False
        kl_of_all, clipped_of_all = self._average(batch_idx, torch.stack([kl, clipped])).tolist()
        is_first_of_step = batch_idx % self.trainer.accumulate_grad_batches == 0
        # else the divergence tells nothing of the learning rate
        actor_learned = not (self._pretrains_critic or (pause is not None and pause.is_on) or batch_idx == 0)
        if self.target_kl is not None and kl_of_all > self.target_kl:
            self.stop_update()
        if adaptive_lr is not None and is_first_of_step and actor_learned:
            adaptive_lr.adapt(self.trainer.optimizers[0], kl_of_all)
        return pause is not None and pause.look(clipped_of_all > pause.max_clip_fraction, is_first_of_step)

    def _average(self, batch_idx: int, means: Tensor) -> Tensor:
        """Means over a minibatch of this rank to those of all ranks together."""
        return mean_over_ranks(self.trainer, means.detach() * self._weight(batch_idx))

    def _evaluate(self, batch: Batch) -> tuple[ModelOutput, PPOBatch]:
        """The network on a minibatch, and the minibatch as independent transitions."""
        if isinstance(batch, PPOBatch):
            return run_network(self._net, batch.obs)[0], batch
        output = unroll(self._net, batch.obs, batch.initial_state, batch.episode_starts)
        return rows_of_sequences(output, batch)

    @property
    def metric_names(self) -> list[str]:
        """What is logged every iteration."""
        update = ["loss", "policy_loss", "value_loss", "entropy", "approx_kl", "clip_fraction", "first_ratio_error"]
        update += [f"{name}_loss" for name in self._penalties]
        update += [] if self.actor_pause is None else ["actor_paused"]
        batch = ["explained_variance", "advantage_mean", "advantage_std", "value_mean", "value_std"]
        names = [*super().metric_names, *(f"train/{name}" for name in [*update, *batch]), "rollout/action_prob_mean"]
        return names if self.log_action_id is None else [*names, f"rollout/action_{self.log_action_id}_fraction"]

    @property
    def has_unused_parameters(self) -> bool:
        """While only the critic learns, the actor has no gradients."""
        return self.critic_pretrain_steps > 0 or self.actor_pause is not None

    @property
    def _pretrains_critic(self) -> bool:
        """Whether this iteration began within ``critic_pretrain_steps``."""
        return self._steps_at_start < self.critic_pretrain_steps
