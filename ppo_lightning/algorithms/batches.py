"""Rollouts as the batches that minibatches are drawn from, and those as rows of the loss."""

from __future__ import annotations

from typing import Any, cast

from tensordict import TensorDict
from torch import Tensor

from ppo_lightning.core.agent import Batch
from ppo_lightning.core.rollout import (
    ExtraBatch,
    ExtraSequenceBatch,
    MemoryRollout,
    PPOBatch,
    PPOSequenceBatch,
    Rollout,
    valid_rows,
)
from ppo_lightning.models.memory import take_rows

_FIELDS = ("obs", "actions", "log_probs", "advantages", "returns", "values")


def batch_of(
    rollout: Rollout, *, advantages: Tensor, returns: Tensor, values: Tensor, extra: dict[str, Tensor] | None = None
) -> Batch:
    """Valid transitions in one row, or whole environments for a network with memory; all given are ``(T, N)``.

    With ``extra``, what else is learned from, ``(T, N, …)`` each, it is an ``ExtraBatch`` or ``ExtraSequenceBatch``.
    """
    valid = rollout.valid
    fields: dict[str, Any] = {
        "obs": rollout.obs,
        "actions": rollout.actions,
        "log_probs": rollout.log_probs,
        "advantages": advantages,
        "returns": returns,
        "values": values,
    }
    if extra is not None:
        fields["extra"] = TensorDict(cast(Any, extra), batch_size=valid.shape)
    if isinstance(rollout, MemoryRollout):
        fields.update(valid=valid, episode_starts=rollout.episode_starts)
        by_env = {name: field.transpose(0, 1) for name, field in fields.items()}
        sequences = PPOSequenceBatch if extra is None else ExtraSequenceBatch
        return sequences(**by_env, initial_state=rollout.states[0], batch_size=[valid.shape[1]])
    rows = PPOBatch if extra is None else ExtraBatch
    return valid_rows(rows(**fields, batch_size=valid.shape), valid)


def rows_of_sequences(output: Any, batch: PPOSequenceBatch) -> tuple[Any, PPOBatch]:
    """The valid rows of an output over whole sequences, and the independent transitions that they are for."""
    valid = batch.valid.flatten()
    fields = {name: getattr(batch, name).flatten(0, 1) for name in _FIELDS}
    steps: PPOBatch
    if isinstance(batch, ExtraSequenceBatch):
        steps = ExtraBatch(**fields, extra=batch.extra.flatten(0, 1), batch_size=valid.shape)
    else:
        steps = PPOBatch(**fields, batch_size=valid.shape)
    # without any, other ranks have rows of this minibatch, and what this one does has weight 0
    if valid.all() or not valid.any():
        return output, steps
    return take_rows(output, valid), steps[valid]
