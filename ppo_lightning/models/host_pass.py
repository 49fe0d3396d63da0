"""The passes of a small network on the CPU as one node of autograd's graph, where nodes take longer than what they do.

Those of actor and critic with two hidden layers each are some thirty nodes. One alone, with the same products, takes
half the time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from ppo_lightning.core.host import MOST_OF_PRODUCT
from ppo_lightning.models.encoders import MLPEncoder
from ppo_lightning.models.host_parts import HostParts, host_parts, is_known
from ppo_lightning.models.outputs import GaussianModelOutput, PPOModelOutput

MOST = 2**17
"""Numbers that a layer makes of a minibatch, beyond which the nodes do not count."""

_NARROW = 16

AddGradients = Callable[..., None]
"""Takes derivatives by outputs, or None where none is asked; adds those by the parameters to their ``grad``."""


class HostPass:
    """Runs a network forward and backward, to rounding as itself, and adds the gradients to its parameters' ``grad``.

    Autograd sees none of the parameters: ``torch.autograd.grad`` does not find them, nor do derivatives of gradients.
    Good for an update.

    Attributes:
        logstd: a Gaussian's parameter, of which autograd knows unless :meth:`run` is used; None for a choice.
        dtype: of the parameters.
        learns_std: whether ``logstd`` is learned.
        shares_parameters: whether two layers have one, of which only one would be given its gradient.
    """

    def __init__(self, network: nn.Module, parts: HostParts) -> None:
        self._network = network
        self.logstd = parts.logstd
        self.dtype = parts.head.weight.dtype
        self._anchor = torch.zeros((), requires_grad=True)
        heads = [parts.head] if parts.critic_encoder is not None else [parts.head, parts.value_head]
        self._towers = [_Tower(parts.encoder, heads)]
        if parts.critic_encoder is not None:
            self._towers.append(_Tower(parts.critic_encoder, [parts.value_head]))
        self.learns_std = self.logstd is not None and self.logstd.requires_grad
        learned = [cast(Tensor, self.logstd)] if self.learns_std else []
        self._parameters = [*learned, *(own for tower in self._towers for own in tower.parameters())]
        self.shares_parameters = len(set(map(id, self._parameters))) < len(self._parameters)
        self._size = sum(parameter.numel() for parameter in self._parameters)
        self._pieces = list(_pieces(self._parameters))

    def is_for(self, network: nn.Module) -> bool:
        """Whether it still does what ``network`` does: nothing was frozen, replaced or is watched since it was made."""
        if network is not self._network or torch.is_anomaly_enabled():  # which looks for the operation that is to blame
            return False
        is_known = all(map(_is_plain, self._parameters)) and all(tower.is_unchanged() for tower in self._towers)
        is_free = self.logstd is None or (self.logstd.requires_grad == self.learns_std and not _is_watched(self.logstd))
        return is_known and is_free

    def __call__(self, obs: Tensor) -> Any:
        """The network's output for observations ``(B, F)``."""
        hidden, policy, *rest = self._outputs(self._towers, obs)
        return self._output(policy, rest[-1].squeeze(-1), hidden)

    def policy(self, obs: Tensor) -> Any:
        """The actor's half, of one with an encoder of its own; its value is NaN."""
        hidden, policy = self._outputs(self._towers[:1], obs)
        return self._output(policy, policy.new_full(policy.shape[:1], torch.nan), hidden)

    def values(self, obs: Tensor) -> Tensor:
        """The critic's half, likewise: values ``(B,)``."""
        return self._outputs(self._towers[1:], obs)[1].squeeze(-1)

    def run(self, obs: Tensor) -> tuple[Tensor, Tensor, AddGradients]:
        """Logits or means ``(B, A)``, values ``(B, 1)``, and what takes derivatives by both, and by ``logstd``."""
        outputs, add_gradients = _forward(self._towers, obs)

        def add(of_policy: Tensor, of_values: Tensor, of_logstd: Tensor | None = None) -> None:
            has_none = all(parameter.grad is None for parameter in self._parameters)
            # in one piece, which is clipped as one
            whole = torch.empty(self._size, dtype=self.dtype)
            pieces = (whole.as_strided(*piece) for piece in self._pieces)
            if of_logstd is not None:
                _add(cast(Tensor, self.logstd), next(pieces).copy_(of_logstd))
            others = [of_values] if len(self._towers) == 1 else [None, of_values]
            add_gradients(None, of_policy, *others, pieces=pieces if has_none else None)

        return outputs[1], outputs[-1], add

    def loss(self, value: Tensor, add_gradients: Callable[[float], None]) -> Tensor:
        """A scalar whose backward pass calls ``add_gradients`` with its weight."""
        return _node(self._anchor, [value], lambda weight: add_gradients(float(weight)))[0]

    def _outputs(self, towers: Sequence[_Tower], obs: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            outputs, add_gradients = _forward(towers, obs)
        return _node(self._anchor, outputs, add_gradients)

    def _output(self, policy: Tensor, value: Tensor, hidden: Tensor) -> GaussianModelOutput | PPOModelOutput:
        if self.logstd is None:
            return PPOModelOutput(logits=policy, value=value, hidden=hidden)
        return GaussianModelOutput(mean=policy, logstd=self.logstd, value=value, hidden=hidden)


def host_pass(network: nn.Module, num_rows: int) -> HostPass | None:
    """What runs an ``ActorCritic``, ``DAACModel`` or ``PPOModel`` in minibatches of so many rows; None for any other.

    Nor for one that :func:`models.host.host_actor` would not act for, or with parameters that do not learn, or whose
    gradients a hook watches.
    """
    parts = host_parts(network)
    if parts is None or not is_known(parts.encoder, parts.head):
        return None
    critic = parts.encoder if parts.critic_encoder is None else parts.critic_encoder
    if not is_known(critic, parts.value_head) or parts.value_head.weight.dtype is not parts.head.weight.dtype:
        return None
    layers = [layer for layer in (*parts.encoder.layers, *critic.layers, parts.head) if isinstance(layer, nn.Linear)]
    if num_rows * max(layer.out_features for layer in layers) > MOST:
        return None
    own = HostPass(network, parts)
    return own if own.is_for(network) and not own.shares_parameters else None


def _pieces(parameters: Sequence[Tensor]) -> Iterator[tuple[torch.Size, tuple[int, ...], int]]:
    """Shape, stride and offset of each in one piece of all."""
    offset = 0
    for parameter in parameters:
        yield parameter.shape, torch.empty(parameter.shape, device="meta").stride(), offset
        offset += parameter.numel()


def _is_plain(parameter: Tensor) -> bool:
    return type(parameter) is nn.Parameter and parameter.requires_grad and not _is_watched(parameter)


def _is_watched(parameter: Tensor) -> bool:
    return bool(parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None))


class _Tower:
    """An encoder and the heads that read its features."""

    def __init__(self, encoder: MLPEncoder, heads: Sequence[nn.Linear]) -> None:
        self._encoder = encoder
        self._layers = [_Layer(layer) for layer in encoder.layers if isinstance(layer, nn.Linear)]
        self._heads = [_Layer(head) for head in heads]
        self._has_tanh = isinstance(encoder.layers[1], nn.Tanh)
        self.num_outputs = 1 + len(heads)

    def parameters(self) -> list[Tensor]:
        """In the order in which :meth:`backward` comes to them."""
        return [own for layer in (*self._heads, *reversed(self._layers)) for own in layer.parameters]

    def is_unchanged(self) -> bool:
        """Whether the layers have the parameters that they had."""
        return all(layer.is_unchanged() for layer in (*self._layers, *self._heads))

    def inputs(self, obs: Tensor) -> Tensor:
        """What the first layer is given for observations ``(B, F)``."""
        return self._encoder.inputs(obs)

    def reads_as(self, other: _Tower) -> bool:
        """Whether the first layers of both are given the same."""
        return self._encoder.normalizer is None and other._encoder.normalizer is None

    def forward(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """What each layer is given, the heads' in the end; and what the heads say."""
        inputs = [x]
        for layer in self._layers:
            x = layer(x)
            if self._has_tanh:
                numbers = x.numpy()
                np.tanh(numbers, out=numbers)  # up to six times as fast as torch's
            else:
                x.relu_()
            inputs.append(x)
        return inputs, [head(x) for head in self._heads]

    def backward(
        self, inputs: Sequence[Tensor], gradients: Sequence[Tensor | None], pieces: Iterator[Tensor] | None
    ) -> None:
        """Add the parameters' gradients, given those of the features and of what the heads say.

        All of them are written to ``pieces``, where these are given and there is none yet.
        """
        gradient, *of_heads = gradients
        for head, of_head in zip(self._heads, of_heads):
            if of_head is not None:
                head.add_gradients(of_head, inputs[-1], pieces)
                back = torch.mm(of_head, head.weight)
                gradient = back if gradient is None else back.add_(gradient)
        if gradient is None:
            return
        for index in range(len(self._layers) - 1, -1, -1):
            layer, output = self._layers[index], inputs[index + 1]
            if self._has_tanh:
                gradient = torch.ops.aten.tanh_backward.default(gradient, output)
            else:
                gradient = torch.ops.aten.threshold_backward.default(gradient, output, 0)
            layer.add_gradients(gradient, inputs[index], pieces)
            if index:
                gradient = torch.mm(gradient, layer.weight)


class _Layer:
    """A Linear; of its parameters views that autograd does not look at."""

    def __init__(self, layer: nn.Linear) -> None:
        self.parameters = layer.weight, layer.bias
        self._held = layer._parameters
        self._look()

    def is_unchanged(self) -> bool:
        weight, bias = self.parameters
        return self._held["weight"] is weight and self._held["bias"] is bias

    def _look(self) -> None:
        weight, bias = self.parameters
        self._places = weight.data_ptr(), bias.data_ptr()
        self.weight, self._bias = weight.detach(), bias.detach()
        self._transposed = self.weight.t()

    def __call__(self, x: Tensor) -> Tensor:
        weight, bias = self.parameters
        if (weight.data_ptr(), bias.data_ptr()) != self._places:  # somebody gave them other memory
            self._look()
        return torch.addmm(self._bias, x, self._transposed)

    def add_gradients(self, gradient: Tensor, inputs: Tensor, pieces: Iterator[Tensor] | None) -> None:
        weight, bias = self.parameters
        if pieces is None:
            _add(weight, torch.mm(gradient.t(), inputs))
            _add(bias, gradient.sum(0))
        else:
            weight.grad = _product(gradient.t(), inputs, next(pieces))
            bias.grad = torch.sum(gradient, 0, out=next(pieces))


def _product(first: Tensor, second: Tensor, out: Tensor) -> Tensor:
    """``first @ second``; of narrow ones numpy's takes half the time of torch's, or less."""
    if out.shape[1] < _NARROW and first.numel() * out.shape[1] <= MOST_OF_PRODUCT:
        np.matmul(first.numpy(), second.numpy(), out=out.numpy())
        return out
    return torch.mm(first, second, out=out)


def _add(parameter: Tensor, gradient: Tensor) -> None:
    if parameter.grad is None:
        parameter.grad = gradient
    else:
        parameter.grad += gradient


def _forward(towers: Sequence[_Tower], obs: Tensor) -> tuple[list[Tensor], AddGradients]:
    """Outputs of each tower in turn, its features and what its heads say; and what takes derivatives by them."""
    outputs: list[Tensor] = []
    kept: list[list[Tensor]] = []
    given = towers[0].inputs(obs)
    for tower in towers:
        inputs, heads = tower.forward(given if tower is towers[0] or tower.reads_as(towers[0]) else tower.inputs(obs))
        outputs += [inputs[-1], *heads]
        kept.append([*inputs[:-1], inputs[-1].detach()])  # an output would be kept alive by its own history

    def add_gradients(*gradients: Tensor | None, pieces: Iterator[Tensor] | None = None) -> None:
        rest = list(gradients)
        for tower, inputs in zip(towers, kept):
            tower.backward(inputs, rest[: tower.num_outputs], pieces)
            rest = rest[tower.num_outputs :]

    return outputs, add_gradients


class _Node(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, anchor: Tensor, outputs: Sequence[Tensor], add_gradients: AddGradients) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.add_gradients = add_gradients
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[None, None, None]:
        if torch.is_grad_enabled():
            raise NotImplementedError("Derivatives of a HostPass's gradients: run the network itself for these.")
        ctx.add_gradients(*gradients)
        return None, None, None


def _node(anchor: Tensor, outputs: Sequence[Tensor], add_gradients: AddGradients) -> tuple[Tensor, ...]:
    """Tensors that autograd takes for functions of the ``anchor``, and whose derivatives ``add_gradients`` is given."""
    return cast("tuple[Tensor, ...]", cast(Any, _Node).apply(anchor, outputs, add_gradients))
