"""Playing beside training without touching it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from lightning.pytorch.utilities.seed import isolate_rng

from ppo_lightning.data.seeding import seed_global_generators


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
            seed_global_generators(seed)
            yield
    finally:
        for module, mode in modes:
            module.training = mode
