"""Actor-critics: one or two encoders, a policy head and a value head."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, Union, cast

import numpy as np
import torch
from gymnasium import spaces
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn

from ppo_lightning.core.errors import ConfigurationError
from ppo_lightning.core.rollout import Observation
from ppo_lightning.models.cores import CoreBuilder, EpisodeParts, MemoryCore, run_core
from ppo_lightning.models.encoders import Encoder, ImpalaCNN, MLPEncoder
from ppo_lightning.models.initialization import POLICY_GAIN, VALUE_GAIN, orthogonal_
from ppo_lightning.models.outputs import GaussianModelOutput, NetworkOutput, logits_output

RawObservation = Union[Observation, np.ndarray[Any, Any], Mapping[str, Any]]


class ActorCritic(nn.Module):
    """Policy and value over encoded observations.

    The heads run in full precision also where the encoder runs in half.

    Args:
        observation_space: one environment's observations.
        action_space: Discrete, MultiDiscrete or MultiBinary, or Box (a Gaussian with a learned, state-independent std);
            all but Discrete with one dimension.
        encoder: builds the encoder from the observation space.
        critic_encoder: the critic's own encoder; the same kind as ``encoder`` by default. Choose it to show the critic
            more than the actor (by ``in_keys``).
        shared: one encoder, and one core, for actor and critic.
        initial_logstd: logarithm of the Gaussian's initial standard deviation.
        core: builds what remembers, behind the encoder, from its number of features: ``LSTMCore`` or ``GRUCore``; none
            by default.

    Attributes:
        embedder: the actor's encoder (the critic's too where shared).
        core: what the actor remembers by (the critic too where shared); None without memory.
        fc_policy: Linear to ``logit_dim`` logits or means, orthogonal with gain 0.01.
        fc_value: Linear to the value, orthogonal with gain 1.
        hidden_dim: features before the heads.
        logit_dim: number of actions (of MultiDiscrete actions their sum), or dimensions of a Box or MultiBinary action.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        encoder: Callable[[spaces.Space[Any]], Encoder] = MLPEncoder,
        critic_encoder: Callable[[spaces.Space[Any]], Encoder] | None = None,
        shared: bool = False,
        initial_logstd: float = 0.0,
        core: CoreBuilder | None = None,
    ) -> None:
        super().__init__()
        if shared and critic_encoder is not None:
            raise ConfigurationError(
                "--model.network.shared=true and --model.network.critic_encoder contradict each other: leave one out."
            )
        self.embedder = encoder(observation_space)
        with errors_of_encoder(critic_encoder, "--model.network.critic_encoder"):
            self.critic_embedder = None if shared else (critic_encoder or encoder)(observation_space)
        critic_encoder_dim = self.embedder.output_dim if shared else cast(Encoder, self.critic_embedder).output_dim
        self.core = None if core is None else core(self.embedder.output_dim)
        self.critic_core = None if core is None or shared else core(critic_encoder_dim)
        self.hidden_dim = self.embedder.output_dim if self.core is None else self.core.output_dim
        self.is_continuous = isinstance(action_space, spaces.Box)
        self.logit_dim = spaces.flatdim(action_space)
        self._logits_output = logits_output(action_space)
        critic_dim = critic_encoder_dim if self.core is None else self.hidden_dim
        self.fc_policy = orthogonal_(nn.Linear(self.hidden_dim, self.logit_dim), POLICY_GAIN)
        self.fc_value = orthogonal_(nn.Linear(critic_dim, 1), VALUE_GAIN)
        if self.is_continuous:
            self.logstd = nn.Parameter(torch.full((self.logit_dim,), float(initial_logstd)))

    @property
    def device(self) -> torch.device:
        return self.fc_policy.weight.device

    def critic_parameters(self) -> list[nn.Parameter] | None:
        """What belongs to the critic alone; None where it shares the actor's encoder."""
        if self.critic_embedder is None:
            return None
        cores = [] if self.critic_core is None else self.critic_core.parameters()
        return [*self.critic_embedder.parameters(), *cores, *self.fc_value.parameters()]

    def initial_state(self, num_envs: int) -> Tensor | None:
        """The memory at an episode's start, ``(N, K, S, L, H)``: of one core, or of the actor's and the critic's.

        None without memory.
        """
        cores = [core for core in (self.core, self.critic_core) if core is not None]
        return torch.stack([core.initial_state(num_envs) for core in cores], dim=1) if cores else None

    def forward(self, obs: RawObservation, state: Tensor | None = None) -> Any:
        """The output for ``B`` observations; with memory ``(output, memory after it)``.

        Args:
            obs: ``(B, *shape)``, as tensors, numpy arrays or a mapping of either.
            state: the memory before, as of :meth:`initial_state`; None is that of an episode's start.
        """
        tensors = as_observation(obs, self.device)
        hidden = self.embedder(tensors)
        critic_hidden = hidden if self.critic_embedder is None else self.critic_embedder(tensors)
        with in_full_precision(self.device):
            if self.core is None:
                return self._heads(hidden, critic_hidden)
            memory = self.initial_state(len(hidden)) if state is None else state
            assert memory is not None
            hidden, after = self.core.step(hidden, memory[:, 0])
            if self.critic_core is None:
                return self._heads(hidden, hidden), after.unsqueeze(1)
            critic_hidden, critic_after = self.critic_core.step(critic_hidden, memory[:, 1])
            return self._heads(hidden, critic_hidden), torch.stack([after, critic_after], dim=1)

    def unroll(self, obs: Observation, state: Tensor, episode_starts: Tensor) -> NetworkOutput:
        """The output over whole sequences, see :func:`models.memory.unroll`: the encoder takes all steps at once."""
        episodes = EpisodeParts(episode_starts)
        hidden = critic_hidden = self._actor_features(obs, state, episodes)
        if self.critic_embedder is not None:
            critic_hidden = self._critic_features(obs, state, episodes)
        with in_full_precision(self.device):
            return self._heads(hidden, critic_hidden)

    def policy(
        self, obs: RawObservation, state: Tensor | None = None, episode_starts: Tensor | None = None
    ) -> NetworkOutput:
        """The actor's half of :meth:`forward`, or of :meth:`unroll` where its further arguments are given.

        Its value is NaN, as nothing of the critic is run.
        """
        hidden = self._actor_features(as_observation(obs, self.device), state, _parts(episode_starts))
        with in_full_precision(self.device):
            hidden = hidden.to(self.fc_policy.weight.dtype)
            return self._output(hidden, hidden.new_full(hidden.shape[:1], torch.nan))

    def values(self, obs: RawObservation, state: Tensor | None = None, episode_starts: Tensor | None = None) -> Tensor:
        """The critic's half: values ``(B,)``, ``(N·T,)`` of whole sequences."""
        features = self._actor_features if self.critic_embedder is None else self._critic_features
        hidden = features(as_observation(obs, self.device), state, _parts(episode_starts))
        with in_full_precision(self.device):
            value: Tensor = self.fc_value(hidden.to(self.fc_value.weight.dtype)).squeeze(-1)
            return value

    def _actor_features(self, obs: Observation, state: Tensor | None, episodes: EpisodeParts | None) -> Tensor:
        """What the actor's head reads: of ``(B, *shape)``, or with memory of whole sequences ``(N, T, *shape)``."""
        return _run_half(self.embedder, self.core, obs, None if state is None else state[:, 0], episodes)

    def _critic_features(self, obs: Observation, state: Tensor | None, episodes: EpisodeParts | None) -> Tensor:
        """What the head of a critic with an encoder of its own reads, likewise."""
        assert self.critic_embedder is not None
        own = None if state is None else state[:, 1]
        return _run_half(self.critic_embedder, self.critic_core, obs, own, episodes)

    def _heads(self, hidden: Tensor, critic_hidden: Tensor) -> NetworkOutput:
        dtype = self.fc_policy.weight.dtype
        hidden, critic_hidden = hidden.to(dtype), critic_hidden.to(dtype)
        return self._output(hidden, self.fc_value(critic_hidden).squeeze(-1))

    def _output(self, hidden: Tensor, value: Tensor) -> NetworkOutput:
        """What the actor's features ``(B, H)`` say, with this value ``(B,)``."""
        policy = self.fc_policy(hidden)
        if self.is_continuous:
            return GaussianModelOutput(mean=policy, logstd=self.logstd, value=value, hidden=hidden)
        return self._logits_output(logits=policy, value=value, hidden=hidden)


def _run_half(
    embedder: Encoder, core: MemoryCore | None, obs: Observation, state: Tensor | None, episodes: EpisodeParts | None
) -> Tensor:
    if state is None or episodes is None:
        return cast(Tensor, embedder(obs))
    features = embedder(cast(Any, obs).flatten(0, 1))
    with in_full_precision(features.device):
        return run_core(core, features, state, episodes)


def _parts(episode_starts: Tensor | None) -> EpisodeParts | None:
    return None if episode_starts is None else EpisodeParts(episode_starts)


class ImpalaPPOModel(ActorCritic):
    """The IMPALA CNN with shared trunk that Procgen agents use (duo_ai's ``ImpalaPPOModel``)."""

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        channels: tuple[int, ...] = (16, 32, 32),
        hidden_dim: int = 256,
        core: CoreBuilder | None = None,
    ) -> None:
        """Build from spaces.

        Args:
            observation_space: images, ``(H, W, C)`` or ``(C, H, W)``.
            action_space: Discrete, or Box, MultiDiscrete or MultiBinary with one dimension.
            channels: channels of each IMPALA block.
            hidden_dim: features of the image.
            core: builds what remembers, from their number: ``LSTMCore`` or ``GRUCore``; none by default.
        """
        super().__init__(
            observation_space,
            action_space,
            encoder=lambda space: ImpalaCNN(space, channels=channels, hidden_dim=hidden_dim),
            shared=True,
            core=core,
        )


@contextlib.contextmanager
def errors_of_encoder(encoder: Any, flag: str) -> Iterator[None]:
    """Let the errors of an encoder name the flag by which it was asked for; None was not asked for there."""
    try:
        yield
    except ConfigurationError as error:
        if encoder is None:
            raise
        raise ConfigurationError(str(error).replace("--model.network.encoder", flag)) from error


def in_full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """No autocast, where there is some: for heads, as a bfloat16 value has three digits."""
    is_half = torch.is_autocast_enabled(device.type)
    return torch.autocast(device.type, enabled=False) if is_half else contextlib.nullcontext()


def as_observation(obs: RawObservation, device: torch.device) -> Observation:
    """Tensors as they are; numpy arrays and mappings of them as tensors on ``device``, in their own dtype."""
    is_array = isinstance(obs, np.ndarray)  # first, as it is asked in every step, and abstract classes take longer
    if is_array and device.type == "cpu":
        return torch.from_numpy(obs)  # a third of the time
    if not is_array and isinstance(obs, (Tensor, TensorDictBase)):
        return obs
    if not is_array and isinstance(obs, Mapping):
        tensors = {key: as_observation(cast(Any, value), device) for key, value in obs.items()}
        return TensorDict(tensors, batch_size=[len(next(iter(tensors.values())))])
    return torch.as_tensor(obs, device=device)
