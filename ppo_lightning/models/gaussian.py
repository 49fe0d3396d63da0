"""The Gaussian actor-critic as TensorDict modules (after ProtoMotions' ``PPOActor`` and ``PPOModel``)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from gymnasium import spaces
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase, dispatch
from torch import Tensor, nn

from ppo_lightning.core.errors import ConfigurationError, check_range, close_names
from ppo_lightning.core.rollout import Observation
from ppo_lightning.functional.distributions import DiagonalGaussian
from ppo_lightning.functional.squashed import SquashedGaussian
from ppo_lightning.models.actor_critic import (
    RawObservation,
    as_observation,
    errors_of_encoder,
    in_full_precision,
)
from ppo_lightning.models.encoders import Encoder, MLPEncoder
from ppo_lightning.models.initialization import POLICY_GAIN, VALUE_GAIN, orthogonal_
from ppo_lightning.models.normalization import FullPrecision
from ppo_lightning.models.outputs import GaussianModelOutput, SquashedModelOutput

Std = Literal["learned", "fixed", "state_dependent"]

OBS_KEY = "obs"
"""The key of an observation that is no Dict."""
_LOGSTD_RANGE = -5.0, 2.0  # of one that depends on the state
_INITIAL_LOGSTD_RANGE = -20.0, 20.0  # of the others: float32 holds the density


class PPOActor(FullPrecision, TensorDictModuleBase):
    """Observations to a Gaussian over actions; samples it in any TensorDict program.

    Called with a TensorDict it adds, for each row, ``action`` (a sample, of torch's global generator), ``mean_action``
    (the distribution's mode) and ``neglogp`` (minus the log-probability of ``action``). It reads the keys ``in_keys``:
    those of the encoder, or ``obs`` where observations are no Dict. Heads run in full precision also under autocast.

    Args:
        observation_space: one environment's observations.
        action_space: Box with one dimension.
        encoder: builds the encoder from the observation space; its ``in_keys`` are the actor's.
        std: the standard deviation is a ``learned`` parameter an action dimension, a ``fixed`` one, or
            ``state_dependent``: a linear function of the features, its logarithm kept within -5 and 2.
        initial_logstd: logarithm of the initial standard deviation.
        squash: actions are tanh of a Gaussian's samples, with the exact log-probability.
        rescale_actions: -1 and 1 are the bounds of the action space, for the environment alone: ``to_env`` maps
            linearly. Else actions are in the environment's own units, and are clipped to its bounds.

    Attributes:
        mu: Linear from features to means, orthogonal with gain 0.01.
        logstd: ``(D,)`` parameter; None where the standard deviation depends on the state.

    Raises:
        ConfigurationError: an action space without bounds that is to be rescaled, or one of another kind; a ``std``
            that there is not, or an initial one outside its range.
    """

    low: Tensor
    high: Tensor

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        encoder: Callable[[spaces.Space[Any]], Encoder] = MLPEncoder,
        std: Std = "learned",
        initial_logstd: float = 0.0,
        squash: bool = False,
        rescale_actions: bool = False,
    ) -> None:
        super().__init__()
        low, high = _bounds_of(action_space, rescale_actions)
        _check_std(std, initial_logstd)
        self.embedder = encoder(observation_space)
        self.in_keys = _keys_of(self.embedder)
        self.out_keys = ["action", "mean_action", "neglogp"]
        self.squash = squash
        self.rescale_actions = rescale_actions
        self.std = std
        self.initial_logstd = float(initial_logstd)
        self.mu = orthogonal_(nn.Linear(self.embedder.output_dim, len(low)), POLICY_GAIN)
        self.logstd: nn.Parameter | None = None
        self.logstd_head: nn.Linear | None = None
        if std == "state_dependent":
            self.logstd_head = orthogonal_(nn.Linear(self.embedder.output_dim, len(low)), POLICY_GAIN)
        else:
            self.logstd = nn.Parameter(torch.full((len(low),), self.initial_logstd), requires_grad=std == "learned")
        self.register_buffer("low", torch.from_numpy(low), persistent=False)
        self.register_buffer("high", torch.from_numpy(high), persistent=False)

    @property
    def device(self) -> torch.device:
        return self.mu.weight.device

    @dispatch(auto_batch_size=False)
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Add ``action``, ``mean_action`` and ``neglogp`` to a TensorDict of observations."""
        distribution = self.distribution(tensordict)
        action = distribution.sample(distribution.noise())
        tensordict.set("action", action)
        tensordict.set("mean_action", distribution.mode())
        return tensordict.set("neglogp", -distribution.log_prob(action))

    def log_prob(self, tensordict: TensorDictBase, actions: Tensor) -> Tensor:
        """The log-probabilities ``(…)`` of given actions ``(…, D)``; the TensorDict stays as it is."""
        return self.distribution(tensordict).log_prob(actions)

    def distribution(self, obs: Observation) -> DiagonalGaussian:
        """Of the actions ``(…, D)``, for observations of any batch size: a tensor, or a TensorDict with ``in_keys``."""
        rows, batch_size = _as_rows(self.embedder, obs)
        mean, logstd, _ = self.parameters_for(rows)
        mean, logstd = (x if x.dim() == 1 else x.reshape(*batch_size, x.shape[1]) for x in (mean, logstd))
        return SquashedGaussian(mean, logstd) if self.squash else DiagonalGaussian(mean, logstd)

    def parameters_for(self, obs: Observation) -> tuple[Tensor, Tensor, Tensor]:
        """``(mean (B, D), logstd (D,) or (B, D), features (B, H))`` of the Gaussian, before any tanh."""
        hidden = self.embedder(_observation_for(self.embedder, obs))
        with in_full_precision(self.device):
            hidden = hidden.to(self.mu.weight.dtype)
            if self.logstd_head is None:
                assert self.logstd is not None
                return self.mu(hidden), self.logstd, hidden
            return self.mu(hidden), (self.initial_logstd + self.logstd_head(hidden)).clamp(*_LOGSTD_RANGE), hidden

    def output(self, obs: Observation, value: Tensor | None) -> GaussianModelOutput:
        """What an agent reads for ``B`` observations, with this value ``(B,)``; NaN without one."""
        mean, logstd, hidden = self.parameters_for(obs)
        value = mean.new_full(mean.shape[:1], torch.nan) if value is None else value
        kind = SquashedModelOutput if self.squash else GaussianModelOutput
        return kind(mean=mean, logstd=logstd, value=value, hidden=hidden)

    def to_env(self, actions: Tensor) -> Tensor:
        """What the environment is given for actions ``(B, D)``: within its bounds."""
        low, high = self.low.to(actions.dtype), self.high.to(actions.dtype)
        if self.rescale_actions:
            actions = low + (actions + 1) * 0.5 * (high - low)
        return torch.minimum(torch.maximum(actions, low), high)


class PPOModel(TensorDictModuleBase):
    """Actor and critic; called with a TensorDict it adds what :class:`PPOActor` adds, and ``value``.

    ``fit`` trains it as it is, by ``evaluate``, which changes no TensorDict.

    Args:
        observation_space: one environment's observations.
        action_space: Box with one dimension.
        encoder: builds the actor's encoder from the observation space.
        critic_encoder: the critic's; the same kind as ``encoder`` by default. Its ``in_keys`` may show the critic what
            the actor does not see.
        std: the standard deviation is a ``learned`` parameter an action dimension, a ``fixed`` one, or
            ``state_dependent``.
        initial_logstd: logarithm of the initial standard deviation.
        squash: actions are tanh of a Gaussian's samples, with the exact log-probability.
        rescale_actions: -1 and 1 are the bounds of the action space, for the environment alone. Else actions are in
            the environment's own units, and are clipped to its bounds.

    Attributes:
        actor: a :class:`PPOActor`.
        critic: its value is ``critic.fc_value`` of ``critic.embedder``'s features.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        encoder: Callable[[spaces.Space[Any]], Encoder] = MLPEncoder,
        critic_encoder: Callable[[spaces.Space[Any]], Encoder] | None = None,
        std: Std = "learned",
        initial_logstd: float = 0.0,
        squash: bool = False,
        rescale_actions: bool = False,
    ) -> None:
        super().__init__()
        self.actor = PPOActor(observation_space, action_space, encoder, std, initial_logstd, squash, rescale_actions)
        with errors_of_encoder(critic_encoder, "--model.network.critic_encoder"):
            self.critic = PPOCritic(observation_space, critic_encoder or encoder)
        self.in_keys = list(dict.fromkeys([*self.actor.in_keys, *self.critic.in_keys]))
        self.out_keys = [*self.actor.out_keys, *self.critic.out_keys]

    @property
    def device(self) -> torch.device:
        return self.actor.device

    @property
    def fc_value(self) -> nn.Linear:
        """The critic's last layer."""
        return self.critic.fc_value

    def critic_parameters(self) -> list[nn.Parameter]:
        """What belongs to the critic alone."""
        return list(self.critic.parameters())

    @dispatch(auto_batch_size=False)
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Add ``action``, ``mean_action``, ``neglogp`` and ``value`` to a TensorDict of observations."""
        return self.critic(self.actor(tensordict))

    def log_prob(self, tensordict: TensorDictBase, actions: Tensor) -> Tensor:
        """The log-probabilities ``(…)`` of given actions ``(…, D)``; the TensorDict stays as it is."""
        return self.actor.log_prob(tensordict, actions)

    def evaluate(self, obs: RawObservation) -> GaussianModelOutput:
        """Distribution and value for ``B`` observations, as an agent reads them; nothing is sampled or written."""
        tensors = as_observation(obs, self.device)
        return self.actor.output(tensors, self.critic.values(tensors))

    def policy(self, obs: RawObservation) -> GaussianModelOutput:
        """The actor's half of :meth:`evaluate`; its value is NaN."""
        return self.actor.output(as_observation(obs, self.device), None)

    def values(self, obs: RawObservation) -> Tensor:
        """The critic's half: values ``(B,)``."""
        return self.critic.values(as_observation(obs, self.device))

    def to_env(self, actions: Tensor) -> Tensor:
        """What the environment is given for actions ``(B, D)``: within its bounds."""
        return self.actor.to_env(actions)


class PPOCritic(TensorDictModuleBase):
    """Observations to values; called with a TensorDict it adds ``value (B,)``.

    Args:
        observation_space: one environment's observations.
        encoder: builds the encoder from the observation space; its ``in_keys`` are the critic's.
    """

    def __init__(
        self, observation_space: spaces.Space[Any], encoder: Callable[[spaces.Space[Any]], Encoder] = MLPEncoder
    ) -> None:
        super().__init__()
        self.embedder = encoder(observation_space)
        self.in_keys = _keys_of(self.embedder)
        self.out_keys = ["value"]
        self.fc_value = orthogonal_(nn.Linear(self.embedder.output_dim, 1), VALUE_GAIN)

    @dispatch(auto_batch_size=False)
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Add ``value`` to a TensorDict of observations."""
        rows, batch_size = _as_rows(self.embedder, tensordict)
        return tensordict.set("value", self.values(rows).reshape(batch_size))

    def values(self, obs: Observation) -> Tensor:
        """``(B,)``, for a tensor or a TensorDict with ``in_keys``."""
        hidden = self.embedder(_observation_for(self.embedder, obs))
        with in_full_precision(self.fc_value.weight.device):
            return self.fc_value(hidden.to(self.fc_value.weight.dtype)).squeeze(-1)


def _keys_of(encoder: Encoder) -> list[Any]:
    return [OBS_KEY] if encoder.in_keys is None else list(encoder.in_keys)


def _observation_for(encoder: Encoder, obs: Observation) -> Observation:
    """What the encoder reads: of a TensorDict the one tensor, where observations are no Dict."""
    return obs[OBS_KEY] if encoder.in_keys is None and isinstance(obs, TensorDictBase) else obs


def _as_rows(encoder: Encoder, obs: Observation) -> tuple[Observation, torch.Size]:
    """What the encoder reads of observations of any batch size, ``(T, N)`` say, in rows; and that batch size."""
    obs = _observation_for(encoder, obs)
    parts = encoder.select(obs)
    batch_size = parts[0].shape[: parts[0].dim() - len(cast("tuple[int, ...]", encoder.parts[0].shape))]
    if len(batch_size) == 1:
        return obs, batch_size
    num_rows = math.prod(batch_size)
    if isinstance(obs, Tensor):
        return obs.reshape(num_rows, *obs.shape[len(batch_size) :]), batch_size
    rows = {path: part.reshape(num_rows, *part.shape[len(batch_size) :]) for path, part in zip(encoder.paths, parts)}
    return TensorDict(cast(Any, rows), batch_size=[num_rows]), batch_size


def _bounds_of(space: spaces.Space[Any], rescale: bool) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    if not isinstance(space, spaces.Box) or len(space.shape) != 1:
        raise ConfigurationError(
            f"--model.network=PPOModel has a Gaussian over actions, and the action space is {space}: take ActorCritic, "
            "or an environment with a one-dimensional Box of actions."
        )
    with np.errstate(over="ignore"):
        low, high = space.low.astype(np.float32), space.high.astype(np.float32)
        is_bounded = bool(np.isfinite(high - low).all())  # the largest number that there is stands for no bound
    if rescale and not is_bounded:
        raise ConfigurationError(
            f"--model.network.rescale_actions=true needs bounds to scale to, and the action space {space} has none in "
            "some dimension: leave it out, or bound the actions (gymnasium.wrappers.RescaleAction)."
        )
    return low, high


def _check_std(std: str, initial_logstd: float) -> None:
    if std not in get_args(Std):
        raise ConfigurationError(
            f"--model.network.std={std} is not known: choose from {', '.join(get_args(Std))}."
            f"{close_names(std, get_args(Std))}"
        )
    low, high = _LOGSTD_RANGE if std == "state_dependent" else _INITIAL_LOGSTD_RANGE
    check_range("--model.network.initial_logstd", initial_logstd, low, high)


def check_reach(network: nn.Module, action_space: spaces.Space[Any]) -> None:
    """Raise :class:`ConfigurationError` for squashed actions of which none comes near the environment's bounds.

    A TensorDict program may scale them by itself; ``fit`` has nothing but ``rescale_actions`` for it.
    """
    actor: Any = getattr(network, "actor", network)
    if not getattr(actor, "squash", False) or actor.rescale_actions or not isinstance(action_space, spaces.Box):
        return
    bounds = np.abs(np.stack([action_space.low, action_space.high]))
    if (bounds[np.isfinite(bounds)] > 1).any():
        raise ConfigurationError(
            f"--model.network.squash=true gives actions between -1 and 1, and the action space {action_space} goes "
            "beyond: add --model.network.rescale_actions=true."
        )
