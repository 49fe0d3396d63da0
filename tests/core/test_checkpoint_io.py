"""Saves that fail, are killed or meet each other: the file of before stays, and nothing else is left."""

import errno
import functools
import http.server
import os
import pickle
import platform
import signal
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from ppo_lightning import ConfigurationError
from ppo_lightning.core.checkpoint import read_checkpoint
from ppo_lightning.core.checkpoint_io import CheckpointFileIO, write_checkpoint
from tests.commands import REPOSITORY
from tests.runs import make_data, make_ppo, make_trainer


def checkpoint(number=0, numel=1000):
    return {
        "ppo_lightning_format": 2,
        "state_dict": {"weight": torch.full((numel,), float(number))},
        "RolloutDataModule": {"env_steps": number},
    }


def number_in(path):
    """Of a file that is whole."""
    loaded = read_checkpoint(path)
    number = loaded["RolloutDataModule"]["env_steps"]
    assert torch.equal(loaded["state_dict"]["weight"], checkpoint(number)["state_dict"]["weight"])
    return number


def test_others_read_the_file_too(tmp_path):
    path = tmp_path / "deep/er/last.ckpt"
    write_checkpoint(checkpoint(3), path)
    assert torch.load(path, weights_only=True)["RolloutDataModule"] == {"env_steps": 3}
    assert torch.load(path, weights_only=True, mmap=True)["state_dict"]["weight"][-1] == 3
    assert zipfile.ZipFile(path).comment.startswith(b"ppo-lightning sha256 ")
    assert os.listdir(path.parent) == ["last.ckpt"]


@pytest.mark.slow
def test_an_archive_of_many_records_is_sealed_too(tmp_path):
    """More than 65,535, so that the archive has other ends than small ones (zip64)."""
    tensors = {str(number): torch.tensor(number) for number in range(66_000)}
    write_checkpoint({"ppo_lightning_format": 2, "state_dict": tensors}, tmp_path / "a.ckpt")
    assert read_checkpoint(tmp_path / "a.ckpt")["state_dict"] == tensors


@pytest.fixture
def tiny_disk(tmp_path):
    """A file system of 64 kB."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if mounted.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_leaves_the_file_of_before(tiny_disk):
    path = tiny_disk / "last.ckpt"
    write_checkpoint(checkpoint(1), path)
    before = path.read_bytes()
    for numel in (20_000, 15_000):  # more than the disk holds, and more than is left of it
        with pytest.raises(OSError, match="No space left") as raised:
            write_checkpoint(checkpoint(2, numel), path)
        assert raised.value.errno == errno.ENOSPC
        assert path.read_bytes() == before
        assert os.listdir(tiny_disk) == ["last.ckpt"]
    assert number_in(path) == 1
    write_checkpoint(checkpoint(3), path)
    assert number_in(path) == 3


LIMITED = """
import resource, sys
from tests.core.test_checkpoint_io import checkpoint, write_checkpoint
write_checkpoint(checkpoint(1), "last.ckpt")
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    write_checkpoint(checkpoint(2, 10_000), "last.ckpt")
except OSError as error:
    print(error.strerror)
"""


def child(code, *args):
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", code, *args], env=environment, stdout=subprocess.PIPE, text=True)


def test_a_quota_leaves_the_file_of_before(tmp_path):
    out, _ = child(LIMITED).communicate(timeout=60)
    assert out == "File too large\n"
    assert os.listdir(tmp_path) == ["last.ckpt"]
    assert number_in("last.ckpt") == 1


def test_a_process_killed_at_any_moment_leaves_a_whole_file(tmp_path):
    """Twenty kills of the process that saves; the file is what was saved last, or what was being saved."""
    rng, left_over = np.random.default_rng(0), 0
    for _ in range(20):
        pid = os.fork()
        if not pid:
            saved, number = os.open("saved", os.O_WRONLY | os.O_CREAT), 0
            while True:
                write_checkpoint(checkpoint(number), "last.ckpt")
                os.pwrite(saved, number.to_bytes(8, "little"), 0)
                number += 1
        while not Path("saved").exists() or Path("saved").stat().st_size < 8:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.05))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        saved = int.from_bytes(Path("saved").read_bytes(), "little")
        assert number_in("last.ckpt") in (saved, saved + 1)
        left_over += len(os.listdir()) - 2
        os.unlink("saved")
    assert left_over > 0  # some did hit a save
    write_checkpoint(checkpoint(), "last.ckpt")
    assert os.listdir() == ["last.ckpt"]


def test_what_others_are_writing_stays(tmp_path):
    """Removed is only what a dead process of this machine left, or what is more than a day old."""
    child_process = child("import time; print(flush=True); time.sleep(60)")
    child_process.stdout.readline()
    host = platform.node()[:60]
    names = {
        f".last.ckpt.{host}.{child_process.pid}.0.part": True,
        f".last.ckpt.{host}.{2**22 + 1}.0.part": False,
        f".last.ckpt.{host}.{os.getpid()}.999999.part": False,  # of a process that had this number before
        ".last.ckpt.elsewhere.1.0.part": True,
        ".last.ckpt.elsewhere.2.0.part": False,
        f".best.ckpt.{host}.{2**22 + 1}.0.part": True,
        ".last.ckpt.notes.part": True,
    }
    for name in names:
        (tmp_path / name).touch()
    two_days_ago = time.time() - 2 * 86_400
    os.utime(tmp_path / ".last.ckpt.elsewhere.2.0.part", (two_days_ago, two_days_ago))
    write_checkpoint(checkpoint(), tmp_path / "last.ckpt")
    child_process.kill()
    child_process.communicate()
    assert set(os.listdir(tmp_path)) == {name for name, stays in names.items() if stays} | {"last.ckpt"}


def test_threads_may_save_the_same_file(tmp_path):
    def save(first):
        for number in range(first, first + 10):
            write_checkpoint(checkpoint(number), tmp_path / "last.ckpt")

    threads = [threading.Thread(target=save, args=[first]) for first in (0, 100, 200)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        if (tmp_path / "last.ckpt").exists():
            number_in(tmp_path / "last.ckpt")
    assert number_in(tmp_path / "last.ckpt") in (9, 109, 209)
    assert os.listdir(tmp_path) == ["last.ckpt"]


def test_a_save_in_the_middle_of_a_save_is_whole(tmp_path, monkeypatch):
    """As from a signal's handler; the older save ends later, as it would have."""
    path, sync = tmp_path / "last.ckpt", os.fsync

    def interrupted(descriptor):
        monkeypatch.setattr(os, "fsync", sync)
        write_checkpoint(checkpoint(2), path)
        assert number_in(path) == 2
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", interrupted)
    write_checkpoint(checkpoint(1), path)
    assert number_in(path) == 1
    assert os.listdir(tmp_path) == ["last.ckpt"]


def test_an_interrupt_in_the_middle_of_a_save_leaves_nothing(tmp_path, monkeypatch):
    write_checkpoint(checkpoint(1), tmp_path / "last.ckpt")

    def interrupt(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(checkpoint(2), tmp_path / "last.ckpt")
    assert number_in(tmp_path / "last.ckpt") == 1
    assert os.listdir(tmp_path) == ["last.ckpt"]


# -- Lightning's plugin


class Own(TorchCheckpointIO):
    """A user's."""


@pytest.mark.parametrize(("given", "expected"), [([], CheckpointFileIO), ([Own()], Own)])
def test_lightning_saves_through_it_unless_the_user_has_another(tmp_path, given, expected):
    trainer = make_trainer(tmp_path, plugins=given)
    trainer.fit(make_ppo(), make_data())
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    assert type(trainer.strategy.checkpoint_io) is expected
    sealed = zipfile.ZipFile(tmp_path / "a.ckpt").comment.startswith(b"ppo-lightning")
    assert sealed == (expected is CheckpointFileIO)
    assert read_checkpoint(tmp_path / "a.ckpt")["RolloutDataModule"]["env_steps"] == 64


def test_a_trainer_refuses_a_damaged_checkpoint(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.fit(make_ppo(), make_data())
    path = tmp_path / "a.ckpt"
    trainer.save_checkpoint(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match="damaged"):
        make_trainer(tmp_path).fit(make_ppo(), make_data(iterations=3), ckpt_path=path, weights_only=False)


def test_places_that_are_no_files_are_left_to_lightning():
    plugin = CheckpointFileIO()
    plugin.save_checkpoint(checkpoint(7), "memory://folder/a.ckpt")
    assert plugin.load_checkpoint("memory://folder/a.ckpt", weights_only=True)["RolloutDataModule"]["env_steps"] == 7
    assert not os.listdir()


class Code:
    """Makes a folder where it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("code_ran",)


@pytest.mark.parametrize("weights_only", [None, False])
def test_code_in_a_place_that_is_no_file_does_not_run(weights_only, monkeypatch):
    """Lightning reads a web address with ``weights_only=False`` where it is told nothing."""
    monkeypatch.setenv("TORCH_HOME", "cache")
    torch.save({"state_dict": Code()}, "a.ckpt")
    handler = functools.partial(Silent, directory=os.getcwd())
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/a.ckpt"
        with pytest.raises(pickle.UnpicklingError):
            CheckpointFileIO().load_checkpoint(address, weights_only=weights_only)
        server.shutdown()
    assert not Path("code_ran").exists()


class Silent(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


def test_file_addresses_are_files(tmp_path):
    plugin = CheckpointFileIO()
    plugin.save_checkpoint(checkpoint(7), f"file://{tmp_path}/a.ckpt")
    assert number_in(tmp_path / "a.ckpt") == 7
    assert plugin.load_checkpoint(f"file://{tmp_path}/a.ckpt")["RolloutDataModule"]["env_steps"] == 7
