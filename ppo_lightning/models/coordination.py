"""Networks of coordinators: what they see of the environment and of the novice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from gymnasium import spaces
from tensordict import TensorDictBase
from torch import Tensor, nn

from ppo_lightning.core.errors import ConfigurationError, close_names
from ppo_lightning.models.actor_critic import RawObservation, as_observation, in_full_precision
from ppo_lightning.models.cores import CoreBuilder, EpisodeParts, run_core
from ppo_lightning.models.encoders import Encoder, ImpalaCNN
from ppo_lightning.models.initialization import POLICY_GAIN, VALUE_GAIN, orthogonal_
from ppo_lightning.models.outputs import PPOModelOutput

FEATURE_TYPES = ("obs", "hidden", "hidden_obs", "dist", "hidden_dist", "obs_dist", "obs_hidden_dist")
_KEYS = {"obs": "base_obs", "hidden": "novice_hidden", "dist": "novice_logits"}


class CoordPPOModel(nn.Module):
    """Policy and value of a coordinator: linear heads over the features that it is shown.

    The heads run in full precision also where the encoder runs in half.

    Args:
        observation_space: of a coordination environment.
        action_space: its two actions.
        encoder: builds the encoder of ``base_obs`` from its space.
        feature_type: which features are concatenated before the heads: ``obs``, the encoded ``base_obs``; ``hidden``,
            the novice's hidden features; ``dist``, the novice's action probabilities; or several: ``hidden_obs``,
            ``hidden_dist``, ``obs_dist``, ``obs_hidden_dist``.
        core: builds what remembers, behind the features, from their number: ``LSTMCore`` or ``GRUCore``; none by
            default.

    Attributes:
        embedder: the encoder; None where ``feature_type`` leaves ``obs`` out.
        fc_policy: Linear to ``logit_dim`` logits, orthogonal with gain 0.01.
        fc_value: Linear to the value, orthogonal with gain 1.
        hidden_dim: features before the heads.
        logit_dim: number of actions.

    Raises:
        ConfigurationError: an unknown ``feature_type``, or features that the environment does not show.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        encoder: Callable[[spaces.Space[Any]], Encoder] = ImpalaCNN,
        feature_type: str = "obs",
        core: CoreBuilder | None = None,
    ) -> None:
        super().__init__()
        if feature_type not in FEATURE_TYPES:
            raise ConfigurationError(
                f"--model.network.feature_type={feature_type} is not known: choose from {', '.join(FEATURE_TYPES)}."
                f"{close_names(feature_type, FEATURE_TYPES)}"
            )
        self.feature_type = feature_type
        self.features = tuple(name for name in _KEYS if name in feature_type.split("_"))
        _check_coordinates(observation_space, action_space)
        shown = _shown(observation_space, feature_type, self.features)
        self.embedder = encoder(shown["base_obs"]) if "obs" in self.features else None
        if self.embedder is not None:
            self.embedder.within = ("base_obs",)
        self.hidden_dim = 0 if self.embedder is None else self.embedder.output_dim
        self.hidden_dim += sum(spaces.flatdim(shown[_KEYS[name]]) for name in self.features if name != "obs")
        self.core = None if core is None else core(self.hidden_dim)
        self.hidden_dim = self.hidden_dim if self.core is None else self.core.output_dim
        self.logit_dim = spaces.flatdim(action_space)
        self.fc_policy = orthogonal_(nn.Linear(self.hidden_dim, self.logit_dim), POLICY_GAIN)
        self.fc_value = orthogonal_(nn.Linear(self.hidden_dim, 1), VALUE_GAIN)

    @property
    def device(self) -> torch.device:
        return self.fc_policy.weight.device

    def initial_state(self, num_envs: int) -> Tensor | None:
        """The memory at an episode's start, ``(N, S, L, H)``; None without memory."""
        return None if self.core is None else self.core.initial_state(num_envs)

    def forward(self, obs: RawObservation, state: Tensor | None = None) -> Any:
        """The output for ``B`` observations; with memory ``(output, memory after it)``.

        Args:
            obs: of ``B`` rows, as tensors, numpy arrays or a mapping of either.
            state: the memory before; None is that of an episode's start.
        """
        tensors = as_observation(obs, self.device)
        assert isinstance(tensors, TensorDictBase)
        encoded = self._encode(tensors)
        with in_full_precision(self.device):
            features = self._features(tensors, encoded)
            if self.core is None:
                return self._heads(features)
            features, after = self.core.step(
                features, self.core.initial_state(len(features)) if state is None else state
            )
            return self._heads(features), after

    def unroll(self, obs: TensorDictBase, state: Tensor, episode_starts: Tensor) -> PPOModelOutput:
        """The output over whole sequences, see :func:`models.memory.unroll`: the encoder takes all steps at once."""
        rows = obs.flatten(0, 1)
        encoded = self._encode(rows)
        with in_full_precision(self.device):
            features = self._features(rows, encoded)
            return self._heads(run_core(self.core, features, state, EpisodeParts(episode_starts)))

    def _encode(self, obs: TensorDictBase) -> Tensor | None:
        return None if self.embedder is None else self.embedder(obs["base_obs"])

    def _features(self, obs: TensorDictBase, encoded: Tensor | None) -> Tensor:
        dtype = self.fc_policy.weight.dtype
        parts = [] if encoded is None else [encoded.to(dtype)]
        if "hidden" in self.features:
            parts.append(obs["novice_hidden"].to(dtype).flatten(1))
        if "dist" in self.features:
            # before it is rounded: in half precision the logit of an illegal action would be infinite
            parts.append(obs["novice_logits"].softmax(dim=-1).to(dtype))
        return torch.cat(parts, dim=-1)

    def _heads(self, hidden: Tensor) -> PPOModelOutput:
        return PPOModelOutput(self.fc_policy(hidden), self.fc_value(hidden).squeeze(-1), hidden)


class ImpalaCoordPPOModel(CoordPPOModel):
    """The IMPALA CNN that Procgen coordinators use (duo_ai's ``ImpalaCoordPPOModel``)."""

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        feature_type: str = "obs",
        channels: tuple[int, ...] = (16, 32, 32),
        hidden_dim: int = 256,
        core: CoreBuilder | None = None,
    ) -> None:
        """Build from spaces.

        Args:
            observation_space: of a coordination environment whose ``base_obs`` are images.
            action_space: its two actions.
            feature_type: what it sees: obs, hidden, hidden_obs, dist, hidden_dist, obs_dist or obs_hidden_dist.
            channels: channels of each IMPALA block.
            hidden_dim: features of the image.
            core: builds what remembers, behind all features, from their number; none by default.
        """
        super().__init__(
            observation_space,
            action_space,
            encoder=lambda space: ImpalaCNN(space, channels=channels, hidden_dim=hidden_dim),
            feature_type=feature_type,
            core=core,
        )


def _check_coordinates(observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
    has_agents = isinstance(observation_space, spaces.Dict) and "base_obs" in observation_space.spaces
    if not has_agents or not isinstance(action_space, spaces.Discrete):
        raise ConfigurationError(
            "--model.network is one of a coordinator, and --data.env has no novice to coordinate: set --data.env to "
            "CoordinationEnv, or choose another network."
        )


def _shown(space: spaces.Space[Any], feature_type: str, features: tuple[str, ...]) -> spaces.Dict:
    assert isinstance(space, spaces.Dict)
    for name in features:
        if _KEYS[name] not in space.spaces:
            own = [key for key in _KEYS.values() if key in space.spaces]
            raise ConfigurationError(
                f"--model.network.feature_type={feature_type} reads {_KEYS[name]}, which "
                + (
                    f"this novice does not show, but {' and '.join(own)}: choose a feature_type of these."
                    if "novice_hidden" in own or "novice_logits" in own
                    else "a closed novice does not show: set --data.env.open_novice=true, or feature_type=obs."
                )
            )
    return space
