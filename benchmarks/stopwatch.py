"""What the parts of a program take while it runs."""

from __future__ import annotations

import time
from typing import Any


class Stopwatch:
    """Adds up the seconds spent in the calls of some functions."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def wrap(self, owner: Any, name: str) -> None:
        """Time ``owner.name`` from now on."""
        function = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - started

        setattr(owner, name, timed)
