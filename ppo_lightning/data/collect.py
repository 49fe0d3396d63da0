"""Playing the environment with the agent: one rollout at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor

from ppo_lightning.core.agent import ActOutput, Agent, RolloutEnd
from ppo_lightning.core.errors import NotRestorableError, TrainingError
from ppo_lightning.core.plain import from_plain, to_plain
from ppo_lightning.core.rollout import (
    MemoryRollout,
    Observation,
    Rollout,
    RolloutWriter,
    State,
    cat_rows,
    stack_steps,
    state_from_plain,
    state_to_plain,
    where_rows,
)
from ppo_lightning.data.episodes import EpisodeStatistics
from ppo_lightning.data.finite import are_finite, check_finite_observation
from ppo_lightning.data.warm_up import warm_up
from ppo_lightning.envs.base import Array, ArrayObservation, StepResult, VectorEnv
from ppo_lightning.models.actor_critic import as_observation

_ROWS = 1024  # of which values are computed at once


class Collector:
    """Plays ``num_steps`` of every environment a rollout, and keeps what runs on over the borders of rollouts.

    Args:
        env: the environments of this rank.
        num_steps: steps of each environment a rollout (``T``).
    """

    def __init__(self, env: VectorEnv, num_steps: int) -> None:
        self.env = env
        self.num_steps = num_steps
        self.is_open = True
        self.episodes = EpisodeStatistics(env.num_envs)
        self.traces: dict[str, Tensor] = {}
        """What the agent keeps of each environment from rollout to rollout."""
        self._obs: ArrayObservation | None = None
        self._starts = np.ones(env.num_envs, dtype=bool)
        self._state: State | None = None
        self._beginning: State | None = None
        self._writer: RolloutWriter | None = None
        self._lacks_values = False
        self._host = _HostColumns(num_steps, env.num_envs)
        self._legal = env.legal_actions()

    def close(self) -> None:
        """Free the simulators."""
        self.env.close()
        self.is_open = False

    def state_dict(self) -> dict[str, Any]:
        """Where the environments stand between two rollouts; ``not_restorable`` says what of them can't be saved."""
        try:
            simulators = self.env.state_dict()
        except NotRestorableError as error:
            return {"not_restorable": str(error), "restarts": self.env.restarts}
        return {
            "simulators": simulators,
            "restarts": self.env.restarts,
            "obs": to_plain(self._obs),
            "starts": to_plain(self._starts),
            "memory": state_to_plain(self._state),
            "episodes": self.episodes.state_dict(),
            "traces": {name: trace.cpu() for name, trace in self.traces.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Go on from there, with the memory on ``device``.

        Raises:
            NotRestorableError: the simulators don't fit; they must be made anew.
        """
        self.env.restarts = state["restarts"]  # before the state, which may say more of them
        self.env.load_state_dict(state["simulators"])
        self._obs, self._starts = from_plain(state["obs"]), from_plain(state["starts"])
        self._state = state_from_plain(state["memory"], self.env.num_envs, device)
        self.episodes.load_state_dict(state["episodes"])
        self.traces = {name: trace.to(device) for name, trace in state.get("traces", {}).items()}

    def warm_up(self, agent: Agent, seeds: Sequence[int]) -> None:
        """Let ``agent`` see what random actions lead to; all environments begin anew after it."""
        warm_up(self.env, agent, seeds, self.num_steps)
        self._obs = None

    def end(
        self, agent: Agent, num_epochs: int, make_generators: Callable[[], Sequence[torch.Generator]]
    ) -> RolloutEnd:
        """Where the environments stand after the last rollout."""
        assert self._obs is not None
        obs = as_observation(self._obs, agent.device)
        return RolloutEnd(obs, self._state, self.traces, num_epochs, make_generators)

    def collect(self, agent: Agent, generators: Sequence[torch.Generator]) -> Rollout:
        """Play one rollout, with one generator for the action noise of each environment.

        The storage is reused: a rollout is good until the next one starts.

        Raises:
            TrainingError: an observation or a reward is not finite, or no action is legal.
        """
        self.episodes.start_rollout()
        truncations = _Truncations()
        with agent.collecting():  # networks may play in the environment too
            self._beginning = agent.initial_state(self.env.num_envs)
            if self._obs is None:
                self._obs = self.env.reset()
                self._state = self._beginning
                check_finite_observation(self._obs, "at its first reset")
                if self._legal is not None:
                    self._legal.check(self._obs, np.ones(self.env.num_envs, dtype=bool), "at its first reset")
            device = agent.device
            for step, noise in enumerate(agent.draw_noise(self.num_steps, generators).unbind(0)):
                self._play(agent, device, step, noise, truncations)
            assert self._writer is not None
            rollout = self._writer.rollout
            self._host.write(rollout)
            self._bootstrap(agent, rollout, truncations)
        return rollout

    def _play(self, agent: Agent, device: torch.device, step: int, noise: Tensor, truncations: _Truncations) -> None:
        assert self._obs is not None
        obs = as_observation(self._obs, device)
        output = agent.act(obs, noise, self._state)
        if self._writer is None:
            self._writer = RolloutWriter(self._allocate(agent, obs, output))
            self._lacks_values = output.values is None
        write = self._writer.add
        write(step, obs=obs, actions=output.actions, log_probs=output.log_probs)
        if output.values is not None:
            write(step, values=output.values)
        if self._state is not None:
            write(step, states=self._state)
        if output.extra is not None:
            write(step, extra=output.extra)

        result = self.env.step(output.env_actions.cpu().numpy())
        self._check_finite(result, step)
        self._host.add(step, result, self._starts)
        self.episodes.add(result)
        if result.final_obs is not None and result.truncated.any():
            truncations.add(step, result, output.state, device)
        if agent.keeps_next_obs:
            write(step, next_obs=_following(result, device))
        self._obs, self._starts = result.obs, result.episode_starts
        self._state = _clear_state(output.state, self._beginning, result.episode_starts)

    def _allocate(self, agent: Agent, obs: Observation, output: ActOutput) -> Rollout:
        kind, kept = Rollout, {"next_obs": obs} if agent.keeps_next_obs else {}
        if output.extra is not None:
            kept["extra"] = TensorDict(output.extra, batch_size=[self.env.num_envs])
        if self._state is not None:
            kind, kept["states"] = MemoryRollout, self._state
        storage = {name: stack_steps(self.num_steps, part) for name, part in kept.items()}
        values = output.log_probs if output.values is None else output.values
        return kind.allocate(self.num_steps, obs, output.actions, values, **storage)

    def _check_finite(self, result: StepResult, step: int) -> None:
        if not are_finite(result.rewards):
            row = int(np.flatnonzero(~np.isfinite(result.rewards))[0])
            raise TrainingError(
                f"The reward of environment {row} at step {step} of the rollout is {result.rewards[row]}: training "
                "stopped before it reached the network; the environment needs mending."
            )
        check_finite_observation(result.obs, f"after step {step} of the rollout")
        if self._legal is not None:
            self._legal.check(result.obs, result.is_acted_on, f"after step {step} of the rollout")
        if result.final_obs is not None:
            ended = np.flatnonzero(result.terminated | result.truncated)
            check_finite_observation(result.final_obs, f"at an episode's end, step {step} of the rollout", ended)

    def _bootstrap(self, agent: Agent, rollout: Rollout, truncations: _Truncations) -> None:
        """Fill ``next_values``: V of the next step's observation, and of the final one where truncated.

        Before it ``values``, where the steps did not.
        """
        assert self._obs is not None
        last_obs, num_envs = as_observation(self._obs, agent.device), self.env.num_envs
        if self._lacks_values:
            parts = cast(Any, rollout.obs).flatten(0, 1).split(_ROWS)
            values = torch.cat([agent.value_of(part, None) for part in parts])
            rollout.values.copy_(values.reshape(rollout.values.shape))
        if not truncations.steps:
            last_values = agent.value_of(last_obs, self._state)
        else:
            obs = cat_rows([last_obs, *truncations.obs])
            state = None if self._state is None else cat_rows([self._state, *truncations.states])
            values = agent.value_of(obs, state)
            last_values, final_values = values[:num_envs], values[num_envs:]
        rollout.next_values[:-1].copy_(rollout.values[1:])
        rollout.next_values[-1].copy_(last_values)
        if truncations.steps:
            steps, rows = (torch.as_tensor(index, device=rollout.values.device) for index in truncations.index())
            rollout.next_values[steps, rows] = final_values


class _HostColumns:
    """What the simulator reports, gathered on the host and written to the rollout once."""

    def __init__(self, num_steps: int, num_envs: int) -> None:
        self.rewards = np.zeros((num_steps, num_envs), dtype=np.float64)
        self.terminated, self.truncated, self.valid, self.episode_starts = np.zeros(
            (4, num_steps, num_envs), dtype=bool
        )

    def add(self, step: int, result: StepResult, episode_starts: Array) -> None:
        self.rewards[step] = result.rewards
        self.terminated[step] = result.terminated
        self.truncated[step] = result.truncated
        self.valid[step] = result.valid
        self.episode_starts[step] = episode_starts
        if result.dropped is not None and step:
            self._cut_before(step, result.dropped & ~result.valid)

    def _cut_before(self, step: int, dropped: Array) -> None:
        """Truncate episodes before a step that was lost: its observation was seen, so its value is at hand.

        Where that observation was the first of a rollout, the one before has used its value in the same way.
        """
        last = step - 1
        self.truncated[last] |= dropped & self.valid[last] & ~self.terminated[last]

    def write(self, rollout: Rollout) -> None:
        self.truncated &= ~self.terminated
        for name in ("rewards", "terminated", "truncated", "valid", "episode_starts"):
            getattr(rollout, name).copy_(torch.from_numpy(getattr(self, name)))


class _Truncations:
    """The final observations (and the memory) of truncated episodes, valued together at the rollout's end."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.rows: list[Array] = []
        self.obs: list[Observation] = []
        self.states: list[State] = []

    def add(self, step: int, result: StepResult, state: State | None, device: torch.device) -> None:
        ended = np.flatnonzero(result.terminated | result.truncated)
        truncated = np.flatnonzero(result.truncated & ~result.terminated)
        if not len(truncated):
            return
        assert result.final_obs is not None
        picked = torch.from_numpy(np.searchsorted(ended, truncated))
        self.steps.append(step)
        self.rows.append(truncated)
        self.obs.append(as_observation(result.final_obs, device)[picked.to(device)])
        if state is not None:
            self.states.append(state[torch.from_numpy(truncated).to(device)])

    def index(self) -> tuple[Array, Array]:
        steps = np.repeat(self.steps, [len(rows) for rows in self.rows])
        return steps, np.concatenate(self.rows)


def _following(result: StepResult, device: torch.device) -> Observation:
    """What truly followed a step: the final observations where episodes ended, as far as the simulator gives them."""
    obs = as_observation(result.obs, device)
    if result.final_obs is None:
        return obs
    ended = torch.from_numpy(np.flatnonzero(result.terminated | result.truncated)).to(device)
    following: Any = obs.clone()
    following[ended] = as_observation(result.final_obs, device)
    return cast(Observation, following)


def _clear_state(state: State | None, beginning: State | None, episode_starts: Array) -> State | None:
    """The memory for the next step: back to its ``beginning`` in the rows where an episode starts."""
    if state is None or beginning is None or not episode_starts.any():
        return state
    return where_rows(torch.from_numpy(episode_starts).to(beginning.device), beginning, state)
