"""Random streams keyed by purpose, global environment index and iteration.

Two ranks of n environments draw what one rank of 2n draws, and no two ranks play the same episode. Nothing of them
needs saving: the streams of iteration k are the same in a run that was interrupted before it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import torch

# one number a purpose: streams of different purposes never meet
_ENV, _ACTION, _SHUFFLE, _EVAL_ENV, _EVAL_ACTION, _GLOBAL, _UPDATE, _WARM_UP = range(8)


def seed_global_generators(seed: int) -> None:
    """Seed Python's, NumPy's and PyTorch's own generators, on all devices."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    if torch.accelerator.is_available():
        torch.manual_seed(seed)
    else:  # at every rollout it would note down for CUDA, which is not there, where it was called
        torch.default_generator.manual_seed(seed)


@dataclass(frozen=True)
class Streams:
    """The random streams of one rank.

    Attributes:
        seed: of the run.
        first_env: global index of this rank's first environment.
        num_envs: environments of this rank.
    """

    seed: int
    first_env: int
    num_envs: int

    def split(self, parts: int) -> list[Streams]:
        """The same streams as those of ``parts`` ranks with an equal number of environments each."""
        size = self.num_envs // parts
        return [Streams(self.seed, self.first_env + part * size, size) for part in range(parts)]

    def env_seeds(self, iteration: int) -> list[int]:
        """Seeds of environments that start their first episode at ``iteration``."""
        return [self._key(_ENV, index, iteration) for index in self._indices()]

    def action_generators(self, iteration: int) -> list[torch.Generator]:
        """Generators of the action noise of ``iteration``, one an environment."""
        return [self._generator(_ACTION, index, iteration) for index in self._indices()]

    def update_generators(self, iteration: int) -> list[torch.Generator]:
        """Generators of what the update of ``iteration`` draws for transitions, one an environment."""
        return [self._generator(_UPDATE, index, iteration) for index in self._indices()]

    def warm_up_seeds(self) -> list[int]:
        """Seeds of the random actions before the first rollout, one an environment."""
        return [self._key(_WARM_UP, index, 0) for index in self._indices()]

    def shuffle_generator(self, iteration: int) -> torch.Generator:
        """Generator of the minibatch order of ``iteration``."""
        return self._generator(_SHUFFLE, self.first_env, iteration)

    def seed_globals(self, iteration: int) -> None:
        """Begin ``iteration`` with the global generators in a state of its own, different on every rank.

        Networks that draw random numbers (dropout) and environments that use the global generators do the same in a
        run that was interrupted before it.
        """
        seed_global_generators(self._key(_GLOBAL, self.first_env, iteration))

    def eval_env_seeds(self) -> list[int]:
        """Seeds of evaluation environments: the same at every evaluation."""
        return [self._key(_EVAL_ENV, index, 0) for index in self._indices()]

    def eval_generators(self) -> list[torch.Generator]:
        """Generators of the action noise in evaluation: the same at every evaluation."""
        return [self._generator(_EVAL_ACTION, index, 0) for index in self._indices()]

    def _indices(self) -> range:
        return range(self.first_env, self.first_env + self.num_envs)

    def _key(self, purpose: int, index: int, iteration: int) -> int:
        return int(np.random.SeedSequence([self.seed, purpose, index, iteration]).generate_state(1)[0] >> 1)

    def _generator(self, purpose: int, index: int, iteration: int) -> torch.Generator:
        return torch.Generator().manual_seed(self._key(purpose, index, iteration))
