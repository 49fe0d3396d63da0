"""Layers in oneDNN's tensors give what torch's own give."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from ppo_lightning.models import ImpalaCNN, onednn
from ppo_lightning.models.onednn import FEWEST, can_run_in_onednn

needs_onednn = pytest.mark.skipif(not can_run_in_onednn(torch.float32), reason="no processor for it")
needs_bfloat16 = pytest.mark.skipif(not can_run_in_onednn(torch.bfloat16), reason="no bfloat16 in oneDNN here")
BOTH = [
    pytest.param(torch.float32, marks=needs_onednn),
    pytest.param(torch.bfloat16, marks=needs_bfloat16),
]


def make_encoder(side=24, width=16):
    torch.manual_seed(0)
    return ImpalaCNN(spaces.Box(0, 255, (side, width, 3), np.uint8), channels=(4, 6), hidden_dim=5)


def pixels(batch=FEWEST, side=24, width=16, flat=False):
    """With areas of one colour, in which the largest of a window are many, if asked for."""
    images = torch.randint(0, 256, (batch, side, width, 3), dtype=torch.uint8)
    return images // 128 * 127 if flat else images


@pytest.fixture
def entered(monkeypatch):
    """The dtypes of the pictures that went into oneDNN's tensors."""
    seen, conv = [], onednn.Conv3x3.forward

    def spy(self, x):
        if x.is_mkldnn and self.in_channels == 3:
            seen.append(x.dtype)
        return conv(self, x)

    monkeypatch.setattr(onednn.Conv3x3, "forward", spy)
    return seen


def outcome(encoder, images, dtype):
    """Features and gradients."""
    encoder.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
        features = encoder(images)
    features.float().square().sum().backward()
    return features.detach(), [parameter.grad.clone() for parameter in encoder.parameters()]


@pytest.fixture
def in_torch(monkeypatch):
    """What runs a function in torch's tensors."""

    def run(function, *args):
        with monkeypatch.context() as patch:
            patch.setattr(onednn, "FEWEST", 10**9)
            return function(*args)

    return run


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("dtype", BOTH)
def test_features_are_the_same_and_gradients_to_rounding(dtype, flat, entered, in_torch):
    encoder, images = make_encoder(), pixels(flat=flat)
    own, gradients = outcome(encoder, images, dtype)
    assert entered == [dtype]
    plain, expected = in_torch(outcome, encoder, images, dtype)
    assert entered == [dtype]
    tolerance = 1e-5 if dtype is torch.float32 else 2e-2
    torch.testing.assert_close(own, plain, rtol=tolerance, atol=tolerance)
    for one, other in zip(gradients, expected):
        assert (one - other).norm() <= tolerance * other.norm()


@needs_onednn
@pytest.mark.parametrize("size", [(8, 8), (9, 17), (33, 10)])
def test_the_first_of_several_largest_is_given_the_gradient(size, entered):
    """Sums of halves are exact, and many in a window are the largest: float64 by torch takes the same ones."""
    encoder = ImpalaCNN(spaces.Box(0, 1, (*size, 3), np.float32), channels=(4, 6), hidden_dim=5)
    for parameter in encoder.parameters():
        parameter.data = torch.randint(-1, 2, parameter.shape) / 2
    images = torch.randint(0, 2, (FEWEST + 1, *size, 3)) / 2
    own, gradients = outcome(encoder, images, torch.float32)
    double, expected = outcome(encoder.double(), images, torch.float64)
    assert entered == [torch.float32]
    torch.testing.assert_close(own.double(), double, rtol=1e-6, atol=1e-6)
    assert double.abs().max() > 1
    for one, other in zip(gradients, expected):
        torch.testing.assert_close(one.double(), other, rtol=1e-6, atol=1e-6 * float(other.abs().max()))


@needs_onednn
def test_acting_and_learning_give_the_same_bits(entered):
    encoder, images = make_encoder(), pixels()
    with torch.no_grad():
        acting = encoder(images)
    with torch.inference_mode():
        assert torch.equal(encoder(images), acting)
    assert torch.equal(encoder(images).detach(), acting)
    assert len(entered) == 3


@needs_onednn
def test_overflow_is_not_passed_over(entered):
    """What was finite before its convolution."""
    encoder = make_encoder()
    for parameter in encoder.blocks.parameters():
        parameter.data *= 1e13
    assert not onednn.run_layers(encoder.blocks, encoder.image(pixels())).relu().isfinite().any()
    assert entered == [torch.float32]


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", BOTH)
def test_what_is_not_finite_is_not_passed_over(dtype, value, entered):
    for number in range(len(list(make_encoder().blocks.parameters()))):
        encoder = make_encoder()
        parameter = list(encoder.blocks.parameters())[number]
        parameter.data[(-1,) * parameter.dim()] = value
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
            assert encoder(pixels()).isnan().all()
    encoder = ImpalaCNN(spaces.Box(0, 1, (24, 16, 3), np.float32), channels=(4, 6), hidden_dim=5)
    images = torch.rand(FEWEST, 24, 16, 3)
    images[3, 7, 5, 1] = value
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
        bad = onednn.run_layers(encoder.blocks, encoder.image(images)).flatten(1).isnan()
    assert bad.all(dim=1).tolist() == bad.any(dim=1).tolist() == [number == 3 for number in range(FEWEST)]
    assert len(entered) == len(list(encoder.blocks.parameters())) + 1


@needs_onednn
def test_derivatives_by_pictures_are_there(in_torch):
    encoder = make_encoder()
    images = torch.rand(FEWEST, 3, 24, 16, requires_grad=True)

    def derivatives():
        return torch.autograd.grad(onednn.run_layers(encoder.blocks, images).square().sum(), images)[0]

    own, expected = derivatives(), in_torch(derivatives)
    torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-5)


def traced(encoder):
    return torch.jit.trace(encoder, pixels(), check_trace=False)


def exported(encoder):
    return torch.export.export(encoder, (pixels(),)).module()


def compiled(encoder):
    return torch.compile(encoder, backend="eager", fullgraph=True)


def compiled_in_place(encoder):
    torch.compiler.reset()
    encoder.blocks.compile(backend="aot_eager")

    def run(images):
        features = encoder(images)
        features.sum().backward()
        return features

    return run


def as_a_graph(encoder):
    return make_fx(encoder)(pixels())


def counted(encoder):
    def run(images):
        with FlopCounterMode(display=False) as counter:
            features = encoder(images)
        assert counter.get_total_flops() > 10 * FEWEST * encoder.linear.weight.numel()
        return features

    return run


def anomalies_looked_for(encoder):
    def run(images):
        with torch.autograd.detect_anomaly():
            features = encoder(images)
            features.sum().backward()
        return features

    return run


def mapped(encoder):
    weights = {name: torch.stack([weight, weight]) for name, weight in encoder.state_dict().items()}
    run = torch.vmap(lambda own, obs: torch.func.functional_call(encoder, own, (obs,)), in_dims=(0, None))
    return lambda images: run(weights, images)[1]


def in_float64(encoder):
    return encoder.double()


class Own(torch.Tensor):
    """A kind of tensors of somebody else's."""


def of_own_tensors(encoder):
    return lambda images: encoder(images.as_subclass(Own)).as_subclass(torch.Tensor)


def hooked(register):
    """By one of a module's methods, with a function that needs torch's tensors."""

    def look(*seen):
        for part in torch.utils._pytree.tree_leaves(seen):
            if isinstance(part, torch.Tensor):
                part.numpy(force=True)

    def change(encoder):
        getattr(encoder.blocks[2], register)(look)

        def run(images):
            features = encoder(images)
            features.sum().backward()
            return features

        return run

    return pytest.param(change, id=register)


def hooked_for_all(encoder):
    def look(_, __, output):
        output.numpy(force=True)

    def run(images):
        handle = nn.modules.module.register_module_forward_hook(look)
        try:
            return encoder(images)
        finally:
            handle.remove()

    return run


def with_another_forward(encoder):
    block = encoder.blocks[2]
    block.forward = lambda x, own=block.forward: own(nn.functional.threshold(x, -1e9, 0.0))  # oneDNN has none
    return encoder


def with_a_class_of_its_own(encoder):
    class Block(type(encoder.blocks[2])):
        def forward(self, x):
            return super().forward(x) + 0 * x.mean((2, 3), keepdim=True)

    own = Block(4)
    own.load_state_dict(encoder.blocks[2].state_dict())
    encoder.blocks[2] = own
    return encoder


def with_another_layer(encoder):
    encoder.blocks[1] = nn.Sequential(nn.MaxPool2d(3, stride=2, padding=1), nn.Dropout(0.0), nn.Identity())
    return encoder


@needs_onednn
@pytest.mark.parametrize(
    "change",
    [
        *(traced, exported, compiled, compiled_in_place, as_a_graph, counted, anomalies_looked_for, mapped),
        *(in_float64, of_own_tensors, hooked_for_all, with_another_forward, with_a_class_of_its_own),
        *(with_another_layer, hooked("register_forward_hook"), hooked("register_forward_pre_hook")),
        *(hooked("register_full_backward_hook"), hooked("register_full_backward_pre_hook")),
    ],
)
def test_torchs_layers_are_there_for_who_needs_them(change, entered, in_torch):
    encoder, images = make_encoder(), pixels()
    expected = in_torch(encoder, images)
    own = change(encoder)(images)
    assert entered == []
    torch.testing.assert_close(own.to(expected.dtype), expected, rtol=1e-5, atol=1e-5)


def test_pictures_on_no_device_have_features_of_the_right_size():
    assert make_encoder().to("meta")(pixels().to("meta")).shape == (FEWEST, 5)


@needs_bfloat16
def test_autocast_is_for_pictures_in_float32(entered):
    """As of an encoder that does something of its own to them."""
    encoder, images = make_encoder(), torch.rand(FEWEST, 3, 24, 16)
    with torch.autocast("cpu", torch.bfloat16):
        assert onednn.run_layers(encoder.blocks, images).dtype is torch.bfloat16
    with torch.autocast("cpu", torch.float16):
        assert onednn.run_layers(encoder.blocks, images).dtype is torch.float16
    assert entered == [torch.bfloat16]


@needs_onednn
def test_gradients_are_the_same_with_checkpointed_activations(entered):
    encoder, images = make_encoder(), pixels()
    _, expected = outcome(encoder, images, torch.float32)
    encoder.zero_grad()
    checkpoint(encoder, images, use_reentrant=False).square().sum().backward()
    assert all(torch.equal(parameter.grad, one) for parameter, one in zip(encoder.parameters(), expected))
    assert len(entered) == 3


def test_derivatives_of_gradients_are_there_without_it(entered):
    encoder = make_encoder()
    images = torch.rand(FEWEST, 3, 24, 16, requires_grad=True)
    with torch.backends.mkldnn.flags(enabled=False):
        features = onednn.run_layers(encoder.blocks, images).square().sum()
        (first,) = torch.autograd.grad(features, images, create_graph=True)
        first.square().sum().backward()
    assert encoder.blocks[0].weight.grad.norm() > 0
    assert entered == []


@needs_onednn
def test_few_pictures_do_not_enter(entered):
    make_encoder()(pixels(FEWEST - 1))
    assert entered == []
    make_encoder()(pixels(FEWEST))
    assert entered == [torch.float32]


@needs_onednn
def test_poolings_that_onednn_has_not_are_torchs(entered):
    for pool in (nn.MaxPool2d(3, dilation=2), nn.MaxPool2d(2, return_indices=True)):
        onednn.run_layers(nn.Sequential(onednn.Conv3x3(3, 4), pool), torch.rand(FEWEST, 3, 24, 16))
    assert entered == []
    pooled = onednn.run_layers(nn.MaxPool2d(2), images := torch.rand(FEWEST, 3, 24, 16))
    torch.testing.assert_close(pooled, torch.max_pool2d(images, 2))


def test_types_that_nobody_has_measured_do_not_enter():
    assert not can_run_in_onednn(torch.float64)
    assert not can_run_in_onednn(torch.float16)
