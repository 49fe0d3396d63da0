"""Encoders: observation in, features ``(B, output_dim)`` out.

Each is built from its observation space, picks its keys of a Dict observation by ``in_keys``, and takes observations
in the simulator's own dtype and layout: images stay ``uint8`` up to the first line of ``forward``.
"""

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

from ppo_lightning.core.errors import ConfigurationError, close_names
from ppo_lightning.core.legal import ACTION_MASK
from ppo_lightning.core.rollout import Observation
from ppo_lightning.core.spaces import part_at, paths_of
from ppo_lightning.models.initialization import orthogonal_
from ppo_lightning.models.normalization import ObservationNormalizer
from ppo_lightning.models.onednn import Conv3x3, run_layers

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "Tanh": nn.Tanh,
    "ReLU": nn.ReLU,
    "ELU": nn.ELU,
    "SiLU": nn.SiLU,
    "GELU": nn.GELU,
}


class Encoder(nn.Module):
    """Base of all encoders: knows which parts of an observation it reads.

    Args:
        observation_space: one environment's observations.
        in_keys: the keys of a Dict observation to read, in this order; by default all but ``action_mask``, which
            acts on the output.

    Raises:
        ConfigurationError: a key that the observation lacks, keys for an observation that has none, or nothing to read.
    """

    output_dim: int

    def __init__(self, observation_space: spaces.Space[Any], in_keys: Sequence[str] | None = None) -> None:
        super().__init__()
        self.within: tuple[str, ...] = ()
        """Keys that lead from what the network is given to what it gives this encoder."""
        self.in_keys: list[str] | None = None
        if isinstance(observation_space, spaces.Dict):
            if in_keys is None:
                in_keys = [key for key in observation_space if key != ACTION_MASK]
                if not in_keys:
                    raise ConfigurationError(
                        f"--model.network.encoder.in_keys is missing: the observation has no key but {ACTION_MASK}, "
                        f"which is read only where it is named; give [{ACTION_MASK}]."
                    )
            self.in_keys = list(in_keys)
            for key in self.in_keys:
                if key not in observation_space.spaces:
                    raise ConfigurationError(
                        f"--model.network.encoder.in_keys: the observation has no key {key!r}, only "
                        f"{list(observation_space)}."
                        f"{close_names(key, observation_space)}"
                    )
            self.paths = [path for key in self.in_keys for path in paths_of(observation_space, (key,))]
            self.parts = [part_at(observation_space, path) for path in self.paths]
        elif in_keys is not None:
            raise ConfigurationError(
                f"--model.network.encoder.in_keys={list(in_keys)} needs a Dict observation, not "
                f"{observation_space}: leave it out."
            )
        else:
            self.parts = [observation_space]

    def select(self, obs: Observation) -> list[Tensor]:
        """The tensors this encoder reads, each ``(B, *shape)``."""
        if self.in_keys is None:
            assert isinstance(obs, Tensor)
            return [obs]
        assert isinstance(obs, TensorDictBase)
        return [obs[path] for path in self.paths]


class MLPEncoder(Encoder):
    """Fully connected layers over the flattened observation; Discrete parts enter one-hot.

    Args:
        observation_space: Box, Discrete, MultiBinary or a Dict of these.
        hidden_sizes: width of each layer.
        activation: one of Tanh, ReLU, ELU, SiLU, GELU.
        in_keys: keys of a Dict observation to read; all but ``action_mask`` by default.
        normalizer: builds what normalises the observation by running statistics, from the number of its features
            (``ObservationNormalizer``); none by default. One-hot and binary parts stay as they are.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        hidden_sizes: Sequence[int] = (64, 64),
        activation: str = "Tanh",
        in_keys: Sequence[str] | None = None,
        normalizer: Callable[[int], ObservationNormalizer] | None = None,
    ) -> None:
        super().__init__(observation_space, in_keys)
        if activation not in ACTIVATIONS:
            raise ConfigurationError(
                f"--model.network.encoder.activation={activation} is not known: choose from {sorted(ACTIVATIONS)}."
                f"{close_names(activation, ACTIVATIONS)}"
            )
        if not hidden_sizes or min(hidden_sizes) < 1:
            raise ConfigurationError(
                f"--model.network.encoder.hidden_sizes={list(hidden_sizes)} must be one or more widths of at least 1."
            )
        for part in self.parts:
            if is_image(part):
                raise ConfigurationError(
                    f"MLPEncoder does not fit the image observation {part.shape}: set --model.network.encoder to "
                    "NatureCNN or ImpalaCNN, for small grids of categories to GridCNN."
                )
        sizes = [sum(spaces.flatdim(part) for part in self.parts), *hidden_sizes]
        layers: list[nn.Module] = []
        for fan_in, fan_out in itertools.pairwise(sizes):
            layers += [orthogonal_(nn.Linear(fan_in, fan_out)), ACTIVATIONS[activation]()]
        self.layers = nn.Sequential(*layers)
        self.output_dim = sizes[-1]
        self._is_number: Tensor
        self.normalizer = None if normalizer is None else normalizer(sizes[0])
        is_number = [isinstance(part, spaces.Box) for part in self.parts for _ in range(spaces.flatdim(part))]
        self.register_buffer("_is_number", torch.tensor(is_number), persistent=False)

    def forward(self, obs: Observation) -> Tensor:
        return self.layers(self.inputs(obs))

    def inputs(self, obs: Observation) -> Tensor:
        """What the layers are given for ``B`` observations, ``(B, F)`` in the parameters' dtype."""
        dtype = cast(nn.Linear, self.layers[0]).weight.dtype
        if self.normalizer is None:
            return self._flat(obs, dtype)
        return self.normalizer(self._flat(obs, self.normalizer.mean.dtype)).to(dtype)

    def moments_of(self, obs: Observation) -> Tensor:
        """What ``B`` observations of the network would enter the normaliser's statistics as, ``(F, 3)``."""
        assert self.normalizer is not None
        for key in self.within:
            obs = cast(TensorDictBase, obs)[key]
        moments = self.normalizer.moments_of(self._flat(obs, self.normalizer.mean.dtype))
        moments[..., 1:] = torch.where(self._is_number.unsqueeze(-1), moments[..., 1:], moments.new_tensor([0.0, 1.0]))
        return moments

    def _flat(self, obs: Observation, dtype: torch.dtype) -> Tensor:
        flat = [_flatten(x, part, dtype) for x, part in zip(self.select(obs), self.parts)]
        return flat[0] if len(flat) == 1 else torch.cat(flat, dim=-1)


def _flatten(x: Tensor, space: spaces.Space[Any], dtype: torch.dtype) -> Tensor:
    """``(B, *shape)`` to ``(B, flatdim)`` in the parameters' dtype."""
    if isinstance(space, spaces.Discrete):
        return nn.functional.one_hot(x.long() - int(space.start), int(space.n)).to(dtype)
    flat = x.to(dtype)
    if x.dim() != 2:
        flat = flat.flatten(1) if x.dim() > 1 else flat.unsqueeze(-1)
    return flat / 255 if x.dtype == torch.uint8 else flat


def is_image(space: spaces.Space[Any]) -> bool:
    """Three dimensions, as images and stacks of grey frames have."""
    return isinstance(space, spaces.Box) and len(space.shape) == 3


class ImageEncoder(Encoder):
    """Base of the convolutional encoders: finds the one image, its layout, and feeds it channels-first.

    Channels are the smallest of the first and last dimension, so both ``(H, W, C)`` and ``(C, H, W)`` work.
    """

    IS_LARGE = True
    """Whether most of a run's time and memory goes into it: bfloat16 and chunks are for such."""

    def __init__(self, observation_space: spaces.Space[Any], in_keys: Sequence[str] | None = None) -> None:
        if in_keys is None and isinstance(observation_space, spaces.Dict):
            in_keys = [key for key, part in observation_space.items() if is_image(part)]
        super().__init__(observation_space, in_keys)
        if len(self.parts) != 1 or not is_image(self.parts[0]):
            raise ConfigurationError(
                f"{type(self).__name__} needs exactly one image of three dimensions, not {observation_space}: set "
                "--model.network.encoder to MLPEncoder for vectors, or name one image with in_keys."
            )
        space = self.parts[0]
        assert isinstance(space, spaces.Box)
        self.channels_last = space.shape[-1] <= space.shape[0]
        self.image_shape = space.shape if not self.channels_last else (space.shape[-1], *space.shape[:2])
        self.scale: float | None = 255 if space.dtype == np.uint8 else None

    def image(self, obs: Observation) -> Tensor:
        """``(B, C, H, W)`` in the parameters' dtype, divided by the scale; that of uint8 pixels is 255."""
        (x,) = self.select(obs)
        if self.channels_last:
            x = x.permute(0, 3, 1, 2)  # a view whose memory is channels_last, what CPU and GPU kernels like best
        x = x.to(next(self.parameters()).dtype)
        return x if self.scale is None else x / self.scale

    def check_size(self, minimum: int) -> None:
        """Raise unless both sides are at least ``minimum`` pixels."""
        if min(self.image_shape[1:]) < minimum:
            raise ConfigurationError(
                f"{type(self).__name__} needs images of at least {minimum}×{minimum} pixels, not "
                f"{self.image_shape[1]}×{self.image_shape[2]}: set --model.network.encoder to GridCNN for grids of "
                "categories, to MLPEncoder after gymnasium.wrappers.FlattenObservation, or to another encoder."
            )


def learns_from_pictures(network: nn.Module) -> bool:
    """Whether a large encoder of pictures is a part of a network."""
    return any(isinstance(part, ImageEncoder) and part.IS_LARGE for part in network.modules())


def use_channels_last(module: nn.Module) -> None:
    """Lay out convolution weights as images of ``(H, W, C)`` are: twice as fast on the CPU, faster on GPUs."""
    for parameter in module.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


class NatureCNN(ImageEncoder):
    """The three-layer CNN of DQN (Mnih et al., Nature 2015): convolutions 8×8/4, 4×4/2 and 3×3/1, Linear.

    Args:
        observation_space: an image, or a Dict with one.
        hidden_dim: features out.
        in_keys: the key of the image, where a Dict observation has several.
        channels: channels of each convolution; half of them cost a third.

    Raises:
        ConfigurationError: not three channels of at least 1, or an image that is too small.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        hidden_dim: int = 512,
        in_keys: Sequence[str] | None = None,
        channels: Sequence[int] = (32, 64, 64),
    ) -> None:
        super().__init__(observation_space, in_keys)
        if len(channels) != 3 or min(channels) < 1:
            raise ConfigurationError(
                f"--model.network.encoder.channels={list(channels)} must be three numbers of at least 1, one for each "
                "convolution of NatureCNN."
            )
        self.check_size(36)
        depth, height, width = self.image_shape
        self.layers = nn.Sequential(
            orthogonal_(nn.Conv2d(depth, channels[0], 8, stride=4)),
            nn.ReLU(),
            orthogonal_(nn.Conv2d(channels[0], channels[1], 4, stride=2)),
            nn.ReLU(),
            orthogonal_(nn.Conv2d(channels[1], channels[2], 3, stride=1)),
            nn.ReLU(),
            nn.Flatten(),
        )
        use_channels_last(self.layers)
        with torch.no_grad():
            flat_dim = self.layers(torch.zeros(1, depth, height, width)).shape[1]
        self.linear = nn.Sequential(orthogonal_(nn.Linear(flat_dim, hidden_dim)), nn.ReLU())
        self.output_dim = hidden_dim

    def forward(self, obs: Observation) -> Tensor:
        return self.linear(self.layers(self.image(obs)))


class _ResidualBlock(nn.Module):
    takes_onednn = True

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv0 = Conv3x3(channels, channels)
        self.conv1 = Conv3x3(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv1(torch.relu(self.conv0(torch.relu(x))))


class ImpalaCNN(ImageEncoder):
    """The large IMPALA network (Espeholt et al., arXiv 1802.01561, figure 3), Xavier-uniform with zero biases.

    A block is conv 3×3, max-pool 3×3/2, two residual blocks; then ReLU, Linear, ReLU.

    Args:
        observation_space: an image, or a Dict with one.
        channels: channels of each block.
        hidden_dim: features out.
        in_keys: the key of the image, where a Dict observation has several.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        channels: Sequence[int] = (16, 32, 32),
        hidden_dim: int = 256,
        in_keys: Sequence[str] | None = None,
    ) -> None:
        super().__init__(observation_space, in_keys)
        self.check_size(8)
        blocks: list[nn.Module] = []
        for fan_in, fan_out in zip([self.image_shape[0], *channels[:-1]], channels):
            blocks += [Conv3x3(fan_in, fan_out), nn.MaxPool2d(3, stride=2, padding=1)]
            blocks += [_ResidualBlock(fan_out), _ResidualBlock(fan_out)]
        self.blocks = nn.Sequential(*blocks)
        height, width = (math.ceil(side / 2 ** len(channels)) for side in self.image_shape[1:])
        self.linear = nn.Linear(channels[-1] * height * width, hidden_dim)
        self.output_dim = hidden_dim
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        use_channels_last(self)

    def forward(self, obs: Observation) -> Tensor:
        features = run_layers(self.blocks, self.image(obs)).relu()
        return torch.relu(self.linear(features.flatten(1)))


class GridCNN(ImageEncoder):
    """A small CNN for grids of categories, as MiniGrid's views are: 3×3 convolutions that keep the size, Linear.

    Observations are ``(W, H, C)``, whatever C is: one-hot categories may be more than the sides. For pictures take
    NatureCNN or ImpalaCNN.

    Args:
        observation_space: a grid, or a Dict with one.
        channels: channels of each convolution.
        hidden_dim: features out.
        scale: what the numbers are divided by. The default suits category numbers of 0 to 10 (MiniGrid's types of
            things): by 255, as pixels are, they would all but vanish. 1 for one-hot categories.
        in_keys: the key of the grid, where a Dict observation has several of three dimensions.
    """

    IS_LARGE = False

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        channels: Sequence[int] = (32, 64),
        hidden_dim: int = 128,
        scale: float = 10.0,
        in_keys: Sequence[str] | None = None,
    ) -> None:
        super().__init__(observation_space, in_keys)
        if not channels or min(channels) < 1:
            raise ConfigurationError(
                f"--model.network.encoder.channels={list(channels)} must be one or more numbers of at least 1."
            )
        if hidden_dim < 1:
            raise ConfigurationError(f"--model.network.encoder.hidden_dim={hidden_dim} must be at least 1.")
        if not 0 < scale < math.inf:
            raise ConfigurationError(f"--model.network.encoder.scale={scale} must be a number above 0.")
        self.scale = scale
        self.channels_last = True
        width, height, depth = cast("tuple[int, int, int]", self.parts[0].shape)
        self.image_shape = (depth, width, height)
        layers: list[nn.Module] = []
        for fan_in, fan_out in itertools.pairwise([depth, *channels]):
            layers += [orthogonal_(nn.Conv2d(fan_in, fan_out, 3, padding=1)), nn.ReLU()]
        flat_dim = channels[-1] * width * height
        self.layers = nn.Sequential(*layers, nn.Flatten(), orthogonal_(nn.Linear(flat_dim, hidden_dim)), nn.ReLU())
        use_channels_last(self.layers)
        self.output_dim = hidden_dim

    def forward(self, obs: Observation) -> Tensor:
        return self.layers(self.image(obs))
