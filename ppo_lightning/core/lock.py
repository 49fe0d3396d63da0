"""One process at a time for a folder."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

try:
    import fcntl
except ImportError:  # a system without POSIX locks, where everyone gets it
    fcntl = None  # type: ignore[assignment]

LOCK_NAME = ".lock"


class FolderLock:
    """A file in a folder that one process at a time has; one that has ended, however it did, has it no more.

    A POSIX lock, which processes that are forked do not inherit: simulators may outlive a run that is killed.

    Args:
        folder: made if it is missing.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / LOCK_NAME
        self._file: int | None = None

    def take(self) -> bool:
        """Whether this process has it now. A file system without locks gives it to everyone."""
        while self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):  # who had it has just removed the folder
                file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
                if not _lock(file):
                    os.close(file)
                    return False
                if self._is_in_place(file):
                    self._file = file
                else:
                    os.close(file)
        return True

    def release(self) -> None:
        """Let others have it, and remove the folder if nothing else is in it."""
        if self._file is None:
            return
        with contextlib.suppress(OSError):
            self._path.unlink()
            self._path.parent.rmdir()
        os.close(self._file)
        self._file = None

    def _is_in_place(self, file: int) -> bool:
        """Not a file that who had it before has removed."""
        try:
            return os.path.samestat(os.fstat(file), os.stat(self._path))
        except FileNotFoundError:
            return False


def _lock(file: int) -> bool:
    if fcntl is None:
        return True
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # what another process's lock is, by the system
        return False
    except OSError:
        return True
    return True
