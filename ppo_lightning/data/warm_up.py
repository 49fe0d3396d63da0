"""Random actions before the first rollout, for agents whose statistics must begin somewhere."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from ppo_lightning.core.agent import Agent
from ppo_lightning.core.legal import LegalActions
from ppo_lightning.core.rollout import cat_rows
from ppo_lightning.data.finite import check_finite_observation
from ppo_lightning.envs.base import Array, ArrayObservation, VectorEnv
from ppo_lightning.models.actor_critic import as_observation


def warm_up(env: VectorEnv, agent: Agent, seeds: Sequence[int], chunk: int) -> None:
    """Play ``agent.warm_up_steps`` random actions, and show the agent what they lead to, ``chunk`` steps at a time.

    The environments are to be reset afterwards: nothing of this is a part of the training.

    Args:
        env: the environments of this rank.
        agent: looks at the observations.
        seeds: of the actions, one an environment.
        chunk: steps of all environments that are looked at together.

    Raises:
        TrainingError: an observation is not finite, or no action is legal.
    """
    draws, legal = [_Draw(env.action_space, seed) for seed in seeds], env.legal_actions()
    steps = -(-agent.warm_up_steps // env.num_envs)
    with agent.collecting():
        seen_last, acted_on = env.reset(), np.ones(env.num_envs, dtype=bool)
        for first in range(0, steps, chunk):
            seen = []
            for step in range(first, min(first + chunk, steps)):
                if legal is not None:
                    legal.check(seen_last, acted_on, f"at step {step} of the random actions before the first rollout")
                result = env.step(_draw(draws, seen_last, legal))
                seen_last, acted_on = result.obs, result.is_acted_on
                check_finite_observation(result.obs, "after a random action before the first rollout")
                obs = as_observation(result.obs, agent.device)
                seen.append(obs[torch.from_numpy(result.valid).to(agent.device)])
            agent.warm_up(cat_rows(seen))


def _draw(draws: Sequence[_Draw], obs: ArrayObservation, legal: LegalActions | None) -> Array:
    """Random actions of all environments: legal ones, where observations say which are."""
    if legal is None or not legal.is_own:
        return np.stack([draw() for draw in draws])
    masks = zip(*(mask.astype(np.int8) for mask in legal.masks(obs)))  # of each environment's components
    return np.stack([draw(mask) for draw, mask in zip(draws, masks)])


class _Draw:
    """Random actions of one environment, as policies give them: those of Discrete spaces count from 0."""

    def __init__(self, space: spaces.Space[Any], seed: int) -> None:
        self._space = copy.deepcopy(space)
        self._space.seed(seed)
        self._start = space.start if isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)) else 0

    def __call__(self, masks: tuple[Array, ...] | None = None) -> Array:
        """One action; ``masks`` say which are legal, of each component ``(n,)``."""
        mask = masks[0] if masks is not None and isinstance(self._space, spaces.Discrete) else masks
        action: Array = np.asarray(self._space.sample(mask))
        return action - self._start if np.any(self._start) else action
