import functools

import numpy as np
import pytest
import torch
from gymnasium import spaces
from tensordict import TensorDict
from torch import nn

from ppo_lightning.core.checkpoint import FORMAT_KEY, FORMAT_VERSION
from ppo_lightning.core.errors import ConfigurationError
from ppo_lightning.core.instantiate import describe
from ppo_lightning.core.spaces import space_to_dict
from ppo_lightning.functional.distributions import draw_noise
from ppo_lightning.models import ActorCritic, GaussianModelOutput, MLPEncoder, PPOModelOutput
from ppo_lightning.policies import PPOPolicy

OBS, DISCRETE, BOX = spaces.Box(-1, 1, (3,)), spaces.Discrete(4), spaces.Box(-1, 1, (2,))
LOGITS = torch.tensor([0.0, 2.0, 1.0, -1.0])


class Fixed(nn.Module):
    """The same logits for every observation."""

    def __init__(self, logits=LOGITS):
        super().__init__()
        self.logits = nn.Parameter(logits.clone())

    def forward(self, obs):
        rows = len(obs)
        return PPOModelOutput(self.logits.expand(rows, -1), torch.zeros(rows), torch.zeros(rows, 1))


class Counting(nn.Module):
    """Values an observation by the steps that it remembers, from 5 on."""

    def __init__(self, nested=False):
        super().__init__()
        self.weight, self.nested = nn.Parameter(torch.zeros(2)), nested

    def initial_state(self, num_envs):
        count = torch.full((num_envs, 1), 5.0)
        return TensorDict({"count": count}, batch_size=[num_envs]) if self.nested else count

    def forward(self, obs, state):
        count = state["count"] if self.nested else state
        output = PPOModelOutput(self.weight.expand(len(obs), 2), count[:, 0], obs)
        after = TensorDict({"count": count + 1}, batch_size=[len(obs)]) if self.nested else count + 1
        return output, after


def shares(temperature, count=40_000, **kwargs):
    actions = PPOPolicy(Fixed()).act(torch.zeros(count, 3), temperature, **kwargs)
    return torch.bincount(actions, minlength=4) / count


def assert_distributed(observed, expected, count=40_000):
    assert (count * (observed - expected) ** 2 / expected).sum() < 16.27  # 99.9 % of chi-square with 3 degrees


def test_temperature_zero_takes_the_most_probable_action():
    assert PPOPolicy(Fixed()).act(torch.zeros(5, 3), temperature=0).tolist() == [1] * 5


def test_temperature_one_samples_the_policy_and_is_the_default():
    assert_distributed(shares(1.0), torch.softmax(LOGITS, 0))
    assert_distributed(
        torch.bincount(PPOPolicy(Fixed()).act(torch.zeros(40_000, 3)), minlength=4) / 40_000, LOGITS.softmax(0)
    )


@pytest.mark.parametrize("temperature", [0.5, 3.0])
def test_temperature_sharpens_and_flattens(temperature):
    assert_distributed(shares(temperature), torch.softmax(LOGITS / temperature, 0))


def test_a_high_temperature_is_uniform():
    assert_distributed(shares(1e6), torch.full((4,), 0.25))


def test_a_negative_temperature_is_refused():
    with pytest.raises(ConfigurationError, match=r"temperature must be at least 0, not -1\."):
        PPOPolicy(Fixed()).act(torch.zeros(1, 3), temperature=-1)


def test_box_actions_follow_the_temperature():
    network = ActorCritic(OBS, BOX, initial_logstd=-1.0)
    policy, obs = PPOPolicy(network), torch.randn(1, 3).expand(20_000, 3)
    mean = network(obs[:1]).mean
    assert torch.equal(policy.act(obs[:1], temperature=0), mean)
    for temperature in (1.0, 4.0):
        std = policy.act(obs, temperature).std(0) / (temperature * np.exp(-1))
        assert ((std - 1).abs() < 4 / (2 * 20_000) ** 0.5).all()


def test_given_noise_decides_the_sample():
    policy = PPOPolicy(Fixed())
    noise = draw_noise(DISCRETE, 1, [torch.Generator().manual_seed(n) for n in range(50)], torch.float32, "cpu")[0]
    actions = policy.act(torch.zeros(50, 3), noise=noise)
    assert torch.equal(actions, (torch.log_softmax(LOGITS, 0) + noise).argmax(-1))
    assert torch.equal(policy.act(torch.zeros(50, 3), noise=noise), actions)
    assert len(actions.unique()) > 1


@pytest.mark.parametrize(("space", "kind"), [(DISCRETE, PPOModelOutput), (BOX, GaussianModelOutput)])
def test_the_model_output_comes_on_request(space, kind):
    network, obs = ActorCritic(OBS, space), torch.randn(6, 3)
    actions, output = PPOPolicy(network).act(obs, temperature=0, return_model_output=True)
    assert isinstance(output, kind)
    assert torch.equal(output.value, network(obs).value)
    assert torch.equal(actions, output.distribution.mode())
    assert not output.value.requires_grad


@pytest.mark.parametrize(
    ("space", "counts"),
    [(spaces.MultiDiscrete([3, 2, 4], start=[1, 0, 9]), (3, 2, 4)), (spaces.MultiBinary(2), (2, 2))],
)
def test_several_actions_come_as_rows_of_integers_from_0(space, counts):
    policy, obs = PPOPolicy(ActorCritic(OBS, space)), np.zeros((500, 3), np.float32)
    for temperature in (0, 0.5, 1, 4.0):
        actions = policy.act(obs, temperature).numpy()
        assert actions.dtype == np.int64
        assert actions.shape == (500, len(counts))
        assert (actions >= 0).all()
        assert (actions < counts).all()
    assert [len(np.unique(column)) for column in actions.T] == list(counts)
    assert policy.act(obs[:1], temperature=0).shape == (1, len(counts))


def test_temperature_sharpens_each_of_several_actions():
    policy = PPOPolicy(ActorCritic(OBS, spaces.MultiDiscrete([2, 3])))
    with torch.no_grad():
        policy.model.fc_policy.bias.copy_(torch.tensor([0.0, 1.0, 0.0, 2.0, 1.0]))
    actions = policy.act(torch.zeros(40_000, 3), temperature=0.5)
    shares = [torch.bincount(column, minlength=size) / 40_000 for column, size in zip(actions.T, (2, 3))]
    biases = policy.model.fc_policy.bias.detach().split((2, 3))
    for observed, logits in zip(shares, biases):
        torch.testing.assert_close(observed, (logits / 0.5).softmax(-1), rtol=0, atol=0.01)


@pytest.mark.parametrize("form", [torch.Tensor.numpy, lambda x: x])
def test_observations_may_be_arrays_or_tensors(form):
    policy, obs = PPOPolicy(ActorCritic(OBS, BOX)), torch.randn(4, 3)
    assert torch.equal(policy.act(form(obs), temperature=0), policy.act(obs, temperature=0))


def test_observations_may_be_mappings():
    policy = PPOPolicy(ActorCritic(spaces.Dict(a=OBS, b=spaces.Discrete(2)), BOX))
    obs = {"a": np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32), "b": np.array([0, 1, 0, 1])}
    tensors = TensorDict({key: torch.from_numpy(value) for key, value in obs.items()}, batch_size=[4])
    assert torch.equal(policy.act(obs, temperature=0), policy.act(tensors, temperature=0))


def test_parameters_are_taken_and_given():
    one, other = PPOPolicy(ActorCritic(OBS, BOX)), PPOPolicy(ActorCritic(OBS, BOX))
    obs = torch.randn(4, 3)
    assert not torch.equal(one.act(obs, 0), other.act(obs, 0))
    other.set_params(one.get_params())
    assert torch.equal(one.act(obs, 0), other.act(obs, 0))


def test_train_and_eval_reach_the_network():
    policy = PPOPolicy(nn.Sequential(Fixed(), nn.Dropout()))
    policy.eval()
    assert not any(module.training for module in policy.model.modules())
    policy.train()
    assert all(module.training for module in policy.model.modules())


@pytest.mark.parametrize("nested", [False, True])
def test_a_memory_runs_on_until_its_row_is_reset(nested):
    policy, obs = PPOPolicy(Counting(nested)), torch.zeros(3, 2)

    def remembered():
        return policy.act(obs, return_model_output=True)[1].value.tolist()

    assert remembered() == [5, 5, 5]
    assert remembered() == [6, 6, 6]
    policy.reset(np.array([False, True, False]))
    assert remembered() == [7, 5, 7]
    policy.reset(np.array([False, False, False]))
    assert remembered() == [8, 6, 8]
    policy.reset(np.array([True, True, True]))
    assert remembered() == [5, 5, 5]


def test_a_reset_before_the_first_step_or_without_memory_changes_nothing():
    for policy in (PPOPolicy(Counting()), PPOPolicy(Fixed())):
        before = vars(policy).copy()
        policy.reset(np.array([True]))
        assert vars(policy) == before


@pytest.mark.parametrize("rows", [1, 4])
def test_a_memory_starts_anew_for_another_number_of_rows(rows):
    policy = PPOPolicy(Counting())
    policy.act(torch.zeros(3, 2))
    policy.reset(np.ones(rows, dtype=bool))
    assert policy.act(torch.zeros(rows, 2), return_model_output=True)[1].value.tolist() == [5] * rows


def save_checkpoint(path, network, builder):
    torch.save(
        {
            FORMAT_KEY: FORMAT_VERSION,
            "state_dict": {f"network.{name}": tensor for name, tensor in network.state_dict().items()},
            "hyper_parameters": {
                "network": describe(builder),
                "observation_space": space_to_dict(OBS),
                "action_space": space_to_dict(BOX),
            },
        },
        path,
    )


def test_a_policy_comes_back_from_a_checkpoint_ready_to_act(tmp_path):
    builder = functools.partial(ActorCritic, encoder=functools.partial(MLPEncoder, hidden_sizes=[5]))
    network, obs = builder(OBS, BOX), torch.randn(4, 3)
    save_checkpoint(tmp_path / "best.ckpt", network, builder)
    policy = PPOPolicy(load_path=tmp_path / "best.ckpt")
    assert torch.equal(policy.act(obs, temperature=0), network(obs).mean)
    assert not policy.model.training


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(ConfigurationError, match=r"^load_path: the checkpoint .*no\.ckpt does not exist"):
        PPOPolicy(load_path=tmp_path / "no.ckpt")


@pytest.mark.parametrize("arguments", [{}, {"model": Fixed(), "load_path": "best.ckpt"}])
def test_either_a_model_or_a_path_is_needed(arguments):
    with pytest.raises(ConfigurationError, match="either a model or a load_path, and not both"):
        PPOPolicy(**arguments)
