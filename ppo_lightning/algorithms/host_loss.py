"""PPO's loss of a small minibatch on the CPU, with its gradients, worked out at once: one node of autograd's graph."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ppo_lightning.algorithms.closed_form import actor_terms, critic_terms, describe_choice, describe_numbers
from ppo_lightning.core.host import Array
from ppo_lightning.core.rollout import PPOBatch
from ppo_lightning.models.host_pass import HostPass


def can_learn(passes: HostPass, batch: object) -> bool:
    """Whether :func:`ppo_loss` is one for minibatches of this batch: of independent transitions in one dtype."""
    if not isinstance(batch, PPOBatch):
        return False
    numbers = [batch.log_probs, batch.advantages, batch.returns, batch.values]
    numbers += [] if passes.logstd is None else [batch.actions]
    is_known = passes.logstd is not None or batch.actions.dtype is torch.int64
    return is_known and all(x.device.type == "cpu" and x.dtype is passes.dtype for x in numbers)


def ppo_loss(
    passes: HostPass,
    rows: PPOBatch,
    is_normalized: bool,
    clip_coef: float,
    ent_coef: float,
    vf_coef: float,
    critic_clip: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss of ``B`` rows, for which :func:`can_learn` is true.

    Args:
        passes: runs the network.
        rows: of a minibatch.
        is_normalized: normalise the rows' advantages.
        clip_coef: how far the ratio may move from 1.
        ent_coef: weight of the entropy.
        vf_coef: weight of the value loss.
        critic_clip: how far the value may move from the rollout's; None for anywhere.

    Returns:
        ``(loss, ratio, told)``: a scalar, whose backward pass adds to the parameters' gradients; ``(B,)``; and
        ``(6,)``, the loss, the four of :func:`algorithms.closed_form.actor_loss` and the value loss.
    """
    policy, values, add_gradients = passes.run(rows.obs)
    actions, advantages = rows.actions.numpy(), rows.advantages.numpy()
    with np.errstate(all="ignore"):  # what became NaN is told of at the update's end
        if passes.logstd is None:
            description = describe_choice(actions, policy.numpy())
        else:
            logstd = passes.logstd.detach().numpy()[None]  # of all rows the same
            description = describe_numbers(actions, policy.numpy(), logstd)
        advantages = _normalize(advantages) if is_normalized else advantages
        actor = actor_terms(description, rows.log_probs.numpy(), advantages, clip_coef, ent_coef)
        of_values = values.numpy()[:, 0], rows.returns.numpy(), rows.values.numpy()
        critic_loss, errors = critic_terms(*of_values, critic_clip)
        loss = actor.loss + vf_coef * critic_loss

    def add(weight: float) -> None:
        of_policy, *of_logstd = actor.gradients
        with np.errstate(all="ignore"):
            if weight != 1:
                of_policy, of_logstd = of_policy * weight, [x * weight for x in of_logstd]
            own = [torch.from_numpy(np.add.reduce(x, 0)) for x in of_logstd if passes.learns_std]
            of_value = torch.from_numpy(errors * (vf_coef * weight)).unsqueeze(1)
        add_gradients(torch.from_numpy(of_policy), of_value, *own)

    told = torch.from_numpy(np.array((loss, *actor.told, critic_loss), dtype=errors.dtype))
    return passes.loss(told[0], add), torch.from_numpy(actor.ratio), told


def _normalize(advantages: Array) -> Array:
    """As ``functional.normalize_advantages``."""
    size = len(advantages)
    centred = advantages - np.add.reduce(advantages) / size
    return centred / (np.sqrt(np.add.reduce(centred * centred) / max(1, size - 1)) + 1e-8)
