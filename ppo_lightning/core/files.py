"""Folders that results are written to."""

from __future__ import annotations

import os
from pathlib import Path

from ppo_lightning.core.errors import ConfigurationError


def make_writable_folder(folder: Path, flag: str, named: Path | None = None) -> None:
    """Make ``folder`` if it is missing.

    Raises:
        ConfigurationError: it cannot be made or written; names ``flag`` with ``named``, by default the folder.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        reason = "" if os.access(folder, os.W_OK | os.X_OK) else "Permission denied"
    except OSError as error:
        reason = error.strerror or str(error)
    if reason:
        raise ConfigurationError(f"{flag}={named or folder} cannot be written ({reason}): name a folder that can.")
