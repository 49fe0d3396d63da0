"""What the processes that train together tell each other. With one process nothing is sent."""

from __future__ import annotations

import torch
import torch.distributed as dist
from lightning.pytorch import Trainer
from torch import Tensor


def gather_over_ranks(trainer: Trainer, x: Tensor) -> Tensor:
    """``x`` of every rank, ``(W, *shape)`` on the CPU; shapes must be the same everywhere.

    All ranks must call this the same number of times in the same order.
    """
    if trainer.world_size == 1:
        return x.cpu().unsqueeze(0)
    own = x.to(trainer.strategy.root_device).contiguous()  # where the process group can reach it
    parts = [torch.empty_like(own) for _ in range(trainer.world_size)]
    dist.all_gather(parts, own)
    return torch.stack(parts).cpu()


def gather_rows_over_ranks(trainer: Trainer, x: Tensor) -> Tensor:
    """The rows of every rank's ``x``, one rank after another, on the CPU; ranks may have other numbers of rows.

    All ranks must call this the same number of times in the same order.
    """
    counts = gather_over_ranks(trainer, torch.tensor(len(x))).tolist()
    padded = x.new_zeros(max(counts), *x.shape[1:])
    padded[: len(x)] = x
    return torch.cat([part[:count] for part, count in zip(gather_over_ranks(trainer, padded), counts)])


def mean_over_ranks(trainer: Trainer, x: Tensor) -> Tensor:
    """The mean over ranks, of each number. Lightning's own ``reduce`` waits at a barrier first: twice the time."""
    if trainer.world_size == 1:
        return x
    total = x.detach().clone()
    dist.all_reduce(total)
    return total / trainer.world_size
