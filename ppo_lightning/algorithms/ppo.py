"""Proximal Policy Optimization (Schulman et al., arXiv 1707.06347)."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Literal, Optional, Union, cast

from gymnasium import spaces
from torch import Tensor

from ppo_lightning.algorithms.batches import batch_of
from ppo_lightning.algorithms.clipped import ClippedModule
from ppo_lightning.algorithms.guards import ActorPause, GradientGuard
from ppo_lightning.algorithms.host_loss import can_learn, ppo_loss
from ppo_lightning.algorithms.normalization import (
    ReturnNormalizer,
    advantage_normalizer,
    check_returns_flags,
    reward_normalizer,
    value_layer,
)
from ppo_lightning.algorithms.objective import ClippedObjective, MinibatchLoss, loss_of_values
from ppo_lightning.algorithms.optimization import (
    AdaptiveLearningRate,
    Optimization,
    OptimizerBuilder,
    SchedulerBuilder,
)
from ppo_lightning.algorithms.regularization import BoundsLoss, Penalty, SmoothnessLoss, check_l2c2_flags
from ppo_lightning.algorithms.targets import ValueTargets
from ppo_lightning.core.agent import ActOutput, Batch, RolloutEnd
from ppo_lightning.core.checkpoint import NetworkBuilder
from ppo_lightning.core.errors import check_range
from ppo_lightning.core.rollout import Observation, PPOBatch, Rollout, State
from ppo_lightning.functional.distributions import DiagonalGaussian
from ppo_lightning.models.actor_critic import ActorCritic
from ppo_lightning.models.gaussian import check_reach
from ppo_lightning.models.host_pass import HostPass

_TOLD = tuple(f"train/{name}" for name in ("loss", *ClippedObjective.PARTS, "value_loss"))


class PPO(ClippedModule):
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
        final_learning_rate: lower it to this instead.
        lr_decay_steps: environment steps, of all ranks, that either takes; ``--data.total_timesteps`` by default.
        lr_decay_power: of the polynomial that either follows; 1 is linear.
        gamma: discount a step.
        gae_lambda: decay of the GAE trace.
        returns: value targets by GAE (``gae``), as λ-returns (``lambda``, the same numbers by another recursion), or
            of all rewards to the rollout's end and the value there (``nstep``, where ``gae_lambda`` is nothing).
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
        chunk_size: learn from large minibatches in chunks of at most so many transitions, whose gradients add up to the
            same: less memory; null for whole minibatches. ``auto`` is 256 where pictures are learned from on the CPU.

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
        final_learning_rate: Optional[float] = None,
        lr_decay_steps: Optional[int] = None,
        lr_decay_power: float = 1.0,
        gamma: float = 0.999,
        gae_lambda: float = 0.95,
        returns: Literal["gae", "lambda", "nstep"] = "gae",
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
        chunk_size: Union[int, Literal["auto"], None] = "auto",
    ) -> None:
        check_range("--model.vf_coef", vf_coef, 0)
        check_range("--model.critic_pretrain_steps", critic_pretrain_steps, 0)
        check_range("--model.bounds_coef", bounds_coef, 0)
        check_l2c2_flags(l2c2_pairs, l2c2_coef)
        check_returns_flags(normalize_rewards, normalize_returns, norm_ema)
        adaptive_lr = None
        if adaptive_lr_kl is not None:
            adaptive_lr = AdaptiveLearningRate(adaptive_lr_kl, min_learning_rate, max_learning_rate)
        optimization = Optimization(
            optimizer,
            scheduler,
            learning_rate,
            anneal_lr,
            final_learning_rate,
            lr_decay_steps,
            lr_decay_power,
            critic_learning_rate=critic_learning_rate,
            critic_gradient_clip_val=critic_gradient_clip_val,
            adaptive_lr=adaptive_lr,
            guard=None if gradient_guard is None else GradientGuard(gradient_guard, max_dropped_steps),
            chunk_size=chunk_size,
        )
        super().__init__(
            network,
            optimization,
            ClippedObjective(clip_coef, ent_coef, final_clip_coef, final_ent_coef, target_kl),
            ValueTargets(returns, gamma, gae_lambda),
            advantage_normalizer(norm_adv, adv_ema_weight, adv_clip),
            reward_normalizer(normalize_rewards, gamma, reward_clip, norm_ema),
            log_action_id,
            log_param_hash,
        )
        self.clip_vloss = clip_vloss
        self.vf_coef = vf_coef
        self.critic_pretrain_steps = critic_pretrain_steps
        self.bounds_coef = bounds_coef
        self.l2c2_pairs = l2c2_pairs
        self.l2c2_coef = l2c2_coef
        self.actor_pause = None if max_clip_fraction is None else ActorPause(max_clip_fraction)
        self.return_normalizer = ReturnNormalizer(norm_ema) if normalize_returns else None
        self._penalties: dict[str, tuple[float, Penalty]] = {}
        self._has_host_loss = False
        self.build_if_known(observation_space, action_space)

    def build_network(self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
        """Build the network for these spaces and remember them in the checkpoint."""
        super().build_network(observation_space, action_space)
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
        if self.return_normalizer is not None and output.values is not None:
            output.values = self.return_normalizer.values_of(output.values)
        return output

    def value_of(self, obs: Observation, state: State | None) -> Tensor:
        """The critic's values ``(K,)`` of any number of observations, in the units of rewards."""
        outputs = super().value_of(obs, state)
        return outputs if self.return_normalizer is None else self.return_normalizer.values_of(outputs)

    def prepare(self, rollout: Rollout, end: RolloutEnd) -> Batch:
        """Advantages and returns; transitions in one row, or whole environments for a network with memory."""
        advantages, returns = self.look_at(rollout, end)
        advantages, values = self.normalized(advantages, rollout.valid), rollout.values
        if self.return_normalizer is not None:
            self.return_normalizer.learn(returns[rollout.valid], value_layer(self._net), self.gather)
            values, returns = map(self.return_normalizer.outputs_for, (values, returns))
        return batch_of(rollout, advantages=advantages, returns=returns, values=values)

    # -- an update

    def start_update(self, batch: Batch, minibatches: Sequence[Tensor], phases: Sequence[str]) -> None:
        """Ask the other ranks what they have of each minibatch, and find out how these are best learned from."""
        super().start_update(batch, minibatches, phases)
        looks_at_parts = (
            *(bool(self._penalties), self.actor_pause is not None, self.optimization.adaptive_lr is not None),
            *(self._chunk_size is not None, self._pretrains_critic),
        )
        is_ours = type(self) is PPO and type(self.objective) is ClippedObjective
        passes = self._host_pass if is_ours and not any(looks_at_parts) else None
        self._has_host_loss = passes is not None and can_learn(passes, batch)

    def _host_loss(self, passes: HostPass, rows: PPOBatch) -> MinibatchLoss:
        """What :meth:`minibatch_loss` comes to, but for rounding."""
        clip_coef, ent_coef = self.objective.clip_coef.now, self.objective.ent_coef.now
        normalizer, critic_clip = self.advantage_normalizer, clip_coef if self.clip_vloss else None
        is_normalized = normalizer is not None and normalizer.scope == "minibatch"
        loss, ratio, told = ppo_loss(passes, rows, is_normalized, clip_coef, ent_coef, self.vf_coef, critic_clip)
        parts = {} if self.objective.target_kl is None else dict(zip(self.objective.PARTS, told[1:].unbind()))
        return MinibatchLoss(loss, parts, ratio=ratio, told=(_TOLD, told))

    def minibatch_loss(self, batch: Batch, batch_idx: int) -> MinibatchLoss:
        """The losses of actor and critic."""
        passes = self.host_pass() if self._has_host_loss else None
        if passes is not None:
            return self._host_loss(passes, cast(PPOBatch, batch))
        output, rows = self.evaluate(batch)
        advantages = self.minibatch_advantages(rows, batch_idx)
        actor_loss, ratio, parts = self.objective.loss(output.distribution, rows, advantages)
        critic_clip = self.objective.clip_coef.now if self.clip_vloss else None
        critic_loss = loss_of_values(output.value, rows.returns, rows.values, critic_clip)
        parts["value_loss"] = critic_loss
        for name, (coef, penalty) in self._penalties.items():
            mean = cast(DiagonalGaussian, output.distribution).mean
            parts[f"{name}_loss"] = penalty(rows.obs, mean, functools.partial(self.average, batch_idx))
            actor_loss = actor_loss + coef * parts[f"{name}_loss"]
        if self._pretrains_critic:
            return MinibatchLoss(critic_loss, parts, ratio=ratio)
        return MinibatchLoss(self.vf_coef * critic_loss, parts, actor_loss, ratio)

    @property
    def whole_minibatch_flags(self) -> dict[str, bool]:
        """What looks at a whole minibatch."""
        return {**super().whole_minibatch_flags, "--model.l2c2_pairs": self.l2c2_pairs is not None}

    @property
    def metric_names(self) -> list[str]:
        """What is logged every iteration."""
        own = ["value_loss", *(f"{name}_loss" for name in self._penalties)]
        own += [] if self.actor_pause is None else ["actor_paused"]
        return [*super().metric_names, *(f"train/{name}" for name in own)]

    @property
    def has_unused_parameters(self) -> bool:
        """While only the critic learns, the actor has no gradients."""
        return self.critic_pretrain_steps > 0 or self.actor_pause is not None

    @property
    def _pretrains_critic(self) -> bool:
        """Whether this iteration began within ``critic_pretrain_steps``."""
        return self._steps_at_start < self.critic_pretrain_steps
