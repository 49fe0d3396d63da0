"""What small networks on the CPU are made of, where another program than theirs can do what they do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
from gymnasium import spaces
from torch import Tensor, nn

from ppo_lightning.core.host import is_on_host
from ppo_lightning.models.actor_critic import ActorCritic
from ppo_lightning.models.daac import DAACModel
from ppo_lightning.models.encoders import Encoder, MLPEncoder
from ppo_lightning.models.gaussian import PPOActor, PPOCritic, PPOModel
from ppo_lightning.models.normalization import ObservationNormalizer
from ppo_lightning.models.outputs import PPOModelOutput
from ppo_lightning.models.watched import is_as_written

_METHODS = {"forward", "policy", "values", "evaluate", "output", "parameters_for"}
_ACTIVATIONS = nn.Tanh, nn.ReLU


@dataclass(frozen=True)
class HostParts:
    """The layers of an actor-critic.

    Attributes:
        encoder: of the actor; of the critic too where that has none.
        head: Linear to logits or means.
        critic_encoder: None where it is the actor's.
        value_head: Linear to the value.
        logstd: a Gaussian's, ``(D,)``; None for a choice.
    """

    encoder: MLPEncoder
    head: nn.Linear
    critic_encoder: MLPEncoder | None
    value_head: nn.Linear
    logstd: Tensor | None


def host_parts(network: nn.Module) -> HostParts | None:
    """Of an ``ActorCritic``, ``DAACModel`` or ``PPOModel`` without memory; None of any other.

    Nor of one that a hook watches or a method of its own changes. Its encoders are yet to be looked at
    (:func:`is_known`).
    """
    if type(network) in (ActorCritic, DAACModel):
        parts = _of_actor_critic(cast(ActorCritic, network))
    elif type(network) is PPOModel:
        parts = _of_gaussian(network)
    else:
        parts = None
    if parts is None or not all(is_as_written(part, _METHODS) for part in network.modules()):
        return None
    return parts


def is_known(encoder: Encoder, head: nn.Linear) -> bool:
    """Whether an encoder looks at one vector by plain layers, with Tanh or ReLU, of the head's dtype on the CPU."""
    if type(encoder) is not MLPEncoder or not _is_for_vectors(encoder):
        return False
    *layers, last = encoder.layers
    products, activations = [*layers[::2], head], [*layers[1::2], last]  # in turn
    is_plain = all(type(layer) is nn.Linear and layer.bias is not None for layer in products)
    kind, normalizer = type(last), encoder.normalizer
    is_plain = is_plain and kind in _ACTIVATIONS and len(products) == len(activations) + 1
    is_plain = is_plain and all(type(layer) is kind for layer in activations)
    if not is_plain or type(normalizer) not in (ObservationNormalizer, type(None)):
        return False
    weights = [cast(nn.Linear, layer).weight for layer in products]
    return all(is_on_host(weight) and weight.dtype is head.weight.dtype for weight in weights)


def _of_actor_critic(network: ActorCritic) -> HostParts | None:
    if network.core is not None or not (network.is_continuous or network._logits_output is PPOModelOutput):
        return None
    logstd = network.logstd if network.is_continuous else None
    encoders = cast(MLPEncoder, network.embedder), cast("MLPEncoder | None", network.critic_embedder)
    return HostParts(encoders[0], network.fc_policy, encoders[1], network.fc_value, logstd)


def _of_gaussian(network: PPOModel) -> HostParts | None:
    actor, critic = network.actor, network.critic
    if type(actor) is not PPOActor or type(critic) is not PPOCritic or actor.squash or actor.logstd is None:
        return None
    encoders = cast(MLPEncoder, actor.embedder), cast(MLPEncoder, critic.embedder)
    return HostParts(encoders[0], actor.mu, encoders[1], critic.fc_value, actor.logstd)


def _is_for_vectors(encoder: MLPEncoder) -> bool:
    (part, *others) = encoder.parts
    is_vector = isinstance(part, spaces.Box) and len(part.shape) == 1 and part.dtype != np.uint8
    return is_vector and not others and encoder.in_keys is None and not encoder.within
