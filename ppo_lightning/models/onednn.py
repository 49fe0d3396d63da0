"""Convolutions and pooling of pictures in oneDNN's own tensors on the CPU.

torch's pooling goes from window to window and keeps eight bytes for each result; oneDNN's works on all channels at once
and keeps one. It takes only tensors of its own layout, which convolutions, ReLU and sums take as well: so pictures
enter before the first layer, and features leave behind the last.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

FEWEST = 32
"""Pictures below which entering and leaving take longer than what they save."""


class Conv2d(nn.Conv2d):
    """A convolution that takes oneDNN's tensors, too."""

    takes_onednn = True

    def forward(self, input: Tensor) -> Tensor:
        if not input.is_mkldnn:
            return super().forward(input)
        weight, bias = self.weight.to(input.dtype), self.bias
        bias = None if bias is None else bias.to(input.dtype)
        return torch.ops.aten.mkldnn_convolution(  # type: ignore[no-any-return]
            input, weight, bias, self.padding, self.stride, self.dilation, self.groups
        )


def run_layers(layers: nn.Module, images: Tensor) -> Tensor:
    """What ``layers`` make of ``(B, C, H, W)`` images, in oneDNN's tensors where that is faster.

    The numbers are the same, and the gradients to rounding. oneDNN has no derivatives of gradients; with ``with
    torch.backends.mkldnn.flags(enabled=False):`` torch's layers are there, which do.

    What is not finite, in a picture or a parameter, makes NaN of a picture's features or of all, as in torch's layers;
    oneDNN's pooling and ReLU alone pass it over.

    Args:
        layers: of :class:`Conv2d`, ``nn.MaxPool2d``, ``nn.ReLU`` and modules that say ``takes_onednn``; others keep
            all of them in torch's tensors.
        images: on any device.
    """
    if not _is_faster(layers, images):
        return layers(images)
    features = layers(images.to_mkldnn()).to_dense()
    return features + _nan_where_not_finite(layers, images, features)


@torch.no_grad()
def _nan_where_not_finite(layers: nn.Module, images: Tensor, features: Tensor) -> Tensor:
    """0 for each picture, or NaN, ``(B, 1, 1, 1)``."""
    of_parameters = torch.stack([parameter.sum() for parameter in layers.parameters()]).sum()
    rest = (1, 2, 3)
    return 0 * (images.sum(rest, keepdim=True) + features.sum(rest, keepdim=True) + of_parameters)


def _is_faster(layers: nn.Module, images: Tensor) -> bool:
    """Not for who looks at each operation, or makes a program of them: tracers, transforms and counters."""
    return bool(
        type(images) is Tensor
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()  # type: ignore[no-untyped-call]
        and not torch._C._are_functorch_transforms_active()
        and not nn.modules.module._has_any_global_hook()  # type: ignore[no-untyped-call]
        and images.device.type == "cpu"
        and len(images) >= FEWEST
        and torch.backends.mkldnn.enabled
        and can_run_in_onednn(images.dtype)
        and all(map(_takes_onednn, layers.modules()))
    )


def _takes_onednn(module: nn.Module) -> bool:
    """Whether it can, and nobody else is to see what goes in or out."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    is_known = type(module) in (nn.Sequential, nn.MaxPool2d, nn.ReLU) or getattr(module, "takes_onednn", False)
    return is_known and not any(hooks)


@functools.cache
def can_run_in_onednn(dtype: torch.dtype) -> bool:
    """Whether this processor and this torch convolve and pool in oneDNN's tensors, both ways, as they do in others."""
    if dtype not in (torch.float32, torch.bfloat16) or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if not torch.backends.cpu.get_cpu_capability().startswith("AVX"):  # elsewhere nobody has measured it
        return False
    try:
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast("cpu", enabled=False):
            weight = torch.linspace(-1, 1, 36, dtype=dtype).view(2, 2, 3, 3).requires_grad_()
            images = torch.linspace(0, 1, 100, dtype=dtype).view(1, 2, 5, 10)
            made = torch.ops.aten.mkldnn_convolution(images.to_mkldnn(), weight, None, [1, 1], [1, 1], [1, 1], 1)
            pooled = torch.max_pool2d(made, [3, 3], [2, 2], [1, 1])
            own = (pooled + torch.relu(pooled)).to_dense()
            (gradient,) = torch.autograd.grad(own.sum(), weight)
            expected = torch.max_pool2d(torch.conv2d(images, weight.detach(), padding=1), 3, 2, 1)
            same = torch.allclose(own.detach(), expected + torch.relu(expected), rtol=0.05, atol=0.05)
            return same and bool(gradient.isfinite().all())
    except (RuntimeError, NotImplementedError):  # an old torch, or a processor without the type
        return False
