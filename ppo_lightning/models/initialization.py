"""Orthogonal initialisation with PPO's usual gains (Huang et al., "37 implementation details of PPO", detail 2)."""

from __future__ import annotations

import math
from typing import TypeVar, Union

from torch import nn

LayerT = TypeVar("LayerT", bound=Union[nn.Linear, nn.Conv2d])

HIDDEN_GAIN = math.sqrt(2)
POLICY_GAIN = 0.01
VALUE_GAIN = 1.0


def orthogonal_(layer: LayerT, gain: float = HIDDEN_GAIN) -> LayerT:
    """Initialise a layer in place: orthogonal weights times ``gain``, zero biases."""
    nn.init.orthogonal_(layer.weight, gain)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
