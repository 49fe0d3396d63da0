"""The precision of a run that was not told one."""

from __future__ import annotations

import torch
from torch import nn

from ppo_lightning.models.encoders import learns_from_pictures

HALF = "bf16-mixed"


def default_precision(network: nn.Module, accelerator: object) -> str:
    """``bf16-mixed`` for networks that look at pictures, on hardware that multiplies bfloat16; else ``32-true``.

    It needs no scaling of losses, and takes a half to a third of the time (benchmarks/RESULTS.md).

    Args:
        network: what is trained.
        accelerator: as ``--trainer.accelerator`` names it.
    """
    return HALF if learns_from_pictures(network) and has_bfloat16(accelerator) else "32-true"


def has_bfloat16(accelerator: object) -> bool:
    """Whether what a run computes on has instructions for bfloat16; False also where that can't be told."""
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if accelerator == "cpu" or (accelerator == "auto" and not torch.backends.mps.is_available()):
        capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
        return any(is_there is True and "bf16" in name for name, is_there in capabilities.items())
    return False
