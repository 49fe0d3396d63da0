"""Memory of freed tensors stays with the process."""

import json
import os
import subprocess
import sys

import pytest

from ppo_lightning.core import allocator

COUNT_FAULTS = """
import json, resource, torch
from ppo_lightning import keep_freed_memory

done = keep_freed_memory() if {kept} else None
faults = []
for _ in range(12):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.zeros(64 << 20, dtype=torch.uint8)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(json.dumps([done, faults]))
"""
PAGES = (64 << 20) // 4096


def count_faults(kept, **settings):
    """What ``keep_freed_memory`` said, and the page faults of twelve tensors of 64 MiB, one after another."""
    env = {name: value for name, value in os.environ.items() if name not in allocator._SETTINGS} | settings
    command = [sys.executable, "-c", COUNT_FAULTS.format(kept=kept)]
    return json.loads(subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout)


needs_glibc = pytest.mark.skipif("glibc" not in (os.confstr("CS_GNU_LIBC_VERSION") or ""), reason="glibc's malloc")


@needs_glibc
def test_the_next_tensor_takes_the_pages_of_the_last_one():
    done, faults = count_faults(kept=True)
    assert done is True
    assert sum(faults) < 4 * PAGES  # the heap has to grow a little first
    _, faults = count_faults(kept=False)
    assert sum(faults) > 11 * PAGES  # so the test can fail


@needs_glibc
@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"])
def test_settings_of_the_environment_stay(name):
    assert count_faults(kept=True, **{name: "131072"})[0] is False


def test_another_c_library_is_left_alone(monkeypatch):
    for name in allocator._SETTINGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda _: object())
    assert allocator.keep_freed_memory() is False
