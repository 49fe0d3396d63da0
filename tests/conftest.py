import os
import signal
from unittest import mock

import hypothesis
import pytest
import torch

torch.set_num_threads(1)
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # of a shell that started the tests in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)  # or every command that they run would ignore it, too
hypothesis.settings.register_profile("tests", deadline=None, derandomize=True, max_examples=60)
hypothesis.settings.load_profile("tests")


ALONE = "ranks/", "test_faults", "test_startup_signals", "test_kill_loop", "test_stopped_run"


def pytest_collection_modifyitems(items):
    """Tests of several processes, which look at the clock and for free ports, run one after another."""
    for item in items:
        place = item.path.relative_to(item.config.rootpath / "tests").as_posix()
        if place.startswith(ALONE) or "ranks" in item.name:
            item.add_marker(pytest.mark.xdist_group("processes"))


@pytest.fixture(autouse=True)
def _same_global_seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def _own_environment():
    """Data-parallel training in this process names its rank in the environment, where later tests' ranks look."""
    with mock.patch.dict(os.environ):
        yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
