"""Coordinators that need no training."""

import math

import numpy as np
import pytest
import torch
from gymnasium import spaces
from tensordict import TensorDict

from ppo_lightning import AlwaysPolicy, ConfigurationError, LogitThresholdPolicy, RandomPolicy
from ppo_lightning.functional.confidence import CONFIDENCES
from ppo_lightning.functional.distributions import draw_noise

VECTOR, TWO = spaces.Box(-1, 1, (4,), np.float32), spaces.Discrete(2)
LOGITS = np.log(np.array([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8], [0.4, 0.4, 0.2]], dtype=np.float32))
SPACE = spaces.Dict(base_obs=VECTOR, novice_logits=spaces.Box(-np.inf, np.inf, (3,), np.float32))


def observations(rows, **parts):
    """In each form that a policy may be given."""
    arrays = {"base_obs": np.zeros((rows, 4), np.float32), **parts}
    yield arrays
    yield TensorDict({key: torch.from_numpy(value) for key, value in arrays.items()}, batch_size=[rows])
    yield {**arrays, "base_obs": {"pose": {"a": arrays["base_obs"], "b": arrays["base_obs"]}}}
    nested = TensorDict({"pose": torch.zeros(rows, 4)}, batch_size=[rows])
    yield TensorDict({"base_obs": nested, **{key: torch.from_numpy(part) for key, part in parts.items()}}, [rows])


@pytest.mark.parametrize(("agent", "action"), [("novice", 0), ("expert", 1)])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_always_the_same(agent, action, temperature):
    policy = AlwaysPolicy(agent)
    for obs in observations(5):
        actions = policy.act(obs, temperature)
        assert actions.tolist() == [action] * 5
        assert actions.dtype == torch.int64
    assert not policy.draws(1.0)
    assert str(policy) == f"always {agent}"


def test_always_knows_two_agents():
    with pytest.raises(ConfigurationError, match=r"AlwaysPolicy.agent=nobody is neither novice nor expert"):
        AlwaysPolicy("nobody")


@pytest.mark.parametrize("temperature", [0.0, 1.0, 5.0])
@pytest.mark.parametrize("probability", [0.1, 0.5, 0.8])
def test_random_asks_as_often_as_it_says_at_any_temperature(probability, temperature):
    policy = RandomPolicy(probability)
    assert policy.draws(temperature)
    for obs in observations(20_000):
        asked = policy.act(obs, temperature).double().mean()
        assert abs(asked - probability) < 4 * math.sqrt(probability * (1 - probability) / 20_000)


@pytest.mark.parametrize("probability", [0, 1])
def test_random_is_exact_at_its_ends(probability):
    obs = next(observations(50_000))
    assert (RandomPolicy(probability).act(obs) == probability).all()


def test_random_is_as_exact_in_the_trainers_bf16_true():
    noise = -torch.rand(100_000, 2, generator=torch.Generator().manual_seed(0)).log().neg().log()
    obs = {"base_obs": torch.zeros(len(noise), 1)}
    expected = RandomPolicy(0.3).act(obs, noise=noise)
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert torch.equal(RandomPolicy(0.3).act(obs, noise=noise), expected)
    finally:
        torch.set_default_dtype(torch.float32)


def test_random_follows_the_noise_it_is_given():
    noise = draw_noise(TWO, 1, [torch.Generator().manual_seed(n) for n in range(300)], torch.float32, "cpu")[0]
    for dtype in (torch.float32, torch.float64):
        for obs in observations(300):
            actions = RandomPolicy(0.3).act(obs, noise=noise.to(dtype))
            assert torch.equal(actions, (math.log(0.3) + noise[:, 1] > math.log(0.7) + noise[:, 0]).long())
    assert 50 < actions.sum() < 130
    fewer = RandomPolicy(0.1).act(obs, noise=noise)
    assert (fewer <= actions).all()


@pytest.mark.parametrize("probability", [-0.1, 1.1, math.nan])
def test_random_needs_a_probability(probability):
    with pytest.raises(ConfigurationError, match=r"RandomPolicy.expert_probability must be at least 0 and at most 1"):
        RandomPolicy(probability)


@pytest.mark.parametrize(
    ("confidence", "threshold", "asked"),
    [
        ("max_prob", 0.45, [0, 0, 1]),
        ("max_prob", 0.6, [1, 0, 1]),
        ("margin", 0.1, [0, 0, 1]),
        ("margin", 0.3, [1, 0, 1]),
        ("max_logit", math.log(0.45), [0, 0, 1]),
        ("entropy", -1.0, [1, 0, 1]),  # -1.040, -0.639, -1.055
        ("entropy", -1.05, [0, 0, 1]),
        ("energy", -0.1, [0, 0, 0]),  # all 0
        ("energy", 0.1, [1, 1, 1]),
        ("max_prob", -math.inf, [0, 0, 0]),
        ("max_prob", math.inf, [1, 1, 1]),
    ],
)
def test_the_expert_is_asked_where_the_novice_is_not_sure(confidence, threshold, asked):
    policy = LogitThresholdPolicy(confidence, threshold)
    for obs in observations(3, novice_logits=LOGITS):
        for temperature in (0.0, 1.0):  # of the evaluation: there is nothing to sample
            assert policy.act(obs, temperature).tolist() == asked
    assert not policy.draws(1.0)


@pytest.mark.parametrize("confidence", CONFIDENCES)
def test_a_confidence_of_the_threshold_itself_is_enough(confidence):
    logits = torch.from_numpy(LOGITS)
    (value, *_) = CONFIDENCES[confidence](logits[:1]).tolist()
    obs = {"base_obs": np.zeros((1, 4)), "novice_logits": LOGITS[:1]}
    assert LogitThresholdPolicy(confidence, value).act(obs).tolist() == [0]
    assert LogitThresholdPolicy(confidence, value + 1e-5).act(obs).tolist() == [1]


@pytest.mark.parametrize("confidence", CONFIDENCES)
@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_logits_are_divided_by_the_policys_temperature(confidence, temperature):
    policy = LogitThresholdPolicy(confidence, temperature=temperature)
    expected = CONFIDENCES[confidence](torch.from_numpy(LOGITS).double() / temperature)
    torch.testing.assert_close(policy.confidence_of(torch.from_numpy(LOGITS)).double(), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"confidence": "margn"}, "LogitThresholdPolicy.confidence=margn is not a measure.*Did you mean margin?"),
        ({"threshold": math.nan}, "LogitThresholdPolicy.threshold=nan"),
        ({"temperature": 0}, "LogitThresholdPolicy.temperature must be greater than 0, not 0"),
        ({"temperature": -1}, "LogitThresholdPolicy.temperature must be greater than 0, not -1"),
    ],
)
def test_thresholds_that_mean_nothing_are_refused(arguments, words):
    with pytest.raises(ConfigurationError, match=words):
        LogitThresholdPolicy(**arguments)


@pytest.mark.parametrize(
    ("policy", "changed"),
    [
        (RandomPolicy(0.3), {"expert_probability": 0.9}),
        (LogitThresholdPolicy("margin", 0.2, 1.5), {"confidence": "energy", "threshold": -1.0}),
    ],
)
def test_parameters_are_given_and_taken(policy, changed):
    before = policy.get_params()
    policy.set_params({})
    assert policy.get_params() == before
    policy.set_params(changed)
    assert policy.get_params() == {**before, **changed}
    assert vars(policy) == {**before, **changed}
    policy.set_params(before)
    assert policy.get_params() == before
    with pytest.raises(ConfigurationError, match=r"has no parameter 'probability': choose from"):
        policy.set_params({"probability": 1})


def test_parameters_that_are_refused_change_nothing():
    policy = LogitThresholdPolicy("margin", 0.2)
    with pytest.raises(ConfigurationError):
        policy.set_params({"threshold": 0.5, "temperature": 0})
    assert policy.get_params() == {"confidence": "margin", "threshold": 0.2, "temperature": 1.0}


@pytest.mark.parametrize("policy", [AlwaysPolicy("novice"), RandomPolicy(), LogitThresholdPolicy()])
def test_there_must_be_a_novice_and_an_expert(policy):
    policy.check_spaces(SPACE, TWO)
    for space in (VECTOR, spaces.Dict(state=VECTOR)):
        with pytest.raises(ConfigurationError, match=rf"^{type(policy).__name__} chooses .* CoordinationEnv\.$"):
            policy.check_spaces(space, TWO)


def test_a_threshold_needs_the_novices_logits():
    with pytest.raises(ConfigurationError, match=r"--data.env.open_novice=true, with a novice of discrete actions"):
        LogitThresholdPolicy().check_spaces(spaces.Dict(base_obs=VECTOR), TWO)
    AlwaysPolicy("novice").check_spaces(spaces.Dict(base_obs=VECTOR), TWO)


def test_memoryless_policies_do_not_mind_what_is_told_of_rows():
    policy = RandomPolicy(0.5)
    policy.reset(np.array([True]))
    policy.keep(np.array([True]))
    policy.train()
    policy.eval()
    assert policy.fresh().get_params() == policy.get_params()
    assert policy.fresh() is not policy
