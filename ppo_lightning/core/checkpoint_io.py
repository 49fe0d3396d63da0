"""Checkpoint files that are there as a whole or not at all."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import platform
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Optional, Union

import torch
from fsspec.implementations.local import LocalFileSystem  # type: ignore[import-untyped]
from lightning.fabric.utilities.cloud_io import get_filesystem
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.io import TorchCheckpointIO

from ppo_lightning.core.archive import DamagedError, seal, seal_of
from ppo_lightning.core.checkpoint import read_checkpoint
from ppo_lightning.core.errors import ConfigurationError

_DAY = 86_400.0  # seconds

_lock = threading.RLock()  # may be taken twice by one thread: a signal's handler saves too
_numbers = itertools.count()
_being_written: set[str] = set()


def write_checkpoint(checkpoint: dict[str, Any], path: Union[str, Path]) -> None:
    """Save ``checkpoint``, sealed by a digest, from any thread: whatever happens, ``path`` is a whole file.

    Raises:
        OSError: it cannot be written; the file that was there stays as it was, and nothing else is left.
    """
    path = Path(path)
    archive = io.BytesIO()
    torch.save(checkpoint, archive)
    seal(archive)
    with _lock:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_left_over(path)
        part = path.with_name(f".{path.name}.{platform.node()[:60]}.{os.getpid()}.{next(_numbers)}.part")
        _being_written.add(part.name)
        try:
            with part.open("wb") as file, archive.getbuffer() as content:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        finally:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
            _being_written.discard(part.name)
        _sync_folder(path.parent)


def _remove_left_over(path: Path) -> None:
    """What killed processes left of ``path``; a process on another machine can't be asked, so its file may be old."""
    prefix = f".{path.name}."
    for part in path.parent.iterdir():
        if part.name.startswith(prefix) and part.suffix == ".part" and part.name not in _being_written:
            with contextlib.suppress(OSError, ValueError):
                host, pid, _ = part.name[len(prefix) : -len(".part")].rsplit(".", 2)
                is_dead = host == platform.node()[:60] and not _is_another_alive(int(pid))
                if is_dead or time.time() - part.stat().st_mtime > _DAY:
                    part.unlink()


def _is_another_alive(pid: int) -> bool:
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # of another user
        pass
    return True


def _sync_folder(folder: Path) -> None:
    """Let the new name survive a power cut, where folders can be synchronised."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class CheckpointFileIO(TorchCheckpointIO):
    """Lightning's way to its checkpoint files: whole, sealed, and read without running code.

    Places that are no files (``s3://…``) are Lightning's to write and read.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Union[str, Path], storage_options: Optional[Any] = None
    ) -> None:
        """Write the file as a whole."""
        local = _local_path(path)
        if local is None or storage_options is not None:
            super().save_checkpoint(checkpoint, path, storage_options)
        else:
            write_checkpoint(checkpoint, local)

    def load_checkpoint(
        self,
        path: Union[str, Path],
        map_location: Optional[Callable] = lambda storage, _: storage,
        weights_only: Optional[bool] = None,
    ) -> dict[str, Any]:
        """Onto the CPU, and always as if ``weights_only=True``: the Trainer moves what it needs to the device."""
        local = _local_path(path)
        if local is None:
            return super().load_checkpoint(path, map_location, weights_only=True)
        return read_checkpoint(local)


def _local_path(path: Union[str, Path]) -> Path | None:
    filesystem = get_filesystem(path)
    if not isinstance(filesystem, LocalFileSystem):
        return None
    return Path(filesystem._strip_protocol(str(path)))


def install_checkpoint_io(trainer: Trainer) -> None:
    """Take the place of Lightning's own plugin; one of the user's stays."""
    strategy: Any = trainer.strategy
    if type(strategy.checkpoint_io) is TorchCheckpointIO:
        strategy.checkpoint_io = CheckpointFileIO()


def check_same_checkpoint(trainer: Trainer) -> None:
    """Raise where ranks continue from different files, which another machine's folder may hold; call on all ranks."""
    if trainer.world_size == 1 or not torch.distributed.is_initialized():
        return
    own = (str(trainer.ckpt_path), _identity(trainer.ckpt_path)) if trainer.ckpt_path else ("no checkpoint", None)
    every: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(every, own)
    for rank, (path, identity) in enumerate(every):
        if identity != every[0][1]:
            raise ConfigurationError(
                f"The ranks continue from different files: rank 0 from {every[0][0]} and rank {rank} from {path}; "
                "let --ckpt_path or --resume name one file that all machines see."
            )


def _identity(path: Any) -> Any:
    local = _local_path(path)
    if local is None:
        return str(path)
    with contextlib.suppress(OSError, DamagedError), local.open("rb") as file:
        return seal_of(file) or local.stat().st_size
    return str(path)
