"""Proximal Policy Optimization (Schulman et al., arXiv 1707.06347)."""

from __future__ import annotations

from typing import Any, Optional

import torch
from gymnasium import spaces
from torch import Tensor

from ppo_lightning.algorithms.base import OnPolicyModule
from ppo_lightning.algorithms.optimization import OptimizerBuilder, SchedulerBuilder
from ppo_lightning.core.agent import Batch
from ppo_lightning.core.checkpoint import NetworkBuilder
from ppo_lightning.core.errors import ConfigurationError, check_range
from ppo_lightning.core.rollout import MemoryRollout, PPOBatch, PPOSequenceBatch, Rollout, valid_rows
from ppo_lightning.functional import (
    approx_kl_divergence,
    clip_fraction,
    generalized_advantage_estimation,
    ppo_clipped_policy_loss,
    value_loss,
)
from ppo_lightning.functional.distributions import at_least_float32
from ppo_lightning.models.actor_critic import ActorCritic
from ppo_lightning.models.memory import take_rows, unroll
from ppo_lightning.models.outputs import ModelOutput


class PPO(OnPolicyModule):
    """The clipped objective over rollouts of a ``RolloutDataModule``.

    Gradient clipping is the Trainer's: ``--trainer.gradient_clip_val`` (0.5 on the command line).

    Args:
        network: builds the network from the observation and action space; in Python a built module also works.
        observation_space: one environment's observations; linked from the data.
        action_space: one environment's actions; linked from the data.
        optimizer: builds the optimiser from parameters and learning rate; Adam with eps 1e-5 by default.
        scheduler: builds a learning-rate scheduler, stepped once an iteration.
        learning_rate: of the optimiser.
        anneal_lr: lower the learning rate linearly to 0 over ``--data.total_timesteps``.
        gamma: discount a step.
        gae_lambda: decay of the GAE trace.
        clip_coef: how far the probability ratio may move from 1.
        norm_adv: normalise advantages in each minibatch.
        clip_vloss: clip the value's change by ``clip_coef`` too.
        vf_coef: weight of the value loss.
        ent_coef: weight of the entropy bonus.
        target_kl: leave out the rest of an iteration's minibatches once the KL divergence from the rollout's policy
            exceeds this; null for never.
        critic_pretrain_steps: environment steps in which only the critic learns, by the value loss alone.
        log_action_id: log the fraction of this action as ``rollout/action_<id>_fraction``; null for none.
        log_param_hash: log ``debug/param_hash`` every iteration, and stop if ranks' parameters differ.

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
        norm_adv: bool = True,
        clip_vloss: bool = True,
        vf_coef: float = 0.5,
        ent_coef: float = 0.01,
        target_kl: Optional[float] = None,
        critic_pretrain_steps: int = 0,
        log_action_id: Optional[int] = None,
        log_param_hash: bool = False,
    ) -> None:
        check_range("--model.gamma", gamma, 0, 1)
        check_range("--model.gae_lambda", gae_lambda, 0, 1)
        check_range("--model.clip_coef", clip_coef, 0, exclude_low=True)
        check_range("--model.vf_coef", vf_coef, 0)
        check_range("--model.ent_coef", ent_coef, 0)
        check_range("--model.critic_pretrain_steps", critic_pretrain_steps, 0)
        if target_kl is not None:
            check_range("--model.target_kl", target_kl, 0, exclude_low=True)
        super().__init__(network, optimizer, scheduler, learning_rate, anneal_lr, log_param_hash)
        self.gamma = gamma
        self.gae_lambda = gae_lambda
        self.clip_coef = clip_coef
        self.norm_adv = norm_adv
        self.clip_vloss = clip_vloss
        self.vf_coef = vf_coef
        self.ent_coef = ent_coef
        self.target_kl = target_kl
        self.critic_pretrain_steps = critic_pretrain_steps
        self.log_action_id = log_action_id
        self.build_if_known(observation_space, action_space)

    def build_network(self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
        """Build the network for these spaces and remember them in the checkpoint."""
        if self.log_action_id is not None:
            if not isinstance(action_space, spaces.Discrete):
                raise ConfigurationError("--model.log_action_id needs a Discrete action space: leave it out.")
            check_range("--model.log_action_id", self.log_action_id, 0, int(action_space.n) - 1)
        super().build_network(observation_space, action_space)

    def prepare(self, rollout: Rollout) -> Batch:
        """Advantages and returns by GAE; transitions in one row, or whole environments for a network with memory."""
        advantages, returns = generalized_advantage_estimation(
            rollout.rewards,
            rollout.values,
            rollout.next_values,
            rollout.terminated,
            rollout.truncated,
            self.gamma,
            self.gae_lambda,
        )
        valid = rollout.valid
        self._add_rollout_statistics(rollout, advantages, returns)
        fields: dict[str, Any] = {
            "obs": rollout.obs,
            "actions": rollout.actions,
            "log_probs": rollout.log_probs,
            "advantages": advantages,
            "returns": returns,
            "values": rollout.values,
        }
        if isinstance(rollout, MemoryRollout):
            fields.update(valid=valid, episode_starts=rollout.episode_starts)
            by_env = {name: field.transpose(0, 1) for name, field in fields.items()}
            return PPOSequenceBatch(**by_env, initial_state=rollout.states[0], batch_size=[valid.shape[1]])
        return valid_rows(PPOBatch(**fields, batch_size=valid.shape), valid)

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

    @property
    def metric_names(self) -> list[str]:
        """What is logged every iteration."""
        update = ["loss", "policy_loss", "value_loss", "entropy", "approx_kl", "clip_fraction", "first_ratio_error"]
        batch = ["explained_variance", "advantage_mean", "advantage_std", "value_mean", "value_std"]
        names = [*super().metric_names, *(f"train/{name}" for name in [*update, *batch]), "rollout/action_prob_mean"]
        return names if self.log_action_id is None else [*names, f"rollout/action_{self.log_action_id}_fraction"]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of one minibatch."""
        output, batch = self._evaluate(batch)
        distribution = output.distribution
        log_probs = distribution.log_prob(batch.actions)
        advantages = self._normalize(batch.advantages, batch_idx) if self.norm_adv else batch.advantages
        policy_loss, ratio = ppo_clipped_policy_loss(log_probs, batch.log_probs, advantages, self.clip_coef)
        clip_coef = self.clip_coef if self.clip_vloss else None
        critic_loss = value_loss(at_least_float32(output.value), batch.returns, batch.values, clip_coef)
        entropy = distribution.entropy().mean()
        if self._pretrains_critic:
            loss = critic_loss
        else:
            loss = policy_loss + self.vf_coef * critic_loss - self.ent_coef * entropy

        weight = self._weight(batch_idx)
        with torch.no_grad():
            kl = approx_kl_divergence(log_probs, batch.log_probs)
            self._statistics.add_minibatch(
                ratio,
                {
                    "train/loss": loss,
                    "train/policy_loss": policy_loss,
                    "train/value_loss": critic_loss,
                    "train/entropy": entropy,
                    "train/approx_kl": kl,
                    "train/clip_fraction": clip_fraction(ratio, self.clip_coef),
                },
                weight,
            )
        if self.target_kl is not None and self._exceeds(kl.detach(), self.target_kl, batch_idx):
            self.stop_update()
        return loss if weight == 1 else loss * weight

    def _evaluate(self, batch: Batch) -> tuple[ModelOutput, PPOBatch]:
        """The network on a minibatch, and the minibatch as independent transitions."""
        if isinstance(batch, PPOBatch):
            return self._net(batch.obs), batch
        output = unroll(self._net, batch.obs, batch.initial_state, batch.episode_starts)
        names = ("obs", "actions", "log_probs", "advantages", "returns", "values")
        fields = {name: getattr(batch, name) for name in names}
        rows = valid_rows(PPOBatch(**fields, batch_size=batch.valid.shape), batch.valid)
        if not len(rows):  # other ranks have rows of this minibatch; what this one does has weight 0
            return output, PPOBatch(**fields, batch_size=batch.valid.shape).reshape(-1)
        return (output if len(rows) == batch.valid.numel() else take_rows(output, batch.valid.flatten())), rows

    @property
    def has_unused_parameters(self) -> bool:
        """While only the critic learns, the actor has no gradients."""
        return self.critic_pretrain_steps > 0

    @property
    def _pretrains_critic(self) -> bool:
        """Whether this iteration began within ``critic_pretrain_steps``."""
        return self._steps_at_start < self.critic_pretrain_steps
