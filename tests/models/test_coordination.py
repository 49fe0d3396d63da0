"""What a coordinator sees, by the name of its features."""

import functools

import numpy as np
import pytest
import torch
from gymnasium import spaces
from tensordict import TensorDict

from ppo_lightning import (
    ConfigurationError,
    CoordPPOModel,
    ImpalaCNN,
    ImpalaCoordPPOModel,
    MLPEncoder,
    PPOPolicy,
)
from ppo_lightning.models.coordination import FEATURE_TYPES

IMAGE, VECTOR = spaces.Box(0, 255, (16, 16, 3), np.uint8), spaces.Box(-1, 1, (6,), np.float32)
FEATURES = {
    "novice_hidden": spaces.Box(-np.inf, np.inf, (5,), np.float32),
    "novice_logits": spaces.Box(-np.inf, np.inf, (3,), np.float32),
}
TWO = spaces.Discrete(2)
READS = {
    "obs": {"base_obs"},
    "hidden": {"novice_hidden"},
    "dist": {"novice_logits"},
    "hidden_obs": {"base_obs", "novice_hidden"},
    "hidden_dist": {"novice_hidden", "novice_logits"},
    "obs_dist": {"base_obs", "novice_logits"},
    "obs_hidden_dist": {"base_obs", "novice_hidden", "novice_logits"},
}
SIZES = {"base_obs": 8, "novice_hidden": 5, "novice_logits": 3}


def model(kind, feature_type, **shown):
    torch.manual_seed(0)
    if kind == "impala":
        space = spaces.Dict({"base_obs": IMAGE, **(shown or FEATURES)})
        return ImpalaCoordPPOModel(space, TWO, feature_type, channels=(4,), hidden_dim=8)
    space = spaces.Dict({"base_obs": VECTOR, **(shown or FEATURES)})
    return CoordPPOModel(space, TWO, functools.partial(MLPEncoder, hidden_sizes=[8]), feature_type)


def observation(kind, rows=4):
    torch.manual_seed(1)
    base = torch.randint(256, (rows, 16, 16, 3), dtype=torch.uint8) if kind == "impala" else torch.randn(rows, 6)
    parts = {"base_obs": base, "novice_hidden": torch.randn(rows, 5), "novice_logits": torch.randn(rows, 3)}
    return TensorDict(parts, batch_size=[rows])


def flat(output):
    return torch.cat([output.logits, output.value[:, None], output.hidden], dim=1)


def test_there_are_seven_kinds():
    assert set(FEATURE_TYPES) == set(READS)


@pytest.mark.parametrize("kind", ["impala", "mlp"])
@pytest.mark.parametrize("feature_type", FEATURE_TYPES)
def test_a_model_sees_exactly_what_its_features_name(kind, feature_type):
    network, obs = model(kind, feature_type), observation(kind)
    before = network(obs)
    assert before.logits.shape == (4, 2)
    assert before.value.shape == (4,)
    assert before.hidden.shape == (4, sum(SIZES[name] for name in READS[feature_type]))
    assert before.hidden.shape[1] == network.hidden_dim
    for name in SIZES:
        changed = obs.clone()
        changed[name] = changed[name].flip(0)
        difference = (flat(network(changed)) - flat(before)).abs().amax(0)
        assert bool(difference[:3].max() > 0) == bool(difference[3:].max() > 0) == (name in READS[feature_type])
    assert (network.embedder is None) == ("base_obs" not in READS[feature_type])


@pytest.mark.parametrize("feature_type", FEATURE_TYPES)
def test_features_are_what_they_are_named_after(feature_type):
    network, obs = model("mlp", feature_type), observation("mlp")
    parts = []
    if "base_obs" in READS[feature_type]:
        parts.append(network.embedder(obs["base_obs"]))
    if "novice_hidden" in READS[feature_type]:
        parts.append(obs["novice_hidden"])
    if "novice_logits" in READS[feature_type]:
        parts.append(obs["novice_logits"].exp() / obs["novice_logits"].exp().sum(1, keepdim=True))
    hidden = torch.cat(parts, dim=1)
    output = network(obs)
    torch.testing.assert_close(output.hidden, hidden)
    torch.testing.assert_close(output.logits, hidden @ network.fc_policy.weight.T + network.fc_policy.bias)
    torch.testing.assert_close(output.value, (hidden @ network.fc_value.weight.T + network.fc_value.bias)[:, 0])


@pytest.mark.parametrize("feature_type", [name for name in FEATURE_TYPES if "dist" in name])
def test_dist_is_the_novices_probabilities(feature_type):
    network, obs = model("mlp", feature_type), observation("mlp")
    before, shifted = network(obs), obs.clone()
    shifted["novice_logits"] = shifted["novice_logits"] + 7
    torch.testing.assert_close(flat(network(shifted)), flat(before), atol=1e-5, rtol=1e-5)
    assert torch.allclose(before.hidden[:, -3:].sum(1), torch.ones(4))


@pytest.mark.parametrize("kind", ["impala", "mlp"])
def test_observations_may_be_arrays_and_a_policy_acts_on_them(kind):
    network, obs = model(kind, "obs_hidden_dist"), observation(kind)
    arrays = {key: value.numpy() for key, value in obs.items()}
    torch.testing.assert_close(flat(network(arrays)), flat(network(obs)))
    actions = PPOPolicy(network).act(arrays, temperature=0)
    assert torch.equal(actions, network(obs).logits.argmax(1))
    assert PPOPolicy(network).act(arrays).shape == (4,)


def test_base_observations_may_be_dicts():
    nested = spaces.Dict(a=VECTOR, b=spaces.Dict(c=spaces.Discrete(3), d=VECTOR))
    space = spaces.Dict({"base_obs": nested, **FEATURES})
    network = CoordPPOModel(space, TWO, functools.partial(MLPEncoder, hidden_sizes=[8]), "obs_dist")
    obs = observation("mlp").to_dict()
    vector = obs["base_obs"].numpy()
    obs["base_obs"] = {"a": vector, "b": {"c": np.array([0, 1, 2, 0]), "d": -vector}}
    before = network(obs)
    assert before.logits.shape == (4, 2)
    for change in ({"c": np.array([1, 1, 2, 0]), "d": -vector}, {"c": np.array([0, 1, 2, 0]), "d": -2 * vector}):
        after = network({**obs, "base_obs": {"a": vector, "b": change}})
        assert not torch.equal(after.value[0], before.value[0])


@pytest.mark.parametrize("kind", ["impala", "mlp"])
@pytest.mark.parametrize("feature_type", FEATURE_TYPES)
def test_heads_begin_with_their_gains(kind, feature_type):
    network = model(kind, feature_type)
    for head, gain in ((network.fc_policy, 0.01), (network.fc_value, 1.0)):
        rows = head.weight.shape[0]
        torch.testing.assert_close(head.weight @ head.weight.T, gain**2 * torch.eye(rows), atol=1e-5 * gain, rtol=1e-4)
        assert (head.bias == 0).all()
    assert (network.hidden_dim, network.logit_dim) == (network.fc_value.in_features, 2)


def test_the_impala_network_is_the_agents_own():
    network = ImpalaCoordPPOModel(spaces.Dict({"base_obs": spaces.Box(0, 255, (64, 64, 3), np.uint8)}), TWO)
    assert isinstance(network.embedder, ImpalaCNN)
    assert network.feature_type == "obs"
    assert network.hidden_dim == 256


def test_heads_are_in_full_precision_where_the_encoder_is_not():
    network, obs = model("mlp", "obs_hidden_dist"), observation("mlp")
    exact = network(obs)
    with torch.autocast("cpu", torch.bfloat16):
        half = network(obs)
    assert half.logits.dtype == half.value.dtype == torch.float32
    torch.testing.assert_close(half.hidden[:, 8:], exact.hidden[:, 8:])  # what needs no encoder is exact
    assert not torch.equal(half.hidden[:, :8], exact.hidden[:, :8])


@pytest.mark.parametrize("kind", ["impala", "mlp"])
def test_features_follow_the_networks_precision(kind):
    network, obs = model(kind, "obs_hidden_dist").double(), observation(kind)
    assert network(obs).logits.dtype == torch.float64


# -- mistakes


@pytest.mark.parametrize(
    ("feature_type", "hint"), [("obs_hiden", "Did you mean"), ("hidden_obs_dist", "obs_hidden_dist"), ("x", ".")]
)
def test_an_unknown_feature_type_is_named(feature_type, hint):
    with pytest.raises(ConfigurationError, match=rf"--model.network.feature_type={feature_type} is not") as caught:
        model("mlp", feature_type)
    assert hint in str(caught.value)
    assert all(name in str(caught.value) for name in FEATURE_TYPES)


@pytest.mark.parametrize("feature_type", FEATURE_TYPES)
def test_features_that_a_closed_novice_does_not_show_are_named(feature_type):
    space = spaces.Dict({"base_obs": VECTOR})
    build = functools.partial(CoordPPOModel, space, TWO, MLPEncoder, feature_type)
    if feature_type == "obs":
        assert build().embedder is not None
        return
    with pytest.raises(
        ConfigurationError, match=rf"^--model.network.feature_type={feature_type} reads novice_"
    ) as caught:
        build()
    assert "--data.env.open_novice=true" in str(caught.value)


def test_the_probabilities_of_a_novice_of_continuous_actions_are_not_asked_for():
    """It is open already: to open it is no way out."""
    shown = {"novice_hidden": FEATURES["novice_hidden"], "novice_mean": FEATURES["novice_logits"]}
    with pytest.raises(ConfigurationError, match=r"feature_type=obs_dist reads novice_logits") as caught:
        model("mlp", "obs_dist", **shown)
    assert "open_novice" not in str(caught.value)


@pytest.mark.parametrize("space", [VECTOR, spaces.Dict(state=VECTOR)])
@pytest.mark.parametrize("network", [CoordPPOModel, ImpalaCoordPPOModel])
def test_an_environment_without_a_novice_is_named(network, space):
    with pytest.raises(ConfigurationError, match=r"--model.network is one of a coordinator.*CoordinationEnv"):
        network(space, TWO)
