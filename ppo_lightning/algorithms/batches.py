"""Rollouts as the batches that minibatches are drawn from, and those as rows of the loss."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ppo_lightning.core.agent import Batch
from ppo_lightning.core.rollout import MemoryRollout, PPOBatch, PPOSequenceBatch, Rollout, valid_rows
from ppo_lightning.models.memory import take_rows

_FIELDS = ("obs", "actions", "log_probs", "advantages", "returns", "values")


def batch_of(rollout: Rollout, *, advantages: Tensor, returns: Tensor, values: Tensor) -> Batch:
    """Valid transitions in one row, or whole environments for a network with memory; all given are ``(T, N)``."""
    valid = rollout.valid
    fields: dict[str, Any] = {
        "obs": rollout.obs,
        "actions": rollout.actions,
        "log_probs": rollout.log_probs,
        "advantages": advantages,
        "returns": returns,
        "values": values,
    }
    if isinstance(rollout, MemoryRollout):
        fields.update(valid=valid, episode_starts=rollout.episode_starts)
        by_env = {name: field.transpose(0, 1) for name, field in fields.items()}
        return PPOSequenceBatch(**by_env, initial_state=rollout.states[0], batch_size=[valid.shape[1]])
    return valid_rows(PPOBatch(**fields, batch_size=valid.shape), valid)


def rows_of_sequences(output: Any, batch: PPOSequenceBatch) -> tuple[Any, PPOBatch]:
    """The valid rows of an output over whole sequences, and the independent transitions that they are for."""
    fields = {name: getattr(batch, name) for name in _FIELDS}
    rows = valid_rows(PPOBatch(**fields, batch_size=batch.valid.shape), batch.valid)
    if not len(rows):  # other ranks have rows of this minibatch; what this one does has weight 0
        return output, PPOBatch(**fields, batch_size=batch.valid.shape).reshape(-1)
    return (output if len(rows) == batch.valid.numel() else take_rows(output, batch.valid.flatten())), rows
