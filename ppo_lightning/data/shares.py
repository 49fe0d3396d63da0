"""Groups of environments from which every minibatch takes an equal part, however they lie on ranks."""

from __future__ import annotations

import torch
from torch import Tensor

from ppo_lightning.core.errors import ConfigurationError


def shares_of_a_rank(
    minibatch_shares: int | None,
    world_size: int,
    num_envs: int,
    num_steps: int,
    num_minibatches: int,
    has_memory: bool = False,
) -> int:
    """How many shares each rank has, of ``minibatch_shares`` over all of them; by default one.

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
    if has_memory and envs % num_minibatches:
        raise ConfigurationError(
            f"{of_share} cannot be divided into --data.num_minibatches={num_minibatches}: the minibatches of a network "
            "with memory are whole environments."
        )
    if envs * num_steps % num_minibatches:
        raise ConfigurationError(
            f"{of_share} × --data.num_steps={num_steps} = {envs * num_steps} transitions cannot be divided into "
            f"--data.num_minibatches={num_minibatches} equal parts: change one of them."
        )
    return shares


def rows_of_shares(valid: Tensor, has_memory: bool, num_shares: int) -> list[Tensor]:
    """The rows of a batch that belong to each share, in their order.

    Args:
        valid: ``(T, N)`` bool, of the rollout that the batch was prepared from.
        has_memory: the batch's rows are environments, else the valid transitions.
        num_shares: each has ``N / num_shares`` environments, in their order.
    """
    num_envs = valid.shape[1]
    share_of_env = torch.arange(num_envs) // (num_envs // num_shares)
    share_of_row = share_of_env if has_memory else share_of_env.expand(valid.shape)[valid.cpu()]
    return [(share_of_row == share).nonzero().squeeze(1) for share in range(num_shares)]
