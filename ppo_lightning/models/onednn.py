"""Convolutions and pooling of pictures in oneDNN's own tensors on the CPU.

torch's pooling goes from window to window and keeps eight bytes for each result; oneDNN's works on all channels at once
and keeps one. It takes only tensors of its own layout, which convolutions, ReLU and sums take as well: so pictures
enter before the first layer, and features leave behind the last.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from ppo_lightning.models.watched import is_as_written

FEWEST = 32
"""Pictures below which entering and leaving take longer than what they save."""


class Conv3x3(nn.Conv2d):
    """A convolution that keeps the size of pictures, and takes oneDNN's tensors, too."""

    takes_onednn = True

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1)

    def forward(self, input: Tensor) -> Tensor:
        if not input.is_mkldnn:
            return super().forward(input)
        assert self.bias is not None
        weight, bias = self.weight.to(input.dtype), self.bias.to(input.dtype)
        return _convolve(input, weight, bias)


def run_layers(layers: nn.Module, images: Tensor) -> Tensor:
    """What ``layers`` make of ``(B, C, H, W)`` images, in oneDNN's tensors where that is faster.

    The numbers are the same, and the gradients to rounding. What autograd has beyond gradients (derivatives of them,
    forward mode, batches of them, hooks that look into saved tensors) oneDNN has not: with
    ``with torch.backends.mkldnn.flags(enabled=False):`` torch's layers are there, which have.

    oneDNN's pooling and ReLU pass over NaN. So what is not finite, of a picture or of what is made of it, makes NaN of
    its features; in a parameter, of all.

    Args:
        layers: of :class:`Conv3x3`, ``nn.MaxPool2d`` and modules that say ``takes_onednn``; others keep all of them in
            torch's tensors.
        images: on any device.
    """
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else images.dtype
    if not _is_faster(layers, images, dtype):
        return layers(images)
    images = images.to(dtype)
    features = layers(images.to_mkldnn()).to_dense()
    return features + _nan_where_not_finite(layers, images, features)


def _convolve(images: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Without the checks of ``torch.conv2d``, which lets oneDNN's images be convolved with its weights alone."""
    return torch.ops.aten.mkldnn_convolution(  # type: ignore[no-any-return]
        images, weight, bias, [1, 1], [1, 1], [1, 1], 1
    )


@torch.no_grad()
def _nan_where_not_finite(layers: nn.Module, images: Tensor, features: Tensor) -> Tensor:
    """0 for each picture, or NaN, ``(B, 1, 1, 1)``."""
    of_parameters = sum(parameter.sum() for parameter in layers.parameters())
    rest = (1, 2, 3)
    return 0 * (images.sum(rest, keepdim=True) + features.sum(rest, keepdim=True) + of_parameters)


def _is_faster(layers: nn.Module, images: Tensor, dtype: torch.dtype) -> bool:
    """Not for who looks at each operation, or makes a program of them: tracers, transforms and counters."""
    return bool(
        type(images) is Tensor
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()  # type: ignore[no-untyped-call]
        and not torch._C._are_functorch_transforms_active()
        and not torch._C._len_torch_dispatch_stack()
        and not torch.is_anomaly_enabled()
        and not nn.modules.module._has_any_global_hook()  # type: ignore[no-untyped-call]
        and images.device.type == "cpu"
        and len(images) >= FEWEST
        and torch.backends.mkldnn.enabled
        and can_run_in_onednn(images.dtype)
        and can_run_in_onednn(dtype)
        and all(map(_takes_onednn, layers.modules()))
    )


def _takes_onednn(module: nn.Module) -> bool:
    """Whether it can, as it was written, and nobody else is to see what goes in or out."""
    if not is_as_written(module, ("forward",)) or module._compiled_call_impl is not None:
        return False
    if type(module) is nn.MaxPool2d:
        return module.dilation == 1 and not module.return_indices
    return type(module) is nn.Sequential or "takes_onednn" in vars(type(module))


@functools.cache
def can_run_in_onednn(dtype: torch.dtype) -> bool:
    """Whether this processor and this torch convolve and pool in oneDNN's tensors, both ways, as they do in others."""
    if dtype not in (torch.float32, torch.bfloat16) or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if not torch.backends.cpu.get_cpu_capability().startswith("AVX"):  # elsewhere nobody has measured it
        return False
    try:
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast("cpu", enabled=False):
            weight = torch.linspace(-1, 1, 36, dtype=dtype, device="cpu").view(2, 2, 3, 3).requires_grad_()
            images = torch.linspace(0, 1, 100, dtype=dtype, device="cpu").view(1, 2, 5, 10)
            bias = weight.new_ones(2)
            own = torch.max_pool2d(_convolve(images.to_mkldnn(), weight, bias), [3, 3], [2, 2], [1, 1])
            other = torch.max_pool2d(torch.conv2d(images, weight, bias, padding=1), [3, 3], [2, 2], [1, 1])
            outcomes = [(own + torch.relu(own)).to_dense(), other + torch.relu(other)]
            gradients = [torch.autograd.grad(outcome.square().sum(), weight)[0] for outcome in outcomes]
    except (RuntimeError, NotImplementedError):  # an old torch, or a processor without the type
        return False
    return all(torch.allclose(one, other, rtol=0.05, atol=0.05) for one, other in (outcomes, gradients))
