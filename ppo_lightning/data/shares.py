"""Groups of environments from which every minibatch takes an equal part, however they lie on ranks."""

from __future__ import annotations

import torch
from torch import Tensor

from ppo_lightning.core.errors import ConfigurationError, check_range


def shares_of_a_rank(
    minibatch_shares: int | None,
    world_size: int,
    num_envs: int,
    num_steps: int,
    num_minibatches: int,
    sequences: int | None = None,
) -> int:
    """How many shares each rank has, of ``minibatch_shares`` over all of them; by default one.

    ``sequences`` are those of each environment that minibatches are made of; None for single transitions.

    Raises:
        ConfigurationError: they, or minibatches of each, can't be cut into equal parts.
    """
    shares, flag = 1, f"--data.minibatch_shares={minibatch_shares}"
    if minibatch_shares is not None:
        if minibatch_shares % world_size:
            raise ConfigurationError(
                f"{flag} cannot be divided between {world_size} ranks: choose a multiple of {world_size}, or other "
                "--trainer.devices."
            )
        shares = minibatch_shares // world_size
        if num_envs % shares:
            raise ConfigurationError(
                f"{flag} are {shares} of each rank, into which its --data.num_envs={num_envs} environments cannot be "
                "divided: change one of the two."
            )
    envs = num_envs // shares
    of_share = f"--data.num_envs={num_envs}" if minibatch_shares is None else f"{flag}: a share's {envs} environments"
    if sequences is not None and envs * sequences % num_minibatches:
        of_each = "whole environments" if sequences == 1 else f"whole sequences, {sequences} of each environment"
        raise ConfigurationError(
            f"{of_share} cannot be divided into --data.num_minibatches={num_minibatches}: the minibatches of a network "
            f"with memory are {of_each}; change one of them, or --data.sequence_length."
        )
    if envs * num_steps % num_minibatches:
        raise ConfigurationError(
            f"{of_share} × --data.num_steps={num_steps} = {envs * num_steps} transitions cannot be divided into "
            f"--data.num_minibatches={num_minibatches} equal parts: change one of them."
        )
    return shares


def rows_of_shares(valid: Tensor, sequences: int | None, num_shares: int) -> list[Tensor]:
    """The rows of a batch that belong to each share, in their order.

    Args:
        valid: ``(T, N)`` bool, of the rollout that the batch was prepared from.
        sequences: that the batch has of each environment, one after another; None where its rows are the valid
            transitions.
        num_shares: each has ``N / num_shares`` environments, in their order.
    """
    num_envs = valid.shape[1]
    share_of_env = torch.arange(num_envs) // (num_envs // num_shares)
    if sequences is None:
        share_of_row = share_of_env.expand(valid.shape)[valid.cpu()]
    else:
        share_of_row = share_of_env.repeat_interleave(sequences)
    return [(share_of_row == share).nonzero().squeeze(1) for share in range(num_shares)]


def check_sequence_length(sequence_length: int | None, num_steps: int) -> None:
    """Raise :class:`ConfigurationError` where rollouts can't be cut into sequences of this length."""
    if sequence_length is None:
        return
    check_range("--data.sequence_length", sequence_length, 1)
    if num_steps % sequence_length:
        raise ConfigurationError(
            f"--data.num_steps={num_steps} cannot be cut into sequences of --data.sequence_length={sequence_length}: "
            "choose a divisor."
        )


def sequences_of_an_env(sequence_length: int | None, num_steps: int, has_memory: bool) -> int | None:
    """How many sequences a rollout has of each environment; None for a network without memory.

    Raises:
        ConfigurationError: a length for a network that has no sequences.
    """
    if has_memory:
        return 1 if sequence_length is None else num_steps // sequence_length
    if sequence_length is not None:
        raise ConfigurationError(
            f"--data.sequence_length={sequence_length} is for networks with memory, and --model.network has none: "
            "leave it out, or set --model.network.core."
        )
    return None
