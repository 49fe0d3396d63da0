"""The guard at the entry of every formula."""

from __future__ import annotations

from torch import Tensor


def check_same_shape(**tensors: Tensor) -> None:
    """Raise ``ValueError`` naming both shapes unless all are equal.

    ``(B,) - (B, 1)`` broadcasts to ``(B, B)`` without a word: the classic silent PPO bug.
    """
    (first_name, first), *rest = tensors.items()
    for name, tensor in rest:
        if tensor.shape != first.shape:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)} and {first_name} {tuple(first.shape)}: they must be equal; "
                "squeeze a critic's last dimension at its source."
            )
