"""PPO with an intrinsic reward for what is new (Burda et al., arXiv 1810.12894)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Optional, Union, cast

import torch
from gymnasium import spaces
from torch import Tensor

from ppo_lightning.algorithms.batches import batch_of
from ppo_lightning.algorithms.clipped import ClippedModule
from ppo_lightning.algorithms.network import Head, build_part, check_heads
from ppo_lightning.algorithms.normalization import RewardNormalizer, advantage_normalizer
from ppo_lightning.algorithms.objective import ClippedObjective, MinibatchLoss, loss_of_values
from ppo_lightning.algorithms.optimization import Optimization, OptimizerBuilder, SchedulerBuilder
from ppo_lightning.algorithms.targets import ValueTargets
from ppo_lightning.core.agent import Batch, RolloutEnd
from ppo_lightning.core.checkpoint import NetworkBuilder
from ppo_lightning.core.errors import ConfigurationError, check_range
from ppo_lightning.core.rollout import ExtraBatch, Observation, Rollout
from ppo_lightning.functional import continuing_advantage_estimation
from ppo_lightning.functional.distributions import at_least_float32
from ppo_lightning.models.novelty import RandomNetworkDistillation, RNDModel
from ppo_lightning.models.outputs import ModelOutput

NoveltyBuilder = Callable[[spaces.Space[Any]], RandomNetworkDistillation]
_ROWS = 1024  # of which intrinsic rewards are computed at once


class RND(ClippedModule):
    r"""PPO on two streams of rewards: the environment's, and the novelty of what an action led to.

    .. math::
        A = c_E\,A_E + c_I\,A_I \qquad r^I_t = e(s_{t+1}) / \sqrt{\operatorname{Var}(\textstyle\sum \gamma_I^k r^I)}

    The intrinsic stream goes on over the ends of episodes. Each has its value head and its discount.

    Args:
        network: builds the network, an ``RNDModel`` or one with its ``intrinsic_values``.
        novelty: builds what tells how new an observation is, from the observation space.
        observation_space: one environment's observations; linked from the data.
        action_space: one environment's actions; linked from the data.
        optimizer: builds the optimiser from parameters and learning rate; Adam with eps 1e-5 by default.
        scheduler: builds a learning-rate scheduler, stepped once an iteration.
        learning_rate: of the optimiser.
        anneal_lr: lower the learning rate linearly to 0 over ``--data.total_timesteps``.
        final_learning_rate: lower it to this instead.
        lr_decay_steps: environment steps, of all ranks, that either takes; ``--data.total_timesteps`` by default.
        lr_decay_power: of the polynomial that either follows; 1 is linear.
        gamma: discount a step of the environment's rewards.
        gamma_intr: discount a step of the intrinsic rewards.
        gae_lambda: decay of the GAE traces.
        returns: targets of the environment's value by GAE (``gae``), as λ-returns (``lambda``) or of all rewards to the
            rollout's end and the value there (``nstep``).
        extr_adv_coeff: weight of the advantages of the environment's rewards.
        intr_adv_coeff: weight of the advantages of the intrinsic rewards.
        predictor_fraction: share of the transitions, drawn anew for each epoch, that the predictor learns from.
        init_obs_steps: random actions before training, over all ranks, that start the statistics of observations.
        clip_coef: how far the probability ratio may move from 1.
        final_clip_coef: what ``clip_coef`` changes to, linearly over ``--data.total_timesteps``; null leaves it.
        norm_adv: normalise the weighted advantages: in each ``minibatch`` (true), over each ``rollout``, or not at all.
        clip_vloss: clip the values' change by ``clip_coef`` too.
        extr_coeff: weight of the loss of the environment's value.
        intr_coeff: weight of the loss of the intrinsic value.
        ent_coef: weight of the entropy bonus.
        final_ent_coef: what ``ent_coef`` changes to, likewise.
        target_kl: leave out the rest of an iteration's minibatches once the KL divergence from the rollout's policy
            exceeds this; null for never.
        log_action_id: log the fraction of this action as ``rollout/action_<id>_fraction``; null for none.
        log_param_hash: log ``debug/param_hash`` every iteration, and stop if ranks' parameters differ.
        chunk_size: learn from large minibatches in chunks of at most so many transitions, whose gradients add up to the
            same: less memory; null for whole minibatches. ``auto`` is 256 where pictures are learned from on the CPU.

    Raises:
        ConfigurationError: a number outside its range, or options that contradict each other.
    """

    BUILDERS = (*ClippedModule.BUILDERS, "novelty")

    def __init__(
        self,
        network: NetworkBuilder = RNDModel,
        novelty: NoveltyBuilder = RandomNetworkDistillation,
        observation_space: Optional[dict[str, Any]] = None,
        action_space: Optional[dict[str, Any]] = None,
        optimizer: Optional[OptimizerBuilder] = None,
        scheduler: Optional[SchedulerBuilder] = None,
        learning_rate: float = 1e-4,
        anneal_lr: bool = False,
        final_learning_rate: Optional[float] = None,
        lr_decay_steps: Optional[int] = None,
        lr_decay_power: float = 1.0,
        gamma: float = 0.999,
        gamma_intr: float = 0.99,
        gae_lambda: float = 0.95,
        returns: Literal["gae", "lambda", "nstep"] = "gae",
        extr_adv_coeff: float = 2.0,
        intr_adv_coeff: float = 1.0,
        predictor_fraction: float = 0.25,
        init_obs_steps: int = 6400,
        clip_coef: float = 0.1,
        final_clip_coef: Optional[float] = None,
        norm_adv: Union[bool, Literal["minibatch", "rollout"]] = True,
        clip_vloss: bool = False,
        extr_coeff: float = 0.5,
        intr_coeff: float = 0.5,
        ent_coef: float = 0.001,
        final_ent_coef: Optional[float] = None,
        target_kl: Optional[float] = None,
        log_action_id: Optional[int] = None,
        log_param_hash: bool = False,
        chunk_size: Union[int, Literal["auto"], None] = "auto",
    ) -> None:
        check_range("--model.gamma_intr", gamma_intr, 0, 1)
        check_range("--model.predictor_fraction", predictor_fraction, 0, 1, exclude_low=True)
        check_range("--model.init_obs_steps", init_obs_steps, 2)  # one observation has no variance
        weights = {"extr_adv_coeff": extr_adv_coeff, "intr_adv_coeff": intr_adv_coeff}
        for name, weight in {**weights, "extr_coeff": extr_coeff, "intr_coeff": intr_coeff}.items():
            check_range(f"--model.{name}", weight, 0)
        super().__init__(
            network,
            Optimization(
                optimizer,
                scheduler,
                learning_rate,
                anneal_lr,
                final_learning_rate,
                lr_decay_steps,
                lr_decay_power,
                chunk_size=chunk_size,
            ),
            ClippedObjective(clip_coef, ent_coef, final_clip_coef, final_ent_coef, target_kl),
            ValueTargets(returns, gamma, gae_lambda),
            advantage_normalizer(norm_adv),
            log_action_id=log_action_id,
            log_param_hash=log_param_hash,
        )
        self.extr_adv_coeff, self.intr_adv_coeff = extr_adv_coeff, intr_adv_coeff
        self.extr_coeff, self.intr_coeff = extr_coeff, intr_coeff
        self.gamma_intr = gamma_intr
        self.predictor_fraction = predictor_fraction
        self.init_obs_steps = init_obs_steps
        self.clip_vloss = clip_vloss
        self.novelty_normalizer = RewardNormalizer(gamma_intr, None, None, trace="discounted_novelty")
        self._novelty_builder: Any = novelty
        self.build_if_known(observation_space, action_space)

    def build_network(self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
        """Build the networks for these spaces and remember them in the checkpoint."""
        super().build_network(observation_space, action_space)
        if not callable(getattr(self._net, "intrinsic_values", None)):
            raise ConfigurationError(
                f"--model.network={type(self._net).__name__} has no value head for intrinsic rewards: take RNDModel, "
                "or a network with its method intrinsic_values."
            )
        heads: dict[str, Head] = {
            "intrinsic_values": lambda obs, output, actions: self._net.intrinsic_values(output.hidden)
        }
        check_heads(self._net, observation_space, action_space, heads)
        self.novelty = build_part(NoveltyBuilder, self._novelty_builder, "--model.novelty", observation_space)

    # -- a rollout

    @property
    def keeps_next_obs(self) -> bool:
        """Novelty is that of what an action led to."""
        return True

    @property
    def warm_up_steps(self) -> int:
        """The share of ``init_obs_steps`` that falls to this rank."""
        return -(-self.init_obs_steps // self.trainer.world_size)

    def warm_up(self, obs: Observation) -> None:
        """Start the statistics of observations."""
        self.novelty.learn(self.novelty.moments_of(self.novelty.select(obs)), self.gather)

    def extra_of(self, output: ModelOutput) -> dict[str, Tensor]:
        """The values of intrinsic rewards."""
        return {"intrinsic_values": at_least_float32(self._net.intrinsic_values(output.hidden))}

    def prepare(self, rollout: Rollout, end: RolloutEnd) -> Batch:
        """The weighted advantages of both streams, and the returns of each."""
        advantages, returns = self.look_at(rollout, end)
        valid, next_obs = rollout.valid, self.novelty.select(rollout.next_obs)
        with self.collecting():
            errors = torch.cat([self.novelty(part) for part in next_obs.flatten(0, 1).split(_ROWS)])
            last_values = self.extra_of(self._run(end.obs, end.state)[0])["intrinsic_values"]
        errors = errors.reshape(valid.shape).to(advantages)
        rewards = self.novelty_normalizer.normalize(errors, torch.zeros_like(valid), valid, end.traces, self.gather)
        values = rollout.extra["intrinsic_values"]
        intrinsic_advantages, intrinsic_returns = continuing_advantage_estimation(
            rewards, values, last_values, valid, self.gamma_intr, self.targets.gae_lambda
        )
        self._statistics.add_mean("rollout/novelty", errors[valid])
        self._statistics.add_mean("rollout/intrinsic_reward", rewards[valid])
        self._statistics.add_spread("train/intrinsic_value", values[valid])
        self._seen = self.novelty.moments_of(next_obs[valid])
        advantages = self.extr_adv_coeff * advantages + self.intr_adv_coeff * intrinsic_advantages
        draws = [torch.rand(len(valid), end.num_epochs, generator=generator) for generator in end.make_generators()]
        extra = {
            "next_obs": next_obs,
            "intrinsic_values": values,
            "intrinsic_returns": intrinsic_returns,
            "is_predicted": (torch.stack(draws, dim=1) < self.predictor_fraction).to(valid.device),
        }
        advantages = self.normalized(advantages, valid)
        return batch_of(rollout, advantages=advantages, returns=returns, values=rollout.values, extra=extra)

    def finish_statistics(self, gather: Callable[[Tensor], Tensor]) -> None:
        """Take in what the rollout's actions led to, which was frozen while it was learned from."""
        super().finish_statistics(gather)
        self.novelty.learn(self._seen, gather)

    # -- an update

    def minibatch_loss(self, batch: Batch, batch_idx: int) -> MinibatchLoss:
        """The losses of the policy, of both values, and of the predictor."""
        output, rows = self.evaluate(batch)
        extra, clip_coef = cast(ExtraBatch, rows).extra, self.objective.clip_coef.now if self.clip_vloss else None
        advantages = self.minibatch_advantages(rows, batch_idx)
        actor_loss, ratio, parts = self.objective.loss(output.distribution, rows, advantages)
        intrinsic_values = self.extra_of(output)["intrinsic_values"]
        parts["value_loss"] = loss_of_values(output.value, rows.returns, rows.values, clip_coef)
        parts["intrinsic_value_loss"] = loss_of_values(
            intrinsic_values, extra["intrinsic_returns"], extra["intrinsic_values"], clip_coef
        )
        is_predicted = extra["is_predicted"]
        epoch = batch_idx * is_predicted.shape[1] // self.update_length
        errors = self.novelty(extra["next_obs"][is_predicted[:, epoch]])
        parts["predictor_loss"] = errors.sum() / (self.predictor_fraction * len(rows))
        critic_loss = self.extr_coeff * parts["value_loss"] + self.intr_coeff * parts["intrinsic_value_loss"]
        return MinibatchLoss(critic_loss + parts["predictor_loss"], parts, actor_loss, ratio)

    @property
    def metric_names(self) -> list[str]:
        """What is logged every iteration."""
        own = ["train/value_loss", "train/intrinsic_value_loss", "train/predictor_loss"]
        values = ["train/intrinsic_value_mean", "train/intrinsic_value_std"]
        return [*super().metric_names, *own, *values, "rollout/novelty", "rollout/intrinsic_reward"]
