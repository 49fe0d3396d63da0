"""A trained Gaussian actor-critic, normaliser and all, as a policy and as a file."""

import functools

import numpy as np
import onnxruntime
import pytest
import torch
from tensordict import TensorDict

from ppo_lightning import MLPEncoder, ObservationNormalizer, PPOModel, PPOPolicy, export_onnx
from tests.exports import assert_close, draw
from tests.runs import fit, make_data, make_ppo
from tests.tasks import Reach

NORMALIZED = functools.partial(MLPEncoder, hidden_sizes=[8], normalizer=ObservationNormalizer)
NETWORKS = {
    "plain": functools.partial(PPOModel, encoder=NORMALIZED),
    "squashed": functools.partial(
        PPOModel,
        encoder=functools.partial(NORMALIZED, in_keys=["noisy", "left"]),
        critic_encoder=functools.partial(NORMALIZED, in_keys=["clean"]),
        std="state_dependent",
        squash=True,
        rescale_actions=True,
    ),
}


@pytest.fixture(scope="module", params=NETWORKS)
def trained(request, tmp_path_factory):
    """An agent after some rollouts, whose critic learned standardised returns, and its checkpoint."""
    torch.manual_seed(0)
    ppo = make_ppo(network=NETWORKS[request.param], learning_rate=0.02, normalize_returns=True)
    fit(ppo, make_data("tests.tasks:Reach-v0", iterations=3))
    with torch.no_grad():
        ppo.network.actor.mu.weight.mul_(100)  # actions beyond the bounds, as after a longer run
    path = tmp_path_factory.mktemp("run") / "a.ckpt"
    ppo.trainer.save_checkpoint(path)
    return ppo.eval(), path


def observations(rows=64):
    """As the environment gives them: around 100."""
    obs = draw(Reach.observation_space, rows)
    return {key: 100 + 10 * part if part.dtype == np.float32 else part for key, part in obs.items()}


def as_tensors(obs):
    return TensorDict({key: torch.from_numpy(part) for key, part in obs.items()}, batch_size=[len(obs["left"])])


def actions_of(network, obs):
    with torch.no_grad():
        return network.to_env(network.evaluate(as_tensors(obs)).distribution.mode())


def test_a_reloaded_policy_gives_the_trainers_actions_for_raw_observations(trained):
    ppo, path = trained
    network = ppo.network
    assert (network.actor.embedder.normalizer.mean[:4] - 100).abs().max() < 20
    assert network.actor.embedder.normalizer.count > 90
    policy, obs = PPOPolicy(load_path=path), observations()
    expected = actions_of(network, obs)
    assert torch.equal(policy.act(obs, temperature=0), expected)
    assert torch.equal(policy.act(as_tensors(obs), temperature=0), expected)
    low, high = torch.from_numpy(Reach.action_space.low), torch.from_numpy(Reach.action_space.high)
    for actions in (expected, policy.act(obs, temperature=3.0)):
        assert (actions >= low).all()
        assert (actions <= high).all()
    assert expected.std(0).min() > 0.01


def test_its_statistics_matter_and_no_call_changes_them(trained):
    _, path = trained
    policy, obs = PPOPolicy(load_path=path), observations()
    before = policy.get_params()
    first = policy.act(obs, temperature=0)
    policy.train()
    policy.act(obs)
    assert all(torch.equal(before[name], tensor) for name, tensor in policy.get_params().items())
    policy.model.actor.embedder.normalizer.mean.zero_()
    assert not torch.allclose(policy.act(obs, temperature=0), first, atol=1e-2)


def test_temperature_spreads_actions_before_the_bounds(trained):
    """Of one observation whose mean lies within them."""
    ppo, path = trained
    policy, obs = PPOPolicy(load_path=path), {key: part[:1].repeat(5000, 0) for key, part in observations().items()}
    policy.model.actor.mu.weight.data.zero_()
    output = policy.act(obs, 0, return_model_output=True)[1]
    mean, std = output.mean[0].detach(), output.logstd.exp().expand_as(output.mean)[0].detach()
    noise = torch.randn(5000, 2)
    actions = mean + 0.5 * std * noise
    expected = policy.model.to_env(actions.tanh() if ppo.network.actor.squash else actions)
    torch.testing.assert_close(policy.act(obs, 0.5, noise=noise), expected, rtol=1e-5, atol=1e-5)


def test_an_exported_file_gives_the_same_actions_for_raw_observations(trained, tmp_path):
    ppo, path = trained
    written = export_onnx(path, tmp_path / "policy.onnx")
    assert written.difference < 1e-3
    session, obs = onnxruntime.InferenceSession(str(tmp_path / "policy.onnx")), observations()
    names = [entry.name for entry in session.get_inputs()]
    action, value = session.run(["action", "value"], {name: obs[name] for name in names})
    assert_close(action, actions_of(ppo.network, obs).double().numpy())
    np.testing.assert_allclose(value, values_of(ppo, obs), rtol=1e-4, atol=1e-3)


def values_of(ppo, obs):
    """In the units of rewards, as the agent bootstraps from."""
    with torch.no_grad():
        return ppo.value_of(as_tensors(obs), None)


def test_a_policys_values_are_in_the_units_of_rewards(trained):
    ppo, path = trained
    obs, expected = observations(), values_of(ppo, observations())
    assert ppo.return_normalizer.var > 10
    assert not torch.allclose(ppo.network.evaluate(as_tensors(obs)).value, expected, rtol=0.1)
    output = PPOPolicy(load_path=path).act(obs, return_model_output=True)[1]
    torch.testing.assert_close(output.value, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("normalize_returns", [False, True])
def test_a_new_run_begins_with_the_critic_as_it_was(trained, normalize_returns):
    """Whether it standardises returns, by statistics that begin anew, or not."""
    ppo, path = trained
    other = make_ppo(network=ppo._network_builder, normalize_returns=normalize_returns)
    other.build_network(Reach.observation_space, Reach.action_space)
    other.init_from(path)
    obs = observations()
    torch.testing.assert_close(values_of(other, obs), values_of(ppo, obs), rtol=1e-4, atol=1e-4)
