"""Simulators behind one contract."""

from ppo_lightning.envs.atari import AtariEnv
from ppo_lightning.envs.base import EnvFactory, StepResult, VectorEnv
from ppo_lightning.envs.coordination import CoordinationEnv
from ppo_lightning.envs.envpool import EnvpoolEnv
from ppo_lightning.envs.gymnasium import GymnasiumEnv
from ppo_lightning.envs.procgen import ProcgenEnv
from ppo_lightning.envs.wrappers import ActionMaskWrapper

__all__ = [
    "ActionMaskWrapper",
    "AtariEnv",
    "CoordinationEnv",
    "EnvFactory",
    "EnvpoolEnv",
    "GymnasiumEnv",
    "ProcgenEnv",
    "StepResult",
    "VectorEnv",
]
