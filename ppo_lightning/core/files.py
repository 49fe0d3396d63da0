"""Files and folders that results are written to."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from ppo_lightning.core.errors import ConfigurationError


def reason_of(error: OSError) -> str:
    """Why a file cannot be used, without its name: "No space left on device"."""
    return error.strerror or str(error) or type(error).__name__


def make_writable_folder(folder: Path, flag: str, named: Path | None = None) -> None:
    """Make ``folder`` if it is missing.

    Raises:
        ConfigurationError: it cannot be made or written; names ``flag`` with ``named``, by default the folder.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        reason = "" if os.access(folder, os.W_OK | os.X_OK) else "Permission denied"
    except OSError as error:
        reason = reason_of(error)
    if reason:
        raise ConfigurationError(f"{flag}={named or folder} cannot be written ({reason}): name a folder that can.")


def check_file(path: Path, flag: str = "--out") -> None:
    """Raise :class:`ConfigurationError` where a folder has the file's name, or it can't be made; names ``flag``."""
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        reason = "it is a folder" if path.is_dir() else f"{folder} is {'read-only' if folder.is_dir() else 'a file'}"
        raise ConfigurationError(f"{flag}={path} cannot be written ({reason}): name a file in a folder that can.")


@contextlib.contextmanager
def written_whole(path: Path, flag: str = "--out") -> Iterator[Path]:
    """A file beside ``path`` to write, which takes its place once all went well; its folder is made if it is missing.

    Raises:
        ConfigurationError: nothing can be written there, or no more; names ``flag``. A file that was there stays.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.touch()
        yield part
        part.replace(path)
    except OSError as error:
        raise ConfigurationError(
            f"{flag}={path} cannot be written ({reason_of(error)}): name a file in a folder that can."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
