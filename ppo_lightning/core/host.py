"""What numpy works out in the place of torch, where a call of torch takes longer than what it computes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray[Any, Any]

MOST_OF_PRODUCT = 2**18
"""Multiplications of a product of matrices beyond which numpy takes several threads.

Their number changes the last bits: a run would not be the same on machines of one core and of two.
"""


def is_on_host(x: Tensor) -> bool:
    """Whether numpy computes with a tensor's memory as torch does: on the CPU, in 32 or 64 bits."""
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)
