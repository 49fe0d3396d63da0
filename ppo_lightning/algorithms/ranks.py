"""Training on several ranks as if on one: what each counts, what may go unused, and whether all are the same."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn

from ppo_lightning.core.agent import Batch
from ppo_lightning.core.errors import ConfigurationError, TrainingError
from ppo_lightning.core.ranks import gather_over_ranks
from ppo_lightning.core.rollout import PPOSequenceBatch
from ppo_lightning.functional.moments import moments_of, pool_moments
from ppo_lightning.models.normalization import FullPrecision

_UNUSED = "find_unused_parameters"
_HASH_BITS = 24  # integers that float32 holds exactly


@dataclass
class SpreadMinibatches:
    """An iteration's minibatches, each spread over all ranks.

    Attributes:
        weights: of this rank's mean in each. Ranks' gradients are averaged, so ranks with fewer transitions (after
            steps that only reset) must count less: their share of all transitions, times the number of ranks.
        advantages: count, mean and variance over all ranks, ``(minibatches, 3)``.
    """

    weights: list[float]
    advantages: Tensor


def look_at_ranks(trainer: Trainer, batch: Batch, minibatches: Sequence[Tensor]) -> SpreadMinibatches:
    """Ask all ranks about all of an iteration's minibatches at once: advantages are known before the update.

    Raises:
        TrainingError: on every rank, for a minibatch without a transition on any.
    """
    own = torch.stack([advantage_moments(batch, rows.to(batch.advantages.device)) for rows in minibatches])
    pooled = pool_moments(gather_over_ranks(trainer, own))
    counts, totals = own[:, 0].cpu(), pooled[:, 0]
    check_not_empty(totals)
    return SpreadMinibatches((counts * trainer.world_size / totals).tolist(), pooled.to(own.device))


def check_not_empty(sizes: Tensor) -> None:
    """Raise :class:`TrainingError` for a minibatch without transitions."""
    if not bool((sizes > 0).all()):
        raise TrainingError(
            f"A rollout left {int((sizes == 0).sum())} of {len(sizes)} minibatches without a transition, since its "
            "steps only reset environments: lower --data.num_minibatches, or raise --data.num_steps."
        )


def advantage_moments(batch: Batch, rows: Tensor | slice = slice(None)) -> Tensor:
    """Count, mean and variance ``(3,)`` of the advantages of these rows' transitions."""
    advantages = batch.advantages[rows]
    return moments_of(advantages[batch.valid[rows]] if isinstance(batch, PPOSequenceBatch) else advantages)


def allow_unused_parameters(trainer: Trainer) -> None:
    """Let DDP wait for no gradient of parameters that the loss leaves out.

    Raises:
        ConfigurationError: the strategy was told to wait for them.
    """
    strategy: Any = trainer.strategy
    if not isinstance(strategy, DDPStrategy):
        return
    if strategy._ddp_kwargs.setdefault(_UNUSED, True) is False:
        raise ConfigurationError(
            f"--trainer.strategy with {_UNUSED}=false waits for a gradient of every parameter, but this agent has "
            "times in which only a part learns (--model.critic_pretrain_steps or --model.max_clip_fraction): use "
            "--trainer.strategy=ddp."
        )


def leave_statistics_alone(module: nn.Module) -> None:
    """Tell DDP not to send running statistics, and what never changes, from rank to rank with every minibatch.

    Statistics are those of all ranks already.
    """
    module._ddp_params_and_buffers_to_ignore = [  # type: ignore[assignment]
        f"{prefix}.{name}"
        for prefix, part in module.named_modules()
        if isinstance(part, FullPrecision)
        for name, _ in part.named_buffers(recurse=False)
    ]


def fix_order_of_sums(trainer: Trainer) -> None:
    """Let DDP on the CPU lay its buckets of gradients out now, from nothing but the order of the parameters.

    It would do so again after the first backward pass of each process. Where a number lies decides in which order
    three ranks or more add it up (two have but one order), so a resumed run would differ in its last bits.
    """
    reducer: Any = getattr(trainer.strategy.model, "reducer", None)
    is_needed = trainer.world_size > 2 and trainer.strategy.root_device.type == "cpu"
    if is_needed and hasattr(reducer, "_push_all_rebuilt_params") and hasattr(reducer, "_rebuild_buckets"):
        reducer._push_all_rebuilt_params()
        reducer._rebuild_buckets()


def parameter_hash(trainer: Trainer, module: nn.Module, env_steps: int) -> int:
    """A number of 24 bits that changes with any bit of any parameter or buffer.

    Raises:
        TrainingError: on every rank, if theirs differ.
    """
    digest = hashlib.blake2b(digest_size=7)
    for tensor in [*module.parameters(), *module.buffers()]:
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    own = int.from_bytes(digest.digest(), "big")
    by_rank = gather_over_ranks(trainer, torch.tensor([own])).flatten().tolist()
    others = [str(rank) for rank, other in enumerate(by_rank) if other != by_rank[0]]
    if others:
        raise TrainingError(
            f"The parameters or buffers of rank {', '.join(others)} differ from those of rank 0 at {env_steps} "
            "environment steps: something changes them on one rank alone (a callback, or batch norm without "
            "--trainer.sync_batchnorm=true); training stopped, since every rank would learn something else."
        )
    return own % 2**_HASH_BITS
