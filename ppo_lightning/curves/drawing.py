"""Where matplotlib comes in, which training does not need."""

from __future__ import annotations

import importlib
from typing import Any

from ppo_lightning.core.errors import ConfigurationError


def drawing_module(name: str) -> Any:
    """A module of this package that imports matplotlib.

    Raises:
        ConfigurationError: it is not installed.
    """
    try:
        return importlib.import_module(f"ppo_lightning.curves.{name}")
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"Drawing needs matplotlib, and {error.name} is not installed: pip install 'ppo-lightning[plot]'."
        ) from error
