"""The clipped objective's policy loss: one for all agents, with its schedules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppo_lightning.algorithms import closed_form
from ppo_lightning.algorithms.schedules import LinearSchedule
from ppo_lightning.core.errors import check_range
from ppo_lightning.core.rollout import PPOBatch
from ppo_lightning.functional import approx_kl_divergence, clip_fraction, ppo_clipped_policy_loss, value_loss
from ppo_lightning.functional.distributions import at_least_float32


@dataclass
class MinibatchLoss:
    """The loss of some rows, each of its halves a scalar that is a mean over them.

    Attributes:
        rest: of all that learns beside the actor.
        parts: what is logged, as ``train/<name>``: scalars that are means over the rows too.
        actor: the actor's half, already weighted; None where it does not learn.
        ratio: ``(B,)``, of the probabilities of the rows' actions to those of the rollout; None where none was asked.
        name: what the sum of both halves is logged as.
        told: the names and numbers that are logged, where they come in one piece; ``parts`` are then those to react to.
    """

    rest: Tensor
    parts: dict[str, Tensor]
    actor: Tensor | None = None
    ratio: Tensor | None = None
    name: str = "loss"
    told: tuple[tuple[str, ...], Tensor] | None = None

    @property
    def total(self) -> Tensor:
        """Both halves together."""
        return self.rest if self.actor is None else self.actor + self.rest


def loss_of_values(values: Tensor, returns: Tensor, old_values: Tensor, clip_coef: float | None) -> Tensor:
    """``functional.value_loss`` of values in full precision, in closed form where that is faster."""
    values = at_least_float32(values)
    is_faster = values.dim() == 1 and closed_form.are_small(values, returns, old_values)
    return (closed_form.critic_loss if is_faster else value_loss)(values, returns, old_values, clip_coef)


class ClippedObjective:
    """The clipped policy loss with its entropy bonus (Schulman et al., arXiv 1707.06347, equations 7 and 9).

    Args:
        clip_coef: how far the probability ratio may move from 1.
        ent_coef: weight of the entropy bonus.
        final_clip_coef: what ``clip_coef`` changes to, linearly over the run; None leaves it.
        final_ent_coef: what ``ent_coef`` changes to, likewise.
        target_kl: a minibatch beyond this KL divergence is an iteration's last; None for never.

    Raises:
        ConfigurationError: a number outside its range.
    """

    PARTS = "policy_loss", "entropy", "approx_kl", "clip_fraction"

    def __init__(
        self,
        clip_coef: float,
        ent_coef: float,
        final_clip_coef: float | None = None,
        final_ent_coef: float | None = None,
        target_kl: float | None = None,
    ) -> None:
        if target_kl is not None:
            check_range("--model.target_kl", target_kl, 0, exclude_low=True)
        self.clip_coef = LinearSchedule("clip_coef", clip_coef, final_clip_coef, exclude_zero=True)
        self.ent_coef = LinearSchedule("ent_coef", ent_coef, final_ent_coef)
        self.target_kl = target_kl

    @property
    def schedules(self) -> list[LinearSchedule]:
        """What changes over the run."""
        return [self.clip_coef, self.ent_coef]

    def loss(self, distribution: Any, rows: PPOBatch, advantages: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """The actor's loss, the ratio ``(B,)``, and what is logged of both by its name, of ``rows`` of batch size B.

        Only the loss has a gradient.
        """
        clip_coef, ent_coef = self.clip_coef.now, self.ent_coef.now
        known = distribution, rows.actions, rows.log_probs, advantages
        if closed_form.has_closed_form(*known):
            loss, ratio, told = closed_form.actor_loss(*known, clip_coef, ent_coef)
            return loss, ratio, dict(zip(self.PARTS, told.unbind()))
        log_probs = distribution.log_prob(rows.actions)
        policy_loss, ratio = ppo_clipped_policy_loss(log_probs, rows.log_probs, advantages, clip_coef)
        with torch.set_grad_enabled(ent_coef > 0 and torch.is_grad_enabled()):
            entropy = distribution.entropy().mean()
        with torch.no_grad():
            kl = approx_kl_divergence(log_probs, rows.log_probs)
            clipped = clip_fraction(ratio, clip_coef)
        parts = (part.detach() for part in (policy_loss, entropy, kl, clipped))
        return policy_loss - ent_coef * entropy, ratio.detach(), dict(zip(self.PARTS, parts))
