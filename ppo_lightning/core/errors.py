"""What ends a run: the two errors a user can cause, signals, lost ranks; the checks that raise the first; and the one
that a resumed run tells of.

The command line prints each as one sentence, without a traceback.
"""

from __future__ import annotations

import difflib
import math
import signal
from collections.abc import Iterable


class ConfigurationError(ValueError):
    """A setting is wrong or contradicts another. Raised before any work; names the flag, the value and the way out."""


class NothingLeftError(ConfigurationError):
    """The checkpoint is of a run's end."""


class TrainingError(RuntimeError):
    """Training cannot go on (a NaN, say). Names the place; the last good checkpoint stays."""


class NotRestorableError(RuntimeError):
    """A simulator can't be saved, or can't take up a saved state. Names the class, and the field if it is one's fault.

    Raised before anything is changed, or the simulator has to be reset.
    """


class RankLostError(TrainingError):
    """Another rank died, failed or hangs. Says which one, and how the run goes on."""


class Terminated(SystemExit):
    """A signal ended training. Left alone it ends the process without a traceback, with the code 128 + its number."""

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)
        self.signum = signum

    def __str__(self) -> str:
        return f"training was ended by {signal.Signals(self.signum).name}"


def check_range(
    flag: str,
    value: float,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    exclude_low: bool = False,
    exclude_high: bool = False,
) -> None:
    """Raise :class:`ConfigurationError` unless ``low <= value <= high``; with ``exclude_…`` the bound is no value."""
    too_low = value <= low if exclude_low else value < low
    too_high = value >= high if exclude_high else value > high
    if not (too_low or too_high or math.isnan(value)):
        return
    below = f"greater than {low:g}" if exclude_low else f"at least {low:g}"
    above = f"less than {high:g}" if exclude_high else f"at most {high:g}"
    if high == math.inf:
        bounds = below
    elif low == -math.inf:
        bounds = above
    else:
        bounds = f"{below} and {above}"
    raise ConfigurationError(f"{flag} must be {bounds}, not {value:g}.")


def close_names(name: str, known: Iterable[str]) -> str:
    """`` Did you mean X or Y?`` for names that resemble ``name``, else an empty string."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    matches = difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=0.6)
    return f" Did you mean {' or '.join(by_lower[match] for match in matches)}?" if matches else ""
