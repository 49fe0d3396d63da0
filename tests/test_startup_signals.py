"""SIGTERM before training has begun: the run ends, and leaves nothing behind."""

import signal
import time
from pathlib import Path

import pytest
from lightning.pytorch import Callback

from tests.test_faults import Run, slow

HALT = "--trainer.callbacks={class_path: tests.test_startup_signals.Halt, init_args: {where: %s}}"


class Halt(Callback):
    """Says that the start-up has come this far, and stays there."""

    def __init__(self, where):
        self.where = where
        self._halt("init")

    def _halt(self, where):
        if where == self.where:
            Path(f"at_{where}").touch()
            time.sleep(60)

    def setup(self, trainer, pl_module, stage):
        self._halt("setup")

    def on_fit_start(self, trainer, pl_module):
        self._halt("fit_start")


def check_ended(run):
    """By the signal itself, or in order with its exit code; no traceback."""
    assert run.ended(30) in (-signal.SIGTERM, 143)
    assert "Traceback" not in run.err.read_text()
    assert not list(Path().glob("**/*.ckpt*"))


@pytest.mark.parametrize("where", [None, "init", "setup", "fit_start"])
def test_sigterm_during_the_start_up(where):
    with Run(*slow(), *([HALT % where] if where else [])) as run:
        if where is None:
            time.sleep(0.5)  # it imports
        else:
            run.until(Path(f"at_{where}").exists)
        run.process.send_signal(signal.SIGTERM)
        check_ended(run)
