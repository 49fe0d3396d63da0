import functools

import numpy as np
import pytest
import torch
from gymnasium import spaces
from tensordict import TensorDict

from ppo_lightning.core.errors import ConfigurationError
from ppo_lightning.models import (
    ActorCritic,
    GaussianModelOutput,
    ImpalaCNN,
    ImpalaPPOModel,
    MLPEncoder,
    MultiBinaryModelOutput,
    MultiDiscreteModelOutput,
    NatureCNN,
    PPOModelOutput,
)

VECTOR, DISCRETE, BOX = spaces.Box(-1, 1, (3,)), spaces.Discrete(5), spaces.Box(-1, 1, (2,))
SEVERAL = spaces.MultiDiscrete([3, 3])
PRIVATE = spaces.Dict(shown=spaces.Box(-1, 1, (2,)), private=spaces.Box(-1, 1, (3,)))


def image_space(*shape):
    return spaces.Box(0, 255, shape, np.uint8)


def gain_squared(weight):
    """``W Wᵀ`` or ``Wᵀ W``, whichever is the smaller: the gain squared times the identity where W is orthogonal."""
    weight = weight.detach().flatten(1).double()
    return weight @ weight.T if weight.shape[0] <= weight.shape[1] else weight.T @ weight


def assert_orthogonal(layer, gain):
    product = gain_squared(layer.weight)
    expected = gain**2 * torch.eye(len(product), dtype=torch.float64)
    torch.testing.assert_close(product, expected, rtol=0, atol=2e-6 * gain**2)
    assert not layer.bias.any()


@pytest.mark.parametrize("shared", [False, True])
def test_discrete_actions_get_logits(shared):
    network = ActorCritic(VECTOR, DISCRETE, shared=shared)
    output = network(torch.randn(7, 3))
    assert isinstance(output, PPOModelOutput)
    assert output.logits.shape == (7, 5)
    assert output.value.shape == (7,)
    assert output.hidden.shape == (7, 64)
    assert output.distribution.log_probs.shape == (7, 5)
    assert (network.hidden_dim, network.logit_dim) == (64, 5)


@pytest.mark.parametrize("shared", [False, True])
def test_box_actions_get_a_gaussian_with_learned_std(shared):
    network = ActorCritic(VECTOR, BOX, shared=shared, initial_logstd=-0.5)
    output = network(torch.randn(7, 3))
    assert isinstance(output, GaussianModelOutput)
    assert output.mean.shape == (7, 2)
    assert output.logstd.tolist() == [-0.5, -0.5]
    assert output.value.shape == (7,)
    assert output.distribution.log_prob(torch.zeros(7, 2)).shape == (7,)
    assert network.logit_dim == 2
    assert any(parameter is network.logstd for parameter in network.parameters())
    output.distribution.entropy().sum().backward()
    assert network.logstd.grad.tolist() == [7, 7]


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("space", [spaces.MultiDiscrete([3, 1, 4], dtype=np.uint8, start=[1, 0, 9]), SEVERAL])
def test_multi_discrete_actions_get_the_logits_of_all_components(space, shared):
    network, width = ActorCritic(VECTOR, space, shared=shared), int(space.nvec.sum())
    output = network(torch.randn(7, 3))
    assert isinstance(output, MultiDiscreteModelOutput)
    assert output.nvec == tuple(int(size) for size in space.nvec)
    assert all(type(size) is int for size in output.nvec)
    assert output.logits.shape == (7, width)
    assert network.logit_dim == width
    assert_orthogonal(network.fc_policy, 0.01)
    actions = output.distribution.mode()
    assert actions.shape == (7, len(space.nvec))
    assert output.distribution.log_prob(actions).shape == output.value.shape == (7,)
    assert output.hidden.shape == (7, 64)


def test_multi_binary_actions_get_a_logit_each():
    network = ActorCritic(VECTOR, spaces.MultiBinary(4))
    output = network(torch.randn(7, 3))
    assert isinstance(output, MultiBinaryModelOutput)
    assert output.logits.shape == (7, 4)
    assert network.logit_dim == 4
    assert output.distribution.mode().shape == (7, 4)
    assert output.distribution.log_prob(output.distribution.mode()).shape == (7,)


def test_impala_model_takes_several_actions():
    network = ImpalaPPOModel(image_space(16, 16, 3), SEVERAL, channels=(4,), hidden_dim=10)
    output = network(np.zeros((2, 16, 16, 3), np.uint8))
    assert output.distribution.mode().shape == (2, 2)
    assert network.logit_dim == 6


def test_a_batch_of_one_keeps_its_dimension():
    assert ActorCritic(VECTOR, DISCRETE)(torch.randn(1, 3)).value.shape == (1,)


def test_numpy_arrays_equal_tensors():
    network, obs = ActorCritic(VECTOR, DISCRETE), torch.randn(4, 3)
    assert torch.equal(network(obs.numpy()).logits, network(obs).logits)
    assert torch.equal(network(obs.numpy()).value, network(obs).value)


def test_mappings_equal_tensordicts():
    network = ActorCritic(PRIVATE, DISCRETE)
    tensors = {"shown": torch.randn(4, 2), "private": torch.randn(4, 3)}
    expected = network(TensorDict(tensors, batch_size=[4]))
    for obs in (tensors, {key: tensor.numpy() for key, tensor in tensors.items()}):
        assert torch.equal(network(obs).logits, expected.logits)
        assert torch.equal(network(obs).value, expected.value)


@pytest.mark.parametrize("batch", [1, 5])
def test_a_private_key_reaches_the_critic_alone(batch):
    network = ActorCritic(
        PRIVATE,
        DISCRETE,
        encoder=functools.partial(MLPEncoder, in_keys=["shown"]),
        critic_encoder=functools.partial(MLPEncoder, in_keys=["private", "shown"], hidden_sizes=[16]),
    )
    obs = {"shown": torch.randn(batch, 2), "private": torch.randn(batch, 3)}
    before, after = network(obs), network({**obs, "private": obs["private"] + 1})
    assert torch.equal(before.logits, after.logits)
    assert (before.value != after.value).all()
    moved = network({**obs, "shown": obs["shown"] + 1})
    assert (before.logits != moved.logits).any()
    assert (before.value != moved.value).all()


def test_separate_encoders_share_no_parameter():
    network = ActorCritic(VECTOR, DISCRETE)
    network(torch.randn(4, 3)).value.sum().backward()
    assert all(parameter.grad is None for parameter in network.embedder.parameters())
    assert all(parameter.grad is not None for parameter in network.critic_embedder.parameters())
    assert network.fc_policy.weight.grad is None


def test_a_shared_encoder_is_one():
    network = ActorCritic(VECTOR, DISCRETE, shared=True)
    assert network.critic_embedder is None
    network(torch.randn(4, 3)).value.sum().backward()
    assert all(parameter.grad is not None for parameter in network.embedder.parameters())


def test_shared_and_a_critic_encoder_contradict_each_other():
    with pytest.raises(
        ConfigurationError, match=r"network\.shared=true and --model\.network\.critic_encoder contradict"
    ):
        ActorCritic(VECTOR, DISCRETE, critic_encoder=MLPEncoder, shared=True)


def test_layers_are_orthogonal_with_the_usual_gains():
    network = ActorCritic(VECTOR, DISCRETE)
    assert_orthogonal(network.fc_policy, 0.01)
    assert_orthogonal(network.fc_value, 1.0)
    for encoder in (network.embedder, network.critic_embedder):
        for layer in encoder.layers[::2]:
            assert_orthogonal(layer, 2**0.5)


def test_nature_cnn_layers_are_orthogonal():
    network = ActorCritic(image_space(36, 36, 3), DISCRETE, encoder=NatureCNN)
    for layer in [*network.embedder.layers, *network.embedder.linear]:
        if hasattr(layer, "weight"):
            assert_orthogonal(layer, 2**0.5)


def test_impala_model_has_the_documented_members():
    network = ImpalaPPOModel(image_space(64, 64, 3), spaces.Discrete(15))
    assert isinstance(network.embedder, ImpalaCNN)
    assert network.critic_embedder is None
    assert (network.hidden_dim, network.logit_dim) == (256, 15)
    assert network.fc_policy.weight.shape == (15, 256)
    assert network.fc_value.weight.shape == (1, 256)
    assert_orthogonal(network.fc_policy, 0.01)
    assert_orthogonal(network.fc_value, 1.0)
    output = network(np.zeros((2, 64, 64, 3), np.uint8))
    assert (output.logits.shape, output.value.shape, output.hidden.shape) == ((2, 15), (2,), (2, 256))


def test_impala_model_has_the_published_number_of_parameters():
    def conv(fan_in, fan_out):
        return fan_in * fan_out * 9 + fan_out

    def block(fan_in, fan_out):
        return conv(fan_in, fan_out) + 4 * conv(fan_out, fan_out)

    trunk = block(3, 16) + block(16, 32) + block(32, 32) + (32 * 8 * 8) * 256 + 256
    heads = 256 * 15 + 15 + 256 + 1
    network = ImpalaPPOModel(image_space(64, 64, 3), spaces.Discrete(15))
    assert sum(parameter.numel() for parameter in network.parameters()) == trunk + heads == 626_256


def test_impala_model_takes_channels_and_width():
    network = ImpalaPPOModel(image_space(16, 16, 3), DISCRETE, channels=(4, 6), hidden_dim=10)
    assert network.embedder.linear.weight.shape == (10, 6 * 4 * 4)
    assert network(np.zeros((2, 16, 16, 3), np.uint8)).hidden.shape == (2, 10)


@pytest.mark.parametrize("action_space", [DISCRETE, BOX, SEVERAL, spaces.MultiBinary(2)])
@pytest.mark.parametrize("shared", [False, True])
def test_heads_stay_in_float32_under_bf16_autocast(action_space, shared):
    network = ActorCritic(VECTOR, action_space, shared=shared)
    obs = torch.randn(6, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert network.embedder(obs).dtype == torch.bfloat16
        output = network(obs)
        critic_hidden = (network.critic_embedder or network.embedder)(obs)
    policy = output.mean if action_space is BOX else output.logits
    assert policy.dtype == output.value.dtype == torch.float32
    # exactly the float32 heads of the bf16 features
    assert torch.equal(output.value, network.fc_value(critic_hidden.float()).squeeze(-1))
    assert torch.equal(policy, network.fc_policy(output.hidden.float()))


def test_a_float64_network_answers_in_float64():
    output = ActorCritic(VECTOR, DISCRETE).double()(torch.randn(2, 3))
    assert output.logits.dtype == output.value.dtype == torch.float64
