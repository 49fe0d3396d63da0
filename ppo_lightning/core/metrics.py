"""Logging on the one x axis of this package: environment steps, as exact integers."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import Logger

from ppo_lightning.core.errors import TrainingError
from ppo_lightning.core.files import reason_of

_INTERRUPTS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)]


def log_metrics(trainer: Trainer, metrics: Mapping[str, float], env_steps: int) -> None:
    """Give ``metrics`` to every logger at ``env_steps``, and to the callbacks that monitor them.

    ``self.log`` would count optimiser steps, in float32 where told otherwise: exact only up to 2²⁴.
    """
    with _interrupts_held():
        for logger in trainer.loggers:
            try:
                logger.log_metrics(dict(metrics), step=env_steps)
            except Exception as error:
                _raise_if_not_written(logger, error)
                raise
    trainer.callback_metrics.update({name: torch.tensor(value) for name, value in metrics.items()})


def _raise_if_not_written(logger: Logger, error: BaseException) -> None:
    """Raise :class:`TrainingError` if an error of the file system is the cause: a full disk, say.

    TensorBoard writes in a thread of its own and tells of it at a later row; its logger then blames the value.
    """
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__cause__ or cause.__context__
    if cause is not None:
        where = getattr(logger, "log_dir", None) or logger.save_dir
        raise TrainingError(
            f"{type(logger).__name__} cannot write to {where} ({reason_of(cause)}): make it writable or free "
            "some space, then continue with --resume=auto or --ckpt_path from the last checkpoint."
        ) from error


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Let Ctrl-C and other signals wait: what their handlers raise in the middle of a row would leave half of it, and
    TensorBoard's queue waiting for ever.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {signum: handler for signum in _INTERRUPTS if callable(handler := signal.getsignal(signum))}
    received: list[tuple[int, Any]] = []
    for signum in handlers:
        signal.signal(signum, lambda *call: received.append(call))
    try:
        yield
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
        for signum, frame in received:
            handlers[signum](signum, frame)
