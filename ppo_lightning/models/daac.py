"""Networks whose critic shares nothing with the actor, which predicts advantages beside its policy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from gymnasium import spaces
from torch import Tensor, nn

from ppo_lightning.models.actor_critic import ActorCritic, in_full_precision
from ppo_lightning.models.cores import CoreBuilder
from ppo_lightning.models.encoders import Encoder, MLPEncoder
from ppo_lightning.models.initialization import VALUE_GAIN, orthogonal_


class DAACModel(ActorCritic):
    """A policy network that also predicts advantages of actions, and a value network (arXiv 2102.10330, figure 3).

    Args:
        observation_space: one environment's observations.
        action_space: Discrete, MultiDiscrete or MultiBinary, or Box (a Gaussian with a learned, state-independent std).
        encoder: builds the policy network's encoder from the observation space.
        critic_encoder: the value network's; the same kind by default.
        initial_logstd: logarithm of the Gaussian's initial standard deviation.
        core: builds what each of the two remembers by, behind its encoder, from its number of features: ``LSTMCore`` or
            ``GRUCore``; none by default.

    Attributes:
        fc_advantage: Linear from the policy network's features and the action to the advantage, orthogonal with gain 1.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        encoder: Callable[[spaces.Space[Any]], Encoder] = MLPEncoder,
        critic_encoder: Callable[[spaces.Space[Any]], Encoder] | None = None,
        initial_logstd: float = 0.0,
        core: CoreBuilder | None = None,
    ) -> None:
        super().__init__(
            observation_space,
            action_space,
            encoder,
            critic_encoder,
            shared=False,
            initial_logstd=initial_logstd,
            core=core,
        )
        self._action_space = action_space
        self.fc_advantage = orthogonal_(nn.Linear(self.hidden_dim + self.logit_dim, 1), VALUE_GAIN)

    def advantages(self, hidden: Tensor, actions: Tensor) -> Tensor:
        """Predicted advantages ``(B,)`` of ``actions (B, …)``, by the actor's features ``(B, H)``."""
        with in_full_precision(self.device):
            features = torch.cat([hidden, action_features(actions, self._action_space).to(hidden.dtype)], dim=-1)
            advantage: Tensor = self.fc_advantage(features).squeeze(-1)
            return advantage


def action_features(actions: Tensor, space: spaces.Space[Any]) -> Tensor:
    """Actions as a network reads them, ``(B, flatdim)``: categories one-hot, all others as they are."""
    if isinstance(space, spaces.Discrete):
        return nn.functional.one_hot(actions.long(), int(space.n))
    if isinstance(space, spaces.MultiDiscrete):
        parts = [nn.functional.one_hot(part, int(n)) for part, n in zip(actions.long().unbind(-1), space.nvec)]
        return torch.cat(parts, dim=-1)
    return actions
