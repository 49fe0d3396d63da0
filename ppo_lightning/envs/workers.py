"""Environments in processes of their own, of which one may die."""

from __future__ import annotations

import contextlib
import inspect
import multiprocessing
import os
import signal
import time
import weakref
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait
from typing import Any, cast

from gymnasium.vector import AsyncVectorEnv, AutoresetMode
from gymnasium.vector.async_vector_env import _async_worker
from gymnasium.vector.utils import CloudpickleWrapper, clear_mpi_env_vars

from ppo_lightning.core.errors import TrainingError
from ppo_lightning.envs.restart import RESTARTS, Failure

_PATIENCE = 5.0  # seconds for all workers to close their environments, and for a dead one's exit code
_GRACE = 30  # seconds that a worker goes on after a SIGTERM
_WITH_INFO = ("reset", "step", "reset-noop")  # commands whose answer begins with an observation and ends with an info


class Workers(AsyncVectorEnv):  # type: ignore[type-arg]  # no generic in gymnasium 1.1
    """Gymnasium's ``AsyncVectorEnv``, in which a worker that dies is replaced once ``allow_restarts`` was called.

    The replacement starts an episode; ``infos[RESTARTS]`` tells. Closing waits for no worker that is dead or hangs.

    Args:
        env_fns: make the environments, each with a method ``allow_restarts(limit)``.
        autoreset_mode: as of ``AsyncVectorEnv``.
    """

    def __init__(self, env_fns: Sequence[Callable[[], Any]], autoreset_mode: AutoresetMode) -> None:
        self.max_restarts = 0
        self._seed_of: Callable[[int, int], int] | None = None
        self._at_exit: weakref.finalize[Any, Any] | None = None
        try:
            super().__init__(env_fns, autoreset_mode=autoreset_mode, worker=_work)
        except (EOFError, ConnectionError):
            ended = wait([process.sentinel for process in self.processes], _PATIENCE)
            dead = [row for row, process in enumerate(self.processes) if process.sentinel in ended]
            if not dead:
                raise
            how = _end_of(self.processes[dead[0]])
            raise RuntimeError(f"the worker process of environment {dead[0]} was lost, {how}") from None
        # before multiprocessing's own end of processes, which would wait for the grace of their SIGTERM
        self._at_exit = weakref.finalize(self, kill_processes, self.processes, os.getpid())
        self.parent_pipes: list[Any] = [_Line(self, row, pipe) for row, pipe in enumerate(self.parent_pipes)]

    def allow_restarts(self, limit: int, seed_of: Callable[[int, int], int]) -> None:
        """Replace a worker that dies, and for up to ``limit`` deaths in a row where the replacement dies, too.

        Args:
            limit: also given to the environments.
            seed_of: the seed of environment ``row`` after its death number 0, 1, … in a row.
        """
        self.max_restarts, self._seed_of = limit, seed_of
        self.call("allow_restarts", limit)

    def untold(self) -> list[int]:
        """The environments whose replacement plays an episode that no step has told of yet."""
        return [row for row, line in enumerate(self.parent_pipes) if line.is_untold]

    def replace(self, row: int) -> Replacement:
        """Start a process for an environment whose worker is dead.

        Raises:
            TrainingError: there are too many deaths in a row.
        """
        failures: list[Failure] = []
        while True:
            failures.append(self.bury(row))
            if len(failures) > self.max_restarts:
                raise failures[-1].error()
            assert self._seed_of is not None
            reset = ("reset", {"seed": self._seed_of(row, len(failures) - 1), "options": None})
            pipe = self._start(row)
            try:
                pipe.send(("_call", ("allow_restarts", (self.max_restarts,), {})))
                pipe.recv()
                pipe.send(reset)
                return Replacement(pipe, reset, pipe.recv(), failures)
            except (EOFError, OSError):
                pipe.close()

    def bury(self, row: int) -> Failure:
        """What happened to a worker that is dead."""
        how = _end_of(self.processes[row])
        return Failure(
            f"lost its worker process ({how})",
            TrainingError(
                f"The worker process of environment {row} was lost ({how}), and no restart is left of "
                f"--data.max_env_restarts={self.max_restarts}: mend the environment, or allow more restarts."
            ),
        )

    def _start(self, row: int) -> Any:
        """A worker like those before, but one that sends its observations: their shared memory is out of reach."""
        context = multiprocessing.get_context()
        pipe, child_pipe = context.Pipe()
        fields = (
            *(row, CloudpickleWrapper(self.env_fns[row]), child_pipe, pipe, None),
            *(None, self.autoreset_mode, None),
        )
        args = fields[: len(inspect.signature(_async_worker).parameters)]  # the last one is new in gymnasium 1.4
        process = context.Process(target=_work, name=f"Worker-{row}", args=args, daemon=True)
        with clear_mpi_env_vars():
            process.start()
        child_pipe.close()
        self.processes[row] = process
        return pipe

    def close_extras(self, timeout: float | None = None, terminate: bool = False) -> None:
        """Ask the workers to close their environments; end those that don't within seconds.

        What they are still busy with is not waited for, so it does not matter in what state the pipes are.
        """
        pipes = [pipe for pipe in self.parent_pipes if pipe is not None and not pipe.closed]
        if not terminate:
            for pipe in pipes:
                with contextlib.suppress(OSError):
                    pipe.send(("close", None))
            join_processes(self.processes, _PATIENCE if timeout is None else timeout)
        kill_processes(self.processes, os.getpid())
        if self._at_exit is not None:
            self._at_exit.detach()
        for pipe in pipes:
            pipe.close()


class Replacement:
    """A worker's successor: its pipe, the reset it was given and its answer, and why it was needed."""

    def __init__(self, pipe: Any, reset: Any, answer: Any, failures: list[Failure]) -> None:
        self.pipe = pipe
        self.reset = reset
        self.answer = answer
        self.failures = failures


class _Line:
    """The pipe to a worker. Where it is dead, the first observation of its replacement is the answer."""

    def __init__(self, workers: Workers, row: int, pipe: Any) -> None:
        self._workers, self._row, self._pipe = workers, row, pipe
        self._message: tuple[str, Any] = ("", None)
        self._is_replaced = False
        self._untold: Replacement | None = None  # made for a command whose answer has no info to tell of it

    def send(self, message: tuple[str, Any]) -> None:
        """Send a command and its data."""
        self._message = message
        if self._untold is not None and message[0] in ("step", "reset-noop"):
            message = self._untold.reset  # the action was chosen for another episode
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the worker is dead: recv will see
            self._pipe.send(message)

    def recv(self) -> tuple[Any, bool]:
        """What the worker answers to the last command, and that it could; its error is raised."""
        try:
            answer, success = self._pipe.recv()
        except (EOFError, OSError):
            success = None
        if success is None:
            return self._ask_replacement()
        if not success:
            raise answer.error()
        if self._message[0] not in _WITH_INFO:
            return answer, True
        if self._untold is not None:
            untold, self._untold = self._untold, None
            return self._tell(untold.failures, answer), True
        if self._is_replaced:
            _write_row(self._workers.observations, self._row, answer[0])
        return answer, True

    def _ask_replacement(self) -> tuple[Any, bool]:
        untold = [] if self._untold is None else self._untold.failures
        new = self._workers.replace(self._row)
        new.failures[:0] = untold
        self._pipe.close()
        self._pipe, self._is_replaced, self._untold = new.pipe, True, None
        answer, success = new.answer
        if not success:
            raise answer.error()
        if self._message[0] in _WITH_INFO:
            return self._tell(new.failures, answer), True
        self._untold = new
        try:
            self._pipe.send(self._message)
            answer, success = self._pipe.recv()
        except (EOFError, OSError):  # what it was asked kills it
            raise self._workers.bury(self._row).error() from None
        if not success:
            raise answer.error()
        return answer, True

    def _tell(self, failures: list[Failure], answer: Any) -> Any:
        """The answer to a reset, in the form of one to the last command, with the failures that it follows."""
        obs, info = answer[0], {RESTARTS: [*failures, *answer[-1].get(RESTARTS, [])]}
        _write_row(self._workers.observations, self._row, obs)
        return (obs, 0.0, False, False, info) if self._message[0] == "step" else (obs, info)

    @property
    def is_untold(self) -> bool:
        """Whether the next step will be the first to tell of a replacement."""
        return self._untold is not None

    def poll(self, timeout: float) -> bool:
        """Whether there is something to receive within ``timeout`` seconds."""
        return bool(self._pipe.poll(timeout))

    @property
    def closed(self) -> bool:
        """Whether this end is closed."""
        return bool(self._pipe.closed)

    def close(self) -> None:
        """Close this end."""
        self._pipe.close()


def _work(*args: Any) -> None:
    """Gymnasium's worker. It leaves signals to its parent, whose handlers it may have inherited.

    They often go to all processes at once, and what the parent does about them may take until the rollout's end.
    """
    for name in ("SIGINT", "SIGUSR1", "SIGUSR2"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), lambda *_: None)  # not SIG_IGN, which programs it starts would inherit
    if hasattr(signal, "SIGALRM"):
        signal.signal(signal.SIGTERM, _end_later)
    with contextlib.suppress(BrokenPipeError):  # the parent is gone
        cast(Any, _async_worker)(*args[:5], _Errors(args[2]), *args[6:])


def _end_later(*_: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(_GRACE)


class _Errors:
    """In place of the worker's queue of errors, from which some never arrive: answers the parent with a failure."""

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe

    def put(self, item: tuple[int, type, BaseException, str]) -> None:
        """Called by the worker before its answer ``(None, False)``, which nobody reads."""
        self._pipe.send((Failure.of(item[2]), False))


def _write_row(observations: Any, row: int, obs: Any) -> None:
    if isinstance(observations, dict):
        for key, values in observations.items():
            _write_row(values, row, obs[key])
    else:
        observations[row] = obs


def _end_of(process: Any) -> str:
    """How a process ended, in words; one that only lost its pipe is ended."""
    process.join(_PATIENCE)
    code = process.exitcode
    kill_processes([process], os.getpid())
    if code is None:
        return "it closed its pipe"
    if code >= 0:
        return f"it ended with exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


def kill_processes(processes: Sequence[Any], parent: int) -> None:
    """End those that still run, whatever they do; only in the process ``parent``, which they belong to."""
    if os.getpid() == parent:
        running = [process for process in processes if process.is_alive()]
        for process in running:
            process.kill()
        join_processes(running, _PATIENCE)


def join_processes(processes: Sequence[Any], patience: float) -> None:
    """Wait until all have ended, but ``patience`` seconds at most."""
    deadline = time.monotonic() + patience
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
