"""How ranks notice that another one died, failed or hangs: signs of life through the store that they met at."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from torch import distributed

SECONDS_BETWEEN_BEATS = 1.0
_CONNECTION_TIMEOUT = timedelta(seconds=30)


@dataclass(frozen=True)
class Fault:
    """Why training ends: a signal to one of the ranks, or a rank that is lost or failed."""

    signum: int = 0
    rank: int = -1
    text: str = ""
    """What is known of the rank, to be read after "Rank 1 "."""


class Heartbeats(threading.Thread):
    """Gives a sign of life every second, and looks for those of the others.

    The first rank looks at all and tells them what it finds; the others look at the first. Everything goes through a
    connection of its own, so a rank that is busy, or waits in a collective, is still seen to live. Time is counted in
    own beats: a machine that slept finds nobody lost when it wakes.

    Args:
        rank: this one.
        world_size: all of them.
        prefix: of the keys in the store; every training has its own.
        timeout: beats until a silent rank is lost.
    """

    def __init__(self, rank: int, world_size: int, prefix: str, timeout: float) -> None:
        super().__init__(daemon=True, name="heartbeats")
        self.rank, self.world_size, self.timeout = rank, world_size, max(2, round(timeout / SECONDS_BETWEEN_BEATS))
        self._prefix = prefix
        self._wake, self._sent = threading.Event(), threading.Event()
        self._stop_asked = False
        self._message: str | None = None
        self._fault: Fault | None = None
        self._watched = {other: _Peer() for other in (range(1, world_size) if rank == 0 else [0])}
        self._round = self._seen_round = self._stalled = 0
        self._ends_read = 0
        self._store: Any = None

    # -- for other threads; none of these waits for the store longer than it says

    def check(self) -> Fault | None:
        """What was found; to be called once a beat, since it also counts the beats without contact to the store."""
        if self._fault is not None or self._store is None or not self.is_alive():
            return self._fault
        self._stalled = 0 if self._round != self._seen_round else self._stalled + 1
        self._seen_round = self._round
        if self._stalled >= self.timeout:
            self._fault = Fault(rank=0, text=f"gave no sign of life for {self._stalled * SECONDS_BETWEEN_BEATS:.0f} s")
        return self._fault

    @property
    def first_has_left(self) -> bool:
        """Whether the first rank, and with it perhaps the store, is through with this training."""
        return self.rank != 0 and self._watched[0].has_left

    def announce(self, fault: Fault | None, wait: float) -> None:
        """Tell the others that this rank ends: in order, or for a fault. Waits until that is sent."""
        if self._message is None:
            self._message = json.dumps(asdict(fault) if fault else None)
        self._wake.set()
        self._sent.wait(wait)

    def leave(self, wait: float) -> None:
        """End this thread; the first rank, whose process may hold the store, when all others have heard of its end."""
        self._stop_asked = True
        self._wake.set()
        self.join(wait)

    # -- the thread

    def run(self) -> None:
        """Beat until asked to stop, or until the store is gone."""
        try:
            self._store = _connect(self._prefix)
            self._store.set(f"process/{self.rank}", f"{os.getpid()} {_machine()}")
            while not (self._beat() and (self._stop_asked or self.first_has_left)):
                self._wake.wait(SECONDS_BETWEEN_BEATS if not self._stop_asked else 0.1)
                self._wake.clear()
        except Exception:
            if self._store is not None and self._fault is None and not self.first_has_left:
                self._fault = Fault(rank=0, text="ended without a word")
        finally:
            self._sent.set()

    def _beat(self) -> bool:
        """One round; True when nothing is left to say or to wait for."""
        store, message = self._store, self._message
        if message is not None and not self._sent.is_set():
            store.set(f"end/{self.rank}", message)
            store.add("ends", 1)
            self._sent.set()
        store.add(f"beat/{self.rank}", 1)
        self._read_ends()
        for rank, peer in self._watched.items():
            if self._fault is None and not peer.has_left:
                self._look_at(rank, peer)
        self._round += 1
        is_heard = self.rank != 0 or all(peer.has_left for peer in self._watched.values())
        return is_heard and (self._message is None or self._sent.is_set())

    def _read_ends(self) -> None:
        """The first rank reads everybody's, the others the first one's and answer that they did."""
        ends = self._store.add("ends", 0)
        if ends == self._ends_read:
            return
        for rank, peer in self._watched.items():
            if peer.has_left or not self._store.check([f"end/{rank}"]):
                continue
            told = json.loads(self._store.get(f"end/{rank}"))
            peer.has_left = True
            if told is not None and self._fault is None:
                self._fault = Fault(**told)
        self._ends_read = ends
        if self.first_has_left and self._message is None:
            self._message = json.dumps(None)  # tells the first rank that it was heard
            self._wake.set()

    def _look_at(self, rank: int, peer: _Peer) -> None:
        beats = self._store.add(f"beat/{rank}", 0)
        if beats == 0:  # still starting: building a simulator may take its time
            return
        if beats != peer.beats:
            peer.beats, peer.silent = beats, 0
        else:
            peer.silent += 1
        if peer.pid is None:
            pid, _, machine = self._store.get(f"process/{rank}").decode().partition(" ")
            peer.pid = int(pid) if machine == _machine() else 0
        if peer.silent >= self.timeout:
            seconds = peer.silent * SECONDS_BETWEEN_BEATS
            self._fault = Fault(rank=rank, text=f"gave no sign of life for {seconds:.0f} s")
        elif peer.silent >= 2 and peer.pid and not _is_alive(peer.pid):  # its last words would be here by now
            self._fault = Fault(rank=rank, text="ended without a word")
        peer.has_left = self._fault is not None


@dataclass
class _Peer:
    """What is known of another rank."""

    beats: int = 0
    silent: int = 0
    """Own beats since its last."""
    pid: int | None = None
    """0 where it runs on another machine."""
    has_left: bool = False
    """Ended, or found to be lost: neither watched nor waited for."""


def is_of_connection(exception: BaseException) -> bool:
    """Whether a collective failed, as it does when another rank is gone."""
    text = str(exception).lower()
    words = ("gloo", "nccl", "connection closed by peer", "connection reset", "connection refused", "broken pipe")
    is_distributed = type(exception).__module__.startswith("torch") and type(exception).__name__.startswith("Dist")
    return is_distributed or (isinstance(exception, RuntimeError) and any(word in text for word in words))


def _connect(prefix: str) -> Any:
    """A connection of this thread's own to the store that the process group was formed with."""
    store: Any = distributed.distributed_c10d._get_default_store()
    inner = store
    while isinstance(inner, distributed.PrefixStore):
        inner = inner.underlying_store
    if isinstance(inner, distributed.TCPStore):
        own: Any = distributed.TCPStore(
            inner.host, inner.port, is_master=False, timeout=_CONNECTION_TIMEOUT, wait_for_workers=False
        )
    else:
        own = inner.clone()
    return distributed.PrefixStore(prefix, own)


def _machine() -> str:
    """Names the machine and the container: process ids mean the same only where this is the same."""
    namespace = ""
    with contextlib.suppress(OSError):
        namespace = os.readlink("/proc/self/ns/pid")
    return f"{socket.gethostname()} {namespace}"


def _is_alive(pid: int) -> bool:
    """Whether the process runs; one that ended and was not waited for does not."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True
