"""Playing whole episodes and counting them without bias to short ones."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ppo_lightning.core.errors import TrainingError
from ppo_lightning.data.episodes import Episode, EpisodeStatistics
from ppo_lightning.data.seeding import Streams
from ppo_lightning.envs.base import Array, ArrayObservation, StepResult, VectorEnv, take_rows
from ppo_lightning.functional.distributions import draw_noise
from ppo_lightning.models.actor_critic import as_observation
from ppo_lightning.policies.base import Policy

_NOISE_STEPS = 64
_PATIENCE = 100  # times max_num_steps
_FEW = 7 / 8  # of the rows that act: fewer still needed, and the others are left out


See = Callable[[ArrayObservation, Array], None]
"""Looks at observations ``(N, *shape)``, of which some rows ``(K,)`` count."""


@dataclass
class EvaluationResult:
    """Finished episodes of one rank, and what playing them took.

    Attributes:
        episodes: the counted ones.
        rows: the environments that they were played in.
        action_steps: how many of their steps took the action asked for.
        seconds: wall-clock time.
        dropped: episodes that were lost with their simulator and played anew.
        base_actions: how many steps gave each discrete action to the simulator, where another agent than ``policy``
            chose it: of a coordinator's novice and expert. Of episodes that were cut or dropped too.
    """

    episodes: list[Episode]
    rows: list[int]
    action_steps: int
    seconds: float
    dropped: int = 0
    base_actions: Counter[int] = field(default_factory=Counter)

    @property
    def steps(self) -> int:
        """Environment steps of the counted episodes."""
        return sum(episode.length for episode in self.episodes)


def envs_for(num_episodes: int, at_most: int) -> int:
    """The number of environments that play ``num_episodes`` in the fewest rounds, with the fewest left idle."""
    rounds = -(-num_episodes // at_most)
    return -(-num_episodes // rounds)


def episode_quotas(num_episodes: int, num_envs: int) -> Array:
    """How many episodes each of ``num_envs`` environments plays: ``(num_envs,)``, as equal as can be."""
    return num_episodes // num_envs + (np.arange(num_envs) < num_episodes % num_envs)


def evaluate(
    policy: Policy,
    env: VectorEnv,
    streams: Streams,
    quotas: Array,
    temperature: float,
    max_num_steps: int | None = None,
    action_id: int | None = None,
    watch: Callable[[Array], None] | None = None,
    see: See | None = None,
) -> EvaluationResult:
    """Play whole episodes with a fresh environment.

    Each environment has its quota of episodes, whatever they take: counting the first to finish would favour short
    ones. The network sees only the environments that still have episodes to play. An episode that is lost with its
    simulator is not counted, and another one is played.

    Args:
        policy: acts; its memory is reset between episodes.
        env: just made.
        streams: the random numbers of its actions.
        quotas: ``(N,)`` episodes to count of each environment.
        temperature: 0 takes the most probable actions.
        max_num_steps: episodes that reach this length count as they are.
        action_id: a discrete action to count.
        watch: called at the reset and after each step with the rows ``(K,)`` that show a counted episode.
        see: called before each step with the observations and the rows ``(K,)`` whose action will count.

    Raises:
        TrainingError: an environment that cannot be reset alone never ends the episode that ``max_num_steps`` cut,
            and has more to play; or no action is legal in one.
    """
    started = time.perf_counter()
    counter = _QuotaCounter(env, quotas, max_num_steps, action_id)
    player = _Player(policy, env, streams, temperature)
    obs, legal, step = env.reset(), env.legal_actions(), 0
    if legal is not None:
        legal.check(obs, counter.has_more, "at its first reset in an evaluation")
    if watch is not None:
        watch(np.flatnonzero(counter.is_playing))
    while not counter.is_done:
        if see is not None:
            see(obs, np.flatnonzero(counter.is_playing))
        actions = player.act(obs, counter.has_more)
        showed = counter.is_playing if watch is not None else None
        result = env.step(actions)
        counter.add(result, actions)
        player.reset(result.episode_starts)
        obs = result.obs
        if legal is not None:
            legal.check(obs, result.is_acted_on & counter.has_more, f"after step {step} of an evaluation")
        step += 1
        if watch is not None and showed is not None:
            watch(np.flatnonzero(np.where(result.episode_starts, counter.is_playing, showed)))
    seconds = time.perf_counter() - started
    return EvaluationResult(
        counter.episodes, counter.rows, counter.action_steps, seconds, counter.dropped, counter.base_actions
    )


class _Player:
    """Acts in the environments that still have episodes to play; the others get zeros, or the first legal action."""

    def __init__(self, policy: Policy, env: VectorEnv, streams: Streams, temperature: float) -> None:
        self._policy = policy
        self._temperature = temperature
        self._device = policy.device
        self._noise = _Noise(env, streams, self._device) if policy.draws(temperature) else None
        self._num_envs = env.num_envs
        self._rows = np.arange(env.num_envs)
        self._legal = env.legal_actions()
        policy.reset(np.ones(env.num_envs, dtype=bool))

    def act(self, obs: ArrayObservation, has_more: Array) -> Array:
        if np.count_nonzero(has_more) < _FEW * len(self._rows):
            self._policy.keep(has_more[self._rows])
            self._rows = np.flatnonzero(has_more)
        noise = self._noise.next() if self._noise is not None else None
        if len(self._rows) == self._num_envs:
            return self._choose(obs, noise)
        noise = noise[torch.from_numpy(self._rows).to(noise.device)] if noise is not None else None
        some = self._choose(take_rows(obs, self._rows), noise)
        if self._legal is not None and self._legal.is_own:
            actions = self._legal.first(obs).astype(some.dtype)
        else:
            actions = np.zeros((self._num_envs, *some.shape[1:]), dtype=some.dtype)
        actions[self._rows] = some
        return actions

    def _choose(self, obs: ArrayObservation, noise: Tensor | None) -> Array:
        actions = self._policy.act(as_observation(obs, self._device), self._temperature, noise=noise)
        return torch.as_tensor(actions).cpu().numpy()

    def reset(self, episode_starts: Array) -> None:
        self._policy.reset(episode_starts[self._rows])


class _QuotaCounter:
    """Keeps the first episodes of each environment, up to its quota."""

    def __init__(self, env: VectorEnv, quotas: Array, max_num_steps: int | None, action_id: int | None) -> None:
        self._env = env
        self._statistics = EpisodeStatistics(env.num_envs)
        self._open = quotas.copy()
        self.has_more = self._open > 0
        """``(N,)``: environments with episodes to play."""
        self._max_num_steps = max_num_steps
        self._action_id = action_id
        self._cut = np.zeros(env.num_envs, dtype=bool)  # counted already, playing on where rows can't be reset
        self._running_action_steps = np.zeros(env.num_envs, dtype=np.int64)
        self.action_steps = 0
        self.base_actions: Counter[int] = Counter()
        self.dropped = 0
        """Episodes that would have counted."""
        self.episodes: list[Episode] = []
        self.rows: list[int] = []

    @property
    def is_playing(self) -> Array:
        """``(N,)``: environments whose running episode will count."""
        return self.has_more & ~self._cut

    @property
    def is_done(self) -> bool:
        return not self.has_more.any()

    def add(self, result: StepResult, actions: Array) -> None:
        if result.dropped is not None:
            self._drop(result.dropped)
        if result.base_actions is not None and result.base_actions.ndim == 1:
            self.base_actions.update(result.base_actions[self.is_playing & result.valid].tolist())
        if self._action_id is not None:
            self._running_action_steps += self.is_playing & result.valid & (actions == self._action_id)
        for row, episode in self._statistics.add(result):
            if not self._cut[row]:
                self._count(row, episode)
            self._cut[row] = False
        if self._max_num_steps is not None:
            self._cut_long_episodes(self._max_num_steps)

    def _drop(self, dropped: Array) -> None:
        self.dropped += int((dropped & self.is_playing).sum())
        self._running_action_steps[dropped] = 0
        self._cut &= ~dropped

    def _cut_long_episodes(self, max_num_steps: int) -> None:
        too_long = (self._statistics.lengths >= max_num_steps) & self.is_playing
        for row in np.flatnonzero(too_long).tolist():
            self._count(row, self._statistics.running(row, False if self._env.reports_solved else None))
        go_on = too_long & self.has_more
        if go_on.any():
            if self._env.end_episodes(go_on):
                for row in np.flatnonzero(go_on).tolist():
                    self._statistics.drop(row)
            else:
                self._cut |= go_on
        self._check_that_episodes_end(max_num_steps)

    def _check_that_episodes_end(self, max_num_steps: int) -> None:
        endless = self._cut & self.has_more & (self._statistics.lengths >= _PATIENCE * max_num_steps)
        if endless.any():
            row = int(np.flatnonzero(endless)[0])
            raise TrainingError(
                f"Evaluation waits for environment {row} to end an episode, {int(self._statistics.lengths[row])} steps "
                f"after its start (--evaluation.max_num_steps={max_num_steps} counted it long ago): give the "
                "environment a time limit, or set --evaluation.num_envs to --evaluation.num_episodes."
            )

    def _count(self, row: int, episode: Episode) -> None:
        if self._open[row]:
            self._open[row] -= 1
            if not self._open[row]:
                self.has_more = self._open > 0
            self.action_steps += int(self._running_action_steps[row])
            self._running_action_steps[row] = 0
            self.episodes.append(episode)
            self.rows.append(row)


class _Noise:
    """Action noise of one step after another, drawn some steps ahead."""

    def __init__(self, env: VectorEnv, streams: Streams, device: torch.device) -> None:
        self._env, self._device = env, device
        self._generators = streams.eval_generators()
        self._drawn: list[Tensor] = []

    def next(self) -> Tensor:
        if not self._drawn:
            noise = draw_noise(self._env.action_space, _NOISE_STEPS, self._generators, torch.float32, self._device)
            self._drawn = list(noise.unbind())[::-1]
        return self._drawn.pop()
