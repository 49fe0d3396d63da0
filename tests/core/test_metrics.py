import errno
import os
import signal
from types import SimpleNamespace

import pytest
from lightning.pytorch.loggers import Logger

from ppo_lightning import TrainingError
from ppo_lightning.core.metrics import log_metrics


class RecordingLogger:
    def __init__(self):
        self.calls = []

    def log_metrics(self, metrics, step):
        self.calls.append((metrics, step))


def test_every_logger_gets_the_exact_environment_step():
    trainer = SimpleNamespace(loggers=[RecordingLogger(), RecordingLogger()], callback_metrics={"old": 1})
    steps = 2**24 + 1  # float32 would round it
    log_metrics(trainer, {"rollout/return_mean": 2.5}, steps)
    for logger in trainer.loggers:
        assert logger.calls == [({"rollout/return_mean": 2.5}, steps)]
        assert type(logger.calls[0][1]) is int


def test_callbacks_can_monitor_the_metrics():
    trainer = SimpleNamespace(loggers=[], callback_metrics={"old": 1})
    log_metrics(trainer, {"rollout/return_mean": 2.5}, 7)
    assert trainer.callback_metrics["rollout/return_mean"].item() == 2.5
    assert trainer.callback_metrics["old"] == 1


class Interrupted:
    """A logger that a signal hits in the middle of a row."""

    def __init__(self, signum):
        self.signum, self.rows = signum, []

    def log_metrics(self, metrics, step):
        signal.raise_signal(self.signum)
        self.rows.append((step, metrics))


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_until_a_row_is_whole(signum):
    trainer = SimpleNamespace(loggers=[Interrupted(signum), Interrupted(signum)], callback_metrics={})
    before = signal.signal(signum, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            log_metrics(trainer, {"a": 1.0}, 7)
        assert signal.getsignal(signum) is signal.default_int_handler
    finally:
        signal.signal(signum, before)
    assert [logger.rows for logger in trainer.loggers] == [[(7, {"a": 1.0})]] * 2


class Blaming(Logger):
    """As Lightning's TensorBoardLogger, blames the value for what its writer raised."""

    name, version, save_dir = "blaming", 0, "somewhere"

    def log_metrics(self, metrics, step=None):
        try:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise ValueError("you tried to log 1.0 which is currently not supported") from error

    def log_hyperparams(self, params):
        """None."""


def test_a_full_disk_behind_a_loggers_error_is_named():
    trainer = SimpleNamespace(loggers=[Blaming()], callback_metrics={})
    with pytest.raises(TrainingError, match=r"^Blaming cannot write to somewhere \(No space left on device\): "):
        log_metrics(trainer, {"a": 1.0}, 1)
