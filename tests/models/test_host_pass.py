"""Passes of small networks as one node of autograd's graph: the same outputs and gradients, where that is sure."""

import functools
import gc
import weakref

import pytest
import torch
from gymnasium import spaces
from torch import nn

from ppo_lightning import ActorCritic, MLPEncoder, ObservationNormalizer
from ppo_lightning.models import host_pass as module
from ppo_lightning.models.host_pass import host_pass
from tests.models.test_host import (
    CHOICE,
    NUMBERS,
    STRANGERS,
    VECTOR,
    daac,
    gaussian,
    network,
    with_method,
)

MAKERS = [
    (functools.partial(network, shared=False), CHOICE),
    (functools.partial(network, shared=True), CHOICE),
    (functools.partial(network, shared=False), NUMBERS),
    (functools.partial(network, shared=True), NUMBERS),
    (daac, CHOICE),
    (gaussian, NUMBERS),
    (functools.partial(gaussian, std="fixed"), NUMBERS),
]


def policy_of(output):
    return output.logits if hasattr(output, "logits") else torch.cat([output.mean, output.logstd.expand(9, 2)], dim=1)


def losses(output):
    """Of which each asks something else of the output."""
    policy, value, hidden = policy_of(output), output.value, output.hidden
    return {
        "all": policy.square().sum() + value.exp().sum() + hidden.sin().sum(),
        "policy": policy.square().sum(),
        "value": value.exp().sum(),
        "hidden": hidden.sin().sum(),
        "both": policy.sin().sum() * value.square().sum(),
    }


def evaluate(net, obs):
    return net.evaluate(obs) if hasattr(net, "evaluate") else net(obs)


def gradients_of(net, loss, times=1):
    net.zero_grad()
    for _ in range(times):
        loss().backward()
    return {name: None if p.grad is None else p.grad.clone() for name, p in net.named_parameters()}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        if gradient is None:
            assert found[name] is None, name
        else:
            torch.testing.assert_close(found[name], gradient, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("what", ["all", "policy", "value", "hidden", "both"])
@pytest.mark.parametrize("encoder", [{}, {"activation": "ReLU"}, {"normalizer": ObservationNormalizer}])
@pytest.mark.parametrize(("make", "action_space"), MAKERS)
def test_outputs_and_gradients_are_the_networks(make, action_space, encoder, what):
    net = make(action_space, **encoder).double()
    for part in net.modules():
        if isinstance(part, ObservationNormalizer):
            part.update(torch.tensor([[9.0, 0.3, 0.01]] * 5, dtype=torch.float64))
    passes, obs = host_pass(net, 9), torch.randn(9, 5, dtype=torch.float64)
    expected, own = evaluate(net, obs), passes(obs)
    assert type(own) is type(expected)
    torch.testing.assert_close(policy_of(own), policy_of(expected), rtol=0, atol=1e-12)
    torch.testing.assert_close(own.value, expected.value, rtol=0, atol=1e-12)
    torch.testing.assert_close(own.hidden, expected.hidden, rtol=0, atol=1e-12)
    for times in (1, 3):  # gradients add up
        reference = gradients_of(net, lambda: losses(evaluate(net, obs))[what], times)
        assert any(gradient is not None for gradient in reference.values())
        assert_same(gradients_of(net, lambda: losses(passes(obs))[what], times), reference)


@pytest.mark.parametrize(("make", "action_space"), MAKERS)
def test_all_gradients_at_once_are_the_networks(make, action_space):
    net = make(action_space).double()
    passes, obs = host_pass(net, 9), torch.randn(9, 5, dtype=torch.float64)
    size = action_space.n if action_space is CHOICE else 2
    of_policy, of_values, of_std = (torch.randn(shape, dtype=torch.float64) for shape in ((9, size), (9, 1), (2,)))

    def loss():
        output = evaluate(net, obs)
        policy = output.logits if action_space is CHOICE else output.mean
        total = (policy * of_policy).sum() + (output.value * of_values[:, 0]).sum()
        return total + (output.logstd * of_std).sum() if passes.learns_std else total

    def own():
        policy, values, add_gradients = passes.run(obs)
        value = (policy * of_policy).sum() + (values * of_values).sum()
        return passes.loss(
            value,
            lambda w: add_gradients(w * of_policy, w * of_values, *([w * of_std] if passes.learns_std else [])),
        )

    reference = gradients_of(net, loss)
    for times in (1, 2):
        found = gradients_of(net, own, times)
        assert_same({k: None if g is None else g / times for k, g in found.items()}, reference)
    assert_same(gradients_of(net, lambda: own() * 3), {k: g if g is None else 3 * g for k, g in reference.items()})


def test_gradients_at_once_lie_in_one_piece_of_their_own():
    """They are clipped as one, and the last minibatch's stay what they were."""
    net = network()
    passes, obs = host_pass(net, 9), torch.randn(9, 5)

    def learn():
        policy, values, add_gradients = passes.run(obs)
        passes.loss(torch.zeros(()), lambda weight: add_gradients(policy, values)).backward()
        return [parameter.grad for parameter in net.parameters()]

    first = learn()
    assert len({id(gradient._base) for gradient in first}) == 1
    assert first[0]._base.numel() == sum(gradient.numel() for gradient in first)
    kept = [gradient.clone() for gradient in first]
    net.zero_grad()
    obs.mul_(2)
    learn()
    assert all(torch.equal(*pair) for pair in zip(first, kept))


def test_the_halves_of_one_with_two_encoders():
    net = daac().double()
    passes, obs = host_pass(net, 9), torch.randn(9, 5, dtype=torch.float64)
    reference = gradients_of(net, lambda: net.values(obs).exp().sum())
    assert_same(gradients_of(net, lambda: passes.values(obs).exp().sum()), reference)

    def loss(output):
        return output.logits.exp().sum() + net.advantages(output.hidden, torch.arange(9) % 3).square().sum()

    reference = gradients_of(net, lambda: loss(net.policy(obs)))
    assert_same(gradients_of(net, lambda: loss(passes.policy(obs))), reference)
    assert passes.policy(obs).value.isnan().all()


def frozen(net):
    net.embedder.layers[0].weight.requires_grad_(False)
    return net


def watched(net, register="register_hook", name="fc_policy"):
    getattr(getattr(net, name).weight, register)(lambda *_: None)
    return net


def watched_std(net):
    net.logstd.register_hook(lambda gradient: None)
    return net


def with_layer(net, index, layer):
    net.embedder.layers[index] = layer
    return net


def without_last_layer(net):
    net.embedder.layers = net.embedder.layers[:-1]
    return net


def with_head(net, head):
    net.fc_value = head
    return net


class Learned(ObservationNormalizer):
    """With a parameter of its own."""

    def __init__(self, num_features):
        super().__init__(num_features)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return super().forward(x) * self.scale


def tied(net):
    net.critic_embedder.layers[0].weight = net.embedder.layers[0].weight
    return net


def sharing():
    encoder = MLPEncoder(VECTOR)
    return ActorCritic(VECTOR, CHOICE, lambda space: encoder)


def watched_module(net, register):
    getattr(net.fc_policy, register)(lambda *_: None)
    return net


@pytest.mark.parametrize(
    "make",
    [
        *STRANGERS,
        lambda: network(hidden_sizes=[2**15, 4]),
        lambda: network(spaces.Discrete(2**15)),
        lambda: with_method(network(), "forward"),
        lambda: frozen(network()),
        lambda: watched(network()),
        lambda: watched(network(), "register_post_accumulate_grad_hook"),
        lambda: watched_std(network(NUMBERS)),
        lambda: network(critic_encoder=functools.partial(MLPEncoder, activation="ELU")),
        lambda: with_layer(network(), 3, nn.ReLU()),
        lambda: with_layer(network(), 2, nn.Linear(16, 16, bias=False)),
        lambda: with_layer(network(), 1, nn.Linear(16, 16)),
        lambda: without_last_layer(network()),
        lambda: with_head(network(), nn.Linear(16, 1, bias=False)),
        lambda: network(normalizer=Learned),
        lambda: tied(network()),
        lambda: sharing(),
        lambda: watched_module(network(), "register_full_backward_hook"),
        lambda: watched_module(network(), "register_full_backward_pre_hook"),
    ],
)
def test_other_networks_are_run_by_themselves(make):
    assert host_pass(make(), 9) is None


def test_large_minibatches_are_left_to_autograd():
    assert host_pass(network(), module.MOST // 16) is not None
    assert host_pass(network(), module.MOST // 16 + 1) is None


def test_it_follows_parameters_to_other_memory():
    net = network().double()
    passes, obs = host_pass(net, 9), torch.randn(9, 5, dtype=torch.float64)
    for parameter in net.parameters():
        parameter.data = parameter.data * 2
    torch.testing.assert_close(passes(obs).logits, net(obs).logits, rtol=0, atol=1e-12)


def replaced(net):
    net.fc_policy.weight = nn.Parameter(net.fc_policy.weight.data.clone())


@pytest.mark.parametrize(
    "change",
    [frozen, watched, replaced, watched_std, lambda net: net.logstd.requires_grad_(False)],
)
def test_it_tells_that_the_network_is_no_longer_what_it_was(change):
    net = network(NUMBERS)
    passes = host_pass(net, 9)
    assert passes.is_for(net)
    assert not passes.is_for(network(NUMBERS))
    with torch.autograd.set_detect_anomaly(True, check_nan=False):
        assert not passes.is_for(net)
    change(net)
    assert not passes.is_for(net)


def test_derivatives_of_its_gradients_are_refused():
    passes = host_pass(network(), 9)
    loss = passes(torch.randn(9, 5)).value.sum()
    with pytest.raises(NotImplementedError, match="run the network itself"):
        loss.backward(create_graph=True)


def test_nothing_keeps_an_output_alive():
    passes = host_pass(network(), 9)
    gc.disable()
    try:
        output = passes(torch.randn(9, 5))
        hidden = weakref.ref(output.hidden.grad_fn)
        del output
        assert hidden() is None
    finally:
        gc.enable()
