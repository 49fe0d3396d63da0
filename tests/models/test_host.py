"""Acting in numpy: as the network acts, with its own parameters, and only where that is sure."""

import functools
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

from ppo_lightning import ActorCritic, DAACModel, GRUCore, MLPEncoder, ObservationNormalizer, PPOActor, PPOModel
from ppo_lightning.functional.distributions import draw_noise
from ppo_lightning.models import host
from ppo_lightning.models.host import host_actor
from ppo_lightning.models.outputs import run_network
from tests.runs import Recorder, fit, make_data, make_ppo

VECTOR, CHOICE = spaces.Box(-2, 2, (5,), np.float64), spaces.Discrete(3)
NUMBERS = spaces.Box(-1, 1, (2,))


def builder(**encoder):
    return functools.partial(MLPEncoder, **({"hidden_sizes": [16, 16]} | encoder))


def varied(made):
    """With heads that say something."""
    for parameter in made.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return made


def network(action_space=CHOICE, obs_space=VECTOR, core=None, shared=False, seed=0, critic_encoder=None, **encoder):
    torch.manual_seed(seed)
    return varied(ActorCritic(obs_space, action_space, builder(**encoder), critic_encoder, shared=shared, core=core))


def daac(action_space=CHOICE, obs_space=VECTOR, **encoder):
    return varied(DAACModel(obs_space, action_space, builder(**encoder)))


def gaussian(action_space=NUMBERS, obs_space=VECTOR, std="learned", squash=False, rescale_actions=False, **encoder):
    return varied(PPOModel(obs_space, action_space, builder(**encoder), None, std, -0.7, squash, rescale_actions))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("make", "action_space"),
    [
        (functools.partial(network, shared=False), CHOICE),
        (functools.partial(network, shared=True), CHOICE),
        (functools.partial(network, shared=False), NUMBERS),
        (functools.partial(network, shared=True), NUMBERS),
        (daac, CHOICE),
        (daac, NUMBERS),
        (gaussian, NUMBERS),
        (functools.partial(gaussian, std="fixed", rescale_actions=True), spaces.Box(-3, 5, (2,))),
    ],
)
@pytest.mark.parametrize("encoder", [{}, {"activation": "ReLU"}, {"normalizer": ObservationNormalizer}])
@pytest.mark.parametrize("num_envs", [1, 7])
def test_it_acts_as_the_network_does(dtype, make, action_space, encoder, num_envs):
    net = make(action_space, **encoder).to(dtype)
    if "normalizer" in encoder:
        for part in net.modules():
            if isinstance(part, ObservationNormalizer):
                part.update(torch.tensor([[9.0, 0.3, 0.01]] * 5, dtype=torch.float64))
    actor = host_actor(net, num_envs)
    generators = [torch.Generator().manual_seed(seed) for seed in range(num_envs)]
    for noise in draw_noise(action_space, 50, generators, dtype, torch.device("cpu")):
        obs = torch.randn(num_envs, 5, dtype=torch.float64)
        with torch.no_grad():
            output, _ = run_network(net, obs)
            expected = output.distribution.sample(noise)
            log_probs = output.distribution.log_prob(expected)
        actions, own_log_probs, values = actor.act(obs, noise)
        accuracy = {"rtol": 0, "atol": 2e-5 if dtype == torch.float32 else 1e-12}
        torch.testing.assert_close(actions, expected, **accuracy)
        torch.testing.assert_close(own_log_probs, log_probs, **accuracy)
        assert (values is not None) == (getattr(net, "critic_embedder", 0) is None)
        if values is not None:
            torch.testing.assert_close(values, output.value, **accuracy)


def test_the_environment_is_given_what_the_network_maps_actions_to(monkeypatch):
    """As in torch, of actions beyond -1 and 1 too."""
    rollouts = {}
    for most in (host.MOST, 0):
        monkeypatch.setattr(host, "MOST", most)
        torch.manual_seed(0)
        model = functools.partial(PPOModel, rescale_actions=True, initial_logstd=1.0)
        ppo, given = make_ppo(network=model), []
        act = ppo.act

        def spy(*args, act=act, given=given):
            output = act(*args)
            given.append((output.actions, output.env_actions))
            return output

        ppo.act = spy
        fit(ppo, make_data("tests.tasks:Target-v0", iterations=1), precision="64-true")
        rollouts[most] = given
    for own, reference in zip(*rollouts.values()):
        torch.testing.assert_close(own, reference, rtol=0, atol=1e-12)
    actions, env_actions = (torch.cat(column) for column in zip(*rollouts[0]))
    assert actions.abs().max() > 1
    assert not torch.equal(actions, env_actions)


def test_its_samples_pass_a_chi_square_test():
    net = network()
    obs = torch.randn(1, 5, dtype=torch.float64)
    with torch.no_grad():
        probabilities = net(obs).distribution.log_probs.exp()[0]
    actor, draws = host_actor(net, 1), 20_000
    noise = draw_noise(CHOICE, draws, [torch.Generator().manual_seed(1)], torch.float32, torch.device("cpu"))
    actions = torch.cat([actor.act(obs, step)[0] for step in noise])
    observed, expected = torch.bincount(actions, minlength=3), draws * probabilities
    assert expected.min() > 100
    assert ((observed - expected) ** 2 / expected).sum() < 13.82  # 99.9 % of chi-square with 2 degrees of freedom


def test_it_follows_the_optimiser():
    net = network()
    actor, obs, noise = host_actor(net, 2), torch.randn(2, 5), torch.zeros(2, 3)
    before = actor.act(obs, noise)[1]
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1, fused=True)
    net(obs).logits[:, 0].sum().backward()
    optimizer.step()
    after = actor.act(obs, noise)[1]
    assert not torch.equal(before, after)
    with torch.no_grad():
        distribution = net(obs).distribution
    torch.testing.assert_close(after, distribution.log_prob(distribution.mode()), rtol=0, atol=1e-5)


class Changed(ActorCritic):
    """May do anything."""


class OtherActor(PPOActor):
    """May do anything, too."""


def with_actor(kind):
    net = gaussian()
    net.actor = kind(VECTOR, NUMBERS, builder())
    return net


def with_encoder_in(dtype):
    net = network()
    net.embedder.to(dtype)
    return net


def part_of(net, name):
    return getattr(net, name) if name else net


def with_hook(net, part=""):
    part_of(net, part).embedder.layers[0].register_forward_hook(lambda *_: None)
    return net


def with_method(net, name="policy", part=""):
    setattr(part_of(net, part), name, lambda obs: None)
    return net


STRANGERS = [
    lambda: Changed(VECTOR, CHOICE),
    lambda: network(core=functools.partial(GRUCore, hidden_dim=4)),
    lambda: network(spaces.MultiBinary(3)),
    lambda: network(spaces.MultiDiscrete([2, 3])),
    lambda: network(obs_space=spaces.Box(0, 255, (5,), np.uint8)),
    lambda: network(obs_space=spaces.Discrete(5)),
    lambda: network(obs_space=spaces.Dict(x=VECTOR)),
    lambda: network(obs_space=spaces.Box(-1, 1, (5, 2))),
    lambda: network(activation="GELU"),
    lambda: network().to(torch.bfloat16),
    lambda: network().to("meta"),
    lambda: with_hook(network()),
    lambda: with_method(network()),
    lambda: nn.Linear(5, 3),
    lambda: gaussian(squash=True),
    lambda: gaussian(std="state_dependent"),
    lambda: with_actor(OtherActor),
    lambda: with_hook(gaussian(), "actor"),
    lambda: with_method(gaussian(), "parameters_for", "actor"),
    lambda: with_method(gaussian(), "evaluate"),
    lambda: with_encoder_in(torch.float64),
]
"""Make networks that nothing but themselves runs."""


@pytest.mark.parametrize("make", [*STRANGERS, lambda: network(hidden_sizes=[2048, 2048])])
def test_other_networks_act_themselves(make):
    assert host_actor(make(), 4) is None


def test_a_step_is_the_same_bits_with_any_number_of_threads():
    """The largest layers that are taken, in processes whose numpy may use one and two threads."""
    script = (
        "import hashlib, numpy as np; r = np.random.default_rng(0); digest = hashlib.sha256();\n"
        "for n, width in [(64, 64), (16, 128), (4, 256), (1, 512)]:\n"
        "    assert n * width * width == 2**18\n"
        "    for dtype in ('f4', 'f8'):\n"
        "        x, weight = (r.standard_normal((rows, width)).astype(dtype) for rows in (n, width))\n"
        "        digest.update((x @ weight.T).tobytes())\n"
        "for rows, fan_in, fan_out in [(128, 15, 136), (1024, 4, 64), (2048, 2, 64)]:\n"
        "    assert 2**17 < rows * fan_in * fan_out <= 2**18\n"
        "    for dtype in ('f4', 'f8'):\n"
        "        x, y = (r.standard_normal((rows, width)).astype(dtype) for width in (fan_in, fan_out))\n"
        "        digest.update((y.T @ x).tobytes())\n"
        "print(digest.hexdigest())"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "OPENBLAS_NUM_THREADS": threads},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for threads in ("1", "2")
    }
    assert len(found) == 1
    assert host.MOST == 2**18


@pytest.mark.parametrize(("width", "num_envs", "is_taken"), [(64, 64, True), (64, 65, False), (128, 16, True)])
def test_wide_layers_of_many_environments_are_left_to_torch(width, num_envs, is_taken):
    net = network(hidden_sizes=[width, width])
    assert (host_actor(net, num_envs) is not None) == is_taken


def test_rounding_alone_tells_a_run_in_numpy_from_one_in_torch(monkeypatch):
    """Whole runs, in float64."""
    runs = {}
    for most in (host.MOST, 0):
        monkeypatch.setattr(host, "MOST", most)
        recorder, acts, ppo = Recorder(), [], make_ppo()
        act = host.HostActor.act
        with monkeypatch.context() as patch:
            patch.setattr(host.HostActor, "act", lambda self, *args, a=acts, f=act: (a.append(1), f(self, *args))[1])
            fit(ppo, make_data(iterations=3), callbacks=[recorder], precision="64-true")
        assert len(acts) == (3 * 8 if most else 0)
        runs[most] = recorder
    for first, second in zip(*(recorder.after for recorder in runs.values())):
        for name in first:
            torch.testing.assert_close(first[name], second[name], rtol=0, atol=1e-12)


def test_mixed_precision_acts_in_the_network(monkeypatch):
    monkeypatch.setattr(host.HostActor, "act", lambda *_: pytest.fail("acted in numpy"))
    fit(make_ppo(), make_data(iterations=1), precision="bf16-mixed")


def test_a_network_that_became_nan_is_told_of_once(recwarn):
    net = network()
    net.fc_policy.bias.data[:] = math.nan
    _, log_probs, _ = host_actor(net, 2).act(torch.randn(2, 5), torch.zeros(2, 3))
    assert log_probs.isnan().all()
    assert not len(recwarn)
