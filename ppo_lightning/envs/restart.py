"""A simulator that raises is made anew, and what happened is passed on in ``info``."""

from __future__ import annotations

import contextlib
import pickle
import traceback
import warnings
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np

RESTARTS = "ppo_lightning.restarts"
"""Where ``info`` has the failures, a list of :class:`Failure`, after each of which a simulator was made anew."""

RAISED, DIED = 0, 1  # seeds after an error and after a lost process never meet
_LONGEST_TEXT = 200  # characters of an error's own words


class Failure:
    """Why a simulator could not go on; it can be sent to another process, whatever the error is.

    Args:
        what: completes "Environment 3 …".
        error: to be raised where there is no restart left.
    """

    def __init__(self, what: str, error: BaseException) -> None:
        self.what = what
        self._error: BaseException | None = error
        self._pickled, self._trace = b"", ""

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """The failure of a simulator that raised ``error``."""
        text = " ".join(str(error).split())
        text = text if len(text) <= _LONGEST_TEXT else text[:_LONGEST_TEXT] + "…"
        return cls(f"raised {type(error).__name__}" + (f": {text}" if text else ""), error)

    def error(self) -> BaseException:
        """The simulator's own error, with its own traceback: that of another process as the cause."""
        if self._error is not None:
            return self._error
        try:
            error: BaseException = pickle.loads(self._pickled)
        except Exception:  # of a type that cannot be sent
            error = RuntimeError(f"The environment {self.what}")
        error.__cause__ = RemoteError(self._trace)
        return error

    def __getstate__(self) -> dict[str, Any]:
        error = self._error
        trace = "".join(traceback.format_exception(type(error), error, error.__traceback__)) if error else self._trace
        try:
            pickled = pickle.dumps(error) if error else self._pickled
        except Exception:
            pickled = b""
        return {"what": self.what, "_error": None, "_pickled": pickled, "_trace": trace}


class RemoteError(Exception):
    """An error in another process, by the text of its traceback."""

    def __str__(self) -> str:
        return f"\n\n{self.args[0]}"


def derive_seed(first: int, cause: int, count: int) -> int:
    """The seed after restart ``count`` for ``cause`` of an environment whose first episode had the seed ``first``."""
    return int(np.random.SeedSequence([first, cause, count]).generate_state(1)[0] >> 1)


class RestartBudget:
    """Counts the restarts of all environments of a rank, and says when there were too many.

    Attributes:
        limit: restarts to allow; past it the failure is raised.
        name: of the environments, in warnings.
        used: restarts so far.
    """

    def __init__(self) -> None:
        self.limit, self.name, self.used = 0, "Environment", 0

    def spend(self, infos: dict[str, Any], dropped: np.ndarray[Any, Any]) -> None:
        """Count what ``infos`` of all environments tell, warning of each; ``dropped (N,)`` lost an episode by it.

        Raises:
            Exception: the environment's own, past the limit.
        """
        for row in np.flatnonzero(infos[f"_{RESTARTS}"]):
            for failure in infos[RESTARTS][row]:
                if self.used >= self.limit:
                    raise failure.error()
                self.used += 1
                warnings.warn(self._sentence(int(row), failure, bool(dropped[row])), stacklevel=2)

    def _sentence(self, row: int, failure: Failure, dropped: bool) -> str:
        done = "it was restarted and its unfinished episode dropped" if dropped else "it was restarted"
        left = f"{self.limit - self.used} restarts left of --data.max_env_restarts={self.limit}"
        return f"{self.name} {row} {failure.what}; {done} ({left})."


class Restarting(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Makes the environment anew when it raises, once :meth:`allow_restarts` was called; before, errors pass.

    The step or reset that failed gives the first observation of the next episode. A step that failed has no reward and
    ends nothing: whoever reads ``info[RESTARTS]`` knows that the episode before is lost.

    Args:
        make: makes the environment, wrappers and all.
    """

    def __init__(self, make: Callable[[], gymnasium.Env[Any, Any]]) -> None:
        super().__init__(make())
        self._make = make
        self._is_open = True
        self._limit = 0
        self.first_seed: int | None = None
        """Of the last reset with a seed: the seeds after restarts follow from it and from ``restarts``."""
        self.restarts = 0
        """How often the environment was made anew."""

    def allow_restarts(self, limit: int) -> None:
        """Restart after an error, and for up to ``limit`` errors in a row where the restart fails, too."""
        self._limit = limit

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset; the restarted environment has a new seed."""
        if seed is not None:
            self.first_seed = seed
        try:
            return self.env.reset(seed=seed, options=options)
        except Exception as error:
            return self._restart(error)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step, or start the next episode where that failed."""
        try:
            return self.env.step(action)
        except Exception as error:
            obs, info = self._restart(error)
            return obs, 0.0, False, False, info

    def _restart(self, error: Exception) -> tuple[Any, dict[str, Any]]:
        failures: list[Failure] = []
        while len(failures) < self._limit:
            failures.append(Failure.of(error))
            self.restarts += 1
            with contextlib.suppress(Exception):  # it is broken already
                self.close()
            try:
                self.env, self._is_open = self._make(), True
                return self.env.reset(seed=self._next_seed())[0], {RESTARTS: failures}
            except Exception as again:
                error = again
        raise error

    def _next_seed(self) -> int | None:
        return None if self.first_seed is None else derive_seed(self.first_seed, RAISED, self.restarts)

    def close(self) -> None:
        """Close the environment, once."""
        if self._is_open:
            self._is_open = False
            super().close()
