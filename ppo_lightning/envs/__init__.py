"""Simulators behind one contract."""

from ppo_lightning.envs.base import EnvFactory, StepResult, VectorEnv
from ppo_lightning.envs.coordination import CoordinationEnv
from ppo_lightning.envs.gymnasium import GymnasiumEnv
from ppo_lightning.envs.procgen import ProcgenEnv

__all__ = ["CoordinationEnv", "EnvFactory", "GymnasiumEnv", "ProcgenEnv", "StepResult", "VectorEnv"]
