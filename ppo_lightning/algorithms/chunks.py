"""Large minibatches in chunks, whose gradients add up to those of the whole: for less memory."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from ppo_lightning.algorithms.objective import MinibatchLoss
from ppo_lightning.core.agent import Batch
from ppo_lightning.core.errors import ConfigurationError, check_range
from ppo_lightning.core.rollout import PPOSequenceBatch
from ppo_lightning.models.encoders import learns_from_pictures

AUTO = "auto"
_FLAG = "--model.chunk_size"
_ROWS = 256


def chunks_of(batch: Batch, size: int | None) -> list[tuple[Batch, float]]:
    """Parts of a minibatch, and the share of its transitions that each has: what the means over it count.

    Args:
        batch: ``B`` transitions, or ``N`` sequences of ``T``.
        size: the most transitions of a part, of which sequences stay whole; None for one part.

    Returns:
        Parts of about the same size; the whole batch as it is where it has no more than ``size``.
    """
    if size is None:
        return [(batch, 1.0)]
    steps = batch.valid.shape[1] if isinstance(batch, PPOSequenceBatch) else 1
    rows = max(1, size // steps)
    if len(batch) <= rows:
        return [(batch, 1.0)]
    parts = torch.arange(len(batch)).tensor_split(-(-len(batch) // rows))
    bounds = [(int(part[0]), int(part[-1]) + 1) for part in parts]
    if isinstance(batch, PPOSequenceBatch):
        valid = batch.valid.sum(dim=1).cpu()
        counts = [int(valid[begin:end].sum()) for begin, end in bounds]
    else:
        counts = [end - begin for begin, end in bounds]
    total = sum(counts)  # 0 where only other ranks have some, and the minibatch counts nothing here
    return [(batch[begin:end], count / max(1, total)) for (begin, end), count in zip(bounds, counts)]


def mean_of(chunks: list[tuple[MinibatchLoss, float]]) -> MinibatchLoss:
    """What a minibatch's chunks, each with its share, say of the whole; without their graphs."""
    losses = [loss for loss, _ in chunks]
    first = losses[0]

    def mean(tensors: list[Tensor]) -> Tensor:
        return sum(share * tensor.detach() for tensor, (_, share) in zip(tensors, chunks))  # type: ignore[return-value]

    actors = [loss.actor for loss in losses if loss.actor is not None]
    ratios = [loss.ratio.detach() for loss in losses if loss.ratio is not None]
    return MinibatchLoss(
        rest=mean([loss.rest for loss in losses]),
        parts={name: mean([loss.parts[name] for loss in losses]) for name in first.parts},
        actor=mean(actors) if actors else None,
        ratio=torch.cat(ratios) if ratios else None,
        name=first.name,
    )


def check_chunk_size(size: int | str | None) -> None:
    """Raise :class:`ConfigurationError` for what is no size."""
    if isinstance(size, str) and size != AUTO:
        raise ConfigurationError(f"{_FLAG} must be a number, {AUTO} or null, not {size}.")
    if not isinstance(size, (str, type(None))):
        check_range(_FLAG, size, 1)


def chunk_size_for(
    size: int | str | None, network: nn.Module, options: dict[str, bool], device: torch.device
) -> int | None:
    """The size that a run's flag comes to.

    Args:
        size: as asked for; ``auto`` is 256 on the CPU for networks that look at pictures: as fast as whole minibatches
            there, in a quarter of the memory (benchmarks/RESULTS.md). Elsewhere minibatches stay whole.
        network: must treat each row by itself.
        options: flags that look at a whole minibatch before its gradient is known, and whether they are set.
        device: of the update.

    Raises:
        ConfigurationError: a size was asked for, and a loss over chunks would not be that over the minibatch.
    """
    if size is None:
        return None
    reasons = [
        f"{flag} looks at whole minibatches, which {_FLAG}={size} cuts: leave one of them out, or raise "
        "--data.num_minibatches instead."
        for flag, is_set in options.items()
        if is_set
    ]
    reasons += [
        f"--model.network={type(network).__name__} has batch norm ({name}), whose statistics would be those of "
        f"chunks: leave {_FLAG} out."
        for name, part in network.named_modules()
        if isinstance(part, nn.modules.batchnorm._BatchNorm)
    ]
    if size == AUTO:
        is_due = learns_from_pictures(network) and device.type == "cpu" and not reasons
        return _ROWS if is_due else None
    if reasons:
        raise ConfigurationError(reasons[0])
    return cast(int, size)
