"""Acts on signals and lost ranks while training runs, also while the main thread cannot react."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing import active_children
from pathlib import Path
from typing import Any

from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch import Trainer

from ppo_lightning.callbacks.child_ranks import ChildRanks
from ppo_lightning.callbacks.fault_report import FaultReport
from ppo_lightning.callbacks.heartbeat import SECONDS_BETWEEN_BEATS, Fault, Heartbeats, is_of_connection
from ppo_lightning.core.errors import RankLostError, Terminated

EXIT_RANK_LOST = 1
_SECONDS_TO_REACT = 5.0
"""Until the main thread counts as stuck, and the process is ended without it."""
_SECONDS_TO_UNWIND = 15.0
"""For closing simulators and loggers; SLURM and torchrun kill 30 seconds after their signal."""
_SECONDS_TO_ACT = 60.0
_SECONDS_TO_TELL = 2.0
_SECONDS_TO_HEAR = 3.5
"""Of another rank's end, after the connection to it broke: some heartbeats."""
_POKE = b"\0"  # no signal's number

_active: FaultWatch | None = None


def is_watching() -> bool:
    """Whether a training of this process is looked after."""
    return _active is not None


class FaultWatch:
    """Stands in for Lightning's own signal handling while training runs: that one saves, or talks to the other ranks,
    inside the signal, in the middle of a rollout.

    On a signal, the handler raises in the main thread, which unwinds training. A thread of this class tells the other
    ranks, writes the newest snapshot and asks SLURM for another run, whatever the main thread does; where that one
    does not react, it ends the process. A lost rank is treated in the same way.

    Args:
        trainer: its signal handling is replaced.
        flush: writes the newest snapshot, and returns the checkpoint to continue from.
        steps: the environment steps of that snapshot.
        rank_timeout: seconds after which a silent rank is lost.
        prefix: of this training in the store of the ranks, the same on every rank.
    """

    received_sigterm = False  # what Lightning's loops ask

    def __init__(
        self,
        trainer: Trainer,
        flush: Callable[[], Path | None],
        steps: Callable[[], int],
        rank_timeout: float,
        prefix: str,
    ) -> None:
        self._trainer: Any = trainer
        self._flush, self._steps = flush, steps
        self._environment: Any = self._trainer._accelerator_connector.cluster_environment
        self._fault: Fault | None = None
        self._sentence = ""
        self._handlers: dict[int, Any] = {}  # those before
        self._wakeup = -1
        self._late_signal = 0
        self._is_raised = self._is_leaving = self._is_closed = self._is_own_error = False
        self._leaving_lock = threading.Lock()  # never taken in a signal handler
        self._unwinding, self._acted, self._left = threading.Event(), threading.Event(), threading.Event()
        self._children = ChildRanks(trainer)
        self._report = FaultReport(trainer, self._environment)
        self._beats: Heartbeats | None = None
        if trainer.world_size > 1:
            self._beats = Heartbeats(trainer.global_rank, trainer.world_size, prefix, rank_timeout)
        self._thread = threading.Thread(target=self._watch, daemon=True, name="fault-watch")

    # -- coming and going, in the main thread

    def start(self) -> None:
        """Take over from Lightning's signal connector and from its observer of child processes."""
        global _active
        if _active is not None:
            _active.close()
        _active = self
        self._lightnings = self._trainer._signal_connector
        self._trainer._signal_connector = self
        if self._beats is not None:
            # Lightning's would be a collective in every minibatch that asks the first rank whether it had a signal
            self._trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None
            self._children.take_over()
            self._beats.start()
        self._pipe = os.pipe()
        if threading.current_thread() is threading.main_thread():
            self._install_handlers()
        self._thread.start()

    def _install_handlers(self) -> None:
        signals = [signal.SIGINT, signal.SIGTERM]
        if isinstance(self._environment, SLURMEnvironment) and self._environment.requeue_signal is not None:
            signals.append(self._environment.requeue_signal)
        os.set_blocking(self._pipe[1], False)
        self._handlers = {signum: signal.getsignal(signum) for signum in signals}
        self._wakeup = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
        for signum, handler in self._handlers.items():
            is_users = callable(handler) and handler is not signal.default_int_handler
            if handler != signal.SIG_IGN and not (signum == signal.SIGINT and is_users):
                signal.signal(signum, self._on_signal)

    def register_signal_handlers(self) -> None:
        """Lightning asks for it: they are there."""

    def unwind(self, exception: BaseException) -> None:
        """Training ends with an exception: of this watch, of this rank, or because the connection to another broke."""
        self._unwinding.set()
        os.write(self._pipe[1], _POKE)
        if self._beats is None:
            return
        is_connection = is_of_connection(exception)
        deadline = time.monotonic() + (_SECONDS_TO_HEAR if is_connection else 0)
        while self._fault is None and time.monotonic() < deadline:
            time.sleep(0.05)
        if self._fault is not None:
            return
        line = " ".join(str(exception).split())[:300].rstrip(".") or type(exception).__name__
        if is_connection:
            self._note(Fault(text=f"The connection to another rank broke ({line})"))
        else:
            self._is_own_error = True
            self._beats.announce(Fault(rank=self._beats.rank, text=f"ended with an error: {line}"), _SECONDS_TO_TELL)

    def teardown(self) -> None:
        """Lightning's last call, in order or after an exception."""
        with self._leaving_lock:
            self._is_leaving = True
        fault = None if self._is_own_error else self._fault
        if fault is not None:
            os.write(self._pipe[1], _POKE)
            self._acted.wait(_SECONDS_TO_ACT)
        elif self._beats is not None:
            self._beats.announce(None, _SECONDS_TO_TELL)
        self._left.set()
        if self._unwinding.is_set() or fault is not None:
            self._children.end()
        self.close()
        if fault is not None:
            self._raise_for(fault)

    def close(self) -> None:
        """Leave everything as it was before."""
        global _active
        if self._is_closed:
            return
        self._is_closed = self._is_leaving = True
        if self._beats is not None:
            self._beats.leave(_SECONDS_TO_REACT)
            vars(self._trainer.fit_loop.epoch_loop).pop("_broadcast_sigterm_tensor", None)
            if not self._unwinding.is_set():
                self._children.hand_back()
        self._restore_handlers(self._wakeup)
        self._left.set()
        os.write(self._pipe[1], _POKE)
        self._thread.join(_SECONDS_TO_REACT)
        for end in self._pipe if not self._thread.is_alive() else ():
            os.close(end)
        self._trainer._signal_connector = self._lightnings
        _active = None
        if self._late_signal and self._fault is None:
            signal.raise_signal(self._late_signal)

    def _restore_handlers(self, wakeup: int) -> None:
        if self._handlers:
            signal.set_wakeup_fd(wakeup)
        for signum, handler in self._handlers.items():
            if handler is not None:  # set by something other than Python
                signal.signal(signum, handler)
        self._handlers = {}

    def forget_in_fork(self) -> None:
        """A simulator's worker: a signal to it must not wake the watch of the process that it was forked from."""
        self._restore_handlers(-1)

    def _raise_for(self, fault: Fault) -> None:
        """End the main thread's unwinding as what it was for."""
        if fault.signum == signal.SIGINT and self._is_raised:
            return  # Lightning, and whoever started it, know KeyboardInterrupt
        if fault.signum:
            self._report.say(self._sentence)
            raise Terminated(fault.signum) from None
        if self._report.is_spoken_here(fault):
            raise RankLostError(self._sentence) from None
        raise SystemExit(EXIT_RANK_LOST) from None

    # -- what happened

    def _on_signal(self, signum: int, frame: Any) -> None:
        before = self._handlers.get(signum)
        if callable(before) and before is not signal.default_int_handler:
            before(signum, frame)
        if self._is_leaving and self._fault is None:
            self._late_signal = signum
            return
        self._fault = self._fault or Fault(signum=signum)
        if self._is_raised or self._unwinding.is_set() or self._is_leaving:
            return
        self._is_raised = True
        if self._fault.signum == signal.SIGINT:
            raise KeyboardInterrupt
        raise Terminated(self._fault.signum) if self._fault.signum else SystemExit(EXIT_RANK_LOST)

    def _note(self, fault: Fault) -> None:
        """The first fault is the one that counts, and none does once training is over."""
        with self._leaving_lock:
            if not self._is_leaving:
                self._fault = self._fault or fault

    def _watch(self) -> None:
        while self._fault is None and not self._left.is_set():
            readable, _, _ = select.select([self._pipe[0]], [], [], SECONDS_BETWEEN_BEATS if self._beats else None)
            signals = [signum for signum in os.read(self._pipe[0], 64) if signum in self._handlers] if readable else []
            found = Fault(signum=signals[0]) if signals else self._look_at_ranks()
            if found is not None:
                self._note(found)
        if self._fault is not None and not self._is_own_error:
            self._act(self._fault)

    def _look_at_ranks(self) -> Fault | None:
        if self._beats is None:
            return None
        found = self._beats.check()
        return None if found is None and self._beats.first_has_left else self._children.explain(found)

    # -- what is done about it, in the watch's thread

    def _act(self, fault: Fault) -> None:
        if fault.signum:
            self._children.signal(fault.signum)
        if not self._unwinding.is_set():
            self._interrupt_main()
        if self._beats is not None:
            self._beats.announce(fault, _SECONDS_TO_TELL)
        self._sentence = self._report.describe(fault, self._flush(), self._steps())
        self._acted.set()
        reacts = self._left.wait(_SECONDS_TO_REACT) or self._unwinding.is_set()
        is_interactive = hasattr(sys, "ps1") and fault.signum == signal.SIGINT
        if not (reacts and self._left.wait(_SECONDS_TO_UNWIND)) and not is_interactive:
            self._end_process(fault)

    def _interrupt_main(self) -> None:
        """Run the handler, which raises; the signal also ends a wait of the main thread."""
        main = threading.main_thread().ident
        if main is not None and self._handlers.get(signal.SIGTERM, signal.SIG_IGN) != signal.SIG_IGN:
            signal.pthread_kill(main, signal.SIGTERM)

    def _end_process(self, fault: Fault) -> None:
        """Without the main thread, which hangs in a collective or in a simulator."""
        self._report.say_at_end(fault, self._sentence)
        for worker in active_children():
            worker.kill()
        self._children.end()
        os._exit(128 + fault.signum if fault.signum else EXIT_RANK_LOST)


def _forget_in_fork() -> None:
    global _active
    if _active is not None:
        with contextlib.suppress(ValueError):
            _active.forget_in_fork()
        _active = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_fork)
