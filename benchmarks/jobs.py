"""What is timed: four jobs, each with the numbers that the peers' programs have for it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ppo_lightning import ActorCritic, ImpalaPPOModel, MLPEncoder, NatureCNN
from ppo_lightning.cli.precision import HALF, has_bfloat16
from ppo_lightning.envs import AtariEnv, EnvFactory, GymnasiumEnv, ProcgenEnv

MAX_GRAD_NORM = 0.5


@dataclass(frozen=True)
class Job:
    """One of them.

    Attributes:
        title: as tables name it.
        env: makes the environments.
        num_envs: of them.
        num_steps: of each, a rollout.
        num_minibatches: of each epoch.
        update_epochs: of each rollout.
        network: builds ours, which has the peers' sizes.
        agent: further arguments of ``PPO``.
        iterations: that are timed, after one that is not.
        has_pictures: its network looks at pictures.
        threads: of every program.
        sb3: settings of Stable-Baselines3: of the environment, and of ``PPO``; None leaves it out.
        cleanrl: CleanRL's script and its arguments; None leaves it out.
    """

    title: str
    env: Callable[[], EnvFactory]
    num_envs: int
    num_steps: int
    num_minibatches: int
    update_epochs: int
    network: Callable[..., Any]
    agent: dict[str, Any]
    iterations: int
    has_pictures: bool = False
    threads: int = 1
    sb3: tuple[dict[str, Any], dict[str, Any]] | None = None
    cleanrl: tuple[str, list[str]] | None = field(default=None)

    @property
    def batch_size(self) -> int:
        """Transitions a rollout."""
        return self.num_envs * self.num_steps

    @property
    def precision(self) -> str:
        """Of ours and of the floor, as the command line chooses it."""
        return HALF if self.has_pictures and has_bfloat16("cpu") else "32-true"

    @property
    def numbers(self) -> str:
        """In words."""
        return (
            f"{self.num_envs} × {self.num_steps} steps, {self.update_epochs} epochs × {self.num_minibatches} "
            f"minibatches of {self.batch_size // self.num_minibatches}, {self.precision}, {self.threads} "
            f"{'thread' if self.threads == 1 else 'threads'}"
        )


def mlp(width: int = 64) -> Callable[..., Any]:
    """What builds actor and critic of two hidden layers each."""
    return functools.partial(ActorCritic, encoder=functools.partial(MLPEncoder, hidden_sizes=[width, width]))


JOBS = {
    "cartpole": Job(
        title="CartPole-v1, MLP 2×64",
        env=functools.partial(GymnasiumEnv, "CartPole-v1"),
        num_envs=4,
        num_steps=128,
        num_minibatches=4,
        update_epochs=4,
        network=mlp(),
        agent={"learning_rate": 2.5e-4, "gamma": 0.99},
        iterations=80,
        sb3=({"env_id": "CartPole-v1"}, {"policy": "MlpPolicy"}),
        cleanrl=("ppo.py", ["--env-id", "CartPole-v1"]),
    ),
    "halfcheetah": Job(
        title="HalfCheetah-v5, MLP 2×64",
        env=functools.partial(GymnasiumEnv, "HalfCheetah-v5"),
        num_envs=1,
        num_steps=2048,
        num_minibatches=32,
        update_epochs=10,
        network=mlp(),
        agent={"learning_rate": 3e-4, "gamma": 0.99, "ent_coef": 0.0},
        iterations=6,
        sb3=({"env_id": "HalfCheetah-v5"}, {"policy": "MlpPolicy"}),
    ),
    "coinrun": Job(
        title="Procgen coinrun (easy), IMPALA",
        env=functools.partial(ProcgenEnv, "coinrun", distribution_mode="easy", num_levels=0, num_threads=2),
        num_envs=64,
        num_steps=256,
        num_minibatches=8,
        update_epochs=3,
        network=ImpalaPPOModel,
        agent={"learning_rate": 5e-4, "gamma": 0.999},
        iterations=1,
        has_pictures=True,
        threads=2,
        cleanrl=("ppo_procgen.py", ["--env-id", "coinrun"]),
    ),
    "breakout": Job(
        title="Atari Breakout, Nature CNN",
        env=functools.partial(AtariEnv, "ALE/Breakout-v5"),
        num_envs=8,
        num_steps=128,
        num_minibatches=4,
        update_epochs=4,
        network=functools.partial(ActorCritic, encoder=NatureCNN, shared=True),
        agent={"learning_rate": 2.5e-4, "gamma": 0.99, "clip_coef": 0.1},
        iterations=4,
        has_pictures=True,
        threads=2,
        sb3=(
            {"env_id": "BreakoutNoFrameskip-v4", "atari": True},
            {"policy": "CnnPolicy", "clip_range": 0.1, "ent_coef": 0.01},
        ),
    ),
}
