"""Decoupled Advantage Actor-Critic (Raileanu and Fergus, arXiv 2102.10330)."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Literal, Optional, Union

import torch
from gymnasium import spaces

from ppo_lightning.algorithms.clipped import ClippedModule
from ppo_lightning.algorithms.network import Head, check_heads
from ppo_lightning.algorithms.normalization import advantage_normalizer, reward_normalizer
from ppo_lightning.algorithms.objective import ClippedObjective, MinibatchLoss, loss_of_values
from ppo_lightning.algorithms.optimization import Optimization, OptimizerBuilder, SchedulerBuilder
from ppo_lightning.algorithms.targets import ValueTargets
from ppo_lightning.core.agent import Batch, Phase
from ppo_lightning.core.checkpoint import NetworkBuilder
from ppo_lightning.core.errors import ConfigurationError, check_range
from ppo_lightning.core.rollout import Observation
from ppo_lightning.functional import advantage_loss
from ppo_lightning.models.daac import DAACModel
from ppo_lightning.models.outputs import run_policy


class DAAC(ClippedModule):
    r"""A policy and a value network that share nothing, learned in phases; the policy also predicts advantages.

    The value network learns returns for ``value_epochs``, then the policy network for ``policy_epochs``:

    .. math::
        L_\pi = L_\text{clip} - c_\text{ent} H(\pi) + c_A \operatorname{mean}((A_\pi(s, a) - \hat A)^2)

    where :math:`\hat A` are the advantages of the clipped loss. Each phase leaves the other network as it is.

    Args:
        network: builds the network, a ``DAACModel`` or one with its ``policy``, ``values`` and ``advantages``; with
            memory the first two take whole sequences, as DAACModel's do.
        observation_space: one environment's observations; linked from the data.
        action_space: one environment's actions; linked from the data.
        optimizer: builds the optimiser from parameters and learning rate; Adam with eps 1e-5 by default.
        scheduler: builds a learning-rate scheduler, stepped once an iteration.
        learning_rate: of the optimiser; of the policy network where ``critic_learning_rate`` is given.
        critic_learning_rate: of the value network.
        anneal_lr: lower the learning rate linearly to 0 over ``--data.total_timesteps``.
        final_learning_rate: lower it to this instead.
        lr_decay_steps: environment steps, of all ranks, that either takes; ``--data.total_timesteps`` by default.
        lr_decay_power: of the polynomial that either follows; 1 is linear.
        gamma: discount a step.
        gae_lambda: decay of the GAE trace.
        returns: value targets by GAE (``gae``), as λ-returns (``lambda``) or of all rewards to the rollout's end and
            the value there (``nstep``).
        policy_epochs: passes over each rollout by which the policy network learns.
        value_epochs: passes by which the value network learns.
        adv_coeff: weight of the loss of the predicted advantages.
        clip_coef: how far the probability ratio may move from 1.
        final_clip_coef: what ``clip_coef`` changes to, linearly over ``--data.total_timesteps``; null leaves it.
        norm_adv: normalise advantages: in each ``minibatch`` (true), over each ``rollout``, or not at all (false).
        clip_vloss: clip the value's change by ``clip_coef`` too.
        ent_coef: weight of the entropy bonus.
        final_ent_coef: what ``ent_coef`` changes to, likewise.
        target_kl: leave out the rest of an iteration's minibatches once the KL divergence from the rollout's policy
            exceeds this; null for never.
        normalize_rewards: divide rewards by the standard deviation of their discounted sum.
        reward_clip: the largest magnitude of a normalised reward.
        log_action_id: log the fraction of this action as ``rollout/action_<id>_fraction``; null for none.
        log_param_hash: log ``debug/param_hash`` every iteration, and stop if ranks' parameters differ.
        chunk_size: learn from large minibatches in chunks of at most so many transitions, whose gradients add up to the
            same: less memory; null for whole minibatches. ``auto`` is 256 where pictures are learned from on the CPU.

    Raises:
        ConfigurationError: a number outside its range, or options that contradict each other.
    """

    def __init__(
        self,
        network: NetworkBuilder = DAACModel,
        observation_space: Optional[dict[str, Any]] = None,
        action_space: Optional[dict[str, Any]] = None,
        optimizer: Optional[OptimizerBuilder] = None,
        scheduler: Optional[SchedulerBuilder] = None,
        learning_rate: float = 5e-4,
        critic_learning_rate: Optional[float] = None,
        anneal_lr: bool = False,
        final_learning_rate: Optional[float] = None,
        lr_decay_steps: Optional[int] = None,
        lr_decay_power: float = 1.0,
        gamma: float = 0.999,
        gae_lambda: float = 0.95,
        returns: Literal["gae", "lambda", "nstep"] = "gae",
        policy_epochs: int = 1,
        value_epochs: int = 9,
        adv_coeff: float = 0.25,
        clip_coef: float = 0.2,
        final_clip_coef: Optional[float] = None,
        norm_adv: Union[bool, Literal["minibatch", "rollout"]] = True,
        clip_vloss: bool = True,
        ent_coef: float = 0.01,
        final_ent_coef: Optional[float] = None,
        target_kl: Optional[float] = None,
        normalize_rewards: bool = False,
        reward_clip: float = 10.0,
        log_action_id: Optional[int] = None,
        log_param_hash: bool = False,
        chunk_size: Union[int, Literal["auto"], None] = "auto",
    ) -> None:
        check_range("--model.policy_epochs", policy_epochs, 1)
        check_range("--model.value_epochs", value_epochs, 1)
        check_range("--model.adv_coeff", adv_coeff, 0)
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
                critic_learning_rate=critic_learning_rate,
                chunk_size=chunk_size,
            ),
            ClippedObjective(clip_coef, ent_coef, final_clip_coef, final_ent_coef, target_kl),
            ValueTargets(returns, gamma, gae_lambda),
            advantage_normalizer(norm_adv),
            reward_normalizer(normalize_rewards, gamma, reward_clip),
            log_action_id,
            log_param_hash,
        )
        self.policy_epochs = policy_epochs
        self.value_epochs = value_epochs
        self.adv_coeff = adv_coeff
        self.clip_vloss = clip_vloss
        self.build_if_known(observation_space, action_space)

    def build_network(self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
        """Build the network for these spaces and remember them in the checkpoint."""
        super().build_network(observation_space, action_space)
        lacking = [name for name in ("policy", "values", "advantages") if not callable(getattr(self._net, name, None))]
        if lacking:
            raise ConfigurationError(
                f"--model.network={type(self._net).__name__} is no network for DAAC (it has no "
                f"{' and no '.join(lacking)}): take DAACModel, or one with its methods policy, values and advantages."
            )
        heads: dict[str, Head] = {
            "values": lambda obs, output, actions: self._net.values(*self._alone(obs)),
            "advantages": lambda obs, output, actions: self._net.advantages(
                self._net.policy(*self._alone(obs)).hidden, actions
            ),
        }
        check_heads(self._net, observation_space, action_space, heads)

    def phases(self, update_epochs: int | None) -> Sequence[Phase]:
        """The value network's epochs, then the policy network's, which ``target_kl`` may cut short."""
        if update_epochs is not None:
            raise ConfigurationError(
                f"--data.update_epochs={update_epochs} means nothing to DAAC, whose epochs are --model.policy_epochs "
                "and --model.value_epochs: leave it out, or set it to null."
            )
        return [Phase("value", self.value_epochs), Phase("policy", self.policy_epochs)]

    def _alone(self, obs: Observation) -> tuple[Any, ...]:
        """Observations ``(B, *shape)`` as ``policy`` and ``values`` take them: with memory as sequences of one step."""
        state = self.initial_state(len(obs))
        starts = torch.ones(len(obs), 1, dtype=torch.bool, device=self.device)
        return (obs,) if state is None else (obs.unsqueeze(1), state, starts)

    def minibatch_loss(self, batch: Batch, batch_idx: int) -> MinibatchLoss:
        """The loss of the network whose phase it is."""
        passes = self.host_pass()
        if self.phase_of(batch_idx) == "value":
            values, rows = self.evaluate_by(self._net.values if passes is None else passes.values, batch)
            clip_coef = self.objective.clip_coef.now if self.clip_vloss else None
            loss = loss_of_values(values, rows.returns, rows.values, clip_coef)
            return MinibatchLoss(loss, {}, name="value_loss")
        run = functools.partial(run_policy, self._net) if passes is None else passes.policy
        output, rows = self.evaluate_by(run, batch)
        advantages = self.minibatch_advantages(rows, batch_idx)
        loss, ratio, parts = self.objective.loss(output.distribution, rows, advantages)
        parts["advantage_loss"] = advantage_loss(self._net.advantages(output.hidden, rows.actions), advantages)
        return MinibatchLoss(self.adv_coeff * parts["advantage_loss"], parts, loss, ratio)

    @property
    def metric_names(self) -> list[str]:
        """What is logged every iteration."""
        return [*super().metric_names, "train/value_loss", "train/advantage_loss"]

    @property
    def has_unused_parameters(self) -> bool:
        """Each phase leaves one network out."""
        return True
