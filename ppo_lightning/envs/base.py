"""The contract that every simulator is adapted to."""

from __future__ import annotations

import functools
import hashlib
import inspect
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import PurePath
from typing import Any, Protocol, Union, cast, get_type_hints

import numpy as np
from gymnasium import spaces
from torch import nn

from ppo_lightning.core.errors import ConfigurationError, NotRestorableError, close_names
from ppo_lightning.core.instantiate import accept_value
from ppo_lightning.core.legal import LegalActions
from ppo_lightning.policies.base import Policy

Array = np.ndarray[Any, Any]
ArrayObservation = Union[Array, dict[str, Any]]
"""``(N, *shape)``, or a dict of such (or of further dicts) for Dict spaces."""


@dataclass
class StepResult:
    """One step of ``N`` environments.

    Attributes:
        obs: the next observation ``(N, *shape)``: what the policy acts on next, so after a same-step reset the new
            episode's first.
        rewards: ``(N,)``.
        terminated: ``(N,)`` bool: the episode ended in a terminal state; no value follows.
        truncated: ``(N,)`` bool: the episode was cut off; the value of ``final_obs`` follows.
        episode_starts: ``(N,)`` bool: ``obs`` is the first of an episode.
        valid: ``(N,)`` bool: false where this step was only a reset (its action was ignored).
        final_obs: the true last observations of the rows that ended, ``(K, *shape)`` in row order; None where none
            ended or the simulator does not give them (then nothing is ``truncated``).
        base_rewards: ``(N,)`` rewards before costs, where an environment adds some.
        base_actions: ``(N, …)`` what the simulator was given, where that is not the action of the step: by the agent
            that a coordinator chose.
        solved: ``(N,)`` bool, of use where an episode ended: whether it reached its goal; None where none is told.
        dropped: ``(N,)`` bool: the simulator failed in this step and was restarted, so what is reported as an episode
            broke off. ``obs`` is the first of one. The step is not ``valid`` unless it ended an episode itself.
        scores: ``(N,)`` rewards as they are reported, where those to learn from are others: clipped ones.
        goes_on: ``(N,)`` bool: only a life was lost with the episode that ended; reports count whole games.
    """

    obs: ArrayObservation
    rewards: Array
    terminated: Array
    truncated: Array
    episode_starts: Array
    valid: Array
    final_obs: ArrayObservation | None = None
    base_rewards: Array | None = None
    base_actions: Array | None = None
    solved: Array | None = None
    dropped: Array | None = None
    scores: Array | None = None
    goes_on: Array | None = None

    @property
    def is_acted_on(self) -> Array:
        """``(N,)`` bool: the rows of ``obs`` in which an action will count; the next step only resets the others."""
        acted_on: Array = self.episode_starts | ~(self.terminated | self.truncated)
        return acted_on


class VectorEnv(ABC):
    """``num_envs`` environments stepped together, each starting its next episode by itself."""

    num_envs: int
    observation_space: spaces.Space[Any]
    """One environment's observations."""
    action_space: spaces.Space[Any]
    """One environment's actions."""
    reports_solved: bool = False
    """Whether steps tell if an episode that ended reached its goal."""
    render_fps: int = 30
    """Pictures a second at which an episode looks as it should."""
    restarts: int = 0
    """How many simulators were restarted so far, where :meth:`allow_restarts` was called and can be obeyed."""

    @abstractmethod
    def reset(self) -> ArrayObservation:
        """Start every environment's first episode, from the seeds it was made with."""

    @abstractmethod
    def step(self, actions: Array) -> StepResult:
        """Play one action in each environment."""

    def end_episodes(self, rows: Array) -> bool:
        """Break off the episodes of the rows where ``rows (N,)`` is true: their next step only resets them.

        That step ignores their actions and is not ``valid``. False where the simulator can't: nothing happens then.
        """
        return False

    def allow_restarts(self, limit: int, name: str = "Environment", at_once: bool = False) -> None:
        """Restart a simulator that fails in a step or a later reset, as long as ``restarts`` is at most ``limit``.

        Past the limit its own error is raised. Simulators that can't be restarted, as by default, raise it at once.

        Args:
            limit: over the whole life of this object; 0 for never.
            name: of the environments, in warnings.
            at_once: also in the first reset; by default that failure is a mistake to report.
        """
        return

    def legal_actions(self) -> LegalActions | None:
        """How observations tell which actions of the simulator are legal; None where they don't."""
        return LegalActions.told_by(self.observation_space, self.action_space)

    def place_networks(self, convert: Callable[[nn.Module], nn.Module]) -> None:
        """Let ``convert`` move networks that play in the environment to the agent's device and precision."""
        return

    def render(self) -> Array:
        """Pictures ``(N, H, W, 3)`` uint8 of the present state; of environments from ``make_rendering`` only."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """All that the simulators' future depends on, in plain containers; a copy, and nothing is disturbed.

        Raises:
            NotRestorableError: it can't be saved; names the class that is the reason.
        """
        raise NotRestorableError(f"{type(self).__name__} cannot be saved and restored")

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on exactly as the environment that was saved, whose settings were the same.

        The observation to act on next is the one that the saved environment gave last: the caller keeps it.

        Raises:
            NotRestorableError: the state doesn't fit; the environment has to be ``reset`` then.
        """
        raise NotRestorableError(f"{type(self).__name__} cannot be saved and restored")

    def why_not_restorable(self) -> str | None:
        """What ``state_dict`` raises, of an environment that was reset; None where it works. As quick as that is."""
        try:
            self.state_dict()
        except NotRestorableError as error:
            return str(error)
        return None

    @abstractmethod
    def close(self) -> None:
        """Free the simulator. Safe to call twice."""


class Score(Protocol):
    """Plays whole episodes with a policy, on all ranks together."""

    def __call__(
        self, factory: EnvFactory, policy: Policy, *, num_episodes: int, temperature: float, max_num_steps: int | None
    ) -> Mapping[str, float]:
        """``return_mean``, ``length_mean`` and the like, the same on every rank."""


class EnvFactory(ABC):
    """The settings of an environment, from which any number of them can be made: for training, for evaluation.

    Settings are the arguments of the constructor, each kept as an attribute of its name, so that a split of the
    evaluation can change some of them.
    """

    speed_settings: tuple[str, ...] = ()
    """Settings that change how fast the simulator is, and nothing in what it simulates."""

    @abstractmethod
    def make(self, seeds: Sequence[int]) -> VectorEnv:
        """One environment a seed.

        Raises:
            ConfigurationError: the environment is unknown, cannot be made, or has unsupported spaces.
        """

    def make_rendering(self, seeds: Sequence[int]) -> VectorEnv:
        """The same environments, which can also ``render``; each shows the last picture of an episode where it can.

        Raises:
            ConfigurationError: the environment cannot render pictures.
        """
        raise ConfigurationError(
            f"--data.env={type(self).__name__} cannot render pictures: record an environment that can (its factory "
            "has make_rendering)."
        )

    def of_share(self, index: int) -> EnvFactory:
        """The factory of one of the groups of environments that are played at once: no two play the same episodes.

        The seeds that ``make`` is given differ already. A factory with a seed of its own among its settings derives
        another from it for every group but the first.
        """
        return self

    def prepare(self, score: Score) -> str:
        """Find out, by playing, what the environments must know before they are played; once.

        Returns:
            What was found out, in a sentence; empty where it was known, or nothing is to be known.

        Raises:
            ConfigurationError: it can't be found out.
        """
        return ""

    def state_dict(self) -> dict[str, Any]:
        """What checkpoints keep of it: what was found out, and where it comes from; plain containers."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> str:
        """Take up what a checkpoint knows, unless the settings say otherwise.

        Returns:
            What is another than it was for the checkpoint, in a sentence; empty where nothing is.
        """
        return ""

    def words_of(self, name: str) -> str:
        """A setting in words, by which that of a checkpoint is compared with that of a run."""
        return _words(getattr(self, name, None))

    def with_settings(self, settings: Mapping[str, Any], flag: str) -> EnvFactory:
        """The same environment with some settings changed; a setting that is a factory itself takes a mapping.

        Raises:
            ConfigurationError: a setting is unknown or not accepted; names ``flag``.
        """
        types = get_type_hints(type(self).__init__)
        try:
            own = {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}
        except AttributeError as error:
            raise ConfigurationError(
                f"{flag}: {type(self).__name__} does not keep its argument {error.name!r} as an attribute, so it "
                "cannot be made again with other settings: let its __init__ keep every argument under its name."
            ) from error
        for name, value in settings.items():
            if name not in own:
                raise ConfigurationError(
                    f"{flag}.{name} is not a setting of {type(self).__name__}: choose from {', '.join(own)}."
                    f"{close_names(str(name), own)}"
                )
            if isinstance(own[name], EnvFactory) and isinstance(value, Mapping) and "class_path" not in value:
                own[name] = own[name].with_settings(value, f"{flag}.{name}")
            else:
                own[name] = accept_value(types.get(name, Any), value, f"{flag}.{name}")
        try:
            return type(self)(**own)
        except ConfigurationError as error:
            raise error_of_split(error, flag) from error


def describe_settings(factory: EnvFactory) -> dict[str, str]:
    """The settings of an environment in words, by which that of a checkpoint is compared with that of a run."""
    names = [name for name in inspect.signature(type(factory)).parameters if name not in factory.speed_settings]
    own = {name: factory.words_of(name) for name in names}
    return {"class": f"{type(factory).__module__}.{type(factory).__qualname__}", **own}


def _words(value: Any) -> str:
    if isinstance(value, EnvFactory):
        return str(describe_settings(value))
    if isinstance(value, np.ndarray):
        digest = hashlib.sha256(value.tobytes()).hexdigest()
        return _words(value.tolist()) if value.dtype.hasobject else f"{value.dtype}{value.shape} {digest}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_words, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key!r}: {_words(item)}' for key, item in value.items())}}}"
    if isinstance(value, (set, frozenset)):
        return f"{{{', '.join(sorted(map(_words, value)))}}}"
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes, range, np.generic, PurePath)):
        return repr(value)
    if isinstance(value, Enum):
        return f"{_words(type(value))}.{value.name}"
    if isinstance(value, functools.partial):  # of a class; the command line's name it among their arguments
        made = next((part for part in (value.func, *value.args) if isinstance(part, type)), value.func)
        others = "".join(f"{_words(part)}, " for part in value.args if part is not made)
        return f"{_words(made)}({others}{_words(value.keywords)})"
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__}.{named.__qualname__}"


def error_of_split(error: ConfigurationError, flag: str) -> ConfigurationError:
    """What is wrong with an environment whose settings were not given to ``--data.env`` but to ``flag``."""
    return ConfigurationError(f"{flag}: {re.sub(r'--data.env([.]|: )', '', str(error))}")


def take_rows(obs: ArrayObservation, rows: Array) -> ArrayObservation:
    """The given rows of an observation, copied."""
    if isinstance(obs, dict):
        return {key: take_rows(value, rows) for key, value in obs.items()}
    return obs[rows]


def join_rows(parts: Sequence[ArrayObservation]) -> ArrayObservation:
    """The rows of the first observation, then those of the second, and so on."""
    if isinstance(parts[0], dict):
        return {key: join_rows([cast(dict[str, Any], part)[key] for part in parts]) for key in parts[0]}
    return np.concatenate(cast(Sequence[Array], parts))
