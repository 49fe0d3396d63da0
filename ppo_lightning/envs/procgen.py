"""The sixteen Procgen games (Cobbe et al., arXiv 1912.01588), through their own vectorised interface."""

from __future__ import annotations

import contextlib
import copy
import io
import struct
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Optional

import numpy as np
from gymnasium import spaces

from ppo_lightning.core.errors import ConfigurationError, NotRestorableError, check_range, close_names
from ppo_lightning.core.plain import from_plain, to_plain
from ppo_lightning.envs.base import Array, EnvFactory, StepResult, VectorEnv

PROCGEN_GAMES = (
    *("bigfish", "bossfight", "caveflyer", "chaser", "climber", "coinrun", "dodgeball", "fruitbot"),
    *("heist", "jumper", "leaper", "maze", "miner", "ninja", "plunder", "starpilot"),
)

_RESET = -1  # the action by which the simulator starts the next level

DistributionMode = Literal["easy", "hard", "extreme", "memory", "exploration"]
_MODE_GAMES = {
    "extreme": {"chaser", "dodgeball", "leaper", "starpilot"},
    "memory": {"caveflyer", "dodgeball", "heist", "jumper", "maze", "miner"},
    "exploration": {"caveflyer", "climber", "coinrun", "heist", "jumper", "leaper", "maze", "ninja"},
}


class ProcgenEnv(EnvFactory):
    """A Procgen game.

    Args:
        env_name: one of the sixteen games: coinrun, starpilot, …
        distribution_mode: easy, hard, or the modes that only some games have.
        start_level: the first level's seed.
        num_levels: how many levels; 0 is unlimited.
        num_threads: simulator threads.
        rand_seed: seed of the order of levels (every rank but the first derives another from it); by default drawn
            from ``--seed_everything``.
        use_backgrounds: draw the games' backgrounds.
    """

    speed_settings = ("num_threads",)

    def __init__(
        self,
        env_name: str,
        distribution_mode: DistributionMode = "hard",
        start_level: int = 0,
        num_levels: int = 0,
        num_threads: int = 4,
        rand_seed: Optional[int] = None,
        use_backgrounds: bool = True,
    ) -> None:
        if env_name not in PROCGEN_GAMES:
            raise ConfigurationError(
                f"--data.env.env_name={env_name} is not a Procgen game: choose from {', '.join(PROCGEN_GAMES)}."
                f"{close_names(env_name, PROCGEN_GAMES)}"
            )
        games = _MODE_GAMES.get(distribution_mode)
        if games is not None and env_name not in games:
            raise ConfigurationError(
                f"--data.env.distribution_mode={distribution_mode} does not exist for {env_name}, only for "
                f"{', '.join(sorted(games))}: use easy or hard."
            )
        if distribution_mode == "exploration" and (start_level, num_levels) != (0, 0):
            raise ConfigurationError(
                "--data.env.distribution_mode=exploration fixes its one level: leave out --data.env.start_level and "
                "--data.env.num_levels."
            )
        check_range("--data.env.start_level", start_level, 0)
        check_range("--data.env.num_levels", num_levels, 0)
        check_range("--data.env.num_threads", num_threads, 0)
        self.env_name = env_name
        self.distribution_mode = distribution_mode
        self.start_level = start_level
        self.num_levels = num_levels
        self.num_threads = num_threads
        self.rand_seed = rand_seed
        self.use_backgrounds = use_backgrounds

    def make(self, seeds: Sequence[int]) -> VectorEnv:
        return self._make(seeds)

    def of_share(self, index: int) -> EnvFactory:
        if self.rand_seed is None or not index:
            return self
        other = copy.copy(self)
        other.rand_seed = int(np.random.SeedSequence([self.rand_seed % 2**32, index]).generate_state(1)[0] >> 1)
        return other

    def make_rendering(self, seeds: Sequence[int]) -> VectorEnv:
        """In the high resolution of 512 × 512. The last picture of an episode is gone: the simulator has reset."""
        return self._make(seeds, render_mode="rgb_array")

    def _make(self, seeds: Sequence[int], **options: Any) -> VectorEnv:
        simulator = _import_procgen()
        rand_seed = self.rand_seed if self.rand_seed is not None else int(seeds[0])
        for name in ("distribution_mode", "num_threads", "use_backgrounds"):
            options[name] = getattr(self, name)
        if self.distribution_mode != "exploration":
            options.update(start_level=self.start_level, num_levels=self.num_levels)
        return ProcgenVectorEnv(
            lambda: simulator(len(seeds), self.env_name, rand_seed=rand_seed % (2**31 - 1), **options)
        )


def _import_procgen() -> Any:
    try:
        # the unmaintained gym, which procgen imports, prints a notice
        with contextlib.redirect_stderr(io.StringIO()):
            from procgen import ProcgenGym3Env
    except ImportError as error:
        version = ".".join(map(str, sys.version_info[:2]))
        raise ConfigurationError(
            "--data.env=ProcgenEnv needs the procgen package, which cannot be imported here "
            f"({error}): pip install 'ppo-lightning[procgen]' on Python 3.10, 3.11 or 3.12 (this is {version})."
        ) from error
    return ProcgenGym3Env


def _state_header(game: str) -> bytes:
    """What the simulator's states begin with: their version, and the game's name."""
    return struct.pack("<ii", 0, len(game)) + game.encode()


class ProcgenVectorEnv(VectorEnv):
    """Procgen behind the contract.

    The simulator resets in the same step, does not give the last observation of an episode, and reports its time
    limit as an ordinary end: every end is ``terminated``.

    Args:
        make_simulator: makes a fresh ``ProcgenGym3Env``.
    """

    reports_solved = True
    render_fps = 15

    def __init__(self, make_simulator: Any) -> None:
        self._make_simulator = make_simulator
        self._simulator = make_simulator()
        self._is_fresh = True
        self.num_envs = self._simulator.num
        self.observation_space = spaces.Box(0, 255, self._simulator.ob_space["rgb"].shape, np.uint8)
        self.action_space = spaces.Discrete(self._simulator.ac_space.eltype.n)
        self._broken_off = np.zeros(self.num_envs, dtype=bool)

    def reset(self) -> Array:
        if not self._is_fresh:  # the simulator can't be told to start again
            self._simulator.close()
            self._simulator = self._make_simulator()
        self._is_fresh = False
        self._broken_off[:] = False
        return self._observe()[1]

    def end_episodes(self, rows: Array) -> bool:
        self._broken_off |= rows
        return True

    def step(self, actions: Array) -> StepResult:
        broken_off, self._broken_off = self._broken_off, np.zeros(self.num_envs, dtype=bool)
        self._simulator.act(np.where(broken_off, _RESET, actions).astype(np.int32))
        rewards, obs, first = self._observe()
        ended = first & ~broken_off
        return StepResult(
            obs=obs,
            rewards=np.where(broken_off, 0, rewards),
            terminated=ended,
            truncated=np.zeros_like(first),
            episode_starts=first,
            valid=~broken_off,
            solved=self._solved() if ended.any() else np.zeros_like(first),
        )

    def _solved(self) -> Array:
        return np.array([info["prev_level_complete"] for info in self._simulator.get_info()], dtype=bool)

    def render(self) -> Array:
        return np.stack([info["rgb"] for info in self._simulator.get_info()])

    def state_dict(self) -> dict[str, Any]:
        return {
            "game": self._game,
            "simulators": [to_plain(state) for state in self._simulator.callmethod("get_state")],
            "broken_off": to_plain(self._broken_off),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The levels and the drawing come from the state too, not from the settings."""
        simulators = [from_plain(simulator) for simulator in state["simulators"]]
        if len(simulators) != self.num_envs:
            raise NotRestorableError(f"the state is one of {len(simulators)} environments, not of {self.num_envs}")
        for simulator in simulators:
            # the simulator ends the whole process where a state is none of its own
            if state["game"] != self._game or not simulator.startswith(_state_header(self._game)):
                raise NotRestorableError(f"the state is one of {state['game']}, not of {self._game}")
        self._simulator.callmethod("set_state", simulators)
        self._is_fresh, self._broken_off = False, from_plain(state["broken_off"])

    @property
    def _game(self) -> str:
        return str(self._simulator.options["env_name"])

    def _observe(self) -> tuple[Array, Array, Array]:
        rewards, obs, first = self._simulator.observe()
        return rewards, obs["rgb"], first

    def close(self) -> None:
        self._simulator.close()
