"""How new an observation is: random network distillation (Burda et al., arXiv 1810.12894)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import torch
from gymnasium import spaces
from tensordict import TensorDictBase
from torch import Tensor, nn

from ppo_lightning.core.errors import ConfigurationError, check_range, close_names
from ppo_lightning.core.legal import ACTION_MASK
from ppo_lightning.core.rollout import Observation
from ppo_lightning.functional.moments import merge_moments, moments_of_rows, pool_moments
from ppo_lightning.models.actor_critic import ActorCritic, errors_of_encoder, in_full_precision
from ppo_lightning.models.cores import CoreBuilder
from ppo_lightning.models.encoders import Encoder, MLPEncoder, NatureCNN, is_image
from ppo_lightning.models.initialization import VALUE_GAIN, orthogonal_
from ppo_lightning.models.normalization import RunningMoments

_FLAG = "--model.novelty"
_CHUNK = 512  # rows whose moments are taken at once: float64 pixels are eight times as large


class RandomNetworkDistillation(nn.Module):
    r"""The error of a trained predictor of a fixed random network, small for what was often seen.

    .. math::
        e(s') = \operatorname{mean}((\hat f(x) - f(x))^2) \qquad
        x = \operatorname{clip}((s' - \mu) / \sigma, \pm c)

    :math:`\mu` and :math:`\sigma` are running statistics of each number of an observation (of each pixel), which stay
    as they are while a rollout is played and learned from.

    Args:
        observation_space: one environment's observations.
        encoder: builds the first part of both networks from the space of normalised observations; ``NatureCNN`` for
            images and ``MLPEncoder`` for vectors by default.
        hidden_sizes: further layers of the predictor.
        output_dim: numbers that are predicted.
        obs_clip: the largest magnitude of a normalised observation.
        obs_key: the key of a Dict observation that is looked at; may be left out where there is one Box among them
            beside ``action_mask``.
        num_frames: of a stack of frames, ``(K, H, W)`` or ``(H, W, K)``, only so many of the newest; null for all.

    Raises:
        ConfigurationError: an observation it can't take, or a number outside its range.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        encoder: Callable[[spaces.Space[Any]], Encoder] | None = None,
        hidden_sizes: Sequence[int] = (512, 512),
        output_dim: int = 512,
        obs_clip: float = 5.0,
        obs_key: str | None = None,
        num_frames: int | None = None,
    ) -> None:
        super().__init__()
        check_range(f"{_FLAG}.output_dim", output_dim, 1)
        check_range(f"{_FLAG}.obs_clip", obs_clip, 0, exclude_low=True)
        if any(size < 1 for size in hidden_sizes):
            raise ConfigurationError(f"{_FLAG}.hidden_sizes={list(hidden_sizes)} must be widths of at least 1.")
        self.obs_key, box = _seen_part(observation_space, obs_key)
        self.num_frames = num_frames
        self.frames_last = is_image(box) and box.shape[-1] <= box.shape[0]
        shape = _seen_shape(box, num_frames, self.frames_last)
        self.obs_clip = obs_clip
        self.statistics = RunningMoments((math.prod(shape),))
        space = spaces.Box(-obs_clip, obs_clip, shape, np.float32)
        build = encoder or (NatureCNN if is_image(space) else MLPEncoder)
        with errors_of_encoder(build, f"{_FLAG}.encoder"):
            self.target = _network(build(space), [], output_dim).requires_grad_(False)
            self.predictor = _network(build(space), hidden_sizes, output_dim)

    def select(self, obs: Observation) -> Tensor:
        """What is looked at of observations ``(…, *shape)``: a view, in their own dtype."""
        x = cast(Tensor, obs if self.obs_key is None else cast(TensorDictBase, obs)[self.obs_key])
        if self.num_frames is None:
            return x
        return x[..., -self.num_frames :] if self.frames_last else x[..., -self.num_frames :, :, :]

    def forward(self, seen: Tensor) -> Tensor:
        """The error ``(B,)`` for what was selected of ``B`` observations."""
        x = self.normalize(seen)
        with in_full_precision(seen.device):
            with torch.no_grad():
                target = self.target(x)
            error: Tensor = (self.predictor(x) - target).square().mean(dim=-1)
            return error

    def learn(self, moments: Tensor, gather: Callable[[Tensor], Tensor]) -> None:
        """Let the moments of all ranks, ``gather`` of them, enter the statistics of observations."""
        self.statistics.update(pool_moments(gather(moments)).to(moments))

    def normalize(self, seen: Tensor) -> Tensor:
        """What was selected, ``(B, …)``, as the networks read it."""
        own = self.statistics
        normal = (seen.flatten(1).to(own.mean.dtype) - own.mean) * (own.var + 1e-8).rsqrt()
        return normal.clamp(-self.obs_clip, self.obs_clip).reshape(seen.shape)

    def moments_of(self, seen: Tensor) -> Tensor:
        """What selected observations ``(B, …)`` would enter the statistics as, ``(F, 3)``."""
        moments = moments_of_rows(seen[:_CHUNK].flatten(1))
        for first in range(_CHUNK, len(seen), _CHUNK):
            moments = merge_moments(moments, moments_of_rows(seen[first : first + _CHUNK].flatten(1)))
        return moments


class RNDModel(ActorCritic):
    """An actor-critic with one encoder, and a second value head for the intrinsic reward.

    Args:
        observation_space: one environment's observations.
        action_space: Discrete, MultiDiscrete or MultiBinary, or Box (a Gaussian with a learned, state-independent std).
        encoder: builds the encoder from the observation space.
        initial_logstd: logarithm of the Gaussian's initial standard deviation.
        core: builds what remembers, behind the encoder, from its number of features: ``LSTMCore`` or ``GRUCore``; none
            by default.

    Attributes:
        fc_intrinsic_value: Linear to the value of intrinsic rewards, orthogonal with gain 1.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        encoder: Callable[[spaces.Space[Any]], Encoder] = MLPEncoder,
        initial_logstd: float = 0.0,
        core: CoreBuilder | None = None,
    ) -> None:
        super().__init__(
            observation_space, action_space, encoder, shared=True, initial_logstd=initial_logstd, core=core
        )
        self.fc_intrinsic_value = orthogonal_(nn.Linear(self.hidden_dim, 1), VALUE_GAIN)

    def intrinsic_values(self, hidden: Tensor) -> Tensor:
        """The value ``(B,)`` of intrinsic rewards, by the features ``(B, H)`` of the network's output."""
        with in_full_precision(self.device):
            value: Tensor = self.fc_intrinsic_value(hidden.to(self.fc_intrinsic_value.weight.dtype)).squeeze(-1)
            return value


def _network(encoder: Encoder, hidden_sizes: Sequence[int], output_dim: int) -> nn.Module:
    sizes = [encoder.output_dim, *hidden_sizes]
    layers: list[nn.Module] = [encoder]
    for fan_in, fan_out in itertools.pairwise(sizes):
        layers += [orthogonal_(nn.Linear(fan_in, fan_out)), nn.ReLU()]
    return nn.Sequential(*layers, orthogonal_(nn.Linear(sizes[-1], output_dim)))


def _seen_part(space: spaces.Space[Any], key: str | None) -> tuple[str | None, spaces.Box]:
    """The key and the space of what is looked at."""
    if not isinstance(space, spaces.Dict):
        if key is not None:
            raise ConfigurationError(f"{_FLAG}.obs_key={key} needs a Dict observation, not {space}: leave it out.")
        part: spaces.Space[Any] = space
    else:
        others = [name for name in space if name != ACTION_MASK]
        boxes = [name for name in others if isinstance(space[name], spaces.Box)]
        if key is None and len(boxes) > 1:
            raise ConfigurationError(
                f"{_FLAG}.obs_key is missing: the observation has the keys {', '.join(boxes)}; name the one whose "
                "novelty is rewarded."
            )
        key = next(iter(boxes or others or space)) if key is None else key
        if key not in space.spaces:
            raise ConfigurationError(
                f"{_FLAG}.obs_key={key} is none of the observation's keys {', '.join(space)}.{close_names(key, space)}"
            )
        part = space[key]
    if not isinstance(part, spaces.Box) or not part.shape:
        raise ConfigurationError(
            f"RND looks at Box observations, not at {part}: name another key by {_FLAG}.obs_key, or wrap the "
            "environment (--data.env.wrappers), with gymnasium.wrappers.FlattenObservation for example."
        )
    return key, part


def _seen_shape(box: spaces.Box, num_frames: int | None, frames_last: bool) -> tuple[int, ...]:
    if num_frames is None:
        return box.shape
    if not is_image(box):
        raise ConfigurationError(
            f"{_FLAG}.num_frames={num_frames} needs a stack of frames with three dimensions, not {box.shape}: leave it "
            "out."
        )
    frames = box.shape[-1] if frames_last else box.shape[0]
    check_range(f"{_FLAG}.num_frames", num_frames, 1, frames)
    return (*box.shape[:2], num_frames) if frames_last else (num_frames, *box.shape[1:])
