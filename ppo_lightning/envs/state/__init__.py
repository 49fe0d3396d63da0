"""Simulators that can be saved and go on elsewhere, bit for bit: one codec for each class they are made of."""

from ppo_lightning.envs.state.codecs import CODECS
from ppo_lightning.envs.state.fields import Codec, Fields
from ppo_lightning.envs.state.layers import layers_of, load_layers, record_actions, save_layers
from ppo_lightning.envs.state.replay import Recorder, Replay
from ppo_lightning.envs.state.simulator import SimulatorState
from ppo_lightning.envs.state.vector import VectorState

__all__ = [
    "CODECS",
    "Codec",
    "Fields",
    "Recorder",
    "Replay",
    "SimulatorState",
    "VectorState",
    "layers_of",
    "load_layers",
    "record_actions",
    "save_layers",
]
