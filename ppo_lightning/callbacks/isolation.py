"""Playing beside training without touching it."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities.seed import isolate_rng


@contextlib.contextmanager
def beside_training(pl_module: Any, seed: int) -> Iterator[None]:
    """Modules in evaluation mode, and every global generator seeded anew; afterwards all is as it was.

    Module by module: a network may keep parts in evaluation mode while it trains (a frozen batch norm). Networks that
    draw random numbers when they act, and environments that draw from the global generators, would move training's.
    """
    modes = [(module, module.training) for module in pl_module.modules()]
    pl_module.eval()
    try:
        with isolate_rng():
            random.seed(seed)
            np.random.seed(seed % 2**32)
            torch.manual_seed(seed)
            yield
    finally:
        for module, mode in modes:
            module.training = mode
