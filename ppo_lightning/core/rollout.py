"""The containers that carry data from the environment to the loss.

``T`` steps, ``N`` environments of this rank, ``B`` transitions of a minibatch. Observations are a tensor or, for Dict
spaces, a nested ``TensorDict``; images keep the simulator's ``uint8``.
"""

# tensordict reserves names (values, add) that are the field's own here; "shadow" allows them
# mypy: disable-error-code="override, assignment, type-arg, name-defined, arg-type"

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar, Union

import numpy as np
import torch
from tensordict import TensorClass, TensorDict, TensorDictBase
from torch import Tensor

Observation = Union[Tensor, TensorDictBase]
"""``(N, *shape)``, or a ``TensorDict`` of such for Dict spaces."""

State = Union[Tensor, TensorDictBase]
"""What a policy with memory carries from step to step, ``(N, *shape)``."""

BatchT = TypeVar("BatchT", bound=TensorClass)


def state_to_plain(state: State | None) -> Any:
    """What a checkpoint holds of a memory: a tensor, a dict of tensors, or None."""
    return state.to_dict() if isinstance(state, TensorDictBase) else state


def state_from_plain(plain: Any, num_envs: int, device: torch.device) -> State | None:
    """The inverse of :func:`state_to_plain`, for ``num_envs`` rows."""
    if isinstance(plain, Mapping):
        plain = TensorDict(dict(plain), batch_size=[num_envs])
    return None if plain is None else plain.to(device)


def stack_steps(num_steps: int, example: Observation) -> Any:
    """Uninitialised storage for ``num_steps`` of ``example``: ``(N, *shape)`` becomes ``(T, N, *shape)``."""
    if isinstance(example, TensorDictBase):
        storage = {key: stack_steps(num_steps, value) for key, value in example.items()}
        return TensorDict(storage, batch_size=[num_steps, *example.batch_size])
    return torch.empty((num_steps, *example.shape), dtype=example.dtype, device=example.device)


def cat_rows(parts: Sequence[Any]) -> Any:
    """Observations or memories of some rows each as one of all of them."""
    return TensorDict.cat(list(parts), dim=0) if isinstance(parts[0], TensorDictBase) else torch.cat(list(parts))


def where_rows(is_chosen: Tensor, chosen: Any, other: Any) -> Any:
    """Observations or memories, the rows of ``chosen`` where ``(N,)`` is true, and of ``other`` elsewhere."""
    if isinstance(chosen, TensorDictBase):
        return chosen.where(is_chosen, other)
    return torch.where(is_chosen.reshape(-1, *[1] * (chosen.dim() - 1)), chosen, other)


class Rollout(TensorClass["shadow"]):
    """``T`` steps of ``N`` environments, batch size ``(T, N)``.

    ``next_values`` is the critic's value of the observation that truly followed: ``V(s[t+1])``, or ``V`` of the final
    observation where an episode was truncated. ``valid`` is false for steps in which the simulator only reset itself.
    """

    obs: Tensor
    actions: Tensor
    log_probs: Tensor
    values: Tensor
    next_values: Tensor
    rewards: Tensor
    terminated: Tensor
    truncated: Tensor
    valid: Tensor
    episode_starts: Tensor
    next_obs: Tensor = None
    extra: TensorDictBase = None

    @classmethod
    def allocate(cls, num_steps: int, obs: Observation, actions: Tensor, values: Tensor, **extra: Any) -> Rollout:
        """Preallocate for ``num_steps`` from one step's tensors, on their device and in their dtypes."""

        def per_step(dtype: torch.dtype) -> Tensor:
            return torch.zeros((num_steps, *values.shape), dtype=dtype, device=values.device)

        return cls(
            obs=stack_steps(num_steps, obs),
            actions=stack_steps(num_steps, actions),
            log_probs=per_step(values.dtype),
            values=per_step(values.dtype),
            next_values=per_step(values.dtype),
            rewards=per_step(values.dtype),
            terminated=per_step(torch.bool),
            truncated=per_step(torch.bool),
            valid=per_step(torch.bool),
            episode_starts=per_step(torch.bool),
            **extra,
            batch_size=[num_steps, values.shape[0]],
        )

    def flatten(self) -> Rollout:
        """The valid transitions in one row, batch size ``(<= T·N,)``; time-major."""
        return valid_rows(self, self.valid)


class RolloutWriter:
    """Writes ``rollout`` step by step; what is the same in all steps is looked up once."""

    def __init__(self, rollout: Rollout) -> None:
        self.rollout = rollout
        self._steps = {name: _steps_of(field) for name, field in rollout.items() if field is not None}

    def add(self, step: int, **fields: Any) -> None:
        """Copy the given fields of one step, ``(N, *shape)`` each, into the rollout."""
        for name, value in fields.items():
            _write(self._steps[name], step, value)


def _steps_of(field: Observation) -> Any:
    """A view of each step; of a ``TensorDict``, of each of its tensors."""
    if isinstance(field, TensorDictBase):
        return {key: _steps_of(value) for key, value in field.items()}
    has_array = field.device == torch.device("cpu") and field.dtype is not torch.bfloat16
    return field.numpy() if has_array else field.unbind(0)


def _write(steps: Any, step: int, value: Any) -> None:
    if type(steps) is np.ndarray:  # half the time of torch's copy of a few numbers
        steps[step] = value.detach().numpy() if value.requires_grad else value.numpy()
    elif isinstance(steps, dict):
        for key, part in steps.items():
            _write(part, step, value[key])
    else:
        steps[step].copy_(value)


class MemoryRollout(Rollout):
    """A rollout of a policy with memory: ``states`` is what it held *before* each step, ``(T, N, *shape)``."""

    states: Tensor = None


class PPOBatch(TensorClass["shadow"]):
    """Independent transitions, batch size ``(B,)``: what the clipped objective needs."""

    obs: Tensor
    actions: Tensor
    log_probs: Tensor
    advantages: Tensor
    returns: Tensor
    values: Tensor

    def generate_minibatches(
        self, num_epochs: int, minibatch_size: int, generator: torch.Generator | None = None
    ) -> Iterator[PPOBatch]:
        """Shuffle ``num_epochs`` times, each time yielding near-equal minibatches of at most ``minibatch_size``."""
        num_minibatches = -(-len(self) // minibatch_size)
        for _ in range(num_epochs):
            yield from shuffled_minibatches(self, num_minibatches, generator)


class ExtraBatch(PPOBatch):
    """Independent transitions with what else an agent learns from, a ``TensorDict`` of batch size ``(B,)``."""

    extra: TensorDictBase


class PPOSequenceBatch(TensorClass["shadow"]):
    """Whole environments for policies with memory, batch size ``(N,)``; every field but the state is ``(N, T, …)``.

    ``initial_state`` is what the policy held before the first step, ``(N, *shape)``. Steps where ``valid`` is false
    pass through the network, since the rollout's did too, but never reach the loss.
    """

    obs: Tensor
    actions: Tensor
    log_probs: Tensor
    advantages: Tensor
    returns: Tensor
    values: Tensor
    valid: Tensor
    episode_starts: Tensor
    initial_state: Tensor

    def cut(self, states: Tensor, length: int) -> PPOSequenceBatch:
        """Sequences of ``length`` steps, which divides ``T``: those of an environment one after another.

        ``states`` is what the policy held before each step of the rollout, ``(T, N, *shape)``. Gradients stop where a
        sequence begins: truncated backpropagation through time.
        """
        num_envs, num_steps = self.valid.shape
        parts = num_steps // length
        if parts == 1:
            return self
        fields = {
            name: field.reshape(num_envs * parts, length, *field.shape[2:])
            for name, field in self.items()
            if name != "initial_state"
        }
        begins = states[::length].transpose(0, 1)  # (N, parts, *shape)
        initial_state = begins.reshape(num_envs * parts, *begins.shape[2:])
        return type(self)(**fields, initial_state=initial_state, batch_size=[num_envs * parts])


class ExtraSequenceBatch(PPOSequenceBatch):
    """Whole environments with what else an agent learns from, a ``TensorDict`` of batch size ``(N, T)``."""

    extra: TensorDictBase


def valid_rows(batch: BatchT, valid: Tensor) -> BatchT:
    """A batch of two dimensions in one row, without what is not ``valid``; no copy where all is."""
    flat = batch.reshape(-1)
    return flat if bool(valid.all()) else flat[valid.reshape(-1)]


def shuffled_minibatches(
    batch: BatchT, num_minibatches: int, generator: torch.Generator | None = None
) -> Iterator[BatchT]:
    """One epoch: every row once, in ``num_minibatches`` parts whose sizes differ by at most one."""
    select = RowSelector(batch)
    for rows in shuffled_rows(len(batch), num_minibatches, generator):
        yield select(rows)


def shuffled_rows(num_rows: int, num_minibatches: int, generator: torch.Generator | None = None) -> tuple[Tensor, ...]:
    """The rows of each minibatch of one epoch, whose numbers differ by at most one."""
    return torch.randperm(num_rows, generator=generator).tensor_split(num_minibatches)


class RowSelector:
    """Rows of ``batch``, again and again: what is the same each time is looked up once."""

    def __init__(self, batch: TensorClass) -> None:
        self._kind, self._device = type(batch), batch.device
        self._fields = {name: field for name, field in batch.items() if field is not None}
        # where the numbers lie, as batches say no device of their own
        self._place = next(field.device for field in self._fields.values() if isinstance(field, Tensor))

    def __call__(self, rows: Tensor) -> Any:
        """The given rows, copied."""
        rows = rows.to(self._place)
        fields = {
            name: field.index_select(0, rows) if isinstance(field, Tensor) else field[rows]
            for name, field in self._fields.items()
        }
        return self._kind.from_tensordict(TensorDict(fields, batch_size=[len(rows)], device=self._device))
